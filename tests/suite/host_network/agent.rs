//! The agent and pods in the node's network namespace.

use std::fs;
use std::time::Duration;

use super::kubelet::{Member, Sort, any_port, remove};
use super::life::pins;
use super::probes::answers;
use super::{PEER, World};
use crate::lab::traffic::bpf::detach;
use crate::lab::traffic::stream::Flow;
use crate::lab::{Agent, PATIENCE, eventually};

fn agent(world: &World) -> Agent {
    Agent::start(&world.node, world.state.path())
}

fn flow(world: &World, process: &Member) -> [Flow; 1] {
    let outside = world.peer.run(|| std::net::UdpSocket::bind(any_port(PEER)).unwrap());
    let to = outside.local_addr().unwrap();
    [Flow::over_udp("udp out".to_owned(), process.bind(0, any_port(super::NODE)), outside, to)]
}

#[test]
fn a_mark_is_applied_and_its_removal_releases() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let process = pod.process(&[Sort::Udp]);
    let flow = flow(&world, &process);
    Flow::assert_all_alive(&flow);
    let agent = agent(&world);
    world.state.mark(&pod.uid, r#"{"reason": "beacon", "actor": "alice"}"#);
    agent.await_line(&["event=isolated", &pod.uid, "verdict=contained", "reason=beacon", "actor=alice"]);
    Flow::await_all_dead(&flow);
    world.state.remove_mark(&pod.uid);
    agent.await_line(&["event=released", &pod.uid]);
    Flow::assert_all_alive(&flow);
    assert_eq!(pins(&pod.uid), None);
}

#[test]
fn a_mark_that_is_replaced_releases_nobody() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let _process = pod.process(&[]);
    let agent = Agent::start_with(&world.node, world.state.path(), &["--release-after", "30s"]);
    world.state.mark(&pod.uid, "");
    agent.await_line(&["event=isolated", &pod.uid]);
    world.state.remove_mark(&pod.uid);
    world.state.mark(&pod.uid, r#"{"policy": {"allow": [{"direction": "egress", "peer": "10.78.0.2/32", "protocol": "tcp", "ports": [443]}]}}"#);
    agent.await_line(&["event=updated", &pod.uid]);
    assert_eq!(agent.count(&["event=released"]), 0);
    assert_eq!(world.verdict(&pod.uid), "contained");
}

#[test]
fn a_pod_that_comes_later_is_isolated_and_one_that_ends_leaves_nothing() {
    let world = World::new();
    let pod = world.kubelet.pod();
    pod.end();
    world.state.mark(&pod.uid, "");
    let agent = agent(&world);
    let pod = world.kubelet.pod_of(&pod.uid);
    let process = pod.process(&[Sort::Udp]);
    agent.await_line(&["event=isolated", &pod.uid]);
    let flow = flow(&world, &process);
    Flow::await_all_dead(&flow);
    drop(flow);
    drop(process);
    // Its containers start anew: the programs were there before.
    let process = pod.process(&[Sort::Udp]);
    Flow::await_all_dead(&self::flow(&world, &process));
    assert_eq!(agent.count(&["event=isolated"]), 1);
    drop(process);
    pod.end();
    agent.await_line(&["event=ended", &pod.uid]);
    assert_eq!(pins(&pod.uid), None);
    let again = world.kubelet.pod_of(&pod.uid);
    let _process = again.process(&[]);
    assert!(eventually(PATIENCE, || agent.count(&["event=isolated"]) == 2), "{:#?}", agent.lines());
}

#[test]
fn programs_that_come_off_are_put_back_and_outlive_the_agent() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let process = pod.process(&[Sort::Udp]);
    let flow = flow(&world, &process);
    world.state.mark(&pod.uid, "");
    let first = agent(&world);
    first.await_line(&["event=isolated", &pod.uid]);
    let pins = pins(&pod.uid).unwrap();
    detach(&pins.join("link-out"));
    first.await_line(&["event=repaired", &pod.uid, "verdict=contained"]);
    // The agent may be at it meanwhile.
    for pin in fs::read_dir(&pins).unwrap() {
        let _ = fs::remove_file(pin.unwrap().path());
    }
    assert!(eventually(PATIENCE, || first.count(&["event=repaired"]) >= 2), "{:#?}", first.lines());
    assert!(eventually(PATIENCE, || world.verdict(&pod.uid) == "contained"));
    Flow::await_all_dead(&flow);
    first.kill();
    Flow::await_all_dead(&flow);
    assert_eq!(world.verdict(&pod.uid), "contained");
    let second = agent(&world);
    assert_eq!(world.verdict(&pod.uid), "contained");
    assert_eq!(second.count(&["event=repaired"]), 0);
    world.state.remove_mark(&pod.uid);
    second.await_line(&["event=released", &pod.uid]);
    Flow::assert_all_alive(&flow);
}

#[test]
fn a_kubelet_that_comes_later_is_let_in() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let process = pod.process(&[Sort::Tcp]);
    let listener = process.listen(0, any_port(super::NODE));
    world.state.mark(&pod.uid, "");
    let agent = agent(&world);
    agent.await_line(&["event=isolated", &pod.uid]);
    let sockets: Vec<_> = std::iter::repeat_n(Sort::Tcp, 64).collect();
    let kubelet = world.kubelet.itself(&sockets);
    agent.await_line(&["event=updated", &pod.uid]);
    assert!(answers(kubelet.socket(0), &listener, PATIENCE));
    // As a service that is restarted: its cgroup has another ID then.
    drop(kubelet);
    remove(&world.kubelet.service("kubelet.service"));
    let kubelet = world.kubelet.itself(&sockets);
    let again = || agent.count(&["event=updated", &pod.uid]) >= 2;
    assert!(eventually(PATIENCE, again), "{:#?}", agent.lines());
    let mut number = 0;
    let passes = || {
        number += 1;
        answers(kubelet.socket(number), &listener, Duration::from_millis(500))
    };
    assert!(eventually(PATIENCE, passes));
    assert_eq!(world.verdict(&pod.uid), "contained");
}
