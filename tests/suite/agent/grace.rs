//! Editors and configuration management replace a file by removing it and making it anew: that releases nobody.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Agent, PATIENCE};
use crate::lab::topology::PEER4;
use crate::lab::traffic::stream::Flow;
use crate::lab::{Sandbox, Topology, eventually};

/// 300 times under a stream: 16 datagrams had left.
#[test]
fn a_mark_that_is_replaced_releases_nobody() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    // Longer than the default, for a test may be kept from the processor between the two for longer than that.
    let _agent = Agent::start_with(&topology.node, Path::new(sandbox.state_dir()), &["--release-after", "2s"]);
    let flows = [Flow::udp(&topology.pod, &topology.peer, PEER4.into())];
    Flow::assert_all_alive(&flows);
    sandbox.write_mark("");
    assert!(eventually(PATIENCE, || sandbox.verdict() == "contained"));
    Flow::assert_all_dead(&flows);
    let before = flows[0].received();
    for number in 0..300 {
        fs::remove_file(sandbox.mark()).unwrap();
        // As long as an `install` takes from one to the other, and a few times for so long that the agent sees it gone.
        std::thread::sleep(Duration::from_millis(if number % 30 == 0 { 20 } else { 1 }));
        fs::write(sandbox.mark(), format!("{{\"reason\": \"{number}\"}}")).unwrap();
    }
    assert!(eventually(PATIENCE, || sandbox.status()["mark"]["reason"] == "299"));
    assert_eq!(flows[0].received(), before, "bytes arrive while the mark is replaced");
    // The control: one that stays away releases.
    fs::remove_file(sandbox.mark()).unwrap();
    Flow::assert_all_alive(&flows);
}

/// `quarantine release` says that it is meant.
#[test]
fn a_release_by_command_does_not_wait() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let _agent = Agent::start_with(&topology.node, Path::new(sandbox.state_dir()), &["--release-after", "1000s"]);
    sandbox.quarantine(&["isolate", sandbox.id()]).ok();
    let flows = [Flow::udp(&topology.pod, &topology.peer, PEER4.into())];
    Flow::assert_all_dead(&flows);
    sandbox.quarantine(&["release", sandbox.id()]).ok();
    Flow::assert_all_alive(&flows);
}

/// Without a grace period the release is immediate.
#[test]
fn without_a_grace_a_mark_that_is_gone_releases() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let agent = Agent::start_with(&topology.node, Path::new(sandbox.state_dir()), &["--release-after", "0"]);
    sandbox.write_mark("");
    agent.await_line(&["event=isolated", sandbox.id()]);
    fs::remove_file(sandbox.mark()).unwrap();
    agent.await_line(&["event=released", sandbox.id()]);
}
