//! Programs that wait on released sandboxes: where the agent attaches them, what arming them stops, what is left of them.

use std::path::Path;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::lab::topology::{PEER_MAC, POD_MAC};
use crate::lab::traffic::bpf::{self, Datapath, Way};
use crate::lab::traffic::server::Server;
use crate::lab::{Agent, PATIENCE, Sandbox, Topology, eventually, not_tried};

use super::ebpf::{into, is_cut_off, is_free, links, out, pins};

fn is_ready(sandbox: &Sandbox<'_>) -> bool {
    sandbox.status()["layers"]["bpfReady"] == true
}

/// Waits for the programs; `false` where this kernel takes none, and that is said.
fn awaits_ready(sandbox: &Sandbox<'_>) -> bool {
    let can_hang = || Datapath::attach(sandbox.node(), "lo", "lo", POD_MAC, Way::Out, false).is_some();
    if !can_hang() {
        not_tried("no eBPF program can be attached here");
        return false;
    }
    assert!(eventually(PATIENCE, || is_ready(sandbox)), "{:#}", sandbox.status());
    true
}

/// The pins of its links with the IDs of these.
fn link_ids(sandbox: &Sandbox<'_>) -> Vec<(String, u32)> {
    let of = |pin: &std::path::PathBuf| {
        (pin.file_name().unwrap().to_str().unwrap().to_owned(), bpf::link_and_program(pin)[0])
    };
    links(sandbox).iter().map(of).collect()
}

/// At the birth of a sandbox on a node that redirects; isolating and releasing take and leave the links as they are.
#[test]
fn where_the_network_redirects_programs_wait_from_the_birth_on() {
    let topology = Topology::cilium();
    let sandbox = Sandbox::prepare(&topology, &json!({}));
    let agent = Agent::start(&topology.node, Path::new(sandbox.state_dir()));
    sandbox.invoke("ADD").ok();
    if !awaits_ready(&sandbox) {
        return;
    }
    let _server = Server::start(&topology.pod, 8080);
    is_free(&topology);
    let born = link_ids(&sandbox);
    assert_eq!(born.len(), 2, "both ways on the host's end, and nothing in the pod: {born:?}");
    for _ in 0..2 {
        sandbox.write_mark("");
        assert!(eventually(PATIENCE, || sandbox.verdict() == "contained"), "{:#}", sandbox.status());
        is_cut_off(&topology);
        let isolated = link_ids(&sandbox);
        assert!(born.iter().all(|link| isolated.contains(link)), "attached anew: {born:?}, {isolated:?}");
        let status = sandbox.status();
        assert_eq!(status["layers"], json!({ "pod": true, "host": true, "bpf": true }), "{status:#}");
        std::fs::remove_file(sandbox.mark()).unwrap();
        assert!(eventually(PATIENCE, || is_ready(&sandbox)), "{:#}", sandbox.status());
        assert_eq!(sandbox.verdict(), "open");
        is_free(&topology);
        assert_eq!(link_ids(&sandbox), born);
    }
    sandbox.del();
    assert_eq!(pins(&sandbox), None, "what was pinned is left");
    drop(agent);
}

/// Whoever isolates without an agent finds what one has left.
#[test]
fn what_an_agent_left_is_armed_without_one() {
    let topology = Topology::cilium();
    let sandbox = Sandbox::add(&topology);
    let _server = Server::start(&topology.pod, 8080);
    let agent = Agent::start(&topology.node, Path::new(sandbox.state_dir()));
    if !awaits_ready(&sandbox) {
        return;
    }
    agent.kill();
    let born = link_ids(&sandbox);
    sandbox.invoke("CHECK").ok();
    is_free(&topology);
    sandbox.isolate("");
    assert_eq!(sandbox.verdict(), "contained", "{:#}", sandbox.status());
    is_cut_off(&topology);
    assert!(born.iter().all(|link| link_ids(&sandbox).contains(link)));
    // What is counted is counted from this isolation on, in the isolation.
    let dropped = |status: &Value| {
        let drops = status["drops"].as_array().unwrap().iter().filter(|drops| drops["layer"] == "bpf");
        drops.map(|drops| drops["packets"].as_u64().unwrap()).sum::<u64>()
    };
    assert!(dropped(&sandbox.status()) > 0, "{:#}", sandbox.status());
    sandbox.release();
    assert!(is_ready(&sandbox), "{:#}", sandbox.status());
    is_free(&topology);
    sandbox.isolate("");
    assert_eq!(dropped(&sandbox.status()), 0, "{:#}", sandbox.status());
    sandbox.release();
}

/// The element alone stops everything, before any rule: it is what a cut begins with. A sandbox so is not said to be released.
#[test]
fn armed_programs_let_nothing_pass() {
    let topology = Topology::cilium();
    let sandbox = Sandbox::add(&topology);
    let agent = Agent::start(&topology.node, Path::new(sandbox.state_dir()));
    if !awaits_ready(&sandbox) {
        return;
    }
    drop(agent);
    is_free(&topology);
    bpf::set_element(&pins(&sandbox).unwrap().join("map-armed"), 1);
    for mut battery in out(&topology) {
        battery.assert_none_arrives();
    }
    into(&topology).assert_none_arrives();
    let status = sandbox.status();
    assert_eq!((&status["verdict"], &status["reasonCodes"][0]["code"]), (&json!("partial"), &json!("not-released")));
    assert_eq!(status["layers"].get("bpfReady"), None, "{status:#}");
    sandbox.sync();
    assert!(is_ready(&sandbox), "{:#}", sandbox.status());
    is_free(&topology);
}

/// A new agent finds what waits, and attaches nothing; what somebody took off meanwhile it attaches anew.
#[test]
fn an_agent_that_comes_back_attaches_nothing() {
    let topology = Topology::cilium();
    let sandbox = Sandbox::add(&topology);
    let start = || Agent::start(&topology.node, Path::new(sandbox.state_dir()));
    let agent = start();
    if !awaits_ready(&sandbox) {
        return;
    }
    let born = link_ids(&sandbox);
    agent.kill();
    let agent = start();
    // It looks through all when it begins, and again for a sandbox that is touched.
    sandbox.invoke("ADD").ok();
    agent.await_line(&["event=births-swept"]);
    assert!(is_ready(&sandbox));
    assert_eq!(link_ids(&sandbox), born);
    assert_eq!(agent.kill().iter().filter(|line| line.contains("event=ebpf-ready")).count(), 0);
    bpf::detach(&links(&sandbox)[0]);
    assert!(!is_ready(&sandbox), "{:#}", sandbox.status());
    let agent = start();
    assert!(eventually(PATIENCE, || is_ready(&sandbox)), "{:#}", sandbox.status());
    agent.signal(Signal::SIGTERM);
    assert!(agent.wait().0.success());
}

/// Nowhere where nothing redirects, unless it is said; never where that is said.
#[test]
fn programs_wait_where_they_are_wanted() {
    for (ebpf, redirects, expected) in
        [("auto", false, false), ("always", false, true), ("off", true, false), ("auto", true, true)]
    {
        let topology = if redirects { Topology::cilium() } else { Topology::bridge() };
        let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": ebpf }));
        // One that surely gets them, after this one.
        let agent = Agent::start(&topology.node, Path::new(sandbox.state_dir()));
        if expected {
            if !awaits_ready(&sandbox) {
                return;
            }
        } else {
            agent.await_line(&["event=births-swept"]);
            assert_eq!(pins(&sandbox), None, "{ebpf}: {:#}", sandbox.status());
            let status = sandbox.status();
            assert_eq!(status["layers"], json!({ "pod": false, "host": false }), "{ebpf}: {status:#}");
        }
        sandbox.del();
        assert_eq!(pins(&sandbox), None, "{ebpf}: what was pinned is left");
    }
}

/// A datapath that comes later is seen, without a sandbox being touched: an agent that starts is the same as a minute that has passed.
#[test]
fn a_datapath_that_comes_later_is_answered() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let start = || Agent::start(&topology.node, Path::new(sandbox.state_dir()));
    let agent = start();
    agent.await_line(&["event=births-swept"]);
    assert_eq!(pins(&sandbox), None);
    agent.kill();
    let Some(_to_pod) = Datapath::attach(&topology.node, "veth-peer", "veth-pod", POD_MAC, Way::Out, false) else {
        return;
    };
    let Some(_to_peer) = Datapath::attach(&topology.node, "veth-pod", "veth-peer", PEER_MAC, Way::Out, false) else {
        return;
    };
    let agent = start();
    assert!(eventually(PATIENCE, || is_ready(&sandbox)), "{:#}", sandbox.status());
    is_free(&topology);
    drop(agent);
    sandbox.isolate("");
    assert_eq!(sandbox.verdict(), "contained", "{:#}", sandbox.status());
}

/// A pod that ends without a DEL leaves pins of links that hang nowhere; they go with the next look.
#[test]
fn pins_of_a_pod_that_is_gone_are_removed() {
    let topology = Topology::cilium();
    let sandbox = Sandbox::add(&topology);
    let agent = Agent::start(&topology.node, Path::new(sandbox.state_dir()));
    if !awaits_ready(&sandbox) {
        return;
    }
    drop(agent);
    std::fs::remove_dir_all(Path::new(sandbox.state_dir()).join("attachments").join(sandbox.id())).unwrap();
    sandbox.sync();
    assert!(pins(&sandbox).is_some(), "its end is there, and so is what hangs there");
    topology.pod.sh("ip link del eth0");
    sandbox.sync();
    assert_eq!(pins(&sandbox), None);
}
