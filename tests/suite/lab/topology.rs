//! Nodes with pods on them, as the main plugins build them, and the `prevResult` that such a plugin would have given.
//!
//! Each topology has the same three players: `node` (stands for the host), `pod` (to be isolated) and `peer` (another
//! pod of the node, attached the same way). Addresses and MACs are the same in all of them, so that an attack is
//! written once: the pod is .2, the peer .3, and what the node is called is in the fields.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Netns, PATIENCE, eventually};

/// A MAC address.
pub(crate) type Mac = [u8; 6];

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
        for (pod, host_end, number, mac) in topology.pods() {
            topology.veth(pod, host_end, mac);
            topology.node.ip(&format!(
                "link set {host_end} address {} up\n\
                 addr add 10.77.0.1/32 dev {host_end}\n\
                 addr add fd77::1/128 dev {host_end} nodad\n\
                 route add 10.77.0.{number}/32 dev {host_end} src 10.77.0.1\n\
                 route add fd77::{number}/128 dev {host_end} src fd77::1",
                text(NODE_MAC)
            ));
            pod.ip(&format!(
                "addr add 10.77.0.{number}/24 dev eth0 noprefixroute\n\
                 addr add fd77::{number}/64 dev eth0 nodad noprefixroute\n\
                 route add 10.77.0.1 dev eth0 scope link src 10.77.0.{number}\n\
                 route add 10.77.0.0/24 via 10.77.0.1 dev eth0 src 10.77.0.{number}\n\
                 route add default via 10.77.0.1\n\
                 route add fd77::1 dev eth0\n\
                 route add fd77::/64 via fd77::1 dev eth0\n\
                 route add default via fd77::1"
            ));
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
        topology.node.ip("link add uplink type veth peer name wire\n\
             link set wire up\n\
             link set uplink up\n\
             addr add 192.0.2.10/24 dev uplink\n\
             addr add fd78::10/64 dev uplink nodad\n\
             route add default via 192.0.2.1 dev uplink\n\
             route add default via fd78::1 dev uplink");
        for (pod, host_end, number, mac) in topology.pods() {
            topology.veth(pod, host_end, mac);
            topology.node.ip(&format!("link set {host_end} address {} up", text(CALICO_MAC)));
            topology.node.sysctl(&format!("net.ipv4.conf.{host_end}.proxy_arp"), "1");
            topology.node.sysctl(&format!("net.ipv4.neigh.{host_end}.proxy_delay"), "0");
            topology.node.ip(&format!(
                "route add 10.77.0.{number}/32 dev {host_end} scope link\n\
                 route add fd77::{number}/128 dev {host_end}"
            ));
            pod.ip(&format!(
                "addr add 10.77.0.{number}/32 dev eth0\n\
                 addr add fd77::{number}/128 dev eth0 nodad\n\
                 route add 169.254.1.1 dev eth0 scope link\n\
                 route add default via 169.254.1.1 dev eth0\n\
                 route add default via fe80::ecee:eeff:feee:eeee dev eth0"
            ));
        }
        topology.settle();
        topology
    }

    pub(crate) fn macvlan() -> Self {
        let topology = Self::players(Kind::Macvlan);
        topology.node.ip(&format!(
            "link add trunk type veth peer name wire\n\
             link set wire up\n\
             link set trunk up\n\
             link add node0 link trunk address {} type macvlan mode bridge\n\
             link set node0 up\n\
             addr add 10.77.0.1/24 dev node0\n\
             addr add fd77::1/64 dev node0 nodad",
            text(NODE_MAC)
        ));
        for (pod, _, number, mac) in topology.pods() {
            topology.node.ip(&format!(
                "link add eth0 link trunk address {} netns {} type macvlan mode bridge",
                text(mac),
                pod.name()
            ));
            pod.ip("link set eth0 up");
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
                json!({ "name": HOST_END, "mac": mac_of(&self.node, HOST_END) }),
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
        topology.node.sh("for call in /proc/sys/net/bridge/bridge-nf-call-*; do echo 0 > $call || true; done");
        topology.node.ip(&format!(
            "link add br0 address {} type bridge mcast_snooping 0\n\
             link set br0 up\n\
             addr add 10.77.0.1/24 dev br0\n\
             addr add fd77::1/64 dev br0 nodad",
            text(NODE_MAC)
        ));
        for (pod, host_end, number, mac) in topology.pods() {
            topology.veth(pod, host_end, mac);
            topology.node.ip(&format!("link set {host_end} master br0 up"));
            Self::address(pod, number);
        }
        topology
    }

    fn pods(&self) -> [(&Netns, &'static str, u8, Mac); 2] {
        [(&self.pod, HOST_END, 2, POD_MAC), (&self.peer, "veth-peer", 3, PEER_MAC)]
    }

    fn veth(&self, pod: &Netns, host_end: &str, mac: Mac) {
        self.node.ip(&format!(
            "link add {host_end} type veth peer name eth0 address {} netns {}",
            text(mac),
            pod.name()
        ));
        pod.ip("link set eth0 up");
    }

    fn address(pod: &Netns, number: u8) {
        pod.ip(&format!(
            "addr add 10.77.0.{number}/24 dev eth0\n\
             addr add fd77::{number}/64 dev eth0 nodad\n\
             route add default via 10.77.0.1\n\
             route add default via fd77::1"
        ));
    }

    fn forward(&self) {
        self.node.sysctl("net.ipv4.ip_forward", "1");
        self.node.sysctl("net.ipv6.conf.all.forwarding", "1");
    }

    /// Waits until the node and the peer reach the pod in both families: carriers come up in their own time.
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

/// A MAC address as people write it.
pub(crate) fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn mac_of(netns: &Netns, ifname: &str) -> String {
    let links: Value = serde_json::from_str(&netns.sh(&format!("ip -j link show {ifname}"))).unwrap();
    links[0]["address"].as_str().unwrap().to_owned()
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
