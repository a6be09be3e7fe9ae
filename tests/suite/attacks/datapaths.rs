//! Datapaths that are no plain veth: user-space stacks, virtual machines, redirects between host ends, no host end.
//!
//! Where neither layer covers a direction the frames do pass; then the claim under test is that `status` says so.

use std::fs::File;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::lab::topology::{PEER_MAC, PEER4, PEER6, POD_MAC, POD4, POD6};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet::{self, BROADCAST};
use crate::lab::traffic::server::http_probe;
use crate::lab::traffic::sockets::{PacketSocket, address, udp_on};
use crate::lab::traffic::stack::{Stack, Wire};
use crate::lab::traffic::xdp::XdpSocket;
use crate::lab::{Mac, Netns, PATIENCE, Sandbox, Topology};

const SHORT: Duration = Duration::from_millis(150);

impl Wire for PacketSocket {
    fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        Self::receive(self, buffer)
    }

    fn send(&mut self, frame: &[u8]) {
        let _ = Self::send(self, frame);
    }
}

/// The virtual machine's end of a tap.
struct Tap(File);

impl Tap {
    fn open(netns: &Netns, name: &str) -> Self {
        netns.run(|| {
            let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
            let file = File::from(open("/dev/net/tun", flags, Mode::empty()).unwrap());
            // SAFETY: all-zero is a valid value of this C structure.
            let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
            for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
                *to = from.cast_signed();
            }
            request.ifr_ifru.ifru_flags = (libc::IFF_TAP | libc::IFF_NO_PI) as libc::c_short;
            // SAFETY: the request is a live ifreq, as TUNSETIFF takes it.
            let status = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
            assert_eq!(status, 0, "{}", std::io::Error::last_os_error());
            Self(file)
        })
    }

    fn try_clone(&self) -> Self {
        Self(self.0.try_clone().unwrap())
    }
}

impl Wire for Tap {
    fn receive<'b>(&mut self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        let length = self.0.read(buffer).ok()?;
        Some(&buffer[..length])
    }

    fn send(&mut self, frame: &[u8]) {
        let _ = self.0.write(frame);
    }
}

/// Frames of a pod's own stack, sent on a wire: to the peer, the node, everybody.
pub(super) fn frames_on<'a>(topology: &'a Topology, send: impl Fn(&[u8]) + Send + Sync + 'a) -> Battery<'a> {
    let send = Arc::new(send);
    let mut attacks = Vec::new();
    let targets = [
        (PEER_MAC, IpAddr::from(PEER4), IpAddr::from(POD4)),
        (PEER_MAC, PEER6.into(), POD6.into()),
        (topology.node_mac, topology.node4.into(), POD4.into()),
        (topology.node_mac, topology.node6.into(), POD6.into()),
    ];
    for (mac, to, from) in targets {
        let send = send.clone();
        attacks.push(Attack::new(format!("udp to {to}"), &topology.pod, move |number| {
            let udp = packet::udp(from, to, (9, 9), &tag(number));
            send(&packet::ip_frame((mac, POD_MAC), (to, from), packet::UDP, &udp));
        }));
    }
    attacks.push(Attack::new("unknown ethertype", &topology.pod, move |number| {
        send(&packet::ethernet(BROADCAST, POD_MAC, 0x88b5, &tag(number)));
    }));
    Battery::new(attacks, Witnesses::outside(topology))
}

/// The same from the peer and the node's bridge to the pod, for these witnesses.
pub(super) fn frames_towards(topology: &Topology, witnesses: Witnesses) -> Battery<'_> {
    let mut attacks = Vec::new();
    let senders: [(&str, &Netns, &str, Mac); 2] = [
        ("peer", &topology.peer, "eth0", PEER_MAC),
        ("node", &topology.node, topology.node_device(), topology.node_mac),
    ];
    for (name, netns, device, mac) in senders {
        let socket = Arc::new(PacketSocket::open(netns, device));
        for to in [POD_MAC, BROADCAST] {
            let socket = socket.clone();
            attacks.push(Attack::new(format!("{name} to {to:02x?}"), netns, move |number| {
                let udp = packet::udp(PEER4.into(), POD4.into(), (9, 9), &tag(number));
                let frame = packet::ip_frame((to, mac), (POD4.into(), PEER4.into()), packet::UDP, &udp);
                let _ = socket.send(&frame);
            }));
        }
    }
    Battery::new(attacks, witnesses)
}

/// What an isolated pod with a stack of its own must show: nothing out, nothing in, probes answered, no other client.
pub(super) fn contained(topology: &Topology, sandbox: &Sandbox<'_>, out: &mut Battery<'_>, into: &mut Battery<'_>) {
    let probe = |from, to, limit| http_probe(from, to, 8080, limit);
    let pod = [IpAddr::from(POD4), POD6.into()];
    out.assert_all_arrive();
    into.assert_all_arrive();
    for to in pod {
        assert!(probe(&topology.node, to, PATIENCE), "the control fails: node to {to}");
        assert!(probe(&topology.peer, to, PATIENCE), "the control fails: peer to {to}");
    }
    sandbox.isolate("");
    out.assert_none_arrives();
    into.assert_none_arrives();
    topology.forget_neighbours();
    for to in pod {
        assert!(probe(&topology.node, to, PATIENCE), "probe of {to}");
        assert!(!probe(&topology.peer, to, SHORT), "the peer reaches {to}");
    }
    let status = sandbox.status();
    assert_eq!(status["verdict"], "contained", "{status:#}");
    sandbox.invoke("CHECK").ok();
    sandbox.isolate_with(&json!({ "loopback": false, "probes": false }));
    out.assert_none_arrives();
    into.assert_none_arrives();
    for to in pod {
        assert!(!probe(&topology.node, to, SHORT), "sealed, and yet a probe of {to}");
    }
    sandbox.release();
    out.assert_all_arrive();
    into.assert_all_arrive();
}

#[test]
fn a_stack_in_user_space_is_cut_off() {
    let topology = Topology::gvisor();
    let sandbox = Sandbox::add(&topology);
    let _stack = Stack::start(PacketSocket::open(&topology.pod, "eth0"));
    let socket = PacketSocket::open(&topology.pod, "eth0");
    let mut out = frames_on(&topology, move |frame| drop(socket.send(frame)));
    let mut into = frames_towards(&topology, Witnesses::default().frames(&topology.pod, "eth0"));
    contained(&topology, &sandbox, &mut out, &mut into);
}

#[test]
fn a_virtual_machine_behind_tc_is_cut_off() {
    let topology = Topology::kata();
    let sandbox = Sandbox::add(&topology);
    let tap = Tap::open(&topology.pod, "tap0");
    let _stack = Stack::start(tap.try_clone());
    let tap = Mutex::new(tap);
    let mut out = frames_on(&topology, move |frame| tap.lock().unwrap().send(frame));
    // A packet socket on the tap sees what goes out on it to the VM.
    let mut into = frames_towards(&topology, Witnesses::default().frames(&topology.pod, "eth0"));
    contained(&topology, &sandbox, &mut out, &mut into);
}

/// `status` says `partial`, gives a reason, and names one of these words in it.
#[track_caller]
pub(super) fn assert_partial(status: &Value, words: &[&str]) {
    assert_eq!(status["verdict"], "partial", "{status:#}");
    let reasons = status["reasons"].to_string();
    assert!(words.iter().any(|word| reasons.contains(word)), "none of {words:?} in {status:#}");
}

#[test]
fn a_redirect_between_host_ends_is_partial() {
    let topology = Topology::cilium();
    // Without the programs that stop it there: `attacks::ebpf`.
    let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": "off" }));
    let socket = PacketSocket::open(&topology.pod, "eth0");
    let mut out = frames_on(&topology, move |frame| drop(socket.send(frame)));
    let mut to_the_stack = frames_towards(&topology, Witnesses::default().stack(&topology.pod));
    out.assert_all_arrive();
    // Broadcast is not for the stack: an IP datagram to one host in it is dropped on arrival.
    to_the_stack.retain(|name| !name.contains("ff, ff"));
    to_the_stack.assert_all_arrive();
    sandbox.isolate("");
    out.assert_none_arrives();
    to_the_stack.assert_none_arrives();
    assert_partial(&sandbox.status(), &["tc", "redirect"]);
    sandbox.invoke("CHECK").ok();
    // It is no lie: a frame of the peer does reach a packet socket in the pod.
    let leaks = frames_towards(&topology, Witnesses::default().frames(&topology.pod, "eth0")).leaks();
    assert!(leaks.iter().any(|(name, _)| name.contains("peer")), "nothing is open: the verdict is out of date");
    assert!(!leaks.iter().any(|(name, _)| name.contains("node")), "the node's frames meet the guard: {leaks:?}");
}

#[test]
fn a_redirect_that_comes_after_isolation_is_noticed() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    assert_eq!(sandbox.verdict(), "contained");
    topology.node.sh(
        "tc qdisc add dev veth-peer clsact
         tc filter add dev veth-peer ingress protocol all u32 match u32 0 0 action mirred egress redirect dev veth-pod",
    );
    assert_partial(&sandbox.status(), &["tc", "redirect"]);
}

#[test]
fn a_pod_without_a_host_end_is_partial() {
    let topology = Topology::macvlan();
    let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": "off" }));
    let xdp = Mutex::new(XdpSocket::open(&topology.pod, "eth0").unwrap());
    let mut by_xdp = frames_on(&topology, move |frame| drop(xdp.lock().unwrap().send(frame)));
    let mut to_listener = frames_towards(&topology, Witnesses::default().frames(&topology.pod, "eth0"));
    by_xdp.assert_all_arrive();
    sandbox.isolate("");
    assert_partial(&sandbox.status(), &["host", "peer"]);
    sandbox.invoke("CHECK").ok();
    assert!(!by_xdp.leaks().is_empty(), "AF_XDP is closed: the verdict is out of date");
    assert!(!to_listener.leaks().is_empty(), "packet sockets are closed: the verdict is out of date");
}

/// `require` where no host guard is possible is refused before anything is changed.
#[test]
fn a_required_host_guard_that_cannot_be_is_an_error() {
    let topology = Topology::macvlan();
    let sandbox = Sandbox::add_with(&topology, &json!({ "hostGuard": "require" }));
    let send = |number| drop(udp_on(None, PEER4.into()).send_to(&tag(number), &address(PEER4.into(), 9)));
    let mut battery = Battery::new(vec![Attack::new("udp", &topology.pod, send)], Witnesses::outside(&topology));
    battery.assert_all_arrive();
    let before = topology.pod.sh("nft -s list ruleset");
    sandbox.write_mark("");
    let sync = sandbox.quarantine(&["sync"]);
    assert!(!sync.status.success(), "{sync:?}");
    assert!(!sandbox.invoke("CHECK").status.success());
    assert_eq!(topology.pod.sh("nft -s list ruleset"), before);
    battery.assert_all_arrive();
    assert_ne!(sandbox.verdict(), "contained");
}

/// `off` leaves the node alone and says what that costs.
#[test]
fn without_a_host_guard_the_verdict_is_partial() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add_with(&topology, &json!({ "hostGuard": "off" }));
    let socket = PacketSocket::open(&topology.pod, "eth0");
    let mut out = frames_on(&topology, move |frame| drop(socket.send(frame)));
    out.assert_all_arrive();
    sandbox.isolate("");
    out.assert_none_arrives();
    assert_partial(&sandbox.status(), &["host"]);
    assert_eq!(topology.node.sh("nft list ruleset"), "");
}

/// What the reference plugin `bandwidth` makes for a limit on what a pod sends.
pub(super) fn limit_bandwidth(topology: &Topology) {
    topology.node.sh("ip link add bwp0 type ifb
         ip link set bwp0 up
         tc qdisc add dev veth-pod ingress
         tc filter add dev veth-pod parent ffff: protocol all u32 match u32 0 0 action mirred egress redirect dev bwp0
         tc qdisc add dev bwp0 root tbf rate 1gbit burst 10mb latency 25ms
         tc qdisc add dev veth-pod root tbf rate 1gbit burst 10mb latency 25ms");
}

/// With such a limit frames from the host's end go through an
/// ifb and come back as if received there. They come back *behind* netfilter's ingress hook, and so pass the host guard by:
/// the pod-side rules alone stop them, and the verdict has to say so.
#[test]
fn a_bandwidth_limit_passes_the_guard_by() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": "off" }));
    limit_bandwidth(&topology);
    let socket = PacketSocket::open(&topology.pod, "eth0");
    let frame = move |number| drop(socket.send(&packet::ethernet(BROADCAST, POD_MAC, 0x88b5, &tag(number))));
    let udp = |number| drop(udp_on(None, PEER4.into()).send_to(&tag(number), &address(PEER4.into(), 9)));
    let attacks = vec![Attack::new("frame", &topology.pod, frame), Attack::new("udp", &topology.pod, udp)];
    let mut out = Battery::new(attacks, Witnesses::outside(&topology));
    out.assert_all_arrive();
    sandbox.isolate("");
    out.assert_none_arrives();
    let status = sandbox.status();
    assert_eq!(status["verdict"], "partial", "{status:#}");
    let codes = status["reasonCodes"].as_array().unwrap();
    assert!(codes.iter().all(|reason| reason["code"] == "tc-redirect"), "{status:#}");
    assert!(codes.iter().any(|reason| reason["text"].as_str().unwrap().contains("a tc redirect on veth-pod")));
    // The control: it is a way past the guard. As soon as the pod-side rules are gone it is open, and called so.
    topology.pod.sh("nft flush ruleset");
    assert!(!out.leaks().is_empty(), "the guard is in the way by now: the verdict is out of date");
    assert_eq!(sandbox.verdict(), "open");
    sandbox.sync();
    out.assert_none_arrives();
    // Without the limit the guard is enough.
    topology.node.sh("tc qdisc del dev veth-pod ingress");
    topology.pod.sh("nft flush ruleset");
    out.assert_none_arrives();
    assert_eq!(sandbox.verdict(), "contained");
}
