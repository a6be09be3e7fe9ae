//! A policy that says whose connections are probes: those of one cgroup of the node pass, whole, and no other root process's.

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::topology::{HOST_END, POD_MAC, POD4, POD6};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet::{self, Segment};
use crate::lab::traffic::server::{Server, http_probe};
use crate::lab::traffic::sockets::{PacketSocket, address, raw_ip, udp_on};
use crate::lab::{Agent, Cgroup, Crowd, Kind, Netns, PATIENCE, Sandbox, Topology, eventually, quarantine, ruleset};

const POD: [IpAddr; 2] = [IpAddr::V4(POD4), IpAddr::V6(POD6)];
const PORT: u16 = 8080;
/// For what must not be answered.
const SHORT: Duration = Duration::from_millis(150);

fn policy(cgroup: &str) -> Value {
    json!({ "probes": { "cgroup": cgroup } })
}

fn notes(sandbox: &Sandbox<'_>) -> Vec<String> {
    let status = sandbox.status();
    status["notes"].as_array().unwrap().iter().map(|note| note["code"].as_str().unwrap().to_owned()).collect()
}

/// Of the pod's TCP, what is neither over nor waits for connections.
fn open_connections(netns: &Netns) -> String {
    netns.sh("ss -Htan state connected exclude time-wait")
}

/// Counts the node's segments to the server: as they leave its stack, and as they leave the guard behind.
fn count_segments(topology: &Topology) {
    topology.node.sh(&format!(
        "nft -f - <<'END'
         table inet count {{ chain output {{ type filter hook output priority 0;
           tcp dport {PORT} counter
         }}
         }}
         table netdev count {{ chain egress {{ type filter hook egress device \"{HOST_END}\" priority 0;
           tcp dport {PORT} counter
         }}
         }}
END"
    ));
}

fn segments(topology: &Topology) -> [u64; 2] {
    ["inet", "netdev"].map(|family| {
        let listed = topology.node.sh(&format!("nft list table {family} count"));
        listed.split_once("packets ").unwrap().1.split(' ').next().unwrap().parse().unwrap()
    })
}

fn only_the_cgroup_passes(kind: Kind, ebpf: &str) {
    let topology = Topology::new(kind);
    let kubelet = Cgroup::new(&topology.node, "kubelet.service");
    let other = Cgroup::new(&topology.node, "pod.scope");
    let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": ebpf, "policy": policy(kubelet.path()) }));
    let server = Server::start(&topology.pod, PORT);
    let probe = |cgroup: &Cgroup, to, limit| cgroup.probes(&topology.node, to, server.port(), limit);
    for to in POD {
        assert!(probe(&kubelet, to, PATIENCE) && probe(&other, to, PATIENCE), "the control fails: {to}");
    }
    let mut attacks = attacks(&topology);
    attacks.assert_all_arrive();
    sandbox.isolate("");
    let status = sandbox.status();
    assert_eq!((&status["verdict"], &status["notes"]), (&json!("contained"), &json!([])), "{status:#}");
    count_segments(&topology);
    // Whoever closes first.
    for to in POD {
        topology.forget_neighbours();
        assert!(probe(&kubelet, to, PATIENCE), "{to}");
        assert!(kubelet.connects(&topology.node, to, server.port()), "{to}");
    }
    for netns in [&topology.node, &topology.pod] {
        let mut left = String::new();
        let closed = eventually(PATIENCE, || {
            left = open_connections(netns);
            left.is_empty()
        });
        assert!(closed, "still open: {left}");
    }
    let [sent, passed] = segments(&topology);
    assert!(sent >= 4 * 4 && passed == sent, "{passed} of {sent} segments of the probes passed");
    for to in POD {
        assert!(!probe(&other, to, SHORT), "a root process of another cgroup: {to}");
        assert!(!http_probe(&topology.node, to, server.port(), SHORT), "a root process of the root's: {to}");
    }
    attacks.assert_none_arrives();
    for to in POD {
        assert!(probe(&kubelet, to, PATIENCE), "after the attacks: {to}");
    }
    assert_eq!(sandbox.verdict(), "contained");
    sandbox.release();
    for to in POD {
        assert!(probe(&other, to, PATIENCE), "released: {to}");
    }
    attacks.assert_all_arrive();
    assert!(!ruleset(&topology.node).contains("quarantine-"), "{}", ruleset(&topology.node));
}

/// What root on the node, or in a pod on its network, can send that looks like a probe.
fn attacks(topology: &Topology) -> Battery<'_> {
    let mut attacks = Vec::new();
    let mac = topology.node.links().mac(HOST_END);
    let source = if topology.kind == Kind::Bridge { topology.node.links().mac("br0") } else { mac };
    for (to, from) in POD.into_iter().zip(topology.node_addresses()) {
        let segment = move |number: u16, flags| {
            let segment = Segment { flags, sequence: 7, acknowledgement: 0 };
            packet::tcp(from, to, (40_000 + number, PORT), segment, &tag(number))
        };
        let mut devices = vec![HOST_END];
        devices.extend((topology.kind == Kind::Bridge).then_some("br0"));
        for device in devices {
            for bypass in [false, true] {
                for (what, flags) in [("SYN", packet::SYN), ("data", packet::PSH_ACK)] {
                    let socket = PacketSocket::open(&topology.node, device);
                    if bypass {
                        socket.bypass_qdisc();
                    }
                    let name = format!("{what} to {to} by a packet socket on {device}, bypass {bypass}");
                    attacks.push(Attack::new(name, &topology.node, move |number| {
                        let frame =
                            packet::ip_frame((POD_MAC, source), (to, from), packet::TCP, &segment(number, flags));
                        let _ = socket.send(&frame);
                    }));
                }
            }
        }
        attacks.push(Attack::new(format!("SYN to {to} by a raw socket"), &topology.node, move |number| {
            let _ = raw_ip(to, packet::TCP).send_to(&segment(number, packet::SYN), &address(to, 0));
        }));
        attacks.push(Attack::new(format!("UDP to {to}"), &topology.node, move |number| {
            let _ = udp_on(None, to).send_to(&tag(number), &address(to, PORT));
        }));
    }
    Battery::new(attacks, Witnesses::default().frames(&topology.pod, "eth0"))
}

#[test]
fn only_the_cgroup_passes_on_a_bridge() {
    only_the_cgroup_passes(Kind::Bridge, "off");
}

#[test]
fn only_the_cgroup_passes_on_ptp() {
    only_the_cgroup_passes(Kind::Ptp, "off");
}

#[test]
fn only_the_cgroup_passes_on_calico() {
    only_the_cgroup_passes(Kind::Calico, "off");
}

#[test]
fn only_the_cgroup_passes_with_ebpf_programs() {
    only_the_cgroup_passes(Kind::Bridge, "always");
}

/// Another root process sends within a connection of the kubelet's.
#[test]
fn nobody_rides_on_a_probe() {
    for (cgroup, passes) in [(false, true), (true, false)] {
        let topology = Topology::bridge();
        let kubelet = Cgroup::new(&topology.node, "kubelet.service");
        let policy = if cgroup { policy(kubelet.path()) } else { json!({}) };
        let sandbox = Sandbox::add_with(&topology, &json!({ "policy": policy }));
        let server = Server::start(&topology.pod, PORT);
        sandbox.isolate("");
        assert!(kubelet.connects(&topology.node, POD4.into(), server.port()));
        // It is open for a while after its last segment.
        let elements = topology.node.sh("nft list ruleset | grep -oE '10.77.0.1 \\. [0-9]+' | head -n 1");
        let port: u16 = elements.trim().rsplit(' ').next().unwrap().parse().unwrap();
        let (node4, source) = (topology.node4, topology.node.links().mac("br0"));
        let socket = PacketSocket::open(&topology.node, "br0");
        let attack = Attack::new("data", &topology.node, move |number| {
            let segment = Segment { flags: packet::PSH_ACK, sequence: 7, acknowledgement: 7 };
            let tcp = packet::tcp(node4.into(), POD4.into(), (port, PORT), segment, &tag(number));
            let _ = socket.send(&packet::ip_frame((POD_MAC, source), (POD4.into(), node4.into()), packet::TCP, &tcp));
        });
        let mut battery = Battery::new(vec![attack], Witnesses::default().frames(&topology.pod, "eth0"));
        if passes {
            battery.assert_all_arrive();
        } else {
            battery.assert_none_arrives();
        }
    }
}

#[test]
fn ports_narrow_it_besides() {
    let topology = Topology::ptp();
    let kubelet = Cgroup::new(&topology.node, "kubelet.service");
    let sandbox = Sandbox::add(&topology);
    let (probed, other) = (Server::start(&topology.pod, PORT), Server::start(&topology.pod, PORT + 1));
    sandbox.isolate_with(&json!({ "probes": { "cgroup": kubelet.path(), "ports": [PORT] } }));
    for to in POD {
        assert!(kubelet.probes(&topology.node, to, probed.port(), PATIENCE), "{to}");
        assert!(!kubelet.probes(&topology.node, to, other.port(), SHORT), "{to}");
        assert!(!http_probe(&topology.node, to, probed.port(), SHORT), "{to}");
    }
    assert_eq!(notes(&sandbox), [""; 0]);
}

/// Where the cgroup is not there probes pass as if none were named, and that is said.
#[test]
fn a_cgroup_that_is_not_there_keeps_no_probe_out() {
    let topology = Topology::bridge();
    let kubelet = Cgroup::new(&topology.node, "kubelet.service");
    let sandbox = Sandbox::add_with(&topology, &json!({ "policy": policy(kubelet.path()) }));
    let server = Server::start(&topology.pod, PORT);
    kubelet.remove();
    sandbox.isolate("");
    let root = |limit| POD.map(|to| http_probe(&topology.node, to, server.port(), limit));
    assert_eq!((root(PATIENCE), notes(&sandbox)), ([true; 2], vec!["prober-untold".to_owned()]));
    assert_eq!(sandbox.verdict(), "contained");
    kubelet.make();
    sandbox.sync();
    assert_eq!((root(SHORT), notes(&sandbox)), ([false; 2], vec![]));
    // Pods below it are no kubelet.
    let pods = kubelet.directory().join("kubepods.slice");
    std::fs::create_dir(&pods).unwrap();
    sandbox.sync();
    assert_eq!((root(PATIENCE), notes(&sandbox)), ([true; 2], vec!["prober-untold".to_owned()]));
    std::fs::remove_dir(&pods).unwrap();
}

/// The kubelet is started anew: its cgroup has another ID then. The agent mends it for all sandboxes.
#[test]
fn a_kubelet_that_is_started_anew_probes_on() {
    for ebpf in ["off", "always"] {
        let topology = Topology::bridge();
        let kubelet = Cgroup::new(&topology.node, "kubelet.service");
        let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": ebpf, "policy": policy(kubelet.path()) }));
        let server = Server::start(&topology.pod, PORT);
        let agent = Agent::start(&topology.node, sandbox.state_dir().as_ref());
        sandbox.write_mark("");
        agent.await_line(&["event=isolated"]);
        let probes = |limit| POD.map(|to| kubelet.probes(&topology.node, to, server.port(), limit));
        let root = |limit| POD.map(|to| http_probe(&topology.node, to, server.port(), limit));
        assert_eq!((probes(PATIENCE), root(SHORT)), ([true; 2], [false; 2]));
        kubelet.remove();
        agent.await_line(&["event=prober-untold"]);
        assert!(eventually(PATIENCE, || root(SHORT) == [true; 2]), "what cannot be told passes");
        kubelet.make();
        assert!(eventually(PATIENCE, || probes(SHORT) == [true; 2] && root(SHORT) == [false; 2]), "{ebpf}");
        assert_eq!(notes(&sandbox), [""; 0]);
        // In one go, as a service manager may.
        kubelet.remove();
        kubelet.make();
        assert!(eventually(PATIENCE, || probes(SHORT) == [true; 2] && root(SHORT) == [false; 2]), "{ebpf}");
        assert_eq!((sandbox.verdict(), notes(&sandbox)), ("contained".to_owned(), vec![]));
    }
}

/// What tells probes is deleted, or changed, on the node: it is said, and the agent puts it back.
#[test]
fn what_tells_probes_is_put_back() {
    let topology = Topology::bridge();
    let kubelet = Cgroup::new(&topology.node, "kubelet.service");
    let sandbox = Sandbox::add_with(&topology, &json!({ "policy": policy(kubelet.path()) }));
    let server = Server::start(&topology.pod, PORT);
    let probes = |limit| kubelet.probes(&topology.node, POD4.into(), server.port(), limit);
    let root = |limit| http_probe(&topology.node, POD4.into(), server.port(), limit);
    // As nft text, before and after.
    let rule = format!("{}\" meta secmark set meta secmark | ", kubelet.path());
    let dry_run = sandbox.quarantine(&["isolate", sandbox.id(), "--probe-cgroup", kubelet.path(), "--dry-run"]);
    let dry_run = dry_run.ok().stdout;
    for part in ["hook output priority -400; policy accept;", "socket cgroupv2 level 2 \"", &rule] {
        assert!(dry_run.contains(part), "{part}: {dry_run}");
    }
    sandbox.isolate("");
    let listed = ruleset(&topology.node);
    assert!(listed.contains("socket cgroupv2 level 2 \"") && listed.contains(&rule), "{listed}");
    let table = topology.node.sh("nft list tables inet | grep -o 'quarantine-probes-.*'");
    let changes = [
        format!("nft delete table inet {table}"),
        format!("nft flush chain inet {table} output").replace('\n', ""),
        format!("nft insert rule inet {table} output accept").replace('\n', ""),
    ];
    for change in &changes {
        topology.node.sh(change);
        assert!(!probes(SHORT) && notes(&sandbox) == ["prober-untold"], "{change}: {:?}", notes(&sandbox));
        sandbox.sync();
        assert!(probes(PATIENCE) && !root(SHORT) && notes(&sandbox).is_empty(), "{change}");
    }
    let agent = Agent::start(&topology.node, sandbox.state_dir().as_ref());
    for change in &changes {
        topology.node.sh(change);
        assert!(eventually(PATIENCE, || probes(SHORT)), "{change}: {:#?}", agent.lines());
        assert!(!root(SHORT), "{change}");
    }
}

/// One chain tells for all sandboxes, whoever loads it at once; it goes with the last.
#[test]
fn many_sandboxes_have_one_chain() {
    let crowd = Crowd::new(12);
    let kubelet = Cgroup::new(&crowd.node, "kubelet.service");
    let mark = json!({ "policy": policy(kubelet.path()) }).to_string();
    (0..crowd.len()).for_each(|number| std::fs::write(crowd.mark(number), &mark).unwrap());
    let sync = || drop(quarantine(&crowd.node, &["sync", "--state-dir", crowd.state_dir().to_str().unwrap()]).ok());
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(sync))));
    let told = |guards: usize| {
        let listed = ruleset(&crowd.node);
        let chains = usize::from(guards > 0);
        assert_eq!(listed.matches("table inet quarantine-").count(), chains, "{listed}");
        assert_eq!(listed.matches("meta secmark set").count(), 2 * chains, "{listed}");
        assert_eq!(listed.matches("table netdev quarantine-").count(), guards, "{listed}");
    };
    told(crowd.len());
    for left in [6, 0] {
        (left..crowd.len()).for_each(|number| drop(std::fs::remove_file(crowd.mark(number))));
        sync();
        told(left);
    }
}

/// It is found by its process, which is the node's own.
#[test]
fn the_kubelet_is_found_by_its_process() {
    let topology = Topology::bridge();
    let kubelet = Cgroup::new(&topology.node, "kubelet.service");
    let pod = Cgroup::new(&topology.node, "kubepods-pod1.slice");
    let sandbox = Sandbox::add_with(&topology, &json!({ "policy": policy("kubelet") }));
    let server = Server::start(&topology.pod, PORT);
    let run = |cgroup: &Cgroup, netns: &Netns| {
        let script = "printf kubelet >/proc/self/comm; read -r _";
        cgroup.command(netns, script).stdin(Stdio::piped()).spawn().unwrap()
    };
    // One of a pod's on the node's network, and one elsewhere, are none.
    let mut others = [run(&pod, &topology.node), run(&kubelet, &topology.peer)];
    sandbox.isolate("");
    assert_eq!(notes(&sandbox), ["prober-untold"]);
    let mut found = run(&kubelet, &topology.node);
    let is_told = eventually(PATIENCE, || {
        sandbox.sync();
        notes(&sandbox).is_empty()
    });
    assert!(is_told, "{:#}", sandbox.status());
    for to in POD {
        assert!(kubelet.probes(&topology.node, to, server.port(), PATIENCE), "{to}");
        assert!(!pod.probes(&topology.node, to, server.port(), SHORT), "{to}");
    }
    for process in others.iter_mut().chain([&mut found]) {
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
