//! docs/protocol.md, part C: VERSION.

use std::fs::File;

use serde_json::{Value, json};

use super::vectors::VERSIONS;
use crate::lab::{Node, Stdin};

fn supported(answer: &Value) -> Vec<&str> {
    answer["supportedVersions"].as_array().unwrap().iter().map(|version| version.as_str().unwrap()).collect()
}

/// C18: the answer says the version it was asked in.
#[test]
fn it_answers_in_the_version_it_was_asked_in() {
    let node = Node::new();
    for version in VERSIONS {
        let answer = node.call("VERSION").config(json!({ "cniVersion": version })).run().result();
        assert_eq!(answer["cniVersion"], version);
        assert_eq!(supported(&answer), VERSIONS);
    }
}

/// C18: whatever stdin is, and also when it is never closed.
#[test]
fn it_answers_whatever_stdin_is() {
    let node = Node::new();
    let config = br#"{"cniVersion":"0.4.0"}"#.to_vec();
    let stdins = [
        Stdin::Bytes(Vec::new()),
        Stdin::Bytes(b"junk".to_vec()),
        Stdin::Bytes(b"null".to_vec()),
        Stdin::Bytes(br#"{"cniVersion":7}"#.to_vec()),
        Stdin::Bytes(br#"{"cniVersion":"9.9.9"}"#.to_vec()),
        Stdin::Bytes(vec![0xff; 70_000]),
        Stdin::Open(Vec::new()),
        Stdin::Open(b"{".to_vec()),
        Stdin::Open(config),
        Stdin::File(File::open("/").unwrap()),
        Stdin::File(File::open("/proc/self/mem").unwrap()),
    ];
    for stdin in stdins {
        let what = format!("{stdin:?}");
        let answer = node.call("VERSION").stdin(stdin).run().result();
        assert!(answer["cniVersion"].is_string(), "{what}: {answer}");
        assert_eq!(supported(&answer), VERSIONS, "{what}");
    }
}
