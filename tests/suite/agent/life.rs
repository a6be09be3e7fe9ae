//! The process itself: one on each node, its signals, what it tells the service manager, and that it rests.

use std::fs;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::{Agent, added, added_as, await_kernel, await_tables};
use crate::lab::{Node, Tables, quarantine, rules, tables};

#[test]
fn a_second_one_says_who_is_first() {
    let node = Node::new();
    let pod = added(&node);
    let first = Agent::on(&node);
    let (status, lines) = Agent::spawn(&node.netns, node.state_dir(), &[]).wait();
    assert_eq!(status.code(), Some(3), "{lines:#?}");
    let says = |word: &str| lines.iter().any(|line| line.contains(word));
    assert!(says("running") && says(&first.pid().to_string()), "{lines:#?}");
    // The first is not disturbed.
    node.mark(&pod.id, "");
    await_tables(&pod, Tables::Isolated, "by the first");
    // The lock ends with the process, however that ends.
    first.kill();
    let _third = Agent::on(&node);
    fs::remove_file(node.mark_path(&pod.id)).unwrap();
    await_tables(&pod, Tables::Released, "by the third");
}

#[test]
fn sigterm_ends_it_and_releases_nobody() {
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        let node = Node::new();
        let pod = added(&node);
        let agent = Agent::on(&node);
        node.mark(&pod.id, "");
        await_tables(&pod, Tables::Isolated, "before");
        agent.signal(signal);
        agent.await_notification("STOPPING=1");
        let (status, lines) = agent.wait();
        assert!(status.success(), "{signal}: {status}, {lines:#?}");
        assert!(lines.iter().any(|line| line.contains("event=agent-stopped")), "{lines:#?}");
        assert_eq!(pod.tables(), Tables::Isolated, "{signal}");
        assert!(pod.is_cut_off_from(&node), "{signal}");
    }
}

/// What changes without an event for the agent is found: here in a released pod, to whose events it does not listen.
#[test]
fn sighup_looks_at_everything() {
    let node = Node::new();
    let pod = added(&node);
    let agent = Agent::on(&node);
    // So that the look at everything with which it starts is over.
    node.mark(&pod.id, "");
    await_tables(&pod, Tables::Isolated, "before");
    fs::remove_file(node.mark_path(&pod.id)).unwrap();
    await_tables(&pod, Tables::Released, "before");
    agent.await_line(&["event=released"]);
    pod.netns.sh("nft 'delete table inet quarantine; delete table netdev quarantine'");
    assert_eq!(tables(&pod.netns), Tables::Absent);
    agent.signal(Signal::SIGHUP);
    await_tables(&pod, Tables::Released, "after SIGHUP");
}

#[test]
fn the_watchdog_is_told() {
    let node = Node::new();
    let agent = Agent::spawn(&node.netns, node.state_dir(), &[("WATCHDOG_USEC", "300000")]);
    agent.await_notification("READY=1");
    for _ in 0..5 {
        agent.await_notification("WATCHDOG=1");
    }
}

/// A state directory that others can write is refused by name, not used.
#[test]
fn an_unsound_state_directory_is_refused() {
    let node = Node::new();
    added(&node);
    let isolated = node.mark_path("x").parent().unwrap().to_owned();
    fs::set_permissions(&isolated, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let (status, lines) = Agent::spawn(&node.netns, node.state_dir(), &[]).wait();
    assert_eq!(status.code(), Some(3), "{lines:#?}");
    assert!(lines.iter().any(|line| line.contains(isolated.to_str().unwrap()) && line.contains("0777")), "{lines:#?}");
}

/// What a command reports is true when it returns; what the agent still has to do about an older mark changes nothing.
#[test]
fn commands_and_the_agent_agree() {
    let node = Node::new();
    let pod = added_as(&node, "uid-1");
    assert!(pod.reaches_node(&node), "the control");
    let agent = Agent::on(&node);
    let command = |words: &[&str]| {
        let state_dir = ["--state-dir", node.state_dir().to_str().unwrap()];
        quarantine(&node.netns, &[words, &state_dir].concat()).ok();
    };
    for _ in 0..10 {
        for policy in ["--sealed", "--no-probes", "--probe-port=8080"] {
            command(&["isolate", "uid-1", policy]);
            assert_eq!(pod.tables(), Tables::Isolated);
        }
        command(&["release", "uid-1"]);
        assert_eq!(pod.tables(), Tables::Released);
    }
    command(&["isolate", &pod.id, "--sealed"]);
    let sealed = rules(&pod.netns);
    command(&["isolate", &pod.id]);
    assert_ne!(rules(&pod.netns), sealed, "the control");
    command(&["isolate", &pod.id, "--sealed"]);
    // What was done about another pod says that the agent has seen all that.
    let other = added(&node);
    command(&["isolate", &other.id]);
    assert_eq!(rules(&pod.netns), sealed);
    assert!(pod.is_cut_off_from(&node));
    assert_eq!(agent.count(&["event=tampering"]), 0, "{:#?}", agent.lines());
    assert_eq!(agent.count(&["event=repaired"]), 0, "{:#?}", agent.lines());
}

/// Nothing is polled: while nothing happens it does not run at all, and what it opened for isolated pods it closes.
#[test]
fn it_rests_and_keeps_nothing() {
    let node = Node::new();
    // Before there is anything to look at.
    let agent = Agent::on(&node);
    let before = agent.descriptors_at_rest();
    let pods: Vec<_> = (0..10).map(|_| added(&node)).collect();
    let all_are = |wanted| pods.iter().for_each(|pod| await_tables(pod, wanted, "all"));
    for round in 0..3 {
        pods.iter().for_each(|pod| node.mark(&pod.id, ""));
        all_are(Tables::Isolated);
        assert!(agent.descriptors() > before, "the control: isolated pods are listened to");
        if round == 2 {
            // Quiet is what is measured, so there is nothing to wait for.
            std::thread::sleep(Duration::from_millis(500));
            let woken = agent.wakeups();
            std::thread::sleep(Duration::from_secs(3));
            let woken = agent.wakeups() - woken;
            assert!(woken <= 2, "woken {woken} times while nothing happened");
        }
        pods.iter().for_each(|pod| fs::remove_file(node.mark_path(&pod.id)).unwrap());
        all_are(Tables::Released);
        assert!(await_kernel(|| agent.descriptors() == before), "{} instead of {before}", agent.descriptors());
    }
}

/// A pod that ended while nobody was there, and whose record is gone too: its guard is removed, and that is said. One whose
/// interface is still there stays.
#[test]
fn it_starts_by_removing_guards_of_nothing() {
    let node = Node::new();
    let (gone, here) = (added(&node), added(&node));
    for pod in [&gone, &here] {
        node.mark(&pod.id, "");
    }
    node.sync();
    for pod in [&gone, &here] {
        fs::remove_file(node.mark_path(&pod.id)).unwrap();
        fs::remove_dir_all(node.state_dir().join("attachments").join(&pod.id)).unwrap();
    }
    node.netns.ip(&format!("link del {}", gone.host_end()));
    let guards = || node.netns.sh("nft list tables");
    assert!(guards().contains(&gone.id), "the kernel keeps the table");
    let agent = Agent::on(&node);
    agent.await_line(&["event=guard-removed", &gone.id]);
    assert!(!guards().contains(&gone.id));
    assert!(guards().contains(&here.id));
}
