//! What is sent at every step, into the pod and out of it, and who sees it arrive.
//!
//! Everything of one walk is sent by threads of one CPU, whose backlog the kernel works off in order: when a marker
//! that was sent last has come back, over as many hops as there are, whatever was sent before it has arrived or was dropped.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, UdpSocket};

use socket2::Socket;

use crate::lab::topology::{PEER_MAC, PEER4, PEER6};
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet::{self, BROADCAST};
use crate::lab::traffic::sockets::{PacketSocket, address, udp_on};
use crate::lab::{Mac, Netns, PATIENCE};

/// Indices of interfaces that are tried: a walk makes fewer in each of its namespaces.
const INDICES: std::ops::Range<u32> = 2..64;
/// More hops than a packet has between any two stations, an answer of a neighbour to a question included.
const HOPS: u8 = 12;
/// No policy of a walk lets this port through.
const PORT: u16 = 9;
/// Set aside for experiments.
const ETHERTYPE: u16 = 0x88b5;

/// Whoever sends in one namespace: datagrams by its routes, frames out of whatever interfaces it has.
pub(super) struct Sender {
    frames: PacketSocket,
    udp4: Socket,
    udp6: Socket,
}

impl Sender {
    pub(super) fn new(netns: &Netns) -> Self {
        let (udp4, udp6) =
            netns.run(|| (udp_on(None, Ipv4Addr::UNSPECIFIED.into()), udp_on(None, Ipv6Addr::UNSPECIFIED.into())));
        Self { frames: PacketSocket::everywhere(netns), udp4, udp6 }
    }

    fn send(&self, number: u16, to: &[IpAddr], frames: &[Vec<u8>]) {
        // A refusal by the sender's own kernel is no arrival.
        for &to in to {
            let socket = if to.is_ipv4() { &self.udp4 } else { &self.udp6 };
            let _ = socket.send_to(&tag(number), &address(to, PORT));
        }
        for index in INDICES {
            for frame in frames {
                if self.frames.send_on(index, frame).is_err_and(|error| is_absent(&error)) {
                    break;
                }
            }
        }
    }
}

/// Whether there is no interface of that index.
fn is_absent(error: &std::io::Error) -> bool {
    error.raw_os_error() == Some(libc::ENXIO)
}

/// A pod as its traffic sees it.
#[derive(Clone, Copy)]
pub(super) struct Address {
    pub(super) v4: Ipv4Addr,
    pub(super) v6: Ipv6Addr,
    pub(super) mac: Mac,
    /// Where its frames for the peer go.
    pub(super) peer_hop: Mac,
    /// Where the peer's frames for it go.
    pub(super) hop: Mac,
}

/// The node's address.
pub(super) const NODE4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub(super) const NODE6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1);

/// Out of the pod: to the peer and to the node. `from` are those that could send for it, wherever its interface is.
pub(super) fn fire_out(from: [&Sender; 2], pod: Address, number: u16) {
    let udp = |to: Ipv4Addr, hop| {
        let datagram = packet::udp(pod.v4.into(), to.into(), (PORT, PORT), &tag(number));
        packet::ip_frame((hop, pod.mac), (to.into(), pod.v4.into()), packet::UDP, &datagram)
    };
    let frames = [udp(PEER4, pod.peer_hop), udp(NODE4, BROADCAST)];
    for sender in from {
        sender.send(number, &[PEER4.into(), PEER6.into(), NODE4.into()], &frames);
    }
}

/// Into the pod, from the peer and the node.
pub(super) fn fire_in(from: [&Sender; 2], pod: Address, number: u16) {
    let datagram = packet::udp(PEER4.into(), pod.v4.into(), (PORT, PORT), &tag(number));
    let frames = [
        packet::ip_frame((pod.hop, PEER_MAC), (pod.v4.into(), PEER4.into()), packet::UDP, &datagram),
        packet::ethernet(BROADCAST, PEER_MAC, ETHERTYPE, &tag(number)),
    ];
    for sender in from {
        sender.send(number, &[pod.v4.into(), pod.v6.into()], &frames);
    }
}

/// Those outside: the peer by every frame, the node by its bridges and by its stack.
pub(super) fn outside(node: &Netns, peer: &Netns, bridges: [&str; 2]) -> Witnesses {
    bridges
        .into_iter()
        .fold(Witnesses::default().all_frames(peer), |witnesses, bridge| witnesses.frames(node, bridge))
        .stack(node)
}

/// Those inside: every frame that reaches the pod or the namespace below it.
pub(super) fn inside(pod: &Netns, below: &Netns) -> Witnesses {
    Witnesses::default().all_frames(pod).all_frames(below)
}

/// Tells when nothing is on its way any more.
pub(super) struct Marker(UdpSocket);

impl Marker {
    pub(super) fn new(netns: &Netns) -> Self {
        let socket = netns.run(|| UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap());
        socket.connect(socket.local_addr().unwrap()).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self(socket)
    }

    pub(super) fn pass(&self) {
        for hop in 0..HOPS {
            self.0.send(&[hop]).unwrap();
            let mut buffer = [0; 1];
            self.0.recv(&mut buffer).expect("the marker does not come back");
            assert_eq!(buffer, [hop]);
        }
    }
}
