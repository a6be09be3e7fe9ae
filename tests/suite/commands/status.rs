//! `status`: what it claims is what the kernel has, counted truly.

use std::io::{BufRead, BufReader};
use std::net::{TcpStream, UdpSocket};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::{Lab, exits, pod, says};
use crate::lab::topology::{PEER_MAC, PEER4, PEER6, POD4};
use crate::lab::traffic::sockets::{address, raw_ip};
use crate::lab::{Mac, Topology};

fn mac(bytes: Mac) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[test]
fn the_json_has_the_documented_shape() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    let object = [
        "containerID",
        "pod",
        "netns",
        "state",
        "policy",
        "mark",
        "verdict",
        "reasons",
        "reasonCodes",
        "layers",
        "drops",
        "attempts",
        "notes",
        "error",
    ];
    let released = exits(lab.run(&["status", "c1", "-o", "json"]), 0).json();
    assert_eq!(keys(&released), object);
    assert_eq!(released["state"], "released");
    assert_eq!(released["verdict"], "open");
    assert_eq!((&released["policy"], &released["mark"]), (&Value::Null, &Value::Null));
    exits(lab.run(&["isolate", "c1", "--reason", "r", "--case", "c", "--actor", "a"]), 0);
    let isolated = exits(lab.run(&["status", "c1", "-o", "json"]), 0).json();
    assert_eq!(keys(&isolated), object);
    assert_eq!(isolated["pod"], json!({ "namespace": "shop", "name": "web", "uid": "uid-1" }));
    assert_eq!(isolated["netns"], json!(topology.pod.path()));
    assert_eq!((&isolated["state"], &isolated["verdict"]), (&json!("isolated"), &json!("contained")));
    assert_eq!(isolated["layers"], json!({ "pod": true, "host": true }));
    assert_eq!(isolated["policy"], json!({ "loopback": true, "probes": true, "allow": [] }));
    let mark = &isolated["mark"];
    assert_eq!(keys(mark), ["keys", "reason", "case", "actor", "since", "fault"]);
    assert_eq!(
        (&mark["keys"], &mark["reason"], &mark["case"], &mark["actor"], &mark["fault"]),
        (&json!(["uid-1"]), &json!("r"), &json!("c"), &json!("a"), &Value::Null)
    );
    let since = mark["since"].as_str().unwrap();
    assert!(since.len() == 20 && since.ends_with('Z') && since.starts_with("20"), "{since}");
    assert_eq!(keys(&isolated["drops"][0]), ["layer", "interface", "direction", "packets", "bytes"]);
    let node = exits(lab.run(&["status", "-o", "json"]), 0).json();
    assert_eq!(keys(&node), ["sandboxes", "unanswered", "damaged"]);
    assert_eq!(keys(&node["sandboxes"][0]), object);
    let list = exits(lab.run(&["list", "-o", "json"]), 0).json();
    assert_eq!(keys(&list), ["sandboxes", "unanswered", "damaged", "uncovered"]);
    assert_eq!(keys(&list["sandboxes"][0]), object[..6]);
}

#[test]
fn status_says_what_is_left_of_an_isolation_that_was_tampered_with() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    exits(lab.run(&["isolate", "c1"]), 0);
    topology.pod.sh("nft flush ruleset");
    let status = exits(lab.run(&["status", "c1", "-o", "json"]), 0).json();
    assert_eq!((&status["verdict"], &status["layers"]), (&json!("contained"), &json!({ "pod": false, "host": true })));
    topology.node.sh("nft delete table netdev quarantine-c1");
    let status = exits(lab.run(&["status", "c1", "-o", "json"]), 1).json();
    assert_eq!((&status["verdict"], &status["layers"]), (&json!("open"), &json!({ "pod": false, "host": false })));
    assert!(!status["reasons"].as_array().unwrap().is_empty());
    says(&exits(lab.run(&["status"]), 1).stdout, &["open", "c1: eth0"]);
    exits(lab.run(&["sync"]), 0);
    assert_eq!(lab.status("c1")["verdict"], "contained");
    topology.node.sh("nft delete table netdev quarantine-c1");
    let status = exits(lab.run(&["status", "c1", "-o", "json"]), 0).json();
    assert_eq!((&status["verdict"], &status["layers"]), (&json!("partial"), &json!({ "pod": true, "host": false })));
}

/// Chains that are jumped to are known by the jump, and asked for where nothing jumps to them.
#[test]
fn whatever_is_done_to_a_branch_or_beside_it_is_seen_and_put_back() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    let guard = format!("netdev quarantine-{}", "c1");
    let sides = [(&topology.pod, "netdev quarantine", "egress-eth0"), (&topology.node, &guard[..], "from-eth0")];
    for (side, table, base) in sides {
        let branch = format!("{base}/ip");
        let rules = |side: &crate::lab::Netns| side.sh(&format!("nft --stateless list table {table}"));
        // In place before it is isolated, where nothing jumps to it yet; the guard is not there before.
        if table == "netdev quarantine" {
            side.sh(&format!("nft add chain {table} '{branch}'"));
            exits(lab.run(&["isolate", "c1"]), 0);
            assert_eq!(lab.status("c1")["layers"], json!({ "pod": true, "host": true }));
        }
        let whole = rules(side);
        let jump = format!("jump {branch}");
        assert!(whole.contains(&jump), "{whole}");
        // The rule that jumps there, by the handle that it has by now.
        let unjump = format!(
            "nft delete rule {table} {base} handle $(nft -a list chain {table} {base} | sed -n 's|.*{jump} .*# handle ||p')"
        );
        let first = |chain: &str| format!("nft insert rule {table} '{chain}'");
        for trick in [
            unjump.clone(),
            format!("{unjump}; nft flush chain {table} '{branch}'"),
            format!(
                "{unjump}; nft flush chain {table} '{branch}'; nft delete chain {table} '{branch}'
                 nft add chain {table} '{branch}' '{{ type filter hook ingress device lo priority 0; }}'
                 nft add rule {table} '{branch}' accept"
            ),
            format!("{} accept", first(&branch)),
            format!("nft add chain {table} another; nft add rule {table} another accept; {} jump another", first(base)),
            format!("nft add chain {table} '{base}/ip-udp'"),
        ] {
            side.sh(&trick);
            assert_ne!(rules(side), whole, "{trick}");
            assert_ne!(lab.status("c1")["layers"], json!({ "pod": true, "host": true }), "{trick}");
            exits(lab.run(&["sync"]), 0);
            assert_eq!(lab.status("c1")["layers"], json!({ "pod": true, "host": true }), "{trick}");
            assert_eq!(sorted(&rules(side)), sorted(&whole), "{trick}");
        }
    }
}

/// A chain that was added again comes last.
fn sorted(rules: &str) -> Vec<&str> {
    let mut lines: Vec<_> = rules.lines().collect();
    lines.sort_unstable();
    lines
}

#[test]
fn what_is_isolated_without_a_mark_is_not_called_released() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    exits(lab.run(&["isolate", "c1"]), 0);
    std::fs::remove_file(lab.mark("uid-1")).unwrap();
    let status = exits(lab.run(&["status", "c1", "-o", "json"]), 1).json();
    assert_eq!((&status["state"], &status["verdict"]), (&json!("released"), &json!("partial")));
    assert_eq!(status["layers"], json!({ "pod": true, "host": true }));
    exits(lab.run(&["sync"]), 0);
    exits(lab.run(&["status", "c1"]), 0);
}

#[test]
fn attempts_are_counted_truly_and_what_is_allowed_is_none() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    // Resolved beforehand, so that each packet meets the chains of the interface too.
    topology.pod.ip(&format!("neigh replace {PEER4} lladdr {} dev eth0 nud permanent", mac(PEER_MAC)));
    topology.pod.ip(&format!("neigh replace {PEER6} lladdr {} dev eth0 nud permanent", mac(PEER_MAC)));
    exits(lab.run(&["isolate", "c1", "--allow", &format!("egress:{PEER4}:udp:53")]), 0);
    let udp = |address: std::net::IpAddr, port: u16, count: u32| {
        topology.pod.run(|| {
            let any = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any).unwrap();
            (0..count).for_each(|_| assert_eq!(socket.send_to(b"x", (address, port)).unwrap(), 1));
        });
    };
    udp(PEER4.into(), 9999, 7);
    udp(PEER6.into(), 9999, 3);
    udp(PEER4.into(), 53, 5);
    // Never resolved: counted all the same.
    udp("10.77.0.200".parse().unwrap(), 161, 4);
    topology.pod.run(|| {
        TcpStream::connect_timeout(&(PEER4, 443).into(), Duration::from_millis(200)).unwrap_err();
    });
    topology.pod.run(|| {
        let socket = raw_ip(PEER4.into(), 253);
        (0..2).for_each(|_| assert_eq!(socket.send_to(b"x", &address(PEER4.into(), 0)).unwrap(), 1));
    });
    let status = lab.status("c1");
    let attempts = status["attempts"].as_array().unwrap();
    let count = |protocol: &str, address: &str, port: Value| {
        let found: Vec<_> = attempts
            .iter()
            .filter(|attempt| {
                attempt["protocol"] == protocol && attempt["address"] == address && attempt["port"] == port
            })
            .collect();
        assert!(found.len() <= 1, "{found:?}");
        found.first().map(|attempt| attempt["packets"].as_u64().unwrap())
    };
    assert_eq!(count("udp", "10.77.0.3", json!(9999)), Some(7));
    assert_eq!(count("udp", "fd77::3", json!(9999)), Some(3));
    assert_eq!(count("udp", "10.77.0.200", json!(161)), Some(4));
    assert_eq!(count("tcp", "10.77.0.3", json!(443)), Some(1));
    assert_eq!(count("253", "10.77.0.3", Value::Null), Some(2));
    assert_eq!(count("udp", "10.77.0.3", json!(53)), None);
    says(&lab.run(&["status", "c1"]).stdout, &["ATTEMPT", "udp      10.77.0.3", "9999"]);
}

/// The packets that chains of a layer and direction have dropped, by `status` and by `nft`.
fn dropped(lab: &Lab<'_>, layer: &str, direction: &str) -> u64 {
    let status = lab.status("c1");
    let drops = status["drops"].as_array().unwrap();
    let of =
        |drops: &&Value| drops["layer"] == layer && drops["direction"] == direction && drops["interface"] == "eth0";
    let found: Vec<_> = drops.iter().filter(of).collect();
    assert_eq!(found.len(), 1, "{drops:?}");
    found[0]["packets"].as_u64().unwrap()
}

fn counted_by_nft(netns: &crate::lab::Netns, table: &str, chain: &str) -> u64 {
    let listed: Value = serde_json::from_str(&netns.sh(&format!("nft -j list chain netdev {table} {chain}"))).unwrap();
    let last = listed["nftables"].as_array().unwrap().last().unwrap().clone();
    last["rule"]["expr"][0]["counter"]["packets"].as_u64().unwrap()
}

#[test]
fn drops_are_counted_truly() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    topology.pod.ip(&format!("neigh replace {PEER4} lladdr {} dev eth0 nud permanent", mac(PEER_MAC)));
    topology.peer.ip(&format!("neigh replace {POD4} lladdr 02:00:00:00:00:02 dev eth0 nud permanent"));
    exits(lab.run(&["isolate", "c1"]), 0);
    let (out, into) = (dropped(&lab, "pod", "out"), dropped(&lab, "host", "in"));
    let send = |netns: &crate::lab::Netns, to: std::net::Ipv4Addr, count: u32| {
        netns.run(|| {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            (0..count).for_each(|_| assert_eq!(socket.send_to(b"x", (to, 9)).unwrap(), 1));
        });
    };
    send(&topology.pod, PEER4, 11);
    send(&topology.peer, POD4, 13);
    // Besides what was sent there may be the kernel's own chatter, which nft has counted too.
    let agreed = crate::lab::eventually(crate::lab::PATIENCE, || {
        dropped(&lab, "pod", "out") == counted_by_nft(&topology.pod, "quarantine", "egress-eth0")
            && dropped(&lab, "host", "in") == counted_by_nft(&topology.node, "quarantine-c1", "to-eth0")
    });
    assert!(agreed);
    assert!(dropped(&lab, "pod", "out") >= out + 11);
    assert!(dropped(&lab, "host", "in") >= into + 13);
}

#[test]
fn watch_follows_what_changes_and_ends_when_interrupted() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    let mut child = topology
        .node
        .command(crate::lab::program())
        .args(["status", "c1", "--watch", "-o", "json", "--state-dir", lab.state.path().to_str().unwrap()])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut next = || -> Value { serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap() };
    assert_eq!(next()["verdict"], "open");
    exits(lab.run(&["isolate", "c1"]), 0);
    while next()["verdict"] != "contained" {}
    exits(lab.run(&["release", "c1"]), 0);
    while next()["verdict"] != "open" {}
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(0));
}
