//! Interfaces, addresses, routes and what hangs on an interface, over rtnetlink, in one netns.
//!
//! Only questions; nothing here changes anything but what the kernel remembers of a neighbour.

mod events;
mod inventory;
mod link;
mod neighbour;
mod route;
mod tc;

use std::os::fd::{AsFd, AsRawFd};

use netlink_packet_core::{Emitable, Parseable};
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};
use nix::libc;
use nix::sys::socket::SockProtocol;

pub use events::{LinkEvents, NodeChange, NodeEvents};
pub use inventory::{AddressFound, FilterFound, LinkFound, NeighbourFound, QdiscFound, RouteFound, RuleFound};
pub use link::Link;
pub use tc::Jump;

use crate::kernel::netlink::{NetlinkError, Socket};
use crate::kernel::netns::Netns;

/// The links of one netns.
#[derive(Debug)]
pub struct Links {
    socket: Socket,
}

impl Links {
    /// Opens them in the calling thread's netns.
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

    /// The ID by which this netns knows another, where it has one.
    pub fn id_of(&mut self, netns: &Netns) -> Result<Option<i32>, NetlinkError> {
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
}

fn emit(message: &impl Emitable) -> Vec<u8> {
    let mut body = vec![0; message.buffer_len()];
    message.emit(&mut body);
    body
}

/// What holds of any bytes (`fuzzing`), taken as one answer.
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    if let Some(link) = link::read_link(bytes) {
        // What has a name that an interface cannot have is written down all the same; what is guarded has one.
        assert!(!link.name.as_bytes().is_empty());
    }
    let _ = NsidMessage::parse(bytes);
    inventory::try_any(bytes);
    events::try_any(bytes);
    route::try_any(bytes);
}
