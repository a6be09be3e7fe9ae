//! What the plugin is given and what it has to print, in every version: the cases of `testdata/cni/`.

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

/// A case of `testdata/cni/` in one version: what the plugin is given and what it has to print.
pub(crate) struct Vector {
    pub(crate) name: String,
    stdin: Value,
    stdout: Value,
}

impl Vector {
    /// All of one version.
    pub(crate) fn of(version: &str) -> Vec<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cni");
        let files = std::fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path());
        let cases = files.filter(|path| path.extension().is_some_and(|extension| extension == "json"));
        let mut vectors: Vec<Self> = cases.map(|path| Self::read(&path, version)).collect();
        vectors.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(!vectors.is_empty(), "nothing in {}", directory.display());
        vectors
    }

    /// The case of this file as it is in `version`.
    fn read(path: &Path, version: &str) -> Self {
        let other_family = if version.starts_with("0.") { "1.0.0" } else { "0.4.0" };
        let text = std::fs::read_to_string(path).unwrap();
        let text = text.replace("<version>", version).replace("<other family>", other_family);
        let mut file: Value = serde_json::from_str(&text).unwrap();
        let (mut stdin, mut stdout) = (file["stdin"].take(), file["stdout"].take());
        keep_only(&mut stdin["prevResult"], version);
        keep_only(&mut stdout, version);
        Self { name: format!("{version}/{}", path.file_stem().unwrap().to_str().unwrap()), stdin, stdout }
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

/// Leaves out what a result does not have in its own version, or in `version` where it does not say one.
fn keep_only(result: &mut Value, version: &str) {
    let version = result["cniVersion"].as_str().unwrap_or(version).to_owned();
    let mut leave_out = |list: &str, keys: &[&str]| {
        for entry in result.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let entry = entry.as_object_mut().unwrap();
            // Others keep their order.
            keys.iter().for_each(|key| drop(entry.shift_remove(*key)));
        }
    };
    if !version.starts_with("0.") {
        leave_out("ips", &["version"]);
    }
    if version != "1.1.0" {
        leave_out("interfaces", &["mtu", "socketPath", "pciID"]);
        leave_out("routes", &["mtu", "advmss", "priority", "table", "scope"]);
    }
}

fn at(document: &Value, pod: &Pod) -> Value {
    serde_json::from_str(&document.to_string().replace("/run/netns/pod", pod.path().to_str().unwrap())).unwrap()
}
