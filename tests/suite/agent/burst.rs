//! Many marks at once, some of them for sandboxes that cannot be isolated: those delay nobody.

use std::fs;
use std::time::{Duration, Instant};

use cni_quarantine::names::ContainerId;
use cni_quarantine::state::{SandboxLock, StateDir};
use nix::sys::signal::Signal;
use serde_json::json;

use super::{Agent, PATIENCE, both_tables};
use crate::lab::{Crowd, Sandbox, Tables, Topology, quarantine};

const COUNT: usize = 200;
/// Its netns is gone.
const GONE: usize = 17;
/// Somebody else has its lock and does not give it back.
const HELD: usize = 18;

/// What the kernel has, of all sandboxes but these.
fn all_are(crowd: &Crowd, wanted: Tables, but: &[usize]) -> Vec<usize> {
    let wrong = std::sync::Mutex::new(Vec::new());
    crowd.on_each(|number| {
        let found = || crowd.ruleset(number).ok().and_then(|ruleset| both_tables(&ruleset));
        if !but.contains(&number) && !super::await_kernel(|| found() == Some(wanted)) {
            wrong.lock().unwrap().push(number);
        }
    });
    wrong.into_inner().unwrap()
}

fn guards(crowd: &Crowd) -> usize {
    crowd.node.sh("nft list tables").lines().filter(|line| line.starts_with("table netdev quarantine-")).count()
}

fn verdict(crowd: &Crowd, number: usize) -> String {
    let state_dir = crowd.state_dir().to_str().unwrap();
    let run = quarantine(&crowd.node, &["status", crowd.id(number), "-o", "json", "--state-dir", state_dir]);
    run.json()["verdict"].as_str().unwrap_or_default().to_owned()
}

/// Somebody is working on a sandbox, and never finishes.
fn hold_lock(crowd: &Crowd, number: usize) -> SandboxLock {
    let state = StateDir::open(crowd.state_dir()).unwrap();
    state.lock(&ContainerId::new(crowd.id(number)).unwrap(), PATIENCE).unwrap()
}

#[test]
fn two_hundred_at_once_and_two_that_cannot() {
    let crowd = Crowd::new(COUNT);
    crowd.delete(GONE);
    let held = hold_lock(&crowd, HELD);
    let agent = Agent::start(&crowd.node, crowd.state_dir());
    for number in 0..crowd.len() {
        fs::write(crowd.mark(number), "").unwrap();
    }
    let wrong = all_are(&crowd, Tables::Isolated, &[GONE, HELD]);
    assert!(wrong.is_empty(), "{wrong:?}: {:#?}", agent.lines());
    assert_eq!(guards(&crowd), COUNT - 2);
    // What could not be done is said, also while it hangs.
    assert_eq!(verdict(&crowd, GONE), "gone");
    assert_eq!(verdict(&crowd, 0), "contained");
    assert_eq!(verdict(&crowd, HELD), "open");
    assert_eq!(both_tables(&crowd.ruleset(HELD).unwrap()), Some(Tables::Released), "the control: it is held");
    // And is done as soon as it can be.
    drop(held);
    let wrong = all_are(&crowd, Tables::Isolated, &[GONE]);
    assert!(wrong.is_empty(), "{wrong:?}: {:#?}", agent.lines());
    for number in 0..crowd.len() {
        fs::remove_file(crowd.mark(number)).unwrap();
    }
    let wrong = all_are(&crowd, Tables::Released, &[GONE]);
    assert!(wrong.is_empty(), "{wrong:?}: {:#?}", agent.lines());
    assert!(super::await_kernel(|| guards(&crowd) == 0));
}

/// Has the agent hear of what is done as of one moment.
fn while_it_sleeps(agent: &Agent, work: impl FnOnce()) {
    agent.signal(Signal::SIGSTOP);
    work();
    agent.signal(Signal::SIGCONT);
}

/// Each is opened by what the node looked like at its turn, and what changed since is made good.
#[test]
fn what_changes_about_the_node_in_the_middle_is_noticed() {
    let crowd = Crowd::new(48);
    let agent = Agent::start(&crowd.node, crowd.state_dir());
    while_it_sleeps(&agent, || (0..crowd.len()).for_each(|number| fs::write(crowd.mark(number), "").unwrap()));
    agent.await_line(&["event=isolated"]);
    let concerned = [3, 17, 30, 47];
    let address = |number: usize| format!("203.0.113.{number}");
    for number in concerned {
        crowd.node.sh(&format!("ip addr add {}/32 dev h{number}", address(number)));
    }
    agent.await_lines(&["event=isolated"], crowd.len());
    for number in concerned {
        let guard = || crowd.node.sh(&format!("nft list table netdev quarantine-{}", crowd.id(number)));
        let is_known = super::await_kernel(|| guard().contains(&address(number)));
        assert!(is_known, "{number}: {}\n{:#?}", guard(), agent.lines());
    }
}

/// A sandbox that keeps failing is retried at growing intervals, and `status` says that it is open.
#[test]
fn what_fails_is_tried_again_ever_more_seldom() {
    let topology = Topology::macvlan();
    // There is no peer on the host, so it cannot be.
    let sandbox = Sandbox::add_with(&topology, &json!({ "hostGuard": "require" }));
    let agent = Agent::start(&topology.node, std::path::Path::new(sandbox.state_dir()));
    let started = Instant::now();
    sandbox.write_mark("");
    let tries = ["event=not-isolated", sandbox.id()];
    agent.await_lines(&tries, 5);
    // 100, 200, 400 and 800 ms lie between five tries: no less, however slow the machine. (The mark may have come while
    // the agent looked at it for the first time; then it looks again at once, and the first pause falls away.)
    assert!(started.elapsed() >= Duration::from_millis(1400), "{:?}", started.elapsed());
    let status = sandbox.status();
    assert_eq!(status["verdict"], "open", "{status:#}");
    assert!(status["reasons"].to_string().contains("no peer") || !status["error"].is_null(), "{status:#}");
}
