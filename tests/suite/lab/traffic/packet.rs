//! Packets written by hand: what a root attacker sends when no socket would send it for him.
//!
//! Builders only; checksums are right unless the caller breaks them afterwards.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::lab::Mac;

pub(crate) const BROADCAST: Mac = [0xff; 6];
pub(crate) const ETH_IPV4: u16 = 0x0800;
pub(crate) const ETH_ARP: u16 = 0x0806;
pub(crate) const ETH_IPV6: u16 = 0x86dd;
/// Every IPv6 node of a link.
pub(crate) const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
pub(crate) const TCP: u8 = 6;
pub(crate) const UDP: u8 = 17;
pub(crate) const ICMPV6: u8 = 58;
pub(crate) const SYN: u8 = 0x02;
pub(crate) const SYN_ACK: u8 = 0x12;
pub(crate) const PSH_ACK: u8 = 0x18;

/// An Ethernet frame.
pub(crate) fn ethernet(destination: Mac, source: Mac, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    [&destination[..], &source, &ethertype.to_be_bytes(), payload].concat()
}

/// An Ethernet frame with one 802.1Q tag in front of its type.
pub(crate) fn tagged(destination: Mac, source: Mac, vlan: u16, ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let inner = [&vlan.to_be_bytes()[..], &ethertype.to_be_bytes(), payload].concat();
    ethernet(destination, source, 0x8100, &inner)
}

/// The same frame for another destination.
pub(crate) fn redirected(mut frame: Vec<u8>, destination: Mac) -> Vec<u8> {
    frame[..6].copy_from_slice(&destination);
    frame
}

/// The same frame with an 802.1Q tag put in.
pub(crate) fn with_tag(frame: &[u8], vlan: u16) -> Vec<u8> {
    [&frame[..12], &0x8100_u16.to_be_bytes(), &vlan.to_be_bytes(), &frame[12..]].concat()
}

/// IP of the family of the addresses, in an Ethernet frame.
pub(crate) fn ip_frame(macs: (Mac, Mac), addresses: (IpAddr, IpAddr), protocol: u8, payload: &[u8]) -> Vec<u8> {
    let (destination, source) = macs;
    match addresses {
        (IpAddr::V4(to), IpAddr::V4(from)) => {
            ethernet(destination, source, ETH_IPV4, &ipv4(from, to, protocol, &[], payload))
        }
        (IpAddr::V6(to), IpAddr::V6(from)) => {
            ethernet(destination, source, ETH_IPV6, &ipv6(from, to, protocol, payload))
        }
        mixed => panic!("two families in one packet: {mixed:?}"),
    }
}

/// An IPv4 packet; `options` is a multiple of four long.
pub(crate) fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, options: &[u8], payload: &[u8]) -> Vec<u8> {
    ipv4_fragment(from, to, protocol, options, 0x4000, payload)
}

/// An IPv4 packet with these flags and fragment offset.
pub(crate) fn ipv4_fragment(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    options: &[u8],
    fragment: u16,
    payload: &[u8],
) -> Vec<u8> {
    let header_length = 20 + options.len();
    let total = u16::try_from(header_length + payload.len()).unwrap();
    let mut header = vec![0x40 | u8::try_from(header_length / 4).unwrap(), 0];
    header.extend(total.to_be_bytes());
    header.extend([0x51, 0x17]);
    header.extend(fragment.to_be_bytes());
    header.extend([64, protocol, 0, 0]);
    header.extend(from.octets());
    header.extend(to.octets());
    header.extend(options);
    let sum = checksum(&[&header]);
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    [&header[..], payload].concat()
}

/// An IPv6 packet with hop limit 255.
pub(crate) fn ipv6(from: Ipv6Addr, to: Ipv6Addr, next_header: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(payload.len()).unwrap().to_be_bytes());
    packet.extend([next_header, 255]);
    packet.extend(from.octets());
    packet.extend(to.octets());
    packet.extend(payload);
    packet
}

/// A UDP datagram.
pub(crate) fn udp(from: IpAddr, to: IpAddr, ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram =
        [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes(), &length.to_be_bytes(), &[0, 0], payload].concat();
    let sum = transport_checksum(from, to, UDP, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// What a TCP segment says besides its ports and data.
#[derive(Clone, Copy, Default)]
pub(crate) struct Segment {
    pub(crate) flags: u8,
    pub(crate) sequence: u32,
    pub(crate) acknowledgement: u32,
}

/// A TCP segment without options.
pub(crate) fn tcp(from: IpAddr, to: IpAddr, ports: (u16, u16), segment: Segment, payload: &[u8]) -> Vec<u8> {
    let mut bytes = [&ports.0.to_be_bytes()[..], &ports.1.to_be_bytes()].concat();
    bytes.extend(segment.sequence.to_be_bytes());
    bytes.extend(segment.acknowledgement.to_be_bytes());
    bytes.extend([0x50, segment.flags, 0xff, 0xff, 0, 0, 0, 0]);
    bytes.extend(payload);
    let sum = transport_checksum(from, to, TCP, &bytes);
    bytes[16..18].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// An ICMP echo request of the family of the addresses.
pub(crate) fn echo(from: IpAddr, to: IpAddr, payload: &[u8]) -> Vec<u8> {
    let kind = if to.is_ipv4() { 8 } else { 128 };
    let mut bytes = [&[kind, 0, 0, 0, 0x51, 0x17, 0, 1], payload].concat();
    let sum = match to {
        IpAddr::V4(_) => checksum(&[&bytes]),
        IpAddr::V6(_) => transport_checksum(from, to, ICMPV6, &bytes),
    };
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The fields of an ARP packet that an attacker plays with.
#[derive(Clone, Copy)]
pub(crate) struct Arp {
    pub(crate) operation: u16,
    pub(crate) sender: (Mac, Ipv4Addr),
    pub(crate) target: (Mac, Ipv4Addr),
}

impl Arp {
    pub(crate) fn bytes(self) -> Vec<u8> {
        let mut bytes = vec![0, 1, 8, 0, 6, 4];
        bytes.extend(self.operation.to_be_bytes());
        bytes.extend(self.sender.0);
        bytes.extend(self.sender.1.octets());
        bytes.extend(self.target.0);
        bytes.extend(self.target.1.octets());
        bytes
    }
}

/// A neighbour solicitation (135) or advertisement (136) with `reserved` in its flags field and options at its end.
pub(crate) fn neighbour(
    kind: u8,
    from: Ipv6Addr,
    to: Ipv6Addr,
    target: Ipv6Addr,
    reserved: [u8; 4],
    options: &[u8],
) -> Vec<u8> {
    let mut bytes = [&[kind, 0, 0, 0], &reserved[..], &target.octets(), options].concat();
    let sum = transport_checksum(from.into(), to.into(), ICMPV6, &bytes);
    bytes[2..4].copy_from_slice(&sum.to_be_bytes());
    bytes
}

/// The option with a link-layer address: source (1) or target (2).
pub(crate) fn link_layer_option(kind: u8, mac: Mac) -> Vec<u8> {
    [&[kind, 1], &mac[..]].concat()
}

/// The address that neighbours of `target` listen on.
pub(crate) fn solicited_node(target: Ipv6Addr) -> Ipv6Addr {
    let octets = target.octets();
    let [.., a, b, c] = octets;
    let mut group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0];
    group[13..].copy_from_slice(&[a, b, c]);
    group.into()
}

/// Where Ethernet sends an IPv6 multicast.
pub(crate) fn multicast_mac(group: Ipv6Addr) -> Mac {
    let [.., a, b, c, d] = group.octets();
    [0x33, 0x33, a, b, c, d]
}

/// The checksum of TCP, UDP and ICMPv6.
pub(crate) fn transport_checksum(from: IpAddr, to: IpAddr, protocol: u8, bytes: &[u8]) -> u16 {
    let octets = |address: IpAddr| match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    };
    let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
    checksum(&[&octets(from), &octets(to), &[0, protocol], &length, bytes])
}

/// The Internet checksum; every part but the last must be of even length.
fn checksum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
