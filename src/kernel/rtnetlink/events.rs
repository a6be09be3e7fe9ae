//! What changed about links, addresses, routes and rules, heard as it happens.

use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd};

use ipnetwork::IpNetwork;
use nix::libc;
use nix::sys::socket::SockProtocol;

use super::link::{Link, read_link};
use crate::kernel::netlink::{Events, NetlinkError, attribute, ne32};

/// `struct rtmsg`.
const ROUTE_HEADER: usize = 12;
/// Bytes of events that may wait: a node makes many at once when pods start.
const QUEUE: usize = 4 * 1024 * 1024;

/// One thing that changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeChange {
    /// A link: its name, address, state.
    Link(u32),
    /// An address of a link.
    Address(u32),
    /// A route to this destination.
    Route(IpNetwork),
    /// A rule that chooses between routing tables.
    Rule,
    /// Anything: events were lost.
    Unknown,
}

/// The events of rtnetlink in one netns that could change how the node reaches a pod.
#[derive(Debug)]
pub struct NodeEvents {
    events: Events,
}

impl NodeEvents {
    /// Subscribes in the calling thread's netns.
    ///
    /// # Errors
    /// `NetlinkError::Socket`.
    pub fn subscribe() -> Result<Self, NetlinkError> {
        let events = Events::subscribe(SockProtocol::NetlinkRoute, libc::RTNLGRP_LINK)?;
        for group in [
            libc::RTNLGRP_IPV4_IFADDR,
            libc::RTNLGRP_IPV6_IFADDR,
            libc::RTNLGRP_IPV4_ROUTE,
            libc::RTNLGRP_IPV6_ROUTE,
            libc::RTNLGRP_IPV4_RULE,
            libc::RTNLGRP_IPV6_RULE,
        ] {
            events.join(group)?;
        }
        events.queue_up_to(QUEUE);
        Ok(Self { events })
    }

    /// Takes what waits, each change to `each`; says whether some were lost.
    pub fn drain(&self, buffer: &mut [u8], mut each: impl FnMut(NodeChange)) -> bool {
        let drained = self.events.drain(buffer, |kind, payload| {
            if let Some(change) = read_change(kind, payload) {
                each(change);
            }
        });
        drained.unwrap_or(true)
    }
}

impl AsFd for NodeEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

/// The events of the links alone of one netns.
#[derive(Debug)]
pub struct LinkEvents {
    events: Events,
}

impl LinkEvents {
    /// Subscribes in the calling thread's netns.
    ///
    /// # Errors
    /// `NetlinkError::Socket`.
    pub fn subscribe() -> Result<Self, NetlinkError> {
        Ok(Self { events: Events::subscribe(SockProtocol::NetlinkRoute, libc::RTNLGRP_LINK)? })
    }

    /// Takes what waits, each link that appeared, changed or went to `each`; says whether some were lost.
    pub fn drain(&self, buffer: &mut [u8], mut each: impl FnMut(Link)) -> bool {
        let drained = self.events.drain(buffer, |_, payload| {
            if let Some(link) = read_link(payload) {
                each(link);
            }
        });
        drained.unwrap_or(true)
    }
}

impl AsFd for LinkEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

fn read_change(kind: u16, payload: &[u8]) -> Option<NodeChange> {
    // The index of `struct ifinfomsg` and of `struct ifaddrmsg` alike.
    let index = || ne32(payload.get(4..8)?);
    match kind {
        libc::RTM_NEWLINK | libc::RTM_DELLINK => index().map(NodeChange::Link),
        libc::RTM_NEWADDR | libc::RTM_DELADDR => index().map(NodeChange::Address),
        libc::RTM_NEWRULE | libc::RTM_DELRULE => Some(NodeChange::Rule),
        libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
            let (&family, &prefix) = (payload.first()?, payload.get(1)?);
            let destination = payload.get(ROUTE_HEADER..).and_then(|rest| attribute(rest, libc::RTA_DST));
            let destination: IpAddr = match (i32::from(family), destination) {
                (libc::AF_INET, None) => [0; 4].into(),
                (libc::AF_INET6, None) => [0; 16].into(),
                (libc::AF_INET, Some(bytes)) => <[u8; 4]>::try_from(bytes).ok()?.into(),
                (libc::AF_INET6, Some(bytes)) => <[u8; 16]>::try_from(bytes).ok()?.into(),
                _ => return None,
            };
            IpNetwork::new(destination, prefix).ok().map(NodeChange::Route)
        }
        _ => None,
    }
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(bytes: &[u8]) {
    for kind in [libc::RTM_NEWLINK, libc::RTM_DELADDR, libc::RTM_NEWROUTE, libc::RTM_NEWRULE] {
        let _ = read_change(kind, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::put;

    #[test]
    fn routes_are_told_by_their_destination() {
        let mut route = vec![0; ROUTE_HEADER];
        route[0] = libc::AF_INET as u8;
        assert_eq!(read_change(libc::RTM_NEWROUTE, &route), Some(NodeChange::Route("0.0.0.0/0".parse().unwrap())));
        route[1] = 24;
        put(&mut route, libc::RTA_DST, &[10, 1, 2, 0]);
        assert_eq!(read_change(libc::RTM_DELROUTE, &route), Some(NodeChange::Route("10.1.2.0/24".parse().unwrap())));
        route[1] = 99;
        assert_eq!(read_change(libc::RTM_DELROUTE, &route), None);
    }

    #[test]
    fn links_and_addresses_are_told_by_their_index() {
        let mut message = vec![0; 16];
        message[4..8].copy_from_slice(&7_u32.to_ne_bytes());
        assert_eq!(read_change(libc::RTM_DELLINK, &message), Some(NodeChange::Link(7)));
        assert_eq!(read_change(libc::RTM_NEWADDR, &message), Some(NodeChange::Address(7)));
        assert_eq!(read_change(libc::RTM_NEWNEIGH, &message), None);
        assert_eq!(read_change(libc::RTM_NEWLINK, &[]), None);
    }
}
