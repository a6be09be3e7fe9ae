//! Root with CAP_NET_ADMIN in the pod rearranges the pod's own network namespace at will. The host guard holds.
//!
//! Each test does the same to a released pod first, where the frames must come through by the way that was opened; so
//! it is known that what is stopped later is the quarantine's doing and not a broken trick.

use std::sync::Arc;

use crate::lab::topology::{HOST_END, PEER_MAC, PEER4, PEER6, POD_MAC, POD4, POD6};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet::{self, Arp, BROADCAST, ETH_ARP};
use crate::lab::traffic::sockets::{PacketSocket, address, udp_on};
use crate::lab::{Kind, Mac, Netns, Sandbox, Topology, not_tried};

/// What root does, and the door that it opens by that: an interface, and the MAC that its frames come from.
struct Trick {
    /// A shell script, run in the pod; `BELOW` stands for the name of a namespace that the pod has made.
    script: &'static str,
    device: &'static str,
    mac: Mac,
    /// The door is in the namespace below.
    below: bool,
}

const PLAIN: Trick = Trick { script: "", device: "eth0", mac: POD_MAC, below: false };

/// One pod with the trick done to it.
struct Scene<'a> {
    topology: &'a Topology,
    below: Netns,
    trick: &'a Trick,
}

impl<'a> Scene<'a> {
    fn new(topology: &'a Topology, trick: &'a Trick) -> Self {
        Self { topology, below: Netns::new("below"), trick }
    }

    fn play(&self) {
        self.topology.pod.sh(&self.trick.script.replace("BELOW", self.below.name()));
    }

    fn door(&self) -> &Netns {
        if self.trick.below { &self.below } else { &self.topology.pod }
    }

    /// Frames and datagrams out of the door, to the peer, the node and everybody.
    fn outward(&self) -> Battery<'_> {
        let topology = self.topology;
        let (device, mac) = (self.trick.device, self.trick.mac);
        let socket = Arc::new(PacketSocket::open(self.door(), device));
        let mut attacks = Vec::new();
        let mut frame = |name: &str, make: Box<dyn Fn(u16) -> Vec<u8> + Send + Sync>| {
            let socket = socket.clone();
            attacks.push(Attack::new(name, self.door(), move |number| drop(socket.send(&make(number)))));
        };
        let targets = [
            ("to the peer, v4", topology.peer_hop_mac, PEER4.into(), POD4.into()),
            ("to the peer, v6", topology.peer_hop_mac, PEER6.into(), POD6.into()),
            ("to the node, v4", topology.node_mac, topology.node4.into(), POD4.into()),
            ("to the node, v6", topology.node_mac, topology.node6.into(), POD6.into()),
        ];
        for (name, to_mac, to, from) in targets {
            let udp = move |n| packet::udp(from, to, (9, 9), &tag(n));
            frame(name, Box::new(move |n| packet::ip_frame((to_mac, mac), (to, from), packet::UDP, &udp(n))));
        }
        if !topology.routed() {
            frame("unknown ethertype", Box::new(move |n| packet::ethernet(BROADCAST, mac, 0x88b5, &tag(n))));
            let arp = Arp { operation: 1, sender: (mac, POD4), target: ([0; 6], topology.node4) };
            frame(
                "arp with data behind it",
                Box::new(move |n| packet::ethernet(BROADCAST, mac, ETH_ARP, &[arp.bytes(), tag(n)].concat())),
            );
        }
        Battery::new(attacks, Witnesses::outside(topology))
    }

    /// Frames from the peer and from the node to a packet socket at the door.
    fn inward(&self) -> Battery<'_> {
        let topology = self.topology;
        let (node, peer) = (&topology.node, &topology.peer);
        let mut senders = vec![("from the node", node, topology.node_device(), topology.node_mac)];
        if !topology.routed() {
            senders.push(("from the peer", peer, "eth0", PEER_MAC));
        }
        let mut attacks = Vec::new();
        for (name, netns, device, mac) in senders {
            let socket = Arc::new(PacketSocket::open(netns, device));
            // A bridge sends nothing back to where it came from: not to a MAC that the pod stole from the sender.
            for to in [self.trick.mac, BROADCAST].into_iter().filter(|to| *to != mac) {
                let socket = socket.clone();
                let udp = move |n| packet::udp(PEER4.into(), POD4.into(), (9, 9), &tag(n));
                attacks.push(Attack::new(format!("{name} to {to:02x?}"), netns, move |n| {
                    let frame = packet::ip_frame((to, mac), (POD4.into(), PEER4.into()), packet::UDP, &udp(n));
                    let _ = socket.send(&frame);
                }));
            }
        }
        Battery::new(attacks, Witnesses::default().frames(self.door(), self.trick.device))
    }
}

/// The trick on a released pod; on an isolated one, and again after the product has looked at it; and on one that is
/// isolated only after the trick.
fn holds_against(kind: Kind, trick: &Trick) {
    let topology = Topology::new(kind);
    let scene = Scene::new(&topology, trick);
    let sandbox = Sandbox::add(&topology);
    scene.play();
    let (mut outward, mut inward) = (scene.outward(), scene.inward());
    outward.assert_all_arrive();
    inward.assert_all_arrive();
    sandbox.write_mark("");
    // It may say that it could not do all of it. What it can do from the node it must have done.
    let sync = sandbox.quarantine(&["sync"]);
    for (way, leaks) in [("out", outward.leaks()), ("in", inward.leaks())] {
        assert!(leaks.is_empty(), "{way}, isolated after the trick: {leaks:#?}\n{sync:#?}\n{:#}", sandbox.status());
    }
    assert_ne!(sandbox.verdict(), "open", "isolated after the trick: {sync:#?}");

    let topology = Topology::new(kind);
    let scene = Scene::new(&topology, trick);
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    scene.play();
    scene.outward().assert_none_arrives();
    scene.inward().assert_none_arrives();
    // A repair may succeed or say that it cannot; either way it must not let go of what holds.
    let sync = sandbox.quarantine(&["sync"]);
    for (way, leaks) in [("out", scene.outward().leaks()), ("in", scene.inward().leaks())] {
        assert!(leaks.is_empty(), "{way}, after the repair: {leaks:#?}\n{sync:#?}\n{:#}", sandbox.status());
    }
    assert_ne!(sandbox.verdict(), "open", "after {sync:?}");
}

macro_rules! tricks {
    ($($name:ident: $kind:ident, $trick:expr;)*) => {
        $(#[test] fn $name() { holds_against(Kind::$kind, &$trick); })*
    };
}

const FLUSH: &str = "nft flush ruleset";
const RENAME: &str = "ip link set eth0 down
    ip link set eth0 name evil0
    ip link set evil0 up
    ip -6 addr add fd77::2/64 dev evil0 nodad";

tricks! {
    flush_on_a_bridge: Bridge, Trick { script: FLUSH, ..PLAIN };
    flush_on_ptp: Ptp, Trick { script: FLUSH, ..PLAIN };
    flush_on_calico: Calico, Trick { script: FLUSH, ..PLAIN };
    delete_each_table: Bridge, Trick {
        script: "nft delete table netdev quarantine; nft delete table inet quarantine", ..PLAIN
    };
    put_the_tables_to_sleep: Bridge, Trick {
        script: "for family in netdev inet; do
                     nft add table $family quarantine '{ flags dormant; }'
                 done", ..PLAIN
    };
    accept_all_in_the_tables_own_chains: Bridge, Trick {
        script: "nft -a list ruleset | awk '/^table/ { family = $2; table = $3 } /^\\tchain/ { print family, table, $2 }' |
                 while read family table chain; do nft insert rule $family $table $chain accept; done", ..PLAIN
    };
    rename_on_a_bridge: Bridge, Trick { script: RENAME, device: "evil0", ..PLAIN };
    rename_on_ptp: Ptp, Trick { script: RENAME, device: "evil0", ..PLAIN };
    rename_on_calico: Calico, Trick { script: RENAME, device: "evil0", ..PLAIN };
    rename_and_put_another_in_its_place: Bridge, Trick {
        script: "ip link set eth0 down
                 ip link set eth0 name evil0
                 ip link set evil0 up
                 ip link add eth0 type veth peer name decoy
                 ip link set eth0 address 02:00:00:00:00:02 up
                 ip link set decoy up", device: "evil0", ..PLAIN
    };
    link_down_and_up: Bridge, Trick {
        script: "ip link set eth0 down
                 ip link set eth0 up
                 ip -6 addr add fd77::2/64 dev eth0 nodad", ..PLAIN
    };
    a_new_address_and_mac: Bridge, Trick {
        script: "ip link set eth0 down
                 ip link set eth0 address 02:00:00:00:00:99 up
                 ip addr add 10.77.0.99/24 dev eth0", mac: [2, 0, 0, 0, 0, 0x99], ..PLAIN
    };
    the_peers_mac: Bridge, Trick {
        script: "ip link set eth0 address 02:00:00:00:00:03
                 ip addr add 10.77.0.3/24 dev eth0", mac: PEER_MAC, ..PLAIN
    };
    a_macvlan_on_top: Bridge, Trick {
        script: "ip link add mv0 link eth0 address 02:00:00:00:00:50 type macvlan mode bridge
                 ip link set mv0 up
                 ip addr add 10.77.0.50/24 dev mv0", device: "mv0", mac: [2, 0, 0, 0, 0, 0x50], ..PLAIN
    };
    a_macvlan_given_below: Bridge, Trick {
        script: "ip link add mv0 link eth0 address 02:00:00:00:00:50 netns BELOW type macvlan mode bridge
                 ip -n BELOW link set mv0 up", device: "mv0", mac: [2, 0, 0, 0, 0, 0x50], below: true
    };
    a_bridge_on_top: Bridge, Trick {
        script: "ip link add br9 address 02:00:00:00:00:50 type bridge mcast_snooping 0
                 ip link set eth0 master br9
                 ip link set br9 up", device: "br9", mac: [2, 0, 0, 0, 0, 0x50], ..PLAIN
    };
    a_namespace_below_with_a_bridge: Bridge, Trick {
        script: "ip link add br9 type bridge mcast_snooping 0
                 ip link add v9 type veth peer name eth9 address 02:00:00:00:00:50 netns BELOW
                 ip link set eth0 master br9
                 ip link set v9 master br9
                 ip link set v9 up
                 ip link set br9 up
                 ip -n BELOW link set eth9 up", device: "eth9", mac: [2, 0, 0, 0, 0, 0x50], below: true
    };
    a_tc_redirect_of_its_own: Bridge, Trick {
        script: "ip link add t0 type veth peer name t1
                 ip link set t0 address 02:00:00:00:00:50 up
                 ip link set t1 up
                 for pair in 't1 eth0' 'eth0 t1'; do
                     set -- $pair
                     tc qdisc add dev $1 clsact
                     tc filter add dev $1 ingress protocol all u32 match u32 0 0 action mirred egress redirect dev $2
                 done", device: "t0", mac: [2, 0, 0, 0, 0, 0x50], ..PLAIN
    };
    a_name_that_is_no_text: Bridge, Trick {
        script: "name=$(printf 'e\\377\"$x')
                 ip link set eth0 down
                 ip link set eth0 name \"$name\"
                 ip link set \"$name\" up
                 ip link add eth9 link \"$name\" address 02:00:00:00:00:50 type macvlan mode bridge
                 ip link set eth9 up", device: "eth9", mac: [2, 0, 0, 0, 0, 0x50], ..PLAIN
    };
    the_name_of_the_loopback: Bridge, Trick {
        script: "ip link set lo down
                 ip link set lo name oldlo
                 ip link set eth0 down
                 ip link set eth0 name lo
                 ip link set lo up
                 ip -6 addr add fd77::2/64 dev lo nodad", device: "lo", ..PLAIN
    };
    tables_full_of_rules: Bridge, Trick {
        script: "nft flush ruleset
                 (for family in inet netdev; do
                      echo add table $family quarantine
                      for i in $(seq 1 200); do echo add chain $family quarantine c$i; done
                      for i in $(seq 1 20000); do echo add rule $family quarantine c1 counter; done
                  done) | nft -f -", ..PLAIN
    };
    tables_that_root_owns: Bridge, Trick {
        script: "nft flush ruleset
                 (echo 'add table inet quarantine { flags owner; }
                        add table netdev quarantine { flags owner; }'; exec sleep 60) 2>/dev/null | nft -i >/dev/null 2>&1 &
                 until nft list tables | grep -q 'netdev quarantine'; do :; done", ..PLAIN
    };
    chains_that_are_in_the_way: Bridge, Trick {
        script: "nft flush ruleset
                 nft -f - <<'END'
                 table netdev quarantine {
                     set flows4 { type ipv4_addr; }
                     chain ingress-eth0 { accept; }
                     chain egress-eth0 { type filter hook egress device eth0 priority 0; policy accept; jump ingress-eth0; }
                 }
                 table inet quarantine { chain input { accept; }; chain use { jump input; }; }
END", ..PLAIN
    };
    forwarding_past_the_egress_hook: Bridge, Trick {
        script: "ip link add t0 type veth peer name t1
                 ip link set t0 address 02:00:00:00:00:50 up
                 ip link set t1 up
                 nft -f - <<'END'
                 table netdev evil {
                     chain out { type filter hook ingress device t1 priority 0; fwd to eth0; }
                     chain in { type filter hook ingress device eth0 priority -1000; fwd to t1; }
                 }
END", device: "t0", mac: [2, 0, 0, 0, 0, 0x50], ..PLAIN
    };
    a_crowd_of_interfaces_to_hide_in: Bridge, Trick {
        // 140 veths that lead below come first by every order; the real one has the highest index and another name.
        script: "(for i in $(seq 1 140); do
                      echo link add c$i type veth peer name d$i netns BELOW
                  done) | ip -batch -
                 ip link set eth0 down
                 ip link set eth0 netns BELOW
                 ip -n BELOW link set eth0 name evil0
                 ip -n BELOW link set evil0 netns $(ip netns identify $$ | head -1)
                 ip link set evil0 up", device: "evil0", ..PLAIN
    };
    the_interface_moved_below: Bridge, Trick {
        script: "ip link set eth0 netns BELOW
                 ip -n BELOW link set eth0 up", below: true, ..PLAIN
    };
    the_interface_moved_below_under_another_name: Calico, Trick {
        script: "ip link set eth0 down
                 ip link set eth0 name evil0 netns BELOW
                 ip -n BELOW link set evil0 up", device: "evil0", mac: POD_MAC, below: true
    };
}

/// Interfaces of kinds that not every kernel has. Which of them this one lacks is said, so that nobody takes a kernel
/// without them for a proof.
#[test]
fn whatever_else_can_be_put_on_top() {
    const ON_TOP: [(&str, Trick); 3] = [
        (
            "vlan",
            Trick {
                script: "ip link add link eth0 name top0 type vlan id 5
                         ip link set top0 up",
                device: "top0",
                ..PLAIN
            },
        ),
        (
            "ipvlan",
            Trick {
                script: "ip link add link eth0 name top0 type ipvlan mode l2
                         ip link set top0 up",
                device: "top0",
                ..PLAIN
            },
        ),
        (
            "bond",
            Trick {
                script: "ip link add top0 type bond mode active-backup
                         ip link set eth0 down
                         ip link set eth0 master top0
                         ip link set top0 address 02:00:00:00:00:02 up",
                device: "top0",
                ..PLAIN
            },
        ),
    ];
    for (kind, trick) in ON_TOP {
        let scratch = Netns::new("scratch");
        let tried = scratch.try_sh(&format!(
            "ip link add eth0 type veth peer name eth1
             ip link add link eth0 name top0 type {kind} {}",
            if kind == "vlan" { "id 5" } else { "" }
        ));
        match tried {
            Err(error) if error.contains("Unknown device type") => not_tried(&format!("this kernel has no {kind}")),
            Err(error) => panic!("{kind}: {error}"),
            Ok(_) => holds_against(Kind::Bridge, &trick),
        }
    }
}

/// What leaves in a tunnel is not what a witness sees first; the tag in it is.
#[test]
fn a_tunnel_on_top() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    topology.pod.sh("ip link add vx0 type vxlan id 4 remote 10.77.0.3 dstport 4789 dev eth0; ip link set vx0 up");
    let socket = PacketSocket::open(&topology.pod, "vx0");
    let send = |number| drop(socket.send(&packet::ethernet(BROADCAST, POD_MAC, 0x88b5, &tag(number))));
    let attacks = vec![Attack::new("a frame in vxlan", &topology.pod, send)];
    let mut battery = Battery::new(attacks, Witnesses::outside(&topology));
    battery.assert_all_arrive();
    sandbox.isolate("");
    battery.assert_none_arrives();
    topology.pod.sh("nft flush ruleset");
    battery.assert_none_arrives();
}

/// A pod side that was tampered with is noticed, and repaired by the next look.
#[test]
fn what_root_broke_is_reported_and_repaired() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    let before = sandbox.status();
    assert_eq!(before["verdict"], "contained", "{before:#}");
    topology.pod.sh("nft flush ruleset");
    let broken = sandbox.status();
    assert_eq!(broken["layers"]["pod"], false, "{broken:#}");
    assert_eq!(broken["layers"]["host"], true, "{broken:#}");
    sandbox.sync();
    let repaired = sandbox.status();
    assert_eq!(repaired["verdict"], "contained", "{repaired:#}");
    assert_eq!(repaired["layers"]["pod"], true, "{repaired:#}");
}

/// The host's end without its guard: the pod side holds alone, `status` says so, the next look repairs it.
#[test]
fn a_lost_host_guard_is_reported_and_repaired() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    topology.node.sh("nft flush ruleset");
    let broken = sandbox.status();
    assert_eq!(broken["layers"]["host"], false, "{broken:#}");
    assert_ne!(broken["verdict"], "contained", "frames come in to a packet socket: {broken:#}");
    // What the pod side covers, it covers alone.
    let scene = Scene::new(&topology, &PLAIN);
    scene.outward().assert_none_arrives();
    sandbox.sync();
    let repaired = sandbox.status();
    assert_eq!(repaired["verdict"], "contained", "{repaired:#}");
    scene.inward().assert_none_arrives();
    assert!(topology.node.sh("nft list ruleset").contains(HOST_END));
}

/// A tuple that a probe would have made, put into the pod's own sets by root: the node's side knows no such probe.
#[test]
fn elements_added_to_the_pods_sets_open_nothing() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    // Whatever the sets are called: each is given all it could take.
    topology.pod.sh(&format!(
        "nft list sets | awk '/^table/ {{ family = $2; table = $3 }} /^\\tset/ {{ print family, table, $2 }}' |
         while read family table set; do
             for element in '{PEER4}' '{PEER6}' 'tcp . {PEER4} . 9 . 9' 'udp . {PEER4} . 9 . 9' \
                            'udp . {PEER6} . 9 . 9' '{PEER4} . udp . 9 . 9' '{PEER4} . 9 . 9' \
                            'udp . {node} . 9 . 9' '{node} . udp . 9 . 9'; do
                 nft add element $family $table $set \"{{ $element }}\" 2>/dev/null || true
             done
         done",
        node = topology.node4,
    ));
    let scene = Scene::new(&topology, &PLAIN);
    scene.outward().assert_none_arrives();
    let udp = |number| drop(udp_on(None, PEER4.into()).send_to(&tag(number), &address(PEER4.into(), 9)));
    Battery::new(vec![Attack::new("udp", &topology.pod, udp)], Witnesses::outside(&topology)).assert_none_arrives();
}
