//! Datapaths against the programs alone, cell by cell: how frames get to the pod or out of it, and what sees them arrive.
//!
//! Each has its control without programs (`ebpf: off`): there something gets through, and is never called `contained`.

use std::fmt::Debug;
use std::os::fd::OwnedFd;

use serde_json::json;

use crate::lab::topology::{HOST_END, PEER_MAC, POD_MAC};
use crate::lab::traffic::battery::Battery;
use crate::lab::traffic::bpf::{self, Datapath, Stand, Way};
use crate::lab::traffic::observe::Witnesses;
use crate::lab::{Mac, Sandbox, Topology, not_tried};

use super::datapaths::frames_towards;
use super::ebpf::out;

/// Frames to the pod, seen by its packet sockets and by its stack.
fn into(topology: &Topology) -> Battery<'_> {
    frames_towards(topology, Witnesses::default().frames(&topology.pod, "eth0").stack(&topology.pod))
}

/// All batteries of a pod: out by a packet socket, out by AF_XDP, in.
fn all(topology: &Topology) -> Vec<Battery<'_>> {
    let [by_socket, by_xdp] = out(topology);
    vec![by_socket, by_xdp, into(topology)]
}

/// Leaves what arrives of each, which must be something.
#[track_caller]
fn only_what_arrives(batteries: &mut [Battery<'_>], what: &dyn Debug) {
    for battery in batteries {
        let arrives = battery.leaks();
        assert!(!arrives.is_empty(), "{what:?}: the control: nothing arrives");
        battery.retain(|name| arrives.iter().any(|(arrives, _)| arrives == name));
    }
}

/// Takes all rules away, whoever's they are.
fn without_rules(topology: &Topology) {
    topology.node.sh("nft flush ruleset");
    topology.pod.sh("nft flush ruleset");
}

/// Bridge and ptp, where programs are not needed, and stop the same; with the rules gone they stop it alone.
#[test]
fn programs_alone_stop_what_rules_do() {
    for make in [Topology::bridge, Topology::ptp] {
        let topology = make();
        let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": "off" }));
        let mut batteries = all(&topology);
        only_what_arrives(&mut batteries, &topology.kind);
        sandbox.isolate("");
        batteries.iter_mut().for_each(Battery::assert_none_arrives);
        without_rules(&topology);
        batteries.iter_mut().for_each(Battery::assert_all_arrive);
        sandbox.release();
        sandbox.del();
        let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": "always" }));
        batteries.iter_mut().for_each(Battery::assert_all_arrive);
        sandbox.isolate("");
        if sandbox.status()["reasonCodes"].to_string().contains("ebpf-unsupported") {
            return not_tried("no eBPF program can be attached here");
        }
        assert_eq!(sandbox.verdict(), "contained", "{:#}", sandbox.status());
        without_rules(&topology);
        batteries.iter_mut().for_each(Battery::assert_none_arrives);
        assert_ne!(sandbox.verdict(), "contained", "the rules are gone: {:#}", sandbox.status());
        sandbox.release();
    }
}

/// How a datapath takes frames to the pod or from it.
#[derive(Debug, Clone, Copy)]
enum Path {
    /// By a program at a tcx hook of the first interface, which puts them out of the second or into its other end.
    Tcx(Stand, [&'static str; 2], Mac, Way),
    /// By an XDP program on the peer's end.
    Xdp(Stand),
}

/// A datapath, for as long as it is held.
enum Made<'a> {
    Tcx { _link: Datapath<'a> },
    Xdp { _link: OwnedFd },
}

impl Path {
    fn make(self, topology: &Topology) -> Option<Made<'_>> {
        let node = &topology.node;
        Some(match self {
            Self::Tcx(stand, [from, to], mac, way) => {
                Made::Tcx { _link: Datapath::attach_at(node, stand, from, to, mac, way, false)? }
            }
            Self::Xdp(stand) => {
                if matches!(stand, Stand::XdpNative) {
                    bpf::receive_offload(&topology.pod, "eth0");
                }
                Made::Xdp { _link: bpf::redirect(node, stand, "veth-peer", HOST_END)? }
            }
        })
    }
}

/// The ways past netfilter that a program on the node has: out of the pod's host end or straight into the pod, from the way in or the way
/// out of another interface, from XDP of both modes; and off the pod's host end.
#[test]
fn every_datapath_of_programs_is_stopped_where_rules_are_passed_by() {
    let (peer_to_pod, pod_to_peer) = (["veth-peer", HOST_END], [HOST_END, "veth-peer"]);
    let [bridge, ptp]: [fn() -> Topology; 2] = [Topology::bridge, Topology::ptp];
    for (make, path) in [
        (bridge, Path::Tcx(Stand::TcxIngress, peer_to_pod, POD_MAC, Way::Out)),
        (bridge, Path::Tcx(Stand::TcxIngress, peer_to_pod, POD_MAC, Way::IntoPeer)),
        (bridge, Path::Tcx(Stand::TcxEgress, ["br0", HOST_END], POD_MAC, Way::Out)),
        (bridge, Path::Tcx(Stand::TcxIngress, pod_to_peer, PEER_MAC, Way::Out)),
        (bridge, Path::Tcx(Stand::TcxIngress, pod_to_peer, PEER_MAC, Way::IntoPeer)),
        (ptp, Path::Tcx(Stand::TcxIngress, peer_to_pod, POD_MAC, Way::ToNeighbour)),
        (ptp, Path::Tcx(Stand::TcxIngress, pod_to_peer, PEER_MAC, Way::ToNeighbour)),
        (bridge, Path::Xdp(Stand::Xdp)),
        (bridge, Path::Xdp(Stand::XdpNative)),
    ] {
        let topology = make();
        let Some(_made) = path.make(&topology) else { return };
        let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": "off" }));
        let mut batteries = all(&topology);
        only_what_arrives(&mut batteries, &path);
        sandbox.isolate("");
        let leaks: Vec<_> = batteries.iter_mut().flat_map(Battery::leaks).collect();
        assert!(!leaks.is_empty(), "{path:?}: the control: rules stop it");
        assert_eq!(sandbox.verdict(), "partial", "{path:?}: {:#}", sandbox.status());
        sandbox.release();
        sandbox.del();
        let sandbox = Sandbox::add(&topology);
        batteries.iter_mut().for_each(Battery::assert_all_arrive);
        sandbox.isolate("");
        batteries.iter_mut().for_each(Battery::assert_none_arrives);
        let status = sandbox.status();
        let into_pods = matches!(path, Path::Tcx(_, _, _, Way::IntoPeer));
        let expected = if into_pods { ("partial", "neighbour-redirects") } else { ("contained", "") };
        let code = status["reasonCodes"][0]["code"].as_str().unwrap_or_default();
        assert_eq!((status["verdict"].as_str().unwrap(), code), expected, "{path:?}: {status:#}");
        sandbox.release();
        batteries.iter_mut().for_each(Battery::assert_all_arrive);
    }
}

/// Says nothing that is not so: what arrives is never called `contained`; where nothing does, it is, but for what cannot be ruled out.
#[track_caller]
fn judges_rightly(sandbox: &Sandbox<'_>, batteries: &mut [Battery<'_>], what: &dyn Debug) -> bool {
    let leaks: Vec<_> = batteries.iter_mut().flat_map(Battery::leaks).collect();
    let status = sandbox.status();
    let codes: Vec<_> =
        status["reasonCodes"].as_array().unwrap().iter().map(|reason| reason["code"].as_str().unwrap()).collect();
    if leaks.is_empty() {
        let is_whole = codes.iter().all(|code| *code == "neighbour-redirects");
        assert_eq!(codes.is_empty(), status["verdict"] == "contained", "{what:?}: {status:#}");
        return is_whole;
    }
    assert_eq!(status["verdict"], "partial", "{what:?}: {leaks:?} arrive: {status:#}");
    false
}

/// An agent like Cilium's makes its links on every host end, and makes them anew while the pod is isolated: behind ours and before them, with
/// another program in the same link, to another pod, into it, into a tunnel.
#[test]
fn a_datapath_that_is_made_anew_while_a_pod_is_isolated_is_judged_rightly() {
    let topology = Topology::bridge();
    let node = &topology.node;
    tunnel(&topology);
    let attach = |[from, to]: [&str; 2], mac, first| Datapath::attach(node, from, to, mac, Way::Out, first);
    let (to_pod, from_pod) = (["veth-peer", HOST_END], [HOST_END, "veth-peer"]);
    let Some(made) = attach(to_pod, POD_MAC, false).zip(attach(from_pod, PEER_MAC, false)) else { return };
    let sandbox = Sandbox::add(&topology);
    let mut batteries = all(&topology);
    only_what_arrives(&mut batteries, &"made");
    sandbox.isolate("");
    assert!(judges_rightly(&sandbox, &mut batteries, &"isolated"), "{:#}", sandbox.status());
    for first in [false, true] {
        let Some(again) = attach(to_pod, POD_MAC, first).zip(attach(from_pod, PEER_MAC, first)) else { return };
        let is_whole = judges_rightly(&sandbox, &mut batteries, &("made again", first));
        assert_eq!(is_whole, !first, "{:#}", sandbox.status());
        sandbox.sync();
        assert!(judges_rightly(&sandbox, &mut batteries, &("mended", first)), "{:#}", sandbox.status());
        for (to, way) in [("veth-peer", Way::Out), ("tunnel0", Way::Out), ("veth-peer", Way::IntoPeer)] {
            for (to_pod, from_pod) in [&made, &again] {
                to_pod.replace(HOST_END, POD_MAC, way);
                from_pod.replace(to, PEER_MAC, way);
                let what = ("replaced", first, to, way);
                assert!(judges_rightly(&sandbox, &mut batteries, &what), "{what:?}: {:#}", sandbox.status());
            }
        }
    }
    drop(made);
    sandbox.release();
}

fn tunnel(topology: &Topology) {
    // What goes into it comes out at the peer, inside of IP.
    topology.node.sh(
        "ip link add tunnel0 type geneve id 7 remote 10.77.0.3 dstport 6081 || ip link add tunnel0 type vxlan id 7 remote 10.77.0.3 dstport 4789
         ip link set tunnel0 up",
    );
}

/// The same with classic filters (clsact, direct action), which run behind tcx: they put frames out of the host's end, straight into the pod,
/// into a tunnel, and are replaced while it is isolated.
#[test]
fn classic_filters_are_judged_rightly() {
    let topology = Topology::bridge();
    let node = &topology.node;
    {
        let Some(probe) = Datapath::attach(node, "veth-peer", HOST_END, POD_MAC, Way::Out, false) else { return };
        drop(probe);
    }
    tunnel(&topology);
    node.sh("mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf");
    let make = |to, way| {
        bpf::classic(node, "veth-peer", HOST_END, POD_MAC, way);
        bpf::classic(node, HOST_END, to, PEER_MAC, way);
    };
    make("veth-peer", Way::Out);
    let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": "off" }));
    let mut batteries = all(&topology);
    only_what_arrives(&mut batteries, &"made");
    sandbox.isolate("");
    assert!(!judges_rightly(&sandbox, &mut batteries, &"without programs"));
    sandbox.release();
    sandbox.del();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    for (to, way) in [("veth-peer", Way::Out), ("veth-peer", Way::IntoPeer), ("tunnel0", Way::Out)] {
        make(to, way);
        assert!(judges_rightly(&sandbox, &mut batteries, &(to, way)), "{to}: {way:?}: {:#}", sandbox.status());
    }
    sandbox.release();
}

/// Root in a pod without a host's end, whose programs hang on an interface of its own: links are nobody's to take off. Its own program goes
/// before ours, which is seen, and what that lets by meets the rules.
#[test]
fn root_in_the_pod_takes_no_program_off_its_own_interface() {
    let topology = Topology::macvlan();
    let sandbox = Sandbox::add(&topology);
    let [mut by_socket, by_xdp] = out(&topology);
    drop(by_xdp);
    by_socket.assert_all_arrive();
    into(&topology).assert_all_arrive();
    sandbox.isolate("");
    let codes = || sandbox.status()["reasonCodes"].to_string();
    if codes().contains("ebpf-unsupported") {
        return not_tried("no eBPF program can be attached here");
    }
    for stand in [Stand::TcxEgress, Stand::Xdp] {
        assert!(bpf::detach_from(&topology.pod, stand, "eth0").is_err(), "{stand:?} comes off");
    }
    topology.pod.sh("for mode in xdp xdpgeneric xdpdrv; do ip link set eth0 $mode off || true; done");
    assert!(!codes().contains("ebpf-"), "{:#}", sandbox.status());
    by_socket.assert_none_arrives();
    into(&topology).assert_none_arrives();
    let Some(first) = bpf::pass_first(&topology.pod, "eth0") else { return };
    assert!(codes().contains("ebpf-not-first"), "{:#}", sandbox.status());
    by_socket.assert_none_arrives();
    sandbox.sync();
    assert!(!codes().contains("ebpf-"), "{:#}", sandbox.status());
    drop(first);
    // Not even the interface itself, as long as something is to be said of it.
    topology.pod.sh("ip link del eth0");
    assert_ne!(sandbox.verdict(), "contained", "{:#}", sandbox.status());
}
