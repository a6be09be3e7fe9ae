//! docs/protocol.md, part B: stdin, the config on it, and its versions.

use std::fs::File;

use serde_json::{Value, json};

use super::vectors::{VERBS, VERSIONS, Vector, set};
use crate::lab::{Node, Stdin};

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

/// B16: what runtimes add to the config is ignored. (ADD's output: the vectors in `add`.)
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
