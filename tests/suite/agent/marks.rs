//! Marks in every form in which operators and their tools write files.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::symlink;
use std::path::Path;

use super::{Agent, PATIENCE, added, added_as, await_tables};
use crate::lab::{Node, Tables, eventually};

/// A way to make a mark, and the policy that its `isolated` line must name.
struct Form {
    name: &'static str,
    make: fn(&Path),
    policy: &'static str,
}

const SEALED: &str = "policy=sealed";

fn forms() -> Vec<Form> {
    let form = |name, make, policy| Form { name, make, policy };
    vec![
        form(
            "touch",
            |mark| drop(OpenOptions::new().create_new(true).write(true).open(mark).unwrap()),
            "policy=loopback+probes ",
        ),
        form(
            "write, then close",
            |mark| fs::write(mark, r#"{"policy": {"probes": false}, "case": "IR-1"}"#).unwrap(),
            "policy=loopback ",
        ),
        form(
            "rename into place",
            |mark| {
                let temporary = mark.with_file_name(".coming");
                fs::write(&temporary, r#"{"policy": {"probes": false}}"#).unwrap();
                fs::rename(temporary, mark).unwrap();
            },
            "policy=loopback ",
        ),
        form(
            "rename over an empty one",
            |mark| {
                fs::write(mark, "").unwrap();
                let temporary = mark.with_file_name(".coming");
                fs::write(&temporary, r#"{"policy": {"probes": false}}"#).unwrap();
                fs::rename(temporary, mark).unwrap();
            },
            "policy=loopback ",
        ),
        form(
            "hard link",
            |mark| {
                let elsewhere = mark.parent().unwrap().with_file_name("prepared");
                fs::write(&elsewhere, r#"{"policy": {"probes": false}}"#).unwrap();
                fs::hard_link(&elsewhere, mark).unwrap();
                fs::remove_file(elsewhere).unwrap();
            },
            "policy=loopback ",
        ),
        form("garbage", |mark| fs::write(mark, [0xff, 0, b'{', 7]).unwrap(), SEALED),
        form("half of a document", |mark| fs::write(mark, r#"{"policy": {"pro"#).unwrap(), SEALED),
        form(
            "1 MiB that is valid",
            |mark| fs::write(mark, format!(r#"{{"policy": {{"probes": false}}{}}}"#, " ".repeat(1 << 20))).unwrap(),
            "policy=loopback ",
        ),
        form("1 MiB of garbage", |mark| fs::write(mark, vec![b'x'; 1 << 20]).unwrap(), SEALED),
        form("a directory", |mark| fs::create_dir(mark).unwrap(), SEALED),
        form("a dangling link", |mark| symlink("/nowhere/at/all", mark).unwrap(), SEALED),
        form("a FIFO", |mark| nix::unistd::mkfifo(mark, nix::sys::stat::Mode::S_IRWXU).unwrap(), SEALED),
    ]
}

fn remove(mark: &Path) {
    if fs::symlink_metadata(mark).unwrap().is_dir() { fs::remove_dir(mark) } else { fs::remove_file(mark) }.unwrap();
}

#[test]
fn every_form_isolates_and_its_removal_releases() {
    let node = Node::new();
    let pod = added(&node);
    assert!(pod.reaches_node(&node), "the control");
    let agent = Agent::on(&node);
    for (round, form) in forms().into_iter().enumerate() {
        let mark = node.mark_path(&pod.id);
        (form.make)(&mark);
        await_tables(&pod, Tables::Isolated, form.name);
        // A mark that is read half is sealed for a moment.
        let last = || agent.lines().into_iter().rfind(|line| line.contains("policy=")).unwrap_or_default();
        assert!(eventually(PATIENCE, || last().contains(form.policy)), "{}: {}", form.name, last());
        assert!(pod.is_cut_off_from(&node), "{}", form.name);
        remove(&mark);
        await_tables(&pod, Tables::Released, form.name);
        assert!(pod.reaches_node(&node), "{}", form.name);
        agent.await_lines(&["event=released", &pod.id], round + 1);
    }
}

#[test]
fn every_name_of_a_sandbox_isolates_it() {
    let node = Node::new();
    let pod = added_as(&node, "uid-1");
    let other = added(&node);
    let _agent = Agent::on(&node);
    for key in [pod.id.as_str(), "uid-1", "shop_web"] {
        node.mark(key, "");
        await_tables(&pod, Tables::Isolated, key);
        remove(&node.mark_path(key));
        await_tables(&pod, Tables::Released, key);
        assert_eq!(other.tables(), Tables::Released, "{key}");
    }
}

/// It is released when the last of its marks goes, not the first.
#[test]
fn the_last_mark_releases() {
    let node = Node::new();
    let pod = added_as(&node, "uid-1");
    let agent = Agent::on(&node);
    for key in [pod.id.as_str(), "uid-1", "shop_web"] {
        node.mark(key, "");
    }
    await_tables(&pod, Tables::Isolated, "three marks");
    for key in [pod.id.as_str(), "uid-1"] {
        remove(&node.mark_path(key));
    }
    // What was done about another pod's mark says that these were seen.
    let other = added(&node);
    node.mark(&other.id, "");
    await_tables(&other, Tables::Isolated, "the other");
    assert_eq!(pod.tables(), Tables::Isolated);
    assert_eq!(agent.count(&["event=released"]), 0, "{:#?}", agent.lines());
    remove(&node.mark_path("shop_web"));
    await_tables(&pod, Tables::Released, "no mark");
}

/// Sealed while the document is not complete, then what it says; never open in between.
#[test]
fn a_mark_that_is_half_written_for_a_while() {
    let node = Node::new();
    let pod = added(&node);
    let agent = Agent::on(&node);
    let mut file = fs::File::create(node.mark_path(&pod.id)).unwrap();
    let (head, tail) = r#"{"policy": {"probes": false}, "reason": "slow"}"#.split_at(20);
    file.write_all(head.as_bytes()).unwrap();
    agent.await_line(&[&pod.id, SEALED, "sealed_because="]);
    await_tables(&pod, Tables::Isolated, "half");
    file.write_all(tail.as_bytes()).unwrap();
    agent.await_line(&[&pod.id, "event=updated", "policy=loopback", "reason=slow"]);
    drop(file);
    assert!(pod.is_cut_off_from(&node));
    assert_eq!(agent.count(&["event=released"]), 0, "{:#?}", agent.lines());
}

/// A mark that is changed where it stands changes the policy, also by a program that keeps it open.
#[test]
fn a_mark_that_is_rewritten_changes_the_policy() {
    let node = Node::new();
    let pod = added(&node);
    let agent = Agent::on(&node);
    node.mark(&pod.id, "");
    agent.await_line(&[&pod.id, "event=isolated", "policy=loopback+probes"]);
    node.mark(&pod.id, r#"{"policy": {"probes": {"ports": [8080]}}}"#);
    agent.await_line(&[&pod.id, "event=updated", "policy=loopback+probes:8080"]);
    node.mark(&pod.id, r#"{"policy": {"probes": false}}"#);
    agent.await_line(&[&pod.id, "event=updated", "policy=loopback "]);
    assert_eq!(agent.count(&["event=released"]), 0, "{:#?}", agent.lines());
    assert_eq!(pod.tables(), Tables::Isolated);
}

#[test]
fn names_with_a_dot_are_no_marks() {
    let node = Node::new();
    let (pod, other) = (added(&node), added(&node));
    let agent = Agent::on(&node);
    let (mark, hidden) = (node.mark_path(&pod.id), node.mark_path(&format!(".{}", pod.id)));
    fs::write(&hidden, "").unwrap();
    fs::write(node.mark_path(&format!(".{}.swp", pod.id)), "").unwrap();
    node.mark(&other.id, "");
    await_tables(&other, Tables::Isolated, "the mark that came after");
    assert_eq!(pod.tables(), Tables::Released);
    fs::rename(&hidden, &mark).unwrap();
    await_tables(&pod, Tables::Isolated, "renamed to a mark");
    fs::rename(&mark, &hidden).unwrap();
    await_tables(&pod, Tables::Released, "renamed to no mark");
    assert_eq!(agent.count(&["event=isolated", &pod.id]), 1, "{:#?}", agent.lines());
}

/// However many changes are passed over: what stands at the end is what holds.
#[test]
fn a_mark_that_comes_and_goes_in_a_loop() {
    let node = Node::new();
    let pod = added(&node);
    let _agent = Agent::on(&node);
    let mark = node.mark_path(&pod.id);
    for ends_marked in [true, false, true, false, true] {
        for _ in 0..300 {
            fs::write(&mark, "").unwrap();
            fs::remove_file(&mark).unwrap();
        }
        if ends_marked {
            fs::write(&mark, "").unwrap();
            await_tables(&pod, Tables::Isolated, "marked at the end");
            assert!(pod.is_cut_off_from(&node));
            fs::remove_file(&mark).unwrap();
        }
        await_tables(&pod, Tables::Released, "not marked at the end");
        assert!(pod.reaches_node(&node));
    }
}
