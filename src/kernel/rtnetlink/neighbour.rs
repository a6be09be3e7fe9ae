//! Who is on the link: the kernel's neighbour entries.

use std::net::IpAddr;
use std::time::Duration;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use nix::libc;

use super::Links;
use crate::kernel::netlink::{NetlinkError, attribute, put};
use crate::model::names::Mac;

/// `struct ndmsg`.
const NEIGHBOUR_HEADER: usize = 12;

impl Links {
    /// The Ethernet address of a neighbour. Where this netns does not know it, it asks, and waits a little for the
    /// answer.
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
            &neighbour_body(index, neighbour, libc::NTF_USE),
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
        match self.socket.ask("look up a neighbour", libc::RTM_GETNEIGH, &neighbour_body(index, neighbour, 0)) {
            Ok(answer) => Ok(answer.and_then(|payload| {
                attribute(payload.get(NEIGHBOUR_HEADER..)?, libc::NDA_LLADDR)?.try_into().ok().map(Mac)
            })),
            Err(NetlinkError::Refused { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

fn neighbour_body(index: u32, neighbour: IpAddr, flags: u8) -> Vec<u8> {
    let mut body = vec![0; NEIGHBOUR_HEADER];
    body[0] = if neighbour.is_ipv6() { libc::AF_INET6 } else { libc::AF_INET } as u8;
    body[4..8].copy_from_slice(&index.to_ne_bytes());
    body[10] = flags;
    match neighbour {
        IpAddr::V4(neighbour) => put(&mut body, libc::NDA_DST, &neighbour.octets()),
        IpAddr::V6(neighbour) => put(&mut body, libc::NDA_DST, &neighbour.octets()),
    }
    body
}
