//! The kubelet's probes reach an isolated pod, and nothing that looks like them does.

use std::io::{ErrorKind, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::json;

use crate::lab::topology::{PEER_MAC, PEER4, POD_MAC, POD4, POD6};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::flood::Flood;
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet::{self, Arp, BROADCAST, Segment};
use crate::lab::traffic::server::{Server, http_probe, http_probe_here, tcp_probe};
use crate::lab::traffic::sockets::{PacketSocket, address, at_an_address_used_before, become_owner};
use crate::lab::{Kind, Mac, Netns, PATIENCE, Sandbox, Topology, eventually};

const POD: [IpAddr; 2] = [IpAddr::V4(POD4), IpAddr::V6(POD6)];
/// What the kubelet gives a probe. A segment that was lost is not sent again before that.
const PROBE_TIMEOUT: Duration = Duration::from_secs(1);
/// For what must not be answered.
const SHORT: Duration = Duration::from_millis(150);

fn probes_pass(kind: Kind) {
    let topology = Topology::new(kind);
    let sandbox = Sandbox::add(&topology);
    let server = Server::start(&topology.pod, 8080);
    sandbox.isolate("");
    for neighbours in ["known", "forgotten"] {
        for to in POD {
            if neighbours == "forgotten" {
                topology.forget_neighbours();
            }
            assert!(http_probe(&topology.node, to, server.port(), PATIENCE), "http to {to}, neighbours {neighbours}");
            assert!(tcp_probe(&topology.node, to, server.port(), PATIENCE), "tcp to {to}, neighbours {neighbours}");
        }
    }
    // The control for the port: nothing listens, and the node is told so by the pod's own reset.
    let refused = topology.node.run(|| TcpStream::connect_timeout(&(POD4, 8081).into(), PATIENCE));
    assert_eq!(refused.unwrap_err().kind(), std::io::ErrorKind::ConnectionRefused);
}

#[test]
fn probes_pass_on_a_bridge() {
    probes_pass(Kind::Bridge);
}

#[test]
fn probes_pass_on_ptp() {
    probes_pass(Kind::Ptp);
}

#[test]
fn probes_pass_on_calico() {
    probes_pass(Kind::Calico);
}

#[test]
fn probes_pass_on_macvlan() {
    probes_pass(Kind::Macvlan);
}

fn a_thousand_probes_pass_through_a_flood(kind: Kind, spoofed: bool) {
    let topology = Topology::new(kind);
    let sandbox = Sandbox::add(&topology);
    let server = Server::start(&topology.pod, 8080);
    sandbox.isolate("");
    // From the peer, as itself and as the node, from more ports than any table has room for.
    let ports = 40_000_u16;
    let frames = (0..ports).map(|number| {
        let from = if spoofed && number % 2 == 0 { topology.node4 } else { PEER4 };
        let segment = Segment { flags: packet::SYN, ..Segment::default() };
        let tcp = packet::tcp(from.into(), POD4.into(), (1024 + number, 8080), segment, &[]);
        packet::ip_frame((topology.pod_hop_mac, PEER_MAC), (POD4.into(), from.into()), packet::TCP, &tcp)
    });
    let flood = Flood::start(&topology.peer, "eth0", frames.collect());
    // All the ports once: that takes its time on a busy machine.
    assert!(eventually(PATIENCE, || flood.sent() >= ports.into()), "the flood does not start");
    let failed = topology
        .node
        .run(|| (0..1000).filter(|number| !http_probe_here(POD[number % 2], server.port(), PROBE_TIMEOUT)).count());
    assert_eq!(failed, 0, "of 1000 probes");
}

#[test]
fn a_thousand_probes_pass_through_a_flood_on_a_bridge() {
    a_thousand_probes_pass_through_a_flood(Kind::Bridge, true);
}

#[test]
fn a_thousand_probes_pass_through_a_flood_on_ptp() {
    a_thousand_probes_pass_through_a_flood(Kind::Ptp, true);
}

#[test]
fn a_thousand_probes_pass_through_a_flood_on_calico() {
    a_thousand_probes_pass_through_a_flood(Kind::Calico, true);
}

/// No guard here, and so nothing that would tell a packet of the node from one that says it is.
#[test]
fn a_thousand_probes_pass_through_a_flood_without_a_host_end() {
    a_thousand_probes_pass_through_a_flood(Kind::Macvlan, false);
}

#[test]
fn only_the_ports_given_are_probed() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add_with(&topology, &json!({ "policy": { "probes": { "ports": [8080] } } }));
    let given = Server::start(&topology.pod, 8080);
    let other = Server::start(&topology.pod, 8081);
    let probe = |to, server: &Server, limit| http_probe(&topology.node, to, server.port(), limit);
    for to in POD {
        assert!(probe(to, &given, PATIENCE) && probe(to, &other, PATIENCE), "the control fails: {to}");
    }
    sandbox.isolate("");
    for to in POD {
        assert!(probe(to, &given, PATIENCE), "{to}");
        assert!(!probe(to, &other, SHORT), "{to}");
    }
    // The mark's policy replaces the conflist's.
    sandbox.isolate_with(&json!({ "probes": false }));
    for to in POD {
        assert!(!probe(to, &given, SHORT), "{to}");
        assert!(!probe(to, &other, SHORT), "{to}");
    }
}

/// Connections that look like probes: by another user of the node, by another pod, by a NodePort.
fn nothing_like_a_probe_passes(kind: Kind) {
    let topology = Topology::new(kind);
    let sandbox = Sandbox::add(&topology);
    let server = Server::start(&topology.pod, 8080);
    topology.node.sysctl("net.ipv4.ip_forward", "1");
    topology.node.sysctl("net.ipv6.conf.all.forwarding", "1");
    topology.node.sh(&format!(
        "nft -f - <<'END'
         table inet services {{
           chain prerouting {{ type nat hook prerouting priority dstnat;
             fib daddr type local meta nfproto ipv4 tcp dport 30080 dnat ip to {POD4}:8080
             fib daddr type local meta nfproto ipv6 tcp dport 30080 dnat ip6 to [{POD6}]:8080; }}
           chain output {{ type nat hook output priority -100;
             fib daddr type local meta nfproto ipv4 tcp dport 30080 dnat ip to {POD4}:8080; }}
           chain postrouting {{ type nat hook postrouting priority srcnat; masquerade; }}
         }}
END"
    ));
    let nobody = |to: IpAddr, limit| {
        topology.node.run(|| {
            become_owner(65_534);
            http_probe_here(to, 8080, limit)
        })
    };
    let [node4, node6] = topology.node_addresses();
    let nobody_by_node_port = |limit| {
        topology.node.run(|| {
            become_owner(65_534);
            http_probe_here(node4, 30_080, limit)
        })
    };
    let all = |limit: Duration| {
        vec![
            ("nobody on the node, v4", nobody(POD4.into(), limit)),
            ("nobody on the node, v6", nobody(POD6.into(), limit)),
            ("nobody on the node by the NodePort", nobody_by_node_port(limit)),
            ("peer, v4", http_probe(&topology.peer, POD4.into(), server.port(), limit)),
            ("peer, v6", http_probe(&topology.peer, POD6.into(), server.port(), limit)),
            ("NodePort, v4", http_probe(&topology.peer, node4, 30_080, limit)),
            ("NodePort, v6", http_probe(&topology.peer, node6, 30_080, limit)),
        ]
    };
    let failed: Vec<_> = all(PATIENCE).into_iter().filter(|(_, passed)| !passed).collect();
    assert!(failed.is_empty(), "the control fails: {failed:?}");
    sandbox.isolate("");
    let passed: Vec<_> = all(SHORT).into_iter().filter(|(_, passed)| *passed).collect();
    assert!(passed.is_empty(), "{passed:?}");
    for to in POD {
        assert!(http_probe(&topology.node, to, server.port(), PATIENCE), "the node's own probe of {to}");
    }
}

#[test]
fn nothing_like_a_probe_passes_on_a_bridge() {
    nothing_like_a_probe_passes(Kind::Bridge);
}

#[test]
fn nothing_like_a_probe_passes_on_ptp() {
    nothing_like_a_probe_passes(Kind::Ptp);
}

#[test]
fn nothing_like_a_probe_passes_on_calico() {
    nothing_like_a_probe_passes(Kind::Calico);
}

/// The pod opened a flow to the node from the very port that is probed; it must not go on as if it were an answer.
#[test]
fn a_flow_of_the_pod_from_the_probed_port_dies() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    for (near, far) in POD.into_iter().zip(topology.node_addresses()) {
        let listener = topology.node.run(|| TcpListener::bind((far, 0)).unwrap());
        let socket = topology.pod.run(|| {
            let domain = if near.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            socket.bind(&address(near, 8080)).unwrap();
            socket.connect(&listener.local_addr().unwrap().into()).unwrap();
            socket
        });
        let mut pod_end = TcpStream::from(socket);
        let (mut node_end, _) = listener.accept().unwrap();
        node_end.set_read_timeout(Some(SHORT)).unwrap();
        let mut passes = |stage: &str| {
            let _ = pod_end.write_all(stage.as_bytes());
            let mut buffer = [0; 64];
            std::io::Read::read(&mut node_end, &mut buffer).is_ok_and(|length| length > 0)
        };
        assert!(passes("before"), "the control fails");
        sandbox.isolate("");
        assert!(!passes("after"), "data of the old flow arrives on the node");
        // The node's side of it is root's too, and speaks: that opens nothing either.
        let _ = node_end.write_all(b"go on");
        let mut node_end = node_end;
        let _ = pod_end.write_all(b"again");
        let mut buffer = [0; 64];
        assert!(
            !std::io::Read::read(&mut node_end, &mut buffer).is_ok_and(|length| length > 0),
            "what the node says re-opens the old flow"
        );
        drop((pod_end, node_end));
        sandbox.release();
    }
}

/// While a probe's connection is open, its answers are let out: to the node, and to nobody else on the segment.
#[test]
fn an_answer_to_a_probe_reaches_the_node_only() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let listener = topology.pod.run(|| TcpListener::bind(SocketAddr::from(([0; 16], 8080))).unwrap());
    let probes: Vec<_> = POD
        .into_iter()
        .map(|to| topology.node.run(|| TcpStream::connect_timeout(&(to, 8080).into(), PATIENCE).unwrap()))
        .collect();
    let _accepted: Vec<_> = probes.iter().map(|_| listener.accept().unwrap()).collect();
    // The tuples must be known to an isolated pod: connect anew once it is.
    let fire = |probes: &[TcpStream]| {
        let socket = std::sync::Arc::new(PacketSocket::open(&topology.pod, "eth0"));
        let mut attacks = Vec::new();
        for (probe, pod) in probes.iter().zip(POD) {
            let node = probe.local_addr().unwrap();
            let multicasts = [[1, 0, 0x5e, 0, 0, 1], [0x33, 0x33, 0, 0, 0, 1]];
            for mac in [PEER_MAC, BROADCAST, multicasts[0], multicasts[1], [2, 0, 0, 0, 0x66, 0x66]] {
                for vlan in [None, Some(5), Some(0)] {
                    let socket = socket.clone();
                    let name = format!("answer of {pod} to {mac:02x?}, vlan {vlan:?}");
                    attacks.push(Attack::new(name, &topology.pod, move |number| {
                        let segment = Segment { flags: packet::PSH_ACK, sequence: 7, acknowledgement: 7 };
                        let tcp = packet::tcp(pod, node.ip(), (8080, node.port()), segment, &tag(number));
                        let frame = packet::ip_frame((mac, POD_MAC), (node.ip(), pod), packet::TCP, &tcp);
                        let frame = vlan.map_or(frame.clone(), |vlan| packet::with_tag(&frame, vlan));
                        let _ = socket.send(&frame);
                    }));
                }
            }
        }
        Battery::new(attacks, Witnesses::default().frames(&topology.peer, "eth0"))
    };
    fire(&probes).assert_all_arrive();
    sandbox.isolate("");
    let probes: Vec<_> = POD
        .into_iter()
        .map(|to| topology.node.run(|| TcpStream::connect_timeout(&(to, 8080).into(), PATIENCE).unwrap()))
        .collect();
    fire(&probes).assert_none_arrives();
}

/// Restarts a container when three probes in a row fail, as the kubelet does: gives the number of restarts.
fn restarts(topology: &Topology, port: u16, probes: u32) -> u32 {
    let mut failures = 0;
    let mut restarts = 0;
    for _ in 0..probes {
        let alive = http_probe(&topology.node, POD4.into(), port, PROBE_TIMEOUT);
        failures = if alive { 0 } else { failures + 1 };
        if failures == 3 {
            restarts += 1;
            failures = 0;
        }
    }
    restarts
}

#[test]
fn a_container_with_a_liveness_probe_survives() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let server = Server::start(&topology.pod, 8080);
    assert_eq!(restarts(&topology, server.port(), 5), 0, "the control fails");
    sandbox.isolate("");
    assert_eq!(restarts(&topology, server.port(), 30), 0);
    sandbox.isolate_with(&json!({ "loopback": false, "probes": false }));
    assert_eq!(restarts(&topology, server.port(), 3), 1, "sealed: the third failure restarts");
}

/// The pod's containers reach each other on `lo`, and by the pod's own address, unless the policy says no.
#[test]
fn loopback_follows_the_policy() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let server = Server::start(&topology.pod, 8080);
    let local = ["127.0.0.1".parse().unwrap(), "::1".parse().unwrap(), IpAddr::from(POD4), POD6.into()];
    sandbox.isolate("");
    for to in local {
        assert!(http_probe(&topology.pod, to, server.port(), PATIENCE), "{to}");
    }
    sandbox.isolate_with(&json!({ "loopback": false, "probes": true }));
    for to in local {
        assert!(!http_probe(&topology.pod, to, server.port(), SHORT), "{to}");
    }
    for to in POD {
        assert!(http_probe(&topology.node, to, server.port(), PATIENCE), "probe of {to}");
    }
}

/// The tuple of a probe is a way for its answers. When the node listens on the port that a probe once came from, the pod
/// must not find that door open from its own side.
#[test]
fn the_tuple_of_a_probe_opens_nothing_backwards() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    for (number, (pod, node)) in POD.into_iter().zip(topology.node_addresses()).enumerate() {
        let port = 41_000 + u16::try_from(number).unwrap();
        let domain = if pod.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
        let from_port = |own: IpAddr, own_port: u16| {
            let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
            socket.set_reuse_address(true).unwrap();
            // No state is to stay behind on either port.
            socket.set_linger(Some(Duration::ZERO)).unwrap();
            socket.bind(&address(own, own_port)).map(|()| socket)
        };
        let listens = |netns: &Netns, own, own_port| {
            let listens =
                || netns.run(|| from_port(own, own_port)).and_then(|socket| socket.listen(1).map(|()| socket));
            at_an_address_used_before(listens).unwrap()
        };
        let connects = |netns: &Netns, (own, own_port), (to, to_port), limit| {
            at_an_address_used_before(|| {
                netns.run(|| from_port(own, own_port))?.connect_timeout(&address(to, to_port), limit)
            })
        };
        let probe = || {
            let _listener = listens(&topology.pod, pod, 8080);
            connects(&topology.node, (node, port), (pod, 8080), PATIENCE).unwrap();
        };
        let backwards = |limit| {
            let _listener = listens(&topology.node, node, port);
            connects(&topology.pod, (pod, 8080), (node, port), limit).map_err(|error| error.kind())
        };
        probe();
        assert_eq!(backwards(PATIENCE), Ok(()), "the control fails: {pod}");
        sandbox.isolate("");
        probe();
        assert_eq!(backwards(SHORT), Err(ErrorKind::TimedOut), "{pod} to the node at {node}, port {port}");
        sandbox.release();
    }
}

/// A probe's connection that stands when the pod is released and isolated again is an old flow like any other.
#[test]
fn the_flows_of_an_earlier_isolation_are_not_open_in_the_next() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let listener = topology.pod.run(|| TcpListener::bind((POD4, 8080)).unwrap());
    sandbox.isolate("");
    let mut probe = topology.node.run(|| TcpStream::connect_timeout(&(POD4, 8080).into(), PATIENCE).unwrap());
    let (mut pod_end, _) = listener.accept().unwrap();
    let mut passes = || {
        probe.set_read_timeout(Some(SHORT)).unwrap();
        pod_end.write_all(b"answer").unwrap();
        std::io::Read::read(&mut probe, &mut [0; 64]).is_ok_and(|length| length > 0)
    };
    assert!(passes(), "the control fails");
    sandbox.release();
    sandbox.isolate("");
    assert!(!passes());
}

/// An accomplice on the same segment pretends to be the node: in ARP, in neighbour discovery, in a probe's own tuple.
#[test]
fn nobody_speaks_for_the_node() {
    nobody_speaks_for_the_node_from(|_| PEER_MAC);
}

/// The same with the node's own Ethernet address in front.
#[test]
fn nobody_speaks_for_the_node_with_its_mac() {
    nobody_speaks_for_the_node_from(|topology| topology.node_mac);
}

fn nobody_speaks_for_the_node_from(source: impl Fn(&Topology) -> Mac) {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let listener = topology.pod.run(|| TcpListener::bind(SocketAddr::from(([0; 16], 8080))).unwrap());
    let connect = || {
        POD.map(|to| {
            let probe = topology.node.run(|| TcpStream::connect_timeout(&(to, 8080).into(), PATIENCE).unwrap());
            let _ = listener.accept().unwrap();
            probe
        })
    };
    let socket = std::sync::Arc::new(PacketSocket::open(&topology.peer, "eth0"));
    let (node4, node6, source) = (topology.node4, topology.node6, source(&topology));
    let battery = |probes: &[TcpStream; 2]| {
        let mut attacks = Vec::new();
        for (probe, pod) in probes.iter().zip(POD) {
            let (node, socket) = (probe.local_addr().unwrap(), socket.clone());
            attacks.push(Attack::new(format!("data to {pod}"), &topology.peer, move |number| {
                let segment = Segment { flags: packet::PSH_ACK, sequence: 7, acknowledgement: 7 };
                let tcp = packet::tcp(node.ip(), pod, (node.port(), 8080), segment, &tag(number));
                let _ = socket.send(&packet::ip_frame((POD_MAC, source), (pod, node.ip()), packet::TCP, &tcp));
            }));
        }
        let secret = *b"secret";
        let arp =
            |operation, sender, target| Arp { operation, sender: (sender, node4), target: (target, POD4) }.bytes();
        let advert = |mac: Mac| {
            let option = packet::link_layer_option(2, mac);
            let bytes = packet::neighbour(136, node6, POD6, node6, [0x60, 0, 0, 0], &option);
            packet::ipv6(node6, POD6, packet::ICMPV6, &bytes)
        };
        let mut exact = |what: &str, ethertype, payload: Vec<u8>| {
            let frame = packet::ethernet(POD_MAC, source, ethertype, &payload);
            let (socket, seen) = (socket.clone(), frame.clone());
            let attack = Attack::new(what, &topology.peer, move |_| drop(socket.send(&frame)));
            attacks.push(attack.seen_as(move |frame| frame == seen));
        };
        exact("arp reply: the node is here", packet::ETH_ARP, arp(2, PEER_MAC, POD_MAC));
        exact("arp request with data for a sender", packet::ETH_ARP, arp(1, secret, [0; 6]));
        exact("arp request with data for a target", packet::ETH_ARP, arp(1, source, secret));
        exact("advertisement: the node is here", packet::ETH_IPV6, advert(PEER_MAC));
        exact("advertisement with data", packet::ETH_IPV6, advert(secret));
        Battery::new(attacks, Witnesses::default().frames(&topology.pod, "eth0"))
    };
    battery(&connect()).assert_all_arrive();
    topology.forget_neighbours();
    sandbox.isolate("");
    battery(&connect()).assert_none_arrives();
}

/// An accomplice who poisons the pod's neighbours would have its container killed: probes would find no way back.
fn probes_survive_poison(kind: Kind) {
    let topology = Topology::new(kind);
    let sandbox = Sandbox::add(&topology);
    let server = Server::start(&topology.pod, 8080);
    sandbox.isolate("");
    let (node4, node6) = (topology.node4, topology.node6);
    let socket = PacketSocket::open(&topology.peer, "eth0");
    for round in 0..5 {
        let arp = Arp { operation: 2, sender: (PEER_MAC, node4), target: (POD_MAC, POD4) };
        let _ = socket.send(&packet::ethernet(POD_MAC, PEER_MAC, packet::ETH_ARP, &arp.bytes()));
        let option = packet::link_layer_option(2, PEER_MAC);
        let advert = packet::neighbour(136, node6, POD6, node6, [0x20, 0, 0, 0], &option);
        let advert = packet::ipv6(node6, POD6, packet::ICMPV6, &advert);
        let _ = socket.send(&packet::ethernet(POD_MAC, PEER_MAC, packet::ETH_IPV6, &advert));
        for to in POD {
            assert!(http_probe(&topology.node, to, server.port(), PATIENCE), "round {round}: {to}");
        }
    }
}

#[test]
fn probes_survive_poison_on_a_bridge() {
    probes_survive_poison(Kind::Bridge);
}

#[test]
fn probes_survive_poison_on_macvlan() {
    probes_survive_poison(Kind::Macvlan);
}
