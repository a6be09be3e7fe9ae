//! Nodes with pods on them, as the main plugins build them, and the `prevResult` that such a plugin would have given.
//!
//! Each topology has the same three players: `node` (stands for the host), `pod` (to be isolated) and `peer` (another
//! pod of the node, attached the same way). Addresses and MACs are the same in all of them, so that an attack is
//! written once: the pod is .2, the peer .3, and what the node is called is in the fields.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde_json::{Value, json};

use netlab::{Route, Veth};

pub(crate) use netlab::text;

use super::{Mac, Netns, PATIENCE, eventually};

/// How the pod's interface is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Two veths in one bridge, which has the node's address.
    Bridge,
    /// A routed veth each, the node's address on its host end (the reference plugin `ptp`).
    Ptp,
    /// A routed veth each, /32 and /128, next hops 169.254.1.1 by proxy ARP and the host end's link-local address.
    Calico,
    /// A macvlan each, and one for the node: no host-side peer.
    Macvlan,
    /// A bridge; in the pod's netns tc hands everything over between eth0 and tap0, where the VM is.
    Kata,
    /// A bridge; tc on the host's ends hands pod-to-pod frames over directly, past netfilter.
    Cilium,
    /// A bridge; eth0 has no address and no kernel stack: a process drives it by AF_PACKET.
    Gvisor,
}

/// One node, two pods.
pub(crate) struct Topology {
    pub(crate) kind: Kind,
    pub(crate) node: Netns,
    pub(crate) pod: Netns,
    pub(crate) peer: Netns,
    /// The node's address that it uses towards the pod.
    pub(crate) node4: Ipv4Addr,
    pub(crate) node6: Ipv6Addr,
    /// The pods' next hop towards the node, as configured in their routes.
    pub(crate) gateway4: Ipv4Addr,
    pub(crate) gateway6: Ipv6Addr,
    /// Where the pod's frames for the node go.
    pub(crate) node_mac: Mac,
    /// Where the pod's frames for the peer go: the peer, or the host's end where that routes.
    pub(crate) peer_hop_mac: Mac,
    /// Where the peer's frames for the pod go.
    pub(crate) pod_hop_mac: Mac,
}

pub(crate) const POD4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);
pub(crate) const PEER4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 3);
pub(crate) const POD6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 2);
pub(crate) const PEER6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 3);
pub(crate) const POD_MAC: Mac = [2, 0, 0, 0, 0, 2];
pub(crate) const PEER_MAC: Mac = [2, 0, 0, 0, 0, 3];
const NODE_MAC: Mac = [2, 0, 0, 0, 0, 1];
const CALICO_MAC: Mac = [0xee; 6];

/// The node's end of the pod's veth, where there is one.
pub(crate) const HOST_END: &str = "veth-pod";

impl Topology {
    pub(crate) fn new(kind: Kind) -> Self {
        match kind {
            Kind::Bridge => Self::bridge(),
            Kind::Ptp => Self::ptp(),
            Kind::Calico => Self::calico(),
            Kind::Macvlan => Self::macvlan(),
            Kind::Kata => Self::kata(),
            Kind::Cilium => Self::cilium(),
            Kind::Gvisor => Self::gvisor(),
        }
    }

    pub(crate) fn bridge() -> Self {
        let topology = Self::on_bridge(Kind::Bridge);
        topology.settle();
        topology
    }

    pub(crate) fn ptp() -> Self {
        let topology = Self::players(Kind::Ptp);
        topology.forward();
        let node = topology.node.links();
        for (pod, host_end, number, mac) in topology.pods() {
            topology.veth(pod, host_end, mac);
            let (v4, v6) = addresses(number);
            node.set_mac(host_end, NODE_MAC);
            node.up(host_end);
            node.add_address(host_end, "10.77.0.1/32");
            node.add_address(host_end, "fd77::1/128");
            node.route(Route::to(v4).dev(host_end).src(topology.node4));
            node.route(Route::to(v6).dev(host_end).src(topology.node6));
            let links = pod.links();
            links.add_address_without_route("eth0", format!("{v4}/24"));
            links.add_address_without_route("eth0", format!("{v6}/64"));
            links.route(Route::to(topology.node4).dev("eth0").src(v4));
            links.route(Route::to("10.77.0.0/24").via(topology.node4).dev("eth0").src(v4));
            links.route(Route::default_via(topology.node4));
            links.route(Route::to(topology.node6).dev("eth0"));
            links.route(Route::to("fd77::/64").via(topology.node6).dev("eth0"));
            links.route(Route::default_via(topology.node6));
        }
        topology.settle();
        topology
    }

    pub(crate) fn calico() -> Self {
        let topology = Self {
            node4: Ipv4Addr::new(192, 0, 2, 10),
            node6: Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 0x10),
            gateway4: Ipv4Addr::new(169, 254, 1, 1),
            gateway6: Ipv6Addr::new(0xfe80, 0, 0, 0, 0xecee, 0xeeff, 0xfeee, 0xeeee),
            node_mac: CALICO_MAC,
            peer_hop_mac: CALICO_MAC,
            pod_hop_mac: CALICO_MAC,
            ..Self::players(Kind::Calico)
        };
        topology.forward();
        // The node's own address and its default route, which is why it answers for 169.254.1.1.
        let node = topology.node.links();
        node.add_pair("uplink", "wire");
        node.up("wire");
        node.up("uplink");
        node.add_address("uplink", "192.0.2.10/24");
        node.add_address("uplink", "fd78::10/64");
        node.route(Route::default_via(Ipv4Addr::new(192, 0, 2, 1)).dev("uplink"));
        node.route(Route::default_via(Ipv6Addr::new(0xfd78, 0, 0, 0, 0, 0, 0, 1)).dev("uplink"));
        for (pod, host_end, number, mac) in topology.pods() {
            topology.veth(pod, host_end, mac);
            node.set_mac(host_end, CALICO_MAC);
            node.up(host_end);
            topology.node.sysctl(&format!("net.ipv4.conf.{host_end}.proxy_arp"), "1");
            topology.node.sysctl(&format!("net.ipv4.neigh.{host_end}.proxy_delay"), "0");
            let (v4, v6) = addresses(number);
            node.route(Route::to(v4).dev(host_end));
            node.route(Route::to(v6).dev(host_end));
            let links = pod.links();
            links.add_address("eth0", format!("{v4}/32"));
            links.add_address("eth0", format!("{v6}/128"));
            links.route(Route::to(topology.gateway4).dev("eth0"));
            links.route(Route::default_via(topology.gateway4).dev("eth0"));
            links.route(Route::default_via(topology.gateway6).dev("eth0"));
        }
        topology.settle();
        topology
    }

    pub(crate) fn macvlan() -> Self {
        let topology = Self::players(Kind::Macvlan);
        let node = topology.node.links();
        node.add_pair("trunk", "wire");
        node.up("wire");
        node.up("trunk");
        node.add_macvlan("node0", "trunk", NODE_MAC, &topology.node);
        node.up("node0");
        node.add_address("node0", "10.77.0.1/24");
        node.add_address("node0", "fd77::1/64");
        for (pod, _, number, mac) in topology.pods() {
            node.add_macvlan("eth0", "trunk", mac, pod);
            pod.links().up("eth0");
            Self::address(pod, number);
        }
        topology.settle();
        topology
    }

    /// The VM is whoever opens `tap0` in the pod.
    pub(crate) fn kata() -> Self {
        let topology = Self::on_bridge(Kind::Kata);
        topology.pod.sh("ip tuntap add tap0 mode tap
             ip link set tap0 up
             for pair in 'eth0 tap0' 'tap0 eth0'; do
                 set -- $pair
                 tc qdisc add dev $1 clsact
                 tc filter add dev $1 ingress protocol all u32 match u32 0 0 \
                     action mirred egress redirect dev $2
             done");
        topology
    }

    pub(crate) fn cilium() -> Self {
        let topology = Self::on_bridge(Kind::Cilium);
        topology.node.sh(&format!(
            "redirect() {{
                 tc qdisc add dev $1 clsact
                 tc filter add dev $1 ingress protocol all u32 match ether dst $2 \
                     action mirred egress redirect dev $3
             }}
             redirect {HOST_END} {} veth-peer
             redirect veth-peer {} {HOST_END}",
            text(PEER_MAC),
            text(POD_MAC)
        ));
        topology.settle();
        topology
    }

    /// The stack is whoever opens a packet socket in the pod.
    pub(crate) fn gvisor() -> Self {
        let topology = Self::on_bridge(Kind::Gvisor);
        topology.pod.sysctl("net.ipv6.conf.eth0.disable_ipv6", "1");
        topology.pod.ip("addr flush dev eth0");
        topology
    }

    /// What the main plugin of the chain would have given.
    pub(crate) fn prev_result(&self) -> Value {
        let mut interfaces = match self.kind {
            Kind::Macvlan => vec![],
            Kind::Ptp | Kind::Calico => {
                vec![json!({ "name": HOST_END, "mac": text(self.node_mac) })]
            }
            _ => vec![
                json!({ "name": "br0", "mac": text(NODE_MAC) }),
                json!({ "name": HOST_END, "mac": text(self.node.links().mac(HOST_END)) }),
            ],
        };
        let index = interfaces.len();
        interfaces.push(json!({ "name": "eth0", "mac": text(POD_MAC), "sandbox": self.pod.path() }));
        let (length4, length6) = if self.kind == Kind::Calico { (32, 128) } else { (24, 64) };
        json!({
            "cniVersion": "1.1.0",
            "interfaces": interfaces,
            "ips": [
                { "address": format!("{POD4}/{length4}"), "gateway": self.gateway4, "interface": index },
                { "address": format!("{POD6}/{length6}"), "gateway": self.gateway6, "interface": index },
            ],
            "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            "dns": {},
        })
    }

    /// The pod's and the peer's links are routed by the node, not bridged.
    pub(crate) fn routed(&self) -> bool {
        matches!(self.kind, Kind::Ptp | Kind::Calico)
    }

    /// The node's interface through which it reaches the pod.
    pub(crate) fn node_device(&self) -> &'static str {
        match self.kind {
            Kind::Ptp | Kind::Calico => HOST_END,
            Kind::Macvlan => "node0",
            _ => "br0",
        }
    }

    /// The node's address, IPv4 and IPv6.
    pub(crate) fn node_addresses(&self) -> [IpAddr; 2] {
        [self.node4.into(), self.node6.into()]
    }

    /// Forgets every neighbour that was learned, on all three.
    pub(crate) fn forget_neighbours(&self) {
        for netns in [&self.node, &self.pod, &self.peer] {
            netns.sh("ip -4 neigh flush all; ip -6 neigh flush all");
        }
    }

    fn players(kind: Kind) -> Self {
        let (peer_hop_mac, pod_hop_mac) = match kind {
            Kind::Ptp => (NODE_MAC, NODE_MAC),
            _ => (PEER_MAC, POD_MAC),
        };
        Self {
            kind,
            node: Netns::new("node"),
            pod: Netns::new("pod"),
            peer: Netns::new("peer"),
            node4: Ipv4Addr::new(10, 77, 0, 1),
            node6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1),
            gateway4: Ipv4Addr::new(10, 77, 0, 1),
            gateway6: Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1),
            node_mac: NODE_MAC,
            peer_hop_mac,
            pod_hop_mac,
        }
    }

    fn on_bridge(kind: Kind) -> Self {
        let topology = Self::players(kind);
        // The attacker's best case: without snooping the bridge floods all multicast, and where it does not call
        // iptables (which some kernels have built in) it carries malformed frames as they are.
        dont_call_iptables(&topology.node);
        let node = topology.node.links();
        node.add_bridge("br0", Some(NODE_MAC));
        node.up("br0");
        node.add_address("br0", "10.77.0.1/24");
        node.add_address("br0", "fd77::1/64");
        for (pod, host_end, number, mac) in topology.pods() {
            topology.veth(pod, host_end, mac);
            node.set_master(host_end, "br0");
            node.up(host_end);
            Self::address(pod, number);
        }
        topology
    }

    fn pods(&self) -> [(&Netns, &'static str, u8, Mac); 2] {
        [(&self.pod, HOST_END, 2, POD_MAC), (&self.peer, "veth-peer", 3, PEER_MAC)]
    }

    fn veth(&self, pod: &Netns, host_end: &str, mac: Mac) {
        let veth = Veth { name: host_end, mac: None, peer: "eth0", peer_mac: Some(mac), netns: pod };
        self.node.links().add_veth(veth);
        pod.links().up("eth0");
    }

    fn address(pod: &Netns, number: u8) {
        let (links, (v4, v6)) = (pod.links(), addresses(number));
        links.add_address("eth0", format!("{v4}/24"));
        links.add_address("eth0", format!("{v6}/64"));
        links.route(Route::default_via(Ipv4Addr::new(10, 77, 0, 1)));
        links.route(Route::default_via(Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 1)));
    }

    fn forward(&self) {
        self.node.sysctl("net.ipv4.ip_forward", "1");
        self.node.sysctl("net.ipv6.conf.all.forwarding", "1");
    }

    /// Waits until the node and the peer reach the pod in both families: a carrier takes a moment to come up.
    fn settle(&self) {
        for (netns, name) in [(&self.node, "node"), (&self.peer, "peer")] {
            for address in [IpAddr::from(POD4), POD6.into()] {
                // A refused connection is an answer too: the pod is there.
                let reached = || {
                    let attempt = netns
                        .run(|| std::net::TcpStream::connect_timeout(&(address, 9).into(), Duration::from_millis(200)));
                    attempt.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
                };
                assert!(
                    eventually(PATIENCE, reached),
                    "{:?}: the {name} does not reach the pod at {address}",
                    self.kind
                );
            }
        }
    }
}

/// Keeps iptables out of bridges, where the kernel can have it in.
pub(crate) fn dont_call_iptables(node: &Netns) {
    node.run(|| {
        for family in ["arp", "ip", "ip6"] {
            let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables"), "0");
        }
    });
}

/// The addresses of a pod.
fn addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(10, 77, 0, number), Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, number.into()))
}

#[test]
fn every_topology_can_be_built() {
    use Kind::{Bridge, Calico, Cilium, Gvisor, Kata, Macvlan, Ptp};
    for kind in [Bridge, Ptp, Calico, Macvlan, Kata, Cilium, Gvisor] {
        let topology = Topology::new(kind);
        assert_eq!(topology.kind, kind);
        assert!(topology.prev_result()["interfaces"].as_array().is_some_and(|all| !all.is_empty()));
    }
}
