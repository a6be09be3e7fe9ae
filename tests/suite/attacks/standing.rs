//! What is guarded is the sandbox's own, all of it, and for as long as it is there: not an interface that took over an
//! index, and no end less because the sandbox's records say less of it than the kernel.

use serde_json::{Value, json};

use crate::lab::topology::{POD_MAC, text};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet::{self, BROADCAST};
use crate::lab::traffic::sockets::PacketSocket;
use crate::lab::{Call, Mac, Netns, Run, Sandbox, Topology};

const OTHER_MAC: Mac = [2, 0, 0, 0, 0, 0x44];

/// Frames out of an interface, counted where they arrive.
fn frames<'a>(topology: &'a Topology, inside: &'a Netns, interface: &str, mac: Mac) -> Battery<'a> {
    let socket = PacketSocket::open(inside, interface);
    let send = move |number| drop(socket.send(&packet::ethernet(BROADCAST, mac, 0x88b5, &tag(number))));
    Battery::new(vec![Attack::new("frame", inside, send)], Witnesses::outside(topology))
}

fn index_of(netns: &Netns, interface: &str) -> u32 {
    let links: Value = serde_json::from_str(&netns.sh(&format!("ip -j link show {interface}"))).unwrap();
    u32::try_from(links[0]["ifindex"].as_u64().unwrap()).unwrap()
}

/// A pod more on the bridge, made as the reference plugins do it: the pair in the pod's namespace, and then one end is
/// moved to the node. It keeps its index there, if no other has it by then.
fn pod_with_index(topology: &Topology, pod: &Netns, host_end: &str, index: u32) {
    pod.ip(&format!(
        "link add name {host_end} index {index} type veth peer name eth0 address {}\n\
         link set eth0 up\n\
         link set {host_end} netns {}",
        text(OTHER_MAC),
        topology.node.name()
    ));
    topology.node.ip(&format!("link set {host_end} master br0 up"));
    assert_eq!(index_of(&topology.node, host_end), index, "the lab: the index is kept");
}

/// Root in an isolated pod deletes its interface; the next pod's end has its index. It is not cut off for that.
#[test]
fn an_index_that_another_pod_has_by_now_is_not_guarded() {
    for isolated_before in [false, true] {
        let (topology, other) = (Topology::bridge(), Netns::new("other"));
        let sandbox = Sandbox::add(&topology);
        if isolated_before {
            sandbox.isolate("");
        }
        let index = index_of(&topology.node, "veth-pod");
        topology.pod.ip("link del eth0");
        pod_with_index(&topology, &other, "veth-other", index);
        let mut of_other = frames(&topology, &other, "eth0", OTHER_MAC);
        of_other.assert_all_arrive();
        if isolated_before {
            sandbox.sync();
        } else {
            sandbox.isolate("");
        }
        assert!(!of_other.leaks().is_empty(), "the other pod is cut off");
        let status = sandbox.status();
        assert_eq!(
            (status["verdict"].as_str(), status["reasonCodes"][0]["code"].as_str()),
            (Some("partial"), Some("index-taken")),
            "{status:#}"
        );
    }
}

/// What the node renames, or gives another address, is the same end; both at once is, as long as its pair can be seen.
#[test]
fn a_changed_end_is_guarded_as_long_as_it_can_be_told() {
    const NAME: &str = "link set veth-pod down\nlink set veth-pod name other\nlink set other up";
    const ADDRESS: &str = "link set veth-pod address 02:00:00:00:77:77";
    for (change, moved) in [(NAME.to_owned(), true), (ADDRESS.to_owned(), true), (format!("{ADDRESS}\n{NAME}"), false)]
    {
        let (topology, below) = (Topology::bridge(), Netns::new("below"));
        let sandbox = Sandbox::add(&topology);
        topology.node.ip(&change);
        let inside = if moved {
            move_below(&topology, &below, "eth0");
            &below
        } else {
            &topology.pod
        };
        let mut out = frames(&topology, inside, "eth0", POD_MAC);
        out.assert_all_arrive();
        sandbox.isolate("");
        topology.pod.sh("nft flush ruleset");
        out.assert_none_arrives();
        let status = sandbox.status();
        assert_eq!(status["layers"]["host"], true, "{change}: {status:#}");
        assert_eq!(status["verdict"], "contained", "{change}: {status:#}");
    }
}

fn move_below(topology: &Topology, below: &Netns, name: &str) {
    topology.pod.ip(&format!("link set {name} netns {}", below.name()));
    below.ip(&format!("link set {name} up"));
}

/// A runtime that calls ADD again (it restarted, say) finds no interface, for root in the pod has moved it: what the
/// first ADD found still holds.
#[test]
fn an_add_that_is_repeated_forgets_no_end() {
    let (topology, below) = (Topology::bridge(), Netns::new("below"));
    let sandbox = Sandbox::add(&topology);
    move_below(&topology, &below, "eth0");
    let mut out = frames(&topology, &below, "eth0", POD_MAC);
    out.assert_all_arrive();
    sandbox.invoke("ADD").ok();
    sandbox.isolate("");
    out.assert_none_arrives();
    assert_eq!(sandbox.verdict(), "contained", "{:#}", sandbox.status());
}

/// An ADD that fails undoes what it did, and no more: an isolated sandbox stays isolated.
#[test]
fn an_add_that_is_repeated_and_fails_releases_nobody() {
    let topology = Topology::macvlan();
    let sandbox = Sandbox::add(&topology);
    let mut out = frames(&topology, &topology.pod, "eth0", POD_MAC);
    out.assert_all_arrive();
    sandbox.isolate("");
    out.assert_none_arrives();
    let mut config = sandbox.config().clone();
    config["hostGuard"] = json!("require");
    let again = sandbox.invoke_with("ADD", &config);
    assert!(again.stdout.contains("103"), "{again:#?}");
    out.assert_none_arrives();
    sandbox.sync();
    out.assert_none_arrives();
    assert_eq!(sandbox.status()["verdict"], "partial", "{:#}", sandbox.status());
}

/// Root in the pod makes an interface on one of a namespace below, which has no end on the node and looks like a way out.
/// With a host guard required, nothing was isolated for that.
#[test]
fn no_interface_of_the_pods_own_making_prevents_an_isolation() {
    let (topology, below) = (Topology::bridge(), Netns::new("below"));
    let sandbox = Sandbox::add_with(&topology, &json!({ "hostGuard": "require" }));
    below.ip(&format!(
        "link add b0 type veth peer name b1\nlink set b0 up\nlink set b1 up\n\
         link add decoy0 link b0 netns {} type macvlan mode bridge",
        topology.pod.name()
    ));
    topology.pod.ip("link set decoy0 up");
    let mut out = frames(&topology, &topology.pod, "eth0", POD_MAC);
    out.assert_all_arrive();
    sandbox.write_mark("");
    let _ = sandbox.quarantine(&["sync"]);
    out.assert_none_arrives();
    let status = sandbox.status();
    assert_ne!(status["verdict"], "open", "{status:#}");
}

/// The same with what root in the pod puts in the place of the interface, which is below by then; and ADD again.
#[test]
fn a_decoy_under_the_interfaces_name_hides_no_end() {
    for guard in ["auto", "require"] {
        let (topology, below) = (Topology::bridge(), Netns::new("below"));
        let sandbox = Sandbox::add_with(&topology, &json!({ "hostGuard": guard }));
        move_below(&topology, &below, "eth0");
        let mut out = frames(&topology, &below, "eth0", POD_MAC);
        out.assert_all_arrive();
        below.ip(&format!(
            "link add b0 type veth peer name b1\nlink set b0 up\nlink set b1 up\n\
             link add eth7 link b0 netns {} type macvlan mode bridge",
            topology.pod.name()
        ));
        topology.pod.ip("link set eth7 name eth0\nlink set eth0 up");
        sandbox.invoke("ADD").ok();
        sandbox.write_mark("");
        let _ = sandbox.quarantine(&["sync"]);
        out.assert_none_arrives();
        assert_ne!(sandbox.verdict(), "open", "{:#}", sandbox.status());
    }
}

/// An interface that no ADD made is guarded once it was found, and stays so where root in the pod moves it below.
fn second_interface(topology: &Topology, name: &str) {
    topology.node.ip(&format!(
        "link add veth-{name} type veth peer name {name} address {} netns {}\n\
         link set veth-{name} master br0 up",
        text(OTHER_MAC),
        topology.pod.name()
    ));
    topology.pod.ip(&format!("link set {name} up"));
}

#[test]
fn an_end_that_no_add_found_stays_guarded() {
    let (topology, below) = (Topology::bridge(), Netns::new("below"));
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    second_interface(&topology, "eth1");
    sandbox.sync();
    move_below(&topology, &below, "eth1");
    let mut out = frames(&topology, &below, "eth1", OTHER_MAC);
    for _ in 0..2 {
        sandbox.sync();
        out.assert_none_arrives();
        assert_eq!(sandbox.verdict(), "contained", "{:#}", sandbox.status());
    }
    let check = sandbox.invoke("CHECK");
    assert!(check.status.success(), "{check:#?}");
    out.assert_none_arrives();
    // When it is gone, nothing is kept of it.
    topology.node.ip("link del veth-eth1");
    sandbox.sync();
    let table = topology.node.sh("nft list ruleset");
    assert!(!table.contains("eth1"), "{table}");
    assert_eq!(sandbox.verdict(), "contained");
    sandbox.release();
}

/// DEL comes before the main plugin's: until that deletes the interface, it leads out.
#[test]
fn del_of_one_attachment_leaves_its_end_guarded_while_it_is_there() {
    let (topology, below) = (Topology::bridge(), Netns::new("below"));
    let sandbox = Sandbox::add(&topology);
    second_interface(&topology, "eth1");
    call_on(&sandbox, &topology, "ADD", "eth1").ok();
    let mut out = frames(&topology, &topology.pod, "eth1", OTHER_MAC);
    out.assert_all_arrive();
    sandbox.isolate("");
    move_below(&topology, &below, "eth1");
    call_on(&sandbox, &topology, "DEL", "eth1").ok();
    let mut out = frames(&topology, &below, "eth1", OTHER_MAC);
    out.assert_none_arrives();
    sandbox.sync();
    out.assert_none_arrives();
    assert_eq!(sandbox.verdict(), "contained", "{:#}", sandbox.status());
    topology.node.ip("link del veth-eth1");
    sandbox.sync();
    assert_eq!(sandbox.verdict(), "contained", "{:#}", sandbox.status());
    assert!(!topology.node.sh("nft list ruleset").contains("eth1"));
}

fn call_on(sandbox: &Sandbox<'_>, topology: &Topology, verb: &str, name: &str) -> Run {
    let mut config = sandbox.config().clone();
    config["name"] = json!("second");
    config["prevResult"] = json!({
        "cniVersion": "1.1.0",
        "interfaces": [
            { "name": format!("veth-{name}") },
            { "name": name, "mac": text(OTHER_MAC), "sandbox": topology.pod.path() },
        ],
    });
    Call::new(&topology.node, verb).attachment(sandbox.id(), &topology.pod.path(), name).config(&config).run()
}
