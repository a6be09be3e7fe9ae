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

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::attachment::{ContainerId, IfName, Mac, Route, SandboxInterface};
use crate::policy::{Allow, Direction, Policy, Ports, Probes, Protocol};
use crate::ruleset::{
    Chain, Family, Field, Hook, KeyType, Rule, Set, Statement, TCP_FIN_SYN_RST_ACK, TCP_SYN, Table, Test,
};

/// The name of the pod-side tables.
pub const TABLE: &str = "quarantine";
/// The sets of attempts; `4` or `6` follows.
pub const ATTEMPTS: &str = "attempts";
/// Attempts with protocols that have no ports.
pub const PORTLESS_ATTEMPTS: &str = "portless-attempts";
/// Neighbours that were asked for on the link.
pub const NEIGHBOUR_ATTEMPTS: &str = "neighbour-attempts";

/// Seconds that a flow lives on without a packet.
const FLOW_TIMEOUT: u32 = 120;
/// The most flows of one family at a time.
const FLOWS_MAX: u32 = 16384;
/// Seconds for which an attempt is remembered.
const ATTEMPT_TIMEOUT: u32 = 86400;
/// The most attempts that are remembered, for each set.
const ATTEMPTS_MAX: u32 = 1024;

const ETHERNET_HEADER: u32 = 14;
const ARP_PACKET: u32 = 28;
const IP6_HEADER: u32 = 40;
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];
const ICMP6: u8 = 58;
const SCTP: u8 = 132;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// The name of the host guard's table.
#[must_use]
pub fn guard_table(container_id: &ContainerId) -> String {
    format!("{TABLE}-{container_id}")
}

/// What the node looks like from one interface of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Node {
    /// The addresses that the node speaks from: per family the source address of its route to the pod, and its
    /// link-local addresses on that link.
    pub addresses: Vec<IpAddr>,
    /// Its Ethernet address on that link, where the link is its own.
    pub mac: Option<Mac>,
}

/// An interface of a sandbox with what is known about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuardedInterface {
    /// Its name now.
    pub name: IfName,
    /// What it was at ADD and what the node looks like from it; `None` for an interface that no ADD made: nothing
    /// passes there.
    pub known: Option<(SandboxInterface, Node)>,
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
    /// inet hooks in the pod: no Ethernet header, no ARP.
    PodInet,
}

/// The pod-side tables of a sandbox.
#[must_use]
pub fn pod_tables(policy: &Policy, interfaces: &[GuardedInterface], egress: EgressHook, dormant: bool) -> Vec<Table> {
    let mut netdev =
        Table { family: Family::Netdev, name: TABLE.to_owned(), dormant, sets: Vec::new(), chains: Vec::new() };
    let mut inet =
        Table { family: Family::Inet, name: TABLE.to_owned(), dormant, sets: attempt_sets(), chains: Vec::new() };
    let flows = FlowSets::of(policy);
    let (mut input, mut output) = (Vec::new(), Vec::new());
    let lo = interface_value(b"lo");
    if policy.loopback {
        input.push(Rule::new(vec![is(Field::MetaIifname, lo.clone()), Statement::Accept]));
    }
    // Where lo is closed, it is closed at its receiving end: a drop on the way out is told to the sender (EPERM).
    output.push(Rule::new(vec![is(Field::MetaOifname, lo), Statement::Accept]));
    match egress {
        EgressHook::Netdev => {
            netdev.sets = flows.sets();
            netdev.sets.extend(attempt_sets());
            netdev.sets.extend(neighbour_sets());
            for interface in interfaces {
                let (inbound, outbound) = interface_rules(policy, &flows, interface, Place::Pod);
                let name = &interface.name;
                netdev.chains.push(chain(format!("ingress-{name}"), Hook::Ingress(name.clone()), inbound));
                netdev.chains.push(chain(format!("egress-{name}"), Hook::Egress(name.clone()), outbound));
                let device = interface_value(name.as_bytes());
                input.push(Rule::new(vec![is(Field::MetaIifname, device.clone()), Statement::Accept]));
                // Counted before the neighbour is resolved, dropped behind it: a drop here would be told to the sender.
                let counted = policy.allow.iter().flat_map(uncounted_rules).chain(attempt_rules(Place::PodInet));
                output.extend(counted.map(|rule| on(Field::MetaOifname, &device, rule)));
                output.push(Rule::new(vec![is(Field::MetaOifname, device), Statement::Accept]));
            }
        }
        EgressHook::Missing => {
            inet.sets.splice(0..0, flows.sets());
            for interface in interfaces {
                let name = &interface.name;
                let device = interface_value(name.as_bytes());
                netdev.chains.push(chain(
                    format!("ingress-{name}"),
                    Hook::Ingress(name.clone()),
                    link_rules(policy, interface),
                ));
                let (inbound, outbound) = interface_rules(policy, &flows, interface, Place::PodInet);
                input.extend(inbound.into_iter().map(|rule| on(Field::MetaIifname, &device, rule)));
                output.extend(outbound.into_iter().map(|rule| on(Field::MetaOifname, &device, rule)));
            }
        }
    }
    inet.chains = vec![
        chain("input".to_owned(), Hook::Input, input),
        chain("output".to_owned(), Hook::Output, output),
        chain("forward".to_owned(), Hook::Forward, Vec::new()),
    ];
    vec![netdev, inet]
}

/// The host guard of a sandbox: one pair of chains for each interface whose other end, `device`, is on the host.
#[must_use]
pub fn guard(container_id: &ContainerId, policy: &Policy, ends: &[(IfName, GuardedInterface)]) -> Table {
    let flows = FlowSets::of(policy);
    let mut sets = flows.sets();
    sets.extend(attempt_sets());
    sets.extend(neighbour_sets());
    let mut chains = Vec::with_capacity(2 * ends.len());
    for (device, interface) in ends {
        let (inbound, outbound) = interface_rules(policy, &flows, interface, Place::Host);
        chains.push(chain(format!("to-{}", interface.name), Hook::Egress(device.clone()), inbound));
        chains.push(chain(format!("from-{}", interface.name), Hook::Ingress(device.clone()), outbound));
    }
    Table { family: Family::Netdev, name: guard_table(container_id), dormant: false, sets, chains }
}

fn chain(name: String, hook: Hook, mut rules: Vec<Rule>) -> Chain {
    rules.push(Rule::new(vec![Statement::Counter, Statement::Drop]));
    Chain { name, hook, rules }
}

/// The sets of flows that are open, named after the policy that opened them: another policy gets other, empty sets.
/// Flushing the old ones would not do, since the packet path can put a flow back between a batch's flush and its commit.
struct FlowSets {
    fingerprint: u32,
    needed: bool,
}

impl FlowSets {
    fn of(policy: &Policy) -> Self {
        // FNV-1a: it must not change from one build to the next, and nobody gains by a collision.
        let fingerprint = policy
            .to_json()
            .to_string()
            .bytes()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
        Self { fingerprint, needed: lets_network_through(policy) }
    }

    fn name(&self, v6: bool) -> String {
        format!("flows{}-{:08x}", if v6 { 6 } else { 4 }, self.fingerprint)
    }

    fn sets(&self) -> Vec<Set> {
        let set = |v6| Set {
            name: self.name(v6),
            key: vec![KeyType::Protocol, address_type(v6), KeyType::Port, KeyType::Port],
            timeout: FLOW_TIMEOUT,
            size: FLOWS_MAX,
        };
        if self.needed { vec![set(false), set(true)] } else { Vec::new() }
    }
}

/// Whether a set of this name holds the flows of some policy.
#[must_use]
pub fn is_flow_set(name: &[u8]) -> bool {
    name.starts_with(b"flows4-") || name.starts_with(b"flows6-")
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
    let set = |name: &str, v6, key: &[KeyType]| Set {
        name: format!("{name}{}", family_suffix(v6)),
        key: key.to_vec(),
        timeout: ATTEMPT_TIMEOUT,
        size: ATTEMPTS_MAX,
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

fn neighbour_sets() -> Vec<Set> {
    [false, true]
        .into_iter()
        .map(|v6| Set {
            name: format!("{NEIGHBOUR_ATTEMPTS}{}", family_suffix(v6)),
            key: vec![address_type(v6)],
            timeout: ATTEMPT_TIMEOUT,
            size: ATTEMPTS_MAX,
        })
        .collect()
}

// ---- who may be asked for on the link

/// A next hop, or an on-link range of them.
struct Hop {
    network: IpNetwork,
    is_node: bool,
}

/// The neighbours that the policy needs on this link: the node, and the next hop of each allowed peer.
fn hops(policy: &Policy, interface: &SandboxInterface, node: &Node) -> Vec<Hop> {
    let mut hops: Vec<Hop> = Vec::new();
    let mut add = |network: IpNetwork, is_node: bool| {
        if !hops.iter().any(|hop| hop.network == network) {
            hops.push(Hop { network, is_node });
        }
    };
    for &address in &node.addresses {
        add(IpNetwork::from(address), true);
        // In a Calico-style pod the way back to the node leads over 169.254.1.1, which the node answers for.
        if let Some(gateway) = best_route(&interface.routes, IpNetwork::from(address)).and_then(|route| route.gateway) {
            add(IpNetwork::from(gateway), true);
        }
    }
    for allow in &policy.allow {
        let containing = best_route(&interface.routes, allow.peer);
        let inside = interface.routes.iter().filter(|route| {
            route.destination.prefix() > allow.peer.prefix() && contains(&allow.peer, &route.destination)
        });
        for route in containing.into_iter().chain(inside) {
            match route.gateway {
                Some(gateway) => add(IpNetwork::from(gateway), false),
                None if contains(&route.destination, &allow.peer) => add(allow.peer, false),
                None => add(route.destination, false),
            }
        }
    }
    hops
}

/// The longest route that leads to all of `destination`.
fn best_route(routes: &[Route], destination: IpNetwork) -> Option<&Route> {
    routes
        .iter()
        .filter(|route| contains(&route.destination, &destination))
        .max_by_key(|route| route.destination.prefix())
}

fn contains(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    outer.is_ipv4() == inner.is_ipv4() && outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}

// ---- rules of one interface

/// Inbound and outbound rules of one interface, without the last drop.
fn interface_rules(
    policy: &Policy,
    flows: &FlowSets,
    interface: &GuardedInterface,
    place: Place,
) -> (Vec<Rule>, Vec<Rule>) {
    let (mut inbound, mut outbound) = (Vec::new(), Vec::new());
    if let Some((identity, node)) = interface.known.as_ref().filter(|_| lets_network_through(policy)) {
        let view = View { place, identity, node, hops: hops(policy, identity, node) };
        for own in &identity.addresses {
            let set = flows.name(own.is_ipv6());
            if !is_link_local(own) {
                view.flow_rules(*own, &set, &mut inbound, &mut outbound);
                view.opening_rules(policy, *own, &set, &mut inbound, &mut outbound);
            }
            view.neighbour_rules(*own, &mut inbound, &mut outbound);
        }
    }
    outbound.extend(attempt_rules(place));
    (inbound, outbound)
}

/// Ingress rules for kernels without an egress hook: ARP as always; IP goes on to the inet chains, which hold the
/// policy there, because a set cannot be shared between tables.
fn link_rules(policy: &Policy, interface: &GuardedInterface) -> Vec<Rule> {
    let Some((identity, node)) = interface.known.as_ref().filter(|_| lets_network_through(policy)) else {
        return Vec::new();
    };
    let view = View { place: Place::Pod, identity, node, hops: hops(policy, identity, node) };
    let mut rules = Vec::new();
    for own in identity.addresses.iter().filter(|own| own.is_ipv4()) {
        view.neighbour_rules(*own, &mut rules, &mut Vec::new());
    }
    for v6 in [false, true] {
        rules.push(Rule::new(vec![ether_type(v6), Statement::Accept]).comment("inet input decides"));
    }
    rules
}

/// One interface, seen from the place where the rules stand.
struct View<'a> {
    place: Place,
    identity: &'a SandboxInterface,
    node: &'a Node,
    hops: Vec<Hop>,
}

impl View<'_> {
    /// How much longer a frame is than its packet, inbound and outbound: a packet has its Ethernet header on it
    /// where it leaves a device, and has lost it where it comes in.
    fn header_lengths(&self) -> (u32, u32) {
        match self.place {
            Place::Pod => (0, ETHERNET_HEADER),
            Place::Host | Place::PodInet => (ETHERNET_HEADER, 0),
        }
    }

    /// The Ethernet address that everything must go to, where all next hops are the node.
    fn only_receiver(&self) -> Option<Mac> {
        self.node.mac.filter(|_| self.hops.iter().all(|hop| hop.is_node))
    }

    /// That the packet is of this family.
    fn family(&self, v6: bool) -> Statement {
        match self.place {
            Place::Pod | Place::Host => ether_type(v6),
            Place::PodInet => is(Field::MetaNfproto, nfproto(v6)),
        }
    }

    /// What every packet to the pod's address `own` begins with.
    fn sent_to(&self, own: IpAddr) -> Vec<Statement> {
        let (_, destination) = address_fields(own.is_ipv6());
        vec![self.family(own.is_ipv6()), is(destination, octets(own))]
    }

    /// What every packet from the pod's address `own` begins with: its own Ethernet address, towards one that is
    /// allowed, and its own IP address.
    fn sent_by(&self, own: IpAddr) -> Vec<Statement> {
        let mut statements = Vec::new();
        if self.place != Place::PodInet {
            statements.extend(self.ether_addresses());
        }
        let (source, _) = address_fields(own.is_ipv6());
        statements.extend([self.family(own.is_ipv6()), is(source, octets(own))]);
        statements
    }

    fn ether_addresses(&self) -> Vec<Statement> {
        let receiver = match self.only_receiver() {
            Some(mac) => is(Field::EtherDestination, mac.0.to_vec()),
            None => unicast(),
        };
        let sender = self.identity.mac.map(|mac| is(Field::EtherSource, mac.0.to_vec()));
        std::iter::once(receiver).chain(sender).collect()
    }

    /// Packets of flows that are open, both ways.
    fn flow_rules(&self, own: IpAddr, set: &str, inbound: &mut Vec<Rule>, outbound: &mut Vec<Rule>) {
        for (mut statements, key, rules) in [
            (self.sent_to(own), inbound_key(own.is_ipv6()), inbound),
            (self.sent_by(own), outbound_key(own.is_ipv6()), outbound),
        ] {
            statements.push(Statement::Lookup(key.clone(), set.to_owned()));
            statements.extend(open_flow(key, set));
            rules.push(Rule::new(statements).comment("open flow"));
        }
    }

    /// Packets that open a flow.
    fn opening_rules(
        &self,
        policy: &Policy,
        own: IpAddr,
        set: &str,
        inbound: &mut Vec<Rule>,
        outbound: &mut Vec<Rule>,
    ) {
        let v6 = own.is_ipv6();
        let any = Ports::any();
        let probe_ports = match &policy.probes {
            Probes::Off => None,
            Probes::AnyPort => Some(&any),
            Probes::Ports(ports) => Some(ports),
        };
        let probers = self.node.addresses.iter().filter(|address| address.is_ipv6() == v6 && !is_link_local(address));
        for (&address, ports) in probers.flat_map(|address| probe_ports.map(|ports| (address, ports))) {
            let (source, _) = address_fields(v6);
            for &range in ports.ranges() {
                let mut statements = self.sent_to(own);
                statements.push(is(source, octets(address)));
                statements.extend(opening(v6, Protocol::Tcp, range));
                if self.place == Place::Host {
                    // Only a socket of this host: what is forwarded, masqueraded NodePort traffic too, has none.
                    statements.push(is(Field::MetaSkuid, 0_u32.to_ne_bytes().to_vec()));
                }
                statements.extend(open_flow(inbound_key(v6), set));
                inbound.push(Rule::new(statements).comment("probe"));
            }
        }
        for allow in policy.allow.iter().filter(|allow| allow.peer.is_ipv6() == v6) {
            for &range in allow.ports.ranges() {
                let (mut statements, key, rules) = match allow.direction {
                    Direction::Ingress => (self.sent_to(own), inbound_key(v6), &mut *inbound),
                    Direction::Egress => (self.sent_by(own), outbound_key(v6), &mut *outbound),
                };
                statements.extend(peer(allow));
                statements.extend(opening(v6, allow.protocol, range));
                statements.extend(open_flow(key, set));
                rules.push(Rule::new(statements).comment("allowed"));
            }
        }
    }

    /// ARP and neighbour discovery between the pod's address `own` and the next hops.
    fn neighbour_rules(&self, own: IpAddr, inbound: &mut Vec<Rule>, outbound: &mut Vec<Rule>) {
        match (own, self.place) {
            (IpAddr::V4(own), Place::Pod | Place::Host) => self.arp_rules(own, inbound, outbound),
            (IpAddr::V4(_), Place::PodInet) => {}
            (IpAddr::V6(own), _) => self.discovery_rules(own, inbound, outbound),
        }
    }

    fn arp_rules(&self, own: Ipv4Addr, inbound: &mut Vec<Rule>, outbound: &mut Vec<Rule>) {
        let (longer_in, longer_out) = self.header_lengths();
        let own = own.octets().to_vec();
        let arp = |longer: u32| {
            vec![
                is(Field::EtherType, vec![0x08, 0x06]),
                // Exactly as long as it must be: what follows an ARP packet is carried to every neighbour.
                is(Field::MetaLength, (ARP_PACKET + longer).to_ne_bytes().to_vec()),
                is(Field::ArpFormat, vec![0, 1, 0x08, 0, 6, 4]),
            ]
        };
        for hop in self.hops.iter().filter(|hop| hop.network.is_ipv4()) {
            let mut statements = arp(longer_in);
            statements.extend([
                Statement::Match(Field::ArpOperation, Test::Range(ARP_REQUEST.to_vec(), ARP_REPLY.to_vec())),
                within(Field::ArpSenderIp, hop.network),
                is(Field::ArpTargetIp, own.clone()),
                Statement::Accept,
            ]);
            inbound.push(Rule::new(statements).comment("next hop's ARP"));

            let Some(mac) = self.identity.mac else { continue };
            let from_own = |operation: [u8; 2], receiver: Statement| {
                let mut statements = vec![receiver, is(Field::EtherSource, mac.0.to_vec())];
                statements.extend(arp(longer_out));
                statements.extend([
                    is(Field::ArpOperation, operation.to_vec()),
                    is(Field::ArpSenderEther, mac.0.to_vec()),
                    is(Field::ArpSenderIp, own.clone()),
                    within(Field::ArpTargetIp, hop.network),
                ]);
                statements
            };
            // In a request the target's Ethernet address is zero, or it would carry six bytes to every neighbour.
            let mut receivers = vec![Mac::BROADCAST];
            receivers.extend(self.node.mac.filter(|_| hop.is_node));
            for receiver in receivers {
                let mut statements = from_own(ARP_REQUEST, is(Field::EtherDestination, receiver.0.to_vec()));
                statements.extend([is(Field::ArpTargetEther, Mac::ZERO.0.to_vec()), Statement::Accept]);
                outbound.push(Rule::new(statements).comment("ARP for the next hop"));
            }
            let mut statements;
            match self.node.mac.filter(|_| hop.is_node) {
                Some(node) => {
                    statements = from_own(ARP_REPLY, is(Field::EtherDestination, node.0.to_vec()));
                    statements.push(is(Field::ArpTargetEther, node.0.to_vec()));
                }
                None => statements = from_own(ARP_REPLY, unicast()),
            }
            statements.push(Statement::Accept);
            outbound.push(Rule::new(statements).comment("ARP answer to the next hop"));
        }
    }

    fn discovery_rules(&self, own: Ipv6Addr, inbound: &mut Vec<Rule>, outbound: &mut Vec<Rule>) {
        let (longer_in, longer_out) = self.header_lengths();
        let own_octets = own.octets().to_vec();
        for hop in self.hops.iter().filter(|hop| hop.network.is_ipv6()) {
            let at_hop = within(Field::NeighbourTarget, hop.network);
            let at_own = is(Field::NeighbourTarget, own_octets.clone());
            let node = self.node.mac.filter(|_| hop.is_node);
            let receiver = node.map_or_else(unicast, |mac| is(Field::EtherDestination, mac.0.to_vec()));
            let sender = self.identity.mac.map(|mac| is(Field::EtherSource, mac.0.to_vec()));
            // 24 bytes of message, and at most one option of eight: the sender's Ethernet address.
            for length in [24, 32].map(|message| IP6_HEADER + message) {
                for (kind, target) in [(SOLICITATION, &at_own), (ADVERTISEMENT, &at_hop)] {
                    let mut statements = self.discovery_packet(length + longer_in);
                    statements.push(within(Field::Ip6Source, hop.network));
                    statements.extend([is(Field::Icmp6Type, vec![kind]), target.clone(), Statement::Accept]);
                    push_new(inbound, Rule::new(statements).comment("next hop's neighbour discovery"));
                }
                for (kind, target) in [(SOLICITATION, &at_hop), (ADVERTISEMENT, &at_own)] {
                    let mut statements = Vec::new();
                    if self.place != Place::PodInet {
                        statements.push(receiver.clone());
                        statements.extend(sender.clone());
                    }
                    statements.extend(self.discovery_packet(length + longer_out));
                    statements.push(is(Field::Ip6Source, own_octets.clone()));
                    statements.extend([is(Field::Icmp6Type, vec![kind]), target.clone(), Statement::Accept]);
                    push_new(outbound, Rule::new(statements).comment("neighbour discovery with the next hop"));
                }
                if self.place == Place::PodInet {
                    // No frame here, no length of one: the second round would say the same again.
                    break;
                }
            }
            if self.place != Place::PodInet {
                outbound.extend(self.multicast_solicitation(own, hop));
            }
        }
    }

    /// What each packet of neighbour discovery begins with; `length` is the frame's.
    fn discovery_packet(&self, length: u32) -> Vec<Statement> {
        let mut statements = vec![self.family(true)];
        if self.place != Place::PodInet {
            statements.push(is(Field::MetaLength, length.to_ne_bytes().to_vec()));
        }
        statements.extend([is(Field::Ip6NextHeader, vec![ICMP6]), is(Field::Ip6HopLimit, vec![255])]);
        statements
    }

    /// The one solicitation that reaches every neighbour. For a hop that is one address each of its bytes is known
    /// beforehand, the checksum included, so that it can carry nothing.
    fn multicast_solicitation(&self, own: Ipv6Addr, hop: &Hop) -> Option<Rule> {
        let mac = self.identity.mac?;
        let (_, longer_out) = self.header_lengths();
        let IpNetwork::V6(network) = hop.network else { return None };
        let target = network.ip();
        let exact = network.prefix() == 128;
        let mut group = [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
        let mut receiver = [0x33, 0x33, 0xff, 0, 0, 0];
        let option = [&[1, 1][..], &mac.0].concat();
        let mut statements = Vec::new();
        if exact {
            group[13..].copy_from_slice(&target.octets()[13..]);
            receiver[3..].copy_from_slice(&target.octets()[13..]);
            statements.push(is(Field::EtherDestination, receiver.to_vec()));
        } else {
            let mask = vec![0xff, 0xff, 0xff, 0, 0, 0];
            statements.push(Statement::Match(Field::EtherDestination, Test::Masked(mask, receiver.to_vec())));
        }
        statements.extend([
            is(Field::EtherSource, mac.0.to_vec()),
            ether_type(true),
            is(Field::MetaLength, (IP6_HEADER + 32 + longer_out).to_ne_bytes().to_vec()),
            is(Field::Ip6Head, vec![0x60, 0, 0, 0, 0, 32, ICMP6, 255]),
            is(Field::Ip6Source, own.octets().to_vec()),
        ]);
        if exact {
            let checksum = solicitation_checksum(own, Ipv6Addr::from(group), target, &option);
            let mut head = vec![SOLICITATION, 0];
            head.extend(checksum.to_be_bytes());
            head.extend([0; 4]);
            statements.extend([
                is(Field::Ip6Destination, group.to_vec()),
                is(Field::SolicitationHead, head),
                is(Field::NeighbourTarget, target.octets().to_vec()),
            ]);
        } else {
            statements.extend([
                within(Field::Ip6Destination, IpNetwork::new(IpAddr::from(group), 104).ok()?),
                is(Field::Icmp6Type, vec![SOLICITATION]),
                within(Field::NeighbourTarget, hop.network),
            ]);
        }
        statements.extend([is(Field::NeighbourOption, option), Statement::Accept]);
        Some(Rule::new(statements).comment("neighbour solicitation for the next hop"))
    }
}

/// The checksum of a neighbour solicitation (RFC 4443, section 2.3).
fn solicitation_checksum(source: Ipv6Addr, group: Ipv6Addr, target: Ipv6Addr, option: &[u8]) -> u16 {
    let pseudo_header = [&source.octets()[..], &group.octets(), &[0, 0, 0, 32, 0, 0, 0, ICMP6]].concat();
    let message = [&[SOLICITATION, 0, 0, 0, 0, 0, 0, 0][..], &target.octets(), option].concat();
    let sum: u32 =
        pseudo_header.chunks(2).chain(message.chunks(2)).map(|pair| u32::from(pair[0]) << 8 | u32::from(pair[1])).sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = (folded & 0xffff) + (folded >> 16);
    !(folded as u16)
}

/// The same rule for one device alone.
fn on(field: Field, device: &[u8], mut rule: Rule) -> Rule {
    rule.statements.insert(0, is(field, device.to_vec()));
    rule
}

/// What the policy allows is no attempt: it leaves inet output before anything is counted.
fn uncounted_rules(allow: &Allow) -> Vec<Rule> {
    let v6 = allow.peer.is_ipv6();
    let (_, destination) = address_fields(v6);
    let port = match allow.direction {
        Direction::Egress => Field::DestinationPort,
        Direction::Ingress => Field::SourcePort,
    };
    let rule = |&range: &(u16, u16)| {
        let mut statements =
            vec![is(Field::MetaNfproto, nfproto(v6)), is(protocol_field(v6), vec![allow.protocol.number()])];
        statements.extend((allow.peer.prefix() > 0).then(|| within(destination, allow.peer)));
        statements.extend([in_ports(port, range), Statement::Accept]);
        Rule::new(statements)
    };
    allow.ports.ranges().iter().map(rule).collect()
}

/// What the pod tried: counted, never decided here.
fn attempt_rules(place: Place) -> Vec<Rule> {
    let mut rules = Vec::new();
    let mut count = |mut statements: Vec<Statement>, name: &str, v6: bool, key: Vec<Field>| {
        let set = format!("{name}{}", family_suffix(v6));
        statements.push(Statement::Update { key, set, counted: true });
        rules.push(Rule::new(statements));
    };
    for v6 in [false, true] {
        let family = if place == Place::PodInet { is(Field::MetaNfproto, nfproto(v6)) } else { ether_type(v6) };
        let protocol = protocol_field(v6);
        let (_, destination) = address_fields(v6);
        for number in [Protocol::Tcp.number(), Protocol::Udp.number(), SCTP] {
            let mut statements = vec![family.clone(), is(protocol, vec![number])];
            if place == Place::PodInet && number == Protocol::Tcp.number() {
                // Here answers pass too; what opens a connection is an attempt.
                statements.push(bare_syn());
            }
            count(statements, ATTEMPTS, v6, vec![protocol, destination, Field::DestinationPort]);
        }
        let mut statements = vec![family];
        statements.extend(
            [Protocol::Tcp.number(), Protocol::Udp.number(), SCTP]
                .map(|number| Statement::Match(protocol, Test::Not(vec![number]))),
        );
        if v6 {
            // Router solicitations and multicast reports are every host's chatter.
            statements.push(Statement::Match(
                Field::Ip6Destination,
                Test::Range(vec![0; 16], [&[0xfe][..], &[0xff; 15]].concat()),
            ));
        }
        count(statements, PORTLESS_ATTEMPTS, v6, vec![protocol, destination]);
    }
    if place != Place::PodInet {
        // A stack of the pod's own (gVisor) asks on the link before it sends anything.
        count(
            vec![is(Field::EtherType, vec![0x08, 0x06]), is(Field::ArpOperation, ARP_REQUEST.to_vec())],
            NEIGHBOUR_ATTEMPTS,
            false,
            vec![Field::ArpTargetIp],
        );
    }
    rules
}

// ---- words of the rules above

/// Adds a rule that is not there yet: an answer to one hop may be the same as to another.
fn push_new(rules: &mut Vec<Rule>, rule: Rule) {
    if !rules.contains(&rule) {
        rules.push(rule);
    }
}

fn is(field: Field, value: Vec<u8>) -> Statement {
    Statement::Match(field, Test::Is(value))
}

/// That a field is in a network: compared whole where the network is one address.
fn within(field: Field, network: IpNetwork) -> Statement {
    let value = octets(network.network());
    let bits = value.len() * 8;
    if usize::from(network.prefix()) == bits {
        is(field, value)
    } else {
        Statement::Match(field, Test::Masked(octets(network.mask()), value))
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn ether_type(v6: bool) -> Statement {
    // The type as it stands in the frame, not `meta protocol`: a frame with a VLAN tag is not of this type.
    is(Field::EtherType, if v6 { vec![0x86, 0xdd] } else { vec![0x08, 0x00] })
}

/// That a frame is for one receiver.
fn unicast() -> Statement {
    Statement::Match(Field::EtherDestination, Test::Masked(vec![1, 0, 0, 0, 0, 0], vec![0; 6]))
}

fn bare_syn() -> Statement {
    Statement::Match(Field::TcpFlags, Test::Masked(vec![TCP_FIN_SYN_RST_ACK], vec![TCP_SYN]))
}

fn in_ports(field: Field, (first, last): (u16, u16)) -> Statement {
    let (first, last) = (first.to_be_bytes().to_vec(), last.to_be_bytes().to_vec());
    if first == last { is(field, first) } else { Statement::Match(field, Test::Range(first, last)) }
}

/// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
fn nfproto(v6: bool) -> Vec<u8> {
    vec![if v6 { 10 } else { 2 }]
}

/// The name of an interface as `meta` has it: padded with zeros to `IFNAMSIZ`.
fn interface_value(name: &[u8]) -> Vec<u8> {
    let mut value = name.to_vec();
    value.resize(16, 0);
    value
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

fn protocol_field(v6: bool) -> Field {
    if v6 { Field::Ip6NextHeader } else { Field::IpProtocol }
}

fn address_fields(v6: bool) -> (Field, Field) {
    if v6 { (Field::Ip6Source, Field::Ip6Destination) } else { (Field::IpSource, Field::IpDestination) }
}

/// The key of a flow is {protocol . remote . remote port . local port}.
fn inbound_key(v6: bool) -> Vec<Field> {
    vec![protocol_field(v6), address_fields(v6).0, Field::SourcePort, Field::DestinationPort]
}

fn outbound_key(v6: bool) -> Vec<Field> {
    vec![protocol_field(v6), address_fields(v6).1, Field::DestinationPort, Field::SourcePort]
}

fn open_flow(key: Vec<Field>, set: &str) -> [Statement; 2] {
    [Statement::Update { key, set: set.to_owned(), counted: false }, Statement::Accept]
}

fn peer(allow: &Allow) -> Option<Statement> {
    let (source, destination) = address_fields(allow.peer.is_ipv6());
    let field = match allow.direction {
        Direction::Ingress => source,
        Direction::Egress => destination,
    };
    // A peer that is everyone needs no test.
    (allow.peer.prefix() > 0).then(|| within(field, allow.peer))
}

fn opening(v6: bool, protocol: Protocol, ports: (u16, u16)) -> Vec<Statement> {
    // The transport protocol as the IP header itself names it: with an IPv6 extension header in front nothing opens.
    let mut statements = vec![is(protocol_field(v6), vec![protocol.number()]), in_ports(Field::DestinationPort, ports)];
    if protocol == Protocol::Tcp {
        statements.push(bare_syn());
    }
    statements
}
