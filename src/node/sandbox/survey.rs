//! What a sandbox looks like right now: its interfaces, their other ends on the host, and the node as it is seen from
//! each. What concerns the pod's own identity comes from its records; what is asked now is asked of the host.

use std::collections::BTreeSet;
use std::net::IpAddr;

use crate::kernel::netlink::NetlinkError;
use crate::kernel::netns::Netns;
use crate::kernel::rtnetlink::{Link, Links};
use crate::model::names::{IfName, SandboxInterface};
use crate::model::policy::Policy;
use crate::model::record::{HostEnd, PinnedInterface};
use crate::model::records::SandboxRecords;
use crate::rules::containment::GuardedInterface;

use super::node_look::NodeLook;
use super::{SandboxError, Side};

/// The most interfaces that get chains of their own; what root in the pod makes beyond is left to inet's default drop.
/// Those that the host made come first, so that there is no hiding in a crowd.
const INTERFACES_MAX: usize = 128;

/// An interface of a sandbox.
#[derive(Debug, Clone)]
pub(super) struct Surveyed {
    pub(super) link: Link,
    pub(super) guarded: GuardedInterface,
    /// The index of its other end, where that is on the host.
    pub(super) host_end: Option<u32>,
}

/// The host's end of an interface of a sandbox, wherever the other end is by now.
#[derive(Debug, Clone)]
pub(super) struct End {
    pub(super) link: Link,
    pub(super) guarded: GuardedInterface,
}

/// An end on the host that was guarded by its name, which another has now, or nobody. A chain that is hooked by a name follows
/// that; the guard remembers the end by a set, which is hooked nowhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Strayed {
    /// The sandbox's interface.
    pub(super) interface: IfName,
    /// The index of the end.
    pub(super) index: u32,
    /// The name that it was guarded by.
    pub(super) device: IfName,
    /// What has the index now.
    pub(super) now: IfName,
}

/// A sandbox as it is now.
#[derive(Debug, Default)]
pub(super) struct Survey {
    /// Its interfaces but `lo`, those that the host made first.
    pub(super) interfaces: Vec<Surveyed>,
    /// The ends on the host: those that ADD found, and those of interfaces that came since.
    pub(super) ends: Vec<End>,
    /// Interfaces that ADD found without an end on the host, and that are not in the sandbox any more.
    pub(super) missing: Vec<IfName>,
    /// Interfaces whose end on the host is not where ADD found it; with what has its index now, where that is a pair's
    /// end that may be another pod's.
    pub(super) lost: Vec<(IfName, Option<IfName>)>,
    /// Ends that no ADD found, and that the node has renamed since the guard was hooked on them; as far as can be told.
    pub(super) strayed: Vec<Strayed>,
    /// The links of the node, by index, that lead to it.
    pub(super) links: BTreeSet<u32>,
}

impl Surveyed {
    /// Whether it is one end of a pair that no ADD made, and whose other end is not on the host.
    pub(super) fn leads_elsewhere(&self) -> bool {
        self.guarded.known.is_none() && self.link.is_pair() && self.host_end.is_none()
    }
}

impl Survey {
    /// The interfaces that lead out of the sandbox without an end on the host.
    pub(super) fn unguarded(&self) -> impl Iterator<Item = &Surveyed> {
        self.interfaces.iter().filter(|interface| interface.host_end.is_none() && interface.link.leads_outside())
    }
}

/// Looks at a sandbox.
pub(super) fn survey(
    host: &mut Side,
    look: &mut NodeLook,
    pod: &mut Side,
    netns: &Netns,
    records: &SandboxRecords,
    policy: &Policy,
) -> Result<Survey, SandboxError> {
    let mut survey = Survey::default();
    let links = pod.links.all()?;
    let host_in_pod = pod.links.id_of(&Netns::own()?)?;
    let pinned = records.pinned_interfaces();
    for pinned in &pinned {
        let name = &pinned.interface.name;
        let Some(end) = &pinned.host_end else {
            // Whoever is root in the pod can give its name to another one, by which nothing leaves.
            let is_it = |link: &Link| link.name == *name && (!pinned.led_outside || link.leads_outside());
            if !links.iter().any(is_it) {
                survey.missing.push(name.clone());
            }
            continue;
        };
        // Its address or its name may have been changed (udev does that to new veths), and its other end moved on; where
        // all three are so, it may be another pod's that has the index by now, and that is not ours to cut off.
        let Some(link) = host.links.by_index(end.index)?.filter(Link::is_pair) else {
            survey.lost.push((name.clone(), None));
            continue;
        };
        if !end.resembles(&link.name, link.mac) && !is_end_of(&mut host.links, &link, netns, &links, host_in_pod)? {
            survey.lost.push((name.clone(), Some(link.name)));
            continue;
        }
        survey.links.insert(link.index);
        let node = look.seen_from(&mut host.links, &pinned.interface, policy, &mut survey.links)?;
        let known = Some((pinned.interface.clone(), node));
        survey.ends.push(End { link, guarded: GuardedInterface { name: name.clone(), known } });
    }
    // An ADD that did not find the interface that it was called for: root in the pod may have moved it before.
    for name in records.iter().filter(|record| record.lacks_interface).map(|record| &record.id.ifname) {
        if !links.iter().any(|link| link.name == *name && link.leads_outside()) {
            survey.missing.push(name.clone());
        }
    }
    // Asked after the links were read: reading a link gives the netns of its other end an ID.
    let mut pod_in_host = None;
    for link in links.into_iter().filter(|link| !link.is_loopback) {
        let mut host_end = None;
        if let Some(end) = other_end(&mut host.links, &link, host_in_pod)? {
            if pod_in_host.is_none() {
                pod_in_host = Some(host.links.id_of(netns)?);
            }
            let points_back =
                end.other == Some(link.index) && end.other_netns.is_some() && Some(end.other_netns) == pod_in_host;
            if points_back {
                host_end = Some(end.index);
                if !survey.ends.iter().any(|known| known.link.index == end.index) {
                    // ADD did not find it: it came later, and nothing passes there.
                    let guarded = GuardedInterface { name: link.name.clone(), known: None };
                    survey.ends.push(End { link: end, guarded });
                }
            }
        }
        let known = match pinned.iter().find(|pinned| pinned.interface.name == link.name) {
            None => None,
            Some(pinned) => {
                let of_end = survey
                    .ends
                    .iter()
                    .find(|end| end.guarded.name == link.name)
                    .and_then(|end| end.guarded.known.clone());
                Some(match of_end {
                    Some(known) => known,
                    None => {
                        let node = look.seen_from(&mut host.links, &pinned.interface, policy, &mut survey.links)?;
                        (pinned.interface.clone(), node)
                    }
                })
            }
        };
        survey.interfaces.push(Surveyed {
            guarded: GuardedInterface { name: link.name.clone(), known },
            link,
            host_end,
        });
    }
    survey.interfaces.sort_by_key(|Surveyed { link, guarded, host_end }| {
        let is_made_by_host =
            host_end.is_some() || link.is_physical() || (link.other_netns.is_some() && link.other_netns == host_in_pod);
        (guarded.known.is_none(), !is_made_by_host, link.index)
    });
    survey.interfaces.truncate(INTERFACES_MAX);
    Ok(survey)
}

/// Pins the identity of the interfaces that are in a sandbox when its ADD runs, without those that the records of
/// `earlier` attachments have pinned already. `said_addresses` are those that prevResult gives an interface. `repeated` are
/// those that an ADD of the same attachment has pinned in this netns: where root in the pod has moved one of these since,
/// or put another in its place, its end on the host still holds.
pub fn pin_interfaces(
    host: &mut Side,
    pod: &mut Side,
    netns: &Netns,
    said_addresses: impl Fn(&IfName) -> Vec<IpAddr>,
    earlier: Option<&SandboxRecords>,
    repeated: &[PinnedInterface],
) -> Result<Vec<PinnedInterface>, SandboxError> {
    let earlier: BTreeSet<&IfName> =
        earlier.into_iter().flat_map(SandboxRecords::pinned_interfaces).map(|pinned| &pinned.interface.name).collect();
    let routes = pod.links.routes()?;
    let host_in_pod = pod.links.id_of(&Netns::own()?)?;
    let (mut pinned, mut look) = (Vec::new(), NodeLook::default());
    for link in pod.links.all()? {
        if link.is_loopback || earlier.contains(&link.name) {
            continue;
        }
        let mut addresses = said_addresses(&link.name);
        for address in pod.links.addresses_of(link.index)? {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        let routes = routes.iter().filter(|(index, _)| *index == link.index).map(|(_, route)| route.clone()).collect();
        let host_end = host_end_of(&mut host.links, &link, netns, host_in_pod)?;
        let led_outside = link.leads_outside();
        let interface = SandboxInterface { name: link.name, mac: link.mac, addresses, routes };
        let node = look.seen_from(&mut host.links, &interface, &Policy::default(), &mut BTreeSet::new())?;
        pinned.push(PinnedInterface { interface, node, host_end, led_outside });
    }
    for before in repeated {
        let of_name = |now: &PinnedInterface| now.interface.name == before.interface.name;
        let is_made_anew = match &before.host_end {
            Some(_) => pinned.iter().any(|now| of_name(now) && now.host_end.is_some()),
            None => !before.led_outside || pinned.iter().any(|now| of_name(now) && now.led_outside),
        };
        let may_be_gone = match &before.host_end {
            Some(end) if pinned.iter().any(|now| now.host_end.as_ref().is_some_and(|now| now.index == end.index)) => {
                true
            }
            // Whatever it is called by now: it may be the same one, and then what it leads to is below.
            Some(end) => is_made_anew && host.links.by_index(end.index)?.filter(Link::is_pair).is_none(),
            None => is_made_anew,
        };
        if may_be_gone {
            continue;
        }
        // What has its name now may have been put there by root in the pod; its end, if it has one, is guarded all the same.
        pinned.retain(|now| !of_name(now));
        pinned.push(before.clone());
    }
    Ok(pinned)
}

/// Pins interfaces as somebody says that they were made, in a sandbox that has run since. The kernel is asked for the host's
/// end of each alone, from both sides: whoever is root in the sandbox may have changed the rest. One that is not there any
/// more is pinned all the same, and speaks against every verdict.
///
/// # Errors
/// [`SandboxError`].
pub fn pin_said(
    host: &mut Side,
    pod: &mut Side,
    netns: &Netns,
    said: &[SandboxInterface],
) -> Result<Vec<PinnedInterface>, SandboxError> {
    let host_in_pod = pod.links.id_of(&Netns::own()?)?;
    let links = pod.links.all()?;
    let (mut pinned, mut look) = (Vec::new(), NodeLook::default());
    for said in said {
        let link = links.iter().find(|link| link.name == said.name);
        let host_end = match link {
            Some(link) => host_end_of(&mut host.links, link, netns, host_in_pod)?,
            None => None,
        };
        let index = link.map(|link| link.index);
        let mac = said.mac.or_else(|| link.and_then(|link| link.mac));
        let mut interface = SandboxInterface { mac, ..said.clone() };
        if interface.routes.iter().all(|route| route.gateway.is_none()) {
            // Calico's result says no next hop: it is a link-local address, which nobody but the other end of the pair has.
            let of_link = pod.links.routes()?.into_iter().filter(|(of, _)| Some(*of) == index).map(|(_, route)| route);
            interface.routes.extend(of_link.filter(|route| route.gateway.is_some_and(is_of_link)));
        }
        let node = look.seen_from(&mut host.links, &interface, &Policy::default(), &mut BTreeSet::new())?;
        // One that is not there any more is missing, whatever it was.
        let led_outside = link.is_none_or(Link::leads_outside);
        pinned.push(PinnedInterface { interface, node, host_end, led_outside });
    }
    Ok(pinned)
}

/// Whether an address means nothing beyond its link, of either family.
fn is_of_link(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

/// The host's end of a link in the pod, where both sides name each other.
fn host_end_of(
    host: &mut Links,
    link: &Link,
    netns: &Netns,
    host_in_pod: Option<i32>,
) -> Result<Option<HostEnd>, SandboxError> {
    let Some(end) = other_end(host, link, host_in_pod)? else { return Ok(None) };
    let points_back =
        end.other == Some(link.index) && end.other_netns.is_some() && end.other_netns == host.id_of(netns)?;
    Ok(points_back.then_some(HostEnd { index: end.index, name: Some(end.name), mac: end.mac }))
}

/// The link on the host that the kernel's own data of a link in the pod names as its other end. Whether that one points
/// back is for the caller to see.
fn other_end(host: &mut Links, link: &Link, host_in_pod: Option<i32>) -> Result<Option<Link>, NetlinkError> {
    match link.other.filter(|_| link.is_pair() && link.other_netns.is_some() && link.other_netns == host_in_pod) {
        Some(index) => Ok(host.by_index(index)?.filter(|end| end.kind == link.kind)),
        None => Ok(None),
    }
}

/// Whether the kernel's own data of a link on the host and of one of the sandbox's `links` name each other.
fn is_end_of(
    host: &mut Links,
    end: &Link,
    netns: &Netns,
    links: &[Link],
    host_in_pod: Option<i32>,
) -> Result<bool, NetlinkError> {
    let other = links.iter().find(|link| Some(link.index) == end.other && link.kind == end.kind);
    let names_it = other.is_some_and(|link| {
        link.other == Some(end.index) && link.other_netns.is_some() && link.other_netns == host_in_pod
    });
    Ok(names_it && end.other_netns.is_some() && end.other_netns == host.id_of(netns)?)
}
