//! Marks that say nothing sound: in doubt they isolate.

use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

use nix::sys::stat::Mode;
use serde_json::json;

use super::{MakeMark, OPEN_LO};
use crate::lab::{Node, Pod, Tables};

/// Isolated, and not even `lo` passes.
#[track_caller]
fn is_sealed(node: &Node, pod: &Pod, why: &str) {
    assert_eq!(pod.tables(), Tables::Isolated, "{why}");
    assert!(!pod.loopback_passes(), "{why}: lo passes");
    assert!(pod.is_cut_off_from(node), "{why}: the node is reached");
}

/// In doubt it isolates: what is there but says nothing sound seals, at ADD and by CHECK, and the log says so.
#[test]
fn an_invalid_mark_seals() {
    let texts: &[&[u8]] = &[
        b"junk",
        b"{",
        b"null",
        b"[]",
        b"true",
        b"\"isolated\"",
        b"{}{}",
        b"\0",
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        br#"{"polciy": {"loopback": true}}"#,
        br#"{"policy": null}"#,
        br#"{"policy": {"loopbak": true}}"#,
        br#"{"policy": {"loopback": "yes"}}"#,
        br#"{"policy": {"allow": [{"direction": "egress"}]}}"#,
        br#"{"policy": {"allow": [{"direction": "egress", "peer": "0.0.0.0/0", "protocol": "tcp", "ports": []}]}}"#,
        br#"{"reason": 7}"#,
        br#"{"actor": null}"#,
    ];
    for text in texts {
        let node = Node::new();
        let pod = node.pod();
        assert!(pod.reaches_node(&node) && pod.loopback_passes(), "the control");
        let shown = String::from_utf8_lossy(text);
        node.mark(&pod.id, text);
        let mut config = pod.chained_config(&node);
        config["log"] = json!({ "target": "stderr" });
        let outcome = node.call("ADD").sandbox(&pod).config(config).run();
        outcome.result();
        is_sealed(&node, &pod, &shown);
        assert!(outcome.stderr.contains(&pod.id), "{shown}: the log is silent: {outcome:?}");
        node.plugin("CHECK", &pod).succeeded_silently();
        is_sealed(&node, &pod, &shown);
    }
}

/// The same for what is no file, or cannot be read, or not in a reasonable time and space. No call hangs.
#[test]
fn an_unreadable_mark_seals() {
    let makes: [(&str, MakeMark); 9] = [
        ("a directory", |path| std::fs::create_dir(path).unwrap()),
        ("a directory with something in it", |path| {
            std::fs::create_dir(path).unwrap();
            std::fs::write(path.join("x"), "").unwrap();
        }),
        ("a FIFO that nobody writes", |path| nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap()),
        ("a socket", |path| drop(UnixListener::bind(path).unwrap())),
        ("a link that leads nowhere", |path| symlink("/nowhere/at/all", path).unwrap()),
        ("a link to itself", |path| symlink(path.file_name().unwrap(), path).unwrap()),
        ("a link to something endless", |path| symlink("/dev/zero", path).unwrap()),
        ("5 MiB of x", |path| std::fs::write(path, vec![b'x'; 5 << 20]).unwrap()),
        ("deep nesting", |path| std::fs::write(path, vec![b'['; 1 << 20]).unwrap()),
    ];
    for (what, make) in makes {
        let node = Node::new();
        // The names of sockets are short: by UID, not by container ID.
        let pod = node.pod();
        assert!(pod.reaches_node(&node) && pod.loopback_passes(), "the control");
        make(&node.mark_path("uid-1"));
        node.plugin_as("ADD", &pod, "uid-1").result();
        is_sealed(&node, &pod, what);
        node.plugin_as("CHECK", &pod, "uid-1").succeeded_silently();
        is_sealed(&node, &pod, what);
        node.plugin_as("DEL", &pod, "uid-1").succeeded_silently();
        assert!(node.mark_path("uid-1").symlink_metadata().is_ok(), "{what}: the mark is gone");
    }
}

/// A mark that is a link is there, whatever it leads to: it isolates. A large one that is sound isolates too.
#[test]
fn a_strange_mark_isolates() {
    let makes: [(&str, MakeMark); 3] = [
        ("a link to a sound mark", |path| {
            let target = path.with_file_name(".target");
            std::fs::write(&target, OPEN_LO).unwrap();
            symlink(target, path).unwrap();
        }),
        ("5 MiB of white space", |path| std::fs::write(path, vec![b' '; 5 << 20]).unwrap()),
        ("a reason of 5 MiB", |path| {
            std::fs::write(path, json!({ "reason": "x".repeat(5 << 20) }).to_string()).unwrap()
        }),
    ];
    for (what, make) in makes {
        let node = Node::new();
        let pod = node.pod();
        assert!(pod.reaches_node(&node) && pod.loopback_passes(), "the control");
        make(&node.mark_path("uid-1"));
        node.plugin_as("ADD", &pod, "uid-1").result();
        assert_eq!(pod.tables(), Tables::Isolated, "{what}");
        assert!(pod.is_cut_off_from(&node), "{what}");
    }
}
