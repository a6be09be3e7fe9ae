//! A node with a peer on it, and the pod that is walked: its namespaces, and the product's calls for it.
//!
//! Interfaces are found by alternative names that no step takes from them: `end-0` and `end-1` are the host's ends,
//! `door` is the pod's, whatever they are called and wherever they are.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use netlab::{Route, Veth};
use serde_json::{Value, json};

use super::traffic::{self, Address, Marker, NODE4, NODE6, Sender};
use crate::lab::topology::{PEER_MAC, dont_call_iptables, text};
use crate::lab::traffic::observe::Witnesses;
use crate::lab::{Agent, Call, Mac, Netns, Run, StateDir, eventually, quarantine};

const NODE_MAC: Mac = [2, 0, 0, 0, 0, 1];
const BRIDGES: [&str; 2] = ["br0", "br1"];
const UID: &str = "0f9d6b52-7a15-4a08-8d0f-4a3c5c6f7e11";
/// The mark by the pod's name.
pub(super) const NAME_KEY: &str = "walk_web";

/// How the node's pods are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Network {
    Bridged,
    Routed,
}

impl Network {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Bridged => "bridged",
            Self::Routed => "routed",
        }
    }
}

/// A pod: the namespace that the runtime made, and one that root in the pod made below it.
pub(super) struct Pod {
    pub(super) id: String,
    pub(super) netns: Netns,
    pub(super) below: Netns,
    /// Its ADD succeeded, and its namespace is there: its containers run.
    pub(super) runs: bool,
    number: u8,
    senders: [Sender; 2],
    inside: Witnesses,
}

pub(super) struct World {
    pub(super) network: Network,
    pub(super) node: Netns,
    pub(super) peer: Netns,
    pub(super) pod: Pod,
    /// Another sandbox of the same pod.
    pub(super) twin: Option<Pod>,
    /// A record that was damaged or removed, as it was.
    pub(super) spoilt: Option<(PathBuf, Vec<u8>)>,
    state: StateDir,
    agent: Option<Agent>,
    outsiders: [Sender; 2],
    outside: Witnesses,
    marker: Marker,
}

/// What arrived of one pod's packets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Arrivals {
    pub(super) out: u64,
    pub(super) into: u64,
}

impl World {
    /// A node whose pod was just added.
    pub(super) fn new(network: Network) -> Self {
        let (node, peer) = (Netns::new("node"), Netns::new("peer"));
        // As `lab::Topology` has it: a bridge that floods, and does not ask iptables.
        dont_call_iptables(&node);
        let links = node.links();
        links.add_bridge("br0", Some(NODE_MAC));
        links.add_bridge("br1", None);
        BRIDGES.iter().for_each(|bridge| links.up(bridge));
        match network {
            Network::Bridged => {
                links.add_address("br0", "10.77.0.1/24");
                links.add_address("br0", "fd77::1/64");
            }
            Network::Routed => {
                node.sysctl("net.ipv4.ip_forward", "1");
                node.sysctl("net.ipv6.conf.all.forwarding", "1");
            }
        }
        attach(network, &node, &peer, "veth-peer", 3, PEER_MAC);
        let pod = Pod::new(network, &node, 0);
        let mut world = Self {
            outsiders: [Sender::new(&node), Sender::new(&peer)],
            outside: traffic::outside(&node, &peer, BRIDGES),
            marker: Marker::new(&peer),
            state: StateDir::new(),
            agent: None,
            twin: None,
            spoilt: None,
            network,
            node,
            peer,
            pod,
        };
        std::fs::create_dir(world.state_dir().join("isolated")).unwrap();
        world.pod.runs = world.call("ADD", &world.pod).status.success();
        assert!(world.pod.runs, "the first ADD fails");
        world
    }

    pub(super) fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// The keys of marks that hold for the pod: by container ID, by UID, by name.
    pub(super) fn keys(&self) -> [&str; 3] {
        [&self.pod.id, UID, NAME_KEY]
    }

    pub(super) fn mark_path(&self, key: &str) -> PathBuf {
        self.state.mark_path(key)
    }

    pub(super) fn record_path(&self) -> PathBuf {
        self.state.record_path(&self.pod.id, "eth0")
    }

    pub(super) fn has_marks(&self) -> bool {
        !self.state.marks().is_empty()
    }

    /// The plugin's verb for a pod.
    pub(super) fn call(&self, verb: &str, pod: &Pod) -> Run {
        Call::new(&self.node, verb)
            .attachment(&pod.id, &pod.netns.path(), "eth0")
            .args(&format!("IgnoreUnknown=1;K8S_POD_NAMESPACE=walk;K8S_POD_NAME=web;K8S_POD_UID={UID}"))
            .config(self.config(pod))
            .run()
    }

    /// GC, when the runtime says that nothing is valid.
    pub(super) fn collect_garbage(&self) {
        let mut config = self.config(&self.pod);
        config["cni.dev/valid-attachments"] = json!([]);
        // It says what it could not do, as with a record that cannot be read.
        let _ = Call::new(&self.node, "GC").config(&config).run();
    }

    fn config(&self, pod: &Pod) -> Value {
        let address = pod.address(self.network);
        json!({
            "cniVersion": "1.1.0", "name": "walk", "type": "quarantine", "stateDir": self.state_dir(),
            "log": { "target": "stderr" },
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [
                    { "name": pod.end() },
                    { "name": "eth0", "mac": text(address.mac), "sandbox": pod.netns.path() },
                ],
                "ips": [
                    { "address": format!("{}/24", address.v4), "gateway": NODE4, "interface": 1 },
                    { "address": format!("{}/64", address.v6), "gateway": "fd77::1", "interface": 1 },
                ],
            },
        })
    }

    /// One of the commands.
    pub(super) fn command(&self, arguments: &[&str]) -> Run {
        let state = ["--log", "stderr", "--state-dir", self.state.text()];
        quarantine(&self.node, &[arguments, &state].concat())
    }

    /// What `status` says of the node.
    pub(super) fn status(&self) -> Value {
        let run = self.command(&["status", "-o", "json"]);
        serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("status says no JSON: {run:#?}"))
    }

    /// What arrives of the packets of every pod that runs, after everything that was sent before has come or gone.
    pub(super) fn probe(&mut self, step: usize) -> Vec<(String, Arrivals)> {
        self.marker.pass();
        self.outside.forget();
        let mut all = Vec::new();
        for pod in std::iter::once(&mut self.pod).chain(&mut self.twin).filter(|pod| pod.runs) {
            // The numbers of 8000 steps: nothing is on its way for longer.
            let number = u16::try_from(step % 8000 * 4).unwrap() + 2 * u16::from(pod.number);
            let address = pod.address(self.network);
            pod.inside.forget();
            traffic::fire_out([&pod.senders[0], &pod.senders[1]], address, number);
            traffic::fire_in([&self.outsiders[0], &self.outsiders[1]], address, number + 1);
            self.marker.pass();
            let arrivals = Arrivals { out: self.outside.seen(number), into: pod.inside.seen(number + 1) };
            all.push((pod.id.clone(), arrivals));
        }
        all
    }

    /// A new sandbox of the pod, with a namespace of its own, whose ADD has run; its containers start if that succeeds.
    pub(super) fn add(&mut self, number: u8) -> Pod {
        let mut pod = Pod::new(self.network, &self.node, number);
        let run = self.call("ADD", &pod);
        assert!(run.status.success() || pod.is_detached(&self.node), "ADD of a sound pod fails: {run:#?}");
        pod.runs = run.status.success();
        pod
    }

    /// The runtime's DEL, which must succeed.
    pub(super) fn del(&self, pod: &Pod) {
        self.call("DEL", pod).ok();
    }

    pub(super) fn start_agent(&mut self) {
        if self.agent.is_none() {
            self.agent = Some(Agent::start_with(&self.node, self.state_dir(), &["--release-after", "20ms"]));
        }
    }

    /// Waits until the agent has brought every pod that runs to its marks; without one there is nothing to wait for.
    pub(super) fn settle(&self) {
        if self.agent.is_none() {
            return;
        }
        eventually(REACTION, || {
            let status = self.status();
            let of_pod = |pod: &Pod| {
                let sandboxes = status["sandboxes"].as_array().into_iter().flatten();
                sandboxes.into_iter().find(|sandbox| sandbox["containerID"] == pod.id.as_str()).cloned()
            };
            std::iter::once(&self.pod).chain(&self.twin).filter(|pod| pod.runs).filter_map(of_pod).all(|sandbox| {
                let is_open = sandbox["verdict"] == "open";
                is_open == (sandbox["state"] == "released")
            })
        });
    }

    pub(super) fn kill_agent(&mut self) {
        self.agent = None;
    }
}

impl Pod {
    fn new(network: Network, node: &Netns, number: u8) -> Self {
        let (netns, below) = (Netns::new("pod"), Netns::new("below"));
        // What is left of a namespace that is being deleted goes a little later.
        let end = Self::end_of(number);
        let _ = node.try_sh(&format!("ip link del {end} || ip link del end-{number}"));
        let pod = Self {
            id: format!("c{}", netns.name()),
            senders: [Sender::new(&netns), Sender::new(&below)],
            inside: traffic::inside(&netns, &below),
            runs: false,
            number,
            netns,
            below,
        };
        let mac = pod.address(network).mac;
        attach(network, node, &pod.netns, end, 2 + 2 * number, mac);
        node.links().add_altname(end, &format!("end-{number}"));
        pod.netns.links().add_altname("eth0", "door");
        pod
    }

    fn end_of(number: u8) -> &'static str {
        if number == 0 { "veth-pod" } else { "veth-twin" }
    }

    fn end(&self) -> &'static str {
        Self::end_of(self.number)
    }

    fn is_detached(&self, node: &Netns) -> bool {
        node.try_sh(&format!("ip link show {}", self.end())).is_err()
    }

    fn address(&self, network: Network) -> Address {
        let number = 2 + 2 * self.number;
        let mac = [2, 0, 0, 0, 0, number];
        let v4 = [10, 77, 0, number].into();
        let v6 = [0xfd77, 0, 0, 0, 0, 0, 0, u16::from(number)].into();
        match network {
            Network::Bridged => Address { v4, v6, mac, peer_hop: PEER_MAC, hop: mac },
            Network::Routed => Address { v4, v6, mac, peer_hop: NODE_MAC, hop: NODE_MAC },
        }
    }
}

/// What a main plugin does.
fn attach(network: Network, node: &Netns, pod: &Netns, end: &str, number: u8, mac: Mac) {
    let (host, inside) = (node.links(), pod.links());
    let v4 = Ipv4Addr::new(10, 77, 0, number);
    let v6 = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into());
    host.add_veth(Veth { name: end, mac: None, peer: "eth0", peer_mac: Some(mac), netns: pod });
    match network {
        Network::Bridged => host.set_master(end, "br0"),
        Network::Routed => host.set_mac(end, NODE_MAC),
    }
    host.up(end);
    inside.up("eth0");
    let (length4, length6) = if network == Network::Routed { (32, 128) } else { (24, 64) };
    inside.add_address("eth0", format!("{v4}/{length4}"));
    inside.add_address("eth0", format!("{v6}/{length6}"));
    if network == Network::Routed {
        host.add_address(end, "10.77.0.1/32");
        host.add_address(end, "fd77::1/128");
        host.route(Route::to(v4).dev(end).src(NODE4));
        host.route(Route::to(v6).dev(end).src(NODE6));
        inside.route(Route::to(NODE4).dev("eth0").src(v4));
        inside.route(Route::to(NODE6).dev("eth0"));
    }
    inside.route(Route::default_via(NODE4));
    inside.route(Route::default_via(NODE6));
}

/// How long the agent is waited for, at most: some of what a walk leaves behind it cannot mend.
const REACTION: Duration = Duration::from_millis(300);
