//! Pods in the node's own network namespace: no CNI call, no record, and cut off all the same, by programs on their cgroups.

mod agent;
mod doubts;
mod evidence;
mod flows;
mod found;
mod kubelet;
mod life;
mod probes;

use std::net::{IpAddr, Ipv4Addr};

use netlab::Veth;
use serde_json::Value;

use crate::lab::{Netns, Run, StateDir, quarantine};

use kubelet::Kubelet;

const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 1));
const PEER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 2));

/// A node with a kubelet, and a peer outside.
struct World {
    kubelet: Kubelet,
    node: Netns,
    peer: Netns,
    state: StateDir,
}

impl World {
    fn new() -> Self {
        let (node, peer) = (Netns::new("hostnode"), Netns::new("hostpeer"));
        let links = node.links();
        links.add_veth(Veth { name: "up0", mac: None, peer: "peer0", peer_mac: None, netns: &peer });
        links.up("up0");
        links.add_address("up0", "10.78.0.1/24");
        let outside = peer.links();
        outside.up("peer0");
        outside.add_address("peer0", "10.78.0.2/24");
        Self { kubelet: Kubelet::of(&node), node, peer, state: StateDir::new() }
    }

    #[track_caller]
    fn quarantine(&self, arguments: &[&str]) -> Run {
        let arguments: Vec<_> = arguments.iter().copied().chain(["--state-dir", self.state.text()]).collect();
        quarantine(&self.node, &arguments)
    }

    #[track_caller]
    fn isolate(&self, uid: &str) -> Run {
        self.quarantine(&["isolate", uid]).ok()
    }

    #[track_caller]
    fn release(&self, uid: &str) -> Run {
        self.quarantine(&["release", uid]).ok()
    }

    #[track_caller]
    fn status(&self, uid: &str) -> Value {
        self.quarantine(&["status", uid, "-o", "json"]).json()
    }

    #[track_caller]
    fn verdict(&self, uid: &str) -> String {
        self.status(uid)["verdict"].as_str().unwrap().to_owned()
    }
}

/// The words for why a verdict is not another one.
fn codes(status: &Value) -> Vec<&str> {
    status["reasonCodes"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap()).collect()
}
