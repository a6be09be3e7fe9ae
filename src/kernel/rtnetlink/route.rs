//! Addresses, and the routes by which packets leave.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use netlink_packet_core::Parseable;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteType, RouteVia};
use nix::libc;

use super::{Links, emit};
use crate::kernel::netlink::NetlinkError;
use crate::model::names::Route;

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

impl Links {
    /// The addresses of an interface, of both families.
    pub fn addresses_of(&mut self, index: u32) -> Result<Vec<IpAddr>, NetlinkError> {
        let mut request = AddressMessage::default();
        request.header.index = index;
        self.socket.dump_all_seen("list the addresses", libc::RTM_GETADDR, &emit(&request), |payload| {
            let message = AddressMessage::parse(payload).ok().filter(|message| message.header.index == index)?;
            own_address(&message)
        })
    }

    /// The first IPv4 address that is valid everywhere, with the index of its interface.
    pub fn first_address(&mut self) -> Result<Option<(u32, IpAddr)>, NetlinkError> {
        let mut request = AddressMessage::default();
        request.header.family = AddressFamily::Inet;
        let all = self.socket.dump_all_seen("list the addresses", libc::RTM_GETADDR, &emit(&request), |payload| {
            let message = AddressMessage::parse(payload).ok()?;
            let is_everywhere = message.header.scope == AddressScope::Universe;
            own_address(&message).filter(|_| is_everywhere).map(|address| (message.header.index, address))
        })?;
        Ok(all.into_iter().find(|(_, address)| address.is_ipv4()))
    }

    /// The unicast routes of all tables, each with the index of the interface that it leads out of.
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
            RouteAttribute::Via(RouteVia::Inet6(found)) => gateway = Some(IpAddr::V6(*found)),
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

/// IFA_ADDRESS is the peer's where there is one; IFA_LOCAL is then our own.
fn own_address(message: &AddressMessage) -> Option<IpAddr> {
    let local = message.attributes.iter().find_map(|attribute| match attribute {
        AddressAttribute::Local(address) => Some(*address),
        _ => None,
    });
    local.or_else(|| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Address(address) => Some(*address),
            _ => None,
        })
    })
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(bytes: &[u8]) {
    if let Ok(message) = RouteMessage::parse(bytes) {
        let _ = read_route(&message);
    }
    if let Ok(message) = AddressMessage::parse(bytes) {
        let _ = own_address(&message);
    }
}
