//! `isolate`, `release`, `sync`: what they write, enforce and say, and the lines for the auditor.

use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Command;

use serde_json::{Value, json};

use super::{Lab, Place, exits, pod, says};
use crate::lab::{Kind, Topology, quarantine_on_a_bad_disk};

//BINARY

#[test]
fn a_mark_says_what_was_asked_for_and_by_whom() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    let mark = || -> Value { serde_json::from_slice(&std::fs::read(lab.mark("uid-1")).unwrap()).unwrap() };
    exits(lab.run(&["isolate", "c1", "--reason", "beacon", "--case", "IR-1", "--actor", "alice"]), 0);
    assert_eq!(mark(), json!({ "reason": "beacon", "case": "IR-1", "actor": "alice" }));
    exits(lab.run(&["isolate", "c1", "--sealed", "--actor", "a"]), 0);
    assert_eq!(mark()["policy"], json!({ "loopback": false, "probes": false, "allow": [] }));
    let allow = ["--allow", "egress:10.20.0.5/32:tcp:443", "--allow", "ingress:[fd00:20::7]:udp:5-6"];
    exits(lab.run(&[&["isolate", "c1", "--probe-port", "8080"], &allow[..]].concat()), 0);
    let expected = json!({
        "loopback": true,
        "probes": { "ports": [8080] },
        "allow": [
            { "direction": "egress", "peer": "10.20.0.5/32", "protocol": "tcp", "ports": [443] },
            { "direction": "ingress", "peer": "fd00:20::7/128", "protocol": "udp", "ports": ["5-6"] },
        ],
    });
    assert_eq!(mark()["policy"], expected);
    assert_eq!(lab.status("c1")["policy"], expected);
    // Whoever is logged in, where nobody is named.
    assert!(mark()["actor"].as_str().is_some_and(|actor| !actor.is_empty()));
    assert_eq!(std::fs::metadata(lab.mark("uid-1")).unwrap().permissions().mode() & 0o777, 0o600);
}

#[test]
fn what_is_asked_holds_whatever_marks_stood_before() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    for (key, text) in [("c1", r#"{"policy": {"probes": false}}"#), ("shop_web", "")] {
        lab.write_mark(key, text);
    }
    let run = exits(lab.run(&["isolate", "c1", "--sealed"]), 0);
    says(&run.stdout, &["policy sealed"]);
    assert_eq!(lab.marks(), ["shop_web", "uid-1"]);
    let run = exits(lab.run(&["release", "c1"]), 0);
    says(&run.stdout, &["removed the mark shop_web", "removed the mark uid-1", "c1 (shop/web): released"]);
    assert_eq!(lab.status("c1")["verdict"], "open");
}

#[test]
fn release_removes_every_mark_that_holds() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    for key in ["c1", "uid-1", "shop_web"] {
        lab.write_mark(key, "garbage");
    }
    std::fs::create_dir(lab.mark("other")).unwrap();
    exits(lab.run(&["sync"]), 0);
    let status = lab.status("c1");
    assert_eq!(status["mark"]["keys"], json!(["c1", "uid-1", "shop_web"]));
    assert!(status["mark"]["fault"].as_str().unwrap().contains("not JSON"));
    exits(lab.run(&["release", "c1"]), 0);
    assert_eq!(lab.marks(), ["other"]);
    // Again: the state is already there, whoever brought it about.
    says(&exits(lab.run(&["release", "c1"]), 0).stdout, &["c1 (shop/web): released"]);
    says(&exits(lab.run(&["release", "other"]), 0).stdout, &["removed the mark other"]);
}

#[test]
fn all_of_the_node_takes_a_yes() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    lab.invoke("ADD", Place::Peer, "c2", "", &json!({})).ok();
    for verb in ["isolate", "release"] {
        says(&exits(lab.run(&[verb, "--all"]), 2).stderr, &["--yes"]);
        exits(lab.run(&[verb, "c1", "--all"]), 2);
        exits(lab.run(&[verb, "c1", "--yes"]), 2);
        exits(lab.run(&[verb]), 2);
    }
    assert_eq!(lab.marks(), [""; 0]);
    says(&exits(lab.run(&["isolate", "--all", "--yes"]), 0).stdout, &["c1 (shop/web): contained", "c2 (-): contained"]);
    assert_eq!(lab.marks(), ["c2", "uid-1"]);
    lab.write_mark("yet-to-come", "");
    exits(lab.run(&["release", "--all", "--yes"]), 0);
    assert_eq!(lab.marks(), [""; 0]);
    exits(lab.run(&["status"]), 0);
}

#[test]
fn a_dry_run_prints_rules_that_nft_takes_and_changes_nothing() {
    for kind in [Kind::Bridge, Kind::Calico] {
        let topology = Topology::new(kind);
        let lab = Lab::new(&topology);
        lab.add("c1", &pod("web", "uid-1"));
        let allow = ["--allow", "egress:10.20.0.5/32:tcp:443", "--allow", "ingress:fd77::/64:udp:5-6", "--dry-run"];
        let run = exits(lab.run(&[&["isolate", "c1", "--probe-port", "80"], &allow[..]].concat()), 0);
        let (pod_side, host_side) = run.stdout.split_once("# in the network namespace of the host").unwrap();
        says(
            pod_side,
            &[
                "table netdev quarantine {",
                "table inet quarantine {",
                "10.20.0.5",
                "# in the network namespace of the pod (c1, shop/web)",
            ],
        );
        says(host_side, &["table netdev quarantine-c1 {", "skuid 0"]);
        assert!(!run.stdout.contains("dormant"), "{}", run.stdout);
        for (netns, rules) in [(&topology.pod, pod_side), (&topology.node, &format!("#{host_side}")[..])] {
            netns.sh(&format!("nft -c -f - <<'END'\n{rules}\nEND"));
        }
        assert_eq!(lab.marks(), [""; 0]);
        assert_eq!(lab.status("c1")["verdict"], "open");
        says(&exits(lab.run(&["isolate", "shop/new", "--dry-run"]), 1).stderr, &["nothing on this node answers"]);
        exits(lab.run(&["isolate", "--all", "--dry-run"]), 0);
    }
}

#[test]
fn partial_is_said_with_its_reasons_and_is_a_failure_only_where_a_guard_is_required() {
    let topology = Topology::macvlan();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    let run = exits(lab.run(&["isolate", "c1"]), 0);
    says(&run.stdout, &["c1 (shop/web): partial", "eth0: macvlan has no peer on the host"]);
    let status = exits(lab.run(&["status", "c1", "-o", "json"]), 0).json();
    let layers = (&status["layers"]["pod"], &status["layers"]["host"]);
    assert_eq!((&status["verdict"], layers), (&json!("partial"), (&json!(true), &json!(false))));
    exits(lab.run(&["release", "c1"]), 0);

    let lab = Lab::new(&topology);
    lab.invoke("ADD", Place::Peer, "c2", &pod("db", "uid-2"), &json!({ "hostGuard": "require" })).ok();
    let run = exits(lab.run(&["isolate", "c2"]), 1);
    says(&run.stdout, &["c2 (shop/db): NOT isolated", "hostGuard", "the mark stands"]);
    let status = exits(lab.run(&["status", "c2", "-o", "json"]), 1).json();
    assert_eq!(status["verdict"], "open");
    says(&exits(lab.run(&["sync"]), 1).stderr, &["c2", "hostGuard"]);
}

#[test]
fn a_sandbox_that_is_gone_is_called_gone() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    topology.pod.delete();
    says(&exits(lab.run(&["sync"]), 0).stdout, &["c1", "gone"]);
    let status = exits(lab.run(&["status", "c1", "-o", "json"]), 0).json();
    assert_eq!((&status["verdict"], &status["error"]), (&json!("gone"), &Value::Null));
    // Nothing is left that it could be claimed of.
    says(&exits(lab.run(&["isolate", "c1"]), 1).stdout, &["c1 (shop/web): gone", "the mark stands"]);
    exits(lab.run(&["status"]), 1);
    says(&exits(lab.run(&["sync"]), 0).stdout, &["c1: gone"]);
    says(&exits(lab.run(&["release", "c1"]), 0).stdout, &["removed the mark uid-1", "c1 (shop/web): gone"]);
}

#[test]
fn an_unsound_state_directory_is_refused() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    std::fs::set_permissions(lab.state.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
    let commands: [&[&str]; 5] = [&["isolate", "c1"], &["release", "c1"], &["status"], &["list"], &["sync"]];
    for command in commands {
        says(&exits(lab.run(command), 3).stderr, &["0777", lab.state.path().to_str().unwrap()]);
    }
    std::fs::set_permissions(lab.state.path(), std::fs::Permissions::from_mode(0o700)).unwrap();
    let absent = lab.state.path().join("absent");
    for command in commands {
        let mut arguments = command.to_vec();
        arguments.extend(["--state-dir", absent.to_str().unwrap()]);
        says(
            &exits(crate::lab::quarantine(&topology.node, &arguments), 3).stderr,
            &["is quarantine installed on this node"],
        );
    }
}

#[test]
fn nobody_but_root_may() {
    let state = tempfile::tempdir().unwrap();
    for command in [&["isolate", "c1"][..], &["release", "c1"], &["status"], &["list"], &["sync"], &["agent"]] {
        let output = Command::new(crate::lab::program())
            .args(command)
            .args(["--log", "stderr", "--state-dir", state.path().to_str().unwrap()])
            .uid(65_534)
            .gid(65_534)
            .output()
            .unwrap();
        assert_eq!(output.status.code(), Some(3), "{command:?}: {output:?}");
        says(&String::from_utf8_lossy(&output.stderr), &["root", "65534"]);
    }
}

/// The lines for the auditor, by their events.
fn events(stderr: &str) -> Vec<(&str, &str)> {
    let events = stderr.lines().filter_map(|line| line.split_once("event="));
    events.map(|(_, rest)| rest.split_once(' ').unwrap_or((rest, ""))).collect()
}

#[test]
fn each_deed_is_one_line_and_no_value_can_forge_another() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    let hostile = "x\" actor=root\nquarantine[1]: INFO: event=released container=c1 \u{1b}[2J\u{2028}";
    let run = exits(lab.run(&["isolate", "c1", "--reason", hostile, "--case", hostile, "--actor", hostile]), 0);
    let lines = events(&run.stderr);
    assert_eq!(lines.iter().map(|(event, _)| *event).collect::<Vec<_>>(), ["marked", "isolated"], "{}", run.stderr);
    assert_eq!(run.stderr.lines().count(), 2, "{}", run.stderr);
    for (_, line) in &lines {
        says(line, &[r#"reason="x\" actor=root\u{a}"#, r#"actor="x\""#]);
        assert!(line.is_ascii() && !line.contains('\u{1b}'), "{line}");
    }
    let run = exits(lab.run(&["release", "c1", "--actor", "bob", "--reason", "clean"]), 0);
    assert_eq!(
        events(&run.stderr).iter().map(|(event, _)| *event).collect::<Vec<_>>(),
        ["unmarked", "released"],
        "{}",
        run.stderr
    );
    says(&run.stderr, &["mark=uid-1", "actor=bob", "reason=clean"]);
    // What a terminal is shown is printable too.
    lab.write_mark("uid-1", &json!({ "reason": hostile, "actor": hostile }).to_string());
    for command in [&["status", "c1"][..], &["status"], &["list"]] {
        let text = lab.run(command).stdout;
        assert!(!text.contains(['\u{1b}', '\u{2028}']), "{text}");
    }
    // The sync that follows an operator's own mark is held to the same.
    let run = exits(lab.run(&["sync"]), 0);
    assert_eq!(run.stderr.lines().count(), 1, "{}", run.stderr);
}

#[test]
fn another_policy_is_an_update_and_says_what_somebody_changed() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    exits(lab.run(&["isolate", "c1"]), 0);
    for arguments in [&["--sealed"][..], &["--probe-port", "80"], &["--no-probes"], &[]] {
        let run = exits(lab.run(&[&["isolate", "c1"], arguments].concat()), 0);
        assert_eq!(events(&run.stderr)[1].0, "updated", "{}", run.stderr);
    }
    topology.pod.sh("nft flush chain netdev quarantine egress-eth0");
    let run = exits(lab.run(&["sync"]), 0);
    says(&run.stderr, &["event=updated", "changed=\"pod netdev the rules of chain egress-eth0 are altered\""]);
    assert_eq!(events(&run.stderr).len(), 1);
}

#[test]
fn a_refusal_is_a_line_too() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    let run = exits(lab.run(&["isolate", "no\nevent=released", "--actor", "mallory"]), 2);
    let lines: Vec<_> = run.stderr.lines().filter(|line| line.starts_with("quarantine[")).collect();
    assert_eq!(lines.len(), 1, "{}", run.stderr);
    says(lines[0], &["event=refused", "command=isolate", "sandbox=\"no\\u{a}event=released\"", "actor=mallory"]);
}

#[test]
fn completions_and_manual_pages_come_from_the_same_definition() {
    let output = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let completions = Command::new(crate::lab::program()).args(["completions", shell]).output().unwrap();
        assert!(completions.status.success());
        says(&String::from_utf8_lossy(&completions.stdout), &["isolate", "probe-port", "state-dir"]);
    }
    let man = Command::new(crate::lab::program()).args(["man", "--out"]).arg(output.path()).output().unwrap();
    assert!(man.status.success(), "{man:?}");
    for command in ["isolate", "release", "status", "list", "sync", "agent"] {
        let page = std::fs::read_to_string(output.path().join(format!("quarantine-{command}.8"))).unwrap();
        says(&page, &[&format!("quarantine\\-{command}"), "Exit codes"]);
    }
    let main = Command::new(crate::lab::program()).arg("man").output().unwrap();
    says(&String::from_utf8_lossy(&main.stdout), &[".TH", "isolate", "Exit codes"]);
}

/// A mark by container ID that cannot be removed (a directory with something in it) comes before the new one and seals:
/// that is an error, and the pod is isolated all the same.
#[test]
fn a_mark_that_cannot_be_replaced_does_not_delay_the_isolation() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("abc123", &pod("web", "0f9d6b52-6f0a-4a43-9d1c-0123456789ab"));
    std::fs::create_dir_all(lab.mark("abc123").join("something")).unwrap();
    let run = exits(lab.run(&["isolate", "abc123"]), 3);
    says(&run.stdout, &["abc123", "contained", "sealed"]);
    assert_eq!(lab.status("abc123")["verdict"], "contained");
}

/// The disk is waited for beside the kernel, and before anybody is told that it is done.
#[test]
fn what_the_disk_does_not_keep_is_cut_off_and_not_called_done() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    let on_a_bad_disk = |words: &[&str]| {
        quarantine_on_a_bad_disk(&topology.node, &[words, &["--state-dir", lab.state.text()]].concat())
    };
    let said = exits(on_a_bad_disk(&["isolate", "c1"]), 3);
    says(&said.stdout, &["c1 (shop/web): contained"]);
    says(&said.stderr, &["cannot keep the mark", "uid-1"]);
    assert_eq!(lab.status("c1")["verdict"], "contained");
    // A mark that the new one takes the place of stays as long as the disk has not the new one.
    exits(lab.run(&["release", "c1"]), 0);
    lab.write_mark("c1", "{}");
    exits(on_a_bad_disk(&["isolate", "c1"]), 3);
    assert_eq!(lab.marks(), ["c1", "uid-1"]);
    exits(lab.run(&["isolate", "c1"]), 0);
    assert_eq!(lab.marks(), ["uid-1"]);
}
