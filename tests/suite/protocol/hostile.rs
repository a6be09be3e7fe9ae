//! docs/protocol.md, part B, with input that nobody thought of: random bytes, random values, damaged configs.

use proptest::prelude::*;
use serde_json::Value;

use super::vectors::{VERBS, set};
use crate::lab::{Node, Pod, Stdin};

/// Whatever comes in on stdin, the answer is a CNI error or silence, never a panic or a hang.
fn survives(node: &Node, pod: &Pod, verb: &str, stdin: Vec<u8>) {
    let outcome = node.call(verb).sandbox(pod).stdin(Stdin::Bytes(stdin)).run();
    if !outcome.status.success() {
        assert_eq!(outcome.status.code(), Some(1), "{verb}: {outcome:?}");
        outcome.error();
    }
    assert!(!outcome.stderr.contains("panicked"), "{outcome:?}");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_filter("JSON has no such number", |number| number.is_finite()).prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::vec(("[a-zA-Z]{1,8}", inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// B11, hostile: bytes that are anything.
#[test]
fn random_bytes_on_stdin() {
    let node = Node::new();
    let pod = node.pod();
    proptest!(ProptestConfig::with_cases(40), |(bytes in proptest::collection::vec(any::<u8>(), 0..200), verb in 0..VERBS.len())| {
        survives(&node, &pod, VERBS[verb].0, bytes);
    });
    node.is_untouched();
}

/// B11, B14, B17, D19, hostile: a config that is right but for one key, which is anything.
#[test]
fn any_json_under_any_key() {
    let node = Node::new();
    let pod = node.pod();
    let keys = [
        "cniVersion",
        "name",
        "type",
        "policy",
        "hostGuard",
        "log",
        "prevResult",
        "runtimeConfig",
        "cni.dev/valid-attachments",
    ];
    proptest!(ProptestConfig::with_cases(80), |(key in 0..keys.len(), value in any_json(), verb in 0..VERBS.len())| {
        let mut config = pod.chained_config(&node);
        set(&mut config, keys[key], value);
        survives(&node, &pod, VERBS[verb].0, config.to_string().into_bytes());
    });
}

/// B11, hostile: a good config with one byte changed, or cut off somewhere.
#[test]
fn a_damaged_config() {
    let node = Node::new();
    let pod = node.pod();
    let good = pod.chained_config(&node).to_string().into_bytes();
    proptest!(ProptestConfig::with_cases(60), |(at in 0..good.len(), byte in any::<u8>(), cut in any::<bool>(), verb in 0..VERBS.len())| {
        let mut damaged = good.clone();
        if cut {
            damaged.truncate(at);
        } else {
            damaged[at] = byte;
        }
        // With another state directory, or the machine's default one, it would work on what is not the test's.
        let own = format!(r#""stateDir":"{}""#, node.state_dir().display());
        if cut || String::from_utf8_lossy(&damaged).contains(&own) {
            survives(&node, &pod, VERBS[verb].0, damaged);
        }
    });
}
