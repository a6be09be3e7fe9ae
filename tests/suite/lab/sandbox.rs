//! A pod's sandbox as the product sees it: ADD, marks, status, DEL, all by the public ways.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Call, Netns, Run, StateDir, Topology, quarantine};

/// An attachment made by the product's ADD on a topology's pod, with a state directory of its own.
pub(crate) struct Sandbox<'a> {
    topology: &'a Topology,
    state: StateDir,
    config: Value,
    id: String,
}

impl<'a> Sandbox<'a> {
    /// ADD with the default configuration.
    pub(crate) fn add(topology: &'a Topology) -> Self {
        Self::add_with(topology, &json!({}))
    }

    /// ADD with these keys in the conflist entry too.
    pub(crate) fn add_with(topology: &'a Topology, keys: &Value) -> Self {
        let sandbox = Self::prepare(topology, keys);
        sandbox.invoke("ADD").ok();
        sandbox
    }

    /// A sandbox for which ADD was not called yet.
    pub(crate) fn prepare(topology: &'a Topology, keys: &Value) -> Self {
        let state = StateDir::new();
        let mut config = json!({
            "cniVersion": "1.1.0",
            "name": "lab",
            "type": "quarantine",
            "stateDir": state.path(),
            "prevResult": topology.prev_result(),
        });
        for (key, value) in keys.as_object().unwrap() {
            config[key] = value.clone();
        }
        let id = format!("c{}", topology.pod.name());
        Self { topology, state, config, id }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    pub(crate) fn state_dir(&self) -> &str {
        self.state.text()
    }

    /// The node that it is on.
    pub(crate) fn node(&self) -> &Netns {
        &self.topology.node
    }

    pub(crate) fn config(&self) -> &Value {
        &self.config
    }

    /// Calls the plugin for `eth0`.
    pub(crate) fn invoke(&self, verb: &str) -> Run {
        self.invoke_on(verb, "eth0")
    }

    /// Calls the plugin for another interface of the same pod.
    pub(crate) fn invoke_on(&self, verb: &str, ifname: &str) -> Run {
        self.call(verb, ifname, &self.topology.pod.path(), &self.config)
    }

    /// Calls the plugin with another configuration.
    pub(crate) fn invoke_with(&self, verb: &str, config: &Value) -> Run {
        self.call(verb, "eth0", &self.topology.pod.path(), config)
    }

    /// Calls the plugin with another netns.
    pub(crate) fn invoke_in(&self, verb: &str, netns: &Path) -> Run {
        self.call(verb, "eth0", netns, &self.config)
    }

    fn call(&self, verb: &str, ifname: &str, netns: &Path, config: &Value) -> Run {
        Call::new(&self.topology.node, verb)
            .attachment(&self.id, netns, ifname)
            .args(&format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=lab;K8S_POD_NAME=web;K8S_POD_UID=uid-{}", self.id))
            .config(config)
            .run()
    }

    /// One of the commands on the node, with this sandbox's state directory.
    pub(crate) fn quarantine(&self, args: &[&str]) -> Run {
        let mut all = args.to_vec();
        all.extend(["--state-dir", self.state_dir()]);
        quarantine(&self.topology.node, &all)
    }

    /// Where the mark by container ID is.
    pub(crate) fn mark(&self) -> PathBuf {
        self.state.mark_path(&self.id)
    }

    /// Writes the mark, as an operator would; nothing is applied yet.
    pub(crate) fn write_mark(&self, text: &str) {
        self.state.move_mark(&self.id, text);
    }

    /// Writes the mark (`""`: an empty one, the conflist's policy holds) and has it applied.
    pub(crate) fn isolate(&self, mark: &str) {
        self.write_mark(mark);
        self.sync();
    }

    /// Isolates with this policy.
    pub(crate) fn isolate_with(&self, policy: &Value) {
        self.isolate(&json!({ "policy": policy }).to_string());
    }

    /// Removes the mark and has that applied.
    pub(crate) fn release(&self) {
        self.state.remove_mark(&self.id);
        self.sync();
    }

    pub(crate) fn sync(&self) {
        self.quarantine(&["sync"]).ok();
    }

    /// What `status` says of it. Its exit status is a verdict of its own and is not looked at here.
    pub(crate) fn status(&self) -> Value {
        self.quarantine(&["status", &self.id, "-o", "json"]).json()
    }

    /// The verdict of [`Sandbox::status`]: `contained`, `partial` or `open`.
    pub(crate) fn verdict(&self) -> String {
        self.status()["verdict"].as_str().unwrap_or_default().to_owned()
    }

    pub(crate) fn del(&self) {
        self.invoke("DEL").ok();
    }
}
