//! More interfaces than one: a second attachment, one that is moved in, one that appears while isolated.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::lab::topology::{PEER4, POD4, text};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet::{self, BROADCAST};
use crate::lab::traffic::sockets::{PacketSocket, address, udp_on};
use crate::lab::{Call, Mac, Sandbox, Topology};

const SECOND_MAC: Mac = [2, 0, 0, 0, 0, 0x22];
/// An address of the peer's on the second interface's network.
const PEER_THERE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(10, 78, 0, 3);

/// A veth more from the pod to the node's bridge, as a second main plugin would add it.
fn second_interface(topology: &Topology, name: &str) {
    topology.node.ip(&format!(
        "link add veth-{name} type veth peer name {name} address {} netns {}\n\
         link set veth-{name} master br0 up",
        text(SECOND_MAC),
        topology.pod.name()
    ));
    topology.pod.ip(&format!("link set {name} up\naddr add 10.78.0.2/24 dev {name}"));
    topology.peer.sh(&format!("ip addr replace {PEER_THERE}/24 dev eth0"));
}

/// The config of an ADD for that interface.
fn second_config(sandbox: &Sandbox<'_>, topology: &Topology, name: &str) -> Value {
    let mut config = sandbox.config().clone();
    config["name"] = json!("second");
    config["prevResult"] = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            { "name": format!("veth-{name}") },
            { "name": name, "mac": text(SECOND_MAC), "sandbox": topology.pod.path() },
        ],
        "ips": [{ "address": "10.78.0.2/24", "interface": 1 }],
    });
    config
}

fn add_second(sandbox: &Sandbox<'_>, topology: &Topology, name: &str) {
    Call::new(&topology.node, "ADD")
        .attachment(sandbox.id(), &topology.pod.path(), name)
        .config(second_config(sandbox, topology, name))
        .run()
        .ok();
}

/// Sockets and frames out of that interface, and frames into it.
fn batteries<'a>(topology: &'a Topology, name: &str) -> [Battery<'a>; 2] {
    let socket = PacketSocket::open(&topology.pod, name);
    let udp = |number| drop(udp_on(None, PEER_THERE.into()).send_to(&tag(number), &address(PEER_THERE.into(), 9)));
    let frame = move |number| drop(socket.send(&packet::ethernet(BROADCAST, SECOND_MAC, 0x88b5, &tag(number))));
    let out = vec![Attack::new("udp", &topology.pod, udp), Attack::new("frame", &topology.pod, frame)];
    let socket = Arc::new(PacketSocket::open(&topology.peer, "eth0"));
    let into = [SECOND_MAC, BROADCAST].map(|to| {
        let socket = socket.clone();
        Attack::new(format!("frame to {to:02x?}"), &topology.peer, move |number| {
            let udp = packet::udp(PEER4.into(), POD4.into(), (9, 9), &tag(number));
            let macs = (to, [2, 0, 0, 0, 0, 3]);
            let _ = socket.send(&packet::ip_frame(macs, (POD4.into(), PEER4.into()), packet::UDP, &udp));
        })
    });
    let inside = Witnesses::default().frames(&topology.pod, name);
    [Battery::new(out, Witnesses::outside(topology)), Battery::new(into.into(), inside)]
}

#[test]
fn a_second_interface_is_cut_off_with_the_first() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    second_interface(&topology, "eth1");
    add_second(&sandbox, &topology, "eth1");
    let mut batteries = batteries(&topology, "eth1");
    batteries.iter_mut().for_each(Battery::assert_all_arrive);
    sandbox.isolate("");
    batteries.iter_mut().for_each(Battery::assert_none_arrives);
    assert_eq!(sandbox.verdict(), "contained");
    sandbox.release();
    batteries.iter_mut().for_each(Battery::assert_all_arrive);
}

#[test]
fn a_second_interface_that_is_added_while_isolated_is_born_cut_off() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    second_interface(&topology, "eth1");
    let mut batteries = batteries(&topology, "eth1");
    add_second(&sandbox, &topology, "eth1");
    batteries.iter_mut().for_each(Battery::assert_none_arrives);
    assert_eq!(sandbox.verdict(), "contained");
    sandbox.release();
    batteries.iter_mut().for_each(Battery::assert_all_arrive);
}

/// Its host end is the node's too: when the second goes, the first stays cut off.
#[test]
fn del_of_the_second_leaves_the_first_cut_off() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    second_interface(&topology, "eth1");
    add_second(&sandbox, &topology, "eth1");
    sandbox.isolate("");
    let mut batteries = batteries(&topology, "eth1");
    Call::new(&topology.node, "DEL")
        .attachment(sandbox.id(), &topology.pod.path(), "eth1")
        .config(second_config(&sandbox, &topology, "eth1"))
        .run()
        .ok();
    batteries.iter_mut().for_each(Battery::assert_none_arrives);
    topology.node.sh("ip link del veth-eth1");
    sandbox.sync();
    assert_eq!(sandbox.verdict(), "contained");
}

/// There is no ADD for it. The inet chains stop what has an address at once; the next look guards the rest.
#[test]
fn an_interface_that_is_moved_in_while_isolated_is_found() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    second_interface(&topology, "moved0");
    let mut batteries = batteries(&topology, "moved0");
    let udp_leaks = batteries[0].leaks();
    assert!(!udp_leaks.iter().any(|(name, _)| name == "udp"), "before anybody looks: {udp_leaks:?}");
    let seen = sandbox.status();
    assert_ne!(seen["verdict"], "contained", "nobody guards its frames yet: {seen:#}");
    sandbox.sync();
    batteries.iter_mut().for_each(Battery::assert_none_arrives);
    assert_eq!(sandbox.verdict(), "contained");
    sandbox.release();
    batteries.iter_mut().for_each(Battery::assert_all_arrive);
}

/// A name is not an interface: the old one is renamed, and another comes in under its name.
#[test]
fn an_interface_under_another_ones_name_is_found() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    topology.pod.ip("link set eth0 down\nlink set eth0 name old0\nlink set old0 up");
    second_interface(&topology, "eth0");
    let mut batteries = batteries(&topology, "eth0");
    let _ = sandbox.quarantine(&["sync"]);
    batteries.iter_mut().for_each(Battery::assert_none_arrives);
    assert_ne!(sandbox.verdict(), "open");
}
