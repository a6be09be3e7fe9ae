//! docs/protocol.md, part G: STATUS.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;

use serde_json::json;

use crate::lab::{Node, rules, ruleset, tree};

/// Puts the program where everybody can reach it; the guard removes it.
pub(super) fn reachable_program() -> (tempfile::TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    std::fs::set_permissions(directory.path(), PermissionsExt::from_mode(0o755)).unwrap();
    let program = directory.path().join("quarantine");
    // By a process of its own: a file that this one had open for writing, a program that another test starts at that
    // moment holds open too, and to run it would fail (ETXTBSY).
    let copied = std::process::Command::new("cp").arg(crate::lab::program()).arg(&program).status();
    assert!(copied.unwrap().success());
    (directory, program)
}

/// G33: ready is exit 0 and silence, with no side effects, whether or not the state directory is there yet.
#[test]
fn ready_is_silent_and_changes_nothing() {
    let node = Node::new();
    node.mark("some-pod", "");
    for state_dir in [node.state_dir().to_owned(), node.state_dir().join("not-yet")] {
        let mut config = node.config();
        config["stateDir"] = json!(state_dir);
        let before = (ruleset(&node.netns), tree(node.state_dir()));
        for _ in 0..2 {
            node.call("STATUS").config(config.clone()).run().succeeded_silently();
        }
        assert_eq!((ruleset(&node.netns), tree(node.state_dir())), before, "{}", state_dir.display());
    }
}

/// G33: ready also while pods are there, released and isolated; they stay as they are.
#[test]
fn ready_with_pods() {
    let node = Node::new();
    let (released, isolated) = (node.pod(), node.pod());
    node.mark(&isolated.id, "");
    for pod in [&released, &isolated] {
        node.plugin("ADD", pod).result();
    }
    let before = [&node.netns, &released.netns, &isolated.netns].map(rules);
    node.call("STATUS").run().succeeded_silently();
    assert_eq!([&node.netns, &released.netns, &isolated.netns].map(rules), before);
}

/// G33: who can write the state directory can release pods: not ready, and the reason names it and its mode.
#[test]
fn a_state_directory_that_others_can_write_is_not_ready() {
    for part in ["", "isolated", "attachments"] {
        for mode in [0o770, 0o707, 0o720, 0o702, 0o777, 0o1777, 0o2770] {
            let node = Node::new();
            let directory = node.state_dir().join(part);
            std::fs::create_dir_all(&directory).unwrap();
            std::fs::set_permissions(&directory, PermissionsExt::from_mode(mode)).unwrap();
            let error = node.call("STATUS").run().error();
            assert_eq!(error.code, 50, "{part:?} {mode:o}: {error:?}");
            error.says(&[directory.to_str().unwrap().trim_end_matches('/'), &format!("{mode:o}")]);
        }
    }
}

/// G33: the same for one that belongs to someone else.
#[test]
fn a_state_directory_of_someone_else_is_not_ready() {
    for part in ["", "isolated", "attachments"] {
        let node = Node::new();
        let directory = node.state_dir().join(part);
        std::fs::create_dir_all(&directory).unwrap();
        chown(&directory, Some(1000), None).unwrap();
        let error = node.call("STATUS").run().error();
        assert_eq!(error.code, 50, "{part:?}: {error:?}");
        error.says(&[directory.to_str().unwrap().trim_end_matches('/'), "1000"]);
    }
}

/// G33: where the state directory is not a directory, or cannot be made, it is not ready.
#[test]
fn no_state_directory_is_not_ready() {
    let node = Node::new();
    let file = node.state_dir().join("file");
    std::fs::write(&file, "").unwrap();
    let broken_link = node.state_dir().join("loop");
    std::os::unix::fs::symlink("loop", &broken_link).unwrap();
    for path in [file.clone(), file.join("below"), broken_link] {
        let mut config = node.config();
        config["stateDir"] = json!(path);
        let error = node.call("STATUS").config(config).run().error();
        assert_eq!(error.code, 50, "{}: {error:?}", path.display());
        error.says(&[path.to_str().unwrap()]);
    }
    for part in ["isolated", "attachments"] {
        let node = Node::new();
        std::fs::write(node.state_dir().join(part), "").unwrap();
        let error = node.call("STATUS").run().error();
        assert_eq!(error.code, 50, "{part}: {error:?}");
        error.says(&[part]);
    }
}

/// G33: without the right to use nf_tables (and to read the state directory) it is not ready.
#[test]
fn unprivileged_is_not_ready() {
    let node = Node::new();
    let (_guard, program) = reachable_program();
    let error = node.call("STATUS").unprivileged(&program).run().error();
    assert_eq!(error.code, 50, "{error:?}");
}
