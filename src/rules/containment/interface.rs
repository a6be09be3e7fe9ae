//! The rules of one interface, compiled for one place where its packets are met.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::model::names::{Mac, SandboxInterface};
use crate::model::policy::{Policy, Ports, Probes, Protocol};
use crate::rules::ruleset::{Field, Meta, Ranges, Rule, Set, Statement, TCP_ACK, TCP_RST, Test, Value};

use super::allowed::AllowList;
use super::hops::{Hop, all_hops, hops_to, node_hops, probe_sources};
use super::words::*;
use crate::model::record::NodeOnLink;

use super::{FlowSets, GuardedInterface, Place, STRAY_PROBES, attempt_rules, family_suffix, lets_network_through};

const ETHERNET_HEADER: u32 = 14;
const ARP_PACKET: u32 = 28;
const IP6_HEADER: u32 = 40;
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];
const ICMP6: u8 = 58;
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// What an interface's chains hold, without the last drop.
#[derive(Default)]
pub(super) struct Compiled {
    pub(super) inbound: Vec<Rule>,
    pub(super) outbound: Vec<Rule>,
    /// Those that the rules look packets up in.
    pub(super) sets: Vec<Set>,
}

/// The rules of one interface.
pub(super) fn interface_rules(
    policy: &Policy,
    flows: &FlowSets,
    interface: &GuardedInterface,
    place: Place,
    label: Option<u32>,
) -> Compiled {
    let mut compiled = Compiled::default();
    if let Some((identity, node)) = interface.known.as_ref().filter(|_| lets_network_through(policy)) {
        let view = View::of(policy, identity, node, place, label);
        let allowed = [false, true].map(|v6| AllowList::of(&view, &policy.allow, v6, flows));
        for &own in &identity.addresses {
            let v6 = own.is_ipv6();
            if !is_link_local(&own) {
                if let Some(allowed) = &allowed[usize::from(v6)] {
                    allowed.rules(&view, own, &mut compiled);
                }
                let (inbound, outbound) = (&mut compiled.inbound, &mut compiled.outbound);
                view.probe_rules(&policy.probes, own, &flows.probes(v6), inbound, outbound);
            }
        }
        // Behind all that opens flows, whose order matters, so that those of all addresses are next to each other.
        for &own in &identity.addresses {
            view.neighbour_rules(own, &mut compiled.inbound, &mut compiled.outbound);
        }
        compiled.sets = allowed.into_iter().flatten().flat_map(AllowList::sets).collect();
    }
    compiled.outbound.extend(attempt_rules(place));
    compiled
}

/// Ingress rules for kernels without an egress hook: ARP as always; IP goes on to the inet chains, which hold the
/// policy there, because a set cannot be shared between tables.
pub(super) fn link_rules(policy: &Policy, interface: &GuardedInterface) -> Vec<Rule> {
    let Some((identity, node)) = interface.known.as_ref().filter(|_| lets_network_through(policy)) else {
        return Vec::new();
    };
    let view = View::of(policy, identity, node, Place::Pod, None);
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
pub(super) struct View<'a> {
    pub(super) place: Place,
    /// The bit that the node's output puts on probes.
    label: Option<u32>,
    pub(super) identity: &'a SandboxInterface,
    node: &'a NodeOnLink,
    /// The node as a next hop, and all that the policy needs.
    node_hops: Vec<Hop>,
    hops: Vec<Hop>,
}

/// A peer's station did not answer.
pub(super) struct Silent;

impl<'a> View<'a> {
    fn of(
        policy: &Policy,
        identity: &'a SandboxInterface,
        node: &'a NodeOnLink,
        place: Place,
        label: Option<u32>,
    ) -> Self {
        let (node_hops, hops) = (node_hops(identity, node), all_hops(policy, identity, node));
        Self { place, label, identity, node, node_hops, hops }
    }
}

impl View<'_> {
    /// How much longer a frame is than its packet, inbound and outbound: a packet has its Ethernet header on it
    /// where it leaves a device, and has lost it where it comes in.
    fn header_lengths(&self) -> (u32, u32) {
        match self.place {
            Place::Pod => (0, ETHERNET_HEADER),
            Place::Host | Place::HostIngress | Place::PodInet => (ETHERNET_HEADER, 0),
        }
    }

    /// That the packet is of this family.
    fn family(&self, v6: bool) -> Statement {
        match self.place {
            Place::Pod | Place::Host | Place::HostIngress => ether_type(v6),
            Place::PodInet => Statement::Meta(Meta::Nfproto { v6 }),
        }
    }

    pub(super) fn sees_frames(&self) -> bool {
        self.place != Place::PodInet
    }

    /// What a packet to the pod's address `own` begins with; `sender` is the Ethernet address that it must come from.
    pub(super) fn sent_to(&self, own: IpAddr, sender: Option<Mac>) -> Vec<Statement> {
        let (_, destination) = address_fields(own.is_ipv6());
        let sender = sender.filter(|_| self.sees_frames()).map(|mac| is(Field::EtherSource, mac.0));
        let packet = [self.family(own.is_ipv6()), is(destination, octets(own))];
        sender.into_iter().chain(packet).collect()
    }

    /// What a packet from the pod's address `own` begins with: its own Ethernet address, and the one that it must go
    /// to, where that is known; else at least one station alone.
    pub(super) fn sent_by(&self, own: IpAddr, receiver: Option<Mac>) -> Vec<Statement> {
        let receiver =
            self.sees_frames().then(|| receiver.map_or_else(unicast, |mac| is(Field::EtherDestination, mac.0)));
        receiver.into_iter().chain(self.sent_by_anywhere(own)).collect()
    }

    /// The same, whatever station it goes to.
    pub(super) fn sent_by_anywhere(&self, own: IpAddr) -> Vec<Statement> {
        let (source, _) = address_fields(own.is_ipv6());
        let sender = self.identity.mac.filter(|_| self.sees_frames()).map(|mac| is(Field::EtherSource, mac.0));
        let packet = [self.family(own.is_ipv6()), is(source, octets(own))];
        sender.into_iter().chain(packet).collect()
    }

    fn ether_addresses(&self, receiver: Option<Mac>) -> Vec<Statement> {
        if !self.sees_frames() {
            return Vec::new();
        }
        let receiver = receiver.map_or_else(unicast, |mac| is(Field::EtherDestination, mac.0));
        let sender = self.identity.mac.map(|mac| is(Field::EtherSource, mac.0));
        std::iter::once(receiver).chain(sender).collect()
    }

    /// TCP connections that the node opens to the pod's address `own`.
    fn probe_rules(
        &self,
        probes: &Probes,
        own: IpAddr,
        sets: &[String],
        inbound: &mut Vec<Rule>,
        outbound: &mut Vec<Rule>,
    ) {
        let v6 = own.is_ipv6();
        let any = Ports::any();
        let Probes::On { ports, .. } = probes else { return };
        let ports = ports.as_ref().unwrap_or(&any);
        let (source, destination) = address_fields(v6);
        let mac = self.node.mac;
        // Not where nothing is known of who opened a flow: an answer that nobody asked for would go on to wherever that is.
        let sources = probe_sources(self.node, v6, self.place != Place::HostIngress);
        for address in &sources {
            if self.place == Place::HostIngress {
                // Nothing here sees what the node sends: what is no opening segment from a probed port has to do.
                for (&range, flag) in
                    ports.ranges().iter().flat_map(|range| [TCP_ACK, TCP_RST].map(|flag| (range, flag)))
                {
                    let mut statements = self.sent_by(own, mac);
                    statements.extend([
                        is(destination, octets(*address)),
                        is(protocol_field(v6), [Protocol::Tcp.number()]),
                        in_ports(Field::SourcePort, range),
                        Statement::Match(Field::TcpFlags, Test::Masked([flag].into(), [flag].into())),
                        Statement::Accept,
                    ]);
                    outbound.push(Rule::new(statements).comment("answer to a probe"));
                }
                continue;
            }
            // Where the first set is full its rule ends without a word, and the next is tried.
            for (&range, set) in ports.ranges().iter().flat_map(|range| sets.iter().map(move |set| (range, set))) {
                let mut statements = self.spoken_by_node(self.sent_to(own, mac));
                statements.push(is(source, octets(*address)));
                statements.extend(opening(v6, Protocol::Tcp, range));
                if self.place == Place::Host {
                    statements.extend(self.labelled());
                    // Only a socket of this host: what is forwarded, masqueraded NodePort traffic too, has none.
                    statements.push(Statement::Meta(Meta::Skuid(0)));
                }
                statements.extend(open_flow(inbound_key(v6), set));
                inbound.push(Rule::new(statements).comment("probe"));
            }
        }
        if self.place == Place::Host {
            for &range in ports.ranges() {
                let mut statements = self.spoken_by_node(self.sent_to(own, mac));
                statements.extend(opening(v6, Protocol::Tcp, range));
                statements.extend(self.labelled());
                statements.push(Statement::Meta(Meta::Skuid(0)));
                statements.extend(sources.iter().map(|known| Statement::Match(source, Test::Not(octets(*known)))));
                let (set, key) = (format!("{STRAY_PROBES}{}", family_suffix(v6)), stray_key(v6));
                statements.push(Statement::Update { key, set, counted: true });
                inbound.push(Rule::new(statements).comment("from elsewhere"));
            }
        }
        if self.place == Place::HostIngress {
            return;
        }
        for set in sets.iter().rev() {
            let flow = |mut statements: Vec<Statement>, label: Option<Statement>, key| {
                statements.extend(of_flow(v6, Protocol::Tcp));
                statements.extend(label);
                statements.push(Statement::Lookup(key, set.clone()));
                statements
            };
            let (inbound_key, outbound_key) = (inbound_key(v6), outbound_key(v6));
            let mut statements = flow(self.spoken_by_node(self.sent_to(own, mac)), self.labelled(), inbound_key);
            statements.extend(open_flow(inbound_key, set));
            inbound.insert(0, Rule::new(statements).comment("probe's flow"));
            // Only the node keeps it open: the pod's own packets do not refresh it.
            let mut statements = flow(self.sent_by(own, mac), None, outbound_key);
            statements.push(Statement::Accept);
            outbound.insert(0, Rule::new(statements).comment("probe's flow"));
        }
    }

    /// On the host's end, that the prober sent it, where that can be told.
    fn labelled(&self) -> Option<Statement> {
        self.label.filter(|_| self.place == Place::Host).map(Statement::Labelled)
    }

    /// On the host's end, that the node itself sends or routes a frame: one that its bridge passes on from another
    /// port is for another host, or for many. Nobody else can speak for the node then.
    fn spoken_by_node(&self, mut statements: Vec<Statement>) -> Vec<Statement> {
        if self.place == Place::Host {
            statements.insert(0, Statement::Meta(Meta::ForThisHost));
        }
        statements
    }

    /// The Ethernet address that packets to a peer must go to, where all of its next hops have one and the same; any
    /// one station where that cannot be known. `Err` where the peer's station was asked for and did not answer: then
    /// nothing may leave for it, since whoever got it would be somebody else.
    pub(super) fn receiver_for(&self, peer: IpNetwork) -> Result<Option<Mac>, Silent> {
        let hops = hops_to(peer, self.identity, self.node, &self.node_hops);
        if !hops.is_empty() && hops.iter().all(|hop| hop.is_silent) {
            return Err(Silent);
        }
        let first = hops.first().and_then(|hop| hop.mac);
        Ok(first.filter(|_| hops.iter().all(|hop| hop.mac == first)))
    }

    /// ARP and neighbour discovery between the pod's address `own` and the next hops.
    fn neighbour_rules(&self, own: IpAddr, inbound: &mut Vec<Rule>, outbound: &mut Vec<Rule>) {
        match (own, self.place) {
            (IpAddr::V4(_), Place::PodInet) => {}
            (IpAddr::V4(own), _) => self.arp_rules(own, inbound, outbound),
            (IpAddr::V6(own), _) => self.discovery_rules(own, inbound, outbound),
        }
    }

    fn arp_rules(&self, own: Ipv4Addr, inbound: &mut Vec<Rule>, outbound: &mut Vec<Rule>) {
        let (longer_in, longer_out) = self.header_lengths();
        let own = own.octets();
        let arp = |longer: u32| {
            vec![
                is(Field::EtherType, [0x08, 0x06]),
                // Exactly as long as it must be: what follows an ARP packet is carried to every neighbour.
                Statement::Meta(Meta::Length(ARP_PACKET + longer)),
                is(Field::ArpFormat, [0, 1, 0x08, 0, 6, 4]),
            ]
        };
        for hop in self.hops.iter().filter(|hop| hop.network.is_ipv4()) {
            let mut statements: Vec<_> = hop.mac.map(|mac| is(Field::EtherSource, mac.0)).into_iter().collect();
            if hop.is_node {
                statements = self.spoken_by_node(statements);
            }
            statements.extend(arp(longer_in));
            statements.extend(hop.mac.map(|mac| is(Field::ArpSenderEther, mac.0)));
            statements.extend([
                Statement::Match(Field::ArpOperation, Test::Range(ARP_REQUEST.into(), ARP_REPLY.into())),
                within(Field::ArpSenderIp, hop.network),
                is(Field::ArpTargetIp, own),
                Statement::Accept,
            ]);
            inbound.push(Rule::new(statements).comment("next hop's ARP"));

            let Some(mac) = self.identity.mac else { continue };
            let from_own = |operation: [u8; 2], receiver: Statement| {
                let mut statements = vec![receiver, is(Field::EtherSource, mac.0)];
                statements.extend(arp(longer_out));
                statements.extend([
                    is(Field::ArpOperation, operation),
                    is(Field::ArpSenderEther, mac.0),
                    is(Field::ArpSenderIp, own),
                    within(Field::ArpTargetIp, hop.network),
                ]);
                statements
            };
            // In a request the target's Ethernet address is zero, or it would carry six bytes to every neighbour.
            let mut receivers = vec![Mac::BROADCAST];
            receivers.extend(hop.mac);
            for receiver in receivers {
                let mut statements = from_own(ARP_REQUEST, is(Field::EtherDestination, receiver.0));
                statements.extend([is(Field::ArpTargetEther, Mac::ZERO.0), Statement::Accept]);
                outbound.push(Rule::new(statements).comment("ARP with the next hop"));
            }
            let mut statements;
            match hop.mac {
                Some(hop) => {
                    statements = from_own(ARP_REPLY, is(Field::EtherDestination, hop.0));
                    statements.push(is(Field::ArpTargetEther, hop.0));
                }
                None => statements = from_own(ARP_REPLY, unicast()),
            }
            statements.push(Statement::Accept);
            outbound.push(Rule::new(statements).comment("ARP with the next hop"));
        }
    }

    fn discovery_rules(&self, own: Ipv6Addr, inbound: &mut Vec<Rule>, outbound: &mut Vec<Rule>) {
        let (longer_in, longer_out) = self.header_lengths();
        let own_octets = own.octets();
        for hop in self.hops.iter().filter(|hop| hop.network.is_ipv6()) {
            let at_hop = within(Field::NeighbourTarget, hop.network);
            let at_own = is(Field::NeighbourTarget, own_octets);
            let ether_addresses = self.ether_addresses(hop.mac);
            let from_hop = hop.mac.filter(|_| self.sees_frames()).map(|mac| is(Field::EtherSource, mac.0));
            // 24 bytes of message, and at most one option of eight: the sender's Ethernet address.
            for length in [24, 32].map(|message| IP6_HEADER + message) {
                for (kind, target) in [(SOLICITATION, &at_own), (ADVERTISEMENT, &at_hop)] {
                    let mut statements: Vec<_> = from_hop.clone().into_iter().collect();
                    if hop.is_node {
                        statements = self.spoken_by_node(statements);
                    }
                    statements.extend(self.discovery_packet(length + longer_in));
                    statements.push(within(Field::Ip6Source, hop.network));
                    statements.extend([is(Field::Icmp6Type, [kind]), target.clone()]);
                    statements.extend(self.option_of(hop.mac, kind, length));
                    statements.push(Statement::Accept);
                    push_new(inbound, Rule::new(statements).comment("next hop's neighbour discovery"));
                }
                for (kind, target) in [(SOLICITATION, &at_hop), (ADVERTISEMENT, &at_own)] {
                    let mut statements = ether_addresses.clone();
                    statements.extend(self.discovery_packet(length + longer_out));
                    statements.push(is(Field::Ip6Source, own_octets));
                    statements.extend([is(Field::Icmp6Type, [kind]), target.clone()]);
                    statements.extend(self.option_of(self.identity.mac, kind, length));
                    statements.push(Statement::Accept);
                    push_new(outbound, Rule::new(statements).comment("neighbour discovery with the next hop"));
                }
                if !self.sees_frames() {
                    // No frame here, no length of one: the second round would say the same again.
                    break;
                }
            }
            if self.sees_frames() {
                outbound.extend(self.multicast_solicitation(own, hop));
            }
        }
    }

    /// That the option of a neighbour discovery message, where it is long enough to have one, says whose message it is:
    /// the source's Ethernet address in a solicitation (1), the target's in an advertisement (2).
    fn option_of(&self, mac: Option<Mac>, kind: u8, length: u32) -> Option<Statement> {
        let number = if kind == SOLICITATION { 1 } else { 2 };
        let has_option = length == IP6_HEADER + 32 && self.sees_frames();
        mac.filter(|_| has_option).map(|mac| is(Field::NeighbourOption, ether_option(number, mac)))
    }

    /// What each packet of neighbour discovery begins with; `length` is the frame's.
    fn discovery_packet(&self, length: u32) -> Vec<Statement> {
        let mut statements = vec![self.family(true)];
        if self.sees_frames() {
            statements.push(Statement::Meta(Meta::Length(length)));
        }
        statements.extend([is(Field::Ip6NextHeader, [ICMP6]), is(Field::Ip6HopLimit, [255])]);
        statements
    }

    /// The one solicitation that reaches every neighbour. For a hop that is one address each of its bytes is known
    /// beforehand, the checksum included, so that it can carry nothing.
    fn multicast_solicitation(&self, own: Ipv6Addr, hop: &Hop) -> Option<Rule> {
        let mac = self.identity.mac?;
        let (_, longer_out) = self.header_lengths();
        let IpNetwork::V6(network) = hop.network else { return None };
        let target = network.ip();
        let mut group = [0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
        let mut receiver = [0x33, 0x33, 0xff, 0, 0, 0];
        let option = ether_option(1, mac);
        let from_own = [
            is(Field::EtherSource, mac.0),
            ether_type(true),
            Statement::Meta(Meta::Length(IP6_HEADER + 32 + longer_out)),
            is(Field::Ip6Head, [0x60, 0, 0, 0, 0, 32, ICMP6, 255]),
            is(Field::NeighbourOption, option),
        ];
        let mut statements = from_own.to_vec();
        if network.prefix() == 128 {
            group[13..].copy_from_slice(&target.octets()[13..]);
            receiver[3..].copy_from_slice(&target.octets()[13..]);
            let [high, low] = solicitation_checksum(own, Ipv6Addr::from(group), target, &option).to_be_bytes();
            let head = Value::from([SOLICITATION, 0, high, low, 0, 0, 0, 0]);
            let values =
                [receiver.into(), own.octets().into(), group.into(), head.followed_by(target.octets().into())?];
            statements.push(Statement::OneOf {
                key: vec![Field::EtherDestination, Field::Ip6Source, Field::Ip6Destination, Field::Solicitation],
                elements: vec![Ranges(values.map(|value| (value, value)).to_vec())],
            });
        } else {
            let mask = [0xff, 0xff, 0xff, 0, 0, 0];
            statements.insert(0, Statement::Match(Field::EtherDestination, Test::Masked(mask.into(), receiver.into())));
            statements.extend([
                is(Field::Ip6Source, own.octets()),
                within(Field::Ip6Destination, IpNetwork::new(IpAddr::from(group), 104).ok()?),
                is(Field::Icmp6Type, [SOLICITATION]),
                within(Field::NeighbourTarget, hop.network),
            ]);
        }
        statements.push(Statement::Accept);
        Some(Rule::new(statements).comment("neighbour solicitation for the next hop"))
    }
}

/// The option of neighbour discovery that says an Ethernet address; its length is in units of eight bytes.
fn ether_option(number: u8, Mac([a, b, c, d, e, f]): Mac) -> [u8; 8] {
    [number, 1, a, b, c, d, e, f]
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
