//! What a sandbox looks like right now: its interfaces, their other ends on the host, and the node as it is seen from
//! each. What concerns the pod's own identity comes from its records; what is asked now is asked of the host.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::attachment::{IfName, SandboxInterface};
use crate::cni::PreviousResult;
use crate::containment::{GuardedInterface, Node};
use crate::link::{Jump, Link, Links, has_bpf_links};
use crate::netlink::NetlinkError;
use crate::netns::Netns;
use crate::record::Record;

use super::{SandboxError, Side};

/// The most interfaces that get chains of their own; what root in the pod makes beyond is left to inet's default drop.
const INTERFACES_MAX: usize = 128;

/// An interface of a sandbox, and its other end where that is on the host.
#[derive(Debug, Clone)]
pub(super) struct Surveyed {
    pub(super) link: Link,
    pub(super) host_end: Option<Link>,
    pub(super) guarded: GuardedInterface,
}

/// All interfaces of the sandbox but `lo`, those that lead outside first.
pub(super) fn survey(
    host: &mut Side,
    pod: &mut Side,
    netns: &Netns,
    records: &[Record],
) -> Result<Vec<Surveyed>, SandboxError> {
    let mut links = pod.links.all()?;
    links.retain(|link| !link.is_loopback);
    let known = known_interfaces(records);
    links.sort_by_key(|link| {
        (!known.iter().any(|(known, _)| known.name == link.name), !link.leads_outside(), link.index)
    });
    links.truncate(INTERFACES_MAX);
    let mut ends = HostEnds { host: &mut host.links, pod: &mut pod.links, netns, ids: None };
    let mut surveyed = Vec::with_capacity(links.len());
    for link in links {
        let host_end = ends.of(&link)?;
        let known = match known.iter().find(|(known, _)| known.name == link.name) {
            Some((identity, _)) => Some(((*identity).clone(), node_seen_from(ends.host, &identity.addresses)?)),
            None => None,
        };
        surveyed.push(Surveyed { guarded: GuardedInterface { name: link.name.clone(), known }, link, host_end });
    }
    Ok(surveyed)
}

/// The interfaces of all records, each once.
pub(super) fn known_interfaces(records: &[Record]) -> Vec<&(SandboxInterface, Node)> {
    let mut known: Vec<&(SandboxInterface, Node)> = Vec::new();
    for interface in records.iter().flat_map(|record| &record.interfaces) {
        if !known.iter().any(|(earlier, _)| earlier.name == interface.0.name) {
            known.push(interface);
        }
    }
    known
}

/// The identity of the interfaces that are in the sandbox now, without those that `records` have pinned already.
pub(super) fn identify(
    host: &mut Side,
    pod: &mut Side,
    result: &PreviousResult,
    records: &[Record],
) -> Result<Vec<(SandboxInterface, Node)>, NetlinkError> {
    let pinned: BTreeSet<&IfName> =
        known_interfaces(records).into_iter().map(|(interface, _)| &interface.name).collect();
    let routes = pod.links.routes()?;
    let mut identified = Vec::new();
    for link in pod.links.all()? {
        if link.is_loopback || pinned.contains(&link.name) {
            continue;
        }
        let mut addresses: Vec<IpAddr> = result.addresses_of(&link.name).collect();
        for address in pod.links.addresses_of(link.index)? {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let routes = routes.iter().filter(|(index, _)| *index == link.index).map(|(_, route)| route.clone()).collect();
        let node = node_seen_from(&mut host.links, &addresses)?;
        identified.push((SandboxInterface { name: link.name, mac: link.mac, addresses, routes }, node));
    }
    Ok(identified)
}

/// The node's addresses as the kernel itself would choose them to reach the pod, and its Ethernet address on that link.
fn node_seen_from(host: &mut Links, addresses: &[IpAddr]) -> Result<Node, NetlinkError> {
    let mut node = Node::default();
    let is_link_local = |address: &IpAddr| matches!(address, IpAddr::V6(address) if address.is_unicast_link_local());
    let mut on_link: Option<u32> = None;
    for address in addresses.iter().filter(|address| !is_link_local(address)) {
        let Some(path) = host.path_to(*address)? else { continue };
        if let Some(source) = path.source.filter(|source| !node.addresses.contains(source)) {
            node.addresses.push(source);
        }
        if path.gateway.is_none() {
            on_link.get_or_insert(path.interface);
        }
    }
    let Some(index) = on_link else { return Ok(node) };
    node.mac = host.by_index(index)?.and_then(|link| link.mac);
    if addresses.iter().any(IpAddr::is_ipv6) {
        // The node's entry for the pod is re-confirmed from its link-local address.
        node.addresses.extend(host.addresses_of(index)?.into_iter().filter(is_link_local));
    }
    Ok(node)
}

/// Finds the other ends of the sandbox's interfaces by the kernel's own link data, seen from both sides.
struct HostEnds<'a> {
    host: &'a mut Links,
    pod: &'a mut Links,
    netns: &'a Netns,
    /// The host's ID in the pod, the pod's ID in the host.
    ids: Option<(Option<i32>, Option<i32>)>,
}

impl HostEnds<'_> {
    fn of(&mut self, link: &Link) -> Result<Option<Link>, SandboxError> {
        let (Some(other), Some(other_netns)) = (link.other.filter(|_| link.is_pair()), link.other_netns) else {
            return Ok(None);
        };
        let Some(end) = self.host.by_index(other)? else { return Ok(None) };
        let (host_in_pod, pod_in_host) = match self.ids {
            Some(ids) => ids,
            // Asked after the links were read: reading a link gives the netns of its other end an ID.
            None => *self.ids.insert((self.pod.id_of(&Netns::own()?)?, self.host.id_of(self.netns)?)),
        };
        let points_here = host_in_pod == Some(other_netns);
        let points_back = end.kind == link.kind
            && end.other == Some(link.index)
            && end.other_netns.is_some()
            && end.other_netns == pod_in_host;
        Ok(Some(end).filter(|_| points_here && points_back))
    }
}

/// How far to look for what takes packets past the host guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// On the sandbox's own interfaces and their host ends.
    Sandbox,
    /// On every interface of the node that has filters, too: one could redirect to a host end.
    Node,
}

/// What takes packets past the hooks on the host's end of an interface, in words.
pub(super) fn jumps_past_guard(host: &mut Links, end: &Link, scan: Scan) -> Result<Vec<String>, NetlinkError> {
    let mut found = Vec::new();
    let device = &end.name;
    if end.has_xdp {
        found.push(format!("an XDP program on {device}"));
    }
    for jump in host.jumps(end.index)? {
        found.push(match jump {
            Jump::Redirect(_) => format!("a tc redirect on {device}"),
            Jump::Bpf | Jump::Xdp => format!("a BPF program in tc on {device}"),
        });
    }
    if has_bpf_links(end.index) {
        found.push(format!("a BPF program in tcx or netkit on {device}"));
    }
    if scan == Scan::Node {
        for index in host.with_filters()? {
            if index != end.index && host.jumps(index)?.contains(&Jump::Redirect(end.index)) {
                let from = host.by_index(index)?.map_or_else(|| index.to_string(), |link| link.name.to_string());
                found.push(format!("a tc redirect from {from} to {device}"));
            }
        }
    }
    Ok(found)
}

/// Whether something in the sandbox takes packets past the pod-side hooks of this interface.
pub(super) fn jumps_past_pod_side(pod: &mut Links, link: &Link) -> Result<bool, NetlinkError> {
    if link.has_xdp || !pod.jumps(link.index)?.is_empty() {
        return Ok(true);
    }
    for index in pod.with_filters()? {
        if index != link.index && pod.jumps(index)?.contains(&Jump::Redirect(link.index)) {
            return Ok(true);
        }
    }
    Ok(false)
}
