//! What a policy becomes: the pod-side tables and the host guard of one sandbox.
//!
//! Pure: a policy, the interfaces as they were when the sandbox was made, and what the node looks like from each of
//! them go in; tables come out. The same policy is compiled for every place where packets are met (a netdev hook in
//! the pod, one on the host's end of the veth, and the inet hooks where a kernel has no netdev egress), so that the
//! layers cannot drift apart.
//!
//! Nothing here uses conntrack: it would register conntrack in a netns that had none, and it would let flows live on
//! that the pod had opened before. An allowed *opening* packet puts its flow into a set, and everything else passes only
//! for what is in the set. For TCP only a bare SYN opens.
//!
//! What passes is bound to its sender and its receiver down to the Ethernet address: on a bridge, a packet that is
//! allowed by its IP header would else reach whichever neighbour its Ethernet header names.

mod allowed;
mod hops;
mod host_pod;
mod interface;
#[cfg(test)]
mod tests;
mod words;

use std::net::Ipv6Addr;

pub use hops::neighbours_needed;
pub use host_pod::{HostPodChains, host_pod_chains};
pub(super) use words::{attempt_key, no_bare_syn};

use crate::model::fingerprint::fingerprint;
use crate::model::names::{ContainerId, IfName, SandboxInterface};
use crate::model::policy::{Policy, Probes, Protocol};
use crate::model::record::NodeOnLink;
use crate::rules::ruleset::{Chain, Family, Field, Hook, KeyType, Meta, Rule, Set, Statement, Table, Test};

use allowed::Uncounted;
use interface::{Compiled, interface_rules, link_rules};
use words::*;

/// The name of the pod-side tables.
pub const TABLE: &str = "quarantine";
/// The sets of attempts; `4` or `6` follows.
pub const ATTEMPTS: &str = "attempts";
/// Attempts with protocols that have no ports.
pub const PORTLESS_ATTEMPTS: &str = "portless-attempts";
/// Neighbours that were asked for on the link.
pub const NEIGHBOUR_ATTEMPTS: &str = "neighbour-attempts";

/// What comes from the node's own sockets and would be a probe, if it came from an address that is known to be the node's: by its
/// source.
pub const STRAY_PROBES: &str = "stray-probes";

/// The sets of flows; `4-` or `6-` and the policy's fingerprint follow.
const PROBE_FLOWS: &str = "probes";
/// Flows of probes for which [`PROBE_FLOWS`] has no room.
const BURST_FLOWS: &str = "burst";
const ALLOWED_FLOWS: &str = "flows";
/// The sets of an allow-list; `4-` or `6-`, the interface and the policy's fingerprint follow.
const PEERS: &str = "peers";
const EGRESS_PEERS: &str = "egress";
/// Those whose station is not known.
const PEERS_ON_LINK: &str = "peers-on-link";
const EGRESS_ON_LINK: &str = "egress-on-link";
const INGRESS_PEERS: &str = "ingress";
/// Sets that hold nothing: what they are for is in their names.
const STRAYED: &str = "strayed-";
/// Seconds that a flow lives on without a packet.
const FLOW_TIMEOUT: u32 = 120;
/// The same for a flow in a burst: a process of the node that opens thousands of short connections keeps probes out for no longer.
const BURST_TIMEOUT: u32 = 5;
/// The most flows of one family at a time. The kernel makes room for all of them when the set is made: eight bytes for
/// each of four thirds of them, rounded up to a power of two; 32 KiB here.
const FLOWS_MAX: u32 = 3072;
/// Seconds for which an attempt is remembered.
const ATTEMPT_TIMEOUT: u32 = 86400;
/// Seconds for which a stray probe is remembered: longer than a kubelet waits between two, and not much.
const STRAY_TIMEOUT: u32 = 600;
/// The most attempts that are remembered, for each set; 4 KiB.
const ATTEMPTS_MAX: u32 = 384;

const SCTP: u8 = 132;
/// The last IPv6 address before the multicast ones (ff00::/8).
const LAST_UNICAST: [u8; 16] = Ipv6Addr::new(0xfeff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff, 0xffff).octets();

/// The name of the host guard's table.
#[must_use]
pub fn guard_table(container_id: &ContainerId) -> String {
    format!("{TABLE}-{container_id}")
}

/// An interface of a sandbox with what is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardedInterface {
    /// Its name now.
    pub name: IfName,
    /// What it was at ADD and what the node looks like from it; `None` for an interface that no ADD made: nothing
    /// passes there.
    pub known: Option<(SandboxInterface, NodeOnLink)>,
}

/// The host's end of an interface of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardedEnd {
    /// Its name on the host.
    pub device: IfName,
    /// Its index there.
    pub index: u32,
    /// The interface that it is the other end of.
    pub interface: GuardedInterface,
}

/// Which hooks the kernel has for the frames that leave the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EgressHook {
    /// netdev egress (Linux 5.16).
    Netdev,
    /// None: inet output has to do, and the host guard for raw frames.
    Missing,
}

/// Where the rules of a policy are compiled for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    /// netdev hooks in the pod.
    Pod,
    /// netdev hooks on the host's end: what leaves there goes to the pod.
    Host,
    /// The host's end where the kernel has no netdev egress: only what the pod sends is met.
    HostIngress,
    /// inet hooks in the pod: no Ethernet header, no ARP.
    PodInet,
}

/// The pod-side tables of a sandbox.
#[must_use]
pub fn pod_tables(policy: &Policy, interfaces: &[GuardedInterface], egress: EgressHook, dormant: bool) -> Vec<Table> {
    let mut netdev = Table {
        family: Family::Netdev,
        name: TABLE.to_owned(),
        dormant,
        sets: Vec::new(),
        branches: Vec::new(),
        chains: Vec::new(),
    };
    let mut inet = Table {
        family: Family::Inet,
        name: TABLE.to_owned(),
        dormant,
        sets: attempt_sets(),
        branches: Vec::new(),
        chains: Vec::new(),
    };
    let flows = FlowSets::of(policy);
    let (mut input, mut output) = (Vec::new(), Vec::new());
    if policy.loopback {
        input.push(Rule::new(vec![Statement::Meta(Meta::Iifname(IfName::lo())), Statement::Accept]));
    }
    // Where lo is closed, it is closed at its receiving end: a drop on the way out is told to the sender (EPERM).
    output.push(Rule::new(vec![Statement::Meta(Meta::Oifname(IfName::lo())), Statement::Accept]));
    match egress {
        EgressHook::Netdev => {
            netdev.sets = flows.sets();
            netdev.sets.extend(attempt_sets());
            netdev.sets.extend(neighbour_sets());
            let uncounted = Uncounted::of(&policy.allow, &flows);
            inet.sets.extend(uncounted.sets);
            for interface in interfaces {
                let Compiled { inbound, outbound, sets } = interface_rules(policy, &flows, interface, Place::Pod, None);
                netdev.sets.extend(sets);
                let name = &interface.name;
                netdev.chains.push(chain(format!("ingress-{name}"), Hook::Ingress(name.clone()), inbound));
                netdev.chains.push(chain(format!("egress-{name}"), Hook::Egress(name.clone()), outbound));
                let [incoming, outgoing] =
                    [Meta::Iifname(name.clone()), Meta::Oifname(name.clone())].map(Statement::Meta);
                input.push(Rule::new(vec![incoming, Statement::Accept]));
                // Counted before the neighbour is resolved, dropped behind it: a drop here would be told to the sender.
                let counted = uncounted.rules.iter().cloned().chain(attempt_rules(Place::PodInet));
                output.extend(counted.map(|rule| on(&outgoing, rule)));
                output.push(Rule::new(vec![outgoing, Statement::Accept]));
            }
        }
        EgressHook::Missing => {
            inet.sets.splice(0..0, flows.sets());
            for interface in interfaces {
                let name = &interface.name;
                let [incoming, outgoing] =
                    [Meta::Iifname(name.clone()), Meta::Oifname(name.clone())].map(Statement::Meta);
                netdev.chains.push(chain(
                    format!("ingress-{name}"),
                    Hook::Ingress(name.clone()),
                    link_rules(policy, interface),
                ));
                let Compiled { inbound, outbound, sets } =
                    interface_rules(policy, &flows, interface, Place::PodInet, None);
                inet.sets.extend(sets);
                input.extend(inbound.into_iter().map(|rule| on(&incoming, rule)));
                output.extend(outbound.into_iter().map(|rule| on(&outgoing, rule)));
            }
        }
    }
    inet.chains = vec![
        chain("input".to_owned(), Hook::Input, input),
        chain("output".to_owned(), Hook::Output, output),
        chain("forward".to_owned(), Hook::Forward, Vec::new()),
    ];
    netdev.keep_used_sets();
    if egress == EgressHook::Missing {
        // Elsewhere it has those of attempts alone, which connections that are held are counted in too.
        inet.keep_used_sets();
    }
    vec![netdev, inet]
}

/// The pod-side tables of a released sandbox: the chains and their final drops, asleep, and nothing that lets anything
/// through. A pod's start pays for no more; what a policy opens is loaded when the sandbox is isolated, once this has cut
/// it off.
#[must_use]
pub fn frame(interfaces: &[IfName], egress: EgressHook) -> Vec<Table> {
    let table = |family, chains| Table {
        family,
        name: TABLE.to_owned(),
        dormant: true,
        sets: Vec::new(),
        branches: Vec::new(),
        chains,
    };
    let mut hooks = Vec::with_capacity(2 * interfaces.len());
    for name in interfaces {
        hooks.push(chain(format!("ingress-{name}"), Hook::Ingress(name.clone()), Vec::new()));
        if egress == EgressHook::Netdev {
            hooks.push(chain(format!("egress-{name}"), Hook::Egress(name.clone()), Vec::new()));
        }
    }
    let inet = [("input", Hook::Input), ("output", Hook::Output), ("forward", Hook::Forward)]
        .map(|(name, hook)| chain(name.to_owned(), hook, Vec::new()));
    vec![table(Family::Netdev, hooks), table(Family::Inet, inet.into())]
}

/// The host guard of a sandbox: one pair of chains for each interface whose other end is on the host. Where the node's output puts a
/// bit on what the policy's prober sends, only what has it is a probe.
#[must_use]
pub fn guard(
    container_id: &ContainerId,
    policy: &Policy,
    ends: &[GuardedEnd],
    egress: EgressHook,
    label: Option<u32>,
) -> Table {
    let flows = FlowSets::of(policy);
    let mut sets = flows.sets();
    sets.extend(attempt_sets());
    sets.extend(neighbour_sets());
    if flows.with_probes && egress == EgressHook::Netdev {
        sets.extend(address_sets(STRAY_PROBES, STRAY_TIMEOUT));
    }
    let mut chains = Vec::with_capacity(2 * ends.len());
    for GuardedEnd { device, index, interface } in ends {
        // An end that no record speaks of is remembered by its chain alone.
        let name = match interface.known {
            Some(_) => interface.name.to_string(),
            None => format!("{}/{index}", interface.name),
        };
        let place = match egress {
            EgressHook::Netdev => Place::Host,
            EgressHook::Missing => Place::HostIngress,
        };
        let compiled = interface_rules(policy, &flows, interface, place, label);
        sets.extend(compiled.sets);
        if egress == EgressHook::Netdev {
            chains.push(chain(format!("to-{name}"), Hook::Egress(device.clone()), compiled.inbound));
        }
        chains.push(chain(format!("from-{name}"), Hook::Ingress(device.clone()), compiled.outbound));
    }
    let mut table = Table {
        family: Family::Netdev,
        name: guard_table(container_id),
        dormant: false,
        sets,
        branches: Vec::new(),
        chains,
    };
    table.keep_used_sets();
    table
}

/// The host's end of an interface that a record speaks of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealedEnd {
    /// Its name on the host.
    pub device: IfName,
    /// The interface that it is the other end of.
    pub interface: IfName,
}

/// The frame of a host guard: its chains and their final drops, which the rules of a policy are put in front of.
#[must_use]
pub fn sealed_guard(container_id: &ContainerId, ends: &[SealedEnd], egress: EgressHook) -> Table {
    let mut chains = Vec::with_capacity(2 * ends.len());
    for SealedEnd { device, interface } in ends {
        if egress == EgressHook::Netdev {
            chains.push(chain(format!("to-{interface}"), Hook::Egress(device.clone()), Vec::new()));
        }
        chains.push(chain(format!("from-{interface}"), Hook::Ingress(device.clone()), Vec::new()));
    }
    Table {
        family: Family::Netdev,
        name: guard_table(container_id),
        dormant: false,
        sets: Vec::new(),
        branches: Vec::new(),
        chains,
    }
}

/// What the name of one of the guard's chains says: the interface that it is for, and, where no record speaks of it, the
/// index of its end on the host.
#[must_use]
pub fn guarded_by(chain: &str) -> Option<(&str, Option<u32>)> {
    let name = chain.strip_prefix("to-").or_else(|| chain.strip_prefix("from-"))?;
    // No interface has a slash in its name, and nft reads one in a chain's.
    match name.rsplit_once('/') {
        Some((name, index)) => Some((name, Some(index.parse().ok()?))),
        None => Some((name, None)),
    }
}

/// What the guard remembers an end by that it was hooked on by a name which the end has no more: a set that nothing is put into.
#[must_use]
pub fn strayed_set(interface: &IfName, index: u32, device: &IfName) -> Set {
    Set::dynamic(format!("{STRAYED}{interface}/{index}/{device}"), vec![KeyType::Port], STRAY_TIMEOUT, 1)
}

/// What the name of such a set says: the sandbox's interface, the index of its end on the host, and the name of that end then.
#[must_use]
pub fn strayed_by(set: &[u8]) -> Option<(&str, u32, IfName)> {
    let mut parts = std::str::from_utf8(set).ok()?.strip_prefix(STRAYED)?.splitn(3, '/');
    Some((parts.next()?, parts.next()?.parse().ok()?, IfName::new(parts.next()?.as_bytes()).ok()?))
}

/// Whether it is one.
fn is_strayed_set(name: &[u8]) -> bool {
    name.starts_with(STRAYED.as_bytes())
}

fn chain(name: String, hook: Hook, mut rules: Vec<Rule>) -> Chain {
    rules.push(Rule::new(vec![Statement::Counter, Statement::Drop]));
    Chain { name, hook, rules }
}

/// The sets of flows that are open, named after the policy that opened them: another policy gets other, empty sets.
/// Flushing the old ones would not do, since the packet path can put a flow back between a batch's flush and its commit.
/// Probes have sets of their own, so that no flood of allowed flows can crowd them out.
struct FlowSets {
    fingerprint: u32,
    with_probes: bool,
    with_allowed: bool,
}

impl FlowSets {
    fn of(policy: &Policy) -> Self {
        // The lower half tells policies apart well enough, and reads better in a name.
        let fingerprint = fingerprint(&policy.to_text()) as u32;
        Self { fingerprint, with_probes: policy.probes != Probes::Off, with_allowed: !policy.allow.is_empty() }
    }

    /// The set of probes, and the one for when that is full.
    fn probes(&self, v6: bool) -> [String; 2] {
        [PROBE_FLOWS, BURST_FLOWS].map(|kind| format!("{kind}{}-{:08x}", family_suffix(v6), self.fingerprint))
    }

    fn allowed(&self, v6: bool) -> String {
        format!("{ALLOWED_FLOWS}{}-{:08x}", family_suffix(v6), self.fingerprint)
    }

    fn sets(&self) -> Vec<Set> {
        let set = |name, v6, timeout| {
            let key = vec![KeyType::Protocol, address_type(v6), KeyType::Port, KeyType::Port];
            Set::dynamic(name, key, timeout, FLOWS_MAX)
        };
        let mut sets = Vec::new();
        for v6 in [false, true] {
            if self.with_probes {
                let [probes, burst] = self.probes(v6);
                sets.extend([set(probes, v6, FLOW_TIMEOUT), set(burst, v6, BURST_TIMEOUT)]);
            }
            if self.with_allowed {
                sets.push(set(self.allowed(v6), v6, FLOW_TIMEOUT));
            }
        }
        sets
    }
}

/// Whether a set of this name holds the flows of some policy, or an end that may be gone: it can go where it is not wanted.
#[must_use]
pub fn is_flow_set(name: &[u8]) -> bool {
    let is_of = |kind: &str| {
        name.strip_prefix(kind.as_bytes()).is_some_and(|rest| rest.starts_with(b"4-") || rest.starts_with(b"6-"))
    };
    let kinds =
        [PROBE_FLOWS, BURST_FLOWS, ALLOWED_FLOWS, PEERS, EGRESS_PEERS, INGRESS_PEERS, PEERS_ON_LINK, EGRESS_ON_LINK];
    is_strayed_set(name) || kinds.into_iter().any(is_of)
}

/// Whether a set of this name holds the probes for which the set before it has no room.
#[must_use]
pub fn is_burst_set(name: &str) -> bool {
    name.starts_with(BURST_FLOWS)
}

fn lets_network_through(policy: &Policy) -> bool {
    policy.probes != Probes::Off || !policy.allow.is_empty()
}

fn address_type(v6: bool) -> KeyType {
    if v6 { KeyType::Ipv6 } else { KeyType::Ipv4 }
}

fn family_suffix(v6: bool) -> char {
    if v6 { '6' } else { '4' }
}

fn attempt_sets() -> Vec<Set> {
    let set = |name: &str, v6, key: &[KeyType]| {
        Set::dynamic(format!("{name}{}", family_suffix(v6)), key.to_vec(), ATTEMPT_TIMEOUT, ATTEMPTS_MAX)
    };
    [false, true]
        .into_iter()
        .flat_map(|v6| {
            let address = address_type(v6);
            [
                set(ATTEMPTS, v6, &[KeyType::Protocol, address, KeyType::Port]),
                set(PORTLESS_ATTEMPTS, v6, &[KeyType::Protocol, address]),
            ]
        })
        .collect()
}

fn neighbour_sets() -> impl Iterator<Item = Set> {
    address_sets(NEIGHBOUR_ATTEMPTS, ATTEMPT_TIMEOUT)
}

fn address_sets(name: &str, timeout: u32) -> impl Iterator<Item = Set> {
    [false, true].into_iter().map(move |v6| {
        Set::dynamic(format!("{name}{}", family_suffix(v6)), vec![address_type(v6)], timeout, ATTEMPTS_MAX)
    })
}

/// The same rule for one device alone.
fn on(device: &Statement, mut rule: Rule) -> Rule {
    rule.statements.insert(0, device.clone());
    rule
}

/// What the pod tried: counted, never decided here.
fn attempt_rules(place: Place) -> Vec<Rule> {
    let mut rules = packet_attempt_rules(place);
    if place != Place::PodInet {
        // A stack of the pod's own (gVisor) asks on the link before it sends anything.
        let statements = vec![is(Field::EtherType, [0x08, 0x06]), is(Field::ArpOperation, [0, 1])];
        rules.push(counted_attempt(statements, NEIGHBOUR_ATTEMPTS, false, &[Field::ArpTargetIp]));
    }
    rules
}

fn counted_attempt(mut statements: Vec<Statement>, name: &str, v6: bool, key: &'static [Field]) -> Rule {
    let set = format!("{name}{}", family_suffix(v6));
    statements.push(Statement::Update { key, set, counted: true });
    Rule::new(statements)
}

/// The same of IP packets alone.
fn packet_attempt_rules(place: Place) -> Vec<Rule> {
    let mut rules = Vec::new();
    for v6 in [false, true] {
        let family = if place == Place::PodInet { Statement::Meta(Meta::Nfproto { v6 }) } else { ether_type(v6) };
        let protocol = protocol_field(v6);
        for number in [Protocol::Tcp.number(), Protocol::Udp.number(), SCTP] {
            let mut statements = vec![family.clone(), is(protocol, [number])];
            if place == Place::PodInet && number == Protocol::Tcp.number() {
                // Here answers pass too; what opens a connection is an attempt.
                statements.push(bare_syn());
            }
            rules.push(counted_attempt(statements, ATTEMPTS, v6, attempt_key(v6)));
        }
        let mut statements = vec![family];
        statements.extend(
            [Protocol::Tcp.number(), Protocol::Udp.number(), SCTP]
                .map(|number| Statement::Match(protocol, Test::Not([number].into()))),
        );
        if v6 {
            // Router solicitations and multicast reports are every host's chatter.
            statements.push(Statement::Match(Field::Ip6Destination, Test::Range([0; 16].into(), LAST_UNICAST.into())));
        }
        rules.push(counted_attempt(statements, PORTLESS_ATTEMPTS, v6, &attempt_key(v6)[..2]));
    }
    rules
}
