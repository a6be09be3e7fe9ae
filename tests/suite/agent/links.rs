//! Interfaces of an isolated sandbox that appear, are renamed or go: each has its chains at once.

use std::net::{Ipv4Addr, UdpSocket};
use std::time::Duration;

use super::{Agent, PATIENCE, added, await_kernel};
use crate::lab::{Node, Pod, eventually, lone_interface, rules, ruleset};

fn isolated(node: &Node, agent: &Agent) -> Pod {
    let pod = added(node);
    assert!(pod.reaches_node(node), "the control");
    node.mark(&pod.id, "");
    agent.await_line(&["event=isolated", &pod.id]);
    pod
}

/// The interface has a chain on both hooks, as the kernel says.
fn is_chained(pod: &Pod, interface: &str) -> bool {
    ["ingress", "egress"].iter().all(|hook| {
        ruleset(&pod.netns)
            .lines()
            .any(|line| line.contains(&format!("hook {hook} device \"{interface}\"")) && line.contains("policy drop"))
    })
}

#[track_caller]
fn await_chained(pod: &Pod, agent: &Agent, interface: &str) {
    let chained = await_kernel(|| is_chained(pod, interface));
    assert!(chained, "{interface} has no chains:\n{}\n{:#?}", ruleset(&pod.netns), agent.lines());
}

#[test]
fn an_interface_that_appears_has_its_chains() {
    let node = Node::new();
    let agent = Agent::on(&node);
    let pod = isolated(&node, &agent);
    let before = rules(&pod.netns);
    assert!(is_chained(&pod, "eth0") && !is_chained(&pod, "late0"), "the control");
    lone_interface(&pod.netns, "late0");
    await_chained(&pod, &agent, "late0");
    pod.netns.ip("link set late0 down\nlink set late0 name later0\nlink set later0 up");
    await_chained(&pod, &agent, "later0");
    assert!(await_kernel(|| !is_chained(&pod, "late0")), "{}", ruleset(&pod.netns));
    pod.netns.ip("link del later0");
    assert!(await_kernel(|| rules(&pod.netns) == before), "{:#?} instead of {before:#?}", rules(&pod.netns));
}

#[test]
fn the_pod_s_own_interface_is_renamed() {
    let node = Node::new();
    let agent = Agent::on(&node);
    let pod = isolated(&node, &agent);
    for (from, to) in [("eth0", "wan0"), ("wan0", "eth0")] {
        pod.netns.ip(&format!("link set {from} down\nlink set {from} name {to}\nlink set {to} up"));
        await_chained(&pod, &agent, to);
        assert!(await_kernel(|| !is_chained(&pod, from)), "{}", ruleset(&pod.netns));
        assert!(pod.is_cut_off_from(&node), "{to}");
    }
}

/// A veth that somebody moves into the pod gets its guard on the node too, and opens no other way out.
#[test]
fn a_veth_that_is_moved_in_is_no_way_out() {
    let node = Node::new();
    let agent = Agent::on(&node);
    let pod = isolated(&node, &agent);
    node.netns.ip("link add new0 type veth peer name new1\nlink set new0 up\naddr add 10.99.0.1/24 dev new0");
    node.netns.ip(&format!("link set new1 netns {}", pod.netns.name()));
    await_chained(&pod, &agent, "new1");
    let guarded = await_kernel(|| ruleset(&node.netns).contains("device \"new0\""));
    assert!(guarded, "{}", ruleset(&node.netns));
    pod.netns.ip("link set new1 up\naddr add 10.99.0.2/24 dev new1");
    let receiver = node.netns.run(|| UdpSocket::bind((Ipv4Addr::new(10, 99, 0, 1), 0))).unwrap();
    receiver.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let sender = pod.netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
    let target = receiver.local_addr().unwrap();
    let arrives = || {
        let _ = sender.send_to(b"x", target);
        receiver.recv(&mut [0; 8]).is_ok()
    };
    assert!(!eventually(Duration::from_millis(500), arrives), "a way out");
    std::fs::remove_file(node.mark_path(&pod.id)).unwrap();
    assert!(eventually(PATIENCE, arrives), "the control: it is a way once the pod is released");
}
