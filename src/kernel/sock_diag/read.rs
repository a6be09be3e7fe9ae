//! The kernel's answers, as bytes. Pure.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc;

use crate::kernel::netlink::{attribute, ne32};
use crate::model::escaped::Escaped;

use super::{Details, DiagSocket, Kind, TcpInfo};

/// Reads one answer; `None` where it is too short to be one.
#[must_use]
pub fn read_socket(kind: Kind, payload: &[u8]) -> Option<DiagSocket> {
    match kind {
        Kind::Tcp | Kind::Udp | Kind::UdpLite | Kind::Raw | Kind::Icmp => read_inet(kind, payload),
        Kind::Unix => read_unix(payload),
        Kind::Packet => read_packet(payload),
        Kind::Netlink => read_netlink(payload),
        Kind::Xdp => read_xdp(payload),
    }
}

fn word(payload: &[u8], at: usize) -> Option<u32> {
    ne32(payload.get(at..at + 4)?)
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

fn port(payload: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(payload.get(at..at + 2)?.try_into().ok()?))
}

fn address(family: u8, payload: &[u8], at: usize) -> Option<IpAddr> {
    let bytes: [u8; 16] = payload.get(at..at + 16)?.try_into().ok()?;
    Some(if i32::from(family) == libc::AF_INET {
        Ipv4Addr::new(bytes[0], bytes[1], bytes[2], bytes[3]).into()
    } else {
        Ipv6Addr::from(bytes).into()
    })
}

/// `struct inet_diag_msg`.
fn read_inet(kind: Kind, payload: &[u8]) -> Option<DiagSocket> {
    const LENGTH: usize = 72;
    const INFO: u16 = 2;
    const CGROUP: u16 = 21;
    let attributes = payload.get(LENGTH..)?;
    let family = payload[0];
    let timer = match payload[2] {
        1 => Some("retransmit"),
        2 => Some("keepalive"),
        3 => Some("time-wait"),
        4 => Some("zero-window-probe"),
        _ => None,
    };
    Some(DiagSocket {
        kind,
        inode: word(payload, 68)?,
        uid: word(payload, 64),
        state: state(payload[1]),
        details: Details::Inet {
            local_port: port(payload, 4)?,
            remote_port: port(payload, 6)?,
            local_address: address(family, payload, 8)?,
            remote_address: address(family, payload, 24)?,
            interface: word(payload, 40)?,
            timer,
            timer_milliseconds: word(payload, 52)?,
            retransmits: payload[3],
            receive_queue: word(payload, 56)?,
            send_queue: word(payload, 60)?,
            cgroup: attribute(attributes, CGROUP).and_then(|id| long(id, 0)),
            tcp: attribute(attributes, INFO).filter(|_| kind == Kind::Tcp).and_then(tcp_info),
        },
    })
}

fn tcp_info(info: &[u8]) -> Option<TcpInfo> {
    Some(TcpInfo {
        retransmission_timeout_us: word(info, 8)?,
        unacknowledged: word(info, 24)?,
        last_data_sent_ms: word(info, 44)?,
        last_data_received_ms: word(info, 52)?,
        last_acknowledged_ms: word(info, 56)?,
        round_trip_us: word(info, 68)?,
        total_retransmits: word(info, 100)?,
        // From here on kernels before 4.2 have nothing.
        bytes_acknowledged: long(info, 120).unwrap_or(0),
        bytes_received: long(info, 128).unwrap_or(0),
    })
}

fn state(number: u8) -> Option<&'static str> {
    const STATES: [&str; 12] = [
        "established",
        "syn-sent",
        "syn-received",
        "fin-wait-1",
        "fin-wait-2",
        "time-wait",
        "closed",
        "close-wait",
        "last-ack",
        "listening",
        "closing",
        "new-syn-received",
    ];
    STATES.get(usize::from(number.checked_sub(1)?)).copied()
}

/// `struct unix_diag_msg`.
fn read_unix(payload: &[u8]) -> Option<DiagSocket> {
    const LENGTH: usize = 16;
    const NAME: u16 = 0;
    const PEER: u16 = 2;
    const UID: u16 = 7;
    let attributes = payload.get(LENGTH..)?;
    Some(DiagSocket {
        kind: Kind::Unix,
        inode: word(payload, 4)?,
        uid: attribute(attributes, UID).and_then(ne32),
        state: state(payload[2]),
        details: Details::Unix {
            socket_type: payload[1],
            name: attribute(attributes, NAME).map(Escaped::from),
            peer: attribute(attributes, PEER).and_then(ne32),
        },
    })
}

/// `struct packet_diag_msg`.
fn read_packet(payload: &[u8]) -> Option<DiagSocket> {
    const LENGTH: usize = 16;
    const INFO: u16 = 0;
    let attributes = payload.get(LENGTH..)?;
    Some(DiagSocket {
        kind: Kind::Packet,
        inode: word(payload, 4)?,
        uid: None,
        state: None,
        details: Details::Packet {
            socket_type: payload[1],
            ethernet_protocol: u16::from_ne_bytes([payload[2], payload[3]]),
            interface: attribute(attributes, INFO).and_then(|info| word(info, 0)).unwrap_or(0),
        },
    })
}

/// `struct netlink_diag_msg`.
fn read_netlink(payload: &[u8]) -> Option<DiagSocket> {
    const LENGTH: usize = 28;
    const GROUPS: u16 = 1;
    let attributes = payload.get(LENGTH..)?;
    let groups = attribute(attributes, GROUPS);
    Some(DiagSocket {
        kind: Kind::Netlink,
        inode: word(payload, 16)?,
        uid: None,
        state: None,
        details: Details::Netlink {
            protocol: payload[2],
            port: word(payload, 4)?,
            groups: groups.and_then(|groups| long(groups, 0).or_else(|| word(groups, 0).map(u64::from))).unwrap_or(0),
        },
    })
}

/// `struct xdp_diag_msg`.
fn read_xdp(payload: &[u8]) -> Option<DiagSocket> {
    const LENGTH: usize = 16;
    const INFO: u16 = 1;
    let info = attribute(payload.get(LENGTH..)?, INFO);
    Some(DiagSocket {
        kind: Kind::Xdp,
        inode: word(payload, 4)?,
        uid: None,
        state: None,
        details: Details::Xdp {
            interface: info.and_then(|info| word(info, 0)).unwrap_or(0),
            queue: info.and_then(|info| word(info, 4)).unwrap_or(0),
        },
    })
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    for kind in Kind::ALL {
        assert!(read_socket(kind, bytes).is_none_or(|socket| socket.kind == kind));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::put;

    #[test]
    fn a_tcp_socket_is_read_whole() {
        let mut payload = vec![libc::AF_INET as u8, 1, 1, 3];
        payload.extend([0x9c, 0x40, 0x01, 0xbb]);
        payload.extend([10, 0, 0, 2].iter().chain(&[0; 12]));
        payload.extend([203, 0, 113, 9].iter().chain(&[0; 12]));
        for number in [0_u32, 7, 7, 250, 1, 2, 1000, 4711] {
            payload.extend(number.to_ne_bytes());
        }
        let mut info = vec![0; 136];
        info[8..12].copy_from_slice(&204_000_u32.to_ne_bytes());
        info[128..136].copy_from_slice(&9_u64.to_ne_bytes());
        put(&mut payload, 2, &info);
        let socket = read_socket(Kind::Tcp, &payload).unwrap();
        assert_eq!((socket.inode, socket.uid, socket.state), (4711, Some(1000), Some("established")));
        let Details::Inet { local_address, local_port, remote_address, remote_port, timer, send_queue, tcp, .. } =
            socket.details
        else {
            panic!("{socket:?}");
        };
        assert_eq!((local_address.to_string(), local_port), ("10.0.0.2".to_owned(), 40_000));
        assert_eq!((remote_address.to_string(), remote_port), ("203.0.113.9".to_owned(), 443));
        assert_eq!((timer, send_queue), (Some("retransmit"), 2));
        let tcp = tcp.unwrap();
        assert_eq!((tcp.retransmission_timeout_us, tcp.bytes_received), (204_000, 9));
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes: Vec<u8>, longer in proptest::collection::vec(0_u8.., 60..200)) {
            try_any(&bytes);
            try_any(&longer);
        }
    }
}
