//! Flows that the kernel tracks in a netns (`nf_conntrack`), where it does.
//!
//! It is only asked where the module is there already: asking would load it, and nothing here changes what a node does.

use std::net::IpAddr;
use std::path::Path;

use nix::sys::socket::SockProtocol;
use serde::Serialize;

use crate::kernel::netlink::{NetlinkError, Socket, attribute, be32};

const GET: u16 = (1 << 8) | 1;
/// `struct nfgenmsg`.
const HEADER: usize = 4;

/// One direction of a flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Direction {
    /// From where.
    pub source: IpAddr,
    /// To where.
    pub destination: IpAddr,
    /// From which port, where the protocol has ports.
    pub source_port: Option<u16>,
    /// To which.
    pub destination_port: Option<u16>,
    /// What was counted, where the kernel counts.
    pub packets: Option<u64>,
    /// Bytes.
    pub bytes: Option<u64>,
}

/// A tracked flow.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Flow {
    /// The IP protocol.
    pub protocol: u8,
    /// As it was opened.
    pub original: Direction,
    /// As answers come: what was translated shows here.
    pub reply: Direction,
    /// The kernel's `IPS_…` bits.
    pub status: u32,
    /// In how many seconds it is forgotten.
    pub timeout_seconds: Option<u32>,
    /// The kernel's number of the TCP state.
    pub tcp_state: Option<u8>,
}

impl Flow {
    /// Whether an address is an end of it.
    #[must_use]
    pub fn has_end(&self, address: IpAddr) -> bool {
        [&self.original, &self.reply].iter().any(|way| way.source == address || way.destination == address)
    }
}

/// Whether flows are tracked at all in this kernel. Asks in the calling thread's netns.
#[must_use]
pub fn is_loaded() -> bool {
    Path::new("/proc/sys/net/netfilter/nf_conntrack_count").exists()
}

/// The tracked flows of the calling thread's netns for which `is_wanted`; those beyond `most` are only counted.
///
/// # Errors
/// See [`NetlinkError`].
pub fn list(most: usize, is_wanted: impl Fn(&Flow) -> bool) -> Result<(Vec<Flow>, usize), NetlinkError> {
    let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
    let total = std::cell::Cell::new(0);
    let flows = socket.dump_all_seen("list the tracked flows", GET, &[0; HEADER], |payload| {
        let flow = read_flow(payload).filter(&is_wanted)?;
        total.set(total.get() + 1);
        (total.get() <= most).then_some(flow)
    })?;
    Ok((flows, total.get()))
}

/// Reads one.
#[must_use]
pub fn read_flow(payload: &[u8]) -> Option<Flow> {
    const ORIGINAL: u16 = 1;
    const REPLY: u16 = 2;
    const STATUS: u16 = 3;
    const PROTOCOL_INFO: u16 = 4;
    const TIMEOUT: u16 = 7;
    const COUNTERS_ORIGINAL: u16 = 9;
    const COUNTERS_REPLY: u16 = 10;
    const TCP: u16 = 1;
    const TCP_STATE: u16 = 1;
    let found = payload.get(HEADER..)?;
    let (protocol, original) = read_direction(attribute(found, ORIGINAL)?, attribute(found, COUNTERS_ORIGINAL))?;
    let (_, reply) = read_direction(attribute(found, REPLY)?, attribute(found, COUNTERS_REPLY))?;
    let tcp = attribute(found, PROTOCOL_INFO).and_then(|info| attribute(info, TCP));
    Some(Flow {
        protocol,
        original,
        reply,
        status: attribute(found, STATUS).and_then(be32).unwrap_or(0),
        timeout_seconds: attribute(found, TIMEOUT).and_then(be32),
        tcp_state: tcp.and_then(|tcp| attribute(tcp, TCP_STATE)?.first().copied()),
    })
}

fn read_direction(tuple: &[u8], counters: Option<&[u8]>) -> Option<(u8, Direction)> {
    const IP: u16 = 1;
    const PROTOCOL: u16 = 2;
    const NUMBER: u16 = 1;
    const SOURCE_PORT: u16 = 2;
    const DESTINATION_PORT: u16 = 3;
    const PACKETS: u16 = 1;
    const BYTES: u16 = 2;
    let (ip, protocol) = (attribute(tuple, IP)?, attribute(tuple, PROTOCOL)?);
    let address = |v4, v6| match (attribute(ip, v4), attribute(ip, v6)) {
        (Some(bytes), _) => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        (None, Some(bytes)) => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
        (None, None) => None,
    };
    let port = |kind| attribute(protocol, kind).and_then(|port| port.try_into().ok()).map(u16::from_be_bytes);
    let count = |kind| counters.and_then(|counters| attribute(counters, kind)?.try_into().ok()).map(u64::from_be_bytes);
    let direction = Direction {
        source: address(1, 3)?,
        destination: address(2, 4)?,
        source_port: port(SOURCE_PORT),
        destination_port: port(DESTINATION_PORT),
        packets: count(PACKETS),
        bytes: count(BYTES),
    };
    Some((*attribute(protocol, NUMBER)?.first()?, direction))
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    if let Some(flow) = read_flow(bytes) {
        assert!(flow.has_end(flow.original.source) && flow.has_end(flow.reply.destination));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::{nest, put};

    #[test]
    fn a_flow_is_read_with_both_its_directions() {
        let tuple = |bytes: &mut Vec<u8>, kind, from: [u8; 4], to: [u8; 4], ports: (u16, u16)| {
            nest(bytes, kind, |bytes| {
                nest(bytes, 1, |bytes| {
                    put(bytes, 1, &from);
                    put(bytes, 2, &to);
                });
                nest(bytes, 2, |bytes| {
                    put(bytes, 1, &[6]);
                    put(bytes, 2, &ports.0.to_be_bytes());
                    put(bytes, 3, &ports.1.to_be_bytes());
                });
            });
        };
        let mut payload = vec![0; HEADER];
        tuple(&mut payload, 1, [10, 0, 0, 2], [10, 96, 0, 1], (40_000, 443));
        tuple(&mut payload, 2, [192, 0, 2, 1], [10, 0, 0, 2], (6443, 40_000));
        put(&mut payload, 7, &60_u32.to_be_bytes());
        nest(&mut payload, 9, |bytes| put(bytes, 1, &5_u64.to_be_bytes()));
        let flow = read_flow(&payload).unwrap();
        assert_eq!((flow.protocol, flow.timeout_seconds, flow.original.packets), (6, Some(60), Some(5)));
        assert_eq!(flow.reply.source_port, Some(6443));
        assert!(flow.has_end("192.0.2.1".parse().unwrap()) && !flow.has_end("192.0.2.2".parse().unwrap()));
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes: Vec<u8>) {
            try_any(&bytes);
        }
    }
}
