//! What the allow-list of a policy becomes: sets of who may be spoken to, and the few rules that look packets up in them, as
//! many for one entry as for a thousand.
//!
//! A set takes no two elements that overlap (Linux refuses that, by whichever comes second). Of what does overlap, a network and
//! a host in it with other ports, the second is put in without what the first has already.

use std::collections::HashSet;
use std::net::{IpAddr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::model::names::Mac;
use crate::model::policy::{Allow, Direction, Protocol};
use crate::rules::ruleset::{
    Content, Field, KeyType, Meta, Ranges, Rule, Set, Statement, TCP_ACK, TCP_RST, Test, Value,
};

use super::interface::{Compiled, Silent, View};
use super::words::*;
use super::{
    EGRESS_ON_LINK, EGRESS_PEERS, FlowSets, INGRESS_PEERS, PEERS, PEERS_ON_LINK, Place, address_type, family_suffix,
};

/// The allow-list of one family, as one interface sees it.
pub(super) struct AllowList<'a> {
    v6: bool,
    flows: String,
    entries: Vec<&'a Allow>,
    /// Who may be answered in a flow, and whom the pod may open flows to: by stations that are known, and by others.
    peers: [List; 2],
    egress: [List; 2],
    ingress: List,
}

/// A set in the making.
struct List {
    name: String,
    /// Whether the key begins with the station that packets go to.
    by_station: bool,
    elements: Vec<Ranges>,
    protocols: Vec<Protocol>,
    /// The most elements that it may ever have, as long as each is of one address and one port.
    room: usize,
    /// The single addresses that elements are of, and whether some are of more.
    hosts: HashSet<IpAddr>,
    has_networks: bool,
    has_ranges: bool,
}

impl List {
    fn new(name: String, by_station: bool, room: usize) -> Self {
        Self {
            name,
            by_station,
            elements: Vec::new(),
            protocols: Vec::new(),
            room,
            hosts: HashSet::new(),
            has_networks: false,
            has_ranges: false,
        }
    }

    fn take(&mut self, peer: IpNetwork, element: Ranges, protocol: Protocol) {
        if self.elements.is_empty() {
            self.hosts.reserve(self.room);
            self.elements.reserve(self.room);
        }
        // A policy may have hundreds of single addresses: one overlaps with no other.
        let is_host = peer.prefix() == if peer.is_ipv4() { 32 } else { 128 };
        self.has_networks |= !is_host;
        self.has_ranges |= !element.is_single();
        let is_new_host = is_host && self.hosts.insert(peer.ip());
        if is_new_host && !self.has_networks {
            self.elements.push(element);
        } else {
            element.put_among(&mut self.elements);
        }
        if !self.protocols.contains(&protocol) {
            self.protocols.push(protocol);
        }
    }

    fn set(self, key: &[KeyType]) -> Option<Set> {
        let station: &[KeyType] = if self.by_station { &[KeyType::Ether] } else { &[] };
        let key = [station, key].concat();
        let size = (self.room >= ROOM_SAID_FROM && !self.has_ranges).then(|| u32::try_from(self.room).ok()).flatten();
        let content = Content::Fixed { elements: self.elements, size };
        Some(Set { name: self.name, key, content }).filter(|set| !set.elements().is_empty())
    }
}

/// The kernel makes room for elements as they come. From so many on that is most of what it takes to put them in, and it is told
/// beforehand how many there may be.
const ROOM_SAID_FROM: usize = 64;

/// How many elements there are of these entries, where none of them overlap.
fn room(entries: &[&Allow]) -> usize {
    entries.iter().map(|allow| allow.ports.ranges().len()).sum()
}

impl<'a> AllowList<'a> {
    /// Of the entries of one family; `None` where there are none.
    pub(super) fn of(view: &View<'_>, allow: &'a [Allow], v6: bool, flows: &FlowSets) -> Option<Self> {
        let entries: Vec<_> = allow.iter().filter(|allow| allow.peer.is_ipv6() == v6).collect();
        if entries.is_empty() {
            return None;
        }
        let name = |kind: &str| format!("{kind}{}-{}-{:08x}", family_suffix(v6), view.identity.name, flows.fingerprint);
        // Of the policy alone: which of its peers have a station that is known changes, and a set is not made anew for that.
        let room = room(&entries);
        let lists = |known, others| [List::new(name(known), true, room), List::new(name(others), false, room)];
        let mut list = Self {
            v6,
            flows: flows.allowed(v6),
            peers: lists(PEERS, PEERS_ON_LINK),
            egress: lists(EGRESS_PEERS, EGRESS_ON_LINK),
            ingress: List::new(name(INGRESS_PEERS), false, room),
            entries,
        };
        for allow in list.entries.clone() {
            list.take(view, allow);
        }
        Some(list)
    }

    fn take(&mut self, view: &View<'_>, &Allow { direction, peer, protocol, ref ports }: &Allow) {
        let receiver = match view.receiver_for(peer) {
            Ok(receiver) => Some(receiver.filter(|_| view.sees_frames())),
            Err(Silent) => None,
        };
        if let Some(station) = receiver {
            self.peers[usize::from(station.is_none())].take(peer, element(station, peer, protocol, None), protocol);
        }
        for &range in ports.ranges() {
            match (direction, receiver) {
                (Direction::Egress, None) => {}
                (Direction::Egress, Some(station)) => {
                    let list = &mut self.egress[usize::from(station.is_none())];
                    list.take(peer, element(station, peer, protocol, Some(range)), protocol);
                }
                // Nothing there sees what comes in; `stateless_answers` has to do.
                (Direction::Ingress, _) if view.place == Place::HostIngress => {}
                (Direction::Ingress, _) => {
                    self.ingress.take(peer, element(None, peer, protocol, Some(range)), protocol);
                }
            }
        }
    }

    /// The rules for the pod's address `own`: of flows that are open first, since most packets are of one.
    pub(super) fn rules(&self, view: &View<'_>, own: IpAddr, compiled: &mut Compiled) {
        let v6 = self.v6;
        let flow = |mut statements: Vec<Statement>, protocol, peers: Option<Statement>, key| {
            statements.extend(of_flow(v6, protocol));
            statements.extend(peers);
            statements.push(Statement::Lookup(key, self.flows.clone()));
            statements.extend(open_flow(key, &self.flows));
            Rule::new(statements).comment("allowed flow")
        };
        if view.place != Place::HostIngress {
            let mut protocols: Vec<Protocol> = Vec::new();
            for allow in &self.entries {
                if !protocols.contains(&allow.protocol) {
                    protocols.push(allow.protocol);
                    let rule = flow(view.sent_to(own, None), allow.protocol, None, inbound_key(v6));
                    push_new(&mut compiled.inbound, rule);
                }
            }
        }
        // Each peer's flows go to its own next hop: together they could go to each other's.
        for list in &self.peers {
            for &protocol in &list.protocols {
                let peers = Statement::Lookup(peer_key(v6, list.by_station), list.name.clone());
                compiled.outbound.push(flow(sent_by(view, own, list), protocol, Some(peers), outbound_key(v6)));
            }
        }
        let opens = |mut statements: Vec<Statement>, protocol, key| {
            statements.extend((protocol == Protocol::Tcp).then(bare_syn));
            statements.extend(open_flow(key, &self.flows));
            Rule::new(statements).comment("allowed")
        };
        for list in &self.egress {
            for &protocol in &list.protocols {
                let mut statements = sent_by(view, own, list);
                statements.push(is(protocol_field(v6), [protocol.number()]));
                statements.push(Statement::Lookup(service_key(v6, list.by_station), list.name.clone()));
                compiled.outbound.push(opens(statements, protocol, outbound_key(v6)));
            }
        }
        for &protocol in &self.ingress.protocols {
            let mut statements = view.sent_to(own, None);
            statements.push(is(protocol_field(v6), [protocol.number()]));
            statements.push(Statement::Lookup(client_key(v6), self.ingress.name.clone()));
            compiled.inbound.push(opens(statements, protocol, inbound_key(v6)));
        }
        if view.place == Place::HostIngress {
            for allow in self.entries.iter().filter(|allow| allow.direction == Direction::Ingress) {
                let ranges = allow.ports.ranges().iter();
                compiled.outbound.extend(ranges.flat_map(|&range| stateless_answers(view, allow, own, range)));
            }
        }
    }

    /// The sets that the rules look packets up in.
    pub(super) fn sets(self) -> impl Iterator<Item = Set> {
        let address = address_type(self.v6);
        let peer = [address, KeyType::Protocol];
        let service = [address, KeyType::Protocol, KeyType::Port];
        let peers = self.peers.into_iter().map(move |list| list.set(&peer));
        let services = self.egress.into_iter().chain([self.ingress]).map(move |list| list.set(&service));
        peers.chain(services).flatten()
    }
}

/// What the policy allows is no attempt: in inet output, where attempts are counted before a neighbour is resolved, it leaves
/// before that.
#[derive(Default)]
pub(super) struct Uncounted {
    pub(super) sets: Vec<Set>,
    pub(super) rules: Vec<Rule>,
}

impl Uncounted {
    pub(super) fn of(allow: &[Allow], flows: &FlowSets) -> Self {
        let mut uncounted = Self::default();
        for v6 in [false, true] {
            for (direction, kind) in [(Direction::Egress, EGRESS_PEERS), (Direction::Ingress, INGRESS_PEERS)] {
                let name = format!("{kind}{}-{:08x}", family_suffix(v6), flows.fingerprint);
                let is_of_it = |allow: &&Allow| allow.direction == direction && allow.peer.is_ipv6() == v6;
                let entries: Vec<_> = allow.iter().filter(is_of_it).collect();
                let mut list = List::new(name, false, room(&entries));
                let key = match direction {
                    Direction::Egress => service_key(v6, false),
                    Direction::Ingress => answer_key(v6),
                };
                for allow in entries {
                    for &range in allow.ports.ranges() {
                        list.take(allow.peer, element(None, allow.peer, allow.protocol, Some(range)), allow.protocol);
                    }
                }
                if let Some(set) = list.set(&[address_type(v6), KeyType::Protocol, KeyType::Port]) {
                    let statements = [
                        Statement::Meta(Meta::Nfproto { v6 }),
                        Statement::Lookup(key, set.name.clone()),
                        Statement::Accept,
                    ];
                    uncounted.rules.push(Rule::new(statements.to_vec()));
                    uncounted.sets.push(set);
                }
            }
        }
        uncounted
    }
}

/// What a packet from the pod's address `own` begins with, but for the station that it goes to where the list knows that.
fn sent_by(view: &View<'_>, own: IpAddr, list: &List) -> Vec<Statement> {
    if list.by_station { view.sent_by_anywhere(own) } else { view.sent_by(own, None) }
}

/// What the pod may answer to an allowed peer, where nothing sees what the peer sends.
fn stateless_answers(view: &View<'_>, allow: &Allow, own: IpAddr, range: (u16, u16)) -> Vec<Rule> {
    let flags = match allow.protocol {
        Protocol::Tcp => vec![Some(TCP_ACK), Some(TCP_RST)],
        Protocol::Udp => vec![None],
    };
    let Ok(receiver) = view.receiver_for(allow.peer) else { return Vec::new() };
    let rule = |flag: Option<u8>| {
        let mut statements = view.sent_by(own, receiver);
        statements.extend(to_peer(allow.peer));
        statements.push(is(protocol_field(own.is_ipv6()), [allow.protocol.number()]));
        statements.push(in_ports(Field::SourcePort, range));
        statements
            .extend(flag.map(|flag| Statement::Match(Field::TcpFlags, Test::Masked([flag].into(), [flag].into()))));
        statements.push(Statement::Accept);
        Rule::new(statements).comment("answer to an allowed peer")
    };
    flags.into_iter().map(rule).collect()
}

fn element(station: Option<Mac>, peer: IpNetwork, protocol: Protocol, ports: Option<(u16, u16)>) -> Ranges {
    let one = |value: Value| (value, value);
    let addresses = (octets(peer.network()), octets(last_of(peer)));
    let ports = ports.map(|(first, last)| (first.to_be_bytes().into(), last.to_be_bytes().into()));
    let station = station.map(|Mac(bytes)| one(bytes.into()));
    Ranges(station.into_iter().chain([addresses, one([protocol.number()].into())]).chain(ports).collect())
}

/// The last address of a network.
fn last_of(network: IpNetwork) -> IpAddr {
    match network {
        IpNetwork::V4(network) => network.broadcast().into(),
        IpNetwork::V6(network) => Ipv6Addr::from_bits(network.network().to_bits() | !network.mask().to_bits()).into(),
    }
}
