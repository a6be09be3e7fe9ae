//! Interfaces, addresses, routes and what hangs on an interface, over rtnetlink, in one netns.
//!
//! Only questions; nothing here changes anything but what the kernel remembers of a neighbour. Addresses and routes are read with `netlink-packet-route`; the
//! attributes of links and filters are walked by hand, because names in them come from whoever is root in the pod, and
//! one that is no UTF-8 must not make an interface invisible.

mod events;

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::Duration;

use ipnetwork::IpNetwork;
use netlink_packet_core::{Emitable, NLM_F_CREATE, NLM_F_REPLACE, Parseable};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::SockProtocol;

pub use events::{NodeChange, NodeEvents};

use crate::kernel::netlink::{NetlinkError, Socket, attribute, attributes, ne32, put, text};
use crate::kernel::netns::Netns;
use crate::model::names::{IfName, Mac, Route};

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_LINK_NETNSID: u16 = 37;
const IFLA_XDP: u16 = 43;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_XDP_ATTACHED: u16 = 2;
/// Leaves statistics out of the answer.
const RTEXT_FILTER_SKIP_STATS: u32 = 8;
/// `struct ifinfomsg` and `struct tcmsg`.
const LINK_HEADER: usize = 16;
const FILTER_HEADER: usize = 20;
/// `struct ndmsg`.
const NEIGHBOUR_HEADER: usize = 12;
/// Has the kernel resolve an entry as if a packet waited for it.
const NTF_USE: u8 = 1;
const TCA_KIND: u16 = 1;
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;

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

/// How a packet would leave this netns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path {
    /// By which interface.
    pub interface: u32,
    /// From which address.
    pub source: Option<IpAddr>,
    /// Over which next hop.
    pub gateway: Option<IpAddr>,
}

/// Something that takes packets past the netfilter hooks of an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Jump {
    /// An XDP program.
    Xdp,
    /// A tc filter or tcx program that is BPF.
    Bpf,
    /// A tc filter that redirects or mirrors to the interface of that index.
    Redirect(u32),
}

/// The links of one netns.
#[derive(Debug)]
pub struct Links {
    socket: Socket,
}

impl Links {
    /// Opens them in the calling thread's netns.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn open() -> Result<Self, NetlinkError> {
        let socket = Socket::open(SockProtocol::NetlinkRoute)?;
        socket.check_strictly();
        Ok(Self { socket })
    }

    /// The cookie of the netns (5.14): no other netns has ever had it since boot. 0 before.
    #[must_use]
    pub fn netns_cookie(&self) -> u64 {
        self.socket.netns_cookie()
    }

    /// All interfaces.
    ///
    /// # Errors
    /// See [`NetlinkError`].
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
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn by_index(&mut self, index: u32) -> Result<Option<Link>, NetlinkError> {
        match self.socket.ask("read an interface", libc::RTM_GETLINK, &link_body(index)) {
            Ok(answer) => Ok(answer.as_deref().and_then(read_link)),
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The addresses of an interface, of both families.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn addresses_of(&mut self, index: u32) -> Result<Vec<IpAddr>, NetlinkError> {
        let mut request = AddressMessage::default();
        request.header.index = index;
        self.socket.dump_all_seen("list the addresses", libc::RTM_GETADDR, &emit(&request), |payload| {
            let message = AddressMessage::parse(payload).ok().filter(|message| message.header.index == index)?;
            // IFA_ADDRESS is the peer's where there is one; IFA_LOCAL is then our own.
            let own = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Local(address) => Some(*address),
                _ => None,
            });
            let any = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(address) => Some(*address),
                _ => None,
            });
            own.or(any)
        })
    }

    /// The unicast routes of all tables, each with the index of the interface that it leads out of.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn routes(&mut self) -> Result<Vec<(u32, Route)>, NetlinkError> {
        let body = emit(&RouteMessage::default());
        self.socket.dump_all_seen("list the routes", libc::RTM_GETROUTE, &body, |payload| {
            let message = RouteMessage::parse(payload).ok()?;
            let (path, destination) = read_route(&message)?;
            (message.header.kind == RouteType::Unicast)
                .then_some((path.interface, Route { destination, gateway: path.gateway }))
        })
    }

    /// How a packet to `destination` would leave; `None` where it would not.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn path_to(&mut self, destination: IpAddr) -> Result<Option<Path>, NetlinkError> {
        let mut message = RouteMessage::default();
        message.header = RouteHeader {
            address_family: if destination.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet },
            destination_prefix_length: if destination.is_ipv6() { 128 } else { 32 },
            ..RouteHeader::default()
        };
        message.attributes.push(RouteAttribute::Destination(destination.into()));
        match self.socket.ask("look up a route", libc::RTM_GETROUTE, &emit(&message)) {
            Ok(answer) => Ok(answer
                .and_then(|payload| RouteMessage::parse(&payload[..]).ok())
                .filter(|message| message.header.kind == RouteType::Unicast)
                .and_then(|message| read_route(&message))
                .map(|(path, _)| path)),
            Err(NetlinkError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The Ethernet address of a neighbour. Where this netns does not know it, it asks, and waits a little for the
    /// answer.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn resolve(&mut self, index: u32, neighbour: IpAddr) -> Result<Option<Mac>, NetlinkError> {
        /// How often, and after how long each, an answer is looked for: a neighbour on a bridge answers at once.
        const LOOKS: u32 = 20;
        const PAUSE: Duration = Duration::from_millis(1);
        if let Some(mac) = self.neighbour(index, neighbour)? {
            return Ok(Some(mac));
        }
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        match self.socket.change(
            "ask for a neighbour",
            libc::RTM_NEWNEIGH,
            flags,
            &neighbour_body(index, neighbour, NTF_USE),
        ) {
            Ok(()) => {}
            Err(NetlinkError::Refused { .. }) => return Ok(None),
            Err(error) => return Err(error),
        }
        for _ in 0..LOOKS {
            std::thread::sleep(PAUSE);
            if let Some(mac) = self.neighbour(index, neighbour)? {
                return Ok(Some(mac));
            }
        }
        Ok(None)
    }

    fn neighbour(&mut self, index: u32, neighbour: IpAddr) -> Result<Option<Mac>, NetlinkError> {
        const NDA_LLADDR: u16 = 2;
        match self.socket.ask("look up a neighbour", libc::RTM_GETNEIGH, &neighbour_body(index, neighbour, 0)) {
            Ok(answer) => Ok(answer
                .and_then(|payload| attribute(payload.get(NEIGHBOUR_HEADER..)?, NDA_LLADDR)?.try_into().ok().map(Mac))),
            Err(NetlinkError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The ID by which this netns knows another, where it has one.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn id_of(&mut self, netns: &Netns) -> Result<Option<i32>, NetlinkError> {
        use std::os::fd::AsFd;
        let mut message = NsidMessage::default();
        message.attributes.push(NsidAttribute::Fd(netns.as_fd().as_raw_fd().unsigned_abs()));
        let answer = self.socket.ask("identify a network namespace", libc::RTM_GETNSID, &emit(&message))?;
        let message = answer.and_then(|payload| NsidMessage::parse(&payload[..]).ok());
        Ok(message.and_then(|message| {
            message.attributes.iter().find_map(|attribute| match attribute {
                NsidAttribute::Id(id) if *id >= 0 => Some(*id),
                _ => None,
            })
        }))
    }

    /// The tc filters on an interface that take packets elsewhere. Its XDP program is said by [`Link::has_xdp`].
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn jumps(&mut self, index: u32) -> Result<BTreeSet<Jump>, NetlinkError> {
        /// `TC_H_MAKE(TC_H_CLSACT, …)`: ingress (also that of the older ingress qdisc), egress.
        const PARENTS: [u32; 3] = [0xffff_fff2, 0xffff_fff3, 0xffff_0000];
        let mut jumps = BTreeSet::new();
        for parent in PARENTS {
            let mut body = vec![0; 4];
            for word in [index, 0, parent, 0] {
                body.extend_from_slice(&word.to_ne_bytes());
            }
            let filters = self.socket.dump_all_seen("list the tc filters", libc::RTM_GETTFILTER, &body, |payload| {
                let filter = payload.get(FILTER_HEADER..)?;
                let mut found = BTreeSet::new();
                if attribute(filter, TCA_KIND).map(text) == Some(b"bpf") {
                    found.insert(Jump::Bpf);
                }
                find_actions(filter, 0, &mut found);
                Some(found)
            });
            match filters {
                Ok(found) => jumps.extend(found.into_iter().flatten()),
                // No qdisc that could hold one, or no support for any.
                Err(NetlinkError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(jumps)
    }

    /// The interfaces that have a qdisc which can hold filters on the way in or out.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn with_filters(&mut self) -> Result<BTreeSet<u32>, NetlinkError> {
        let found = self.socket.dump_all_seen("list the qdiscs", libc::RTM_GETQDISC, &[0; FILTER_HEADER], |payload| {
            let kind = text(attribute(payload.get(FILTER_HEADER..)?, TCA_KIND)?);
            (kind == b"clsact" || kind == b"ingress").then(|| payload.get(4..8).and_then(ne32)).flatten()
        });
        match found {
            Err(NetlinkError::Refused { .. }) => Ok(BTreeSet::new()),
            found => Ok(found?.into_iter().collect()),
        }
    }
}

/// Whether BPF programs hang on an interface by tcx or netkit (Linux 6.6 and 6.7), which no tc filter shows. Asks in
/// the calling thread's netns.
#[must_use]
pub fn has_bpf_links(index: u32) -> bool {
    const BPF_PROG_QUERY: libc::c_long = 16;
    /// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`, `BPF_NETKIT_PRIMARY`, `BPF_NETKIT_PEER`.
    const ATTACH_TYPES: [u32; 4] = [46, 47, 54, 55];
    /// The `query` part of `union bpf_attr`, padded as the kernel allows.
    #[repr(C)]
    #[derive(Default)]
    struct Query {
        target: u32,
        attach_type: u32,
        query_flags: u32,
        attach_flags: u32,
        program_ids: u64,
        program_count: u32,
        reserved: u32,
        program_attach_flags: u64,
        link_ids: u64,
        link_attach_flags: u64,
        revision: u64,
    }
    ATTACH_TYPES.into_iter().any(|attach_type| {
        let mut query = Query { target: index, attach_type, ..Query::default() };
        // SAFETY: the kernel reads and writes `query` within the size given and follows no pointer in it: all are null.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
        result == 0 && query.program_count > 0
    })
}

fn neighbour_body(index: u32, neighbour: IpAddr, flags: u8) -> Vec<u8> {
    const NDA_DST: u16 = 1;
    let mut body = vec![0; NEIGHBOUR_HEADER];
    body[0] = if neighbour.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET } as u8;
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[10] = flags;
    match neighbour {
        IpAddr::V4(neighbour) => put(&mut body, NDA_DST, &neighbour.octets()),
        IpAddr::V6(neighbour) => put(&mut body, NDA_DST, &neighbour.octets()),
    }
    body
}

fn link_body(index: u32) -> Vec<u8> {
    let mut body = vec![0; LINK_HEADER];
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    put(&mut body, IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes());
    body
}

/// Reads an `RTM_NEWLINK`.
#[must_use]
pub fn read_link(payload: &[u8]) -> Option<Link> {
    let attributes = payload.get(LINK_HEADER..)?;
    let find = |kind| attribute(attributes, kind);
    let hardware_type = u16::from_ne_bytes(payload.get(2..4)?.try_into().ok()?);
    let kind = find(IFLA_LINKINFO).and_then(|info| attribute(info, IFLA_INFO_KIND)).map(text).unwrap_or_default();
    Some(Link {
        index: ne32(payload.get(4..8)?)?,
        name: IfName::new(text(find(IFLA_IFNAME)?)).ok()?,
        mac: find(IFLA_ADDRESS).and_then(|mac| mac.try_into().ok()).map(Mac),
        kind: kind.to_vec(),
        is_loopback: hardware_type == libc::ARPHRD_LOOPBACK,
        // 0 where the lower device is gone.
        other: find(IFLA_LINK).and_then(ne32).filter(|&index| index != 0),
        other_netns: find(IFLA_LINK_NETNSID).and_then(ne32).map(u32::cast_signed),
        has_xdp: find(IFLA_XDP)
            .and_then(|xdp| attribute(xdp, IFLA_XDP_ATTACHED))
            .is_some_and(|attached| attached != [0]),
    })
}

fn read_route(message: &RouteMessage) -> Option<(Path, IpNetwork)> {
    let address = |address: &RouteAddress| match address {
        RouteAddress::Inet(address) => Some(IpAddr::V4(*address)),
        RouteAddress::Inet6(address) => Some(IpAddr::V6(*address)),
        _ => None,
    };
    let (mut interface, mut source, mut gateway, mut destination) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = Some(*index),
            RouteAttribute::PrefSource(found) => source = address(found),
            RouteAttribute::Gateway(found) => gateway = address(found),
            RouteAttribute::Via(netlink_packet_route::route::RouteVia::Inet6(found)) => {
                gateway = Some(IpAddr::V6(*found))
            }
            RouteAttribute::Destination(found) => destination = address(found),
            _ => {}
        }
    }
    let anywhere: IpAddr = match message.header.address_family {
        AddressFamily::Inet => [0; 4].into(),
        AddressFamily::Inet6 => [0; 16].into(),
        _ => return None,
    };
    let destination = IpNetwork::new(destination.unwrap_or(anywhere), message.header.destination_prefix_length).ok()?;
    Some((Path { interface: interface?, source, gateway }, destination))
}

/// Finds the actions of a filter that take packets elsewhere. Each kind of filter keeps its actions under another
/// attribute, so all of them are looked through.
fn find_actions(bytes: &[u8], depth: usize, found: &mut BTreeSet<Jump>) {
    const DEPTH_MAX: usize = 5;
    for (_, value) in attributes(bytes) {
        match attribute(value, TCA_ACT_KIND).map(text) {
            Some(b"bpf") => drop(found.insert(Jump::Bpf)),
            Some(b"mirred") => {
                // struct tc_mirred: five words of tc_gen, what to do, the interface.
                let target = attribute(value, TCA_ACT_OPTIONS)
                    .and_then(|options| attribute(options, TCA_MIRRED_PARMS))
                    .and_then(|parameters| ne32(parameters.get(24..28)?));
                found.insert(Jump::Redirect(target.unwrap_or(0)));
            }
            _ if depth < DEPTH_MAX => find_actions(value, depth + 1, found),
            _ => {}
        }
    }
}

fn emit(message: &impl Emitable) -> Vec<u8> {
    let mut body = vec![0; message.buffer_len()];
    message.emit(&mut body);
    body
}
