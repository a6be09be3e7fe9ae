//! The agent's lines for the auditor: one for each thing that happened, whatever hostile words are in it.

use serde_json::json;

use super::{Agent, added, await_tables};
use crate::lab::{Node, Tables};

#[test]
fn no_mark_can_forge_a_line_or_a_pair() {
    let node = Node::new();
    let pod = added(&node);
    let agent = Agent::on(&node);
    let hostile = "x\" actor=root\nquarantine[1]: INFO: event=released container=all\r\u{1b}[2J\u{2028}event=forged \\";
    let mark = json!({ "reason": hostile, "case": "a b=c", "actor": format!("{hostile}{hostile}") });
    // Whole at once: that words come to a mark which was read while it was still empty is no line of its own.
    node.move_mark(&pod.id, mark.to_string());
    await_tables(&pod, Tables::Isolated, "isolated");
    let line = agent.await_line(&[&pod.id, "case="]);
    for pair in [r#" reason="x\" actor=root\u{a}quarantine[1]: INFO: event=released"#, r#" case="a b=c""#] {
        assert!(line.contains(pair), "no {pair} in {line}");
    }
    // An invalid mark is quoted in the reason for which it seals.
    node.mark(&pod.id, format!("{{\"{}\": 1}}", "k\\n event=forged \\\" "));
    agent.await_line(&["policy=sealed", "sealed_because="]);
    let prefix = format!("quarantine[{}]: ", agent.pid());
    for line in agent.lines() {
        let event = line.strip_prefix(&prefix).and_then(|line| line.split_once(": "));
        let event = event.map(|(_, line)| line.split(' ').next().unwrap_or_default());
        let expected = ["event=agent-started", "event=births-swept", "event=isolated", "event=updated"];
        assert!(event.is_some_and(|event| expected.contains(&event)), "{line:?}");
        assert!(line.chars().all(|c| matches!(c, ' '..='~' | '…')), "{line:?}");
    }
}

/// The program that changed the rules is named by a word of the attacker's choice.
#[test]
fn no_program_s_name_can_forge_a_line_or_a_pair() {
    let node = Node::new();
    let pod = added(&node);
    let agent = Agent::on(&node);
    node.mark(&pod.id, "");
    agent.await_line(&["event=isolated", &pod.id]);
    let directory = tempfile::tempdir().unwrap();
    let name = "a\" b=c\nevent=";
    let program = directory.path().join(name);
    // A link: what is copied is held open for writing by whatever is forked meanwhile (ETXTBSY).
    std::os::unix::fs::symlink(pod.netns.sh("command -v nft").trim(), &program).unwrap();
    let status = pod.netns.command(program.to_str().unwrap()).args(["flush", "ruleset"]).status().unwrap();
    assert!(status.success());
    let line = agent.await_line(&["event=tampering"]);
    assert!(line.contains(r#"by="a\\\" b=c\\nevent="#), "{line}");
    agent.await_line(&["event=repaired"]);
    assert!(agent.lines().iter().all(|line| line.starts_with("quarantine[")), "{:#?}", agent.lines());
}

/// What an auditor asks: who, what, by which policy, why, in which case, by whose hand, and how long it took.
#[test]
fn a_line_says_who_what_and_why() {
    let node = Node::new();
    let pod = super::added_as(&node, "uid-1");
    let agent = Agent::on(&node);
    node.mark("uid-1", r#"{"reason": "beacon", "case": "IR-7", "actor": "ann"}"#);
    let line = agent.await_line(&["case="]);
    let id = format!("container={}", pod.id);
    let pairs =
        [&id, "pod=shop/web", "uid=uid-1", "verdict=", "policy=", "reason=beacon", "case=IR-7", "actor=ann", "ms="];
    for pair in pairs {
        assert!(line.contains(&format!(" {pair}")), "no {pair} in {line}");
    }
    std::fs::remove_file(node.mark_path("uid-1")).unwrap();
    let line = agent.await_line(&["event=released"]);
    for pair in [&id, "pod=shop/web", "uid=uid-1", "ms="] {
        assert!(line.contains(&format!(" {pair}")), "no {pair} in {line}");
    }
}
