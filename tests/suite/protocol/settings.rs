//! docs/protocol.md, part B: the keys of the plugin's own conflist entry.

use serde_json::{Value, json};

use super::vectors::set;
use crate::lab::{Node, Tables};

/// One bad setting: the keys of the conflist entry, and what the error has to say.
struct Bad {
    keys: Value,
    says: Vec<String>,
}

fn bad(keys: Value, says: &[&str]) -> Bad {
    Bad { keys, says: says.iter().map(ToString::to_string).collect() }
}

/// `value` at `place` within an otherwise good `allow` entry.
fn bad_allow(key: &str, value: Value, says: &[&str]) -> Bad {
    let mut entry = json!({ "direction": "egress", "peer": "10.20.0.5/32", "protocol": "tcp", "ports": [443] });
    if value == json!("<missing>") {
        entry.as_object_mut().unwrap().remove(key);
    } else {
        set(&mut entry, key, value);
    }
    bad(json!({ "policy": { "allow": [entry] } }), &[&["allow", key], says].concat())
}

/// Every key of the conflist entry (docs/reference.md) with what it does not allow.
fn bad_settings() -> Vec<Bad> {
    let mut all = vec![
        bad(json!({ "policy": null }), &["policy", "null", "object"]),
        bad(json!({ "policy": [] }), &["policy", "[]", "object"]),
        bad(json!({ "policy": "deny" }), &["policy", "deny", "object"]),
        bad(json!({ "policy": { "loopbak": true } }), &["loopbak", "loopback", "probes", "allow"]),
        bad(json!({ "policy": { "allow": [{ "diretcion": "egress" }] } }), &["diretcion", "direction"]),
        bad(json!({ "policy": { "allow": {} } }), &["policy.allow", "{}", "list"]),
        bad(json!({ "policy": { "allow": null } }), &["policy.allow", "null", "list"]),
        bad(json!({ "policy": { "allow": "10.0.0.1" } }), &["policy.allow", "10.0.0.1", "list"]),
        bad(json!({ "policy": { "allow": [7] } }), &["policy.allow", "7", "object"]),
        bad(json!({ "policy": { "allow": [[]] } }), &["policy.allow", "[]", "object"]),
        bad(json!({ "policy": { "probes": { "port": [80] } } }), &["probes", "port", "ports"]),
        bad(json!({ "policy": { "probes": {} } }), &["probes", "ports"]),
    ];
    for value in [json!(null), json!("true"), json!(1), json!([]), json!({})] {
        all.push(bad(
            json!({ "policy": { "loopback": value } }),
            &["policy.loopback", &value.to_string(), "true", "false"],
        ));
    }
    for value in [json!(null), json!("true"), json!("auto"), json!(8080), json!([8080])] {
        all.push(bad(
            json!({ "policy": { "probes": value } }),
            &["policy.probes", &value.to_string(), "true", "false", "ports"],
        ));
    }
    let bad_ports = [
        json!(0),
        json!(65536),
        json!(-1),
        json!(1.5),
        json!(1e3),
        json!(null),
        json!(true),
        json!("0-5"),
        json!("5-4"),
        json!("1-65536"),
        json!("a-b"),
        json!("http"),
        json!("1-2-3"),
        json!("80-"),
        json!("-80"),
        json!("+80"),
        json!(" 80"),
        json!("1 - 2"),
        json!(""),
        json!("٣"),
        json!([80]),
        json!({}),
        json!(18_446_744_073_709_551_615_u64),
    ];
    for value in bad_ports {
        let text = value.to_string();
        let says = ["ports", &text, "65535", "from-to"];
        all.push(bad(json!({ "policy": { "probes": { "ports": [80, value] } } }), &[&["probes"], &says[..]].concat()));
        all.push(bad_allow("ports", json!([value]), &says));
    }
    for value in [json!(443), json!("443"), json!(null), json!({ "from": 1 })] {
        let text = value.to_string();
        all.push(bad_allow("ports", value.clone(), &[&text, "list"]));
        all.push(bad(json!({ "policy": { "probes": { "ports": value } } }), &["probes.ports", &text, "list"]));
    }
    // An empty list would be read as "nothing" by one person and as "everything" by another.
    all.push(bad_allow("ports", json!([]), &["[]", "at least one"]));
    all.push(bad(json!({ "policy": { "probes": { "ports": [] } } }), &["probes.ports", "[]", "at least one"]));
    for value in ["icmp", "TCP", "", "6", "any", "sctp"] {
        all.push(bad_allow("protocol", json!(value), &[&json!(value).to_string(), "tcp", "udp"]));
    }
    for value in ["in", "out", "Egress", "", "both", "any"] {
        all.push(bad_allow("direction", json!(value), &[&json!(value).to_string(), "ingress", "egress"]));
    }
    for value in [
        "",
        "10.0.0.0/33",
        "fd00::/129",
        "10.0.0/8",
        "256.0.0.1/32",
        "example.com",
        "10.0.0.1/",
        "/8",
        "10.0.0.1/-1",
        "10.0.0.1-10.0.0.9",
        "any",
        "fe80::1%eth0/64",
        " 10.0.0.0/8",
    ] {
        all.push(bad_allow("peer", json!(value), &[&json!(value).to_string(), "CIDR"]));
    }
    for key in ["protocol", "direction", "peer"] {
        for value in [json!(null), json!(6), json!(["tcp"]), json!({})] {
            let text = value.to_string();
            all.push(bad_allow(key, value, &[&text]));
        }
        all.push(bad_allow(key, json!("<missing>"), &["missing"]));
    }
    for value in [json!("yes"), json!(""), json!("Auto"), json!(true), json!(null), json!({})] {
        all.push(bad(json!({ "hostGuard": value }), &["hostGuard", &value.to_string(), "auto", "require", "off"]));
    }
    for value in [json!(null), json!("syslog"), json!([]), json!(true)] {
        all.push(bad(json!({ "log": value }), &["log", &value.to_string(), "object"]));
    }
    for value in [json!("file"), json!(""), json!("Syslog"), json!(null), json!(1)] {
        all.push(bad(json!({ "log": { "target": value } }), &["log.target", &value.to_string(), "syslog", "stderr"]));
    }
    for value in [json!("loud"), json!(""), json!("INFO"), json!(3), json!(null)] {
        all.push(bad(json!({ "log": { "level": value } }), &["log.level", &value.to_string(), "info", "debug"]));
    }
    all.push(bad(json!({ "log": { "levle": "info" } }), &["log", "levle", "level", "target"]));
    for value in [
        json!(""),
        json!("relative/path"),
        json!("."),
        json!("~/x"),
        json!(null),
        json!(7),
        json!([]),
        json!("/a\u{0}b"),
    ] {
        all.push(bad(json!({ "stateDir": value }), &["stateDir", &value.to_string(), "absolute"]));
    }
    all
}

fn with(mut config: Value, keys: &Value) -> Value {
    for (key, value) in keys.as_object().unwrap() {
        set(&mut config, key, value.clone());
    }
    config
}

/// B17: code 7, naming the key, the value and what is allowed. Nothing was done.
#[test]
fn a_bad_setting_is_code_7_and_explained() {
    let node = Node::new();
    let pod = node.pod();
    let mut faults = Vec::new();
    for bad in bad_settings() {
        for verb in ["ADD", "CHECK"] {
            let config = with(pod.chained_config(&node), &bad.keys);
            let outcome = node.call(verb).sandbox(&pod).config(config).run();
            if outcome.status.success() {
                faults.push(format!("{verb} accepts {}", bad.keys));
                let _ = node.plugin("DEL", &pod);
                continue;
            }
            let error = outcome.error();
            let unsaid: Vec<_> = bad.says.iter().filter(|part| !error.text().contains(*part)).collect();
            if error.code != 7 || !unsaid.is_empty() {
                faults.push(format!("{verb} {}: does not say {unsaid:?}: {error:?}", bad.keys));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
    node.is_untouched();
    pod.is_untouched();
}

/// B17: DEL and GC succeed with every bad setting, and do their work where the state directory is known.
#[test]
fn del_and_gc_succeed_with_bad_settings() {
    let node = Node::new();
    let mut faults = Vec::new();
    for bad in bad_settings() {
        if bad.keys.get("stateDir").is_some() {
            continue; // the next test: these would work on the machine's default directory
        }
        for verb in ["DEL", "GC"] {
            let id = "never-added";
            let mut config = with(node.config(), &bad.keys);
            set(&mut config, "cni.dev/valid-attachments", json!([]));
            let outcome = node.call(verb).env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0").config(config).run();
            if !outcome.status.success() || !outcome.stdout.is_empty() {
                faults.push(format!("{verb} {}: {outcome:?}", bad.keys));
            }
        }
    }
    assert!(faults.is_empty(), "{}", faults.join("\n"));
}

/// B17: what was added with a good config is removed with a broken one.
#[test]
fn del_and_gc_clean_up_with_a_broken_config() {
    let node = Node::new();
    for verb in ["DEL", "GC"] {
        let pod = node.pod();
        node.plugin("ADD", &pod).result();
        let broken = json!({ "policy": { "allow": "everything" }, "hostGuard": 7, "log": "loud" });
        let mut config = with(pod.chained_config(&node), &broken);
        set(&mut config, "cni.dev/valid-attachments", json!([]));
        node.call(verb).sandbox(&pod).config(config).run().succeeded_silently();
        assert_eq!(node.records(), [""; 0], "{verb}");
        if verb == "DEL" {
            assert_eq!(pod.tables(), Tables::Absent);
        }
    }
}

/// B17: DEL and GC with an invalid `stateDir` still succeed.
#[test]
fn del_and_gc_succeed_with_a_bad_state_directory() {
    let node = Node::new();
    let file = node.state_dir().join("file");
    std::fs::write(&file, "").unwrap();
    for value in [
        json!("relative"),
        json!(""),
        json!(7),
        json!(null),
        json!("/proc/self/nothing/here"),
        json!(file),
        json!(file.join("below")),
    ] {
        for verb in ["DEL", "GC"] {
            let mut config = node.config();
            set(&mut config, "stateDir", value.clone());
            set(&mut config, "cni.dev/valid-attachments", json!([{ "containerID": "a", "ifname": "eth0" }]));
            let outcome = node.call(verb).env("CNI_CONTAINERID", "a").env("CNI_IFNAME", "eth0").config(config).run();
            assert!(outcome.status.success(), "{verb} {value}: {outcome:?}");
        }
    }
}

/// The good values of every key, the defaults written out among them.
#[test]
fn every_good_setting_is_taken() {
    let node = Node::new();
    let pod = node.pod();
    let allow = |key: &str, value: Value| {
        let mut entry = json!({ "direction": "egress", "peer": "10.20.0.5/32", "protocol": "tcp", "ports": [443] });
        set(&mut entry, key, value);
        json!({ "policy": { "allow": [entry] } })
    };
    let settings = [
        json!({}),
        json!({ "policy": {} }),
        json!({ "policy": { "loopback": true, "probes": true, "allow": [] } }),
        json!({ "policy": { "loopback": false, "probes": false } }),
        json!({ "policy": { "probes": { "ports": [8080, "9000-9010", 1, 65535] } } }),
        allow("ports", json!([1, 65535, "1-65535", "7-7", 443, 443, "400-500"])),
        allow("direction", json!("ingress")),
        allow("protocol", json!("udp")),
        allow("peer", json!("0.0.0.0/0")),
        allow("peer", json!("::/0")),
        allow("peer", json!("fd00:20::/64")),
        allow("peer", json!("10.20.0.5/8")), // bits behind the prefix
        json!({ "policy": { "allow": [{ "direction": "egress", "peer": "10.20.0.5/32", "protocol": "tcp" }] } }),
        json!({ "hostGuard": "auto" }),
        json!({ "hostGuard": "off" }),
        json!({ "hostGuard": "require" }),
        json!({ "log": {} }),
        json!({ "log": { "target": "syslog", "level": "info" } }),
        json!({ "log": { "target": "stderr", "level": "debug" } }),
        json!({ "log": { "level": "error" } }),
        json!({ "log": { "level": "warn" } }),
        json!({ "log": { "level": "trace" } }),
    ];
    for keys in settings {
        let config = with(pod.chained_config(&node), &keys);
        for verb in ["ADD", "CHECK", "DEL"] {
            let outcome = node.call(verb).sandbox(&pod).config(config.clone()).run();
            assert!(outcome.status.success(), "{verb} {keys}: {outcome:?}");
        }
    }
    node.is_untouched();
}
