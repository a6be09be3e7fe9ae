//! Witnesses on the far side of an attack: they count what arrived there, by attack.
//!
//! Every attack has a number. A packet belongs to it if it holds the attack's tag anywhere, or, since an opening TCP
//! segment of the kernel holds nothing, if it goes to the TCP port of that number.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use socket2::Socket;

use super::packet::{self, TCP, UDP};
use super::sockets::{PacketSocket, raw_ip, receive};
use crate::lab::{Kind, Netns, PATIENCE, Topology, eventually};

/// The TCP port of attack 0.
const FIRST_PORT: u16 = 20_000;
const PREFIX: &[u8; 6] = b"QTNlab";
/// Other IP protocols that attacks use: SCTP, and one set aside for experiments.
pub(crate) const OTHER_PROTOCOLS: [u8; 2] = [132, 253];

/// The bytes that every packet of attack `number` holds.
pub(crate) fn tag(number: u16) -> Vec<u8> {
    [PREFIX.as_slice(), &number.to_be_bytes()].concat()
}

/// The TCP port that attack `number` goes to where it goes by TCP.
pub(crate) fn port(number: u16) -> u16 {
    FIRST_PORT + number
}

enum Source {
    Frames(PacketSocket),
    Ipv4(Socket),
    Ipv6(Socket, u8),
}

/// Tells an attack's frames.
pub(crate) type Matcher = Box<dyn Fn(&[u8]) -> bool + Send + Sync>;

/// All that watch on one side, and what they counted.
#[derive(Default)]
pub(crate) struct Witnesses {
    sources: Vec<Source>,
    matchers: Vec<(u16, Matcher)>,
    seen: HashMap<u16, u64>,
}

impl Witnesses {
    /// Every frame that comes in on an interface, whatever its destination.
    pub(crate) fn frames(mut self, netns: &Netns, ifname: &str) -> Self {
        let socket = PacketSocket::open(netns, ifname);
        socket.promiscuous(ifname, netns);
        self.sources.push(Source::Frames(socket));
        self
    }

    /// Every frame that comes in on any interface that a namespace has, or will have.
    pub(crate) fn all_frames(mut self, netns: &Netns) -> Self {
        self.sources.push(Source::Frames(PacketSocket::everywhere(netns)));
        self
    }

    /// What the kernel's IP stacks in a namespace deliver locally.
    pub(crate) fn stack(mut self, netns: &Netns) -> Self {
        let any4 = IpAddr::from(Ipv4Addr::UNSPECIFIED);
        let any6 = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        let sources = netns.run(|| {
            let common = [TCP, UDP, OTHER_PROTOCOLS[0], OTHER_PROTOCOLS[1]];
            let v4 = common.into_iter().chain([1]).map(|protocol| Source::Ipv4(raw_ip(any4, protocol)));
            let v6 = common.into_iter().chain([packet::ICMPV6]);
            let v6 = v6.map(|protocol| Source::Ipv6(raw_ip(any6, protocol), protocol));
            v4.chain(v6).collect::<Vec<_>>()
        });
        self.sources.extend(sources);
        self
    }

    /// The peer, by every frame that reaches it; and the node, by its stack and, where it has one, its bridge.
    pub(crate) fn outside(topology: &Topology) -> Self {
        let witnesses = Self::default().frames(&topology.peer, "eth0").stack(&topology.node);
        // On a routed veth a packet socket would see what the host guard drops after it.
        if topology.routed() { witnesses } else { witnesses.frames(&topology.node, topology.node_device()) }
    }

    /// The pod, by its stack and, where something stands in front of it, by every frame.
    pub(crate) fn inside(topology: &Topology) -> Self {
        let witnesses = Self::default().stack(&topology.pod);
        match topology.kind {
            Kind::Macvlan | Kind::Cilium => witnesses,
            _ => witnesses.frames(&topology.pod, "eth0"),
        }
    }

    /// Counts every frame for attack `number` that `matches`: for those with no room for a tag.
    pub(crate) fn recognise(&mut self, number: u16, matches: impl Fn(&[u8]) -> bool + Send + Sync + 'static) {
        self.matchers.push((number, Box::new(matches)));
    }

    /// How many packets of an attack were seen since [`Witnesses::forget`].
    pub(crate) fn seen(&mut self, number: u16) -> u64 {
        self.drain();
        self.seen.get(&number).copied().unwrap_or_default()
    }

    /// Like [`Witnesses::seen`], but gives `least` of them a while to come.
    pub(crate) fn await_seen(&mut self, number: u16, least: u64) -> u64 {
        eventually(PATIENCE, || self.seen(number) >= least);
        self.seen(number)
    }

    pub(crate) fn forget(&mut self) {
        self.drain();
        self.seen.clear();
    }

    fn drain(&mut self) {
        let mut buffer = vec![0; 1 << 16];
        for source in &self.sources {
            loop {
                let number = match source {
                    Source::Frames(socket) => {
                        let Some(frame) = socket.receive(&mut buffer) else {
                            break;
                        };
                        let matcher = || self.matchers.iter().find(|(_, matches)| matches(frame));
                        of_tag(frame).or_else(|| of_frame(frame)).or_else(|| Some(matcher()?.0))
                    }
                    Source::Ipv4(socket) => {
                        let Some(length) = receive(socket, &mut buffer) else {
                            break;
                        };
                        of_tag(&buffer[..length]).or_else(|| of_ipv4(&buffer[..length]))
                    }
                    Source::Ipv6(socket, protocol) => {
                        let Some(length) = receive(socket, &mut buffer) else {
                            break;
                        };
                        let bytes = &buffer[..length];
                        of_tag(bytes).or_else(|| if *protocol == TCP { of_tcp(bytes) } else { None })
                    }
                };
                if let Some(number) = number {
                    *self.seen.entry(number).or_default() += 1;
                }
            }
        }
    }
}

fn of_tag(bytes: &[u8]) -> Option<u16> {
    let at = bytes.windows(PREFIX.len()).position(|window| window == PREFIX)? + PREFIX.len();
    Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn of_frame(frame: &[u8]) -> Option<u16> {
    match u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?) {
        packet::ETH_IPV4 => of_ipv4(&frame[14..]),
        packet::ETH_IPV6 if frame.get(20) == Some(&TCP) => of_tcp(frame.get(54..)?),
        _ => None,
    }
}

fn of_ipv4(packet: &[u8]) -> Option<u16> {
    if packet.get(9) != Some(&TCP) {
        return None;
    }
    of_tcp(packet.get(usize::from(packet[0] & 0xf) * 4..)?)
}

fn of_tcp(segment: &[u8]) -> Option<u16> {
    let port = u16::from_be_bytes(segment.get(2..4)?.try_into().ok()?);
    (FIRST_PORT..FIRST_PORT + 1000).contains(&port).then(|| port - FIRST_PORT)
}
