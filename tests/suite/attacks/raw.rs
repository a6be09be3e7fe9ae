//! Frames written by hand, out of the pod by every door that root has, and into a packet socket in the pod.

use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::topology::{PEER_MAC, PEER4, PEER6, POD_MAC, POD4, POD6};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::observe::{Matcher, Witnesses, tag};
use crate::lab::traffic::packet::{self, Arp, BROADCAST, ETH_ARP, ETH_IPV4, ETH_IPV6, ICMPV6, Segment};
use crate::lab::traffic::sockets::PacketSocket;
use crate::lab::traffic::xdp::XdpSocket;
use crate::lab::{Kind, Mac, Netns, Sandbox, Topology, eventually};

/// A frame with the number of its attack in it, or with something else by which to know it.
struct Crafted {
    name: String,
    make: Box<dyn Fn(u16) -> Vec<u8> + Send + Sync>,
    seen_as: Option<Matcher>,
}

impl Crafted {
    fn new(name: impl Into<String>, make: impl Fn(u16) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self { name: name.into(), make: Box::new(make), seen_as: None }
    }

    /// A frame that is always the same; `seen_as` knows it.
    fn exact(name: &str, frame: Vec<u8>, seen_as: impl Fn(&[u8]) -> bool + Send + Sync + 'static) -> Self {
        let make = move |_| frame.clone();
        Self { name: name.to_owned(), make: Box::new(make), seen_as: Some(Box::new(seen_as)) }
    }

    fn fired_by<'a>(self, door: &str, from: &'a Netns, send: impl Fn(&[u8]) + Send + Sync + 'a) -> Attack<'a> {
        let attack = Attack::new(format!("{} {door}", self.name), from, move |number| send(&(self.make)(number)));
        match self.seen_as {
            Some(matches) => attack.seen_as(matches),
            None => attack,
        }
    }
}

/// Packets that any network carries: to the peer, and to the node.
fn packets_out(topology: &Topology) -> Vec<Crafted> {
    let mut frames = Vec::new();
    let (node4, node6) = (topology.node4, topology.node6);
    let targets: [(Mac, IpAddr, IpAddr); 4] = [
        (topology.peer_hop_mac, PEER4.into(), POD4.into()),
        (topology.peer_hop_mac, PEER6.into(), POD6.into()),
        (topology.node_mac, node4.into(), POD4.into()),
        (topology.node_mac, node6.into(), POD6.into()),
    ];
    for (mac, to, from) in targets {
        let mut ip = |what: &str, protocol: u8, payload: Box<dyn Fn(u16) -> Vec<u8> + Send + Sync>| {
            frames.push(Crafted::new(format!("{what} to {to}"), move |number| {
                packet::ip_frame((mac, POD_MAC), (to, from), protocol, &payload(number))
            }));
        };
        ip("udp", packet::UDP, Box::new(move |n| packet::udp(from, to, (9, 9), &tag(n))));
        ip("icmp", if to.is_ipv4() { 1 } else { ICMPV6 }, Box::new(move |n| packet::echo(from, to, &tag(n))));
        for (what, flags) in [("syn with data", packet::SYN), ("data", packet::PSH_ACK), ("syn+ack", packet::SYN_ACK)] {
            let segment = Segment { flags, sequence: 1, acknowledgement: 1 };
            ip(what, packet::TCP, Box::new(move |n| packet::tcp(from, to, (8080, 40_000), segment, &tag(n))));
        }
    }
    // NOPs: nobody minds them, but the transport header is not where it usually is.
    frames.push(Crafted::new("udp behind ipv4 options", {
        let mac = topology.peer_hop_mac;
        move |number| {
            let datagram = packet::udp(POD4.into(), PEER4.into(), (9, 9), &tag(number));
            let packet = packet::ipv4(POD4, PEER4, packet::UDP, &[1; 8], &datagram);
            packet::ethernet(mac, POD_MAC, ETH_IPV4, &packet)
        }
    }));
    // Padding of its own (1 4 0 0 0 0) in a header of eight bytes; 60 is destination options, 0 hop-by-hop.
    for (what, header) in [("hop-by-hop options", 0), ("destination options", 60)] {
        for (to, mac) in [(PEER6, topology.peer_hop_mac), (node6, topology.node_mac)] {
            frames.push(Crafted::new(format!("tcp syn behind {what} to {to}"), move |number| {
                let segment = Segment { flags: packet::SYN, ..Segment::default() };
                let tcp = packet::tcp(POD6.into(), to.into(), (8080, 9), segment, &tag(number));
                let chain = [&[packet::TCP, 0, 1, 4, 0, 0, 0, 0][..], &tcp].concat();
                packet::ethernet(mac, POD_MAC, ETH_IPV6, &packet::ipv6(POD6, to, header, &chain))
            }));
        }
    }
    frames
}

/// What only a shared segment carries to the peer.
fn frames_out(topology: &Topology) -> Vec<Crafted> {
    let node4 = topology.node4;
    let node_mac = topology.node_mac;
    let datagram = |number| {
        packet::ipv4(POD4, PEER4, packet::UDP, &[], &packet::udp(POD4.into(), PEER4.into(), (9, 9), &tag(number)))
    };
    let arp = |operation, sender, target| Arp { operation, sender, target }.bytes();
    let pod = (POD_MAC, POD4);
    let with_tag = |bytes: Vec<u8>, number| [bytes, vec![0; 18], tag(number)].concat();
    let zero = [0; 6];
    vec![
        Crafted::new("vlan tag", move |n| packet::tagged(PEER_MAC, POD_MAC, 5, ETH_IPV4, &datagram(n))),
        Crafted::new("priority tag", move |n| packet::tagged(PEER_MAC, POD_MAC, 0, ETH_IPV4, &datagram(n))),
        Crafted::new("two vlan tags", move |n| {
            packet::with_tag(&packet::tagged(PEER_MAC, POD_MAC, 5, ETH_IPV4, &datagram(n)), 6)
        }),
        Crafted::new("802.1ad tag", move |n| {
            packet::ethernet(PEER_MAC, POD_MAC, 0x88a8, &[&[0, 5, 8, 0][..], &datagram(n)].concat())
        }),
        Crafted::new("unknown ethertype", |n| packet::ethernet(PEER_MAC, POD_MAC, 0x88b5, &tag(n))),
        Crafted::new("mpls", |n| packet::ethernet(PEER_MAC, POD_MAC, 0x8847, &tag(n))),
        Crafted::new("802.3 length", |n| packet::ethernet(PEER_MAC, POD_MAC, 60, &tag(n).repeat(8)[..60])),
        Crafted::new("unknown ethertype broadcast", |n| packet::ethernet(BROADCAST, POD_MAC, 0x88b5, &tag(n))),
        Crafted::new("someone else's source MAC", move |n| {
            packet::ethernet(PEER_MAC, [2, 0, 0, 0, 0, 0x66], ETH_IPV4, &datagram(n))
        }),
        Crafted::new("arp for the peer", move |n| {
            packet::ethernet(BROADCAST, POD_MAC, ETH_ARP, &with_tag(arp(1, pod, (zero, PEER4)), n))
        }),
        Crafted::new("gratuitous arp", move |n| {
            packet::ethernet(BROADCAST, POD_MAC, ETH_ARP, &with_tag(arp(1, pod, (zero, POD4)), n))
        }),
        Crafted::new("arp for the node with data in its padding", move |n| {
            packet::ethernet(BROADCAST, POD_MAC, ETH_ARP, &with_tag(arp(1, pod, (zero, node4)), n))
        }),
        Crafted::new("arp for the node behind a vlan tag", move |n| {
            packet::tagged(BROADCAST, POD_MAC, 5, ETH_ARP, &with_tag(arp(1, pod, (zero, node4)), n))
        }),
        Crafted::exact(
            "arp for the peer, as the kernel sends it",
            packet::ethernet(BROADCAST, POD_MAC, ETH_ARP, &arp(1, pod, (zero, PEER4))),
            |frame| is_arp(frame, 1) && frame[38..42] == PEER4.octets() && frame[28..32] == POD4.octets(),
        ),
        Crafted::exact(
            "arp for the node sent to the peer's MAC",
            packet::ethernet(PEER_MAC, POD_MAC, ETH_ARP, &arp(1, pod, (zero, node4))),
            move |frame| {
                is_arp(frame, 1) && frame[..6] == PEER_MAC && frame[38..42] == node4.octets() && frame[32..38] == zero
            },
        ),
        Crafted::exact(
            "arp for the node with data for a target MAC",
            packet::ethernet(BROADCAST, POD_MAC, ETH_ARP, &arp(1, pod, (*b"secret", node4))),
            |frame| is_arp(frame, 1) && &frame[32..38] == b"secret",
        ),
        Crafted::exact(
            "arp reply to the node, broadcast",
            packet::ethernet(BROADCAST, POD_MAC, ETH_ARP, &arp(2, pod, (node_mac, node4))),
            |frame| is_arp(frame, 2) && frame[..6] == BROADCAST && frame[22..28] == POD_MAC,
        ),
        Crafted::exact(
            "arp reply to the node, sent to the peer's MAC",
            packet::ethernet(PEER_MAC, POD_MAC, ETH_ARP, &arp(2, pod, (node_mac, node4))),
            |frame| is_arp(frame, 2) && frame[..6] == PEER_MAC && frame[22..28] == POD_MAC,
        ),
        Crafted::exact(
            "arp with the peer's address as the sender's",
            packet::ethernet(node_mac, POD_MAC, ETH_ARP, &arp(1, (POD_MAC, PEER4), (zero, node4))),
            |frame| is_arp(frame, 1) && frame[28..32] == PEER4.octets() && frame[22..28] == POD_MAC,
        ),
        Crafted::exact(
            "arp with a sender MAC that is data",
            packet::ethernet(
                BROADCAST,
                POD_MAC,
                ETH_ARP,
                &arp(1, ([2, b's', b'e', b'c', b'r', b'e'], POD4), (zero, node4)),
            ),
            |frame| is_arp(frame, 1) && &frame[23..28] == b"secre",
        ),
        Crafted::exact(
            "arp for the node from another source MAC",
            packet::ethernet(BROADCAST, [2, 0, 0, 0, 9, 9], ETH_ARP, &arp(1, pod, (zero, node4))),
            |frame| is_arp(frame, 1) && frame[6..12] == [2, 0, 0, 0, 9, 9],
        ),
        Crafted::exact(
            "arp of an operation that is none",
            packet::ethernet(BROADCAST, POD_MAC, ETH_ARP, &arp(9, pod, (zero, node4))),
            |frame| is_arp(frame, 9),
        ),
    ]
}

/// Neighbour solicitations for the node, each with one thing in it that does not belong there.
fn solicitations_out(topology: &Topology) -> Vec<Crafted> {
    let node6 = topology.node6;
    let group = packet::solicited_node(node6);
    let own = packet::link_layer_option(1, POD_MAC);
    let solicit = move |reserved, options: &[u8]| packet::neighbour(135, POD6, group, node6, reserved, options);
    let wrap = move |to: Ipv6Addr, mac: Mac, bytes: &[u8]| {
        packet::ethernet(mac, POD_MAC, ETH_IPV6, &packet::ipv6(POD6, to, ICMPV6, bytes))
    };
    let multicast = packet::multicast_mac(group);
    let clean = wrap(group, multicast, &solicit([0; 4], &own));
    let (to_change, trailing) = (clean.clone(), clean.clone());
    let changed = |at: usize, bytes: &[u8]| {
        let mut frame = to_change.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        frame
    };
    let is_ns =
        |frame: &[u8]| frame.len() >= 78 && frame[12..14] == [0x86, 0xdd] && frame[20] == ICMPV6 && frame[54] == 135;
    let peer_group = packet::solicited_node(PEER6);
    let for_peer = wrap(
        peer_group,
        packet::multicast_mac(peer_group),
        &packet::neighbour(135, POD6, peer_group, PEER6, [0; 4], &own),
    );
    let other_mac = packet::link_layer_option(1, *b"secret");
    let extra = [own.clone(), vec![14, 1], b"secret".to_vec()].concat();
    let advert =
        packet::neighbour(136, POD6, packet::ALL_NODES, POD6, [0x20, 0, 0, 0], &packet::link_layer_option(2, POD_MAC));
    vec![
        Crafted::exact("solicitation for the peer", for_peer, move |f| is_ns(f) && f[62..78] == PEER6.octets()),
        Crafted::exact("solicitation with a flow label", changed(14, &[0x60, 0x0a, 0x51, 0x17]), move |f| {
            is_ns(f) && f[15..18] == [0x0a, 0x51, 0x17]
        }),
        Crafted::exact("solicitation with a traffic class", changed(14, &[0x65, 0x10]), move |f| {
            is_ns(f) && f[14..16] == [0x65, 0x10]
        }),
        Crafted::exact(
            "solicitation with a reserved field",
            wrap(group, multicast, &solicit(*b"QTN!", &own)),
            move |f| is_ns(f) && &f[58..62] == b"QTN!",
        ),
        Crafted::exact("solicitation with a wrong checksum", changed(56, &[0x51, 0x17]), move |f| {
            is_ns(f) && f[56..58] == [0x51, 0x17]
        }),
        Crafted::exact(
            "solicitation with another MAC in it",
            wrap(group, multicast, &solicit([0; 4], &other_mac)),
            move |f| is_ns(f) && f.get(80..86) == Some(b"secret".as_slice()),
        ),
        Crafted::exact(
            "solicitation with one option more",
            wrap(group, multicast, &solicit([0; 4], &extra)),
            move |f| is_ns(f) && f.get(88..94) == Some(b"secret".as_slice()),
        ),
        Crafted::exact("solicitation without an option", wrap(group, multicast, &solicit([0; 4], &[])), move |f| {
            is_ns(f) && f[18..20] == [0, 24]
        }),
        Crafted::new("solicitation with data behind its end", move |n| [trailing.clone(), tag(n)].concat()),
        Crafted::exact("solicitation to the peer's MAC", wrap(group, PEER_MAC, &solicit([0; 4], &own)), move |f| {
            is_ns(f) && f[..6] == PEER_MAC
        }),
        Crafted::exact(
            "solicitation to all nodes",
            wrap(
                packet::ALL_NODES,
                packet::multicast_mac(packet::ALL_NODES),
                &packet::neighbour(135, POD6, packet::ALL_NODES, node6, [0; 4], &own),
            ),
            move |f| is_ns(f) && f[38..54] == packet::ALL_NODES.octets(),
        ),
        Crafted::new("solicitation behind a vlan tag", move |n| packet::with_tag(&[clean.clone(), tag(n)].concat(), 5)),
        Crafted::exact(
            "unsolicited advertisement",
            wrap(packet::ALL_NODES, packet::multicast_mac(packet::ALL_NODES), &advert),
            |f| f.len() >= 78 && f[54] == 136 && f[22..38] == POD6.octets(),
        ),
    ]
}

fn is_arp(frame: &[u8], operation: u16) -> bool {
    frame.len() >= 42 && frame[12..14] == [8, 6] && frame[20..22] == operation.to_be_bytes()
}

/// Sends a frame.
type Door = Arc<dyn Fn(&[u8]) + Send + Sync>;

/// A battery for each door that frames leave by: a packet socket, one that goes past the queueing discipline, AF_XDP.
fn through_every_door(topology: &Topology) -> Vec<Battery<'_>> {
    let pod = &topology.pod;
    let battery = |door: &str, send: Door| {
        let mut frames = packets_out(topology);
        if !topology.routed() {
            frames.extend(frames_out(topology));
            frames.extend(solicitations_out(topology));
        }
        let attack = |frame: Crafted| {
            let send = send.clone();
            frame.fired_by(door, pod, move |bytes| send(bytes))
        };
        Battery::new(frames.into_iter().map(attack).collect(), Witnesses::outside(topology))
    };
    let (plain, bypass) = (PacketSocket::open(pod, "eth0"), PacketSocket::open(pod, "eth0"));
    bypass.bypass_qdisc();
    let mut batteries = vec![
        battery("by a packet socket", Arc::new(move |bytes| drop(plain.send(bytes)))),
        battery("past the qdisc", Arc::new(move |bytes| drop(bypass.send(bytes)))),
    ];
    // Without a host's end nothing stands behind the driver; that is said by `partial`, and tested elsewhere.
    if topology.kind != Kind::Macvlan {
        let socket = Mutex::new(XdpSocket::open(pod, "eth0").unwrap());
        batteries.push(battery("by AF_XDP", Arc::new(move |bytes| drop(socket.lock().unwrap().send(bytes)))));
    }
    batteries
}

fn no_frame_leaves(kind: Kind) {
    no_frame_leaves_by(kind, &json!({}));
}

fn no_frame_leaves_by(kind: Kind, policy: &Value) {
    let topology = Topology::new(kind);
    let sandbox = Sandbox::add_with(&topology, &json!({ "policy": policy }));
    let mut batteries = through_every_door(&topology);
    batteries.iter_mut().for_each(Battery::assert_all_arrive);
    sandbox.isolate("");
    batteries.iter_mut().for_each(Battery::assert_none_arrives);
    sandbox.release();
    batteries.iter_mut().for_each(Battery::assert_all_arrive);
}

#[test]
fn no_frame_leaves_over_a_bridge() {
    no_frame_leaves(Kind::Bridge);
}

/// An allow-list opens the link for its own next hops. These are nobody's addresses here, so nothing may reach the peer.
#[test]
fn no_frame_leaves_beside_an_allow_list() {
    let rule = |peer: &str, protocol: &str| json!({ "direction": "egress", "peer": peer, "protocol": protocol });
    no_frame_leaves_by(
        Kind::Bridge,
        &json!({ "allow": [
            rule("10.77.0.4/32", "tcp"),
            rule("fd77::4/128", "tcp"),
            rule("192.0.2.7/32", "udp"),
            rule("2001:db8::7/128", "udp"),
        ] }),
    );
}

#[test]
fn no_frame_leaves_over_ptp() {
    no_frame_leaves(Kind::Ptp);
}

#[test]
fn no_frame_leaves_over_calico() {
    no_frame_leaves(Kind::Calico);
}

#[test]
fn no_frame_leaves_over_macvlan() {
    no_frame_leaves(Kind::Macvlan);
}

/// Frames from another pod and from the node itself, to a packet socket in the pod.
fn no_frame_comes_in(kind: Kind) {
    let topology = Topology::new(kind);
    let sandbox = Sandbox::add(&topology);
    let mut attacks = Vec::new();
    let mut senders = vec![("from the node", &topology.node, topology.node_device(), topology.node_mac)];
    if !topology.routed() {
        senders.push(("from the peer", &topology.peer, "eth0", PEER_MAC));
    }
    for (door, netns, device, mac) in senders {
        let socket = Arc::new(PacketSocket::open(netns, device));
        let datagram = |n| packet::udp(PEER4.into(), POD4.into(), (9, 9), &tag(n));
        let udp = move |n| packet::ip_frame((POD_MAC, mac), (POD4.into(), PEER4.into()), packet::UDP, &datagram(n));
        let reply = move |n| {
            let arp = Arp { operation: 2, sender: (mac, PEER4), target: (POD_MAC, POD4) };
            packet::ethernet(POD_MAC, mac, ETH_ARP, &[arp.bytes(), tag(n)].concat())
        };
        let frames = [
            Crafted::new("udp", udp),
            Crafted::new("vlan tag", move |n| packet::with_tag(&udp(n), 5)),
            Crafted::new("unknown ethertype", move |n| packet::ethernet(POD_MAC, mac, 0x88b5, &tag(n))),
            Crafted::new("broadcast", move |n| packet::ethernet(BROADCAST, mac, 0x88b5, &tag(n))),
            Crafted::new("arp reply", reply),
        ];
        attacks.extend(frames.into_iter().map(|frame| {
            let socket = socket.clone();
            frame.fired_by(door, netns, move |bytes| drop(socket.send(bytes)))
        }));
    }
    let mut battery = Battery::new(attacks, Witnesses::inside(&topology));
    battery.assert_all_arrive();
    sandbox.isolate("");
    battery.assert_none_arrives();
    sandbox.release();
    battery.assert_all_arrive();
}

#[test]
fn no_frame_comes_in_over_a_bridge() {
    no_frame_comes_in(Kind::Bridge);
}

#[test]
fn no_frame_comes_in_over_ptp() {
    no_frame_comes_in(Kind::Ptp);
}

#[test]
fn no_frame_comes_in_over_calico() {
    no_frame_comes_in(Kind::Calico);
}

/// What the node believes about the peer stays as it was: no frame from the pod, however well formed, changes it.
#[test]
fn the_nodes_neighbours_are_not_poisoned() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let node_mac = topology.node_mac;
    let (node4, node6) = (topology.node4, topology.node6);
    let arp = |operation| {
        let target = if operation == 1 { [0; 6] } else { node_mac };
        let arp = Arp { operation, sender: (POD_MAC, PEER4), target: (target, node4) };
        packet::ethernet(node_mac, POD_MAC, ETH_ARP, &arp.bytes())
    };
    let own = packet::link_layer_option(1, POD_MAC);
    let solicitation = packet::neighbour(135, PEER6, node6, node6, [0; 4], &own);
    let solicitation = packet::ipv6(PEER6, node6, ICMPV6, &solicitation);
    let lies = [
        ("arp request", IpAddr::from(PEER4), arp(1)),
        ("neighbour solicitation", PEER6.into(), packet::ethernet(node_mac, POD_MAC, ETH_IPV6, &solicitation)),
    ];
    let socket = PacketSocket::open(&topology.pod, "eth0");
    let poisoned = |about: IpAddr, lie: &[u8]| {
        // The entry is forgotten first: one that was confirmed a moment ago resists by itself.
        topology.node.sh(&format!("ip neigh del {about} dev br0 || true"));
        let _ = socket.send(lie);
        eventually(Duration::from_millis(150), || {
            topology.node.sh(&format!("ip neigh show {about} dev br0")).contains("02:00:00:00:00:02")
        })
    };
    for (name, about, lie) in &lies {
        assert!(poisoned(*about, lie), "the control fails: {name}");
    }
    sandbox.isolate("");
    for (name, about, lie) in &lies {
        assert!(!poisoned(*about, lie), "{name} poisons the node about {about}");
    }
}
