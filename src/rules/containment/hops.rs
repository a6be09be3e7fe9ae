//! Who may be asked for on the link: the next hops that a policy needs, and the Ethernet address of each where it is
//! known.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnetwork::IpNetwork;

use crate::model::names::{Mac, Route, SandboxInterface};
use crate::model::policy::Policy;

use crate::model::record::NodeOnLink;

use super::words::is_link_local;

/// What Istio's ambient mode gives everything that the node's own sockets send to a pod of its mesh, so that the pod can tell a
/// probe: addresses of its own, of which no route speaks. They are nobody's else: what passes still has to be the node's.
const TRANSLATED_PROBES: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 7, 127)),
    IpAddr::V6(Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff)),
];

/// A next hop, or an on-link range of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hop {
    pub(super) network: IpNetwork,
    /// Its Ethernet address: what is not sent to it would reach some other neighbour.
    pub(super) mac: Option<Mac>,
    /// Whether the node itself answers there.
    pub(super) is_node: bool,
    /// Whether it was asked for its Ethernet address and did not answer.
    pub(super) is_silent: bool,
}

/// The node as a next hop: its own addresses, and the pod's next hop towards each. In a Calico-style pod the way back
/// to the node leads over 169.254.1.1, which the node answers for.
pub(super) fn node_hops(interface: &SandboxInterface, node: &NodeOnLink) -> Vec<Hop> {
    let gateways = node.addresses.iter().filter_map(|&address| best_route(&interface.routes, address.into())?.gateway);
    let mut hops: Vec<Hop> = Vec::new();
    for address in node.addresses.iter().copied().chain(gateways) {
        let hop = Hop { network: address.into(), mac: node.mac, is_node: true, is_silent: false };
        if !hops.contains(&hop) {
            hops.push(hop);
        }
    }
    hops
}

/// Where the node's own packets to the pod come from, in one family.
pub(super) fn probe_sources(node: &NodeOnLink, v6: bool, with_translated: bool) -> Vec<IpAddr> {
    let translated = TRANSLATED_PROBES.iter().filter(|_| with_translated);
    let mut sources: Vec<IpAddr> = Vec::new();
    for address in node.addresses.iter().chain(translated).filter(|address| address.is_ipv6() == v6) {
        if !is_link_local(address) && !sources.contains(address) {
            sources.push(*address);
        }
    }
    sources
}

/// The next hops towards a peer; `node_hops` are those of the node.
pub(super) fn hops_to(peer: IpNetwork, interface: &SandboxInterface, node: &NodeOnLink, node_hops: &[Hop]) -> Vec<Hop> {
    let inside = interface
        .routes
        .iter()
        .filter(|route| route.destination.prefix() > peer.prefix() && contains(&peer, &route.destination));
    best_route(&interface.routes, peer)
        .into_iter()
        .chain(inside)
        .map(|route| {
            let network = match route.gateway {
                Some(gateway) => gateway.into(),
                None if contains(&route.destination, &peer) => peer,
                None => route.destination,
            };
            let as_node = node_hops.iter().find(|hop| hop.network == network);
            let as_neighbour = node.neighbours.iter().find(|(address, _)| IpNetwork::from(*address) == network);
            match (as_node, as_neighbour) {
                (Some(hop), _) => hop.clone(),
                (None, Some((_, mac))) => Hop { network, mac: *mac, is_node: false, is_silent: mac.is_none() },
                (None, None) => Hop { network, mac: None, is_node: false, is_silent: false },
            }
        })
        .collect()
}

/// All next hops that a policy needs.
pub(super) fn all_hops(policy: &Policy, interface: &SandboxInterface, node: &NodeOnLink) -> Vec<Hop> {
    let node_hops = node_hops(interface, node);
    let mut hops = node_hops.clone();
    for hop in policy.allow.iter().flat_map(|allow| hops_to(allow.peer, interface, node, &node_hops)) {
        if !hops.iter().any(|known| known.network == hop.network) {
            hops.push(hop);
        }
    }
    hops
}

/// The next hops towards allowed peers that are not the node: whose Ethernet addresses the node may know.
#[must_use]
pub fn neighbours_needed(policy: &Policy, interface: &SandboxInterface, node: &NodeOnLink) -> Vec<IpAddr> {
    let is_one_address = |network: &IpNetwork| network.prefix() == if network.is_ipv4() { 32 } else { 128 };
    all_hops(policy, interface, node)
        .into_iter()
        .filter(|hop| !hop.is_node && is_one_address(&hop.network))
        .map(|hop| hop.network.ip())
        .collect()
}

/// The longest route that leads to all of `destination`.
fn best_route(routes: &[Route], destination: IpNetwork) -> Option<&Route> {
    routes
        .iter()
        .filter(|route| contains(&route.destination, &destination))
        .max_by_key(|route| route.destination.prefix())
}

fn contains(outer: &IpNetwork, inner: &IpNetwork) -> bool {
    outer.is_ipv4() == inner.is_ipv4() && outer.prefix() <= inner.prefix() && outer.contains(inner.network())
}
