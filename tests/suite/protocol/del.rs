//! docs/protocol.md, part E: DEL.

use serde_json::{Value, json};

use super::vectors::VERSIONS;
use crate::lab::{Netns, Node, Pod, Stdin, Tables, lone_interface};

/// E27: without prevResult (runtimes below 0.4.0 send none; a cache can be lost) or with junk for one, in every version.
#[test]
fn it_needs_no_prev_result() {
    for version in VERSIONS {
        let node = Node::new();
        for prev in [
            None,
            Some(Value::Null),
            Some(json!(7)),
            Some(json!("x")),
            Some(json!([])),
            Some(json!({})),
            Some(json!({ "interfaces": 7, "ips": {}, "cniVersion": 9 })),
            Some(json!({ "cniVersion": "9.9.9" })),
        ] {
            let pod = node.pod();
            let mut config = pod.chained_config(&node);
            config["cniVersion"] = json!(version);
            node.call("ADD").sandbox(&pod).config(config.clone()).run();
            match prev {
                Some(prev) => config["prevResult"] = prev,
                None => drop(config.as_object_mut().unwrap().remove("prevResult")),
            }
            node.call("DEL").sandbox(&pod).config(config).run().succeeded_silently();
            pod.is_untouched();
            node.is_untouched();
        }
    }
}

/// E27: CNI_NETNS unset, empty, gone, a leftover file, another kind of thing: success, and the record goes.
#[test]
fn it_needs_no_netns() {
    let node = Node::new();
    let file = node.state_dir().join("leftover");
    std::fs::write(&file, "").unwrap();
    let paths = [
        None,
        Some(""),
        Some("/run/netns/quarantine-protocol-gone"),
        file.to_str(),
        Some("/proc/self/ns/mnt"),
        Some("/"),
        Some("junk"),
        Some("/proc/1/nothing/below"),
    ];
    for path in paths {
        for alive in [true, false] {
            let pod = node.pod();
            node.plugin("ADD", &pod).result();
            if !alive {
                pod.netns.delete();
            }
            let call = node.call("DEL").sandbox(&pod).config(pod.chained_config(&node));
            let call = match path {
                Some(path) => call.env("CNI_NETNS", path),
                None => call.without("CNI_NETNS"),
            };
            call.run().succeeded_silently();
            node.is_untouched();
        }
    }
}

/// E27: the interface is gone.
#[test]
fn it_needs_no_interface() {
    let node = Node::new();
    let pod = node.pod();
    node.plugin("ADD", &pod).result();
    pod.netns.ip("link del eth0");
    node.plugin("DEL", &pod).succeeded_silently();
    node.is_untouched();
    pod.is_untouched();
}

/// E27: never added; ADD failed; repeated; the state directory never was.
#[test]
fn it_needs_no_add() {
    let node = Node::new();
    let pod = node.pod();
    node.plugin("DEL", &pod).succeeded_silently();
    let mut config = pod.chained_config(&node);
    config["stateDir"] = json!(node.state_dir().join("never"));
    node.call("DEL").sandbox(&pod).config(config).run().succeeded_silently();

    let mut config = pod.chained_config(&node);
    config["policy"] = json!(7);
    node.call("ADD").sandbox(&pod).config(config.clone()).run().error();
    node.call("DEL").sandbox(&pod).config(config).run().succeeded_silently();
    node.call("ADD").sandbox(&pod).env("CNI_NETNS", "/nowhere").config(pod.chained_config(&node)).run().error();
    node.call("DEL")
        .sandbox(&pod)
        .env("CNI_NETNS", "/nowhere")
        .config(pod.chained_config(&node))
        .run()
        .succeeded_silently();

    node.plugin("ADD", &pod).result();
    for _ in 0..3 {
        node.plugin("DEL", &pod).succeeded_silently();
    }
    node.is_untouched();
    pod.is_untouched();
}

/// E27: eight at once (the kubelet repeats itself).
#[test]
fn eight_at_once_succeed() {
    let node = Node::new();
    for _ in 0..5 {
        let pod = node.pod();
        node.plugin("ADD", &pod).result();
        let calls: Vec<_> =
            (0..8).map(|_| node.call("DEL").sandbox(&pod).config(pod.chained_config(&node)).spawn()).collect();
        for call in calls {
            call.wait().succeeded_silently();
        }
        node.is_untouched();
        pod.is_untouched();
    }
}

/// E27: the state directory is lost: what was in it, then all of it.
#[test]
fn a_lost_state_directory_is_no_failure() {
    let node = Node::new();
    let pod = node.pod();
    node.plugin("ADD", &pod).result();
    for entry in std::fs::read_dir(node.state_dir()).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { std::fs::remove_dir_all(path).unwrap() } else { std::fs::remove_file(path).unwrap() }
    }
    node.plugin("DEL", &pod).succeeded_silently();
    std::fs::remove_dir_all(node.state_dir()).unwrap();
    node.plugin("DEL", &pod).succeeded_silently();
    std::fs::create_dir(node.state_dir()).unwrap();
}

/// E27: malformed CNI_ARGS.
#[test]
fn malformed_args_are_no_failure() {
    let node = Node::new();
    for args in
        ["junk", "=", ";;;", "K8S_POD_UID", "K8S_POD_UID=../../x;K8S_POD_NAME=/", "K8S_POD_NAME=\u{1}", "=x", "a=b=c;"]
    {
        let pod = node.pod();
        node.plugin("ADD", &pod).result();
        node.call("DEL")
            .sandbox(&pod)
            .env("CNI_ARGS", args)
            .config(pod.chained_config(&node))
            .run()
            .succeeded_silently();
        node.is_untouched();
        pod.is_untouched();
    }
}

/// E28: DEL with no netns while it is still alive (nerdctl, before every ADD): a later ADD replaces what was left.
#[test]
fn a_leftover_ruleset_is_replaced() {
    for marked in [false, true] {
        let node = Node::new();
        let pod = node.pod();
        if marked {
            node.mark("shop_web", "");
        }
        for _ in 0..3 {
            let call = |verb| node.call(verb).sandbox(&pod).pod_uid("uid-1").config(pod.chained_config(&node));
            call("ADD").run().result();
            call("CHECK").run().succeeded_silently();
            assert_eq!(pod.tables(), if marked { Tables::Isolated } else { Tables::Released });
            call("DEL").env("CNI_NETNS", "").run().succeeded_silently();
            assert_eq!(node.records(), [""; 0]);
        }
    }
}

/// E28: and with another container ID in that netns, as after a restart of the runtime.
#[test]
fn a_leftover_ruleset_of_another_container_is_replaced() {
    let node = Node::new();
    let pod = node.pod();
    node.plugin("ADD", &pod).result();
    node.call("DEL").sandbox(&pod).env("CNI_NETNS", "").config(node.config()).run().succeeded_silently();
    let next =
        |verb| node.call(verb).sandbox(&pod).env("CNI_CONTAINERID", "next").config(pod.chained_config(&node)).run();
    next("ADD").result();
    next("CHECK").succeeded_silently();
    next("DEL").succeeded_silently();
    node.is_untouched();
    pod.is_untouched();
}

/// E29: another container whose netns is at that path now keeps what it has.
#[test]
fn another_container_at_that_path_is_left_alone() {
    let node = Node::new();
    for marked in [false, true] {
        let (old, new) = (node.pod(), node.pod());
        if marked {
            node.mark(&new.id, "");
        }
        node.plugin("ADD", &old).result();
        node.plugin("ADD", &new).result();
        node.call("DEL").sandbox(&old).env("CNI_NETNS", new.path()).config(node.config()).run().succeeded_silently();
        assert_eq!(new.tables(), if marked { Tables::Isolated } else { Tables::Released });
        node.plugin("CHECK", &new).succeeded_silently();
        // A DEL for a container that was never added, at that path.
        node.call("DEL")
            .sandbox(&new)
            .env("CNI_CONTAINERID", "unknown")
            .config(node.config())
            .run()
            .succeeded_silently();
        node.plugin("CHECK", &new).succeeded_silently();
    }
}

/// E29: the pod's other interface keeps its attachment and the sandbox its rules; with the last one they go.
#[test]
fn the_other_interface_is_left_alone() {
    let node = Node::new();
    let pod = node.pod();
    lone_interface(&pod.netns, "eth1");
    let second = Pod { id: pod.id.clone(), netns: Netns::new("unused"), ifname: "eth1".into(), number: 0 };
    let call = |verb: &str, ifname: &str| {
        let mut config = pod.chained_config(&node);
        config["prevResult"]["interfaces"][1]["name"] = json!(ifname);
        node.call(verb).sandbox(&pod).env("CNI_IFNAME", ifname).config(config).run()
    };
    for first in ["eth0", "eth1"] {
        let last = if first == "eth0" { "eth1" } else { "eth0" };
        call("ADD", "eth0").result();
        call("ADD", "eth1").result();
        call("CHECK", "eth0").succeeded_silently();
        call("CHECK", "eth1").succeeded_silently();
        call("DEL", first).succeeded_silently();
        assert_eq!(node.record_path(&pod).exists(), first == "eth1");
        assert_eq!(node.record_path(&second).exists(), first == "eth0");
        assert_eq!(pod.tables(), Tables::Released);
        call("CHECK", last).succeeded_silently();
        call("DEL", last).succeeded_silently();
        node.is_untouched();
        pod.is_untouched();
    }
}

/// E29: the old sandbox's DEL comes after the new sandbox's ADD for the same pod.
#[test]
fn the_new_sandbox_of_the_same_pod_is_left_alone() {
    let node = Node::new();
    let (old, new) = (node.pod(), node.pod());
    let call = |verb, pod: &Pod| node.call(verb).sandbox(pod).pod_uid("uid-1").config(pod.chained_config(&node)).run();
    call("ADD", &old).result();
    call("ADD", &new).result();
    call("DEL", &old).succeeded_silently();
    call("CHECK", &new).succeeded_silently();
    assert_eq!(new.tables(), Tables::Released);
    assert!(node.record_path(&new).exists());
}

/// Isolated, the pod-side rules stay: clearing them would open a gap before the netns goes.
#[test]
fn an_isolated_sandbox_stays_closed() {
    let node = Node::new();
    let pod = node.pod();
    node.mark(&pod.id, "");
    assert!(pod.reaches_node(&node), "the control");
    node.plugin("ADD", &pod).result();
    assert!(pod.is_cut_off_from(&node));
    for _ in 0..2 {
        node.plugin("DEL", &pod).succeeded_silently();
        assert_eq!(pod.tables(), Tables::Isolated);
        assert!(pod.is_cut_off_from(&node));
    }
    assert_eq!(node.records(), [""; 0]);
    // Released and then deleted, everything goes.
    node.plugin("ADD", &pod).result();
    let marks = node.marks();
    marks.iter().for_each(|mark| std::fs::remove_file(node.mark_path(mark)).unwrap());
    node.plugin("DEL", &pod).succeeded_silently();
    node.is_untouched();
    pod.is_untouched();
}

/// E30: its errors are 1, 4, 5, 6 and 7 (name), and none says "not found", which containerd takes for success. A
/// state directory that is not to be trusted is refused with one of them, if at all.
#[test]
fn its_errors_are_few() {
    use std::os::unix::fs::PermissionsExt;
    let node = Node::new();
    let pod = node.pod();
    let config = |key: &str, value: Value| {
        let mut config = pod.chained_config(&node);
        config[key] = value;
        Stdin::Bytes(config.to_string().into_bytes())
    };
    let call = || node.call("DEL").sandbox(&pod);
    let failures = [
        (1, call().stdin(config("cniVersion", json!("9.9.9")))),
        (4, call().env("CNI_CONTAINERID", "")),
        (4, call().env("CNI_IFNAME", "a/b")),
        (5, call().stdin(Stdin::File(std::fs::File::open("/").unwrap()))),
        (6, call().stdin(Stdin::Bytes(b"junk".to_vec()))),
        (7, call().stdin(config("name", json!("")))),
    ];
    for (code, call) in failures {
        let outcome = call.run();
        let error = outcome.error();
        assert_eq!(error.code, code, "{error:?}");
        assert!(!outcome.stdout.to_lowercase().contains("not found"), "{outcome:?}");
    }
    for part in ["attachments", "isolated", ""] {
        node.plugin("ADD", &pod).result();
        let directory = node.state_dir().join(part);
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o777)).unwrap();
        let outcome = node.plugin("DEL", &pod);
        if !outcome.status.success() {
            assert_eq!(outcome.error().code, 5, "{outcome:?}");
            assert!(!outcome.stdout.to_lowercase().contains("not found"), "{outcome:?}");
        }
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o700)).unwrap();
        node.plugin("DEL", &pod).succeeded_silently();
    }
}

/// Where nf_tables cannot be loaded there are no rules to take away: the record goes, and the mark is carried over. What
/// needs it says that it is missing.
#[test]
fn it_needs_no_nf_tables() {
    for marked in [false, true] {
        let node = Node::new();
        let pod = node.pod();
        node.call("ADD").sandbox(&pod).pod_uid("uid-1").config(pod.chained_config(&node)).run().result();
        if marked {
            node.mark(&pod.id, "");
        }
        let call = |verb| node.call(verb).sandbox(&pod).pod_uid("uid-1").config(pod.chained_config(&node));
        let check = call("CHECK").without_netfilter().run();
        assert!(!check.status.success(), "{check:#?}");
        call("DEL").without_netfilter().run().succeeded_silently();
        assert_eq!(node.records(), [""; 0]);
        assert_eq!(node.marks(), if marked { vec!["uid-1"] } else { vec![] });
        call("DEL").without_netfilter().run().succeeded_silently();
        let status = node.call("STATUS").config(node.config()).without_netfilter().run();
        assert_eq!(status.error().code, 50);
    }
}
