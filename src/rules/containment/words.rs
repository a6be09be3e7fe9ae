//! The statements that the rules of containment are made of, each with a name.

use std::net::IpAddr;

use ipnetwork::IpNetwork;

use crate::model::policy::Protocol;
use crate::rules::ruleset::{Field, Rule, Statement, TCP_FIN_SYN_RST_ACK, TCP_SYN, Test, Value};

/// Adds a rule that is not there yet: an answer to one hop may be the same as to another.
pub(super) fn push_new(rules: &mut Vec<Rule>, rule: Rule) {
    if !rules.contains(&rule) {
        rules.push(rule);
    }
}

pub(super) fn is(field: Field, value: impl Into<Value>) -> Statement {
    Statement::Match(field, Test::Is(value.into()))
}

/// That a field is in a network: compared whole where the network is one address.
pub(super) fn within(field: Field, network: IpNetwork) -> Statement {
    let value = octets(network.network());
    let bits = value.len() * 8;
    if usize::from(network.prefix()) == bits {
        is(field, value)
    } else {
        Statement::Match(field, Test::Masked(octets(network.mask()), value))
    }
}

pub(super) fn octets(address: IpAddr) -> Value {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

pub(super) fn ether_type(v6: bool) -> Statement {
    // The type as it stands in the frame, not `meta protocol`: a frame with a VLAN tag is not of this type.
    is(Field::EtherType, if v6 { [0x86, 0xdd] } else { [0x08, 0x00] })
}

/// That a frame is for one receiver.
pub(super) fn unicast() -> Statement {
    Statement::Match(Field::EtherDestination, Test::Masked([1, 0, 0, 0, 0, 0].into(), [0; 6].into()))
}

pub(super) fn bare_syn() -> Statement {
    Statement::Match(Field::TcpFlags, Test::Masked([TCP_FIN_SYN_RST_ACK].into(), [TCP_SYN].into()))
}

/// That a TCP segment opens nothing: it may be any but a bare SYN.
pub(in crate::rules) fn no_bare_syn() -> Statement {
    Statement::Match(Field::TcpFlags, Test::NotMasked([TCP_FIN_SYN_RST_ACK].into(), [TCP_SYN].into()))
}

pub(super) fn in_ports(field: Field, (first, last): (u16, u16)) -> Statement {
    let (first, last) = (first.to_be_bytes(), last.to_be_bytes());
    if first == last { is(field, first) } else { Statement::Match(field, Test::Range(first.into(), last.into())) }
}

pub(super) fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

pub(super) fn protocol_field(v6: bool) -> Field {
    if v6 { Field::Ip6NextHeader } else { Field::IpProtocol }
}

pub(super) fn address_fields(v6: bool) -> (Field, Field) {
    if v6 { (Field::Ip6Source, Field::Ip6Destination) } else { (Field::IpSource, Field::IpDestination) }
}

/// The key of a flow is {protocol . remote . remote port . local port}.
pub(super) fn inbound_key(v6: bool) -> &'static [Field] {
    match v6 {
        false => &[Field::IpProtocol, Field::IpSource, Field::SourcePort, Field::DestinationPort],
        true => &[Field::Ip6NextHeader, Field::Ip6Source, Field::SourcePort, Field::DestinationPort],
    }
}

pub(super) fn outbound_key(v6: bool) -> &'static [Field] {
    match v6 {
        false => &[Field::IpProtocol, Field::IpDestination, Field::DestinationPort, Field::SourcePort],
        true => &[Field::Ip6NextHeader, Field::Ip6Destination, Field::DestinationPort, Field::SourcePort],
    }
}

/// A peer that may be answered: {station, where it is known . address . protocol}.
pub(super) fn peer_key(v6: bool, by_station: bool) -> &'static [Field] {
    match (v6, by_station) {
        (false, false) => &[Field::IpDestination, Field::IpProtocol],
        (false, true) => &[Field::EtherDestination, Field::IpDestination, Field::IpProtocol],
        (true, false) => &[Field::Ip6Destination, Field::Ip6NextHeader],
        (true, true) => &[Field::EtherDestination, Field::Ip6Destination, Field::Ip6NextHeader],
    }
}

/// What the pod may open a flow to: the same with the port.
pub(super) fn service_key(v6: bool, by_station: bool) -> &'static [Field] {
    match (v6, by_station) {
        (false, false) => &[Field::IpDestination, Field::IpProtocol, Field::DestinationPort],
        (false, true) => &[Field::EtherDestination, Field::IpDestination, Field::IpProtocol, Field::DestinationPort],
        (true, false) => &[Field::Ip6Destination, Field::Ip6NextHeader, Field::DestinationPort],
        (true, true) => &[Field::EtherDestination, Field::Ip6Destination, Field::Ip6NextHeader, Field::DestinationPort],
    }
}

/// Who may open a flow to the pod: {address . protocol . the pod's port}.
pub(super) fn client_key(v6: bool) -> &'static [Field] {
    match v6 {
        false => &[Field::IpSource, Field::IpProtocol, Field::DestinationPort],
        true => &[Field::Ip6Source, Field::Ip6NextHeader, Field::DestinationPort],
    }
}

/// Whom the pod answers: {address . protocol . the pod's port}.
pub(super) fn answer_key(v6: bool) -> &'static [Field] {
    match v6 {
        false => &[Field::IpDestination, Field::IpProtocol, Field::SourcePort],
        true => &[Field::Ip6Destination, Field::Ip6NextHeader, Field::SourcePort],
    }
}

/// The key of an attempt is {protocol . remote . remote port}.
pub(in crate::rules) fn attempt_key(v6: bool) -> &'static [Field] {
    match v6 {
        false => &[Field::IpProtocol, Field::IpDestination, Field::DestinationPort],
        true => &[Field::Ip6NextHeader, Field::Ip6Destination, Field::DestinationPort],
    }
}

/// The key of a stray probe is its source.
pub(super) fn stray_key(v6: bool) -> &'static [Field] {
    if v6 { &[Field::Ip6Source] } else { &[Field::IpSource] }
}

pub(super) fn open_flow(key: &'static [Field], set: &str) -> [Statement; 2] {
    [Statement::Update { key, set: set.to_owned(), counted: false }, Statement::Accept]
}

/// That a packet is for a peer; one that is everyone needs no test.
pub(super) fn to_peer(peer: IpNetwork) -> Option<Statement> {
    (peer.prefix() > 0).then(|| within(address_fields(peer.is_ipv6()).1, peer))
}

/// That a packet is from a peer.
pub(super) fn from_peer(peer: IpNetwork) -> Option<Statement> {
    (peer.prefix() > 0).then(|| within(address_fields(peer.is_ipv6()).0, peer))
}

/// The protocol as the IP header names it, and for TCP that the segment opens nothing: what a flow's other side opened
/// must not be turned round.
pub(super) fn of_flow(v6: bool, protocol: Protocol) -> Vec<Statement> {
    let mut statements = vec![is(protocol_field(v6), [protocol.number()])];
    statements.extend((protocol == Protocol::Tcp).then(no_bare_syn));
    statements
}

pub(super) fn opening(v6: bool, protocol: Protocol, ports: (u16, u16)) -> Vec<Statement> {
    // The transport protocol as the IP header itself names it: with an IPv6 extension header in front nothing opens.
    let mut statements = vec![is(protocol_field(v6), [protocol.number()]), in_ports(Field::DestinationPort, ports)];
    if protocol == Protocol::Tcp {
        statements.push(bare_syn());
    }
    statements
}
