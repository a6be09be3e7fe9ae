//! A mark outlives its sandbox: the pod that is recreated is isolated before its first packet.

use std::os::unix::fs::symlink;

use serde_json::json;

use super::{CLOSED_LO, MakeMark, OPEN_LO};
use crate::lab::{Node, Tables, lone_interface};

/// At the DEL of an isolated sandbox the container-ID mark becomes one by UID, as it is; the recreated sandbox is
/// isolated at once. Its release is final.
#[test]
fn a_mark_outlives_its_sandbox() {
    let node = Node::new();
    let (old, new) = (node.pod(), node.pod());
    let text = r#"{"reason": "C2 traffic", "policy": {"loopback": false}}"#;
    node.mark(&old.id, text);
    node.plugin_as("ADD", &old, "uid-1").result();
    node.plugin_as("DEL", &old, "uid-1").succeeded_silently();
    assert_eq!(node.marks(), ["uid-1"]);
    assert_eq!(std::fs::read_to_string(node.mark_path("uid-1")).unwrap(), text);
    assert!(new.reaches_node(&node), "the control");
    node.plugin_as("ADD", &new, "uid-1").result();
    assert_eq!(new.tables(), Tables::Isolated);
    assert!(new.is_cut_off_from(&node));
    assert!(!new.loopback_passes());
    node.plugin_as("DEL", &new, "uid-1").succeeded_silently();
    assert_eq!(node.marks(), ["uid-1"]);
    node.remove_mark("uid-1");
    let third = node.pod();
    node.plugin_as("ADD", &third, "uid-1").result();
    assert_eq!(third.tables(), Tables::Released);
}

/// It is the record that knows the pod: a DEL without CNI_ARGS carries the mark over too.
#[test]
fn the_record_knows_the_pod() {
    let node = Node::new();
    let pod = node.pod();
    node.mark(&pod.id, "");
    node.plugin_as("ADD", &pod, "uid-1").result();
    node.call("DEL").sandbox(&pod).env("CNI_NETNS", "").config(node.config()).run().succeeded_silently();
    assert_eq!(node.marks(), ["uid-1"]);
}

/// A mark that stands already is not replaced; both stay as they are.
#[test]
fn a_uid_mark_that_stands_is_kept() {
    let node = Node::new();
    let pod = node.pod();
    node.mark(&pod.id, OPEN_LO);
    node.mark("uid-1", CLOSED_LO);
    node.plugin_as("ADD", &pod, "uid-1").result();
    node.plugin_as("DEL", &pod, "uid-1").succeeded_silently();
    assert_eq!(node.marks(), [pod.id.as_str(), "uid-1"]);
    assert_eq!(std::fs::read_to_string(node.mark_path(&pod.id)).unwrap(), OPEN_LO);
    assert_eq!(std::fs::read_to_string(node.mark_path("uid-1")).unwrap(), CLOSED_LO);
}

/// An invalid mark is carried over like any other: a directory, a link, junk.
#[test]
fn an_invalid_mark_is_carried_over() {
    let makes: [MakeMark; 3] = [
        |path| std::fs::create_dir(path).unwrap(),
        |path| symlink("/nowhere/at/all", path).unwrap(),
        |path| std::fs::write(path, "junk").unwrap(),
    ];
    for make in makes {
        let node = Node::new();
        let (old, new) = (node.pod(), node.pod());
        make(&node.mark_path(&old.id));
        node.plugin_as("ADD", &old, "uid-1").result();
        node.plugin_as("DEL", &old, "uid-1").succeeded_silently();
        assert_eq!(node.marks(), ["uid-1"]);
        node.plugin_as("ADD", &new, "uid-1").result();
        assert_eq!(new.tables(), Tables::Isolated);
    }
}

/// Where the pod is unknown the mark stays: in doubt it isolates.
#[test]
fn without_a_uid_the_mark_stays() {
    let node = Node::new();
    let pod = node.pod();
    node.mark(&pod.id, "");
    node.plugin("ADD", &pod).result();
    node.plugin("DEL", &pod).succeeded_silently();
    assert_eq!(node.marks(), [pod.id.as_str()]);
}

/// The sandbox's last attachment takes the mark along, not its first.
#[test]
fn the_last_attachment_takes_the_mark_along() {
    let node = Node::new();
    let pod = node.pod();
    lone_interface(&pod.netns, "eth1");
    node.mark(&pod.id, "");
    let call = |verb: &str, ifname: &str| {
        let mut config = pod.chained_config(&node);
        config["prevResult"]["interfaces"][1]["name"] = json!(ifname);
        node.call(verb).sandbox(&pod).env("CNI_IFNAME", ifname).pod_uid("uid-1").config(config).run()
    };
    call("ADD", "eth0").result();
    call("ADD", "eth1").result();
    call("DEL", "eth0").succeeded_silently();
    assert_eq!(node.marks(), [pod.id.as_str()]);
    assert_eq!(pod.tables(), Tables::Isolated);
    call("CHECK", "eth1").succeeded_silently();
    call("DEL", "eth1").succeeded_silently();
    assert_eq!(node.marks(), ["uid-1"]);
}

/// Marks by UID and by name stay where they are.
#[test]
fn marks_by_uid_and_name_stay() {
    let node = Node::new();
    let pod = node.pod();
    for key in ["uid-1", "shop_web"] {
        node.mark(key, "");
    }
    node.plugin_as("ADD", &pod, "uid-1").result();
    node.plugin_as("DEL", &pod, "uid-1").succeeded_silently();
    assert_eq!(node.marks(), ["shop_web", "uid-1"]);
}

/// Power loss: no DEL of the old sandbox, its netns gone, its record there. The new sandbox of the same pod is isolated.
#[test]
fn without_a_del_the_mark_holds_for_the_pod() {
    let node = Node::new();
    let (old, new, other) = (node.pod(), node.pod(), node.pod());
    node.mark(&old.id, "");
    node.plugin_as("ADD", &old, "uid-1").result();
    old.netns.delete();
    assert!(new.reaches_node(&node), "the control");
    node.plugin_as("ADD", &new, "uid-1").result();
    assert_eq!(new.tables(), Tables::Isolated);
    assert!(new.is_cut_off_from(&node));
    node.plugin_as("CHECK", &new, "uid-1").succeeded_silently();
    assert_eq!(new.tables(), Tables::Isolated);
    // Another pod of that name is another pod.
    node.plugin_as("ADD", &other, "uid-2").result();
    assert_eq!(other.tables(), Tables::Released);
    node.sync();
    assert_eq!(new.tables(), Tables::Isolated);
    assert_eq!(other.tables(), Tables::Released);
}

/// The kubelet adds the new sandbox before it deletes the old one: isolated before, between and after; and released by
/// removing the one mark that is there then.
#[test]
fn the_new_sandbox_may_come_before_the_old_ones_del() {
    let node = Node::new();
    let (old, new) = (node.pod(), node.pod());
    node.mark(&old.id, "");
    node.plugin_as("ADD", &old, "uid-1").result();
    node.plugin_as("ADD", &new, "uid-1").result();
    assert_eq!(new.tables(), Tables::Isolated);
    node.plugin_as("DEL", &old, "uid-1").succeeded_silently();
    assert_eq!(new.tables(), Tables::Isolated);
    node.plugin_as("CHECK", &new, "uid-1").succeeded_silently();
    assert_eq!(new.tables(), Tables::Isolated);
    assert_eq!(node.marks(), ["uid-1"]);
    node.remove_mark("uid-1");
    node.plugin_as("CHECK", &new, "uid-1").succeeded_silently();
    assert_eq!(new.tables(), Tables::Released);
}

/// The old sandbox is marked only after the new one's ADD: the mark is the pod's.
#[test]
fn marking_the_old_sandbox_isolates_the_new_one() {
    let node = Node::new();
    let (old, new) = (node.pod(), node.pod());
    node.plugin_as("ADD", &old, "uid-1").result();
    node.plugin_as("ADD", &new, "uid-1").result();
    assert_eq!(new.tables(), Tables::Released);
    node.mark(&old.id, "");
    node.sync();
    assert_eq!(old.tables(), Tables::Isolated);
    assert_eq!(new.tables(), Tables::Isolated);
}

fn call_without_uid(node: &Node, verb: &str, pod: &crate::lab::Pod, name: &str) -> crate::lab::Run {
    let args = format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name}");
    node.call(verb).sandbox(pod).config(pod.chained_config(node)).env("CNI_ARGS", &args).run()
}

/// A runtime that gives no UID: the next container of the same pod was free, for the mark was of the last one alone.
#[test]
fn without_a_uid_the_name_carries_the_mark() {
    let node = Node::new();
    let (old, new, other) = (node.pod(), node.pod(), node.pod());
    call_without_uid(&node, "ADD", &old, "web").result();
    node.mark(&old.id, "");
    // Before the old one's DEL, as kubelets do it.
    call_without_uid(&node, "ADD", &new, "web").result();
    assert_eq!(new.tables(), Tables::Isolated);
    call_without_uid(&node, "ADD", &other, "db").result();
    assert_eq!(other.tables(), Tables::Released, "another pod is not meant");
    call_without_uid(&node, "DEL", &new, "web").succeeded_silently();
    call_without_uid(&node, "DEL", &old, "web").succeeded_silently();
    assert_eq!(node.marks(), ["shop_web"]);
    let next = node.pod();
    call_without_uid(&node, "ADD", &next, "web").result();
    assert_eq!(next.tables(), Tables::Isolated);
}

/// A pod of the same name with a UID is another one.
#[test]
fn a_name_does_not_carry_a_mark_to_another_uid() {
    let node = Node::new();
    let (old, new) = (node.pod(), node.pod());
    call_without_uid(&node, "ADD", &old, "web").result();
    node.mark(&old.id, "");
    let args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=uid-9";
    node.call("ADD").sandbox(&new).config(new.chained_config(&node)).env("CNI_ARGS", args).run().result();
    assert_eq!(new.tables(), Tables::Released);
}
