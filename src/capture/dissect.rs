//! Who talks to whom in a frame, and whom its first bytes ask for. Pure, over bytes that anybody may have made.

use std::fmt;
use std::net::IpAddr;

use etherparse::{LaxNetSlice, LaxSlicedPacket};

use super::names::{Name, name};
use crate::model::attempt::AttemptProtocol;
use crate::model::policy::Protocol;

const SCTP: u8 = 132;

/// The ends of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conversation {
    /// How they talk.
    pub protocol: AttemptProtocol,
    /// Who sends.
    pub source: (IpAddr, Option<u16>),
    /// To whom; of a question for a neighbour, whom it asks for.
    pub destination: (IpAddr, Option<u16>),
    /// Whom it asks for by name.
    pub name: Option<Name>,
    /// How long the packet says that it is, without its Ethernet header.
    pub length: usize,
}

/// What a frame says; `None` where it has no addresses. It may be cut off anywhere.
#[must_use]
pub fn dissect(frame: &[u8]) -> Option<Conversation> {
    let packet = LaxSlicedPacket::from_ethernet(frame).ok()?;
    let (source, destination, ip, length) = match packet.net.as_ref()? {
        LaxNetSlice::Ipv4(ip) => {
            let header = ip.header();
            let length = usize::from(header.total_len());
            (header.source_addr().into(), header.destination_addr().into(), ip.payload(), length)
        }
        LaxNetSlice::Ipv6(ip) => {
            let header = ip.header();
            let length = usize::from(header.payload_length()) + 40;
            (header.source_addr().into(), header.destination_addr().into(), ip.payload(), length)
        }
        LaxNetSlice::Arp(arp) => {
            let address = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
            return Some(Conversation {
                protocol: AttemptProtocol::Arp,
                source: (address(arp.sender_protocol_addr())?, None),
                destination: (address(arp.target_protocol_addr())?, None),
                name: None,
                length: arp.slice().len(),
            });
        }
    };
    let number = ip.ip_number.0;
    let has_ports = !ip.fragmented && [Protocol::Tcp.number(), Protocol::Udp.number(), SCTP].contains(&number);
    let port = |at: usize| {
        let bytes = ip.payload.get(at..at + 2).filter(|_| has_ports)?;
        Some(u16::from_be_bytes([bytes[0], bytes[1]]))
    };
    let (source_port, destination_port) = (port(0), port(2));
    let said = match number {
        17 => ip.payload.get(8..),
        // The data offset counts words of four bytes.
        6 => ip.payload.get(12).and_then(|byte| ip.payload.get(usize::from(byte >> 4) * 4..)),
        _ => None,
    };
    let name = said.filter(|_| has_ports).and_then(|said| name(number, destination_port?, said));
    Some(Conversation {
        protocol: AttemptProtocol::Ip(number),
        source: (source, source_port),
        destination: (destination, destination_port),
        name,
        length,
    })
}

/// One line, of nothing that its sender could have chosen but numbers.
impl fmt::Display for Conversation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = |(address, port): (IpAddr, Option<u16>)| match port {
            Some(port) => std::net::SocketAddr::new(address, port).to_string(),
            None => address.to_string(),
        };
        write!(f, "{} {} > {}", self.protocol, end(self.source), end(self.destination))
    }
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(frame: &[u8]) {
    if let Some(found) = dissect(frame) {
        let shown = format!("{found} {:?}", found.name.as_ref().map(ToString::to_string));
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::capture::names::Kind;

    fn short(length: usize) -> [u8; 2] {
        u16::try_from(length).unwrap().to_be_bytes()
    }

    /// An Ethernet frame with a datagram of IPv4 in it; no checksum is looked at.
    pub(in crate::capture) fn udp(port: u16, said: &[u8]) -> Vec<u8> {
        [
            &[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 8, 0, 0x45, 0][..],
            &short(28 + said.len()),
            &[0, 0, 0, 0, 64, 17, 0, 0, 10, 77, 0, 2, 203, 0, 113, 66],
            &4242_u16.to_be_bytes(),
            &port.to_be_bytes(),
            &short(8 + said.len()),
            &[0, 0],
            said,
        ]
        .concat()
    }

    /// An Ethernet frame with a segment of IPv6 in it, which has twelve bytes of options.
    fn tcp6(port: u16, said: &[u8]) -> Vec<u8> {
        [
            &[1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x86, 0xdd, 0x60, 0, 0, 0][..],
            &short(32 + said.len()),
            &[6, 64],
            &[0xfd; 16],
            &[0xfe; 16],
            &4242_u16.to_be_bytes(),
            &port.to_be_bytes(),
            &[0, 0, 0, 1, 0, 0, 0, 1, 0x80, 0x18, 1, 0, 0, 0, 0, 0],
            &[1; 12],
            said,
        ]
        .concat()
    }

    #[test]
    fn ends_and_names_are_found_also_in_what_was_cut_off() {
        let question = b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x04evil\x07example\0\0\x10\0\x01";
        let found = dissect(&udp(53, question)).unwrap();
        assert_eq!(found.to_string(), "udp 10.77.0.2:4242 > 203.0.113.66:53");
        assert_eq!(found.name.unwrap().to_string(), "dns evil.example TXT");
        let request = tcp6(80, b"GET /x HTTP/1.1\r\nHost: c2.example\r\n\r\n");
        let found = dissect(&request).unwrap();
        assert_eq!((found.name.clone().unwrap().kind, found.destination.1), (Kind::Http, Some(80)));
        assert_eq!(found.length, request.len() - 14);
        // Up to the end of its TCP header.
        let cut = dissect(&request[..14 + 40 + 32]).unwrap();
        assert_eq!((cut.destination, cut.name), (found.destination, None));
        assert_eq!(dissect(&request[..14]), None);
    }

    #[test]
    fn a_question_for_a_neighbour_says_for_whom() {
        let arp = b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x02\x08\x06\0\x01\x08\0\x06\x04\0\x01\x02\0\0\0\0\x02\x0a\x4d\0\x02\0\0\0\0\0\0\x0a\x4d\0\x03";
        assert_eq!(dissect(arp).unwrap().to_string(), "arp 10.77.0.2 > 10.77.0.3");
    }

    proptest::proptest! {
        #[test]
        fn no_frame_makes_it_panic(bytes: Vec<u8>, said: Vec<u8>, at: usize, byte: u8, cut: usize) {
            try_any(&bytes);
            for mut frame in [udp(53, &said), tcp6(443, &said), tcp6(80, &said)] {
                let at = at % frame.len();
                frame[at] = byte;
                frame.truncate(cut % (frame.len() + 1));
                try_any(&frame);
            }
        }
    }
}
