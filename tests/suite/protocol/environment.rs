//! docs/protocol.md, part A: the variables, checked before stdin is read.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::lab::{Node, Stdin};

/// The variables that each verb needs.
const NEEDED: [(&str, &[&str]); 6] = [
    ("ADD", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
    ("CHECK", &["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"]),
    ("DEL", &["CNI_CONTAINERID", "CNI_IFNAME"]),
    ("GC", &[]),
    ("STATUS", &[]),
    ("VERSION", &[]),
];

fn not_utf8() -> OsString {
    OsString::from_vec(b"a\xff".to_vec())
}

/// A1, A2: without a command it says what it is, on stderr.
#[test]
fn without_a_command_it_says_what_it_is() {
    let node = Node::new();
    for call in [
        node.bare_call(),
        node.bare_call().env("CNI_COMMAND", ""),
        // stdin is not waited for
        node.bare_call().stdin(Stdin::Open(Vec::new())),
    ] {
        let outcome = call.run();
        outcome.succeeded_silently();
        let versions = outcome
            .stderr
            .lines()
            .find(|line| line.contains("CNI protocol versions supported: "))
            .unwrap_or_else(|| panic!("no versions in {:?}", outcome.stderr));
        for version in super::vectors::VERSIONS {
            assert!(versions.contains(version), "{version} in {versions}");
        }
    }
}

/// A3, A8: commands are case-sensitive; the message names the variable. B14: before stdin is looked at.
#[test]
fn an_unknown_command_is_code_4() {
    let node = Node::new();
    let mut commands: Vec<OsString> =
        ["add", "Add", "ADD ", " ADD", "DELETE", "UPDATE", "version", "0", "ADD\n"].map(OsString::from).to_vec();
    commands.push(not_utf8());
    for command in commands {
        for stdin in [Stdin::Bytes(b"junk".to_vec()), Stdin::Open(Vec::new())] {
            let error = node.bare_call().env("CNI_COMMAND", &command).stdin(stdin).run().error();
            assert_eq!(error.code, 4, "{command:?}: {error:?}");
            assert!(error.text().contains("CNI_COMMAND"), "{command:?}: {error:?}");
        }
    }
}

/// A2, A4, A8: every subset of what a verb needs is left out, or set and empty; exactly the missing names are listed.
/// B14: before stdin is read.
#[test]
fn every_missing_variable_is_listed() {
    let node = Node::new();
    let pod = node.pod();
    for (command, needed) in NEEDED {
        for missing in 1..1u32 << needed.len() {
            for empty in [false, true] {
                let mut call = node.call(command).sandbox(&pod).stdin(Stdin::Open(b"junk".to_vec()));
                for (bit, name) in needed.iter().enumerate() {
                    if missing & (1 << bit) != 0 {
                        call = if empty { call.env(name, "") } else { call.without(name) };
                    }
                }
                let error = call.run().error();
                assert_eq!(error.code, 4, "{command} {missing:b}: {error:?}");
                for (bit, name) in needed.iter().enumerate() {
                    let listed = error.text().contains(name);
                    assert_eq!(listed, missing & (1 << bit) != 0, "{command}: {name}: {error:?}");
                }
            }
        }
    }
    node.is_untouched();
}

/// A4: what a verb does not need may be missing. A5: CNI_ARGS and CNI_PATH may be missing, or empty, for every verb.
#[test]
fn what_a_verb_does_not_need_may_be_missing() {
    for empty in [false, true] {
        let node = Node::new();
        let pod = node.pod();
        for command in ["VERSION", "STATUS", "ADD", "CHECK", "DEL", "GC"] {
            let (_, needed) = NEEDED.iter().find(|(name, _)| *name == command).unwrap();
            let mut call = node.call(command).sandbox(&pod).config(pod.chained_config(&node));
            for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"] {
                if !needed.contains(&name) {
                    call = if empty { call.env(name, "") } else { call.without(name) };
                }
            }
            let outcome = call.run();
            assert!(outcome.status.success(), "{command}: {outcome:?}");
        }
    }
}

/// A6, A8: what the specification does not allow is refused by every verb.
#[test]
fn a_bad_container_id_is_code_4() {
    let node = Node::new();
    let pod = node.pod();
    let mut ids: Vec<OsString> = [
        ".", "..", ".hidden", "-a", "_a", "a/b", "../a", "/a", "a b", " a", "a ", "a\n", "\na", "a\tb", "a:b", "a%2e",
        "é", "a\u{0}b", "a;b", "a=b", "*",
    ]
    .iter()
    .filter(|id| !id.contains('\0')) // the kernel has no such variables
    .map(OsString::from)
    .collect();
    ids.push(not_utf8());
    for id in ids {
        for command in ["ADD", "CHECK", "DEL"] {
            let error = node
                .call(command)
                .sandbox(&pod)
                .env("CNI_CONTAINERID", &id)
                .config(pod.chained_config(&node))
                .run()
                .error();
            assert_eq!(error.code, 4, "{command} {id:?}: {error:?}");
            assert!(error.text().contains("CNI_CONTAINERID"), "{command} {id:?}: {error:?}");
        }
    }
    node.is_untouched();
    pod.is_untouched();
}

/// The ID becomes the name of a file and of a table, so ADD takes 240 bytes at most. DEL of a longer one failed, and the
/// runtime could not get rid of the pod: what could not have been added is gone.
#[test]
fn an_id_that_is_too_long_to_be_added_is_deleted() {
    let node = Node::new();
    let pod = node.pod();
    for length in [241, 400] {
        let id = "a".repeat(length);
        let call =
            |command| node.call(command).sandbox(&pod).env("CNI_CONTAINERID", &id).config(pod.chained_config(&node));
        for command in ["ADD", "CHECK"] {
            let error = call(command).run().error();
            assert_eq!(error.code, 4, "{command}: {error:?}");
            assert!(error.text().contains("CNI_CONTAINERID"), "{command}: {error:?}");
        }
        call("DEL").run().succeeded_silently();
    }
    node.is_untouched();
    pod.is_untouched();
}

/// A6: these are container IDs.
#[test]
fn every_good_container_id_is_taken() {
    let node = Node::new();
    let pod = node.pod();
    for id in ["a", "0", "A.b_c-1", "a..b", "a.", "a-", &"x".repeat(64), &"y".repeat(240)] {
        let call =
            |command| node.call(command).sandbox(&pod).env("CNI_CONTAINERID", id).config(pod.chained_config(&node));
        call("ADD").run().result();
        call("CHECK").run().succeeded_silently();
        call("DEL").run().succeeded_silently();
    }
}

/// A7, A8: interface names that the kernel would refuse, or that would leave a directory.
#[test]
fn a_bad_interface_name_is_code_4() {
    let node = Node::new();
    let pod = node.pod();
    let mut names: Vec<OsString> =
        [".", "..", "a/b", "/", "../x", "a:b", ":", "a b", " ", "a\t", "a\n", "\u{b}", "abcdefghijklmnop", "\u{c}x"]
            .map(OsString::from)
            .to_vec();
    names.push("x".repeat(4096).into());
    for name in names {
        for command in ["ADD", "CHECK", "DEL"] {
            let error = node
                .call(command)
                .sandbox(&pod)
                .env("CNI_IFNAME", &name)
                .config(pod.chained_config(&node))
                .run()
                .error();
            assert_eq!(error.code, 4, "{command} {name:?}: {error:?}");
            assert!(error.text().contains("CNI_IFNAME"), "{command} {name:?}: {error:?}");
        }
    }
    node.is_untouched();
    pod.is_untouched();
}

/// A7: fifteen bytes is a name; so are punctuation and three dots.
#[test]
fn every_good_interface_name_is_taken() {
    let node = Node::new();
    for name in ["abcdefghijklmno", "e", "...", "eth0.100", "veth@1", "a-b_c"] {
        let pod = node.pod_with_interface(name);
        let call = |command| node.call(command).sandbox(&pod).config(pod.chained_config(&node));
        call("ADD").run().result();
        call("CHECK").run().succeeded_silently();
        call("DEL").run().succeeded_silently();
    }
}

/// A9: STATUS, GC and VERSION do not look at variables that they have no use for; nobody minds bytes in a variable
/// that is not ours.
#[test]
fn unused_variables_are_not_validated() {
    let node = Node::new();
    for command in ["STATUS", "GC", "VERSION"] {
        for value in [OsString::from("../x y"), not_utf8(), OsString::from("x".repeat(4096))] {
            let mut call = node.call(command).config(node.config());
            for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_PATH", "CNI_ARGS"] {
                call = call.env(name, &value);
            }
            let outcome = call.run();
            assert!(outcome.status.success(), "{command} {value:?}: {outcome:?}");
        }
    }
    let pod = node.pod();
    for command in ["ADD", "CHECK", "DEL"] {
        let outcome = node
            .call(command)
            .sandbox(&pod)
            .config(pod.chained_config(&node))
            .env("FOREIGN", not_utf8())
            .env(OsString::from_vec(b"\xfe\xff".to_vec()), "x")
            .env("CNI_PATH", not_utf8())
            .run();
        assert!(outcome.status.success(), "{command}: {outcome:?}");
    }
}
