//! Names from CNI_ARGS: none leaves the state directory.

use proptest::prelude::*;
use serde_json::json;

use crate::lab::{Node, Pod, Run, Tables};

/// A state directory in the middle of a place that the test watches.
struct Watched {
    node: Node,
    pod: Pod,
}

impl Watched {
    fn new() -> Self {
        let node = Node::new();
        let pod = node.pod();
        std::fs::create_dir_all(node.state_dir().join("outer/state")).unwrap();
        // What names that leave would hit: were it read as a mark, the pod would be isolated.
        for bait in ["bait", "outer/bait", "outer/state/bait", "outer/state/bait_web", "outer/shop_web"] {
            std::fs::write(node.state_dir().join(bait), "").unwrap();
        }
        Self { node, pod }
    }

    fn call(&self, verb: &str, args: &str) -> Run {
        let mut config = self.pod.chained_config(&self.node);
        config["stateDir"] = json!(self.node.state_dir().join("outer/state"));
        self.node.call(verb).sandbox(&self.pod).env("CNI_ARGS", args).config(config).run()
    }

    /// Everything outside of the state directory, and in it what is neither marks, records nor hidden.
    fn strangers(&self) -> Vec<String> {
        let top = self.node.state_dir();
        let mut names: Vec<String> = ["", "outer", "outer/state"]
            .iter()
            .flat_map(|directory| std::fs::read_dir(top.join(directory)).unwrap())
            .map(|entry| entry.unwrap().path().strip_prefix(top).unwrap().to_str().unwrap().to_owned())
            .collect();
        names.retain(|name| {
            let within = name.strip_prefix("outer/state/");
            !within.is_some_and(|name| {
                ["isolated", "attachments"].contains(&name) || name.starts_with('.') || name.contains("lock")
            })
        });
        names.sort();
        names
    }
}

/// Values in CNI_ARGS that would leave the directory, hide in it, or be no file name: ADD refuses with code 4 and names
/// CNI_ARGS, DEL succeeds; nothing is made outside.
#[test]
fn hostile_args_never_leave_the_directory() {
    let watched = Watched::new();
    let before = watched.strangers();
    let long = "x".repeat(5000);
    let values = [
        "../bait",
        "../../bait",
        "/",
        "/etc/passwd",
        ".",
        "..",
        "./x",
        "a/b",
        "a/../../bait",
        ".hidden",
        "a b",
        "a\nb",
        "\u{1}",
        "a\tb",
        "\u{7f}",
        "*",
        "é",
        "a\\b",
        "-a",
        &long,
    ];
    for key in ["K8S_POD_UID", "K8S_POD_NAME", "K8S_POD_NAMESPACE"] {
        for value in values {
            let mut args = vec!["K8S_POD_NAMESPACE=shop", "K8S_POD_NAME=web", "K8S_POD_UID=uid-1"];
            args.retain(|pair| !pair.starts_with(&format!("{key}=")));
            let args = format!("{};{key}={value}", args.join(";"));
            let shown: String = args.chars().take(120).collect();
            let error = watched.call("ADD", &args).error();
            assert_eq!(error.code, 4, "{shown}: {error:?}");
            error.says(&["CNI_ARGS"]);
            assert_eq!(watched.pod.tables(), Tables::Absent, "{shown}");
            watched.call("DEL", &args).succeeded_silently();
            assert_eq!(watched.strangers(), before, "{shown}");
        }
    }
}

/// A pair without `=` is malformed: ADD refuses with code 4, DEL succeeds.
#[test]
fn malformed_args_are_refused_by_add() {
    let watched = Watched::new();
    for args in ["junk", "K8S_POD_UID", "K8S_POD_UID=uid-1;junk", "junk;K8S_POD_UID=uid-1"] {
        let error = watched.call("ADD", args).error();
        assert_eq!(error.code, 4, "{args}: {error:?}");
        error.says(&["CNI_ARGS"]);
        watched.call("DEL", args).succeeded_silently();
        assert_eq!(watched.pod.tables(), Tables::Absent);
    }
}

/// The longest names that Kubernetes allows (a namespace of 63, a pod name of 253 bytes) are good ones.
#[test]
fn the_longest_kubernetes_names_are_taken() {
    let watched = Watched::new();
    let args = format!("K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID=uid-1", "n".repeat(63), "p".repeat(253));
    watched.call("ADD", &args).result();
    watched.call("CHECK", &args).succeeded_silently();
    watched.call("DEL", &args).succeeded_silently();
}

/// Whatever CNI_ARGS hold: ADD succeeds or says code 4, DEL succeeds, nothing is made outside of the directory.
#[test]
fn any_args() {
    let watched = Watched::new();
    let before = watched.strangers();
    let pair = prop_oneof![
        ("(K8S_POD_UID|K8S_POD_NAME|K8S_POD_NAMESPACE)", "[./a-z_]{0,12}")
            .prop_map(|(key, value)| format!("{key}={value}")),
        "[^\0]{0,12}",
        Just("IgnoreUnknown=1".to_owned()),
    ];
    proptest!(ProptestConfig::with_cases(40), |(pairs in proptest::collection::vec(pair, 0..5))| {
        let args = pairs.join(";");
        let outcome = watched.call("ADD", &args);
        if outcome.status.success() {
            outcome.result();
        } else {
            prop_assert_eq!(outcome.error().code, 4);
        }
        watched.call("DEL", &args).succeeded_silently();
        prop_assert_eq!(watched.strangers(), before.clone());
        prop_assert_eq!(watched.pod.tables(), Tables::Absent);
    });
}
