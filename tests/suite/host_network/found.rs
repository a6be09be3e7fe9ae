//! Which pods are found, by which names, and which are none of these.

use std::fs;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::Duration;

use super::kubelet::{Member, Privileges, Sort, any_port, remove};
use super::{NODE, PEER, World};
use crate::lab::traffic::stream::Flow;
use crate::lab::{Node, PATIENCE, not_tried, program};

impl World {
    /// The product, started by a shell that changes its mounts first: nobody else sees that.
    fn behind(&self, mounts: &str, arguments: &[&str]) -> std::process::Output {
        let script = format!("{mounts}\nexec \"$@\"");
        let mut command = self.node.command("unshare");
        command.args(["--mount", "sh", "-ec", &script, "sh", program()]).args(arguments);
        command.args(["--log", "stderr", "--state-dir", self.state.text()]).output().unwrap()
    }
}

/// What a kubelet leaves in its directory of logs.
fn logs_of(name: &str) -> String {
    format!("mount -t tmpfs -o mode=755 tmpfs /var/log && mkdir -p '/var/log/pods/{name}'")
}

#[test]
fn a_pod_is_known_by_its_name_where_the_kubelet_s_logs_say_it() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let _process = pod.process(&[]);
    let logs = logs_of(&format!("shop_web_{}", pod.uid));
    let isolated = world.behind(&logs, &["isolate", "shop/web"]);
    let said = String::from_utf8_lossy(&isolated.stdout).into_owned();
    assert!(isolated.status.success(), "{isolated:#?}");
    assert!(said.contains(&format!("{} (shop/web, hostNetwork): contained", pod.uid)), "{said}");
    let status = world.behind(&logs, &["status", &pod.uid, "-o", "json"]);
    let status: serde_json::Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!((&status["pod"]["namespace"], &status["pod"]["name"]), (&"shop".into(), &"web".into()));
    assert_eq!(status["mark"]["keys"], serde_json::json!(["shop_web"]));
    assert!(world.behind(&logs, &["release", "shop/web"]).status.success());
    assert_eq!(super::life::pins(&pod.uid), None);
    // Whose directory it is, others than root must not be able to say.
    let logs = format!("{logs} && chmod 777 /var/log/pods");
    assert_eq!(world.behind(&logs, &["isolate", "shop/web"]).status.code(), Some(4));
}

#[test]
fn a_pod_with_a_record_is_answered_by_that_alone() {
    let world = World::new();
    let node = Node::new();
    let pod = world.kubelet.pod();
    let process = Member::start(&pod.cgroup.join("container"), &node.netns, Privileges::None, &[Sort::Udp]);
    let sandbox = node.pod();
    node.plugin_as("ADD", &sandbox, &pod.uid).ok();
    let run =
        crate::lab::quarantine(&node.netns, &["isolate", &pod.uid, "--state-dir", node.state_dir().to_str().unwrap()]);
    assert!(run.ok().stdout.contains(&sandbox.id));
    assert_eq!(super::life::pins(&pod.uid), None);
    node.sync();
    assert_eq!(super::life::pins(&pod.uid), None);
    let outside = node.netns.run(|| UdpSocket::bind("127.0.0.1:0").unwrap());
    let to = outside.local_addr().unwrap();
    let inside = process.bind(0, "127.0.0.1:0".parse().unwrap());
    Flow::assert_all_alive(&[Flow::over_udp("of a process in the node's netns".to_owned(), inside, outside, to)]);
}

#[test]
fn programs_of_a_pod_whose_add_came_later_are_taken_off() {
    let node = Node::new();
    let kubelet = super::kubelet::Kubelet::of(&node.netns);
    let pod = kubelet.pod();
    let _process = pod.process(&[]);
    let quarantine = |arguments: &[&str]| {
        let state = ["--state-dir", node.state_dir().to_str().unwrap()];
        crate::lab::quarantine(&node.netns, &arguments.iter().copied().chain(state).collect::<Vec<_>>())
    };
    quarantine(&["isolate", &pod.uid]).ok();
    assert!(super::life::pins(&pod.uid).is_some());
    let sandbox = node.pod();
    node.plugin_as("ADD", &sandbox, &pod.uid).ok();
    node.sync();
    assert_eq!(super::life::pins(&pod.uid), None);
    assert_eq!(quarantine(&["status", &pod.uid, "-o", "json"]).json()["verdict"], "contained");
}

#[test]
fn what_only_cgroups_of_version_1_hold_is_said_not_to_be_isolated() {
    let hierarchy = Path::new("/sys/fs/cgroup/pids");
    if !hierarchy.is_dir() {
        return not_tried("a pod with hostNetwork on cgroups of version 1: this machine has none");
    }
    let world = World::new();
    let uid = format!("0f9d6b52-6f0a-4a43-ffff-{:012x}", std::process::id());
    let directory = hierarchy.join(world.node.name());
    let cgroup = directory.join(format!("kubepods/pod{uid}"));
    fs::create_dir_all(&cgroup).unwrap();
    let process = Member::start(&cgroup, &world.node, Privileges::None, &[]);
    let isolated = world.quarantine(&["isolate", &uid]);
    drop(process);
    remove(&directory);
    assert_eq!(isolated.status.code(), Some(1), "{isolated:#?}");
    for part in ["NOT isolated", "version 1", cgroup.to_str().unwrap()] {
        assert!(isolated.stdout.contains(part), "{isolated:#?}");
    }
}

#[test]
fn what_is_allowed_passes_and_nothing_beside_it() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let process = pod.process(&[Sort::Tcp, Sort::Tcp, Sort::Tcp, Sort::Udp, Sort::Tcp6, Sort::Tcp6]);
    let (allowed, other) =
        world.peer.run(|| (TcpListener::bind(any_port(PEER)).unwrap(), TcpListener::bind(any_port(PEER)).unwrap()));
    let open = process.listen(0, any_port(NODE));
    let [port, open_port] = [&allowed, &open].map(|listener| listener.local_addr().unwrap().port());
    // On `lo` too, and over IPv6.
    let local = world.node.run(|| TcpListener::bind("[::1]:0").unwrap());
    let local_port = local.local_addr().unwrap().port();
    let allow = [
        format!("egress:{PEER}/32:tcp:{port}"),
        format!("ingress:{PEER}/32:tcp:{open_port}"),
        format!("egress:[::1]/128:tcp:{local_port}"),
    ];
    let arguments = ["isolate", &pod.uid].into_iter().chain(allow.iter().flat_map(|allow| ["--allow", allow]));
    let arguments: Vec<_> = arguments.collect();
    let shown = world.quarantine(&[&arguments[..], &["--dry-run"]].concat()).ok().stdout;
    for part in [pod.cgroup.to_str().unwrap(), "hook input", "hook output", &PEER.to_string(), &port.to_string()] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    assert!(world.state.marks().is_empty());
    world.quarantine(&arguments).ok();
    assert_eq!(world.verdict(&pod.uid), "contained");

    let near = process.connect(1, allowed.local_addr().unwrap());
    let (far, _) = allowed.accept().unwrap();
    let to_open = open.local_addr().unwrap();
    let from_outside = world.peer.run(|| TcpStream::connect_timeout(&to_open, PATIENCE).unwrap());
    let (accepted, _) = open.accept().unwrap();
    let over_lo = process.connect(4, local.local_addr().unwrap());
    let (at_lo, _) = local.accept().unwrap();
    let flows = [
        Flow::over_tcp("allowed, up".to_owned(), near.try_clone().unwrap(), far.try_clone().unwrap()),
        Flow::over_tcp("allowed, down".to_owned(), far, near),
        Flow::over_tcp("allowed in, up".to_owned(), from_outside, accepted),
        Flow::over_tcp("over lo".to_owned(), over_lo, at_lo),
    ];
    Flow::assert_all_alive(&flows);

    let silence = Duration::from_millis(400);
    let refused =
        |number, to: std::net::SocketAddr| process.socket(number).connect_timeout(&to.into(), silence).is_err();
    assert!(refused(2, other.local_addr().unwrap()), "another port of the peer's is reached");
    let elsewhere = world.node.run(|| TcpListener::bind("[::1]:0").unwrap());
    assert!(refused(5, elsewhere.local_addr().unwrap()), "another port on lo is reached");
    // From the node itself, which is not who may.
    assert!(world.node.run(|| TcpStream::connect_timeout(&to_open, silence)).is_err());

    // Another policy knows nothing of them.
    world.quarantine(&["isolate", &pod.uid, "--allow", "egress:192.0.2.1/32:tcp:1"]).ok();
    Flow::await_all_dead(&flows);
    world.release(&pod.uid);
    Flow::assert_all_alive(&flows);
}
