//! A network stack in user space, as gVisor and virtual machines bring: just enough of one to answer probes.
//!
//! It answers ARP, neighbour solicitations, and TCP on every port with one fixed reply. It knows no retransmission: the
//! wires here lose nothing.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::packet::{self, Arp, ETH_ARP, ETH_IPV4, ETH_IPV6, ICMPV6, Segment};
use crate::lab::topology::{POD_MAC, POD4, POD6};

const REPLY: &[u8] = b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok";
const FIN: u8 = 0x01;
const ACK: u8 = 0x10;

/// Where the stack gets its frames from and sends them to.
pub(crate) trait Wire: Send + 'static {
    /// One frame, if one is there.
    fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> Option<&'b [u8]>;
    fn send(&mut self, frame: &[u8]);
}

/// The stack of a pod at work on a wire; ends with the value.
pub(crate) struct Stack {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Stack {
    pub(crate) fn start(mut wire: impl Wire) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut buffer = vec![0; 1 << 16];
            while !stopped.load(Ordering::Relaxed) {
                match wire.receive(&mut buffer) {
                    Some(frame) => {
                        for answer in answers(frame) {
                            wire.send(&answer);
                        }
                    }
                    None => std::thread::sleep(Duration::from_micros(200)),
                }
            }
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn answers(frame: &[u8]) -> Vec<Vec<u8>> {
    try_answers(frame).unwrap_or_default()
}

fn try_answers(frame: &[u8]) -> Option<Vec<Vec<u8>>> {
    let source = frame.get(6..12)?.try_into().ok()?;
    match u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?) {
        ETH_ARP if frame.get(38..42)? == POD4.octets() && frame[21] == 1 => {
            let asker: [u8; 4] = frame[28..32].try_into().ok()?;
            let arp = Arp { operation: 2, sender: (POD_MAC, POD4), target: (source, asker.into()) };
            Some(vec![packet::ethernet(source, POD_MAC, ETH_ARP, &arp.bytes())])
        }
        ETH_IPV4 if frame.get(30..34)? == POD4.octets() && frame[23] == packet::TCP => {
            let from = Ipv4Addr::from(<[u8; 4]>::try_from(&frame[26..30]).ok()?);
            let end = 14 + usize::from(u16::from_be_bytes([frame[16], frame[17]]));
            let start = 14 + usize::from(frame[14] & 0xf) * 4;
            Some(tcp(frame.get(start..end)?, |segment, ports, data| {
                let bytes = packet::tcp(POD4.into(), from.into(), ports, segment, data);
                packet::ethernet(source, POD_MAC, ETH_IPV4, &packet::ipv4(POD4, from, packet::TCP, &[], &bytes))
            }))
        }
        ETH_IPV6 => {
            let from = Ipv6Addr::from(<[u8; 16]>::try_from(frame.get(22..38)?).ok()?);
            let wrap = |protocol, bytes: &[u8]| {
                packet::ethernet(source, POD_MAC, ETH_IPV6, &packet::ipv6(POD6, from, protocol, bytes))
            };
            let end = 54 + usize::from(u16::from_be_bytes([frame[18], frame[19]]));
            match frame[20] {
                ICMPV6 if frame.get(54) == Some(&135) && frame.get(62..78)? == POD6.octets() => {
                    // Solicited, override.
                    let flags = [0x60, 0, 0, 0];
                    let own = packet::link_layer_option(2, POD_MAC);
                    Some(vec![wrap(ICMPV6, &packet::neighbour(136, POD6, from, POD6, flags, &own))])
                }
                packet::TCP if frame[38..54] == POD6.octets() => {
                    Some(tcp(frame.get(54..end)?, |segment, ports, data| {
                        wrap(packet::TCP, &packet::tcp(POD6.into(), from.into(), ports, segment, data))
                    }))
                }
                _ => None,
            }
        }
        _ => None,
    }
}

/// The answers to one segment: its handshake, the reply to any data, the end. No state: all is in the segment.
fn tcp(segment: &[u8], wrap: impl Fn(Segment, (u16, u16), &[u8]) -> Vec<u8>) -> Vec<Vec<u8>> {
    let word = |at: usize| u32::from_be_bytes([segment[at], segment[at + 1], segment[at + 2], segment[at + 3]]);
    let ports = (u16::from_be_bytes([segment[2], segment[3]]), u16::from_be_bytes([segment[0], segment[1]]));
    let (sequence, acknowledged, flags) = (word(4), word(8), segment[13]);
    let data = segment.len() - usize::from(segment[12] >> 4) * 4;
    if flags & packet::SYN != 0 {
        let answer = Segment { flags: packet::SYN_ACK, sequence: 1000, acknowledgement: sequence.wrapping_add(1) };
        return vec![wrap(answer, ports, &[])];
    }
    if data > 0 {
        let next = sequence.wrapping_add(u32::try_from(data).unwrap());
        let reply = Segment { flags: packet::PSH_ACK, sequence: acknowledged, acknowledgement: next };
        let end = acknowledged.wrapping_add(u32::try_from(REPLY.len()).unwrap());
        let end = Segment { flags: FIN | ACK, sequence: end, acknowledgement: next };
        return vec![wrap(reply, ports, REPLY), wrap(end, ports, &[])];
    }
    if flags & FIN != 0 {
        let answer = Segment { flags: ACK, sequence: acknowledged, acknowledgement: sequence.wrapping_add(1) };
        return vec![wrap(answer, ports, &[])];
    }
    vec![]
}
