//! Listening to an isolated pod's netns does not keep a dead one, nor the pod's veth, alive.

use std::fs;

use nix::sys::signal::Signal;

use super::{Agent, PATIENCE, added, await_kernel, await_tables, call};
use crate::lab::{Node, Pod, Tables, eventually, ruleset};

/// A pod that is isolated and whose netns the agent therefore listens to.
fn listened(node: &Node, agent: &Agent) -> Pod {
    let before = agent.descriptors_at_rest();
    let pod = added(node);
    node.mark(&pod.id, "");
    await_tables(&pod, Tables::Isolated, "listened");
    assert!(eventually(PATIENCE, || agent.descriptors() > before), "the control: it is listened to");
    pod
}

/// The node's end of the pod's veth goes with the pod's netns.
fn host_end_is_there(node: &Node, pod: &Pod) -> bool {
    node.netns.try_sh(&format!("ip link show {}", pod.host_end())).is_ok()
}

/// The netns still has its ID in the node's: the kernel takes that back when a netns dies.
fn is_alive(node: &Node) -> bool {
    !node.netns.sh("ip netns list-id").trim().is_empty()
}

#[test]
fn a_netns_that_is_deleted_after_del_dies() {
    let node = Node::new();
    let agent = Agent::on(&node);
    let before = agent.descriptors_at_rest();
    let pod = listened(&node, &agent);
    call(&node, "DEL", &pod, "uid-1");
    assert!(is_alive(&node) && host_end_is_there(&node, &pod), "the control");
    pod.netns.delete();
    assert!(await_kernel(|| !host_end_is_there(&node, &pod)), "the veth lives on");
    assert!(await_kernel(|| !is_alive(&node)), "the netns lives on");
    assert!(eventually(PATIENCE, || agent.descriptors() == before), "{} instead of {before}", agent.descriptors());
    assert_eq!(ruleset(&node.netns), "", "the guard is left");
}

/// As a runtime does whose plugins all failed: it takes the interface, then the netns.
#[test]
fn a_netns_that_lost_its_last_interface_dies() {
    let node = Node::new();
    let agent = Agent::on(&node);
    let before = agent.descriptors_at_rest();
    let pod = listened(&node, &agent);
    node.netns.ip(&format!("link del {}", pod.host_end()));
    pod.netns.delete();
    assert!(await_kernel(|| !is_alive(&node)), "the netns lives on");
    assert!(eventually(PATIENCE, || agent.descriptors() == before), "{} instead of {before}", agent.descriptors());
}

/// Without a DEL nobody says that it is gone; the next look at everything finds it.
#[test]
fn a_netns_that_is_deleted_without_a_word_dies_at_the_next_look() {
    let node = Node::new();
    let agent = Agent::on(&node);
    let before = agent.descriptors_at_rest();
    let pod = listened(&node, &agent);
    pod.netns.delete();
    agent.signal(Signal::SIGHUP);
    assert!(await_kernel(|| !host_end_is_there(&node, &pod)), "the veth lives on");
    assert!(await_kernel(|| !is_alive(&node)), "the netns lives on");
    assert!(eventually(PATIENCE, || agent.descriptors() == before), "{} instead of {before}", agent.descriptors());
}

/// A release closes it too, though the netns lives.
#[test]
fn a_release_stops_the_listening() {
    let node = Node::new();
    let agent = Agent::on(&node);
    let before = agent.descriptors_at_rest();
    let pod = listened(&node, &agent);
    fs::remove_file(node.mark_path(&pod.id)).unwrap();
    await_tables(&pod, Tables::Released, "released");
    pod.netns.delete();
    assert!(await_kernel(|| !host_end_is_there(&node, &pod)), "the veth lives on");
    assert!(eventually(PATIENCE, || agent.descriptors() == before), "{} instead of {before}", agent.descriptors());
}
