//! What the network of a pod is made of, on both its sides, as the kernel lists it.

use std::collections::BTreeSet;
use std::io;

use serde::Serialize;

use super::limits;
use super::manifest::Missing;
use super::writer::Files;
use crate::kernel::bpf::{ProgramFound, programs_on};
use crate::kernel::conntrack::{self, Flow};
use crate::kernel::netlink::NetlinkError;
use crate::kernel::netns::Netns;
use crate::kernel::nft::{ChainFound, Nft, RuleFound as NftRule, SetFound, TableFound};
use crate::kernel::rtnetlink::{
    AddressFound, FilterFound, LinkFound, Links, NeighbourFound, QdiscFound, RouteFound, RuleFound,
};
use crate::kernel::sock_diag::{DiagSocket, Kind, SockDiag};
use crate::model::audit::chain;
use crate::node::sandbox::Side;

/// What could not be had, and why.
pub(super) type Gaps = Vec<Missing>;

pub(super) fn gap(gaps: &mut Gaps, what: impl Into<String>, why: impl ToString) {
    gaps.push(Missing { what: what.into(), why: why.to_string() });
}

/// What was asked for, or what is empty; then it is said why.
fn or_empty<T: Default>(gaps: &mut Gaps, what: &str, asked: Result<T, NetlinkError>) -> T {
    asked.unwrap_or_else(|error| {
        gap(gaps, what, chain(&error));
        T::default()
    })
}

fn bounded<T>(cut_short: &mut Vec<String>, what: &str, (found, total): (Vec<T>, usize)) -> Vec<T> {
    if total > found.len() {
        cut_short.push(format!("{what}: {} of {total}", found.len()));
    }
    found
}

/// Sockets, as they were listed.
#[derive(Debug, Default)]
pub(super) struct Sockets {
    pub(super) found: Vec<DiagSocket>,
    pub(super) cut_short: Vec<String>,
}

impl Sockets {
    /// Those of the calling thread's netns, so many of each sort.
    pub(super) fn list(gaps: &mut Gaps, most: usize) -> Self {
        let mut sockets = Self::default();
        let mut diag = match SockDiag::open() {
            Ok(diag) => diag,
            Err(error) => {
                gap(gaps, "sockets", chain(&error));
                return sockets;
            }
        };
        for kind in Kind::ALL {
            match diag.list(kind, most) {
                Ok(listed) => {
                    if listed.total > listed.sockets.len() {
                        let (found, total) = (listed.sockets.len(), listed.total);
                        sockets.cut_short.push(format!("{kind:?} sockets: {found} of {total}"));
                    }
                    sockets.found.extend(listed.sockets);
                }
                // Of what this kernel does not have there are none, or none that it would list.
                Err(error) => gap(gaps, format!("{kind:?} sockets"), chain(&error)),
            }
        }
        sockets
    }
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Network {
    links: Vec<LinkFound>,
    addresses: Vec<AddressFound>,
    routes: Vec<RouteFound>,
    rules: Vec<RuleFound>,
    neighbours: Vec<NeighbourFound>,
    /// The ends of its interfaces on the node.
    host_ends: Vec<LinkFound>,
    cut_short: Vec<String>,
}

/// Writes links, addresses, routes, rules and neighbours; gives the indexes of the pod's interfaces.
pub(super) fn write_network(
    files: &mut Files,
    pod: &mut Links,
    host: &mut Links,
    host_ends: &BTreeSet<u32>,
    gaps: &mut Gaps,
) -> io::Result<BTreeSet<u32>> {
    let mut network = Network {
        links: or_empty(gaps, "links", pod.links_found()),
        addresses: or_empty(gaps, "addresses", pod.addresses_found()),
        host_ends: or_empty(gaps, "host ends", host.links_found()),
        ..Network::default()
    };
    network.host_ends.retain(|link| host_ends.contains(&link.index));
    let cut = &mut network.cut_short;
    network.routes = bounded(cut, "routes", or_empty(gaps, "routes", pod.routes_found(limits::OBJECTS)));
    network.rules = bounded(cut, "rules", or_empty(gaps, "rules", pod.rules_found(limits::OBJECTS)));
    network.neighbours =
        bounded(cut, "neighbours", or_empty(gaps, "neighbours", pod.neighbours_found(limits::OBJECTS)));
    for (what, list_length) in [("links", network.links.len()), ("addresses", network.addresses.len())] {
        if list_length > limits::OBJECTS {
            network.cut_short.push(format!("{what}: {} of {list_length}", limits::OBJECTS));
        }
    }
    network.links.truncate(limits::OBJECTS);
    network.addresses.truncate(limits::OBJECTS);
    let interfaces = network.links.iter().map(|link| link.index).collect();
    let cut_short = network.cut_short.clone();
    files.document("network.json", &network, cut_short)?;
    Ok(interfaces)
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Nftables {
    tables: Vec<TableFound>,
    chains: Vec<ChainFound>,
    rules: Vec<NftRule>,
    sets: Vec<SetFound>,
    /// Tables of iptables before nftables, whose rules are not here.
    legacy_tables: Vec<String>,
    cut_short: Vec<String>,
}

/// Writes all rules that are loaded in the pod.
pub(super) fn write_nftables(files: &mut Files, netns: &Netns, nft: &mut Nft, gaps: &mut Gaps) -> io::Result<()> {
    let mut cut_short = Vec::new();
    let mut found = Nftables {
        tables: or_empty(gaps, "nftables tables", nft.tables_found()),
        chains: or_empty(gaps, "nftables chains", nft.chains_found()),
        rules: bounded(&mut cut_short, "rules", or_empty(gaps, "nftables rules", nft.rules_found(limits::OBJECTS))),
        sets: or_empty(gaps, "nftables sets", nft.sets_found()),
        legacy_tables: netns.run(legacy_tables).unwrap_or_default(),
        cut_short: Vec::new(),
    };
    for (what, length) in [("tables", found.tables.len()), ("chains", found.chains.len()), ("sets", found.sets.len())] {
        if length > limits::OBJECTS {
            cut_short.push(format!("{what}: {} of {length}", limits::OBJECTS));
        }
    }
    found.tables.truncate(limits::OBJECTS);
    found.chains.truncate(limits::OBJECTS);
    found.sets.truncate(limits::OBJECTS);
    let mut left = limits::OBJECTS;
    for set in &mut found.sets {
        let elements = or_empty(gaps, "nftables set", nft.elements_found(set, left));
        if let Some(elements) = &elements {
            left -= elements.elements.len().min(left);
            if elements.total > elements.elements.len() {
                cut_short.push(format!("elements of {}: {} of {}", set.name, elements.elements.len(), elements.total));
            }
        }
        set.elements = elements;
    }
    found.cut_short.clone_from(&cut_short);
    files.document("nftables.json", &found, cut_short)
}

/// In the calling thread's netns.
fn legacy_tables() -> Vec<String> {
    ["ip", "ip6", "arp"]
        .into_iter()
        .flat_map(|family| {
            let path = format!("/proc/thread-self/net/{family}_tables_names");
            let names = std::fs::read_to_string(path).unwrap_or_default();
            names.lines().map(|name| format!("{family} {name}")).collect::<Vec<_>>()
        })
        .collect()
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Conntrack {
    /// In the pod's netns.
    pod: Vec<Flow>,
    /// In the node's, those that are the pod's: that have an address of its own as an end, or a socket of its own.
    node: Vec<Flow>,
    cut_short: Vec<String>,
}

/// Writes the flows that are tracked in the pod's own netns, where it has one, and those of the node's that are the pod's.
pub(super) fn write_conntrack(
    files: &mut Files,
    netns: Option<&Netns>,
    is_of_pod: impl Fn(&Flow) -> bool,
    gaps: &mut Gaps,
) -> io::Result<()> {
    if !conntrack::is_loaded() {
        gap(gaps, "conntrack.json", "this kernel tracks no flows, or the module that does is not loaded");
        return Ok(());
    }
    let mut found = Conntrack::default();
    match netns.map(|netns| netns.run(|| conntrack::list(limits::FLOWS, |_| true))) {
        None => {}
        Some(Ok(listed)) => {
            found.pod = bounded(&mut found.cut_short, "pod", or_empty(gaps, "tracked flows of the pod", listed));
        }
        Some(Err(error)) => gap(gaps, "tracked flows of the pod", chain(&error)),
    }
    let listed = conntrack::list(limits::FLOWS, is_of_pod);
    found.node = bounded(&mut found.cut_short, "node", or_empty(gaps, "tracked flows of the node", listed));
    let cut_short = found.cut_short.clone();
    files.document("conntrack.json", &found, cut_short)
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Hooks {
    qdiscs: Vec<QdiscFound>,
    filters: Vec<FilterFound>,
    /// By links (tcx, netkit); XDP is said by `network.json`.
    programs: Vec<ProgramFound>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct TrafficControl {
    pod: Hooks,
    host_ends: Hooks,
    cut_short: Vec<String>,
}

/// Writes what tc and BPF have on the interfaces of both sides.
pub(super) fn write_tc(
    files: &mut Files,
    netns: &Netns,
    pod: (&mut Side, &BTreeSet<u32>),
    host: (&mut Side, &BTreeSet<u32>),
    gaps: &mut Gaps,
) -> io::Result<()> {
    let mut cut_short = Vec::new();
    let of_pod = netns.run(|| pod.1.iter().flat_map(|&index| programs_on(index)).collect::<Vec<_>>());
    let of_host = host.1.iter().flat_map(|&index| programs_on(index)).collect();
    let mut hooks = |side: &mut Side, indexes: &BTreeSet<u32>, programs: Vec<ProgramFound>| {
        let qdiscs = or_empty(gaps, "qdiscs", side.links.qdiscs_found(limits::OBJECTS));
        let mut qdiscs = bounded(&mut cut_short, "qdiscs", qdiscs);
        qdiscs.retain(|qdisc| indexes.contains(&qdisc.interface));
        let holders: BTreeSet<u32> =
            qdiscs.iter().filter(|qdisc| is_holder(qdisc)).map(|qdisc| qdisc.interface).collect();
        let mut filters = Vec::new();
        for index in holders {
            let found = or_empty(gaps, "tc filters", side.links.filters_found(index, limits::OBJECTS));
            filters.extend(bounded(&mut cut_short, "tc filters", found));
        }
        Hooks { qdiscs, filters, programs }
    };
    let pod_hooks = hooks(pod.0, pod.1, of_pod.unwrap_or_default());
    let host_hooks = hooks(host.0, host.1, of_host);
    let found = TrafficControl { pod: pod_hooks, host_ends: host_hooks, cut_short: cut_short.clone() };
    files.document("tc.json", &found, cut_short)
}

/// Whether filters on the way in and out can hang on it.
fn is_holder(qdisc: &QdiscFound) -> bool {
    qdisc.kind.0 == b"clsact" || qdisc.kind.0 == b"ingress"
}
