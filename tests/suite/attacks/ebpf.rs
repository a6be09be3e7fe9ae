//! Datapaths that take packets past netfilter, and the programs that stop them there.
//!
//! Each cell has its control: without the eBPF layer (`ebpf: off`) the same packets do get through, here or in `attacks::datapaths`.

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use serde_json::json;

use crate::lab::topology::{PEER_MAC, PEER4, POD_MAC, POD4, POD6};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::bpf::{self, Datapath, Way};
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet;
use crate::lab::traffic::server::{Server, http_probe};
use crate::lab::traffic::sockets::PacketSocket;
use crate::lab::traffic::xdp::XdpSocket;
use crate::lab::{Agent, Netns, PATIENCE, Sandbox, Topology, eventually, not_tried, program};

use super::datapaths::{frames_on, frames_towards, limit_bandwidth};

const SHORT: Duration = Duration::from_millis(150);

/// Frames from a packet socket and from AF_XDP in the pod.
pub(super) fn out(topology: &Topology) -> [Battery<'_>; 2] {
    let socket = PacketSocket::open(&topology.pod, "eth0");
    let xdp = Mutex::new(XdpSocket::open(&topology.pod, "eth0").unwrap());
    [
        frames_on(topology, move |frame| drop(socket.send(frame))),
        frames_on(topology, move |frame| drop(xdp.lock().unwrap().send(frame))),
    ]
}

/// Frames to a packet socket in the pod.
pub(super) fn into(topology: &Topology) -> Battery<'_> {
    frames_towards(topology, Witnesses::default().frames(&topology.pod, "eth0"))
}

/// Nothing out, nothing in, probes answered and nobody else.
pub(super) fn is_cut_off(topology: &Topology) {
    for mut battery in out(topology) {
        battery.assert_none_arrives();
    }
    into(topology).assert_none_arrives();
    topology.forget_neighbours();
    for to in [IpAddr::from(POD4), POD6.into()] {
        assert!(http_probe(&topology.node, to, 8080, PATIENCE), "probe of {to}");
        assert!(!http_probe(&topology.peer, to, 8080, SHORT), "the peer reaches {to}");
    }
}

/// All of it goes through.
pub(super) fn is_free(topology: &Topology) {
    for mut battery in out(topology) {
        battery.assert_all_arrive();
    }
    into(topology).assert_all_arrive();
}

#[test]
fn a_tc_redirect_between_host_ends_is_contained() {
    let topology = Topology::cilium();
    let sandbox = Sandbox::add(&topology);
    let _server = Server::start(&topology.pod, 8080);
    is_free(&topology);
    sandbox.isolate("");
    is_cut_off(&topology);
    let status = sandbox.status();
    assert_eq!(status["verdict"], "contained", "{status:#}");
    assert_eq!(status["layers"]["bpf"], true, "{status:#}");
    sandbox.invoke("CHECK").ok();
    sandbox.release();
    is_free(&topology);
    assert_eq!(sandbox.status()["layers"].get("bpf"), None);
}

#[test]
fn a_bandwidth_limit_is_contained() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let _server = Server::start(&topology.pod, 8080);
    limit_bandwidth(&topology);
    is_free(&topology);
    sandbox.isolate("");
    assert_eq!(sandbox.verdict(), "contained", "{:#}", sandbox.status());
    is_cut_off(&topology);
    // The control: of the pod's own frames the rules in it would stop most.
    topology.pod.sh("nft flush ruleset");
    is_cut_off(&topology);
}

/// No end on the host: what comes in is stopped at XDP, before any packet socket; AF_XDP out is open, and said.
#[test]
fn of_a_pod_without_a_host_end_only_af_xdp_gets_out() {
    let topology = Topology::macvlan();
    let sandbox = Sandbox::add(&topology);
    let _server = Server::start(&topology.pod, 8080);
    is_free(&topology);
    sandbox.isolate("");
    let status = sandbox.status();
    if status["reasonCodes"].to_string().contains("ebpf-unsupported") {
        return not_tried("no eBPF program can be attached here");
    }
    assert_eq!(status["verdict"], "partial", "{status:#}");
    assert_eq!(status["reasonCodes"].as_array().unwrap().len(), 1, "{status:#}");
    assert_eq!(status["reasonCodes"][0]["code"], "no-host-peer", "{status:#}");
    let text = status["reasons"][0].as_str().unwrap();
    assert!(text.contains("AF_XDP out") && !text.contains("packet socket"), "{text}");
    assert_eq!(status["layers"]["bpf"], true, "{status:#}");
    into(&topology).assert_none_arrives();
    let [mut by_socket, mut by_xdp] = out(&topology);
    by_socket.assert_none_arrives();
    assert!(!by_xdp.leaks().is_empty(), "AF_XDP is closed: the verdict is out of date");
    drop(by_xdp);
    topology.forget_neighbours();
    for to in [IpAddr::from(POD4), POD6.into()] {
        assert!(http_probe(&topology.node, to, 8080, PATIENCE), "probe of {to}");
        assert!(!http_probe(&topology.peer, to, 8080, SHORT), "the peer reaches {to}");
    }
    sandbox.release();
    is_free(&topology);
    assert_eq!(pins(&sandbox), None);
}

/// Where nothing takes packets past the guard, it is enough, and there is no program; `always` has it all the same.
#[test]
fn programs_are_where_they_are_wanted() {
    let topology = Topology::ptp();
    for (ebpf, layer) in [("auto", None), ("always", Some(true)), ("off", None)] {
        let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": ebpf }));
        sandbox.isolate("");
        let status = sandbox.status();
        let found = status["layers"].get("bpf").and_then(serde_json::Value::as_bool);
        if found.is_none() && status["reasonCodes"].to_string().contains("ebpf-unsupported") {
            not_tried("this kernel has no tcx");
            return;
        }
        assert_eq!((found, status["verdict"].as_str()), (layer, Some("contained")), "{ebpf}: {status:#}");
        sandbox.release();
        sandbox.del();
    }
}

/// What Cilium does: programs at the host's ends that put frames out of another, or straight into its pod; there before the pod is
/// isolated, or put before ours or behind them, or replaced in place while it is.
#[test]
fn a_datapath_of_programs_is_stopped_both_ways() {
    for way in [Way::Out, Way::IntoPeer] {
        let topology = Topology::bridge();
        let node = &topology.node;
        let attach = |from, to, mac, first| Datapath::attach(node, from, to, mac, way, first);
        let Some(to_pod) = attach("veth-peer", "veth-pod", POD_MAC, false) else { return };
        let Some(to_peer) = attach("veth-pod", "veth-peer", PEER_MAC, false) else { return };
        let sandbox = Sandbox::add(&topology);
        let _server = Server::start(&topology.pod, 8080);
        is_free(&topology);
        sandbox.isolate("");
        is_cut_off(&topology);
        let (verdict, codes) = (sandbox.verdict(), || sandbox.status()["reasonCodes"].clone());
        // What is put straight into pods, and was redirected in another before, passes: root there can do that.
        assert_eq!(verdict, if way == Way::Out { "contained" } else { "partial" }, "{way:?}: {:#}", sandbox.status());
        assert_eq!(codes().to_string().contains("neighbour-redirects"), way == Way::IntoPeer, "{:#}", sandbox.status());
        to_pod.replace("veth-pod", POD_MAC, way);
        to_peer.replace("veth-peer", PEER_MAC, way);
        is_cut_off(&topology);
        // Appended: behind ours.
        let _behind = attach("veth-pod", "veth-peer", PEER_MAC, false);
        is_cut_off(&topology);
        assert!(!codes().to_string().contains("ebpf-"), "{way:?}: {:#}", sandbox.status());
        // Before ours, it takes what the pod sends; that is seen, and mended.
        let first = attach("veth-pod", "veth-peer", PEER_MAC, true);
        let status = sandbox.status();
        assert_eq!(status["verdict"], "partial", "{way:?}: {status:#}");
        assert!(codes().to_string().contains("ebpf-not-first"), "{way:?}: {status:#}");
        sandbox.sync();
        assert!(!codes().to_string().contains("ebpf-"), "{way:?}: {:#}", sandbox.status());
        is_cut_off(&topology);
        drop((first, to_pod, to_peer));
        sandbox.release();
    }
}

/// The same datapath by classic filters, which run behind tcx, and are replaced while the pod is isolated; and one that sends all that the
/// pod sends into a tunnel. No probes here: nothing passes.
#[test]
fn classic_filters_and_a_tunnel_are_stopped() {
    let topology = Topology::bridge();
    let node = &topology.node;
    {
        let Some(probe) = Datapath::attach(node, "veth-peer", "veth-pod", POD_MAC, Way::Out, false) else { return };
        drop(probe);
    }
    // What goes into the tunnel comes out at the peer, inside of IP.
    node.sh("ip link add tunnel0 type geneve id 7 remote 10.77.0.3 dstport 6081 || ip link add tunnel0 type vxlan id 7 remote 10.77.0.3 dstport 4789
         ip link set tunnel0 up");
    let sandbox = Sandbox::add(&topology);
    // `tc` finds programs by their pins; where nobody has mounted a bpffs, the product does.
    node.sh("mountpoint -q /sys/fs/bpf || mount -t bpf bpf /sys/fs/bpf");
    for to in ["veth-peer", "tunnel0"] {
        bpf::classic(node, "veth-peer", "veth-pod", POD_MAC, Way::Out);
        bpf::classic(node, "veth-pod", to, PEER_MAC, Way::Out);
        let [mut by_socket, by_xdp] = out(&topology);
        drop(by_xdp);
        by_socket.retain(|name| name.contains(&PEER4.to_string()));
        by_socket.assert_all_arrive();
        into(&topology).assert_all_arrive();
        sandbox.isolate_with(&json!({ "probes": false }));
        by_socket.assert_none_arrives();
        into(&topology).assert_none_arrives();
        // What a classic filter runs is not told by its interface: all programs of the machine count, those of other tests too.
        let status = sandbox.status();
        let codes = status["reasonCodes"].as_array().unwrap();
        assert!(codes.iter().all(|reason| reason["code"] == "neighbour-redirects"), "{to}: {status:#}");
        bpf::classic(node, "veth-pod", to, PEER_MAC, Way::Out);
        let [mut by_socket, mut by_xdp] = out(&topology);
        by_socket.assert_none_arrives();
        by_xdp.assert_none_arrives();
        into(&topology).assert_none_arrives();
        sandbox.release();
    }
}

/// The control of the datapaths of programs.
#[test]
fn without_programs_a_datapath_of_programs_leaks_and_is_partial() {
    for way in [Way::Out, Way::IntoPeer] {
        let topology = Topology::bridge();
        let node = &topology.node;
        let Some(_to_pod) = Datapath::attach(node, "veth-peer", "veth-pod", POD_MAC, way, false) else { return };
        let Some(_to_peer) = Datapath::attach(node, "veth-pod", "veth-peer", PEER_MAC, way, false) else { return };
        let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": "off" }));
        sandbox.isolate("");
        assert!(!into(&topology).leaks().is_empty(), "{way:?}: the guard is in the way by now");
        let [mut by_socket, mut by_xdp] = out(&topology);
        assert!(!by_xdp.leaks().is_empty(), "{way:?}: AF_XDP does not get out");
        by_socket.assert_none_arrives();
        let status = sandbox.status();
        assert_eq!(status["verdict"], "partial", "{way:?}: {status:#}");
        assert_eq!(status["layers"].get("bpf"), None, "{status:#}");
    }
}

/// What is left where a datapath puts frames straight into pods: it is said, and it is no lie.
#[test]
fn what_root_in_a_neighbour_redirects_into_the_pod_is_said() {
    let topology = Topology::bridge();
    let node = &topology.node;
    let Some(_to_pod) = Datapath::attach(node, "veth-peer", "veth-pod", POD_MAC, Way::IntoPeer, false) else { return };
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    into(&topology).assert_none_arrives();
    // Frames that the peer sends into a bridge of its own come out of eth0 by mirred.
    topology.peer.sh("ip link add loop0 type veth peer name loop1
         ip link set loop0 up
         ip link set loop1 up
         tc qdisc add dev loop1 clsact
         tc filter add dev loop1 ingress protocol all u32 match u32 0 0 action mirred egress redirect dev eth0");
    let socket = PacketSocket::open(&topology.peer, "loop0");
    let send = move |number| {
        let udp = packet::udp(PEER4.into(), POD4.into(), (9, 9), &tag(number));
        let addresses = (POD4.into(), PEER4.into());
        let _ = socket.send(&packet::ip_frame((POD_MAC, PEER_MAC), addresses, packet::UDP, &udp));
    };
    let attack = || vec![Attack::new("mirred", &topology.peer, &send)];
    let mut at_listener = Battery::new(attack(), Witnesses::default().frames(&topology.pod, "eth0"));
    assert!(!at_listener.leaks().is_empty(), "it is closed: the verdict is out of date");
    let mut at_stack = Battery::new(attack(), Witnesses::default().stack(&topology.pod));
    at_stack.assert_none_arrives();
    let status = sandbox.status();
    assert_eq!(status["verdict"], "partial", "{status:#}");
    assert_eq!(status["reasonCodes"][0]["code"], "neighbour-redirects", "{status:#}");
}

/// A program on a neighbour's end alone, which nothing on the pod's own end shows.
#[test]
fn a_program_on_a_neighbours_end_is_seen() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    assert_eq!(sandbox.verdict(), "contained");
    let attach = || Datapath::attach(&topology.node, "veth-peer", "veth-pod", POD_MAC, Way::Out, false);
    let Some(_to_pod) = attach() else { return };
    assert!(!into(&topology).leaks().is_empty(), "the control: it leads into the pod");
    let status = sandbox.status();
    assert_eq!(status["verdict"], "partial", "{status:#}");
    sandbox.sync();
    into(&topology).assert_none_arrives();
    assert_eq!(sandbox.verdict(), "contained", "{:#}", sandbox.status());
}

/// Where the programs of a sandbox are pinned.
pub(super) fn pins(sandbox: &Sandbox<'_>) -> Option<PathBuf> {
    let nodes = std::fs::read_dir("/sys/fs/bpf/quarantine").ok()?.flatten();
    nodes.map(|node| node.path().join(sandbox.id())).find(|pins| pins.is_dir())
}

/// The pins of its links.
pub(super) fn links(sandbox: &Sandbox<'_>) -> Vec<PathBuf> {
    let pins = pins(sandbox).unwrap_or_else(|| panic!("nothing is pinned: {:#}", sandbox.status()));
    let entries = std::fs::read_dir(pins).unwrap().map(|entry| entry.unwrap().path());
    let mut links: Vec<_> = entries.filter(|path| path.to_str().unwrap().contains("/link-")).collect();
    links.sort();
    links
}

/// A sandbox on a datapath that redirects, isolated, with its programs in place; `None` where the kernel takes none.
fn isolated(topology: &Topology) -> Option<Sandbox<'_>> {
    let sandbox = Sandbox::add(topology);
    sandbox.isolate("");
    if sandbox.status()["reasonCodes"].to_string().contains("ebpf-unsupported") {
        not_tried("no eBPF program can be attached here");
        return None;
    }
    assert_eq!(sandbox.verdict(), "contained", "{:#}", sandbox.status());
    Some(sandbox)
}

/// What the kernel takes off is in the way until it has waited for all who run it: seconds, on a node that is busy with network namespaces.
#[test]
fn what_is_released_passes_while_the_kernel_still_has_its_programs() {
    let topology = Topology::cilium();
    let _server = Server::start(&topology.pod, 8080);
    let Some(sandbox) = isolated(&topology) else { return };
    // They do not come off as long as somebody has them open.
    let held: Vec<_> = links(&sandbox).iter().map(|link| bpf::pinned(link)).collect();
    assert_eq!(held.len(), 3);
    is_cut_off(&topology);
    sandbox.release();
    is_free(&topology);
    drop(held);
}

/// Somebody on the node takes programs off: each by itself, and all of them with their pins. It is seen, and mended.
#[test]
fn programs_that_are_taken_off_are_noticed_and_put_back() {
    let topology = Topology::cilium();
    let _server = Server::start(&topology.pod, 8080);
    let Some(sandbox) = isolated(&topology) else { return };
    assert_eq!(links(&sandbox).len(), 3);
    let is_mended = |what: &str| {
        let status = sandbox.status();
        assert_eq!(status["verdict"], "partial", "{what}: {status:#}");
        assert!(status["reasonCodes"].to_string().contains("ebpf-missing"), "{what}: {status:#}");
        sandbox.sync();
        assert_eq!(sandbox.verdict(), "contained", "{what}: {:#}", sandbox.status());
        is_cut_off(&topology);
    };
    for link in links(&sandbox) {
        bpf::detach(&link);
        is_mended(&format!("{} was detached", link.display()));
    }
    std::fs::remove_dir_all(pins(&sandbox).unwrap()).unwrap();
    is_mended("all pins were removed");
    // Nobody but root may look at them.
    let mode = std::fs::metadata(pins(&sandbox).unwrap()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
    sandbox.release();
    assert_eq!(pins(&sandbox), None, "what was pinned is left");
}

/// The bpffs is unmounted, and with it goes all that is pinned there; it is mounted where it is not. In a mount namespace of the
/// test's own.
#[test]
fn a_bpffs_that_is_unmounted_is_noticed_and_mounted() {
    let topology = Topology::cilium();
    {
        // What is tried below is not tried where the kernel takes no program.
        let Some(sandbox) = isolated(&topology) else { return };
        sandbox.release();
        sandbox.del();
    }
    let sandbox = Sandbox::add(&topology);
    sandbox.write_mark("");
    let quarantine = |verb: &str| format!("{} {verb} --state-dir {}", program(), sandbox.state_dir());
    let (sync, status) = (quarantine("sync"), quarantine(&format!("status {} -o json", sandbox.id())));
    let script = format!(
        "umount -a -t bpf || true; {sync}; grep -c ' /sys/fs/bpf bpf ' /proc/mounts; {status} | tr -d '\\n'; echo
         umount /sys/fs/bpf; {status} | tr -d '\\n'; echo
         {sync}; {status} | tr -d '\\n'; echo"
    );
    let mut command = topology.node.command("unshare");
    let output = command.args(["--mount", "--propagation", "private", "sh", "-c", &script]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<_> = text.lines().collect();
    let [mounted, first, unmounted, again] = lines[..] else { panic!("{text}") };
    let verdict = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap()["verdict"].clone();
    assert_eq!(mounted, "1", "{text}");
    assert_eq!([verdict(first), verdict(unmounted), verdict(again)], ["contained", "partial", "contained"], "{text}");
    // That namespace is gone, and what was pinned in it.
    assert_eq!(sandbox.verdict(), "partial");
}

/// Root in the pod, with CAP_NET_ADMIN, against programs on both ends of its interface.
#[test]
fn root_in_the_pod_takes_no_program_off() {
    let topology = Topology::cilium();
    let _server = Server::start(&topology.pod, 8080);
    let Some(sandbox) = isolated(&topology) else { return };
    for trick in [
        "ip link set eth0 xdp off || true; ip link set eth0 xdpgeneric off || true; ip link set eth0 xdpdrv off || true",
        "tc qdisc add dev eth0 clsact; tc filter add dev eth0 egress matchall action mirred egress redirect dev eth0 || true; \
         tc qdisc del dev eth0 clsact",
        "ip link set eth0 down; ip link set eth0 up; ip link set eth0 mtu 1400; ip link set eth0 mtu 1500",
        "ip link set eth0 down; ip link set eth0 name other; ip link set other name eth0; ip link set eth0 up",
        "ip link add link eth0 name mv0 type macvlan mode bridge; ip link set mv0 up; ip link set mv0 promisc on",
        "nft flush ruleset",
    ] {
        topology.pod.sh(trick);
        let socket = PacketSocket::open(&topology.pod, "eth0");
        frames_on(&topology, move |frame| drop(socket.send(frame))).assert_none_arrives();
        into(&topology).assert_none_arrives();
        let codes = sandbox.status()["reasonCodes"].to_string();
        assert!(!codes.contains("ebpf-"), "{trick}: {codes}");
    }
    // Its end of the veth is moved into a netns below, and the programs go with it.
    let below = Netns::new("below");
    let address = below.path();
    topology.pod.sh(&format!("ip link del mv0; ip link set eth0 netns {}", address.display()));
    below.sh("ip link set eth0 up");
    frames_towards(&topology, Witnesses::default().frames(&below, "eth0")).assert_none_arrives();
    assert!(!sandbox.status()["reasonCodes"].to_string().contains("ebpf-"), "{:#}", sandbox.status());
}

/// The agent looks again and again: nobody tells it.
#[test]
fn the_agent_puts_programs_back() {
    let topology = Topology::cilium();
    let Some(sandbox) = isolated(&topology) else { return };
    let agent = Agent::start(&topology.node, Path::new(sandbox.state_dir()));
    let is_whole = || eventually(PATIENCE, || sandbox.verdict() == "contained");
    // Of what it finds at its first look it cannot say whether that was ever otherwise; this is a later one.
    sandbox.write_mark(r#"{"policy": {"probes": false}}"#);
    agent.await_line(&["event=updated", sandbox.id()]);
    assert!(is_whole(), "{:#}", sandbox.status());
    bpf::detach(&links(&sandbox)[0]);
    agent.await_line(&["event=repaired", sandbox.id()]);
    assert!(is_whole(), "{:#}", sandbox.status());
    let first = Datapath::attach(&topology.node, "veth-pod", "veth-peer", PEER_MAC, Way::Out, true);
    agent.await_lines(&["event=repaired", sandbox.id()], 2);
    assert!(is_whole(), "{:#}", sandbox.status());
    drop(first);
    // What it leaves when it is killed goes on to hold.
    drop(agent);
    into(&topology).assert_none_arrives();
    assert_eq!(sandbox.verdict(), "contained", "{:#}", sandbox.status());
}
