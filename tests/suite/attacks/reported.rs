//! What was reported from the field, each as the test of what is right: a verdict is never better than what it was
//! computed from, and nothing takes protection away from an interface that still exists.

use serde_json::{Value, json};

use crate::lab::topology::{PEER4, POD_MAC};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet::{self, BROADCAST};
use crate::lab::traffic::sockets::{PacketSocket, address, udp_on};
use crate::lab::{Netns, Sandbox, Topology};

/// Root in the pod moves its interface into a namespace below; there it has its addresses again.
fn move_below(topology: &Topology, below: &Netns) {
    topology.pod.sh(&format!("ip link set eth0 netns {}", below.name()));
    below.ip("addr add 10.77.0.2/24 dev eth0\nlink set eth0 up");
}

/// Frames of its Ethernet address, sent from `inside`.
fn raw_frames<'a>(topology: &'a Topology, inside: &'a Netns) -> Battery<'a> {
    let socket = PacketSocket::open(inside, "eth0");
    let send = move |number| drop(socket.send(&packet::ethernet(BROADCAST, POD_MAC, 0x88b5, &tag(number))));
    Battery::new(vec![Attack::new("frame", inside, send)], Witnesses::outside(topology))
}

fn codes(status: &Value) -> Vec<&str> {
    let codes = status["reasonCodes"].as_array().unwrap();
    codes.iter().map(|reason| reason["code"].as_str().unwrap()).collect()
}

/// udev gives new veths another address. The host's end was known by it, so it was passed over: all of what left was
/// called contained.
#[test]
fn an_end_whose_address_udev_changed_is_guarded_wherever_its_other_end_is() {
    let (topology, below) = (Topology::bridge(), Netns::new("below"));
    let sandbox = Sandbox::add(&topology);
    topology.node.ip("link set veth-pod address 02:00:00:00:77:77");
    move_below(&topology, &below);
    let mut frames = raw_frames(&topology, &below);
    frames.assert_all_arrive();
    sandbox.isolate("");
    frames.assert_none_arrives();
    assert_eq!(sandbox.verdict(), "contained");
}

/// The same after the isolation: `sync` took the guard away.
#[test]
fn a_sync_takes_no_guard_from_an_end_that_is_there() {
    let (topology, below) = (Topology::bridge(), Netns::new("below"));
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    topology.node.ip("link set veth-pod address 02:00:00:00:77:77");
    move_below(&topology, &below);
    let mut frames = raw_frames(&topology, &below);
    for _ in 0..2 {
        sandbox.sync();
        frames.assert_none_arrives();
        assert_eq!(sandbox.verdict(), "contained");
    }
    sandbox.release();
    frames.assert_all_arrive();
}

/// The interface is gone for CHECK, and the mark was not applied for that.
#[test]
fn check_applies_before_it_compares() {
    let (topology, below) = (Topology::bridge(), Netns::new("below"));
    let sandbox = Sandbox::add(&topology);
    move_below(&topology, &below);
    let mut frames = raw_frames(&topology, &below);
    frames.assert_all_arrive();
    sandbox.write_mark("");
    let check = sandbox.invoke("CHECK");
    assert!(check.stdout.contains("102"), "{check:#?}");
    frames.assert_none_arrives();
}

/// Where both ends of a recorded pair are gone, nothing was left to judge, and that was called contained.
#[test]
fn nothing_is_claimed_of_an_interface_that_is_nowhere() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    assert_eq!(sandbox.verdict(), "contained");
    topology.node.ip("link del veth-pod");
    let status = sandbox.status();
    assert_eq!((status["verdict"].as_str(), codes(&status)), (Some("partial"), vec!["pair-gone"]), "{status:#}");
    sandbox.sync();
    assert_ne!(sandbox.verdict(), "contained");
}

/// The node moves the host's end elsewhere: what leaves the pod then is not met by the guard.
#[test]
fn a_host_end_that_was_moved_away_is_missed() {
    let (topology, elsewhere) = (Topology::bridge(), Netns::new("elsewhere"));
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    topology.node.ip(&format!("link set veth-pod netns {}", elsewhere.name()));
    sandbox.sync();
    let status = sandbox.status();
    assert_ne!(status["verdict"], "contained", "{status:#}");
}

fn gc(sandbox: &Sandbox<'_>, valid: Value) {
    let mut config = sandbox.config().clone();
    config["cni.dev/valid-attachments"] = valid;
    sandbox.invoke_with("GC", &config).ok();
}

/// CRI-O has sent a list without pods that were running: guard and record went, and root in the pod flushed the rest.
#[test]
fn gc_takes_nothing_from_an_isolated_pod_that_lives() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let mut frames = raw_frames(&topology, &topology.pod);
    frames.assert_all_arrive();
    sandbox.isolate("");
    gc(&sandbox, json!([]));
    topology.pod.sh("nft flush ruleset");
    frames.assert_none_arrives();
    assert_eq!(sandbox.status()["containerID"], sandbox.id());
    // Released it goes.
    sandbox.release();
    gc(&sandbox, json!([]));
    let record = std::path::Path::new(sandbox.state_dir()).join("attachments").join(sandbox.id());
    assert!(!record.exists());
}

/// A DEL that names the netns of another sandbox takes nothing away.
#[test]
fn del_with_another_netns_takes_nothing_from_an_isolated_pod() {
    let (topology, other) = (Topology::bridge(), Netns::new("other"));
    let sandbox = Sandbox::add(&topology);
    let mut frames = raw_frames(&topology, &topology.pod);
    frames.assert_all_arrive();
    sandbox.isolate("");
    sandbox.invoke_in("DEL", &other.path()).ok();
    topology.pod.sh("nft flush ruleset");
    frames.assert_none_arrives();
    assert_eq!(sandbox.status()["layers"]["host"], true);
}

/// A guard outlives its record, and is shown; it goes when its interface has gone, and not before.
#[test]
fn a_guard_whose_record_was_lost_stands_and_is_shown() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let mut frames = raw_frames(&topology, &topology.pod);
    frames.assert_all_arrive();
    sandbox.isolate("");
    std::fs::remove_dir_all(std::path::Path::new(sandbox.state_dir()).join("attachments").join(sandbox.id())).unwrap();
    sandbox.sync();
    gc(&sandbox, json!([]));
    topology.pod.sh("nft flush ruleset");
    frames.assert_none_arrives();
    let status = sandbox.status();
    assert_eq!(codes(&status), ["no-record"], "{status:#}");
    let all = sandbox.quarantine(&["status"]).stdout;
    assert!(all.contains(sandbox.id()), "{all}");
    topology.node.ip("link del veth-pod");
    sandbox.sync();
    let tables = topology.node.sh("nft list tables");
    assert!(!tables.contains(sandbox.id()), "{tables}");
}

/// What a datagram needs is a stack; a frame does not. Both are stopped where root in the pod calls `eth0` `lo`.
#[test]
fn an_interface_called_lo_is_no_loopback() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let send = |number| drop(udp_on(None, PEER4.into()).send_to(&tag(number), &address(PEER4.into(), 9)));
    let mut datagrams = Battery::new(vec![Attack::new("udp", &topology.pod, send)], Witnesses::outside(&topology));
    topology.pod.ip("link set lo down\nlink set lo name x\nlink set eth0 down\nlink set eth0 name lo\nlink set lo up");
    datagrams.assert_all_arrive();
    sandbox.isolate("");
    datagrams.assert_none_arrives();
    assert_eq!(sandbox.verdict(), "contained");
}

/// The AWS network plugin lists an interface in its result that does not exist.
#[test]
fn a_dummy_interface_in_prev_result_is_taken() {
    let topology = Topology::ptp();
    let mut previous = topology.prev_result();
    previous["interfaces"].as_array_mut().unwrap().push(json!({ "name": "dummy1", "mac": "0", "sandbox": "0" }));
    let sandbox = Sandbox::add_with(&topology, &json!({ "prevResult": previous }));
    sandbox.invoke("CHECK").ok();
    sandbox.isolate("");
    sandbox.invoke("CHECK").ok();
    assert_eq!(sandbox.verdict(), "contained");
}
