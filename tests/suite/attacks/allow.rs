//! The allow-list: exactly what is listed passes, and nothing beside it.

use std::net::{IpAddr, Ipv6Addr, TcpListener, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::topology::{PEER_MAC, PEER4, PEER6, POD_MAC, POD4, POD6, text};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::exchange::{Client, Exchange, Outcome, Protocol, surprises};
use crate::lab::traffic::flood::Flood;
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet::{self, Segment};
use crate::lab::traffic::server::{Server, http_probe};
use crate::lab::traffic::sockets::PacketSocket;
use crate::lab::traffic::stream::Flow;
use crate::lab::{Kind, PATIENCE, Sandbox, Topology};

const SILENCE: Duration = Duration::from_millis(250);

fn rule(direction: &str, peer: &str, protocol: &str, ports: &Value) -> Value {
    json!({ "direction": direction, "peer": peer, "protocol": protocol, "ports": ports })
}

/// Egress and ingress, tcp and udp, both families, a single port and a range.
fn policy() -> Value {
    let mut allow = Vec::new();
    for peer in ["10.77.0.3/32", "fd77::3/128"] {
        allow.push(rule("egress", peer, "tcp", &json!([443, "8000-8010"])));
        allow.push(rule("egress", peer, "udp", &json!([53])));
        allow.push(rule("ingress", peer, "tcp", &json!([7000])));
        allow.push(rule("ingress", peer, "udp", &json!(["7001-7002"])));
    }
    json!({ "probes": false, "allow": allow })
}

/// What [`policy`] says of these, written out: protocol, port, out of the pod, into it.
const EXPECTED: [(Protocol, u16, bool, bool); 22] = {
    use Protocol::{Tcp, Udp};
    [
        (Tcp, 442, false, false),
        (Tcp, 443, true, false),
        (Tcp, 444, false, false),
        (Tcp, 7999, false, false),
        (Tcp, 8000, true, false),
        (Tcp, 8005, true, false),
        (Tcp, 8010, true, false),
        (Tcp, 8011, false, false),
        (Tcp, 53, false, false),
        (Tcp, 6999, false, false),
        (Tcp, 7000, false, true),
        (Tcp, 7001, false, false),
        (Udp, 52, false, false),
        (Udp, 53, true, false),
        (Udp, 54, false, false),
        (Udp, 443, false, false),
        (Udp, 8005, false, false),
        (Udp, 7000, false, false),
        (Udp, 7001, false, true),
        (Udp, 7002, false, true),
        (Udp, 7003, false, false),
        (Udp, 6999, false, false),
    ]
};

/// Every line of [`EXPECTED`], tried with the peer, and then with the node, which the policy does not mention.
fn wrong(topology: &Topology, released: bool) -> Vec<(String, Outcome)> {
    let pod: [IpAddr; 2] = [POD4.into(), POD6.into()];
    let far = [
        ("peer", &topology.peer, [PEER4.into(), PEER6.into()], true),
        ("node", &topology.node, topology.node_addresses(), false),
    ];
    let mut wrong = Vec::new();
    for (name, far, far_addresses, listed) in far {
        let mut exchanges = Vec::new();
        for (near, far_address) in pod.into_iter().zip(far_addresses) {
            for (protocol, port, out, into) in EXPECTED {
                let mut add = |way: &str, client, server, address, expected: bool| {
                    let name = format!("{way} {name} {protocol:?} {address} {port}");
                    let expected = released || expected && listed;
                    exchanges.push(Exchange {
                        name,
                        client: Client::In(client),
                        server,
                        address,
                        protocol,
                        port,
                        expected,
                    });
                };
                add("to", &topology.pod, far, far_address, out);
                add("from", far, &topology.pod, near, into);
            }
        }
        wrong.extend(surprises(&exchanges, SILENCE));
    }
    wrong
}

fn exactly_the_list_passes(kind: Kind) {
    let topology = Topology::new(kind);
    let sandbox = Sandbox::add_with(&topology, &json!({ "policy": policy() }));
    let failed = wrong(&topology, true);
    assert!(failed.is_empty(), "the control fails: {failed:#?}");
    sandbox.isolate("");
    topology.forget_neighbours();
    let surprises = wrong(&topology, false);
    assert!(surprises.is_empty(), "{surprises:#?}");
    sandbox.release();
    let failed = wrong(&topology, true);
    assert!(failed.is_empty(), "after the release: {failed:#?}");
}

#[test]
fn exactly_the_list_passes_on_a_bridge() {
    exactly_the_list_passes(Kind::Bridge);
}

#[test]
fn exactly_the_list_passes_on_ptp() {
    exactly_the_list_passes(Kind::Ptp);
}

#[test]
fn exactly_the_list_passes_on_calico() {
    exactly_the_list_passes(Kind::Calico);
}

#[test]
fn exactly_the_list_passes_on_macvlan() {
    exactly_the_list_passes(Kind::Macvlan);
}

/// Packets that look like an allowed flow's: its port on the wrong side, an answer to no question, a middle without a
/// beginning, the right packet for the wrong station.
#[test]
fn nothing_beside_an_allowed_flow_passes() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add_with(&topology, &json!({ "policy": policy() }));
    let socket = std::sync::Arc::new(PacketSocket::open(&topology.pod, "eth0"));
    let mut attacks = Vec::new();
    let mut send = |name: String, make: Box<dyn Fn(u16) -> Vec<u8> + Send + Sync>| {
        let socket = socket.clone();
        attacks.push(Attack::new(name, &topology.pod, move |number| drop(socket.send(&make(number)))));
    };
    let families: [(IpAddr, IpAddr, IpAddr); 2] =
        [(POD4.into(), PEER4.into(), topology.node4.into()), (POD6.into(), PEER6.into(), topology.node6.into())];
    for (pod, peer, node) in families {
        let mut tcp = |name: &str, mac, to, ports, flags| {
            let segment = Segment { flags, sequence: 1, acknowledgement: 1 };
            let bytes = move |n| packet::tcp(pod, to, ports, segment, &tag(n));
            let frame = move |n| packet::ip_frame((mac, POD_MAC), (to, pod), packet::TCP, &bytes(n));
            send(format!("tcp {name} to {to}"), Box::new(frame));
        };
        let node_mac = topology.node_mac;
        tcp("data without a beginning", PEER_MAC, peer, (40_000, 443), packet::PSH_ACK);
        tcp("syn+ack to no syn", PEER_MAC, peer, (7000, 40_000), packet::SYN_ACK);
        tcp("data from the allowed port", PEER_MAC, peer, (443, 40_000), packet::PSH_ACK);
        tcp("syn from the allowed port", PEER_MAC, peer, (443, 40_000), packet::SYN);
        tcp("syn to the node's port of that number", node_mac, node, (40_000, 443), packet::SYN);
        tcp("syn to the peer by the node", node_mac, peer, (40_000, 444), packet::SYN);
        let mut udp = |name: &str, mac, to, ports| {
            let bytes = move |n| packet::udp(pod, to, ports, &tag(n));
            let frame = move |n| packet::ip_frame((mac, POD_MAC), (to, pod), packet::UDP, &bytes(n));
            send(format!("udp {name} to {to}"), Box::new(frame));
        };
        udp("from the allowed port", PEER_MAC, peer, (53, 40_000));
        udp("answer to no question", PEER_MAC, peer, (7001, 40_000));
        udp("to the node", node_mac, node, (40_000, 53));
    }
    let mut battery = Battery::new(attacks, Witnesses::outside(&topology));
    battery.assert_all_arrive();
    sandbox.isolate("");
    battery.assert_none_arrives();
}

/// A flow that the pod had before, to a port that is on the list in the other direction, does not live on.
#[test]
fn an_old_flow_beside_the_list_dies() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let flows = [
        Flow::tcp(&topology.pod, &topology.peer, PEER4.into(), true),
        Flow::tcp(&topology.pod, &topology.peer, PEER6.into(), false),
        Flow::udp(&topology.pod, &topology.peer, PEER4.into()),
    ];
    Flow::assert_all_alive(&flows);
    sandbox.isolate_with(&policy());
    Flow::assert_all_dead(&flows);
}

/// A policy that changes while isolated: what is taken from the list stops, flows that it had let through included.
#[test]
fn what_leaves_the_list_stops() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let wide = json!({ "probes": false, "allow": [
        rule("egress", "10.77.0.0/24", "tcp", &json!(["1-65535"])),
        rule("egress", "10.77.0.0/24", "udp", &json!(["1-65535"])),
        rule("egress", "fd77::/64", "tcp", &json!(["1-65535"])),
    ] });
    sandbox.isolate_with(&wide);
    topology.forget_neighbours();
    let flows = [
        Flow::tcp(&topology.pod, &topology.peer, PEER4.into(), true),
        Flow::tcp(&topology.pod, &topology.peer, PEER6.into(), false),
        Flow::udp(&topology.pod, &topology.peer, PEER4.into()),
    ];
    Flow::assert_all_alive(&flows);
    sandbox.isolate_with(&policy());
    Flow::assert_all_dead(&flows);
    sandbox.isolate_with(&json!({ "loopback": false, "probes": false }));
    Flow::assert_all_dead(&flows);
}

/// A long list is in sets for which room was asked beforehand, no more than it has entries. When the station changes by which its
/// peers are reached, all of them are exchanged in place: what was let through goes on.
#[test]
fn a_long_list_is_exchanged_in_place() {
    const PORT: u16 = 9999;
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let far = (0..100).map(|number| rule("egress", &format!("10.20.0.{number}"), "tcp", &json!([443, 8080])));
    let near = rule("egress", "10.77.0.3", "tcp", &json!([PORT]));
    sandbox.isolate_with(&json!({ "probes": false, "allow": far.chain([near]).collect::<Vec<_>>() }));
    assert_eq!(sandbox.verdict(), "contained");
    topology.forget_neighbours();
    let listener = topology.peer.run(|| TcpListener::bind((PEER4, PORT)).unwrap());
    let client = topology.pod.run(|| TcpStream::connect((PEER4, PORT)).unwrap());
    let flows = [Flow::over_tcp("allowed".to_owned(), client, listener.accept().unwrap().0)];
    Flow::assert_all_alive(&flows);

    let rules = || topology.pod.sh("nft list table netdev quarantine");
    let by = |station: &str| format!("{station} . 10.20.0.99 . tcp . 8080");
    let (before, changed) = (text(topology.node_mac), "02:00:00:00:00:99");
    assert!(rules().contains("size 201") && rules().contains(&by(&before)), "{}", rules());
    topology.node.sh(&format!("ip link set br0 address {changed}"));
    sandbox.sync();
    assert!(rules().contains(&by(changed)) && !rules().contains(&before), "{}", rules());
    assert_eq!(sandbox.verdict(), "contained");
    Flow::assert_all_alive(&flows);
}

/// An allowed packet in a frame for somebody else: on a bridge the Ethernet address decides who gets it.
#[test]
fn an_allowed_packet_reaches_no_other_station() {
    an_allowed_packet_astray(&[(POD4.into(), [192, 0, 2, 7].into())]);
}

/// The same where the allowed peer is a neighbour itself.
#[test]
fn an_allowed_packet_for_a_neighbour_reaches_no_other_station() {
    an_allowed_packet_astray(&[
        (POD4.into(), [10, 77, 0, 4].into()),
        (POD6.into(), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 4).into()),
    ]);
}

fn an_allowed_packet_astray(targets: &[(IpAddr, IpAddr)]) {
    let topology = Topology::bridge();
    let host = |to: IpAddr| format!("{to}/{}", if to.is_ipv4() { 32 } else { 128 });
    let allow: Vec<Value> = targets.iter().map(|(_, to)| rule("egress", &host(*to), "udp", &json!([53]))).collect();
    let sandbox = Sandbox::add_with(&topology, &json!({ "policy": { "allow": allow } }));
    let socket = std::sync::Arc::new(PacketSocket::open(&topology.pod, "eth0"));
    let attack = |&(from, to): &(IpAddr, IpAddr)| {
        let socket = socket.clone();
        Attack::new(format!("to {to} at the peer's MAC"), &topology.pod, move |number| {
            let udp = packet::udp(from, to, (40_000, 53), &tag(number));
            let _ = socket.send(&packet::ip_frame((PEER_MAC, POD_MAC), (to, from), packet::UDP, &udp));
        })
    };
    let attacks = targets.iter().map(attack).collect();
    let mut battery = Battery::new(attacks, Witnesses::default().frames(&topology.peer, "eth0"));
    battery.assert_all_arrive();
    sandbox.isolate("");
    battery.assert_none_arrives();
}

/// An allowed flow is allowed, not a way to starve others: however many tuples it makes, probes are answered.
#[test]
fn a_flood_of_allowed_flows_starves_no_probe() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add_with(&topology, &json!({ "policy": { "allow": policy()["allow"] } }));
    let server = Server::start(&topology.pod, 8080);
    sandbox.isolate("");
    let frames = (0..20_000_u16).map(|number| {
        let udp = packet::udp(POD4.into(), PEER4.into(), (number + 1024, 53), b"x");
        packet::ip_frame((PEER_MAC, POD_MAC), (PEER4.into(), POD4.into()), packet::UDP, &udp)
    });
    let flood = Flood::start(&topology.pod, "eth0", frames.collect());
    assert!(crate::lab::eventually(PATIENCE, || flood.sent() >= 20_000), "the flood does not start");
    drop(flood);
    for to in [IpAddr::from(POD4), POD6.into()] {
        assert!(http_probe(&topology.node, to, server.port(), PATIENCE), "probe of {to}");
    }
}
