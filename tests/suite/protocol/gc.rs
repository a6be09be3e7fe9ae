//! docs/protocol.md, part H: GC.

use serde_json::{Value, json};

use crate::lab::{Node, Pod, Run, Tables, lone_interface};

fn gc(node: &Node, valid: Value) -> Run {
    gc_of(node, "testnet", valid)
}

fn gc_of(node: &Node, network: &str, valid: Value) -> Run {
    let mut config = node.config();
    config["name"] = json!(network);
    config["cni.dev/valid-attachments"] = valid;
    node.call("GC").config(config).run()
}

fn attachment(pod: &Pod) -> Value {
    json!({ "containerID": pod.id, "ifname": pod.ifname })
}

fn has_record(node: &Node, pod: &Pod) -> bool {
    node.record_path(pod).exists()
}

/// H34: what is not in the list goes, what is in it stays; keys and entries that are not known do not matter.
#[test]
fn what_is_not_valid_goes() {
    let node = Node::new();
    let (stays, goes) = (node.pod(), node.pod());
    for pod in [&stays, &goes] {
        node.plugin("ADD", pod).result();
    }
    let mut entry = attachment(&stays);
    entry["x-unknown"] = json!([1]);
    gc(&node, json!([entry, { "containerID": "someone-else", "ifname": "eth7" }, attachment(&stays)]))
        .succeeded_silently();
    assert!(has_record(&node, &stays));
    assert!(!has_record(&node, &goes));
    assert_eq!(stays.tables(), Tables::Released);
    node.plugin("CHECK", &stays).succeeded_silently();
}

/// H34: an empty list and `null` (a Go slice that is nil) both say that nothing is valid.
#[test]
fn an_empty_list_and_null_mean_none() {
    for valid in [json!([]), Value::Null] {
        let node = Node::new();
        let pod = node.pod();
        node.plugin("ADD", &pod).result();
        gc(&node, valid.clone()).succeeded_silently();
        assert_eq!(node.records(), [""; 0], "{valid}");
    }
}

/// H34: without the list (`cnitool gc`) it succeeds; `cni.dev/attachments` is not the list.
#[test]
fn without_the_list_it_succeeds() {
    let node = Node::new();
    let pod = node.pod();
    node.plugin("ADD", &pod).result();
    let mut config = node.config();
    config["cni.dev/attachments"] = json!([attachment(&pod)]);
    node.call("GC").config(config).run().succeeded_silently();
    node.plugin("DEL", &pod).succeeded_silently();
    node.is_untouched();
}

/// H34: a malformed list is code 6 or 7, and nothing is removed.
#[test]
fn a_malformed_list_removes_nothing() {
    let node = Node::new();
    let pod = node.pod();
    node.plugin("ADD", &pod).result();
    let lists = [
        json!("x"),
        json!({}),
        json!(7),
        json!(false),
        json!([7]),
        json!(["x"]),
        json!([[]]),
        json!([null]),
        json!([{}]),
        json!([{ "containerID": "a" }]),
        json!([{ "ifname": "eth0" }]),
        json!([{ "containerID": 1, "ifname": "eth0" }]),
        json!([{ "containerID": "a", "ifname": ["eth0"] }]),
    ];
    for list in lists {
        let error = gc(&node, list.clone()).error();
        assert!([6, 7].contains(&error.code), "{list}: {error:?}");
        assert!(has_record(&node, &pod), "{list}");
        assert_eq!(pod.tables(), Tables::Released, "{list}");
    }
    node.plugin("CHECK", &pod).succeeded_silently();
}

/// H34: entries that are no attachments of ours (names that we would refuse) do not stop it.
#[test]
fn entries_with_foreign_names_do_not_matter() {
    let node = Node::new();
    let pod = node.pod();
    node.plugin("ADD", &pod).result();
    let foreign =
        json!([{ "containerID": "../../x", "ifname": "a/b" }, { "containerID": "", "ifname": "" }, attachment(&pod)]);
    let outcome = gc(&node, foreign);
    assert!(has_record(&node, &pod));
    if !outcome.status.success() {
        // Refusing the whole list is the other reading of "malformed".
        assert!([6, 7].contains(&outcome.error().code), "{outcome:?}");
    }
}

/// H35: attachments of another network are left alone.
#[test]
fn another_network_is_left_alone() {
    let node = Node::new();
    let pod = node.pod();
    node.plugin("ADD", &pod).result();
    gc_of(&node, "othernet", json!([])).succeeded_silently();
    assert!(has_record(&node, &pod));
    node.plugin("CHECK", &pod).succeeded_silently();
    gc(&node, json!([])).succeeded_silently();
    assert!(!has_record(&node, &pod));
}

/// H35: both halves of the pair count.
#[test]
fn the_pair_counts() {
    let node = Node::new();
    let pod = node.pod();
    for other in
        [json!({ "containerID": pod.id, "ifname": "eth1" }), json!({ "containerID": "other", "ifname": pod.ifname })]
    {
        node.plugin("ADD", &pod).result();
        gc(&node, json!([other])).succeeded_silently();
        assert!(!has_record(&node, &pod), "{other}");
        node.plugin("DEL", &pod).succeeded_silently();
    }
}

/// H35: one attachment of a sandbox goes, the other stays.
#[test]
fn one_of_two_interfaces_goes() {
    let node = Node::new();
    let pod = node.pod();
    let second = Pod { id: pod.id.clone(), netns: crate::lab::Netns::new("unused"), ifname: "eth1".into(), number: 0 };
    lone_interface(&pod.netns, "eth1");
    let mut config = pod.chained_config(&node);
    node.call("ADD").sandbox(&pod).config(config.clone()).run().result();
    config["prevResult"]["interfaces"][1]["name"] = json!("eth1");
    node.call("ADD").sandbox(&pod).env("CNI_IFNAME", "eth1").config(config).run().result();
    gc(&node, json!([attachment(&pod)])).succeeded_silently();
    assert!(has_record(&node, &pod));
    assert!(!has_record(&node, &second));
    assert_ne!(pod.tables(), Tables::Absent);
}

/// H35: it goes on past what it cannot do. (A directory where a record should be, and a record that is junk.)
#[test]
fn it_goes_on_past_failures() {
    let node = Node::new();
    let pods = [node.pod(), node.pod(), node.pod()];
    for pod in &pods {
        node.plugin("ADD", pod).result();
    }
    let odd = node.record_path(&pods[1]);
    std::fs::remove_file(&odd).unwrap();
    std::fs::create_dir_all(odd.join("not-empty")).unwrap();
    let outcome = gc(&node, json!([]));
    if !outcome.status.success() {
        outcome.error();
    }
    assert!(!has_record(&node, &pods[0]));
    assert!(!has_record(&node, &pods[2]));
}

/// H36: it can be repeated; a netns that is gone is no failure; DEL after GC succeeds.
#[test]
fn it_can_be_repeated_and_del_still_succeeds() {
    let node = Node::new();
    let (alive, gone) = (node.pod(), node.pod());
    for pod in [&alive, &gone] {
        node.plugin("ADD", pod).result();
    }
    gone.netns.delete();
    for _ in 0..2 {
        gc(&node, json!([])).succeeded_silently();
        assert_eq!(node.records(), [""; 0]);
    }
    for pod in [&alive, &gone] {
        node.plugin("DEL", pod).succeeded_silently();
    }
    node.is_untouched();
}

/// Never a mark by UID or pod name; and marks that wait for a pod to come stay.
#[test]
fn marks_by_uid_and_name_stay() {
    let node = Node::new();
    let pod = node.pod();
    for key in ["uid-1", "shop_web", "uid-of-nobody"] {
        node.mark(key, "");
    }
    node.call("ADD").sandbox(&pod).pod_uid("uid-1").config(pod.chained_config(&node)).run().result();
    gc(&node, json!([])).succeeded_silently();
    assert_eq!(node.marks(), ["shop_web", "uid-1", "uid-of-nobody"]);
}

/// An isolated sandbox that GC drops does not come back free: its container-ID mark is carried over as DEL would, or
/// stays. Its tables stay awake.
#[test]
fn an_isolated_sandbox_is_not_freed() {
    let node = Node::new();
    let pod = node.pod();
    node.mark(&pod.id, "");
    node.call("ADD").sandbox(&pod).pod_uid("uid-1").config(pod.chained_config(&node)).run().result();
    gc(&node, json!([])).succeeded_silently();
    assert_eq!(pod.tables(), Tables::Isolated);
    let again = node.pod();
    node.call("ADD").sandbox(&again).pod_uid("uid-1").config(again.chained_config(&node)).run().result();
    assert_eq!(again.tables(), Tables::Isolated, "marks: {:?}", node.marks());
}
