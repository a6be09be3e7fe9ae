//! From what a rule handed over to an Ethernet frame with a direction. Pure.

use crate::kernel::nflog::{Handed, Hook};
pub use crate::model::direction::Direction;

const ETHERNET_HEADER: usize = 14;

/// Whose rules handed a packet over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Those in the pod.
    Pod,
    /// The host guard, which is at the other end: what comes in there has left the pod.
    Node,
}

/// Which way a packet goes that was met there.
#[must_use]
pub(super) fn direction(side: Side, hook: Hook) -> Direction {
    match (side, hook) {
        (_, Hook::Forward) => Direction::Forward,
        (_, Hook::Input) | (Side::Pod, Hook::Ingress) | (Side::Node, Hook::Egress) => Direction::In,
        (_, Hook::Output) | (Side::Pod, Hook::Egress) | (Side::Node, Hook::Ingress) => Direction::Out,
    }
}

/// The packet as a frame. One that was met before it had an Ethernet header, or whose header is not said, gets one of zeros:
/// all packets of a file are of one kind.
#[must_use]
pub(super) fn frame(handed: &Handed<'_>) -> Vec<u8> {
    match handed.hook {
        Hook::Egress => handed.payload.to_vec(),
        Hook::Ingress if handed.link_header.len() >= ETHERNET_HEADER => [handed.link_header, handed.payload].concat(),
        _ => {
            let ether_type = match handed.payload.first().map(|byte| byte >> 4) {
                Some(6) => [0x86, 0xdd],
                _ => [0x08, 0x00],
            };
            [&[0; ETHERNET_HEADER - 2][..], &ether_type, handed.payload].concat()
        }
    }
}

/// What is behind the Ethernet header of an untagged frame; by it the same packet is known again, whichever hook met it.
#[must_use]
pub(super) fn behind_header(frame: &[u8]) -> &[u8] {
    frame.get(ETHERNET_HEADER..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handed<'a>(hook: Hook, link_header: &'a [u8], payload: &'a [u8]) -> Handed<'a> {
        Handed { prefix: b"", hook, time: None, link_header, payload }
    }

    #[test]
    fn every_packet_becomes_a_frame() {
        let (v4, v6) = ([0x45, 1], [0x60, 1]);
        let zeros = [0; 12];
        for (packet, expected) in [
            (handed(Hook::Egress, b"", &[7; 20]), vec![7; 20]),
            (handed(Hook::Ingress, &[9; 14], &v4), [&[9; 14][..], &v4].concat()),
            (handed(Hook::Ingress, b"", &v4), [&zeros[..], &[8, 0], &v4].concat()),
            (handed(Hook::Output, b"", &v6), [&zeros[..], &[0x86, 0xdd], &v6].concat()),
            (handed(Hook::Input, b"", b""), [&zeros[..], &[8, 0]].concat()),
        ] {
            assert_eq!(frame(&packet), expected, "{packet:?}");
        }
    }

    #[test]
    fn what_comes_in_on_the_node_has_left_the_pod() {
        assert_eq!(direction(Side::Pod, Hook::Ingress), Direction::In);
        assert_eq!(direction(Side::Node, Hook::Ingress), Direction::Out);
        assert_eq!(direction(Side::Node, Hook::Egress), Direction::In);
        assert_eq!(direction(Side::Pod, Hook::Output), Direction::Out);
    }
}
