//! Interfaces. Their attributes are walked by hand: names in them come from whoever is root in the pod, and one that is
//! no UTF-8 must not make an interface invisible.

use std::collections::BTreeSet;

use nix::errno::Errno;
use nix::libc;

use super::Links;
use crate::kernel::netlink::{NetlinkError, attribute, ne32, put, text};
use crate::model::names::{IfName, Mac};

/// Of `linux/if_link.h`, which libc lacks.
const IFLA_XDP_ATTACHED: u16 = 2;
/// `struct ifinfomsg`.
const LINK_HEADER: usize = 16;

/// A network interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its index in its netns.
    pub index: u32,
    /// Its name.
    pub name: IfName,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Its driver's name (`veth`, `macvlan`, …); empty for a physical one.
    pub kind: Vec<u8>,
    /// Whether it is `lo`.
    pub is_loopback: bool,
    /// The index of its other end or lower device.
    pub other: Option<u32>,
    /// The netns of that, as an ID that is good in this netns; `None` where it is the same netns.
    pub other_netns: Option<i32>,
    /// Whether an XDP program is attached.
    pub has_xdp: bool,
}

impl Link {
    /// Whether frames can leave the netns by it: a device of its own, or one whose other end or lower device is in
    /// another netns. What is made of software, or stands on another interface of this netns, sends through that one.
    #[must_use]
    pub fn leads_outside(&self) -> bool {
        self.is_physical() || (!self.is_loopback && self.other_netns.is_some())
    }

    /// Whether it is a device of its own, on nothing else.
    #[must_use]
    pub fn is_physical(&self) -> bool {
        self.kind.is_empty() && self.other.is_none() && !self.is_loopback
    }

    /// Whether it is one end of a pair.
    #[must_use]
    pub fn is_pair(&self) -> bool {
        self.kind == b"veth" || self.kind == b"netkit"
    }
}

impl Links {
    /// All interfaces.
    pub fn all(&mut self) -> Result<Vec<Link>, NetlinkError> {
        let mut links =
            self.socket.dump_all_seen("list the interfaces", libc::RTM_GETLINK, &link_body(0), read_link)?;
        // What was seen more than once is as it was seen last.
        links.reverse();
        let mut seen = BTreeSet::new();
        links.retain(|link| seen.insert(link.index));
        links.reverse();
        Ok(links)
    }

    /// The interface of this index, where there is one.
    pub fn by_index(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        match self.socket.ask("read an interface", libc::RTM_GETLINK, &link_body(index)) {
            Ok(answer) => Ok(answer.as_deref().and_then(read_link)),
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn link_body(index: u32) -> Vec<u8> {
    let mut body = vec![0; LINK_HEADER];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    put(&mut body, libc::IFLA_EXT_MASK, &libc::RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    body
}

/// Reads an `RTM_NEWLINK`.
#[must_use]
pub fn read_link(payload: &[u8]) -> Option<Link> {
    let attributes = payload.get(LINK_HEADER..)?;
    let find = |kind| attribute(attributes, kind);
    let hardware_type = u16::from_ne_bytes(payload.get(2..4)?.try_into().ok()?);
    let kind =
        find(libc::IFLA_LINKINFO).and_then(|info| attribute(info, libc::IFLA_INFO_KIND)).map(text).unwrap_or_default();
    Some(Link {
        index: ne32(payload.get(4..8)?)?,
        name: IfName::new(text(find(libc::IFLA_IFNAME)?)).ok()?,
        mac: find(libc::IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()).map(Mac),
        kind: kind.to_vec(),
        is_loopback: hardware_type == libc::ARPHRD_LOOPBACK,
        // 0 where the lower device is gone.
        other: find(libc::IFLA_LINK).and_then(ne32).filter(|&index| index != 0),
        other_netns: find(libc::IFLA_LINK_NETNSID).and_then(ne32).map(u32::cast_signed),
        has_xdp: find(libc::IFLA_XDP)
            .and_then(|xdp| attribute(xdp, IFLA_XDP_ATTACHED))
            .is_some_and(|attached| attached != [0]),
    })
}
