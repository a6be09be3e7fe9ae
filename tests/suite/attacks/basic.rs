//! Plain sockets in both directions: every protocol, both families, established flows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use serde_json::json;
use socket2::{Domain, Socket, Type};

use crate::lab::topology::{PEER4, PEER6, POD4, POD6};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::observe::{OTHER_PROTOCOLS, Witnesses, port, tag};
use crate::lab::traffic::packet::{self, ICMPV6};
use crate::lab::traffic::server::{Server, http_probe};
use crate::lab::traffic::sockets::{address, become_owner, raw_ip, udp_on};
use crate::lab::traffic::stream::Flow;
use crate::lab::{Kind, Netns, PATIENCE, Sandbox, Topology};

const NOBODY: u32 = 65_534;

/// Who sends: a namespace, its interface, and the user that the sockets belong to.
#[derive(Clone, Copy)]
struct Sender<'a> {
    name: &'static str,
    netns: &'a Netns,
    device: &'static str,
    owner: u32,
}

/// Everything that ordinary sockets can send to `targets`.
fn socket_attacks<'a>(sender: Sender<'a>, targets: &[IpAddr]) -> Vec<Attack<'a>> {
    let mut attacks = Vec::new();
    let mut add = |what: String, send: Box<dyn Fn(u16) + Send + Sync>| {
        let owned = move |number| {
            become_owner(sender.owner);
            send(number);
        };
        attacks.push(Attack::new(format!("{} {what}", sender.name), sender.netns, owned));
    };
    for &to in targets {
        add(format!("tcp to {to}"), Box::new(move |number| open_tcp(to, port(number))));
        add(format!("udp to {to}"), Box::new(move |number| send_udp(None, to, &tag(number))));
        let large = move |number| send_udp(None, to, &tag(number).repeat(500));
        add(format!("fragments to {to}"), Box::new(large));
        // Raw sockets are root's.
        if sender.owner == 0 {
            add(format!("icmp to {to}"), Box::new(move |number| ping(to, number)));
            for protocol in OTHER_PROTOCOLS {
                let send = move |number| send_raw(to, protocol, &tag(number));
                add(format!("ip protocol {protocol} to {to}"), Box::new(send));
            }
        }
    }
    let groups = [
        ("multicast", IpAddr::from(Ipv4Addr::new(224, 0, 0, 1))),
        ("multicast", Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).into()),
        ("broadcast", Ipv4Addr::BROADCAST.into()),
    ];
    for (what, to) in groups {
        let send = move |number| send_udp(Some(sender.device), to, &tag(number));
        add(format!("{what} to {to}"), Box::new(send));
    }
    attacks
}

/// Sends the opening segment and goes. Errors are what an attacker sees, not what arrives.
fn open_tcp(to: IpAddr, port: u16) {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::STREAM, None).unwrap();
    socket.set_nonblocking(true).unwrap();
    let _ = socket.connect(&address(to, port));
}

fn send_udp(device: Option<&str>, to: IpAddr, payload: &[u8]) {
    let _ = udp_on(device, to).send_to(payload, &address(to, 9));
}

fn ping(to: IpAddr, number: u16) {
    let protocol = if to.is_ipv4() { 1 } else { ICMPV6 };
    // The kernel puts the checksum into ICMPv6; over IPv4 it needs no addresses.
    send_raw(to, protocol, &packet::echo(to, to, &tag(number)));
}

fn send_raw(to: IpAddr, protocol: u8, payload: &[u8]) {
    let _ = raw_ip(to, protocol).send_to(payload, &address(to, 0));
}

fn out_of(topology: &Topology) -> Battery<'_> {
    let pod = Sender { name: "pod", netns: &topology.pod, device: "eth0", owner: 0 };
    let [node4, node6] = topology.node_addresses();
    let attacks = socket_attacks(pod, &[PEER4.into(), PEER6.into(), node4, node6]);
    Battery::new(attacks, Witnesses::outside(topology))
}

/// From the peer, and from the node as a user who is not root: root's TCP is what probes are.
fn into(topology: &Topology) -> Battery<'_> {
    let peer = Sender { name: "peer", netns: &topology.peer, device: "eth0", owner: 0 };
    let node = Sender { name: "node", netns: &topology.node, device: topology.node_device(), owner: 0 };
    let nobody = Sender { name: "nobody on the node", owner: NOBODY, ..node };
    let pod = [POD4.into(), POD6.into()];
    let mut attacks = socket_attacks(peer, &pod);
    if topology.routed() {
        // Neither is forwarded from one pod to another.
        attacks.retain(|attack| !attack.name.contains("cast to"));
    }
    let mut unprivileged = socket_attacks(nobody, &pod);
    // Whose socket a packet comes from is seen on the host's end only. `partial` says so where there is none.
    unprivileged.retain(|attack| topology.kind != Kind::Macvlan || !attack.name.contains("tcp"));
    attacks.extend(unprivileged);
    let root = socket_attacks(node, &pod);
    attacks.extend(root.into_iter().filter(|attack| !attack.name.contains("tcp")));
    Battery::new(attacks, Witnesses::inside(topology))
}

fn nothing_passes(kind: Kind) {
    let topology = Topology::new(kind);
    let sandbox = Sandbox::add(&topology);
    let mut batteries = [out_of(&topology), into(&topology)];
    for battery in &mut batteries {
        battery.assert_all_arrive();
    }
    sandbox.isolate("");
    for battery in &mut batteries {
        battery.assert_none_arrives();
    }
    sandbox.isolate_with(&json!({ "loopback": false, "probes": false }));
    let node = Sender { name: "root on the node", netns: &topology.node, device: topology.node_device(), owner: 0 };
    let mut by_root = Battery::new(socket_attacks(node, &[POD4.into(), POD6.into()]), Witnesses::inside(&topology));
    for battery in batteries.iter_mut().chain([&mut by_root]) {
        battery.assert_none_arrives();
    }
    sandbox.release();
    for battery in batteries.iter_mut().chain([&mut by_root]) {
        battery.assert_all_arrive();
    }
}

#[test]
fn no_socket_gets_through_a_bridge() {
    nothing_passes(Kind::Bridge);
}

#[test]
fn no_socket_gets_through_ptp() {
    nothing_passes(Kind::Ptp);
}

#[test]
fn no_socket_gets_through_calico() {
    nothing_passes(Kind::Calico);
}

#[test]
fn no_socket_gets_through_macvlan() {
    nothing_passes(Kind::Macvlan);
}

/// Flows that were established before the isolation: they stop where they are, and go on after the release.
fn flows_stop(kind: Kind) {
    let topology = Topology::new(kind);
    let sandbox = Sandbox::add(&topology);
    let (node, pod, peer) = (&topology.node, &topology.pod, &topology.peer);
    let [node4, node6] = topology.node_addresses();
    let mut flows = Vec::new();
    for (far, far_addresses) in [(peer, [PEER4.into(), PEER6.into()]), (node, [node4, node6])] {
        for (near_address, far_address) in [IpAddr::from(POD4), POD6.into()].into_iter().zip(far_addresses) {
            for upload in [true, false] {
                flows.push(Flow::tcp(pod, far, far_address, upload));
                flows.push(Flow::tcp(far, pod, near_address, upload));
            }
            flows.push(Flow::udp(pod, far, far_address));
            flows.push(Flow::udp(far, pod, near_address));
        }
    }
    Flow::assert_all_alive(&flows);
    sandbox.isolate("");
    Flow::assert_all_dead(&flows);
    sandbox.release();
    Flow::assert_all_alive(&flows);
}

#[test]
fn established_flows_stop_on_a_bridge() {
    flows_stop(Kind::Bridge);
}

#[test]
fn established_flows_stop_on_ptp() {
    flows_stop(Kind::Ptp);
}

#[test]
fn established_flows_stop_on_calico() {
    flows_stop(Kind::Calico);
}

#[test]
fn established_flows_stop_on_macvlan() {
    flows_stop(Kind::Macvlan);
}

/// A pod has addresses of both families, the node of one: it is isolated in both, and probed in the one.
#[test]
fn a_node_of_one_family_isolates_both() {
    for lost in ["-6", "-4"] {
        let topology = Topology::bridge();
        let sandbox = Sandbox::add(&topology);
        let server = Server::start(&topology.pod, 8080);
        let pod = Sender { name: "pod", netns: &topology.pod, device: "eth0", owner: 0 };
        let mut out = Battery::new(
            socket_attacks(pod, &[PEER4.into(), PEER6.into()]),
            Witnesses::default().frames(&topology.peer, "eth0"),
        );
        out.assert_all_arrive();
        topology.node.sh(&format!("ip {lost} addr flush dev br0"));
        sandbox.isolate("");
        out.assert_none_arrives();
        let left = if lost == "-6" { IpAddr::from(POD4) } else { POD6.into() };
        assert!(http_probe(&topology.node, left, 8080, PATIENCE), "{lost} lost: probe of {left}");
        assert_eq!(sandbox.verdict(), "contained");
        drop(server);
    }
}
