//! One packet as a message has it. Pure.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::libc;

use crate::kernel::netlink::{attribute, attributes, be32, text};

const PACKET_HEADER: u16 = 1;
const TIMESTAMP: u16 = 3;
const HARDWARE_HEADER: u16 = 16;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
/// No frame has a longer header that a packet of ours comes with.
const LINK_HEADER_MAX: usize = 64;

/// A packet that a rule handed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handed<'a> {
    /// What the rule says with it.
    pub prefix: &'a [u8],
    /// Where it was met.
    pub hook: Hook,
    /// When, where the kernel says it.
    pub time: Option<SystemTime>,
    /// Its Ethernet header, where that is not in the payload and there is one.
    pub link_header: &'a [u8],
    /// The packet, or its beginning.
    pub payload: &'a [u8],
}

/// Where a rule met a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// It comes in from a device; the payload begins behind the Ethernet header.
    Ingress,
    /// It goes out to a device; the payload begins with the Ethernet header.
    Egress,
    /// It is for this netns; the payload is an IP packet.
    Input,
    /// It is from this netns; the payload is an IP packet.
    Output,
    /// It goes through it; the payload is an IP packet.
    Forward,
}

/// Reads the payload of a message; `None` where it is no packet of a hook that rules of ours are at.
#[must_use]
pub fn read(message: &[u8]) -> Option<Handed<'_>> {
    let family = i32::from(*message.first()?);
    let body = message.get(4..)?;
    // `nfulnl_msg_packet_hdr`: EtherType, hook, padding.
    let hook = i32::from(*attribute(body, PACKET_HEADER)?.get(2)?);
    let hook = match (family, hook) {
        (libc::NFPROTO_NETDEV, 0) => Hook::Ingress,
        (libc::NFPROTO_NETDEV, 1) => Hook::Egress,
        (libc::NFPROTO_IPV4 | libc::NFPROTO_IPV6 | libc::NFPROTO_INET, libc::NF_INET_LOCAL_IN) => Hook::Input,
        (libc::NFPROTO_IPV4 | libc::NFPROTO_IPV6 | libc::NFPROTO_INET, libc::NF_INET_LOCAL_OUT) => Hook::Output,
        (libc::NFPROTO_IPV4 | libc::NFPROTO_IPV6 | libc::NFPROTO_INET, libc::NF_INET_FORWARD) => Hook::Forward,
        _ => return None,
    };
    let link_header = attribute(body, HARDWARE_HEADER).filter(|header| header.len() <= LINK_HEADER_MAX);
    Some(Handed {
        prefix: attribute(body, PREFIX).map(text).unwrap_or_default(),
        hook,
        time: attribute(body, TIMESTAMP).and_then(read_time),
        link_header: link_header.filter(|_| hook == Hook::Ingress).unwrap_or_default(),
        payload: attributes(body).find(|&(kind, _)| kind == PAYLOAD)?.1,
    })
}

/// Seconds and microseconds, in network order.
fn read_time(value: &[u8]) -> Option<SystemTime> {
    let number = |from: usize| {
        let (high, low) = (be32(value.get(from..from + 4)?)?, be32(value.get(from + 4..from + 8)?)?);
        Some(u64::from(high) << 32 | u64::from(low))
    };
    let since = Duration::from_secs(number(0)?).checked_add(Duration::from_micros(number(8)?))?;
    UNIX_EPOCH.checked_add(since)
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    if let Some(handed) = read(bytes) {
        assert!(handed.payload.len() + handed.link_header.len() <= bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::{put, put_text};

    fn message(family: i32, hook: u8) -> Vec<u8> {
        let mut bytes = vec![u8::try_from(family).unwrap(), 0, 0x51, 0x43];
        put(&mut bytes, PACKET_HEADER, &[8, 0, hook, 0]);
        put_text(&mut bytes, PREFIX, b"c1");
        put(&mut bytes, TIMESTAMP, &[0, 0, 0, 0, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 9]);
        put(&mut bytes, HARDWARE_HEADER, &[1; 14]);
        put(&mut bytes, PAYLOAD, b"packet");
        bytes
    }

    #[test]
    fn a_packet_is_read_by_where_it_was_met() {
        let handed = |hook, link_header| Handed {
            prefix: b"c1",
            hook,
            time: Some(UNIX_EPOCH + Duration::new(7, 9000)),
            link_header,
            payload: b"packet",
        };
        assert_eq!(read(&message(libc::NFPROTO_NETDEV, 0)), Some(handed(Hook::Ingress, &[1; 14][..])));
        assert_eq!(read(&message(libc::NFPROTO_NETDEV, 1)), Some(handed(Hook::Egress, b"")));
        assert_eq!(read(&message(libc::NFPROTO_IPV4, 3)), Some(handed(Hook::Output, b"")));
        assert_eq!(read(&message(libc::NFPROTO_IPV6, 1)), Some(handed(Hook::Input, b"")));
        assert_eq!(read(&message(libc::NFPROTO_BRIDGE, 1)), None);
        assert_eq!(read(&message(libc::NFPROTO_IPV4, 4)), None);
    }

    proptest::proptest! {
        #[test]
        fn no_message_makes_it_panic(bytes: Vec<u8>, at: usize, byte: u8) {
            let _ = read(&bytes);
            let mut message = message(libc::NFPROTO_NETDEV, 0);
            let at = at % message.len();
            message[at] = byte;
            let _ = read(&message);
        }
    }
}
