//! CNI.md part B: stdin, the config, its versions; and this plugin's own keys.

use std::fs::File;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{Node, Pod, Stdin, Tables, VERSIONS, Vector};

/// All verbs but VERSION, and the oldest version that has them.
const VERBS: [(&str, &str); 5] =
    [("ADD", "0.3.0"), ("CHECK", "0.4.0"), ("DEL", "0.3.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")];

fn set(config: &mut Value, key: &str, value: Value) {
    config[key] = value;
}

/// B10: stdin that cannot be read (a directory: EISDIR; the address 0 of a process: EIO) is code 5.
#[test]
fn unreadable_stdin_is_code_5() {
    let node = Node::new();
    let pod = node.pod();
    for (verb, _) in VERBS {
        for path in ["/", "/proc/self/mem"] {
            let stdin = Stdin::File(File::open(path).unwrap());
            let error = node.call(verb).sandbox(&pod).stdin(stdin).run().error();
            assert_eq!(error.code, 5, "{verb} {path}: {error:?}");
        }
    }
    node.is_untouched();
}

/// B11: what is no config is code 6. (`null` is code 7 in skel.)
#[test]
fn undecodable_stdin_is_code_6() {
    let node = Node::new();
    let pod = node.pod();
    let good = pod.chained_config(&node).to_string();
    let mut texts: Vec<Vec<u8>> = [
        "",
        " ",
        "\n",
        "junk",
        "{",
        "}",
        "[]",
        "{}x",
        "{}{}",
        "\"x\"",
        "7",
        "true",
        "null",
        r#"{"name":}"#,
        r#"{"a":1,}"#,
        "{'name':'x'}",
    ]
    .map(Vec::from)
    .to_vec();
    texts.push(good.as_bytes()[..good.len() - 1].to_vec());
    texts.push(good.as_bytes()[..good.len() / 2].to_vec());
    texts.push(format!("{good}{good}").into_bytes());
    texts.push(format!("{good}\n,").into_bytes());
    texts.push(format!("\u{feff}{good}").into_bytes());
    texts.push(good.replace("testnet", "\u{1}").into_bytes());
    texts.push([b"{\"name\":\"", &[0xff][..], b"\"}"].concat());
    texts.push([good.as_bytes(), b"\0"].concat());
    // Deep enough to overflow a stack that follows it blindly.
    texts.push(vec![b'['; 200_000]);
    for (key, value) in [
        ("cniVersion", json!(1)),
        ("cniVersion", json!(["1.1.0"])),
        ("cniVersion", json!({})),
        ("cniVersion", json!(true)),
        ("name", json!(7)),
        ("name", json!(["testnet"])),
        ("name", json!({})),
    ] {
        let mut config = pod.chained_config(&node);
        set(&mut config, key, value);
        texts.push(config.to_string().into_bytes());
    }
    for text in texts {
        for (verb, _) in VERBS {
            let shown = String::from_utf8_lossy(&text[..text.len().min(300)]).into_owned();
            let error = node.call(verb).sandbox(&pod).stdin(Stdin::Bytes(text.clone())).run().error();
            let allowed: &[u64] = if text == b"null" { &[6, 7] } else { &[6] };
            assert!(allowed.contains(&error.code), "{verb} {shown:?}: {error:?}");
        }
    }
    node.is_untouched();
    pod.is_untouched();
}

/// White space around the document is no trailing byte (B11's other side).
#[test]
fn white_space_around_the_config_is_fine() {
    let node = Node::new();
    let pod = node.pod();
    let text = format!(" \r\n\t{}\n\n ", serde_json::to_string_pretty(&pod.chained_config(&node)).unwrap());
    for verb in ["ADD", "CHECK", "DEL"] {
        let outcome = node.call(verb).sandbox(&pod).stdin(Stdin::Bytes(text.clone().into_bytes())).run();
        assert!(outcome.status.success(), "{verb}: {outcome:?}");
    }
}

/// B12: a network name that is missing, empty, or no name, is code 7; DEL too (E30).
#[test]
fn a_bad_network_name_is_code_7() {
    let node = Node::new();
    let pod = node.pod();
    for name in [None, Some(""), Some("-a"), Some(".a"), Some("a b"), Some("a/b"), Some("../a"), Some("é"), Some("a\n")]
    {
        let mut config = pod.chained_config(&node);
        match name {
            Some(name) => set(&mut config, "name", json!(name)),
            None => drop(config.as_object_mut().unwrap().remove("name")),
        }
        for (verb, _) in VERBS {
            let error = node.call(verb).sandbox(&pod).config(config.clone()).run().error();
            assert_eq!(error.code, 7, "{verb} {name:?}: {error:?}");
            error.says(&["name"]);
        }
    }
    node.is_untouched();
}

/// B13: versions are compared as they are written; the error says what was asked for and what there is.
#[test]
fn an_unsupported_version_is_code_1() {
    let node = Node::new();
    let pod = node.pod();
    let versions = [
        None,
        Some(""),
        Some("0.1.0"),
        Some("0.2.0"),
        Some("1.1"),
        Some("1"),
        Some("1.0.1"),
        Some("1.2.0"),
        Some("2.0.0"),
        Some("v1.0.0"),
        Some("1.1.0 "),
        Some("01.1.0"),
    ];
    for version in versions {
        let mut config = pod.chained_config(&node);
        match version {
            Some(version) => set(&mut config, "cniVersion", json!(version)),
            None => drop(config.as_object_mut().unwrap().remove("cniVersion")),
        }
        for (verb, _) in VERBS {
            let error = node.call(verb).sandbox(&pod).config(config.clone()).run().error();
            assert_eq!(error.code, 1, "{verb} {version:?}: {error:?}");
            let asked = match version {
                None | Some("") => "0.1.0",
                Some(version) => version,
            };
            assert!(error.details.contains(&format!("config is \"{asked}\"")), "{verb} {version:?}: {error:?}");
            assert!(error.details.contains("plugin supports [\"0.3.0\""), "{verb} {version:?}: {error:?}");
        }
    }
    // Not a version at all: skel says 6 to the newer verbs.
    for version in ["latest", "1.1.x", "..", "1,1,0"] {
        let mut config = pod.chained_config(&node);
        set(&mut config, "cniVersion", json!(version));
        for (verb, _) in VERBS {
            let error = node.call(verb).sandbox(&pod).config(config.clone()).run().error();
            let allowed: &[u64] = if ["ADD", "DEL"].contains(&verb) { &[1] } else { &[1, 6] };
            assert!(allowed.contains(&error.code), "{verb} {version:?}: {error:?}");
        }
    }
    node.is_untouched();
    pod.is_untouched();
}

/// B14: of two faults, the one that comes first in the order is reported: env, decode, name, version, own config.
#[test]
fn faults_are_found_in_order() {
    let node = Node::new();
    let pod = node.pod();
    let broken = |keys: &[(&str, Value)]| {
        let mut config = pod.chained_config(&node);
        keys.iter().for_each(|(key, value)| set(&mut config, key, value.clone()));
        Stdin::Bytes(config.to_string().into_bytes())
    };
    let own = ("hostGuard", json!("maybe"));
    let version = ("cniVersion", json!("9.9.9"));
    let name = ("name", json!("a b"));
    let no_name = ("name", json!(""));
    for verb in ["ADD", "CHECK"] {
        let code = |stdin| node.call(verb).sandbox(&pod).stdin(stdin).run().error().code;
        assert_eq!(code(broken(std::slice::from_ref(&own))), 7, "{verb}");
        assert_eq!(code(broken(&[own.clone(), version.clone()])), 1, "{verb}: version before own config");
        assert_eq!(code(broken(&[own.clone(), version.clone(), name.clone()])), 7, "{verb}: name before version");
        assert_eq!(code(broken(&[version.clone(), no_name.clone()])), 7, "{verb}: name before version");
        assert_eq!(code(broken(&[name.clone(), ("cniVersion", json!(1))])), 6, "{verb}: decode before name");
        assert_eq!(
            code(broken(&[version.clone(), ("prevResult", Value::Null)])),
            1,
            "{verb}: version before prevResult"
        );
        for stdin in
            [Stdin::Bytes(b"junk".to_vec()), Stdin::File(File::open("/").unwrap()), broken(std::slice::from_ref(&name))]
        {
            let error = node.call(verb).sandbox(&pod).env("CNI_IFNAME", "a/b").stdin(stdin).run().error();
            assert_eq!(error.code, 4, "{verb}: env before stdin: {error:?}");
        }
    }
    node.is_untouched();
}

/// B15: a verb below the version that brought it is code 1. (At and above it: the other tests.)
#[test]
fn a_verb_that_its_version_does_not_have_is_code_1() {
    let node = Node::new();
    let pod = node.pod();
    for (verb, since) in VERBS {
        let too_old = VERSIONS.iter().take_while(|version| **version != since);
        for version in too_old {
            let mut config = pod.chained_config(&node);
            set(&mut config, "cniVersion", json!(version));
            let error = node.call(verb).sandbox(&pod).config(config).run().error();
            assert_eq!(error.code, 1, "{verb} {version}: {error:?}");
        }
    }
}

/// B16: what runtimes put into the config is no business of ours. (ADD's output: the vectors in `add`.)
#[test]
fn what_runtimes_add_is_ignored() {
    for version in VERSIONS {
        let node = Node::new();
        let pod = node.pod();
        let vector = Vector::named(version, "runtime-keys");
        for (verb, since) in VERBS {
            if version >= since {
                let mut config = vector.config(&node, &pod);
                if verb == "GC" {
                    set(&mut config, "cni.dev/valid-attachments", json!([]));
                }
                let outcome = node.call(verb).sandbox(&pod).config(config).run();
                assert!(outcome.status.success(), "{verb} {version}: {outcome:?}");
            }
        }
    }
}

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

/// Every key of DESIGN.md's "Configuration" with what it does not allow.
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

/// B17, and the brief of the configuration: code 7, naming the key, the value and what is allowed. Nothing was done.
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

/// B17: DEL and GC with a `stateDir` that is none still succeed.
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
