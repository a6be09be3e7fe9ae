//! What is kept of a pod with hostNetwork when it is cut off, and what is counted of it.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::path::PathBuf;
use std::process::Stdio;

use serde_json::{Value, json};

use super::kubelet::{Member, Privileges, Sort, any_port};
use super::{NODE, PEER, World};
use crate::agent::metrics::{AGENT, fetched, value};
use crate::evidence::{BUDGET_SECONDS, sha256_of};
use crate::lab::{Agent, PATIENCE, Run, eventually, program};

impl World {
    /// A command of the product for which evidence is not turned off.
    fn with_evidence(&self, arguments: &[&str]) -> Run {
        let mut command = self.node.command(program());
        command.env("QUARANTINE_EVIDENCE", BUDGET_SECONDS.to_string()).args(arguments);
        let output = command.args(["--state-dir", self.state.text(), "--log", "stderr"]).stdin(Stdio::null()).output();
        let output = output.unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Run { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) }
    }

    /// What there is of a pod now.
    #[track_caller]
    fn collect(&self, uid: &str) -> Collection {
        let run = self.with_evidence(&["evidence", uid, "--collect"]).ok();
        Collection(PathBuf::from(run.stdout.lines().next().unwrap()))
    }

    /// The collections of a pod.
    fn collections(&self, uid: &str) -> Vec<String> {
        let list = self.quarantine(&["evidence", uid, "-o", "json"]);
        if !list.status.success() {
            return Vec::new();
        }
        list.json().as_array().unwrap().iter().map(|kept| kept["path"].as_str().unwrap().to_owned()).collect()
    }
}

struct Collection(PathBuf);

impl Collection {
    fn document(&self, name: &str) -> Value {
        let text = std::fs::read(self.0.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        serde_json::from_slice(&text).unwrap()
    }

    fn items(&self, name: &str) -> Vec<Value> {
        self.document(name)["items"].as_array().unwrap().clone()
    }
}

/// Sends until something of it was dropped by the pod's programs.
#[track_caller]
fn try_in_vain(world: &World, uid: &str, socket: &UdpSocket, to: SocketAddr) {
    let dropped = || {
        let _ = socket.send_to(b"x", to);
        world.status(uid)["drops"].as_array().unwrap().iter().any(|drops| drops["packets"] != 0)
    };
    assert!(eventually(PATIENCE, dropped));
}

#[test]
fn its_own_processes_and_sockets_are_kept_and_nobody_else_s() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let process = pod.process(&[Sort::Udp, Sort::Tcp, Sort::Tcp]);
    let outside = world.peer.run(|| std::net::TcpListener::bind(any_port(PEER)).unwrap());
    let _connection = process.connect(1, outside.local_addr().unwrap());
    let (datagrams, listener) = (process.bind(0, any_port(NODE)), process.listen(2, any_port(NODE)));
    // A neighbour, the node, and a pod whose UID begins like this one's.
    let longer = world.kubelet.pod_of(&format!("{}0", pod.uid));
    let others = [
        world.kubelet.pod().process(&[Sort::Udp, Sort::Tcp]),
        longer.process(&[Sort::Udp]),
        Member::start(&world.kubelet.service("other.service"), &world.node, Privileges::All, &[Sort::Tcp]),
    ];
    let _listeners = [others[0].listen(1, any_port(NODE)), others[2].listen(0, any_port(NODE))];
    let _bound = [others[0].bind(0, any_port(NODE)), others[1].bind(0, any_port(NODE))];
    world.isolate(&pod.uid);
    try_in_vain(&world, &pod.uid, &datagrams, SocketAddr::new(PEER, 9));

    let collection = world.collect(&pod.uid);
    let kept = collection.0.parent().unwrap();
    assert_eq!(kept, world.state.path().join("evidence").join(format!("host:{}", pod.uid)));
    let processes = collection.items("processes.json");
    let pids: Vec<_> = processes.iter().map(|process| &process["pid"]).collect();
    assert_eq!(pids, [&json!(process.id())], "{processes:#?}");
    let sleep = std::fs::read_link(format!("/proc/{}/exe", process.id())).unwrap();
    assert_eq!(processes[0]["belongs"], "control-group");
    assert_eq!(processes[0]["executable"]["sha256"], json!(sha256_of(&sleep)));

    let sockets = collection.items("sockets.json");
    let ports: BTreeSet<u64> = sockets.iter().filter_map(|socket| socket["localPort"].as_u64()).collect();
    for port in [datagrams.local_addr().unwrap().port(), listener.local_addr().unwrap().port()] {
        assert!(ports.contains(&u64::from(port)), "{sockets:#?}");
    }
    let connected = sockets.iter().find(|socket| socket["remotePort"] == outside.local_addr().unwrap().port());
    let connected = connected.unwrap_or_else(|| panic!("{sockets:#?}"));
    // Under two numbers.
    assert!(connected["owners"].as_array().unwrap().contains(&json!({ "pid": process.id(), "file": 101 })));
    let strangers = sockets.iter().filter(|socket| {
        let owners = socket["owners"].as_array().unwrap();
        owners.is_empty() || owners.iter().any(|owner| owner["pid"] != process.id())
    });
    assert_eq!(strangers.count(), 0, "{sockets:#?}");

    let found = collection.document("host-pod.json");
    assert_eq!(found["cgroup"], json!(pod.cgroup));
    assert_eq!((&found["status"]["verdict"], &found["process"]), (&json!("contained"), &json!(process.id())));
    assert_eq!(found["status"]["attempts"][0]["address"], json!(PEER), "{found:#}");
    assert_eq!(found["marks"][0]["key"], json!(pod.uid));
    let manifest = collection.document("manifest.json");
    assert_eq!((manifest.get("containerID"), &manifest["pod"]["uid"]), (None, &json!(pod.uid)));
    let missing: Vec<_> = manifest["missing"].as_array().unwrap().iter().map(|missing| &missing["what"]).collect();
    for what in ["network.json", "nftables.json", "tc.json"] {
        assert!(missing.contains(&&json!(what)) && !collection.0.join(what).exists(), "{manifest:#}");
    }

    // In one chain with the sandboxes' of the node, and found by its UID when it is gone.
    drop(process);
    pod.end();
    world.release(&pod.uid);
    assert_eq!(world.collections(&pod.uid).len(), 1);
    world.quarantine(&["evidence", "--verify"]).ok();
    std::fs::write(collection.0.join("sockets.json"), "{}").unwrap();
    assert_eq!(world.quarantine(&["evidence", &pod.uid, "--verify"]).status.code(), Some(1));
    let nothing = world.quarantine(&["evidence", &format!("host:{}", pod.uid), "--collect"]);
    assert!(!nothing.status.success() && nothing.stderr.contains("no process"), "{nothing:#?}");
}

#[test]
fn what_it_has_in_other_network_namespaces_is_said_to_be_missing() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let (_here, elsewhere) = (pod.process(&[]), crate::lab::Netns::new("hostelse"));
    let there = pod.process_in(&elsewhere, &[]);
    let collection = world.collect(&pod.uid);
    let processes = collection.items("processes.json");
    assert!(processes.iter().any(|process| process["pid"] == there.id()), "{processes:#?}");
    let manifest = collection.document("manifest.json");
    let missing = manifest["missing"].as_array().unwrap();
    assert!(missing.iter().any(|missing| missing["what"] == "sockets of other network namespaces"), "{manifest:#}");
}

#[test]
fn a_cut_is_kept_once_and_counted() {
    let world = World::new();
    world.node.links().up("lo");
    let (pod, by_hand) = (world.kubelet.pod(), world.kubelet.pod());
    let (process, _other) = (pod.process(&[Sort::Udp]), by_hand.process(&[Sort::Packet]));
    let datagrams = process.bind(0, any_port(NODE));
    let budget = BUDGET_SECONDS.to_string();
    let agent = Agent::spawn_with(
        &world.node,
        world.state.path(),
        &["--metrics", AGENT],
        &[("QUARANTINE_EVIDENCE", &budget)],
        &[],
    )
    .ready();
    let scraped = || fetched(&world.node, AGENT, "/metrics").unwrap();
    assert!(eventually(PATIENCE, || fetched(&world.node, AGENT, "/metrics").is_some()));
    let count = |metric: &str| value(&scraped(), metric).unwrap_or_default();
    assert_eq!(count("quarantine_active"), 0.0);

    world.state.mark(&pod.uid, "");
    agent.await_line(&["event=isolated", &pod.uid]);
    let line = agent.await_line(&["event=evidence", &pod.uid, "sequence=1", "manifest="]);
    assert!(line.contains("container=-"), "{line}");
    try_in_vain(&world, &pod.uid, &datagrams, SocketAddr::new(PEER, 9));
    let is_so = || {
        count("quarantine_active") == 1.0
            && count("quarantine_orphan_marks") == 0.0
            && count("quarantine_contain_seconds_count{stage=\"agent\"}") == 1.0
            && count("quarantine_dropped_packets_total{direction=\"out\"}") > 0.0
    };
    assert!(eventually(PATIENCE, is_so), "{}", scraped());
    // Another policy is no other cut.
    world.state.mark(&pod.uid, r#"{"policy": {"allow": [{"direction": "egress", "peer": "10.78.0.2/32", "protocol": "tcp", "ports": [443]}]}}"#);
    agent.await_line(&["event=updated", &pod.uid]);

    world.with_evidence(&["isolate", &by_hand.uid]).ok();
    assert!(eventually(PATIENCE, || world.collections(&by_hand.uid).len() == 1));
    assert!(eventually(PATIENCE, || count("quarantine_active") == 2.0), "{}", scraped());
    assert_eq!(count("quarantine_partial{reason=\"packet-socket\"}"), 1.0, "{}", scraped());
    assert_eq!(world.collections(&pod.uid).len(), 1);
    let dropped = count("quarantine_dropped_packets_total{direction=\"out\"}");
    world.with_evidence(&["release", &pod.uid]).ok();
    assert!(eventually(PATIENCE, || count("quarantine_active") == 1.0), "{}", scraped());
    assert!(count("quarantine_dropped_packets_total{direction=\"out\"}") >= dropped);
}

#[test]
fn what_is_not_kept_of_it_is_said() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let _process = pod.process(&[]);
    world.isolate(&pod.uid);
    for command in ["report", "watch"] {
        let run = world.quarantine(&[command, &pod.uid]);
        assert!(!run.status.success() && run.stderr.contains("hostNetwork"), "{run:#?}");
    }
}
