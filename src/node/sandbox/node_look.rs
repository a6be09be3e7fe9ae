//! What the node has on its links, as surveys ask for it: what is the same for many sandboxes is asked for once, as long as one
//! look at the node is taken for all of them.
//!
//! On a bridge all pods are reached over one link, and have one gateway, which is waited for if it does not answer; where the
//! node's ends have no addresses (Calico) it speaks to all pods from one, which only a dump of all addresses finds. For what
//! each has for itself (its end, its route) the kernel is asked for each: to read one link of a thousand takes 10 µs, to dump
//! all of them 5 ms, and only its lookup says of a route what policy routing makes of it.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use crate::kernel::netlink::NetlinkError;
use crate::kernel::rtnetlink::Links;
use crate::model::names::{Mac, SandboxInterface};
use crate::model::policy::Policy;
use crate::model::record::NodeOnLink;
use crate::rules::containment::neighbours_needed;

/// The most addresses of the node's link that are taken for the node's, besides those that routes name.
const LINK_ADDRESSES_MAX: usize = 8;

/// One look at the node. It is not kept: the next one sees what has changed.
#[derive(Debug, Default)]
pub(super) struct NodeLook {
    macs: BTreeMap<u32, Option<Mac>>,
    addresses: BTreeMap<u32, Vec<IpAddr>>,
    first_address: BTreeMap<(), Option<(u32, IpAddr)>>,
    neighbours: BTreeMap<(u32, IpAddr), Option<Mac>>,
}

impl NodeLook {
    /// What the node looks like from an interface: the addresses that the kernel itself would choose to reach it, those of that
    /// link, and its Ethernet address there; and the other next hops that the policy needs, as far as the node knows them. `links`
    /// gains those of the node's that all of this depends on.
    pub(super) fn seen_from(
        &mut self,
        host: &mut Links,
        interface: &SandboxInterface,
        policy: &Policy,
        links: &mut BTreeSet<u32>,
    ) -> Result<NodeOnLink, NetlinkError> {
        let mut node = NodeOnLink::default();
        let mut on_link: Option<u32> = None;
        for address in interface.addresses.iter().filter(|address| !is_link_local(address)) {
            let Some(path) = host.path_to(*address)? else { continue };
            links.insert(path.interface);
            let mut sources: Vec<IpAddr> =
                path.source.into_iter().filter(|source| !source.is_loopback() && !is_link_local(source)).collect();
            if sources.is_empty() {
                // The node's own address is still tentative (RFC 4862): what it speaks from once it is not.
                sources = self.addresses_of(host, path.interface)?;
                sources.retain(|source| {
                    source.is_ipv6() == address.is_ipv6() && !source.is_loopback() && !is_link_local(source)
                });
            }
            sources.retain(|source| !node.addresses.contains(source));
            node.addresses.append(&mut sources);
            if path.gateway.is_none() {
                on_link.get_or_insert(path.interface);
            }
        }
        let Some(index) = on_link else { return Ok(node) };
        node.mac = self.mac_of(host, index)?;
        // The route says what a socket is given. What is masqueraded comes from an address of the link, and with `arp_announce=2` the
        // node asks by one; its entry for the pod is re-confirmed from its link-local address.
        let mut on_this = self.addresses_of(host, index)?;
        if !on_this.iter().any(IpAddr::is_ipv4) && interface.addresses.iter().any(IpAddr::is_ipv4) {
            // Of a link that has none, the kernel takes the first that it has anywhere.
            on_this.extend(self.first_address(host)?.map(|(elsewhere, address)| {
                links.insert(elsewhere);
                address
            }));
        }
        on_this.retain(|own| !own.is_loopback() && interface.addresses.iter().any(|of| of.is_ipv6() == own.is_ipv6()));
        on_this.sort_by_key(|own| !is_link_local(own));
        for address in on_this.into_iter().take(LINK_ADDRESSES_MAX) {
            if !node.addresses.contains(&address) {
                node.addresses.push(address);
            }
        }
        for neighbour in neighbours_needed(policy, interface, &node) {
            node.neighbours.push((neighbour, self.answer_of(host, index, neighbour)?));
        }
        Ok(node)
    }

    /// The Ethernet address of a link.
    fn mac_of(&mut self, host: &mut Links, index: u32) -> Result<Option<Mac>, NetlinkError> {
        once(&mut self.macs, index, || Ok(host.by_index(index)?.and_then(|link| link.mac)))
    }

    /// The addresses of a link, of both families.
    fn addresses_of(&mut self, host: &mut Links, index: u32) -> Result<Vec<IpAddr>, NetlinkError> {
        once(&mut self.addresses, index, || host.addresses_of(index))
    }

    /// The first IPv4 address that is valid everywhere, with the index of its link.
    fn first_address(&mut self, host: &mut Links) -> Result<Option<(u32, IpAddr)>, NetlinkError> {
        once(&mut self.first_address, (), || host.first_address())
    }

    /// The Ethernet address of a neighbour on a link. One that does not answer is waited for, 20 ms.
    fn answer_of(&mut self, host: &mut Links, index: u32, neighbour: IpAddr) -> Result<Option<Mac>, NetlinkError> {
        once(&mut self.neighbours, (index, neighbour), || host.resolve(index, neighbour))
    }
}

/// What was answered before, else what the kernel answers now.
fn once<K: Ord, V: Clone>(
    answered: &mut BTreeMap<K, V>,
    question: K,
    ask: impl FnOnce() -> Result<V, NetlinkError>,
) -> Result<V, NetlinkError> {
    Ok(match answered.entry(question) {
        Entry::Occupied(answer) => answer.get().clone(),
        Entry::Vacant(place) => place.insert(ask()?).clone(),
    })
}

fn is_link_local(address: &IpAddr) -> bool {
    matches!(address, IpAddr::V6(address) if address.is_unicast_link_local())
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::model::names::IfName;

    fn ip(words: &str) {
        let done = Command::new("ip").args(words.split(' ')).status().unwrap();
        assert!(done.success(), "ip {words}");
    }

    #[test]
    fn a_look_is_taken_once_for_many_and_the_next_one_sees_what_has_changed() {
        let looks = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            ip("link add pods type bridge");
            ip("address add 10.0.0.1/24 dev pods");
            ip("link set pods up");
            let mut host = Links::open().unwrap();
            let mut seen_by = |look: &mut NodeLook, last: u8| {
                let interface = SandboxInterface {
                    name: IfName::new(b"eth0").unwrap(),
                    mac: None,
                    addresses: vec![IpAddr::from([10, 0, 0, last])],
                    routes: Vec::new(),
                };
                look.seen_from(&mut host, &interface, &Policy::default(), &mut BTreeSet::new()).unwrap().addresses
            };
            let mut look = NodeLook::default();
            let first = seen_by(&mut look, 2);
            ip("address add 10.0.0.9/24 dev pods");
            [first, seen_by(&mut look, 3), seen_by(&mut NodeLook::default(), 3)]
        });
        let [first, same_look, next_look] = looks.join().unwrap();
        let addresses = |last: &[u8]| last.iter().map(|&last| IpAddr::from([10, 0, 0, last])).collect::<Vec<_>>();
        assert_eq!((first, same_look, next_look), (addresses(&[1]), addresses(&[1]), addresses(&[1, 9])));
    }
}
