//! What the holes for the probes were computed from is watched: the node may get another address, or another Ethernet
//! address on the pod's link, while a pod is isolated, and the kubelet must not kill the evidence for it.

use std::path::Path;
use std::time::Duration;

use super::{Agent, PATIENCE};
use crate::lab::topology::POD4;
use crate::lab::traffic::server::{Server, http_probe};
use crate::lab::{Sandbox, Topology, eventually};

/// As long as a kubelet waits.
const PROBE: Duration = Duration::from_secs(1);

/// Isolated by an agent, changed by `script`: the probes pass again, by a look of the agent's that nobody asked for.
fn probes_pass_after(topology: &Topology, script: &str) {
    let sandbox = Sandbox::add(topology);
    let agent = Agent::start(&topology.node, Path::new(sandbox.state_dir()));
    let server = Server::start(&topology.pod, 8080);
    sandbox.write_mark("");
    agent.await_line(&["event=isolated", sandbox.id()]);
    let probe = || http_probe(&topology.node, POD4.into(), server.port(), PROBE);
    assert!(probe(), "the control");
    topology.node.sh(script);
    topology.forget_neighbours();
    agent.await_line(&["event=updated", sandbox.id()]);
    assert!(eventually(PATIENCE, probe), "{script}");
    // Of several changes the agent may have made good one, and hear of the next.
    assert!(eventually(PATIENCE, || sandbox.verdict() == "contained"), "{script}: {:#}", sandbox.status());
}

/// A port with a lower address came: for more than 40 s no probe passed.
#[test]
fn the_bridge_gets_another_ethernet_address() {
    probes_pass_after(&Topology::bridge(), "ip link set br0 address 02:00:00:00:00:aa");
}

#[test]
fn the_node_gets_another_source_address_on_a_bridge() {
    probes_pass_after(
        &Topology::bridge(),
        "ip addr add 10.77.0.200/24 dev br0; ip route replace 10.77.0.0/24 dev br0 src 10.77.0.200",
    );
}

#[test]
fn the_node_gets_another_source_address_on_a_routed_pod() {
    probes_pass_after(
        &Topology::ptp(),
        "ip addr add 203.0.113.9/32 dev lo; ip route replace 10.77.0.2/32 dev veth-pod src 203.0.113.9",
    );
}
