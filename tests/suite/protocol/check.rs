//! docs/protocol.md, part F: CHECK.

use serde_json::{Value, json};

use crate::lab::{Node, Pod, Run, Tables, lone_interface, rules};

/// F31: a difference: neither silence nor one of the protocol's own codes.
#[track_caller]
fn differs(outcome: &Run, why: &str) {
    let error = outcome.error();
    assert!(error.code >= 100, "{why}: {error:?}");
}

/// F31: right after ADD, and again; released and isolated.
#[test]
fn it_is_silent_after_add() {
    for marked in [false, true] {
        let node = Node::new();
        let pod = node.pod();
        if marked {
            node.mark(&pod.id, "");
        }
        node.plugin("ADD", &pod).result();
        for _ in 0..3 {
            node.plugin("CHECK", &pod).succeeded_silently();
        }
    }
}

/// F31: every way to damage what ADD made is found. Isolated, CHECK applies before it looks: there silence
/// means that everything stands again.
#[test]
fn a_damaged_ruleset_is_found() {
    let damages = [
        "nft flush ruleset",
        "nft delete table inet quarantine",
        "nft delete table netdev quarantine",
        "nft flush table inet quarantine",
        "nft flush table netdev quarantine",
        // the rules of one chain
        "nft list chains | awk '/table/ {f=$2; t=$3} /chain/ {print f, t, $2; exit}' | xargs nft flush chain",
        // a rule in front that accepts everything
        "nft insert rule inet quarantine input accept",
        "nft insert rule inet quarantine output accept",
        "nft add rule inet quarantine forward accept",
        // the last rule of a chain
        "h=$(nft -a list chain inet quarantine input | sed -n 's/.*# handle //p' | tail -1); nft delete rule inet quarantine input handle $h",
        // another verdict by default
        "nft 'add chain inet quarantine input { policy accept; }'",
        // a chain of someone else's in our table
        "nft add chain inet quarantine own",
    ];
    let mut unseen = Vec::new();
    for marked in [false, true] {
        for damage in damages {
            let node = Node::new();
            let pod = node.pod();
            if marked {
                node.mark(&pod.id, "");
            }
            node.plugin("ADD", &pod).result();
            let before = rules(&pod.netns);
            pod.netns.sh(damage);
            assert_ne!(rules(&pod.netns), before, "{damage}: does nothing");
            let outcome = node.plugin("CHECK", &pod);
            if outcome.status.success() {
                if marked && rules(&pod.netns) == before && pod.is_cut_off_from(&node) {
                    continue;
                }
                unseen.push(format!("{} ({damage})", if marked { "isolated" } else { "released" }));
            } else {
                differs(&outcome, damage);
            }
        }
    }
    assert!(unseen.is_empty(), "CHECK is silent about:\n{}", unseen.join("\n"));
}

/// F31, on the node's side: an isolated sandbox's host guard that is gone or altered is found, or stands again.
#[test]
fn a_damaged_host_guard_is_found() {
    for damage in [
        "nft flush ruleset",
        "nft list tables | xargs nft flush",
        "nft list chains | awk '/table/ {t=$3} /hook/ {print t, c} /chain/ {c=$2}' | head -1 | \
             { read table chain; nft insert rule netdev $table $chain accept; }",
    ] {
        let node = Node::new();
        let pod = node.pod();
        node.mark(&pod.id, "");
        node.plugin("ADD", &pod).result();
        let before = rules(&node.netns);
        assert!(!before.is_empty(), "there is no host guard");
        node.netns.sh(damage);
        assert_ne!(rules(&node.netns), before, "{damage}: does nothing");
        let outcome = node.plugin("CHECK", &pod);
        if outcome.status.success() {
            assert_eq!(rules(&node.netns), before, "{damage}");
        } else {
            differs(&outcome, damage);
        }
    }
}

/// F31: a guarded device that is another one now (renamed, and a new one of its name) is no longer guarded as wanted,
/// or is by then: CHECK may not be silent about a hook that hangs in the air.
#[test]
fn an_interface_that_is_gone_is_found() {
    for change in ["link del eth0", "link set eth0 down\nlink set eth0 name eth9\nlink set eth9 up"] {
        let node = Node::new();
        let pod = node.pod();
        node.plugin("ADD", &pod).result();
        pod.netns.ip(change);
        differs(&node.plugin("CHECK", &pod), change);
    }
}

/// Without an agent, CHECK applies the marks.
#[test]
fn it_applies_the_marks() {
    let node = Node::new();
    let pod = node.pod();
    node.plugin("ADD", &pod).result();
    assert!(pod.reaches_node(&node), "the control");
    for _ in 0..3 {
        node.mark(&pod.id, "");
        node.plugin("CHECK", &pod).succeeded_silently();
        assert_eq!(pod.tables(), Tables::Isolated);
        assert!(pod.is_cut_off_from(&node));
        std::fs::remove_file(node.mark_path(&pod.id)).unwrap();
        node.plugin("CHECK", &pod).succeeded_silently();
        assert_eq!(pod.tables(), Tables::Released);
        assert!(pod.reaches_node(&node));
    }
}

/// F31: what was never added, and what was deleted, is not there.
#[test]
fn never_added_and_deleted_are_found() {
    let node = Node::new();
    let pod = node.pod();
    differs(&node.plugin("CHECK", &pod), "never added");
    pod.is_untouched();
    node.plugin("ADD", &pod).result();
    node.plugin("DEL", &pod).succeeded_silently();
    differs(&node.plugin("CHECK", &pod), "deleted");
    pod.is_untouched();
    node.is_untouched();
}

/// F31: another netns than the one of ADD; another interface; another network; a netns that is gone.
#[test]
fn another_place_is_found() {
    let node = Node::new();
    let (pod, other) = (node.pod(), node.pod());
    lone_interface(&other.netns, "eth1");
    node.plugin("ADD", &pod).result();
    let config = |of: &Pod| of.chained_config(&node);
    differs(
        &node.call("CHECK").sandbox(&pod).env("CNI_NETNS", other.path()).config(config(&other)).run(),
        "another netns",
    );
    other.is_untouched();
    differs(
        &node.call("CHECK").sandbox(&pod).env("CNI_IFNAME", "eth1").config(config(&pod)).run(),
        "another interface",
    );
    node.plugin("CHECK", &pod).succeeded_silently();
    pod.netns.delete();
    let error = node.plugin("CHECK", &pod).error();
    assert!([3, 4, 8].contains(&error.code) || error.code >= 100, "{error:?}");
}

/// F31: without prevResult it refuses.
#[test]
fn without_a_prev_result_it_refuses() {
    let node = Node::new();
    let pod = node.pod();
    node.plugin("ADD", &pod).result();
    for prev in [None, Some(Value::Null)] {
        let mut config = node.config();
        if let Some(prev) = prev {
            config["prevResult"] = prev;
        }
        let error = node.call("CHECK").sandbox(&pod).config(config).run().error();
        assert_eq!(error.code, 7, "{error:?}");
        error.says(&["prevResult"]);
    }
}

/// F32: prevResult is what the whole chain made of it: more interfaces, other MACs, routes and dns are fine. Addresses
/// are the main plugin's business: gVisor takes them off the interface.
#[test]
fn the_final_result_of_the_chain_is_fine() {
    let node = Node::new();
    let pod = node.pod();
    lone_interface(&pod.netns, "tun7");
    node.plugin("ADD", &pod).result();
    let mut config = pod.chained_config(&node);
    let prev = &mut config["prevResult"];
    let interfaces = prev["interfaces"].as_array_mut().unwrap();
    interfaces[1]["mac"] = json!("02:ff:ff:ff:ff:01");
    interfaces[1]["mtu"] = json!(9000);
    interfaces.insert(0, json!({ "name": "gone-from-host" }));
    interfaces.push(json!({ "name": "tun7", "sandbox": pod.path() }));
    interfaces.push(json!({ "name": "vhost", "sandbox": "/var/run/vm/7", "socketPath": "/x" }));
    prev["ips"] = json!([{ "address": "192.0.2.7/32", "interface": 2 }, { "address": "2001:db8::7/128" }]);
    prev["routes"] = json!([{ "dst": "198.51.100.0/24", "gw": "192.0.2.1", "table": 7 }]);
    prev["dns"] = json!({ "nameservers": ["192.0.2.53"], "search": ["x"] });
    prev["x-unknown"] = json!({ "a": 1 });
    node.call("CHECK").sandbox(&pod).config(config.clone()).run().succeeded_silently();
    pod.netns.ip("addr flush dev eth0");
    node.call("CHECK").sandbox(&pod).config(config).run().succeeded_silently();
}

/// F32's other side: an interface that prevResult has in this sandbox, and that is not there, is a difference.
#[test]
fn an_interface_of_the_result_that_is_missing_is_found() {
    let node = Node::new();
    let pod = node.pod();
    node.plugin("ADD", &pod).result();
    let mut config = pod.chained_config(&node);
    config["prevResult"]["interfaces"].as_array_mut().unwrap().push(json!({ "name": "net9", "sandbox": pod.path() }));
    let outcome = node.call("CHECK").sandbox(&pod).config(config).run();
    differs(&outcome, "net9");
    outcome.error().says(&["net9"]);
}
