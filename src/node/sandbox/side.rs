//! One side of a sandbox: nf_tables and links of one netns, the pod's or the host's.

use crate::kernel::netlink::NetlinkError;
use crate::kernel::netns::Netns;
use crate::kernel::nft::Nft;
use crate::kernel::rtnetlink::Links;

use super::SandboxError;

/// nf_tables and links of one netns. The sockets belong to it, whatever thread uses them.
#[derive(Debug)]
pub struct Side {
    /// Its nf_tables.
    pub nft: Nft,
    /// Its links.
    pub links: Links,
}

impl Side {
    /// The calling thread's own netns: the host's.
    pub fn own() -> Result<Self, NetlinkError> {
        Ok(Self { nft: Nft::open()?, links: Links::open()? })
    }

    /// Another netns.
    ///
    /// # Errors
    /// [`SandboxError::Netns`], [`SandboxError::Kernel`].
    pub fn of(netns: &Netns) -> Result<Self, SandboxError> {
        Ok(netns.run(Self::own)??)
    }
}
