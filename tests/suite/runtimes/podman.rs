//! podman 4 with its CNI backend: no pod UID, one container ID for as long as the container is not removed.

use std::time::Duration;

use serde_json::Value;

use super::{Cgroup, HTTPD, IMAGE, assert_probed, conflist, make_image, need};
use crate::lab::scene::Scene;
use crate::lab::{Netns, RuntimeNode, eventually};

/// runc, because crun refuses a machine whose cgroups are of both versions.
const CONTAINERS_CONF: &str = r#"
[network]
network_backend = "cni"
cni_plugin_dirs = ["/opt/cni/bin"]
network_config_dir = "/etc/cni/net.d"
default_network = "pods"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
"#;

/// podman on a node. The fields are dropped in this order.
struct Podman {
    node: RuntimeNode,
    cgroup: Cgroup,
}

impl Podman {
    fn new() -> Self {
        need(&["podman", "conmon", "runc", "busybox"]);
        let node = RuntimeNode::new("podman");
        let cgroup = Cgroup::of(&node.netns);
        node.configure(&conflist());
        make_image(&node);
        std::fs::write(node.path("/etc/containers/containers.conf"), CONTAINERS_CONF).unwrap();
        std::fs::write(
            node.path("/etc/containers/storage.conf"),
            "[storage]\ndriver = \"vfs\"\nrunroot = \"/run/containers/storage\"\ngraphroot = \"/var/lib/containers/storage\"\n",
        )
        .unwrap();
        node.sh("podman load --quiet --input /run/image.tar");
        Self { node, cgroup }
    }

    /// Runs the image's httpd; the container's ID.
    fn run(&self, name: &str) -> String {
        let httpd = HTTPD.join(" ");
        let cgroup = self.cgroup.path("containers");
        let id = self
            .node
            .sh(&format!("podman run --detach --name {name} --network pods --cgroup-parent {cgroup} {IMAGE} {httpd}"));
        id.trim().to_owned()
    }

    fn netns(&self, name: &str) -> Netns {
        let inspected: Value = serde_json::from_str(&self.node.sh(&format!("podman inspect {name}"))).unwrap();
        self.node.netns_at(inspected[0]["NetworkSettings"]["SandboxKey"].as_str().unwrap())
    }
}

#[test]
fn container_isolated_and_restarted_stays_isolated() {
    let podman = Podman::new();
    let node = &podman.node;
    let backend = node.sh("podman info --format '{{.Host.NetworkBackend}}'");
    assert_eq!(backend.trim(), "cni", "this podman has no CNI backend any more");
    let web = podman.run("web");
    podman.run("neighbour");
    let scene = Scene::new(podman.netns("web"), podman.netns("neighbour"));
    assert_probed(node, scene.pod().addresses());

    node.write_mark(&web);
    node.quarantine(&["sync"]);
    scene.assert_cut();
    assert_probed(node, scene.pod().addresses());
    node.sh("podman exec web wget -q -O - http://127.0.0.1:8080/healthz");
    drop(scene);

    // Killed by the attacker. conmon has podman clean up (DEL), and someone starts it again.
    node.sh("podman kill --signal KILL web");
    let cleaned = || node.sh("ip netns list").lines().count() == 1;
    assert!(eventually(Duration::from_secs(10), cleaned), "podman leaves its netns: {}", node.sh("ip netns list"));
    node.sh("podman start web");
    let scene = Scene::cut_from_birth(podman.netns("web"), podman.netns("neighbour"));
    assert_probed(node, scene.pod().addresses());

    node.remove_mark(&web);
    node.quarantine(&["sync"]);
    scene.assert_open();
    drop(scene);

    node.sh("podman rm --force --time 0 web neighbour");
    node.assert_nothing_remains();
}
