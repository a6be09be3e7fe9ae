//! What bypasses the rules is noticed: `status` never says `contained` where a frame could pass.
//!
//! Each way is shown to be one, by a frame that passes, wherever it can be built on this kernel.

use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::lab::topology::{PEER_MAC, PEER4, POD_MAC, POD4};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::bpf::{self, Stand};
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet::{self, BROADCAST};
use crate::lab::traffic::sockets::{PacketSocket, address, udp_on};
use crate::lab::traffic::xdp::XdpSocket;
use crate::lab::{PATIENCE, Sandbox, Topology, eventually};

/// Frames out of the pod, past its own hooks: by AF_XDP, which the guard alone stops.
fn outward(topology: &Topology) -> Battery<'_> {
    let socket = Mutex::new(XdpSocket::open(&topology.pod, "eth0").unwrap());
    let send = move |number| {
        let frame = packet::ethernet(BROADCAST, POD_MAC, 0x88b5, &tag(number));
        drop(socket.lock().unwrap().send(&frame));
    };
    Battery::new(vec![Attack::new("frame", &topology.pod, send)], Witnesses::outside(topology))
}

/// Frames from the peer to a packet socket in the pod.
fn inward(topology: &Topology) -> Battery<'_> {
    let socket = Arc::new(PacketSocket::open(&topology.peer, "eth0"));
    let send = move |number| {
        let udp = packet::udp(PEER4.into(), POD4.into(), (9, 9), &tag(number));
        drop(socket.send(&packet::ip_frame((POD_MAC, PEER_MAC), (POD4.into(), PEER4.into()), packet::UDP, &udp)));
    };
    let witnesses = Witnesses::default().frames(&topology.pod, "eth0");
    Battery::new(vec![Attack::new("frame", &topology.peer, send)], witnesses)
}

#[track_caller]
fn assert_doubted(status: &Value, why: &str) {
    assert_ne!(status["verdict"], "contained", "{why}: {status:#}");
    assert!(status["reasons"].as_array().is_some_and(|reasons| !reasons.is_empty()), "{why}: {status:#}");
}

const U32: &str = "protocol all u32 match u32 0 0";

/// Ways past the guard on the node, made of tc: what to run, and whether frames come into the pod by it.
fn node_ways() -> Vec<(&'static str, String)> {
    let clsact = |device: &str| format!("tc qdisc add dev {device} clsact");
    vec![
        (
            "redirect from the host's end",
            format!(
                "{}; tc filter add dev veth-pod ingress {U32} action mirred egress redirect dev veth-peer",
                clsact("veth-pod")
            ),
        ),
        (
            "copy from the host's end",
            format!(
                "{}; tc filter add dev veth-pod ingress {U32} action mirred egress mirror dev veth-peer",
                clsact("veth-pod")
            ),
        ),
        (
            "redirect behind another action",
            format!(
                "{}; tc filter add dev veth-pod ingress {U32} \
                 action pass pipe action mirred egress redirect dev veth-peer || \
                 tc filter add dev veth-pod ingress {U32} \
                 action mirred egress mirror dev veth-peer pipe action mirred egress redirect dev veth-peer",
                clsact("veth-pod")
            ),
        ),
        (
            "redirect in another chain",
            format!(
                "{0}; tc filter add dev veth-pod ingress chain 7 {U32} action mirred egress redirect dev veth-peer; \
                 tc filter add dev veth-pod ingress {U32} action goto chain 7 || true",
                clsact("veth-pod")
            ),
        ),
        (
            "redirect by an ingress qdisc",
            format!(
                "tc qdisc add dev veth-pod ingress; \
                 tc filter add dev veth-pod parent ffff: {U32} action mirred egress redirect dev veth-peer"
            ),
        ),
        (
            "redirect by a shared block",
            format!(
                "tc qdisc add dev veth-pod ingress_block 22 clsact; \
                 tc filter add block 22 {U32} action mirred egress redirect dev veth-peer"
            ),
        ),
        (
            "a classic BPF filter with a redirect",
            format!(
                "{}; tc filter add dev veth-pod ingress bpf bytecode '1,6 0 0 4294967295,' \
                 action mirred egress redirect dev veth-peer",
                clsact("veth-pod")
            ),
        ),
        (
            "redirect from the peer's end",
            format!(
                "{}; tc filter add dev veth-peer ingress {U32} action mirred egress redirect dev veth-pod",
                clsact("veth-peer")
            ),
        ),
        (
            "copy from the peer's end",
            format!(
                "{}; tc filter add dev veth-peer ingress {U32} action mirred egress mirror dev veth-pod",
                clsact("veth-peer")
            ),
        ),
        (
            "redirect from the egress of the bridge",
            format!("{}; tc filter add dev br0 egress {U32} action mirred egress redirect dev veth-pod", clsact("br0")),
        ),
        (
            "nftables of the node that forwards to the host's end",
            "nft 'table netdev cni { chain in { type filter hook ingress device veth-peer priority -600; \
             fwd to veth-pod; }; }'"
                .to_owned(),
        ),
    ]
}

#[test]
fn every_way_past_the_guard_is_doubted() {
    assert!(doubted(&node_ways()) >= 8, "most of these ways lead somewhere");
}

/// What Cilium and others do by BPF: frames out of the pod go from its host's end straight to the neighbour's, and into
/// it the other way round.
#[test]
fn bpf_programs_past_the_guard_are_doubted() {
    for (stand, said) in [
        (Stand::Xdp, "an XDP program on veth-pod"),
        (Stand::TcxIngress, "a BPF program in tcx or netkit on veth-pod"),
        (Stand::TcxEgress, "a BPF program in tcx or netkit on veth-pod"),
    ] {
        let topology = Topology::bridge();
        let sandbox = Sandbox::add(&topology);
        sandbox.isolate("");
        assert_eq!(sandbox.verdict(), "contained");
        outward(&topology).assert_none_arrives();
        let Some(program) = bpf::redirect(&topology.node, stand, "veth-pod", "veth-peer") else { continue };
        if !matches!(stand, Stand::TcxEgress) {
            assert!(!outward(&topology).leaks().is_empty(), "the control: {stand:?} leads somewhere");
        }
        let status = sandbox.status();
        assert_doubted(&status, said);
        assert!(status["reasons"].to_string().contains(said), "{said}: {status:#}");
        drop(program);
        // The kernel detaches it a little later.
        assert!(eventually(PATIENCE, || sandbox.verdict() == "contained"), "{stand:?}: {:#}", sandbox.status());
        outward(&topology).assert_none_arrives();
    }
}

/// In the pod the guard is enough; where there is none, that is said.
#[test]
fn bpf_programs_past_the_pod_side_are_doubted() {
    let said = "takes packets past the pod-side rules";
    for guard in ["auto", "off"] {
        let topology = Topology::bridge();
        let sandbox = Sandbox::add_with(&topology, &json!({ "hostGuard": guard }));
        sandbox.isolate("");
        let before = sandbox.status();
        assert!(!before["reasons"].to_string().contains(said), "the control: {before:#}");
        for stand in [Stand::Xdp, Stand::TcxIngress, Stand::TcxEgress] {
            let Some(_program) = bpf::redirect(&topology.pod, stand, "eth0", "lo") else { continue };
            let status = sandbox.status();
            let verdict = if guard == "off" { "partial" } else { "contained" };
            assert_eq!(status["verdict"], verdict, "{guard}, {stand:?}: {status:#}");
            assert_eq!(status["reasons"].to_string().contains(said), guard == "off", "{stand:?}: {status:#}");
        }
    }
}

/// A chain of the node's own nftables in front of the guard's.
#[test]
fn nftables_in_front_of_the_guard_is_doubted() {
    let forward = "nft 'table netdev cni { chain in { type filter hook ingress device veth-pod priority -600; \
                   fwd to veth-peer; }; }'";
    assert_eq!(doubted(&[("nftables that forwards from the host's end", forward.to_owned())]), 1);
}

/// A way that the verdict does not see must carry nothing. Gives how many of the ways carry something.
fn doubted(ways: &[(&str, String)]) -> usize {
    let mut lies = Vec::new();
    let mut ways_that_carry = 0;
    for (name, script) in ways {
        let topology = Topology::bridge();
        let sandbox = Sandbox::add(&topology);
        sandbox.isolate("");
        let before = sandbox.status();
        assert_eq!(before["verdict"], "contained", "{before:#}");
        outward(&topology).assert_none_arrives();
        inward(&topology).assert_none_arrives();
        topology.node.sh(script);
        let (out, into) = (outward(&topology).leaks(), inward(&topology).leaks());
        let carries = !out.is_empty() || !into.is_empty();
        ways_that_carry += usize::from(carries);
        let status = sandbox.status();
        if carries && status["verdict"] == "contained" {
            lies.push(format!("{name}: out {out:?}, in {into:?}"));
        }
        if status["verdict"] != "contained" {
            assert_doubted(&status, name);
        }
    }
    assert!(lies.is_empty(), "contained, says status, with {lies:#?}");
    ways_that_carry
}

/// With the pod side gone as well, what jumps over the guard is open, and nothing better is claimed.
#[test]
fn a_way_past_the_guard_without_the_pod_side_is_open() {
    let topology = Topology::cilium();
    let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": "off" }));
    sandbox.isolate("");
    topology.pod.sh("nft flush ruleset");
    let send = |number| drop(udp_on(None, PEER4.into()).send_to(&tag(number), &address(PEER4.into(), 9)));
    let attacks = vec![Attack::new("udp", &topology.pod, send)];
    Battery::new(attacks, Witnesses::outside(&topology)).assert_all_arrive();
    let status = sandbox.status();
    assert_eq!(status["verdict"], "open", "{status:#}");
    // CHECK repairs before it looks.
    sandbox.invoke("CHECK").ok();
    let attacks = vec![Attack::new("udp", &topology.pod, send)];
    Battery::new(attacks, Witnesses::outside(&topology)).assert_none_arrives();
    assert_doubted(&sandbox.status(), "the redirect is still there");
}

/// The guard hangs on a name; the device of that name can become another one.
#[test]
fn a_host_end_that_is_renamed_is_found_again() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    topology.node.sh("ip link set veth-pod down; ip link set veth-pod name moved; ip link set moved up
         ip link add veth-pod type veth peer name decoy; ip link set veth-pod up; ip link set decoy up");
    let seen = sandbox.status();
    let into = inward(&topology).leaks();
    assert!(into.is_empty() || seen["verdict"] != "contained", "{into:?} came in: {seen:#}");
    sandbox.sync();
    inward(&topology).assert_none_arrives();
    outward(&topology).assert_none_arrives();
    let status = sandbox.status();
    assert_eq!(status["verdict"], "contained", "{status:#}");
}

/// A released sandbox is `open`, and costs nothing: no hook is registered on either side.
#[test]
fn a_released_sandbox_is_open_and_has_no_hooks() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let check = |stage: &str| {
        let status = sandbox.status();
        assert_eq!(status["state"], "released", "{stage}: {status:#}");
        assert_eq!(status["verdict"], "open", "{stage}: {status:#}");
        assert_eq!(topology.node.sh("nft list ruleset"), "", "{stage}");
        let tables = topology.pod.sh("nft list ruleset");
        assert_eq!(
            tables.matches("flags dormant").count(),
            tables.matches("\ntable ").count() + 1,
            "{stage}: {tables}"
        );
    };
    check("after ADD");
    sandbox.isolate("");
    assert_eq!(sandbox.status()["state"], "isolated");
    sandbox.release();
    check("after the release");
}

/// What an isolated pod tries is counted and reported, also where no neighbour answers.
#[test]
fn attempts_are_counted() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    topology.pod.run(|| {
        for to in [PEER4, [10, 77, 0, 200].into(), [203, 0, 113, 9].into()] {
            let socket = udp_on(None, to.into());
            for _ in 0..3 {
                let _ = socket.send_to(b"call home", &address(to.into(), 53));
            }
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&address(to.into(), 443));
        }
    });
    let status = sandbox.status();
    let attempts = status["attempts"].as_array().unwrap();
    for to in ["10.77.0.3", "10.77.0.200", "203.0.113.9"] {
        for (protocol, port) in [("udp", 53), ("tcp", 443)] {
            let found = attempts
                .iter()
                .find(|attempt| attempt["address"] == to && attempt["protocol"] == protocol && attempt["port"] == port);
            let packets = found.and_then(|attempt| attempt["packets"].as_u64());
            assert!(packets.is_some_and(|packets| packets > 0), "{protocol} {to} {port}: {status:#}");
        }
    }
}

/// A process in the pod sees silence: no EPERM tells it that it is isolated.
#[test]
fn a_local_process_sees_silence() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let server = topology.pod.run(|| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    for policy in [Value::Null, serde_json::json!({ "loopback": false, "probes": false })] {
        if policy.is_null() {
            sandbox.isolate("");
        } else {
            sandbox.isolate_with(&policy);
        }
        topology.pod.run(|| {
            let targets: [std::net::IpAddr; 4] =
                [PEER4.into(), crate::lab::topology::PEER6.into(), topology.node4.into(), [203, 0, 113, 9].into()];
            for to in targets {
                let socket = udp_on(None, to);
                for _ in 0..3 {
                    let sent = socket.send_to(b"hello", &address(to, 53));
                    assert!(sent.is_ok(), "udp to {to} under {policy}: {sent:?}");
                }
                let domain = if to.is_ipv4() { socket2::Domain::IPV4 } else { socket2::Domain::IPV6 };
                let socket = socket2::Socket::new(domain, socket2::Type::STREAM, None).unwrap();
                socket.set_nonblocking(true).unwrap();
                let error = socket.connect(&address(to, 443)).unwrap_err();
                assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "tcp to {to} under {policy}: {error}");
            }
            let to = server.local_addr().unwrap();
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let error = socket.connect(&to.into()).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::EINPROGRESS), "lo under {policy}: {error}");
        });
    }
}
