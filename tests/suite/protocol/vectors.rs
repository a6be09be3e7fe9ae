//! What the plugin is given and what it has to print, in every version: the files of `testdata/cni/`.

use std::path::Path;

use serde_json::{Value, json};

use crate::lab::{Node, Pod};

/// What the product says it supports, in this order.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// All verbs but VERSION, and the oldest version that has them.
pub(crate) const VERBS: [(&str, &str); 5] =
    [("ADD", "0.3.0"), ("CHECK", "0.4.0"), ("DEL", "0.3.0"), ("GC", "1.1.0"), ("STATUS", "1.1.0")];

pub(crate) fn set(config: &mut Value, key: &str, value: Value) {
    config[key] = value;
}

/// A file of `testdata/cni/`: what the plugin is given and what it has to print.
pub(crate) struct Vector {
    pub(crate) name: String,
    stdin: Value,
    stdout: Value,
}

impl Vector {
    /// All of one version.
    pub(crate) fn of(version: &str) -> Vec<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cni").join(version);
        let mut vectors: Vec<Self> = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                Self {
                    name: format!("{version}/{}", path.file_stem().unwrap().to_str().unwrap()),
                    stdin: file["stdin"].take(),
                    stdout: file["stdout"].take(),
                }
            })
            .collect();
        vectors.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(!vectors.is_empty(), "nothing in {}", directory.display());
        vectors
    }

    pub(crate) fn named(version: &str, name: &str) -> Self {
        Self::of(version).into_iter().find(|vector| vector.name.ends_with(&format!("/{name}"))).unwrap()
    }

    /// stdin for this pod. The files say `/run/netns/pod`.
    pub(crate) fn config(&self, node: &Node, pod: &Pod) -> Value {
        let mut config = at(&self.stdin, pod);
        config["stateDir"] = json!(node.state_dir());
        config
    }

    /// stdout for this pod.
    pub(crate) fn result(&self, pod: &Pod) -> Value {
        at(&self.stdout, pod)
    }
}

fn at(document: &Value, pod: &Pod) -> Value {
    serde_json::from_str(&document.to_string().replace("/run/netns/pod", pod.path().to_str().unwrap())).unwrap()
}
