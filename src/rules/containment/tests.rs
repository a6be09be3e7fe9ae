//! The rules as a person reads them, for each kind of policy and place: `testdata/rulesets/*.nft`.
//!
//! `UPDATE_TESTDATA=1 cargo test` writes them anew; what changed is then to be read, as nft text, before it is committed.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv6Addr};
use std::path::Path;
use std::slice;

use super::*;
use crate::model::names::Mac;
use crate::model::policy::{Allow, Direction, Ports};
use crate::model::probes::Prober;
use crate::model::record::NodeOnLink;
use crate::rules::alike::put_together;
use crate::rules::arrange;
use crate::rules::branches::inlined;
use crate::rules::ruleset::Content;
use crate::rules::senders::label;

fn name(text: &str) -> IfName {
    IfName::new(text).unwrap()
}

/// A pod on a bridge, or Calico-style, with an IPv4, an IPv6 and a link-local address.
fn interface(is_routed: bool) -> GuardedInterface {
    let route = |destination: &str, gateway: Option<&str>| crate::model::names::Route {
        destination: destination.parse().unwrap(),
        gateway: gateway.map(|gateway| gateway.parse().unwrap()),
    };
    let routes = if is_routed {
        vec![route("0.0.0.0/0", Some("169.254.1.1")), route("::/0", Some("fe80::ecee:eeff:feee:eeee"))]
    } else {
        vec![
            route("0.0.0.0/0", Some("10.77.0.1")),
            route("10.77.0.0/24", None),
            route("::/0", Some("fd77::1")),
            route("fd77::/64", None),
        ]
    };
    let addresses = ["10.77.0.2", "fd77::2", "fe80::2"].map(|address| address.parse().unwrap()).to_vec();
    let node = if is_routed {
        ["192.0.2.10", "2001:db8::10", "fe80::ecee:eeff:feee:eeee"]
    } else {
        ["10.77.0.1", "fd77::1", "fe80::1"]
    };
    let node = NodeOnLink {
        addresses: node.map(|address| address.parse().unwrap()).to_vec(),
        mac: Mac::parse(if is_routed { "ee:ee:ee:ee:ee:ee" } else { "02:00:00:00:00:01" }),
        neighbours: vec![
            ("10.77.0.9".parse().unwrap(), Mac::parse("02:00:00:00:00:09")),
            ("fd77::9".parse().unwrap(), None),
        ],
    };
    let identity = SandboxInterface { name: name("eth0"), mac: Mac::parse("02:00:00:00:00:02"), addresses, routes };
    GuardedInterface { name: name("eth0"), known: Some((identity, node)) }
}

fn allow(direction: Direction, peer: &str, protocol: Protocol, ports: &[(u16, u16)]) -> Allow {
    Allow { direction, peer: peer.parse().unwrap(), protocol, ports: Ports::new(ports.iter().copied()).unwrap() }
}

fn listed() -> Policy {
    Policy {
        loopback: true,
        probes: Probes::to_ports(Ports::new([(8080, 8080), (9000, 9010)]).unwrap()),
        allow: vec![
            // Through the node, to a neighbour that answers, and to one that does not.
            allow(Direction::Egress, "10.20.0.5/32", Protocol::Tcp, &[(443, 443)]),
            allow(Direction::Ingress, "10.77.0.9/32", Protocol::Udp, &[(53, 53), (5000, 5010)]),
            allow(Direction::Egress, "fd77::9/128", Protocol::Tcp, &[(443, 443)]),
            allow(Direction::Ingress, "::/0", Protocol::Tcp, &[(22, 22)]),
        ],
    }
}

#[test]
fn the_rules_are_as_they_were_read() {
    let guard_of = |policy: &Policy, interface: GuardedInterface, egress| {
        vec![guard(
            &ContainerId::new("c1").unwrap(),
            policy,
            &[GuardedEnd { device: name("veth1"), index: 7, interface }],
            egress,
            policy.probes.prober().map(label),
        )]
    };
    let probes = Probes::On { ports: Ports::new([(8080, 8080)]), prober: Prober::Kubelet };
    let bound = Policy { probes, ..Policy::default() };
    let unknown = GuardedInterface { name: name("net1"), known: None };
    let (standard, bridged, routed) = (Policy::default(), interface(false), interface(true));
    let cases = [
        ("pod-released", frame(&[name("eth0")], EgressHook::Netdev)),
        ("pod-sealed", pod_tables(&Policy::sealed(), slice::from_ref(&bridged), EgressHook::Netdev, false)),
        ("pod-routed", pod_tables(&standard, slice::from_ref(&routed), EgressHook::Netdev, false)),
        (
            "pod-allow-list-and-an-unknown-interface",
            pod_tables(&listed(), &[bridged.clone(), unknown], EgressHook::Netdev, false),
        ),
        ("pod-without-egress-hook", pod_tables(&listed(), slice::from_ref(&bridged), EgressHook::Missing, false)),
        ("guard-bridge", guard_of(&standard, bridged.clone(), EgressHook::Netdev)),
        ("guard-routed", guard_of(&standard, routed, EgressHook::Netdev)),
        ("guard-allow-list", guard_of(&listed(), bridged.clone(), EgressHook::Netdev)),
        ("guard-probes-of-a-cgroup", guard_of(&bound, bridged.clone(), EgressHook::Netdev)),
        ("guard-without-egress-hook", guard_of(&listed(), bridged, EgressHook::Missing)),
    ];
    for (case, tables) in cases {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("testdata/rulesets/{case}.nft"));
        let mut text = String::new();
        for mut table in tables {
            let mut whole = table.clone();
            put_together(&mut whole);
            arrange(&mut table);
            assert_eq!(asked(&table), asked(&whole), "{case}");
            write!(text, "{table}").unwrap();
        }
        if std::env::var_os("UPDATE_TESTDATA").is_some() {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let expected = std::fs::read_to_string(&path).unwrap_or_default();
        assert!(text == expected, "{case} is not as in {}:\n{text}", path.display());
    }
}

/// The rules of each chain as the programs of the eBPF layer are compiled from them, whatever the order of those that no frame
/// meets both of, and of what each asks.
fn asked(table: &Table) -> Vec<Vec<Vec<String>>> {
    let words = |rule: &Rule| {
        let mut words: Vec<_> = rule.statements.iter().map(ToString::to_string).collect();
        words.sort();
        words
    };
    let sorted = |chain: &Chain| {
        let mut rules: Vec<_> = inlined(table, chain).rules.iter().map(words).collect();
        rules.sort();
        rules
    };
    table.chains.iter().map(sorted).collect()
}

#[test]
fn every_base_chain_ends_in_a_drop() {
    for egress in [EgressHook::Netdev, EgressHook::Missing] {
        for table in pod_tables(&listed(), &[interface(false)], egress, false) {
            for chain in table.chains {
                let last = chain.rules.last().and_then(|rule| rule.statements.last());
                assert_eq!(last, Some(&Statement::Drop), "{} {}", table.family, chain.name);
            }
        }
    }
}

/// A pod with so many addresses of either family, on a node with as many, and as many peers in its policy: on the link,
/// with a station that is known and one that is not, and behind the node.
fn crowded(many: u8) -> (Policy, GuardedInterface) {
    let GuardedInterface { name, known } = interface(false);
    let (mut identity, mut node) = known.unwrap();
    let addresses = |place: u8| {
        (0..many).flat_map(move |number| {
            [IpAddr::from([10, 77, place, number]), format!("fd77::{place}:{}", u16::from(number) + 1).parse().unwrap()]
        })
    };
    identity.addresses = addresses(1).chain(["fe80::2".parse().unwrap()]).collect();
    node.addresses = addresses(2).chain(["fe80::1".parse().unwrap()]).collect();
    node.neighbours = addresses(3).map(|address| (address, Mac::parse("02:00:00:00:00:09"))).collect();
    identity.routes[1].destination = "10.77.0.0/16".parse().unwrap();
    let mut policy = Policy { allow: Vec::new(), ..listed() };
    let of = |ports: &[(u16, u16)]| Ports::new(ports.iter().copied()).unwrap();
    policy.probes = Probes::to_ports(
        Ports::new((0..many).map(|port| (8000 + 2 * u16::from(port), 8000 + 2 * u16::from(port)))).unwrap(),
    );
    for peer in addresses(3).chain(addresses(4)).chain(addresses(5).map(behind_the_node)) {
        for direction in [Direction::Egress, Direction::Ingress] {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                let ports = of(&[(443, 443), (5000, 5000 + u16::from(many))]);
                policy.allow.push(Allow { direction, peer: peer.into(), protocol, ports });
            }
        }
    }
    // Those overlap all of the others.
    for peer in ["10.0.0.0/8", "fd77::/16"] {
        policy.allow.push(allow(Direction::Egress, peer, Protocol::Tcp, &[(443, 444)]));
    }
    (policy, GuardedInterface { name, known: Some((identity, node)) })
}

fn behind_the_node(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(address) => IpAddr::V4(address | std::net::Ipv4Addr::new(0, 128, 0, 0)),
        IpAddr::V6(address) => IpAddr::V6(address | Ipv6Addr::new(0, 0xff, 0, 0, 0, 0, 0, 0)),
    }
}

/// Room is said of long lists alone, and is enough whatever stations their peers have.
#[test]
fn there_is_room_for_a_long_list() {
    let of = |number: u8, ports: &[(u16, u16)]| {
        allow(Direction::Egress, &format!("10.77.0.{number}/32"), Protocol::Tcp, ports)
    };
    let long: Vec<_> = (0..64).map(|number| of(number, &[(443, 443)])).collect();
    let sizes = |entries: Vec<Allow>| -> Vec<_> {
        let policy = Policy { allow: entries, ..Policy::default() };
        let [mut answering, unknown] = [interface(false), interface(false)];
        // None of their stations is known, or each of them is.
        if let Some((_, node)) = &mut answering.known {
            node.neighbours =
                (0..64).map(|number| (IpAddr::from([10, 77, 0, number]), Mac::parse("02:00:00:00:00:07"))).collect();
        }
        let both = [answering, unknown].map(|interface| pod_tables(&policy, &[interface], EgressHook::Netdev, false));
        let sets = both.into_iter().flatten().flat_map(|table| table.sets);
        let sizes = sets.filter_map(|set| match set.content {
            Content::Fixed { elements, size } => {
                assert!(size.is_none_or(|size| elements.len() <= size as usize), "{}", set.name);
                Some(size)
            }
            Content::Dynamic { .. } => None,
        });
        sizes.collect()
    };
    let said = sizes(long.clone());
    assert!(said.len() >= 6 && said.iter().all(|size| *size == Some(64)), "{said:?}");
    assert!(sizes(long[1..].to_vec()).iter().all(Option::is_none));
    // What is said twice is in it once; what overlaps may be in it in more pieces than there are entries.
    assert!(sizes([&long[..], &long].concat()).iter().all(|size| *size == Some(128)));
    let overlapping = [&long[..], &[of(7, &[(442, 444)])]].concat();
    assert!(sizes(overlapping).contains(&None));
}

#[test]
fn there_are_as_many_rules_for_one_as_for_many() {
    let rules = |many: u8, egress: EgressHook| {
        let (policy, interface) = crowded(many);
        let ends = [GuardedEnd { device: name("veth1"), index: 7, interface: interface.clone() }];
        let guard = guard(&ContainerId::new("c1").unwrap(), &policy, &ends, egress, None);
        let tables = pod_tables(&policy, &[interface], egress, false).into_iter().chain([guard]);
        let counted = tables.map(|mut table| {
            arrange(&mut table);
            table.all_chains().map(|chain| (chain.name.to_owned(), chain.rules.len())).collect::<Vec<_>>()
        });
        counted.collect::<Vec<_>>()
    };
    for egress in [EgressHook::Netdev, EgressHook::Missing] {
        assert_eq!(rules(8, egress), rules(2, egress), "{egress:?}");
        let in_all = |many| rules(many, egress).iter().flatten().map(|(_, rules)| rules).sum::<usize>();
        assert!(in_all(2) <= in_all(1) + 8, "{} instead of {}", in_all(2), in_all(1));
    }
}
