//! Sequences of acts of root in the pod and of the node after which a guard may hang on nothing: whatever is called contained lets
//! nothing out, before the product looks again and after it did.

use crate::lab::topology::POD_MAC;
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet::{self, BROADCAST};
use crate::lab::traffic::sockets::PacketSocket;
use crate::lab::{Netns, Sandbox, Topology};

const MORE_MAC: crate::lab::Mac = [2, 0, 0, 0, 0, 0x55];

/// Root in the pod, by a shell script in which `BELOW` is a namespace below.
struct Pod(&'static str);
/// The node, by one in which `POD` is the pod's namespace.
struct Node(&'static str);

enum Act {
    Pod(&'static str),
    Node(&'static str),
    Isolate,
    Sync,
}

impl From<Pod> for Act {
    fn from(Pod(script): Pod) -> Self {
        Self::Pod(script)
    }
}

impl From<Node> for Act {
    fn from(Node(script): Node) -> Self {
        Self::Node(script)
    }
}

const MORE: &str = "ip link add veth-more type veth peer name net1 address 02:00:00:00:00:55 netns POD
     ip link set veth-more master br0 up; ip -n POD link set net1 up";
const MORE_BELOW: &str = "ip link set net1 netns BELOW; ip -n BELOW link set net1 up";
const POD_BELOW: &str = "ip link set eth0 netns BELOW; ip -n BELOW link set eth0 up; nft flush ruleset";

fn take(topology: &Topology, below: &Netns, sandbox: &Sandbox<'_>, act: &Act) {
    match act {
        Act::Pod(script) => drop(topology.pod.sh(&script.replace("BELOW", below.name()))),
        Act::Node(script) => drop(topology.node.sh(&script.replace("POD", topology.pod.name()))),
        Act::Isolate => sandbox.isolate(""),
        Act::Sync => sandbox.sync(),
    }
}

/// Takes the acts on a node of its own. What is called contained after each of the last `looks` has to be so; gives the verdicts.
fn never_better_than_what_arrives(name: &str, acts: &[Act]) -> Vec<String> {
    let (topology, below) = (Topology::bridge(), Netns::new("below"));
    let sandbox = Sandbox::add(&topology);
    let socket = PacketSocket::everywhere(&topology.pod);
    let socket_below = PacketSocket::everywhere(&below);
    let indexes = |netns: &Netns| -> Vec<u32> {
        let links: serde_json::Value = serde_json::from_str(&netns.sh("ip -j link")).unwrap();
        links.as_array().unwrap().iter().map(|link| u32::try_from(link["ifindex"].as_u64().unwrap()).unwrap()).collect()
    };
    let send = |number| {
        for (netns, socket) in [(&topology.pod, &socket), (&below, &socket_below)] {
            for index in indexes(netns) {
                for mac in [POD_MAC, MORE_MAC] {
                    let _ = socket.send_on(index, &packet::ethernet(BROADCAST, mac, 0x88b5, &tag(number)));
                }
            }
        }
    };
    let mut frames = Battery::new(vec![Attack::new("frame", &topology.pod, send)], Witnesses::outside(&topology));
    frames.assert_all_arrive();
    let mut verdicts = Vec::new();
    let mut is_isolated = false;
    for (number, act) in acts.iter().enumerate() {
        take(&topology, &below, &sandbox, act);
        is_isolated |= matches!(act, Act::Isolate);
        if !is_isolated {
            assert!(!frames.leaks().is_empty(), "{name}, {number}: the control");
            continue;
        }
        let verdict = sandbox.verdict();
        let leaks = frames.leaks();
        let status = sandbox.status();
        assert!(
            leaks.is_empty() || status["verdict"] != "contained",
            "{name}, after act {number}: {leaks:?} got through, and the verdict was {verdict}: {status:#}"
        );
        verdicts.push(verdict);
    }
    sandbox.release();
    verdicts
}

macro_rules! sequence {
    ($name:ident: $($act:expr),+ $(,)?; last $last:literal) => {
        #[test]
        fn $name() {
            let verdicts = never_better_than_what_arrives(stringify!($name), &[$($act.into()),+]);
            assert_eq!(verdicts.last().map(String::as_str), Some($last), "{verdicts:?}");
        }
    };
}

// An end that no ADD found, the other end of which is below, gets another name: chains are hooked by name.
sequence! { an_end_without_an_add_is_moved_below_and_renamed:
Node(MORE), Act::Isolate, Pod(MORE_BELOW),
Node("ip link set veth-more down; ip link set veth-more name other; ip link set other up"), Act::Sync, Act::Sync;
last "partial" }

// The same, and it has another address too.
sequence! { an_end_without_an_add_is_moved_below_renamed_and_readdressed:
Node(MORE), Act::Isolate, Pod(MORE_BELOW),
Node("ip link set veth-more down address 02:00:00:00:77:77; ip link set veth-more name other; ip link set other up"),
Act::Sync, Act::Sync;
last "partial" }

// Both the name and the address of the end that ADD found, and its other end is below.
sequence! { a_recorded_end_is_moved_below_renamed_and_readdressed:
Act::Isolate, Pod(POD_BELOW),
Node("ip link set veth-pod down address 02:00:00:00:77:77; ip link set veth-pod name other; ip link set other up"),
Act::Sync, Act::Sync;
last "partial" }

// The ends of two pods change names.
sequence! { the_ends_of_two_pods_change_names:
Act::Isolate, Pod(POD_BELOW),
Node("ip link set veth-pod down; ip link set veth-peer down; ip link set veth-pod name x; ip link set veth-peer name veth-pod
      ip link set x name veth-peer; ip link set veth-pod up; ip link set veth-peer up"),
Act::Sync, Act::Sync;
last "contained" }

// The end goes to another namespace and comes back, perhaps with another index.
sequence! { an_end_goes_away_and_comes_back:
Act::Isolate, Pod("nft flush ruleset"),
Node("ip netns add POD-away; ip link set veth-pod netns POD-away; ip -n POD-away link set veth-pod netns $(ip netns identify $$)
      ip netns del POD-away; ip link set veth-pod master br0 up"),
Act::Sync, Act::Sync;
last "contained" }

// The pair is made anew under the same names and addresses, without an ADD.
sequence! { a_pair_is_made_anew:
Act::Isolate, Pod("nft flush ruleset"),
Node("ip link del veth-pod; ip link add veth-pod type veth peer name eth0 address 02:00:00:00:00:02 netns POD
      ip link set veth-pod master br0 up; ip -n POD link set eth0 up"),
Act::Sync, Act::Sync;
last "contained" }

// The guard is put to sleep, or kept and hooked elsewhere.
sequence! { a_guard_is_put_to_sleep:
Act::Isolate, Pod(POD_BELOW),
Node("for table in $(nft list tables netdev | awk '{ print $3 }'); do nft add table netdev $table '{ flags dormant; }'; done"),
Act::Sync, Act::Sync;
last "contained" }

// An end that no ADD found comes while it is isolated, is looked at, and goes below; then its name goes to another's end.
sequence! { the_name_of_an_end_without_an_add_goes_to_another:
Node(MORE), Act::Isolate, Pod(MORE_BELOW),
Node("ip link set veth-more down; ip link set veth-more name other; ip link set other up
      ip link add veth-more type veth peer name peer-more; ip link set veth-more up"), Act::Sync, Act::Sync;
last "partial" }

// Its name and its address are new, its other end is below, and a decoy in the pod has its name: the one that is guarded is another.
sequence! { a_decoy_has_the_name_of_an_interface_below:
Node("ip link set veth-pod down address 02:00:00:00:77:77; ip link set veth-pod name other; ip link set other up"),
Pod("ip link set eth0 netns BELOW; ip -n BELOW link set eth0 up
     ip link add eth0 type veth peer name decoy; ip link set eth0 up; ip link set decoy up"),
Act::Isolate, Node(MORE), Act::Sync, Act::Sync;
last "partial" }
