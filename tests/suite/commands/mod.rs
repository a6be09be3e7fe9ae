//! The commands as a person and a script meet them: what they say, what they leave behind, how they exit.

mod cut;
mod node;
mod selection;
mod status;
mod verbs;
mod waiting;

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::lab::{Call, Run, StateDir, Topology, quarantine};

/// A node with a state directory, on which sandboxes of any name are made.
struct Lab<'a> {
    topology: &'a Topology,
    state: StateDir,
}

/// The two pods of a topology.
#[derive(Clone, Copy)]
enum Place {
    Pod,
    Peer,
}

impl<'a> Lab<'a> {
    fn new(topology: &'a Topology) -> Self {
        Self { topology, state: StateDir::new() }
    }

    fn config(&self, place: Place, keys: &Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "lab",
            "type": "quarantine",
            "stateDir": self.state.path(),
            "prevResult": self.topology.prev_result(),
        });
        if let Place::Peer = place {
            // The same but for the addresses, which the plugin reads from the interface too.
            let text = config["prevResult"].to_string();
            let pod = self.topology.pod.path().display().to_string();
            let text = text.replace(&pod, &self.topology.peer.path().display().to_string());
            config["prevResult"] = serde_json::from_str(&text).unwrap();
            config["prevResult"]["ips"] = json!([]);
        }
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
        config
    }

    /// Calls the plugin; `args` is what a runtime says of the pod.
    fn invoke(&self, verb: &str, place: Place, id: &str, args: &str, keys: &Value) -> Run {
        let netns = match place {
            Place::Pod => &self.topology.pod,
            Place::Peer => &self.topology.peer,
        };
        Call::new(&self.topology.node, verb)
            .attachment(id, &netns.path(), "eth0")
            .args(&format!("IgnoreUnknown=1;{args}"))
            .config(self.config(place, keys))
            .run()
    }

    /// A sandbox in the pod.
    fn add(&self, id: &str, args: &str) {
        self.invoke("ADD", Place::Pod, id, args, &json!({})).ok();
    }

    fn run(&self, args: &[&str]) -> Run {
        let mut all = args.to_vec();
        all.extend(["--state-dir", self.state.text(), "--log", "stderr"]);
        quarantine(&self.topology.node, &all)
    }

    /// `status` of one sandbox, whatever its exit code.
    fn status(&self, sandbox: &str) -> Value {
        self.run(&["status", sandbox, "-o", "json"]).json()
    }

    fn mark(&self, key: &str) -> PathBuf {
        self.state.mark_path(key)
    }

    fn write_mark(&self, key: &str, text: &str) {
        self.state.mark(key, text);
    }

    fn marks(&self) -> Vec<String> {
        self.state.marks()
    }
}

/// What a runtime says of a pod.
fn pod(name: &str, uid: &str) -> String {
    format!("K8S_POD_NAMESPACE=shop;K8S_POD_NAME={name};K8S_POD_UID={uid}")
}

#[track_caller]
fn exits(run: Run, code: i32) -> Run {
    assert_eq!(run.status.code(), Some(code), "{run:#?}");
    run
}

#[track_caller]
fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in:\n{text}");
    }
}
