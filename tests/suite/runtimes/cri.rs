//! What a kubelet says to a runtime: the CRI, said by `grpcurl` from the published protocol file.

use std::net::IpAddr;

use serde_json::{Value, json};

use super::{HTTPD, IMAGE};
use crate::lab::runtime_node::output;
use crate::lab::{Netns, RuntimeNode};

/// A runtime's CRI socket on a node.
pub(super) struct Cri<'a> {
    pub(super) node: &'a RuntimeNode,
    pub(super) socket: &'a str,
    /// Below which the runtime puts the pods' cgroups.
    pub(super) cgroup: String,
}

/// A pod sandbox, with the container that serves in it.
pub(super) struct Pod {
    pub(super) sandbox: String,
    config: Value,
    httpd: String,
}

impl Cri<'_> {
    /// One call; the answer.
    pub(super) fn try_call(&self, method: &str, request: &Value) -> Result<Value, String> {
        let answer = output(self.node.command("/opt/cni/bin/grpcurl").args([
            "-plaintext",
            "-unix",
            "-import-path",
            "/opt/cni/peers",
            "-proto",
            "cri.proto",
            "-d",
            &request.to_string(),
            self.socket,
            &format!("runtime.v1.RuntimeService/{method}"),
        ]))?;
        serde_json::from_str(&answer).map_err(|error| format!("{error}: {answer}"))
    }

    #[track_caller]
    pub(super) fn call(&self, method: &str, request: &Value) -> Value {
        self.try_call(method, request).unwrap_or_else(|error| panic!("{method} {request}: {error}"))
    }

    /// A sandbox and its container, as the kubelet makes them; `attempt` counts the sandboxes of one pod.
    #[track_caller]
    pub(super) fn run_pod(&self, name: &str, uid: &str, attempt: u32) -> Pod {
        let config = json!({
            "metadata": { "name": name, "uid": uid, "namespace": "lab", "attempt": attempt },
            "log_directory": "/run",
            // Of the namespaces only the network is the pod's: so do kubelets.
            "linux": { "cgroup_parent": self.cgroup, "security_context": { "namespace_options": { "pid": "CONTAINER" } } },
        });
        let answer = self.call("RunPodSandbox", &json!({ "config": config }));
        let sandbox = answer["podSandboxId"].as_str().unwrap().to_owned();
        let container = json!({
            "metadata": { "name": "httpd", "attempt": attempt },
            "image": { "image": IMAGE },
            "command": HTTPD,
            "log_path": format!("{name}-{attempt}.log"),
        });
        let answer = self.call(
            "CreateContainer",
            &json!({ "pod_sandbox_id": sandbox, "config": container, "sandbox_config": config }),
        );
        let httpd = answer["containerId"].as_str().unwrap().to_owned();
        self.call("StartContainer", &json!({ "container_id": httpd }));
        Pod { sandbox, config, httpd }
    }

    /// The same pod again, in a new sandbox.
    #[track_caller]
    pub(super) fn run_again(&self, pod: &Pod) -> Pod {
        let metadata = &pod.config["metadata"];
        let text = |key: &str| metadata[key].as_str().unwrap();
        let attempt = u32::try_from(metadata["attempt"].as_u64().unwrap()).unwrap();
        self.run_pod(text("name"), text("uid"), attempt + 1)
    }

    fn status(&self, pod: &Pod) -> Value {
        self.call("PodSandboxStatus", &json!({ "pod_sandbox_id": pod.sandbox, "verbose": true }))
    }

    /// What the runtime tells of a sandbox beyond the CRI.
    fn info(&self, pod: &Pod) -> Value {
        serde_json::from_str(self.status(pod)["info"]["info"].as_str().unwrap()).unwrap()
    }

    /// The process ID of the pause container, on the node.
    pub(super) fn pause(&self, pod: &Pod) -> u64 {
        self.info(pod)["pid"].as_u64().unwrap()
    }

    /// The sandbox's network namespace, which outlives its processes.
    pub(super) fn netns(&self, pod: &Pod) -> Netns {
        let info = self.info(pod);
        let namespaces = info["runtimeSpec"]["linux"]["namespaces"].as_array().unwrap();
        let network = namespaces.iter().find(|namespace| namespace["type"] == "network").unwrap();
        self.node.netns_at(network["path"].as_str().unwrap())
    }

    /// The addresses that the runtime tells the kubelet.
    pub(super) fn addresses(&self, pod: &Pod) -> Vec<IpAddr> {
        let status = self.status(pod);
        let network = &status["status"]["network"];
        let additional = network["additionalIps"].as_array().into_iter().flatten();
        std::iter::once(&network["ip"])
            .chain(additional.map(|ip| &ip["ip"]))
            .map(|ip| ip.as_str().unwrap().parse().unwrap())
            .collect()
    }

    /// A program run in the pod's container; whether it exits 0.
    pub(super) fn exec(&self, pod: &Pod, command: &[&str]) -> bool {
        let request = json!({ "container_id": pod.httpd, "cmd": command, "timeout": 5 });
        // A field at its default is left out of the answer.
        self.call("ExecSync", &request)["exitCode"].as_i64().unwrap_or_default() == 0
    }

    /// What kubelets do on the way down: stop, more than once and at once, until it succeeds; then remove.
    #[track_caller]
    pub(super) fn stop(&self, pod: &Pod) {
        let request = json!({ "pod_sandbox_id": pod.sandbox });
        let failures: Vec<String> = std::thread::scope(|scope| {
            let stops = [(); 3].map(|()| scope.spawn(|| self.try_call("StopPodSandbox", &request).err()));
            stops.into_iter().filter_map(|stop| stop.join().unwrap()).collect()
        });
        // The bridge plugin trips over itself when it is called so; the chain's other plugins may, this one must not.
        let ours: Vec<_> = failures.iter().filter(|failure| failure.contains("type=\"quarantine\"")).collect();
        assert!(ours.is_empty(), "{ours:#?}");
        self.call("StopPodSandbox", &request);
        self.call("RemovePodSandbox", &request);
    }
}
