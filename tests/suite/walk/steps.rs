//! What may happen: the steps of a walk, by their names.
//!
//! A script stops at its first error and may fail, as what it wants to change may be gone by then.

use super::world::{NAME_KEY, World};

/// Who does it, and what.
enum Act {
    /// Root in the pod, by a shell script: `BELOW` is a namespace below, `POD` the pod's own.
    Pod(&'static str),
    /// Somebody on the node, by a shell script: `PEER` is the peer's namespace, `POD` the pod's.
    Node(&'static str),
    Do(fn(&mut World)),
}

pub(super) struct Step {
    pub(super) name: &'static str,
    /// How often it comes, beside the others.
    pub(super) weight: u64,
    act: Act,
}

impl Step {
    pub(super) fn take(&self, world: &mut World) {
        match self.act {
            Act::Pod(script) => {
                let script = script.replace("BELOW", world.pod.below.name()).replace("POD", world.pod.netns.name());
                // Without a pod there is no root in it.
                if world.pod.runs {
                    let _ = world.pod.netns.try_sh(&script);
                }
            }
            Act::Node(script) => {
                let script = script.replace("PEER", world.peer.name()).replace("POD", world.pod.netns.name());
                let _ = world.node.try_sh(&script);
            }
            Act::Do(act) => act(world),
        }
    }

    pub(super) fn named(name: &str) -> &'static Self {
        STEPS.iter().find(|step| step.name == name).unwrap_or_else(|| panic!("no step is called {name:?}"))
    }
}

const fn pod(name: &'static str, script: &'static str) -> Step {
    Step { name, weight: 2, act: Act::Pod(script) }
}

const fn node(name: &'static str, script: &'static str) -> Step {
    Step { name, weight: 2, act: Act::Node(script) }
}

const fn product(name: &'static str, weight: u64, act: fn(&mut World)) -> Step {
    Step { name, weight, act: Act::Do(act) }
}

pub(super) static STEPS: &[Step] = &[
    // The operator.
    product("mark-id", 4, |world| mark(world, 0, "")),
    product("mark-uid", 4, |world| mark(world, 1, "")),
    product("mark-name", 3, |world| mark(world, 2, "")),
    product("mark-broken", 2, |world| mark(world, 0, "{")),
    product("mark-sealed", 2, |world| mark(world, 1, SEALED)),
    product("mark-allows", 3, |world| mark(world, 0, ALLOWS)),
    product("mark-ports", 2, |world| mark(world, 2, PORTS)),
    product("mark-replaced", 3, |world| {
        for path in world.keys().map(|key| world.mark_path(key)) {
            if let Ok(content) = std::fs::read(&path) {
                std::fs::remove_file(&path).unwrap();
                // The agent puts it back where it sees it gone: then there is no such file to make.
                std::fs::write(&path, content).unwrap();
            }
        }
    }),
    product("unmark", 2, |world| {
        for key in world.keys() {
            let _ = std::fs::remove_file(world.mark_path(key));
        }
    }),
    product("isolate", 6, |world| drop(world.command(&["isolate", &world.pod.id]))),
    product("isolate-sealed", 2, |world| drop(world.command(&["isolate", &world.pod.id, "--sealed"]))),
    product("isolate-name", 2, |world| drop(world.command(&["isolate", &NAME_KEY.replace('_', "/")]))),
    product("release", 2, |world| drop(world.command(&["release", &world.pod.id]))),
    product("sync", 10, |world| drop(world.command(&["sync"]))),
    product("agent-starts", 3, World::start_agent),
    product("agent-killed", 2, World::kill_agent),
    product("rest", 4, |world| world.settle()),
    // The runtime.
    product("check", 5, |world| drop(world.call("CHECK", &world.pod))),
    product("gc-of-all", 3, |world| world.collect_garbage()),
    product("add-again", 1, |world| drop(world.call("ADD", &world.pod))),
    product("del", 1, |world| world.del(&world.pod)),
    product("recreated", 6, |world| {
        world.del(&world.pod);
        world.pod.netns.delete();
        world.pod = world.add(0);
    }),
    product("netns-ends", 1, |world| {
        world.pod.netns.delete();
        world.pod.below.delete();
        world.pod.runs = false;
    }),
    product("reboot", 3, |world| {
        world.kill_agent();
        let _ = world.node.try_sh("nft flush ruleset");
        for pod in std::iter::once(&mut world.pod).chain(&mut world.twin) {
            pod.netns.delete();
            pod.below.delete();
            pod.runs = false;
        }
        world.twin = None;
        world.pod = world.add(0);
    }),
    product("twin-added", 3, |world| {
        if world.twin.is_none() {
            world.twin = Some(world.add(1));
        }
    }),
    product("twin-deleted", 3, |world| {
        if let Some(twin) = world.twin.take() {
            world.del(&twin);
        }
    }),
    product("twin-marked", 2, |world| {
        if let Some(twin) = &world.twin {
            std::fs::write(world.mark_path(&twin.id), "").unwrap();
        }
    }),
    product("twin-killed", 1, |world| drop(world.twin.take())),
    product("record-damaged", 2, |world| spoil(world, |path| std::fs::write(path, "{\"network\": ").unwrap())),
    product("record-lost", 1, |world| spoil(world, |path| std::fs::remove_file(path).unwrap())),
    product("record-restored", 4, |world| {
        if let Some((path, content)) = world.spoilt.take()
            && path.parent().is_some_and(std::path::Path::exists)
        {
            std::fs::write(path, content).unwrap();
        }
    }),
    // Root in the pod.
    pod("renamed", "ip link set door down; ip link set door name evil0; ip link set evil0 up"),
    pod("renamed-back", "ip link set door down; ip link set door name eth0; ip link set eth0 up"),
    pod(
        "renamed-to-lo",
        "ip link set lo down; ip link set lo name oldlo; ip link set oldlo up
         ip link set door down; ip link set door name lo; ip link set lo up",
    ),
    pod("moved-below", "ip link set door netns BELOW; ip -n BELOW link set door up"),
    pod(
        "renamed-below",
        "ip -n BELOW link set door down; ip -n BELOW link set door name evil0; ip -n BELOW link set door up",
    ),
    pod("moved-back", "ip -n BELOW link set door netns POD; ip link set door up"),
    pod("addressed-below", "ip -n BELOW addr add 10.77.0.2/24 dev door; ip -n BELOW route add default via 10.77.0.1"),
    pod("tables-flushed", "nft flush ruleset"),
    pod("tables-deleted", "nft delete table netdev quarantine; nft delete table inet quarantine"),
    pod("tables-asleep", "for family in netdev inet; do nft add table $family quarantine '{ flags dormant; }'; done"),
    pod(
        "accept-all",
        "nft -a list ruleset | awk '/^table/ { family = $2; table = $3 } /^\\tchain/ { print family, table, $2 }' |
         while read family table chain; do nft insert rule $family $table $chain accept; done",
    ),
    pod("own-veth", "ip link add t0 type veth peer name t1; ip link set t0 up; ip link set t1 up"),
    pod(
        "own-veth-below",
        "ip link add t2 type veth peer name t3 netns BELOW; ip link set t2 up; ip -n BELOW link set t3 up",
    ),
    pod("own-macvlan", "ip link add mv0 link door type macvlan mode bridge; ip link set mv0 up"),
    pod(
        "own-macvlan-below",
        "ip link add mv1 link door netns BELOW type macvlan mode bridge; ip -n BELOW link set mv1 up",
    ),
    pod("own-dummy", "ip link add d0 type dummy; ip link set d0 up"),
    pod("own-bridge", "ip link add br9 type bridge mcast_snooping 0; ip link set br9 up; ip link set door master br9"),
    pod("decoy", "ip link add eth0 type veth peer name decoy; ip link set eth0 up; ip link set decoy up"),
    pod("own-gone", "for own in t0 t2 mv0 mv1 d0 br9 decoy; do ip link del $own 2>/dev/null || true; done"),
    pod(
        "redirect",
        "ip link add t0 type veth peer name t1 || true
         ip link set t0 up; ip link set t1 up
         for pair in 't1 door' 'door t1'; do
             set -- $pair
             tc qdisc add dev $1 clsact
             tc filter add dev $1 ingress protocol all u32 match u32 0 0 action mirred egress redirect dev $2
         done",
    ),
    pod("redirect-gone", "tc qdisc del dev door clsact; tc qdisc del dev t1 clsact"),
    pod("new-mac", "ip link set door address 02:00:00:00:00:99"),
    pod("peers-mac", "ip link set door address 02:00:00:00:00:03"),
    pod("new-address", "ip addr add 10.77.0.99/24 dev door"),
    pod("no-address", "ip addr flush dev door"),
    pod("link-down", "ip link set door down"),
    pod("link-up", "ip link set door up"),
    // The node: udev, an administrator, the main plugin's upgrade.
    node("end-new-mac", "ip link set end-0 address 02:00:00:00:aa:01"),
    node("end-renamed", "ip link set end-0 down; ip link set end-0 name veth-renamed; ip link set end-0 up"),
    node("end-renamed-back", "ip link set end-0 down; ip link set end-0 name veth-pod; ip link set end-0 up"),
    node("end-down", "ip link set end-0 down"),
    node("end-up", "ip link set end-0 up"),
    node("end-to-another-bridge", "ip link set end-0 master br1; ip link set veth-peer master br1"),
    node("end-to-its-bridge", "ip link set end-0 master br0; ip link set veth-peer master br0"),
    node("end-on-no-bridge", "ip link set end-0 nomaster"),
    Step { weight: 1, ..node("end-removed", "ip link del end-0") },
    Step { weight: 1, ..node("end-moved-away", "ip link set end-0 netns PEER; ip -n PEER link set end-0 up") },
    node("end-moved-home", "ip -n PEER link set end-0 netns $(ip netns identify $$); ip link set end-0 master br0 up"),
    node("bridge-new-mac", "ip link set br0 address 02:00:00:00:bb:$(shuf -i 10-99 -n 1)"),
    node("bridge-first-mac", "ip link set br0 address 02:00:00:00:00:01"),
    node("address-more", "ip addr replace 203.0.113.9/32 dev lo; ip addr replace 10.77.0.77/24 dev br0"),
    node("address-less", "ip addr del 10.77.0.77/24 dev br0"),
    node("address-all-gone", "ip addr flush dev br0"),
    node("address-back", "ip addr replace 10.77.0.1/24 dev br0; ip addr replace fd77::1/64 dev br0 nodad"),
    node("route-away", "ip route replace blackhole 10.77.0.2/32; ip -6 route replace blackhole fd77::2/128"),
    node("route-back", "ip route del blackhole 10.77.0.2/32; ip -6 route del blackhole fd77::2/128"),
    node(
        "route-with-source",
        "ip addr replace 203.0.113.9/32 dev lo; ip route replace 10.77.0.0/24 dev br0 src 203.0.113.9",
    ),
    node("rule-added", "ip rule add to 10.77.0.2 lookup 77; ip route replace default dev br0 table 77"),
    node("rule-removed", "ip rule del to 10.77.0.2 lookup 77"),
    Step { weight: 3, ..node("node-flushed", "nft flush ruleset") },
    node("guard-accepts", ACCEPT_IN_GUARD),
    node("guard-asleep", "for table in $(nft list tables netdev | awk '{ print $3 }'); do nft add table netdev $table '{ flags dormant; }'; done"),
    node("rules-saved-and-loaded", "saved=$(nft list ruleset); nft flush ruleset; echo \"$saved\" | nft -f -"),
    node(
        "translated",
        "nft 'add table inet translation; add chain inet translation post { type nat hook postrouting priority srcnat; }
              add rule inet translation post masquerade'",
    ),
    node("announces", "echo 2 >/proc/sys/net/ipv4/conf/all/arp_announce"),
    // Root in the pod does not move it here: before the first look nothing says whose it is (docs/threat-model.md).
    node(
        "more-without-add",
        "ip link add veth-more type veth peer name net1 netns POD
         ip link property add dev veth-more altname end-more; ip -n POD link property add dev net1 altname more
         ip link set veth-more master br0 up; ip -n POD link set net1 up",
    ),
    node("more-renamed", "ip link set end-more down; ip link set end-more name veth-else; ip link set end-more up"),
    node("more-removed", "ip link del end-more"),
    node(
        "node-redirects",
        "tc qdisc replace dev end-0 clsact
         tc filter add dev end-0 ingress protocol all u32 match u32 0 0 action mirred egress redirect dev veth-peer",
    ),
    node(
        "node-redirects-in",
        "tc qdisc replace dev veth-peer clsact
         tc filter add dev veth-peer ingress protocol all u32 match u32 0 0 action mirred egress redirect dev end-0",
    ),
    node("node-redirects-no-more", "tc qdisc del dev veth-peer clsact || true; tc qdisc del dev end-0 clsact"),
];

const SEALED: &str = r#"{"policy": {"loopback": false, "probes": false}}"#;
const PORTS: &str = r#"{"policy": {"probes": {"ports": [8080]}}}"#;
const ALLOWS: &str = r#"{"policy": {"allow": [
    {"direction": "egress", "peer": "10.77.0.3/32", "protocol": "udp", "ports": [443]},
    {"direction": "ingress", "peer": "fd77::/64", "protocol": "tcp", "ports": ["8000-9000"]}]}}"#;
const ACCEPT_IN_GUARD: &str =
    "nft -a list ruleset | awk '/^table netdev quarantine-/ { table = $3 } /^\\tchain/ { print table, $2 }' |
     while read table chain; do nft insert rule netdev $table $chain accept; done";

/// Writes the mark whose key is the pod's so many'th, as an operator's tool would.
fn mark(world: &mut World, key: usize, content: &str) {
    let path = world.mark_path(world.keys()[key]);
    let temporary = path.with_file_name(".mark");
    std::fs::write(&temporary, content).unwrap();
    std::fs::rename(&temporary, &path).unwrap();
}

/// Keeps a copy of the pod's record, and spoils it.
fn spoil(world: &mut World, how: fn(&std::path::Path)) {
    let path = world.record_path();
    if let Ok(content) = std::fs::read(&path)
        && world.spoilt.is_none()
    {
        how(&path);
        world.spoilt = Some((path, content));
    }
}
