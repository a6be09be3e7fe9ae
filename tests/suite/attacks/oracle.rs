//! Random policies against an oracle: a few lines here say what should pass, the kernel is asked by sending.
//!
//! The oracle is written from the design, not from the product: where they differ one of them is wrong. Seeds of
//! failures are kept next to this file and tried first.

use std::net::IpAddr;
use std::time::Duration;

use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use serde_json::{Value, json};

use crate::lab::member::{Member, Privileges, Sort};
use crate::lab::topology::{PEER_MAC, PEER4, PEER6, POD_MAC, POD4, POD6, text};
use crate::lab::traffic::exchange::{Client, Exchange, Protocol, surprises};
use crate::lab::{Cgroup, Netns, Sandbox, Topology, not_tried};

/// Long enough for what passes, which the control of each case shows, and short, for there are a hundred cases.
const SILENCE: Duration = Duration::from_millis(50);
const PORTS: [u16; 4] = [53, 443, 8080, 60_000];
const PEERS: [&str; 9] = [
    "10.77.0.3/32",
    "10.77.0.2/31",
    "10.77.0.0/24",
    "0.0.0.0/0",
    "10.77.0.1/32",
    "192.168.0.0/16",
    "fd77::3/128",
    "fd77::/64",
    "::/0",
];

#[derive(Clone, Debug)]
enum Ports {
    One(u16),
    Range(u16, u16),
}

impl Ports {
    fn contain(&self, port: u16) -> bool {
        match self {
            Self::One(one) => *one == port,
            Self::Range(from, to) => (*from..=*to).contains(&port),
        }
    }

    fn json(&self) -> Value {
        match self {
            Self::One(one) => json!(one),
            Self::Range(from, to) => json!(format!("{from}-{to}")),
        }
    }
}

#[derive(Clone, Debug)]
struct Rule {
    egress: bool,
    peer: &'static str,
    udp: bool,
    ports: Vec<Ports>,
}

#[derive(Clone, Debug)]
enum Probes {
    Any,
    None,
    Ports(Vec<u16>),
}

/// Whose connections are probes, where the policy says it: those of a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum By {
    /// One of root's processes in a cgroup of their own.
    Cgroup,
    /// Any other of root's.
    Root,
}

#[derive(Clone, Debug)]
struct Policy {
    loopback: bool,
    probes: Probes,
    /// Whether only those of the cgroup are.
    only_cgroup: bool,
    allow: Vec<Rule>,
}

impl Policy {
    fn json(&self, cgroup: &str) -> Value {
        let allow = self.allow.iter().map(|rule| {
            json!({
                "direction": if rule.egress { "egress" } else { "ingress" },
                "peer": rule.peer,
                "protocol": if rule.udp { "udp" } else { "tcp" },
                "ports": rule.ports.iter().map(Ports::json).collect::<Vec<_>>(),
            })
        });
        let probes = match (&self.probes, self.only_cgroup) {
            (Probes::None, _) => json!(false),
            (Probes::Any, false) => json!(true),
            (Probes::Any, true) => json!({ "cgroup": cgroup }),
            (Probes::Ports(ports), false) => json!({ "ports": ports }),
            (Probes::Ports(ports), true) => json!({ "ports": ports, "cgroup": cgroup }),
        };
        json!({ "loopback": self.loopback, "probes": probes, "allow": allow.collect::<Vec<_>>() })
    }

    /// May this exchange be opened? `remote` is the other end's address; `by` whom, where it is the node.
    fn passes(&self, egress: bool, by: Option<By>, remote: IpAddr, protocol: Protocol, port: u16) -> bool {
        let is_prober = by.is_some_and(|by| by == By::Cgroup || !self.only_cgroup);
        let probe = is_prober && !egress && protocol == Protocol::Tcp;
        let probed = match &self.probes {
            Probes::Any => true,
            Probes::None => false,
            Probes::Ports(ports) => ports.contains(&port),
        };
        probe && probed
            || self.allow.iter().any(|rule| {
                rule.egress == egress
                    && rule.udp == (protocol == Protocol::Udp)
                    && contains(rule.peer, remote)
                    && rule.ports.iter().any(|ports| ports.contain(port))
            })
    }
}

fn contains(network: &str, address: IpAddr) -> bool {
    let (base, length) = network.split_once('/').unwrap();
    let length: u32 = length.parse().unwrap();
    let shared = |a: u128, b: u128, bits: u32| (a ^ b).leading_zeros() - (128 - bits) >= length;
    match (base.parse().unwrap(), address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => shared(u32::from(base).into(), u32::from(address).into(), 32),
        (IpAddr::V6(base), IpAddr::V6(address)) => shared(base.into(), address.into(), 128),
        _ => false,
    }
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let port = || prop::sample::select(PORTS.to_vec());
    let ports = prop_oneof![
        port().prop_map(Ports::One),
        (port(), port()).prop_map(|(a, b)| Ports::Range(a.min(b), a.max(b))),
        (1..=u16::MAX).prop_map(Ports::One),
        Just(Ports::Range(1, u16::MAX)),
    ];
    let rule = (any::<bool>(), prop::sample::select(PEERS.to_vec()), any::<bool>(), prop::collection::vec(ports, 1..3))
        .prop_map(|(egress, peer, udp, ports)| Rule { egress, peer, udp, ports });
    let probes = prop_oneof![
        Just(Probes::Any),
        Just(Probes::None),
        prop::collection::btree_set(port(), 1..3).prop_map(|ports| Probes::Ports(ports.into_iter().collect())),
    ];
    (any::<bool>(), probes, any::<bool>(), prop::collection::vec(rule, 0..5))
        .prop_map(|(loopback, probes, only_cgroup, allow)| Policy { loopback, probes, only_cgroup, allow })
}

/// Every exchange that there is between the pod and `far`, on a few ports.
fn exchanges<'a>(topology: &'a Topology, far: &'a Netns, addresses: [IpAddr; 2], policy: &Policy) -> Vec<Exchange<'a>> {
    let by = std::ptr::eq(far, &raw const topology.node).then_some(By::Root);
    let mut all = Vec::new();
    for (near, remote) in [IpAddr::from(POD4), POD6.into()].into_iter().zip(addresses) {
        for protocol in [Protocol::Tcp, Protocol::Udp] {
            for port in PORTS {
                for egress in [true, false] {
                    let (client, server, address) =
                        if egress { (&topology.pod, far, remote) } else { (far, &topology.pod, near) };
                    let name = format!("egress {egress}, {remote} {protocol:?} {port}");
                    let expected = policy.passes(egress, by, remote, protocol, port);
                    let client = Client::In(client);
                    all.push(Exchange { name, client, server, address, protocol, port, expected });
                }
            }
        }
    }
    all
}

/// What a process of the node in a cgroup of its own opens to the pod: its sockets, two for each port.
fn of_cgroup<'a>(topology: &'a Topology, prober: &Member, policy: &Policy) -> Vec<Exchange<'a>> {
    let ends = [IpAddr::from(POD4), POD6.into()].into_iter().zip(topology.node_addresses());
    let all = ends.flat_map(|(address, remote)| PORTS.map(|port| (address, remote, port)));
    let exchange = |(number, (address, remote, port)): (usize, (IpAddr, IpAddr, u16))| Exchange {
        name: format!("of the cgroup, to {address} {port}"),
        client: Client::Made(prober.socket(number as i32)),
        server: &topology.pod,
        address,
        protocol: Protocol::Tcp,
        port,
        expected: policy.passes(false, Some(By::Cgroup), remote, Protocol::Tcp, port),
    };
    all.enumerate().map(exchange).collect()
}

/// Everybody knows everybody: finding neighbours is not the question here, and waiting for it takes seconds.
fn introduce(topology: &Topology) {
    let stations = [
        (&topology.node, "br0", topology.node_addresses(), topology.node_mac),
        (&topology.pod, "eth0", [POD4.into(), POD6.into()], POD_MAC),
        (&topology.peer, "eth0", [PEER4.into(), PEER6.into()], PEER_MAC),
    ];
    for (netns, device, own, _) in &stations {
        for (_, _, addresses, mac) in stations.iter().filter(|(_, _, addresses, _)| addresses != own) {
            for address in addresses {
                netns.sh(&format!("ip neigh replace {address} lladdr {} dev {device} nud permanent", text(*mac)));
            }
        }
    }
}

#[test]
fn a_hundred_policies_say_what_the_kernel_does() {
    ask_the_kernel(100, "off", |_| {});
}

/// The same policies by all layers, and by the eBPF programs alone: they are compiled from the same rules.
#[test]
fn policies_mean_the_same_to_programs() {
    if !has_programs() {
        return not_tried("no eBPF program can be attached here");
    }
    ask_the_kernel(25, "always", |_| {});
    ask_the_kernel(25, "always", |topology| {
        topology.node.sh("nft flush ruleset");
        topology.pod.sh("nft flush ruleset");
    });
}

/// Whether the kernel takes the programs at all.
fn has_programs() -> bool {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": "always" }));
    sandbox.isolate("");
    sandbox.status()["layers"]["bpf"] == true
}

/// `prepare` is called between isolating and sending.
fn ask_the_kernel(cases: u32, ebpf: &str, prepare: impl Fn(&Topology)) {
    let topology = Topology::bridge();
    introduce(&topology);
    for netns in [&topology.node, &topology.pod, &topology.peer] {
        // No client is given a port that a server of a later round wants.
        netns.sysctl("net.ipv4.ip_local_port_range", "20000 29999");
    }
    let sandbox = Sandbox::add_with(&topology, &json!({ "ebpf": ebpf }));
    let cgroup = Cgroup::new(&topology.node, "prober.service");
    let sorts: Vec<Sort> = [Sort::Tcp, Sort::Tcp6].into_iter().flat_map(|sort| PORTS.map(|_| sort)).collect();
    let seeds =
        FileFailurePersistence::Direct(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/suite/attacks/oracle.seeds"));
    // Each step of shrinking is a round of sending: a few suffice to read the failure.
    let config =
        Config { cases, max_shrink_iters: 30, failure_persistence: Some(Box::new(seeds)), ..Config::default() };
    let outcome = TestRunner::new(config).run(&any_policy(), |policy| {
        sandbox.isolate_with(&policy.json(cgroup.path()));
        prepare(&topology);
        let mut wrong =
            surprises(&exchanges(&topology, &topology.peer, [PEER4.into(), PEER6.into()], &policy), SILENCE);
        wrong.extend(surprises(&exchanges(&topology, &topology.node, topology.node_addresses(), &policy), SILENCE));
        let prober = Member::start(&cgroup.directory(), &topology.node, Privileges::All, &sorts);
        wrong.extend(surprises(&of_cgroup(&topology, &prober, &policy), SILENCE));
        prop_assert!(wrong.is_empty(), "{}: {wrong:?}", policy.json(cgroup.path()));
        Ok(())
    });
    if let Err(error) = outcome {
        panic!("{error}");
    }
}
