//! Rules of an isolated sandbox that somebody changes, in the pod or on the node, are restored, and that is logged.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::{Agent, PATIENCE, added, await_kernel, await_tables, both_tables};
use crate::lab::topology::{PEER_MAC, POD_MAC};
use crate::lab::traffic::flood::Flood;
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet;
use crate::lab::{Netns, Node, Sandbox, Tables, Topology, eventually, rules, ruleset};

/// What root in the pod does to the pod-side tables.
const POD_DAMAGES: [(&str, &str); 15] = [
    ("all gone", "nft flush ruleset"),
    ("netdev gone", "nft delete table netdev quarantine"),
    ("inet gone", "nft delete table inet quarantine"),
    ("all rules gone", "nft 'flush table netdev quarantine; flush table inet quarantine'"),
    ("a chain's rules gone", "nft flush chain inet quarantine input"),
    (
        "one rule gone",
        "handle=$(nft -a list chain inet quarantine output | sed -n 's/.*# handle //p' | tail -1)
         nft delete rule inet quarantine output handle $handle",
    ),
    ("a chain gone", "nft 'flush chain netdev quarantine egress-eth0; delete chain netdev quarantine egress-eth0'"),
    ("netdev put to sleep", "nft 'add table netdev quarantine { flags dormant; }'"),
    ("inet put to sleep", "nft 'add table inet quarantine { flags dormant; }'"),
    (
        "rules replaced by accept",
        "nft 'flush chain netdev quarantine egress-eth0; add rule netdev quarantine egress-eth0 accept'",
    ),
    ("accept in front", "nft insert rule netdev quarantine egress-eth0 accept"),
    ("accept behind", "nft add rule inet quarantine output accept"),
    ("another default", "nft 'chain inet quarantine input { policy accept; }'"),
    ("a set of their own", "nft 'add set netdev quarantine own { type ipv4_addr; }'"),
    ("a chain of their own", "nft 'add chain inet quarantine own { type filter hook input priority -400; }'"),
];

/// What somebody does on the node to the host guard, `$table`.
const GUARD_DAMAGES: [(&str, &str); 5] = [
    ("all gone", "nft flush ruleset"),
    ("gone", "nft delete table netdev $table"),
    ("all rules gone", "nft flush table netdev $table"),
    ("put to sleep", "nft \"add table netdev $table { flags dormant; }\""),
    (
        "accept in front",
        "chain=$(nft list table netdev $table | sed -n 's/^\\tchain \\(.*\\) {/\\1/p' | head -1)
         nft insert rule netdev $table $chain accept",
    ),
];

/// Does the damage, and waits until the kernel has again what it had; an `event=repaired` line says what it was.
#[track_caller]
fn is_put_back(agent: &Agent, id: &str, netns: &Netns, (name, damage): (&str, &str)) {
    let repaired = ["event=repaired", id, "changed="];
    let (whole, said) = (rules(netns), agent.count(&repaired));
    netns.sh(&format!("table=quarantine-{id}\n{damage}"));
    agent.await_lines(&repaired, said + 1);
    let is_whole = await_kernel(|| rules(netns) == whole);
    assert!(is_whole, "{name}: {:#?}\ninstead of {whole:#?}\n{:#?}", rules(netns), agent.lines());
}

#[test]
fn the_pod_side_is_put_back() {
    let node = Node::new();
    let pod = added(&node);
    assert!(pod.reaches_node(&node), "the control");
    let agent = Agent::on(&node);
    node.mark(&pod.id, "");
    await_tables(&pod, Tables::Isolated, "before");
    agent.await_line(&["event=isolated", &pod.id]);
    for (number, damage) in (1..).zip(POD_DAMAGES) {
        is_put_back(&agent, &pod.id, &pod.netns, damage);
        // By whom: the kernel says which program it was.
        agent.await_lines(&["event=tampering", &pod.id, "by=\"nft["], number);
    }
    assert!(pod.is_cut_off_from(&node));
}

#[test]
fn the_host_guard_is_put_back() {
    let node = Node::new();
    let pod = added(&node);
    let agent = Agent::on(&node);
    node.mark(&pod.id, "");
    agent.await_line(&["event=isolated", &pod.id]);
    let guard = format!("quarantine-{}", pod.id);
    assert!(await_kernel(|| node.netns.sh("nft list tables").contains(&guard)), "the control");
    for (number, damage) in (1..).zip(GUARD_DAMAGES) {
        is_put_back(&agent, &pod.id, &node.netns, damage);
        // By whom: the kernel says which program it was.
        agent.await_lines(&["event=tampering", &pod.id, "by=\"nft["], number);
    }
    assert!(pod.is_cut_off_from(&node));
    assert_eq!(pod.tables(), Tables::Isolated);
}

/// What was changed is called so whatever has the agent look, and what the operator changed never is.
#[test]
fn tampering_is_told_from_what_the_operator_wants() {
    let node = Node::new();
    let pod = added(&node);
    let agent = Agent::on(&node);
    node.mark(&pod.id, "");
    agent.await_line(&["event=isolated", &pod.id]);
    agent.signal(Signal::SIGSTOP);
    pod.netns.sh("nft flush ruleset");
    node.mark(&pod.id, r#"{"reason": "again"}"#);
    agent.signal(Signal::SIGCONT);
    agent.await_line(&["event=repaired", &pod.id]);
    agent.await_line(&["event=tampering", &pod.id, "by=\"nft["]);
    assert_eq!(agent.count(&["event=updated"]), 0, "{:#?}", agent.lines());
    node.mark(&pod.id, r#"{"policy": {"loopback": false, "probes": false}}"#);
    agent.await_line(&["event=updated", &pod.id, "policy=sealed"]);
    assert_eq!(agent.count(&["event=tampering"]), 1, "{:#?}", agent.lines());
}

/// The kernel names who changed rules as the first PID namespace does: an agent that has another one knows itself all the same.
#[test]
fn an_agent_with_process_ids_of_its_own_does_not_take_itself_for_another() {
    let node = Node::new();
    let pod = added(&node);
    let own_ids = ["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let agent = Agent::start_below(&node.netns, node.state_dir(), &own_ids);
    node.mark(&pod.id, "");
    agent.await_line(&["event=isolated", &pod.id]);
    // Whatever is heard of its own first work comes before this.
    for number in 1..=5 {
        pod.netns.sh("nft flush ruleset");
        agent.await_lines(&["event=tampering", &pod.id, "by=\"nft["], number);
    }
    assert_eq!(agent.count(&["event=tampering", "worker-"]), 0, "{:#?}", agent.lines());
}

/// So much happens in the pod while the agent sleeps that the kernel drops what it would have heard.
#[test]
fn what_was_not_heard_is_put_back_too() {
    let node = Node::new();
    let pod = added(&node);
    let agent = Agent::on(&node);
    node.mark(&pod.id, "");
    agent.await_line(&["event=isolated", &pod.id]);
    let (whole, guard) = (rules(&pod.netns), rules(&node.netns));
    agent.signal(Signal::SIGSTOP);
    pod.netns.sh("yes 'add table ip busy; delete table ip busy' | head -n 3000 | nft -i");
    pod.netns.sh("nft flush ruleset");
    node.netns.sh("nft flush ruleset");
    agent.signal(Signal::SIGCONT);
    assert!(await_kernel(|| rules(&pod.netns) == whole), "{:#?}\n{:#?}", rules(&pod.netns), agent.lines());
    assert!(await_kernel(|| rules(&node.netns) == guard), "{:#?}\n{:#?}", rules(&node.netns), agent.lines());
}

/// What other tools have in their own tables, on the node or in the pod, is theirs.
#[test]
fn what_is_not_ours_is_left_alone() {
    let node = Node::new();
    let pod = added(&node);
    let agent = Agent::on(&node);
    node.mark(&pod.id, "");
    agent.await_line(&["event=isolated", &pod.id]);
    for netns in [&pod.netns, &node.netns] {
        netns.sh("nft 'add table inet theirs; add chain inet theirs input { type filter hook input priority 0; }'");
    }
    // The repair of what came after says that this was seen.
    is_put_back(&agent, &pod.id, &pod.netns, POD_DAMAGES[1]);
    for netns in [&pod.netns, &node.netns] {
        assert!(netns.sh("nft list tables").contains("table inet theirs"));
    }
    assert_eq!(agent.count(&["event=repaired"]), 1, "{:#?}", agent.lines());
}

/// A pod that is released is its root's own business.
#[test]
fn a_released_pod_is_left_alone() {
    let node = Node::new();
    let pod = added(&node);
    let agent = Agent::on(&node);
    node.mark(&pod.id, "");
    await_tables(&pod, Tables::Isolated, "before");
    std::fs::remove_file(node.mark_path(&pod.id)).unwrap();
    agent.await_line(&["event=released", &pod.id]);
    // What it heard while it released the pod may have it look once more; nothing that is done later has.
    let is_left_alone = (0..4).any(|_| {
        pod.netns.sh("nft flush ruleset");
        let other = added(&node);
        node.mark(&other.id, "");
        await_tables(&other, Tables::Isolated, "what came after");
        both_tables(&ruleset(&pod.netns)) == Some(Tables::Absent)
    });
    assert!(is_left_alone, "{}", ruleset(&pod.netns));
    // Isolating it works all the same.
    node.mark(&pod.id, "");
    await_tables(&pod, Tables::Isolated, "without rules to wake");
    assert!(pod.is_cut_off_from(&node));
}

/// A program that does the same in a pod over and over.
struct Storm<'a>(&'a Netns, Child);

impl<'a> Storm<'a> {
    fn start(netns: &'a Netns, commands: &str, tool: &str) -> Self {
        let mut command = netns.command("sh");
        command.args(["-c", &format!("while :; do echo '{commands}'; done | {tool}")]);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        Self(netns, command.spawn().unwrap())
    }
}

impl Drop for Storm<'_> {
    fn drop(&mut self) {
        self.0.kill_processes();
        let _ = self.1.wait();
    }
}

/// The processor time that it has taken.
fn processor_time(agent: &Agent) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", agent.pid())).unwrap();
    let (_, after_name) = stat.rsplit_once(") ").unwrap();
    let ticks: u64 = after_name.split(' ').skip(11).take(2).map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

/// Root in the pod flushes all rules at full speed: the guard holds, the agent repairs at its own pace, and when the
/// storm is over everything is whole.
#[test]
fn a_storm_of_flushes_opens_nothing_and_takes_no_processor() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let agent = Agent::start(&topology.node, Path::new(sandbox.state_dir()));
    let frame = packet::ethernet(PEER_MAC, POD_MAC, 0x88b5, &tag(1));
    let mut outside = Witnesses::default().frames(&topology.peer, "eth0");
    let flood = Flood::start(&topology.pod, "eth0", vec![frame]);
    assert!(outside.await_seen(1, 100) >= 100, "the control: nothing comes out");
    sandbox.write_mark("");
    agent.await_line(&["event=isolated", "verdict=contained"]);
    let whole = rules(&topology.pod);
    outside.forget();
    let storm = Storm::start(&topology.pod, "flush ruleset", "nft -i");
    let repaired = ["event=repaired", sandbox.id()];
    agent.await_line(&repaired);
    let (sent, repairs) = (flood.sent(), agent.count(&repaired));
    let (started, processor) = (Instant::now(), processor_time(&agent));
    // Long enough for some repairs at the longest pause.
    agent.await_lines(&repaired, repairs + 16);
    let (took, processor) = (started.elapsed(), processor_time(&agent) - processor);
    let repairs = agent.count(&repaired) - repairs;
    assert_eq!(outside.seen(1), 0, "of {} sent", flood.sent() - sent);
    drop(storm);
    // Each pause is twice the one before, from 5 ms to 250 ms.
    let cap = 7 + took.as_millis() / 250;
    assert!(repairs as u128 <= cap, "{repairs} repairs in {took:?}, more than {cap}");
    assert!(processor < took / 2, "{processor:?} of processor time in {took:?}");
    assert!(await_kernel(|| rules(&topology.pod) == whole), "{:#?}", rules(&topology.pod));
    assert!(eventually(PATIENCE, || sandbox.verdict() == "contained"));
    assert_eq!(outside.seen(1), 0);
}

/// What changes all the time need not be ours: rules of its own and links cost no more.
#[test]
fn a_storm_that_breaks_nothing_takes_no_processor() {
    let node = Node::new();
    let pod = added(&node);
    let agent = Agent::on(&node);
    node.mark(&pod.id, "");
    agent.await_line(&["event=isolated", &pod.id]);
    let rules_of_its_own = ("add table ip busy; delete table ip busy", "nft -i");
    let links = ("link set lo mtu 1400\nlink set eth0 mtu 1400\nlink set eth0 mtu 1500", "ip -force -batch -");
    for (commands, tool) in [rules_of_its_own, links] {
        let storm = Storm::start(&pod.netns, commands, tool);
        let (started, processor) = (Instant::now(), processor_time(&agent));
        // What it costs to hear of it is what is measured, so there is nothing to wait for.
        std::thread::sleep(Duration::from_secs(3));
        let (took, processor) = (started.elapsed(), processor_time(&agent) - processor);
        assert!(processor < took / 6, "{tool}: {processor:?} of processor time in {took:?}");
        drop(storm);
        is_put_back(&agent, &pod.id, &pod.netns, POD_DAMAGES[4]);
    }
}

/// However many isolated pods never rest: who is marked meanwhile is isolated, and who is released is released.
#[test]
fn pods_that_never_rest_hold_up_nobody() {
    let node = Node::new();
    let pods: Vec<_> = (0..12).map(|_| added(&node)).collect();
    let other = added(&node);
    let agent = Agent::on(&node);
    pods.iter().for_each(|pod| node.mark(&pod.id, ""));
    agent.await_lines(&["event=isolated"], pods.len());
    let storms: Vec<_> = pods
        .iter()
        .map(|pod| Storm::start(&pod.netns, "flush ruleset; add table ip busy; delete table ip busy", "nft -i"))
        .collect();
    agent.await_lines(&["event=repaired"], 2 * pods.len());
    for round in 0..5 {
        node.mark(&other.id, "");
        agent.await_lines(&["event=isolated", &other.id], round + 1);
        assert_eq!(other.tables(), Tables::Isolated);
        std::fs::remove_file(node.mark_path(&other.id)).unwrap();
        agent.await_lines(&["event=released", &other.id], round + 1);
        assert_eq!(other.tables(), Tables::Released);
    }
    drop(storms);
    for pod in &pods {
        await_tables(pod, Tables::Isolated, "after the storms");
        assert!(pod.is_cut_off_from(&node));
    }
}
