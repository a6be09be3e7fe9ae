//! End to end with the released `cnitool` and reference plugins, on the example conflists of `conf/`.

use std::net::{IpAddr, TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::runtime_node::output;
use crate::lab::scene::Scene;
use crate::lab::{Netns, PATIENCE, RuntimeNode, eventually};

/// The chain of `conf/<name>` for a version of the specification.
fn example(name: &str, version: &str) -> Value {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(name);
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut conflist: Value = serde_json::from_str(&text).unwrap();
    conflist["cniVersion"] = json!(version);
    conflist
}

fn cnitool(node: &RuntimeNode, verb: &str, pod: &str) -> Result<String, String> {
    output(
        node.command("/opt/cni/bin/cnitool")
            .env("CNI_PATH", "/opt/cni/bin")
            .env("NETCONFPATH", "/etc/cni/net.d")
            .env("CNI_ARGS", format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=lab;K8S_POD_NAME={pod};K8S_POD_UID=uid-{pod}"))
            .args([verb, "pods", &format!("/run/netns/{pod}")]),
    )
}

#[track_caller]
fn call(node: &RuntimeNode, verb: &str, pod: &str) -> String {
    cnitool(node, verb, pod).unwrap_or_else(|error| panic!("cnitool {verb} {pod}: {error}"))
}

fn add(node: &RuntimeNode, pod: &str) -> Netns {
    let netns = node.add_netns(pod);
    let result: Value = serde_json::from_str(&call(node, "add", pod)).unwrap();
    assert!(result["ips"].as_array().is_some_and(|ips| ips.len() == 2), "{result}");
    netns
}

fn node_with(label: &str, conflist: &Value) -> RuntimeNode {
    let node = RuntimeNode::new(label);
    node.configure(conflist);
    // The master of macvlan; the other plugins don't look at it.
    node.netns.ip("link add eth0 type veth peer name wire\nlink set wire up\nlink set eth0 up");
    node
}

fn remove_master(node: &RuntimeNode) {
    node.netns.ip("link del eth0");
}

/// The life of a pod under one conflist: isolated and released by file, checked, removed.
fn lives(name: &str, version: &str) {
    let conflist = example(name, version);
    let node = node_with("cnitool", &conflist);
    if version == "1.1.0" {
        call(&node, "status", "web");
    }
    let scene = Scene::new(add(&node, "web"), add(&node, "neighbour"));
    call(&node, "check", "web");
    scene.assert_open();

    node.write_mark("lab_web");
    call(&node, "check", "web");
    scene.assert_cut();
    call(&node, "check", "neighbour");

    node.remove_mark("lab_web");
    call(&node, "check", "web");
    scene.assert_open();
    drop(scene);

    // Removed while released, and while isolated; by DEL, and by GC, which libcni has from 1.1.0 on.
    call(&node, "del", "neighbour");
    node.write_mark("uid-web");
    call(&node, "check", "web");
    call(&node, if version == "1.1.0" { "gc" } else { "del" }, "web");
    call(&node, "del", "web");
    node.remove_mark("uid-web");
    node.sh("ip netns del web; ip netns del neighbour");
    remove_master(&node);
    node.assert_nothing_remains();
}

macro_rules! lives {
    ($($test:ident: $name:literal $version:literal;)*) => {
        $(#[test]
        fn $test() {
            lives($name, $version);
        })*
    };
}

lives! {
    bridge_0_4_0: "10-bridge-quarantine.conflist" "0.4.0";
    bridge_1_0_0: "10-bridge-quarantine.conflist" "1.0.0";
    bridge_1_1_0: "10-bridge-quarantine.conflist" "1.1.0";
    ptp_0_4_0: "10-ptp-quarantine.conflist" "0.4.0";
    ptp_1_0_0: "10-ptp-quarantine.conflist" "1.0.0";
    ptp_1_1_0: "10-ptp-quarantine.conflist" "1.1.0";
    macvlan_0_4_0: "10-macvlan-quarantine.conflist" "0.4.0";
    macvlan_1_0_0: "10-macvlan-quarantine.conflist" "1.0.0";
    macvlan_1_1_0: "10-macvlan-quarantine.conflist" "1.1.0";
}

/// A mark that is there before the pod: cut off from its first packet, by ADD itself; the node's probes pass.
///
/// It is also the node's first pod, as after a reboot: the main plugin has only just given the node its address.
fn marked_before_add(name: &str) {
    let node = node_with("marked", &example(name, "1.0.0"));
    node.write_mark("lab_web");
    let pod = add(&node, "web");
    let scene = Scene::cut_from_birth(pod, add(&node, "neighbour"));
    for &address in scene.pod().addresses() {
        let probe = || {
            let to = (address, scene.pod().tcp_port()).into();
            node.netns.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(1))).is_ok()
        };
        assert!(eventually(PATIENCE, probe), "the probe of {address} fails");
    }
    node.remove_mark("lab_web");
    call(&node, "check", "web");
    scene.assert_open();
}

#[test]
fn bridge_marked_before_add() {
    marked_before_add("10-bridge-quarantine.conflist");
}

#[test]
fn ptp_marked_before_add() {
    marked_before_add("10-ptp-quarantine.conflist");
}

/// Every key of the example does what it says.
#[test]
fn every_key() {
    let node = node_with("everykey", &example("10-every-key-quarantine.conflist", "1.1.0"));
    // The first pod gets the first address, which is the one that the example's policy lets talk to the others.
    let collector = add(&node, "collector");
    let pod = add(&node, "web");
    let addresses = |netns: &Netns| -> Vec<IpAddr> {
        let text = netns.sh("ip -o address show dev eth0 scope global | sed 's,.* inet6* \\([^/]*\\)/.*,\\1,'");
        text.lines().map(|line| line.parse().unwrap()).collect()
    };
    let (collector4, pod4) = (addresses(&collector)[0], addresses(&pod)[0]);
    assert_eq!(collector4.to_string(), "10.88.0.2");

    let listen = |netns: &Netns, port: u16| netns.run(|| TcpListener::bind(("::", port)).unwrap());
    let _listeners = [443, 8443, 9443].map(|port| listen(&collector, port));
    let _probed = [8080, 9090, 7070].map(|port| listen(&pod, port));
    let connects = |from: &Netns, to: IpAddr, port: u16| {
        from.run(|| TcpStream::connect_timeout(&(to, port).into(), Duration::from_secs(1))).is_ok()
    };
    for port in [443, 8443, 9443] {
        assert!(eventually(PATIENCE, || connects(&pod, collector4, port)), "control: {port}");
    }
    for port in [8080, 9090, 7070] {
        assert!(eventually(PATIENCE, || connects(&node.netns, pod4, port)), "control: {port}");
    }

    node.write_mark("lab_web");
    call(&node, "check", "web");
    let passes = |port| connects(&pod, collector4, port);
    assert_eq!([443, 8443, 9443].map(passes), [true, true, false], "allow");
    let probed = |port| connects(&node.netns, pod4, port);
    assert_eq!([8080, 9090, 7070].map(probed), [true, true, false], "probes");
    assert!(pod.run(|| TcpStream::connect(("127.0.0.1", 7070))).is_ok(), "loopback");
    assert!(!connects(&collector, pod4, 8080), "the collector may be reached, not reach");
}
