//! containerd with runc: through its CRI, as a kubelet uses it, and by `ctr run --cni`.

use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::{Value, json};

use super::cri::{Cri, Pod};
use super::{Cgroup, HTTPD, IMAGE, assert_probed, conflist, make_image, need};
use crate::lab::runtime_node::output;
use crate::lab::scene::Scene;
use crate::lab::{PATIENCE, RuntimeNode, eventually};

const SOCKET: &str = "unix:///run/containerd/containerd.sock";

/// Default paths, default plugins. The native snapshotter copies, and so works on every file system; what needs a
/// machine's own set-up (an OOM score below the caller's, devices of a storage pool) is left out.
const CONFIG: &str = r#"
version = 2
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs", "io.containerd.internal.v1.opt"]
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "localhost/quarantine-test:1"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "native"
"#;

/// A node with containerd running on it. The fields are dropped in this order.
struct Containerd {
    node: RuntimeNode,
    cgroup: Cgroup,
}

impl Containerd {
    fn start(label: &str) -> Self {
        Self::start_with(label, &conflist())
    }

    fn start_with(label: &str, conflist: &Value) -> Self {
        need(&["containerd", "ctr", "runc", "busybox"]);
        let mut node = RuntimeNode::new(label);
        let cgroup = Cgroup::of(&node.netns);
        node.configure(conflist);
        make_image(&node);
        std::fs::write(node.path("/run/containerd.toml"), CONFIG).unwrap();
        node.start("containerd --config /run/containerd.toml", "/run/containerd.log");
        let containerd = Self { node, cgroup };
        let cri = containerd.cri();
        let mut answer = Err(String::new());
        let answers = || {
            answer = cri.try_call("Version", &json!({}));
            answer.is_ok()
        };
        if !eventually(Duration::from_secs(20), answers) {
            panic!("containerd does not answer: {answer:?}\n{}", containerd.node.sh("tail -n 5 /run/containerd.log"));
        }
        containerd.node.sh("ctr --namespace k8s.io images import --snapshotter native /run/image.tar");
        containerd
    }

    fn cri(&self) -> Cri<'_> {
        Cri { node: &self.node, socket: SOCKET, cgroup: self.cgroup.path("pods") }
    }
}

/// Isolated by the pod's UID; its sandbox is killed, removed and made anew: the pod stays isolated until released.
#[test]
fn pod_recreated_after_del_stays_isolated() {
    let containerd = Containerd::start("containerd");
    let (node, cri) = (&containerd.node, containerd.cri());
    let web = cri.run_pod("web", "5f0c1f9e-0001", 0);
    let neighbour = cri.run_pod("neighbour", "5f0c1f9e-0002", 0);
    let scene = Scene::new(cri.netns(&web), cri.netns(&neighbour));
    assert_probed(node, &cri.addresses(&web));

    node.write_mark("5f0c1f9e-0001");
    node.quarantine(&["sync"]);
    scene.assert_cut();
    assert_probed(node, &cri.addresses(&web));
    let own_lo = ["wget", "-q", "-O", "-", "http://127.0.0.1:8080/healthz"];
    assert!(cri.exec(&web, &own_lo), "the pod does not reach itself on lo");
    drop(scene);

    // The attacker's way out: kill the pause process, and the kubelet makes a new sandbox.
    node.sh(&format!("kill -KILL {}", cri.pause(&web)));
    cri.stop(&web);
    let again = cri.run_again(&web);
    assert_ne!(again.sandbox, web.sandbox);
    let scene = Scene::cut_from_birth(cri.netns(&again), cri.netns(&neighbour));
    assert_probed(node, &cri.addresses(&again));

    node.remove_mark("5f0c1f9e-0001");
    node.quarantine(&["sync"]);
    scene.assert_open();
    drop(scene);

    cri.stop(&again);
    cri.stop(&neighbour);
    node.assert_nothing_remains();
}

/// The agent isolates by the sandbox's container ID, and the new sandbox is there before the old one's DEL: kubelets do
/// that.
#[test]
fn pod_recreated_before_del_stays_isolated() {
    let mut containerd = Containerd::start("containerd");
    containerd.node.start("/opt/cni/bin/quarantine agent --log stderr", "/run/agent.log");
    let (node, cri) = (&containerd.node, containerd.cri());
    let web = cri.run_pod("web", "5f0c1f9e-0001", 0);
    let neighbour = cri.run_pod("neighbour", "5f0c1f9e-0002", 0);
    // A guard is written asleep, and then woken.
    let guarded = |pod: &Pod| {
        let listed = node.netns.try_sh(&format!("nft list table netdev quarantine-{}", pod.sandbox));
        listed.is_ok_and(|table| !table.contains("dormant"))
    };
    let old = Scene::new(cri.netns(&web), cri.netns(&neighbour));

    node.write_mark(&web.sandbox);
    assert!(eventually(PATIENCE, || guarded(&web)), "the agent does not isolate");
    old.assert_cut();

    node.sh(&format!("kill -KILL {}", cri.pause(&web)));
    let again = cri.run_again(&web);
    let scene = Scene::cut_from_birth(cri.netns(&again), cri.netns(&neighbour));
    old.assert_cut();
    drop(old);
    cri.stop(&web);
    scene.assert_cut();
    assert_probed(node, &cri.addresses(&again));

    // The DEL carried the mark over to the pod's UID.
    node.remove_mark("5f0c1f9e-0001");
    assert!(eventually(PATIENCE, || !guarded(&again)), "the agent does not release");
    scene.assert_open();
    drop(scene);

    cri.stop(&again);
    cri.stop(&neighbour);
    node.assert_nothing_remains();
}

/// Made without the plugin, which comes to the node later: taken in by the cache that the runtime left, and isolated; what is kept
/// names the process that holds a connection.
#[test]
fn pods_that_are_older_than_the_plugin_are_adopted() {
    let mut without = conflist();
    without["plugins"].as_array_mut().unwrap().retain(|plugin| plugin["type"] != "quarantine");
    let containerd = Containerd::start_with("older", &without);
    let (node, cri) = (&containerd.node, containerd.cri());
    let web = cri.run_pod("web", "5f0c1f9e-0001", 0);
    let neighbour = cri.run_pod("neighbour", "5f0c1f9e-0002", 0);
    let scene = Scene::new(cri.netns(&web), cri.netns(&neighbour));
    let server = cri.addresses(&neighbour).into_iter().find(|address| address.is_ipv4()).unwrap();
    // Nothing of the call's own is left open, or it does not return.
    let beacon = format!("(sleep 1000 | nc {server} 8080) </dev/null >/dev/null 2>&1 &");
    assert!(cri.exec(&web, &["sh", "-c", &beacon]));
    let connected = || cri.netns(&web).sh("ss -Htn state established dport = :8080").contains(&server.to_string());
    assert!(eventually(PATIENCE, connected), "the beacon does not connect");

    node.configure(&conflist());
    let said = node.quarantine(&["adopt", "--all"]);
    assert!(said.ends_with("2 adopted\n") && !said.contains("default policy"), "{said}");
    let listed: Value = serde_json::from_str(&node.quarantine(&["list", "-o", "json"])).unwrap();
    assert_eq!(listed["uncovered"], json!([]));
    scene.assert_open();

    let said = node.quarantine(&["isolate", "lab/web"]);
    assert!(said.contains("contained"), "{said}");
    scene.assert_cut();
    assert_probed(node, &cri.addresses(&web));
    let said = node.quarantine(&["evidence", "lab/web", "--collect"]);
    let kept = node.path(said.lines().next().unwrap());
    let items = |name: &str| -> Vec<Value> {
        let document: Value = serde_json::from_slice(&std::fs::read(kept.join(name)).unwrap()).unwrap();
        document["items"].as_array().unwrap().clone()
    };
    let sockets = items("sockets.json");
    let is_beacon = |socket: &&Value| {
        socket["remoteAddress"] == json!(server) && socket["remotePort"] == 8080 && socket["state"] == "established"
    };
    let socket = sockets.iter().find(is_beacon).unwrap_or_else(|| panic!("{sockets:#?}: {said}"));
    let processes = items("processes.json");
    let holder = processes.iter().find(|process| process["pid"] == socket["owners"][0]["pid"]);
    let holder = holder.unwrap_or_else(|| panic!("whose is {socket:#}"));
    assert_eq!((&holder["name"], &holder["arguments"]), (&json!("nc"), &json!(["nc", server, "8080"])));
    assert!(holder["executable"]["sha256"].is_string(), "{holder:#}");
    let cgroup = holder["controlGroup"].as_str().unwrap();
    assert!(cgroup.contains(&cri.cgroup), "{cgroup}");

    node.quarantine(&["release", "lab/web"]);
    scene.assert_open();
    drop(scene);
    node.sh("rm -r /var/lib/cni/quarantine/evidence");
    cri.stop(&web);
    cri.stop(&neighbour);
    node.assert_nothing_remains();
}

/// Made without the plugin, and libcni's cache is gone: taken in by what containerd says of them.
#[test]
fn pods_that_are_in_no_cache_are_adopted_by_what_the_runtime_says() {
    let mut without = conflist();
    without["plugins"].as_array_mut().unwrap().retain(|plugin| plugin["type"] != "quarantine");
    let containerd = Containerd::start_with("uncached", &without);
    let (node, cri) = (&containerd.node, containerd.cri());
    let web = cri.run_pod("web", "5f0c1f9e-0001", 0);
    let neighbour = cri.run_pod("neighbour", "5f0c1f9e-0002", 0);
    let scene = Scene::new(cri.netns(&web), cri.netns(&neighbour));
    node.sh("rm -r /var/lib/cni/results; mkdir -m 0700 /var/lib/cni/quarantine");

    let list = || -> Value { serde_json::from_str(&node.quarantine(&["list", "-o", "json"])).unwrap() };
    let uncovered = list()["uncovered"].clone();
    let named: Vec<_> = uncovered.as_array().unwrap().iter().map(|found| &found["containerID"]).collect();
    assert!(named.contains(&&json!(web.sandbox)) && named.contains(&&json!(neighbour.sandbox)), "{uncovered:#}");
    let said = node.quarantine(&["install", "--dry-run"]);
    assert!(said.contains("2 of them can be taken in"), "{said}");
    let said = node.quarantine(&["install", "--adopt"]);
    assert!(said.ends_with("2 adopted\n") && !said.contains("default policy"), "{said}");
    assert_eq!(list()["uncovered"], json!([]));
    let record = format!("/var/lib/cni/quarantine/attachments/{}/eth0.json", web.sandbox);
    let record: Value = serde_json::from_str(&node.sh(&format!("cat {record}"))).unwrap();
    let pinned: Vec<_> = record["interfaces"][0]["addresses"].as_array().unwrap().clone();
    for address in cri.addresses(&web) {
        assert!(pinned.contains(&json!(address)), "{record:#}");
    }
    assert_eq!((&record["network"], &record["pod"]["uid"]), (&json!("pods"), &json!("5f0c1f9e-0001")));
    scene.assert_open();

    let said = node.quarantine(&["isolate", "lab/web"]);
    assert!(said.contains("contained"), "{said}");
    scene.assert_cut();
    assert_probed(node, &cri.addresses(&web));
    node.quarantine(&["release", "lab/web"]);
    scene.assert_open();
    drop(scene);
    node.sh("rm -rf /var/lib/cni/quarantine/evidence");
    cri.stop(&web);
    cri.stop(&neighbour);
    node.assert_nothing_remains();
}

/// `ctr run --cni`: no pod, no UID, and the netns of a process that is gone when DEL is called.
#[test]
fn ctr_run_cni() {
    let containerd = Containerd::start("ctr");
    let node = &containerd.node;
    let run = |id: &str| -> (Child, String) {
        let child = node
            .command("ctr")
            .args(["--namespace", "k8s.io", "run", "--cni", "--snapshotter", "native", "--rm"])
            .args(["--cgroup", &containerd.cgroup.path(id), IMAGE, id])
            .args(HTTPD)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let pid = || {
            let tasks = output(node.command("ctr").args(["--namespace", "k8s.io", "tasks", "list"])).unwrap();
            let line = tasks.lines().find(|line| line.starts_with(id) && line.contains("RUNNING"))?;
            line.split_whitespace().nth(1).map(str::to_owned)
        };
        assert!(eventually(Duration::from_secs(10), || pid().is_some()), "{id} does not run");
        (child, format!("/proc/{}/ns/net", pid().unwrap()))
    };
    let kill = |id: &str, mut child: Child| {
        node.sh(&format!("ctr --namespace k8s.io tasks kill --signal KILL {id}"));
        // ctr calls DEL before it ends.
        child.wait().unwrap();
    };

    let (neighbour, neighbour_netns) = run("neighbour");
    let (web, web_netns) = run("web");
    let scene = Scene::new(node.netns_at(&web_netns), node.netns_at(&neighbour_netns));
    assert_probed(node, scene.pod().addresses());

    // ctr's container ID for CNI is its namespace and the container's name.
    node.write_mark("k8s.io-web");
    node.quarantine(&["sync"]);
    scene.assert_cut();
    assert_probed(node, scene.pod().addresses());
    drop(scene);

    kill("web", web);
    let (web, web_netns) = run("web");
    let scene = Scene::cut_from_birth(node.netns_at(&web_netns), node.netns_at(&neighbour_netns));

    node.remove_mark("k8s.io-web");
    node.quarantine(&["sync"]);
    scene.assert_open();
    drop(scene);

    kill("web", web);
    kill("neighbour", neighbour);
    node.assert_nothing_remains();
}
