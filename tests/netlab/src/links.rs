//! Interfaces, addresses, routes and neighbours, made over rtnetlink.
//!
//! With `rtnetlink`, and not with the product's own netlink code or with `ip`: what a test's network is made by shares no
//! fault with what is tested, and takes no process for each step. `rtnetlink` is asynchronous. Every call here drives it
//! on the calling thread until the kernel has answered.

use std::net::IpAddr;
use std::os::fd::AsRawFd;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::link::{InfoData, InfoVeth, LinkAttribute, LinkMessage, MacVlanMode};
use rtnetlink::packet_route::neighbour::NeighbourState;
use rtnetlink::packet_route::route::RouteScope;
use rtnetlink::{
    Handle, LinkBridge, LinkMacVlan, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder, new_connection,
};
use tokio::runtime::{Builder, Runtime};

use crate::route::network;
use crate::{Netns, Route};

/// A MAC address.
pub type Mac = [u8; 6];

/// A MAC address as people write it.
#[must_use]
pub fn text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// A pair of interfaces, one of which is in another namespace.
#[derive(Debug, Clone, Copy)]
pub struct Veth<'a> {
    pub name: &'a str,
    /// Its address; the kernel's choice without.
    pub mac: Option<Mac>,
    /// The other end, in `netns`.
    pub peer: &'a str,
    pub peer_mac: Option<Mac>,
    pub netns: &'a Netns,
}

/// The links of one network namespace.
#[derive(Debug)]
pub struct Links {
    runtime: Runtime,
    handle: Handle,
}

impl Links {
    /// Those of the calling thread's namespace.
    #[must_use]
    pub fn open() -> Self {
        let runtime = Builder::new_current_thread().enable_io().build().unwrap();
        let handle = {
            let _inside = runtime.enter();
            let (connection, handle, _) = new_connection().unwrap();
            runtime.spawn(connection);
            handle
        };
        Self { runtime, handle }
    }

    #[track_caller]
    fn wait<T>(&self, what: &str, request: impl Future<Output = Result<T, rtnetlink::Error>>) -> T {
        self.runtime.block_on(request).unwrap_or_else(|error| panic!("{what}: {error}"))
    }

    #[track_caller]
    fn link(&self, name: &str) -> LinkMessage {
        let mut found = self.handle.link().get().match_name(name.to_owned()).execute();
        self.wait(name, found.try_next()).unwrap_or_else(|| panic!("{name}: no such interface"))
    }

    #[track_caller]
    fn add(&self, what: &str, link: LinkMessage) {
        self.wait(what, self.handle.link().add(link).execute());
    }

    #[track_caller]
    fn set(&self, name: &str, change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>) {
        let link = change(LinkUnspec::new_with_index(self.index(name))).build();
        self.wait(name, self.handle.link().set(link).execute());
    }

    /// The number of an interface.
    #[track_caller]
    #[must_use]
    pub fn index(&self, name: &str) -> u32 {
        self.link(name).header.index
    }

    /// Its Ethernet address.
    #[track_caller]
    #[must_use]
    pub fn mac(&self, name: &str) -> Mac {
        let address = self.link(name).attributes.into_iter().find_map(|attribute| match attribute {
            LinkAttribute::Address(address) => address.try_into().ok(),
            _ => None,
        });
        address.unwrap_or_else(|| panic!("{name} has no Ethernet address"))
    }

    /// A pair of interfaces in this namespace.
    #[track_caller]
    pub fn add_pair(&self, name: &str, peer: &str) {
        self.add(name, LinkVeth::new(name, peer).build());
    }

    /// A pair of interfaces, one in this namespace and one in another.
    #[track_caller]
    pub fn add_veth(&self, veth: Veth<'_>) {
        let netns = veth.netns.open();
        let with_mac = |address: Option<Mac>| address.map(|mac| LinkAttribute::Address(mac.to_vec()));
        let mut peer = LinkUnspec::new_with_name(veth.peer).setns_by_fd(netns.as_raw_fd());
        if let Some(mac) = with_mac(veth.peer_mac) {
            peer = peer.append_extra_attribute(mac);
        }
        let mut link = LinkVeth::new(veth.name, veth.peer).set_info_data(InfoData::Veth(InfoVeth::Peer(peer.build())));
        if let Some(mac) = with_mac(veth.mac) {
            link = link.append_extra_attribute(mac);
        }
        self.add(veth.name, link.build());
    }

    /// A bridge that floods all multicast: it does not snoop.
    #[track_caller]
    pub fn add_bridge(&self, name: &str, mac: Option<Mac>) {
        let mut bridge = LinkBridge::new(name).mcast_snooping(false);
        if let Some(mac) = mac {
            bridge = bridge.address(mac.to_vec());
        }
        self.add(name, bridge.build());
    }

    /// A macvlan in bridge mode on `trunk`, which is put into `netns`.
    #[track_caller]
    pub fn add_macvlan(&self, name: &str, trunk: &str, mac: Mac, netns: &Netns) {
        let file = netns.open();
        let link = LinkMacVlan::new(name, self.index(trunk), MacVlanMode::Bridge);
        self.add(name, link.address(mac.to_vec()).setns_by_fd(file.as_raw_fd()).build());
    }

    #[track_caller]
    pub fn up(&self, name: &str) {
        self.set(name, LinkMessageBuilder::up);
    }

    #[track_caller]
    pub fn set_mac(&self, name: &str, mac: Mac) {
        self.set(name, |link| link.address(mac.to_vec()));
    }

    /// Puts it into a bridge.
    #[track_caller]
    pub fn set_master(&self, name: &str, bridge: &str) {
        let bridge = self.index(bridge);
        self.set(name, |link| link.controller(bridge));
    }

    /// Another name that it can be found by.
    #[track_caller]
    pub fn add_altname(&self, name: &str, other: &str) {
        self.wait(other, self.handle.link().property_add(self.index(name)).alt_ifname(&[other]).execute());
    }

    /// Gives it an address (`10.77.0.1/24`), which is usable at once.
    #[track_caller]
    pub fn add_address(&self, name: &str, address: impl ToString) {
        self.address(name, &address.to_string(), AddressFlags::empty());
    }

    /// The same, without the route to its network.
    #[track_caller]
    pub fn add_address_without_route(&self, name: &str, address: impl ToString) {
        self.address(name, &address.to_string(), AddressFlags::Noprefixroute);
    }

    #[track_caller]
    fn address(&self, name: &str, address: &str, mut flags: AddressFlags) {
        let parsed = network(address);
        let mut request = self.handle.address().add(self.index(name), parsed.ip(), parsed.prefix());
        if parsed.is_ipv6() {
            flags |= AddressFlags::Nodad;
        }
        request.message_mut().attributes.push(AddressAttribute::Flags(flags));
        self.wait(address, request.execute());
    }

    /// Adds a route, or changes the one that is there.
    #[track_caller]
    pub fn route(&self, route: Route) {
        let what = format!("{route:?}");
        let mut message = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(route.destination.ip(), route.destination.prefix())
            .unwrap();
        if let Some(gateway) = route.gateway {
            message = message.gateway(gateway).unwrap();
        } else if route.destination.is_ipv4() {
            message = message.scope(RouteScope::Link);
        }
        if let Some(device) = &route.device {
            message = message.output_interface(self.index(device));
        }
        if let Some(source) = route.source {
            message = message.pref_source(source).unwrap();
        }
        self.wait(&what, self.handle.route().add(message.build()).replace().execute());
    }

    /// An entry that needs no ARP and no neighbour discovery.
    #[track_caller]
    pub fn set_neighbour(&self, name: &str, address: impl ToString, mac: Mac) {
        let address = network(&address.to_string()).ip();
        let request = self.handle.neighbours().add(self.index(name), address);
        let request = request.link_layer_address(&mac).state(NeighbourState::Permanent).replace();
        self.wait(name, request.execute());
    }
}
