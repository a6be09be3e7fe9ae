//! All that one netns has of links, addresses, routes, rules, neighbours and what hangs on an interface, for whoever writes
//! it down. What decides anything is read in the module above, and no further than is needed.

use std::net::IpAddr;

use nix::libc;
use serde::Serialize;

use super::Links;
use super::tc::{Jump, find_actions};
use crate::kernel::netlink::{NetlinkError, attribute, ne32, text};
use crate::model::escaped::Escaped;
use crate::model::names::Mac;

/// `struct ifinfomsg`, `struct tcmsg` and `struct ndmsg`.
const LINK_HEADER: usize = 16;
const FILTER_HEADER: usize = 20;
const NEIGHBOUR_HEADER: usize = 12;
/// `struct ifaddrmsg`, `struct rtmsg` and `struct fib_rule_hdr`.
const ADDRESS_HEADER: usize = 8;
const ROUTE_HEADER: usize = 12;

/// An interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LinkFound {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: Escaped,
    /// Its driver; empty for a physical one.
    pub kind: Escaped,
    /// Its Ethernet address.
    pub mac: Option<String>,
    /// The kernel's `IFF_…` bits.
    pub flags: u32,
    /// The longest packet.
    pub mtu: Option<u32>,
    /// The interface that it is a port of.
    pub master: Option<u32>,
    /// Its other end or lower device.
    pub other: Option<u32>,
    /// The netns of that, as an ID of this netns.
    pub other_netns: Option<i32>,
    /// The ID of its XDP program.
    pub xdp_program: Option<u32>,
    /// Packets and bytes that came.
    pub received: Option<[u64; 2]>,
    /// Packets and bytes that were sent.
    pub sent: Option<[u64; 2]>,
}

/// An address of an interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AddressFound {
    /// The interface.
    pub interface: u32,
    /// The address.
    pub address: IpAddr,
    /// The length of its network's prefix.
    pub prefix_length: u8,
    /// The kernel's number of its scope.
    pub scope: u8,
}

/// A route.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RouteFound {
    /// Its table.
    pub table: u32,
    /// The kernel's number of its type: 1 for unicast.
    pub kind: u8,
    /// Who made it, by the kernel's number.
    pub protocol: u8,
    /// Where it leads; none for everywhere.
    pub destination: Option<IpAddr>,
    /// The length of that prefix.
    pub prefix_length: u8,
    /// The next hop.
    pub gateway: Option<IpAddr>,
    /// The interface.
    pub interface: Option<u32>,
    /// The address that is spoken from.
    pub source: Option<IpAddr>,
    /// Its metric.
    pub metric: Option<u32>,
}

/// A rule that chooses a table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleFound {
    /// The address family.
    pub family: u8,
    /// Its priority.
    pub priority: Option<u32>,
    /// The table.
    pub table: u32,
    /// What it does, by the kernel's number: 1 looks a table up.
    pub action: u8,
    /// From where.
    pub from: Option<IpAddr>,
    /// To where.
    pub to: Option<IpAddr>,
    /// By which mark.
    pub mark: Option<u32>,
}

/// A neighbour.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NeighbourFound {
    /// The interface.
    pub interface: u32,
    /// The neighbour.
    pub address: IpAddr,
    /// Its Ethernet address.
    pub mac: Option<String>,
    /// The kernel's `NUD_…` bits.
    pub state: u16,
}

/// A queueing discipline.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct QdiscFound {
    /// The interface.
    pub interface: u32,
    /// What it is.
    pub kind: Escaped,
    /// Its handle.
    pub handle: u32,
    /// Where it hangs.
    pub parent: u32,
}

/// A tc filter.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct FilterFound {
    /// The interface.
    pub interface: u32,
    /// Where it hangs.
    pub parent: u32,
    /// What it is.
    pub kind: Escaped,
    /// Its priority.
    pub priority: u16,
    /// The name of its BPF program.
    pub program_name: Option<Escaped>,
    /// The ID of its BPF program.
    pub program: Option<u32>,
    /// The interfaces that it hands packets to.
    pub redirects_to: Vec<u32>,
}

impl Links {
    /// All interfaces, with what passed them.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn links_found(&mut self) -> Result<Vec<LinkFound>, NetlinkError> {
        self.socket.dump_all_seen("list the interfaces", libc::RTM_GETLINK, &[0; LINK_HEADER], read_link_found)
    }

    /// All addresses.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn addresses_found(&mut self) -> Result<Vec<AddressFound>, NetlinkError> {
        self.socket.dump_all_seen("list the addresses", libc::RTM_GETADDR, &[0; ADDRESS_HEADER], read_address_found)
    }

    /// All routes, up to `most`.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn routes_found(&mut self, most: usize) -> Result<(Vec<RouteFound>, usize), NetlinkError> {
        self.at_most(most, "list the routes", libc::RTM_GETROUTE, &[0; ROUTE_HEADER], read_route_found)
    }

    /// All rules that choose tables.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn rules_found(&mut self, most: usize) -> Result<(Vec<RuleFound>, usize), NetlinkError> {
        self.at_most(most, "list the rules", libc::RTM_GETRULE, &[0; ROUTE_HEADER], read_rule_found)
    }

    /// All neighbours.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn neighbours_found(&mut self, most: usize) -> Result<(Vec<NeighbourFound>, usize), NetlinkError> {
        let body = [0; NEIGHBOUR_HEADER];
        self.at_most(most, "list the neighbours", libc::RTM_GETNEIGH, &body, read_neighbour_found)
    }

    /// All queueing disciplines.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn qdiscs_found(&mut self, most: usize) -> Result<(Vec<QdiscFound>, usize), NetlinkError> {
        let body = [0; FILTER_HEADER];
        self.at_most(most, "list the qdiscs", libc::RTM_GETQDISC, &body, |payload| {
            let word = |at: usize| ne32(payload.get(at..at + 4)?);
            Some(QdiscFound {
                interface: word(4)?,
                kind: text(attribute(payload.get(FILTER_HEADER..)?, libc::TCA_KIND)?).into(),
                handle: word(8)?,
                parent: word(12)?,
            })
        })
    }

    /// The tc filters on the way in and out of an interface; none where it can have none.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn filters_found(&mut self, interface: u32, most: usize) -> Result<(Vec<FilterFound>, usize), NetlinkError> {
        const PARENTS: [u32; 3] = [0xffff_fff2, 0xffff_fff3, 0xffff_0000];
        let (mut found, mut total) = (Vec::new(), 0);
        for parent in PARENTS {
            let mut body = vec![0; 4];
            for word in [interface, 0, parent, 0] {
                body.extend_from_slice(&word.to_ne_bytes());
            }
            match self.at_most(most, "list the tc filters", libc::RTM_GETTFILTER, &body, read_filter_found) {
                Ok((filters, count)) => {
                    found.extend(filters);
                    total += count;
                }
                Err(NetlinkError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok((found, total))
    }

    fn at_most<T>(
        &mut self,
        most: usize,
        what: &str,
        kind: u16,
        body: &[u8],
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<(Vec<T>, usize), NetlinkError> {
        let total = std::cell::Cell::new(0);
        let found = self.socket.dump_all_seen(what, kind, body, |payload| {
            total.set(total.get() + 1);
            if total.get() > most { None } else { read(payload) }
        })?;
        Ok((found, total.get()))
    }
}

fn read_link_found(payload: &[u8]) -> Option<LinkFound> {
    const IFLA_XDP_PROG_ID: u16 = 4;
    let attributes = payload.get(LINK_HEADER..)?;
    let find = |kind| attribute(attributes, kind);
    let counted = |at: usize| {
        let stats = find(libc::IFLA_STATS64)?;
        let long = |at: usize| Some(u64::from_ne_bytes(stats.get(at..at + 8)?.try_into().ok()?));
        Some([long(at)?, long(at + 16)?])
    };
    Some(LinkFound {
        index: ne32(payload.get(4..8)?)?,
        name: text(find(libc::IFLA_IFNAME)?).into(),
        kind: find(libc::IFLA_LINKINFO)
            .and_then(|info| attribute(info, libc::IFLA_INFO_KIND))
            .map(text)
            .unwrap_or_default()
            .into(),
        mac: find(libc::IFLA_ADDRESS).and_then(mac),
        flags: ne32(payload.get(8..12)?)?,
        mtu: find(libc::IFLA_MTU).and_then(ne32),
        master: find(libc::IFLA_MASTER).and_then(ne32),
        other: find(libc::IFLA_LINK).and_then(ne32).filter(|&index| index != 0),
        other_netns: find(libc::IFLA_LINK_NETNSID).and_then(ne32).map(u32::cast_signed),
        xdp_program: find(libc::IFLA_XDP)
            .and_then(|xdp| attribute(xdp, IFLA_XDP_PROG_ID))
            .and_then(ne32)
            .filter(|&id| id != 0),
        received: counted(0),
        sent: counted(8),
    })
}

fn mac(bytes: &[u8]) -> Option<String> {
    bytes.try_into().ok().map(|bytes| Mac(bytes).to_string())
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).ok().or_else(|| <[u8; 16]>::try_from(bytes).map(IpAddr::from).ok())
}

fn read_address_found(payload: &[u8]) -> Option<AddressFound> {
    let attributes = payload.get(ADDRESS_HEADER..)?;
    let own = attribute(attributes, libc::IFA_LOCAL).or_else(|| attribute(attributes, libc::IFA_ADDRESS));
    Some(AddressFound {
        interface: ne32(payload.get(4..8)?)?,
        address: own.and_then(address)?,
        prefix_length: payload[1],
        scope: payload[3],
    })
}

fn read_route_found(payload: &[u8]) -> Option<RouteFound> {
    let attributes = payload.get(ROUTE_HEADER..)?;
    let find = |kind| attribute(attributes, kind);
    Some(RouteFound {
        table: find(libc::RTA_TABLE).and_then(ne32).unwrap_or_else(|| u32::from(payload[4])),
        kind: payload[7],
        protocol: payload[5],
        destination: find(libc::RTA_DST).and_then(address),
        prefix_length: payload[1],
        gateway: find(libc::RTA_GATEWAY).and_then(address),
        interface: find(libc::RTA_OIF).and_then(ne32),
        source: find(libc::RTA_PREFSRC).and_then(address),
        metric: find(libc::RTA_PRIORITY).and_then(ne32),
    })
}

fn read_rule_found(payload: &[u8]) -> Option<RuleFound> {
    const FRA_DST: u16 = 1;
    const FRA_SRC: u16 = 2;
    const FRA_PRIORITY: u16 = 6;
    const FRA_FWMARK: u16 = 10;
    const FRA_TABLE: u16 = 15;
    let attributes = payload.get(ROUTE_HEADER..)?;
    let find = |kind| attribute(attributes, kind);
    Some(RuleFound {
        family: payload[0],
        priority: find(FRA_PRIORITY).and_then(ne32),
        table: find(FRA_TABLE).and_then(ne32).unwrap_or_else(|| u32::from(payload[4])),
        action: payload[7],
        from: find(FRA_SRC).and_then(address),
        to: find(FRA_DST).and_then(address),
        mark: find(FRA_FWMARK).and_then(ne32),
    })
}

fn read_neighbour_found(payload: &[u8]) -> Option<NeighbourFound> {
    let attributes = payload.get(NEIGHBOUR_HEADER..)?;
    Some(NeighbourFound {
        interface: ne32(payload.get(4..8)?)?,
        address: attribute(attributes, libc::NDA_DST).and_then(address)?,
        mac: attribute(attributes, libc::NDA_LLADDR).and_then(mac),
        state: u16::from_ne_bytes([payload[8], payload[9]]),
    })
}

fn read_filter_found(payload: &[u8]) -> Option<FilterFound> {
    const TCA_BPF_NAME: u16 = 7;
    const TCA_BPF_ID: u16 = 11;
    let attributes = payload.get(FILTER_HEADER..)?;
    let word = |at: usize| ne32(payload.get(at..at + 4)?);
    let kind = text(attribute(attributes, libc::TCA_KIND)?);
    let options = attribute(attributes, libc::TCA_OPTIONS).filter(|_| kind == b"bpf");
    let mut jumps = std::collections::BTreeSet::new();
    find_actions(attributes, 0, &mut jumps);
    let redirects_to = jumps.into_iter().filter_map(|jump| match jump {
        Jump::Redirect(to) => Some(to),
        Jump::Bpf => None,
    });
    Some(FilterFound {
        interface: word(4)?,
        parent: word(12)?,
        kind: kind.into(),
        priority: u16::try_from(word(16)? >> 16).unwrap_or_default(),
        program_name: options.and_then(|options| attribute(options, TCA_BPF_NAME)).map(|name| text(name).into()),
        program: options.and_then(|options| attribute(options, TCA_BPF_ID)).and_then(ne32),
        redirects_to: redirects_to.collect(),
    })
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(bytes: &[u8]) {
    let _ = (read_link_found(bytes), read_address_found(bytes), read_route_found(bytes));
    let _ = (read_rule_found(bytes), read_neighbour_found(bytes), read_filter_found(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::{put, put_text};

    #[test]
    fn a_link_with_a_name_that_is_no_text_is_read() {
        let mut payload = vec![0; LINK_HEADER];
        payload[4] = 7;
        payload[8] = 0x43;
        put_text(&mut payload, libc::IFLA_IFNAME, b"e\xff\x1b");
        put(&mut payload, libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 1]);
        let link = read_link_found(&payload).unwrap();
        assert_eq!((link.index, link.flags, link.name.to_string()), (7, 0x43, "e\\xff\\u{1b}".to_owned()));
        assert_eq!(link.mac.as_deref(), Some("02:00:00:00:00:01"));
    }

    proptest::proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes: Vec<u8>) {
            try_any(&bytes);
        }
    }
}
