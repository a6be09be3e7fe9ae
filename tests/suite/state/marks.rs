//! Which mark isolates which sandbox, and which of several decides the policy.

use serde_json::json;

use super::{CLOSED_LO, OPEN_LO};
use crate::lab::{Node, Tables};

/// A mark by container ID, by UID, by namespace and name; at ADD, at CHECK and by `sync`; and its removal.
#[test]
fn each_key_isolates() {
    let node = Node::new();
    for key in ["<id>", "uid-1", "shop_web"] {
        let pod = node.pod();
        let key = if key == "<id>" { pod.id.as_str() } else { key };
        node.mark(key, "");
        node.plugin_as("ADD", &pod, "uid-1").result();
        assert_eq!(pod.tables(), Tables::Isolated, "{key} at ADD");
        node.remove_mark(key);
        node.plugin_as("CHECK", &pod, "uid-1").succeeded_silently();
        assert_eq!(pod.tables(), Tables::Released, "{key}, removed, at CHECK");
        node.mark(key, "");
        node.plugin_as("CHECK", &pod, "uid-1").succeeded_silently();
        assert_eq!(pod.tables(), Tables::Isolated, "{key} at CHECK");
        node.remove_mark(key);
        node.sync();
        assert_eq!(pod.tables(), Tables::Released, "{key}, removed, by sync");
        node.mark(key, "");
        node.sync();
        assert_eq!(pod.tables(), Tables::Isolated, "{key} by sync");
        node.remove_mark(key);
        node.plugin_as("DEL", &pod, "uid-1").succeeded_silently();
    }
}

/// Names that only resemble a key.
#[test]
fn what_only_looks_like_a_key_does_nothing() {
    let node = Node::new();
    let pod = node.pod();
    let keys = [
        "web",
        "shop",
        "shop_",
        "_web",
        "shop_web2",
        "shop-web",
        "shop.web",
        "shop_web.json",
        "SHOP_WEB",
        "uid-",
        "uid-11",
        "UID-1",
        "eth0",
        "testnet",
        "IgnoreUnknown",
        "x",
    ];
    for key in keys {
        node.mark(key, "");
    }
    node.mark(&pod.id[..pod.id.len() - 1], "");
    node.plugin_as("ADD", &pod, "uid-1").result();
    assert_eq!(pod.tables(), Tables::Released);
    node.plugin_as("CHECK", &pod, "uid-1").succeeded_silently();
    assert_eq!(pod.tables(), Tables::Released);
}

/// A name that begins with a dot is an editor's or a tool's temporary file.
#[test]
fn dot_files_are_ignored() {
    let node = Node::new();
    let pod = node.pod();
    for name in [format!(".{}", pod.id), format!(".{}.swp", pod.id), ".uid-1".into(), ".shop_web".into(), ".tmp".into()]
    {
        node.mark(&name, "junk");
    }
    std::fs::create_dir(node.mark_path(".directory")).unwrap();
    node.plugin_as("ADD", &pod, "uid-1").result();
    assert_eq!(pod.tables(), Tables::Released);
    node.plugin_as("CHECK", &pod, "uid-1").succeeded_silently();
    node.plugin_as("DEL", &pod, "uid-1").succeeded_silently();
}

/// Without CNI_ARGS there is the container ID, and nothing else.
#[test]
fn without_args_only_the_container_id_counts() {
    let node = Node::new();
    let pod = node.pod();
    for key in ["uid-1", "shop_web", "_"] {
        node.mark(key, "");
    }
    node.plugin("ADD", &pod).result();
    assert_eq!(pod.tables(), Tables::Released);
    node.mark(&pod.id, "");
    node.plugin("CHECK", &pod).succeeded_silently();
    assert_eq!(pod.tables(), Tables::Isolated);
}

/// CNI_ARGS in any order, with pairs of others.
#[test]
fn args_come_in_any_order() {
    let node = Node::new();
    node.mark("uid-1", "");
    for args in [
        "K8S_POD_UID=uid-1",
        "IgnoreUnknown=1;K8S_POD_UID=uid-1",
        "K8S_POD_UID=uid-1;IgnoreUnknown=1;X=a=b;K8S_POD_NAME=web;K8S_POD_NAMESPACE=shop;EMPTY=",
        "K8S_POD_NAMESPACE=;K8S_POD_NAME=web;K8S_POD_UID=uid-1",
    ] {
        let pod = node.pod();
        node.call("ADD").sandbox(&pod).env("CNI_ARGS", args).config(pod.chained_config(&node)).run().result();
        assert_eq!(pod.tables(), Tables::Isolated, "{args}");
    }
}

/// Container ID before UID before name decides the policy, and an invalid one among them seals. The policies differ in
/// whether `lo` passes.
#[test]
fn the_most_specific_mark_decides() {
    // by container ID, by UID, by name; whether `lo` passes
    let table = [
        (Some(OPEN_LO), Some(CLOSED_LO), Some(CLOSED_LO), true),
        (Some(CLOSED_LO), Some(OPEN_LO), Some(OPEN_LO), false),
        (None, Some(OPEN_LO), Some(CLOSED_LO), true),
        (None, Some(CLOSED_LO), Some(OPEN_LO), false),
        (None, None, Some(CLOSED_LO), false),
        (None, None, Some(OPEN_LO), true),
        (Some(OPEN_LO), None, Some("junk"), false),
        (Some(OPEN_LO), Some("{"), None, false),
        (Some("junk"), Some(OPEN_LO), Some(OPEN_LO), false),
    ];
    for (row, (by_id, by_uid, by_name, passes)) in table.into_iter().enumerate() {
        let node = Node::new();
        let pod = node.pod();
        assert!(pod.loopback_passes(), "the control");
        for (key, text) in [(pod.id.as_str(), by_id), ("uid-1", by_uid), ("shop_web", by_name)] {
            if let Some(text) = text {
                node.mark(key, text);
            }
        }
        node.plugin_as("ADD", &pod, "uid-1").result();
        assert_eq!(pod.tables(), Tables::Isolated, "row {row}");
        assert_eq!(pod.loopback_passes(), passes, "row {row}");
        node.plugin_as("CHECK", &pod, "uid-1").succeeded_silently();
    }
}

/// A mark that says no policy leaves the conflist's in force; one that does replaces it whole.
#[test]
fn a_marks_policy_replaces_the_conflists_whole() {
    let closed = json!({ "loopback": false });
    let table = [
        (json!({}), "", true),
        (closed.clone(), "", false),
        (closed.clone(), " \n\t\n", false),
        (closed.clone(), "{}", false),
        (closed.clone(), r#"{"reason": "C2 traffic", "case": "7", "actor": "ana"}"#, false),
        // whole: what it does not say has its default
        (closed.clone(), r#"{"policy": {}}"#, true),
        (closed, r#"{"policy": {"probes": false}, "reason": "x"}"#, true),
        (json!({ "loopback": true }), CLOSED_LO, false),
    ];
    for (policy, mark, passes) in table {
        let node = Node::new();
        let pod = node.pod();
        node.mark(&pod.id, mark);
        let mut config = pod.chained_config(&node);
        config["policy"] = policy.clone();
        node.call("ADD").sandbox(&pod).config(config).run().result();
        assert_eq!(pod.tables(), Tables::Isolated);
        assert_eq!(pod.loopback_passes(), passes, "{policy} {mark:?}");
        // sync knows the policy from the record
        node.sync();
        assert_eq!(pod.loopback_passes(), passes, "{policy} {mark:?} after sync");
    }
}

/// Another mark, while it is isolated: the new policy holds.
#[test]
fn a_changed_mark_is_applied() {
    let node = Node::new();
    let pod = node.pod();
    node.plugin("ADD", &pod).result();
    for _ in 0..2 {
        for (mark, passes) in [(OPEN_LO, true), (CLOSED_LO, false), ("junk", false), ("", true)] {
            node.mark(&pod.id, mark);
            node.plugin("CHECK", &pod).succeeded_silently();
            assert_eq!(pod.tables(), Tables::Isolated, "{mark}");
            assert_eq!(pod.loopback_passes(), passes, "{mark}");
        }
    }
}
