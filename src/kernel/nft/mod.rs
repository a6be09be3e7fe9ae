//! nf_tables over netlink: a [`Batch`] of changes that the kernel takes whole or not at all, and what is loaded, read back.
//!
//! Written by hand on the socket of `netlink`: what is read back is compared to the byte, so that writing and reading have
//! to be one piece of code, and no crate reads all that is written here (counters, dynamic sets, table flags) in the
//! time that an ADD has. `docs/decisions.md` goes through them one by one. Nothing is decided here.

mod batch;
mod compare;
mod compile;
mod events;
mod expression;
mod hooks;
mod inventory;
mod kernel;
mod listing;
mod read;
mod reported;
mod set;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::sys::socket::SockProtocol;

pub use batch::Batch;
pub use events::{Committer, NftChange, NftEvents};
pub use inventory::{ChainFound, RuleFound, SetFound, TableFound};
pub use read::{ChainInFront, Element, LoadedTable};

use crate::kernel::netlink::{LeftToKernel, NetlinkError, Socket, error_of};
use crate::rules::ruleset::Family;

/// The `nfgenmsg` that every message's body begins with.
fn header(family: Family) -> [u8; 4] {
    let number = match family {
        Family::Inet => 1,
        Family::Netdev => 5,
    };
    [number, 0, 0, 0]
}

/// What holds of any bytes (`fuzzing`), taken as one answer.
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    read::try_any(bytes);
    inventory::try_any(bytes);
    events::try_any(bytes);
    hooks::try_any(bytes);
}

/// nf_tables in one netns.
#[derive(Debug)]
pub struct Nft {
    socket: Socket,
    // Behind the socket: fields are dropped in this order.
    left: Option<LeftToKernel>,
}

impl Nft {
    /// Opens it in the calling thread's netns.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self { socket: Socket::open(SockProtocol::NetlinkNetFilter)?, left: None })
    }

    /// Has the kernel take all of `batch`, or nothing.
    ///
    /// # Errors
    /// `NetlinkError::Refused` with the first change that it refused.
    pub fn apply(&mut self, batch: &Batch) -> Result<(), NetlinkError> {
        if batch.is_empty() {
            return Ok(());
        }
        let first = self.socket.sequences(batch.messages() + 2);
        let bytes = batch.bytes(first);
        self.socket.send(&[std::io::IoSlice::new(&bytes)])?;
        // Each refused change is answered, in order, and at last the last one, whose acknowledgement was asked for. A
        // batch that fails as a whole is answered with the number of its beginning.
        let last = first + batch.messages();
        let mut refused = BTreeMap::new();
        loop {
            for message in self.socket.receive_datagram()? {
                let number = message.sequence_number();
                if !(first..=last).contains(&number) {
                    continue;
                }
                if let Some(Some(errno)) = error_of(message.payload()) {
                    refused.insert(number, errno);
                }
                if number == first || number == last {
                    return match refused.iter().find(|&(&number, _)| number != first).or(refused.iter().next()) {
                        None => Ok(()),
                        Some((number, &errno)) => Err(batch.refused(number - first, errno)),
                    };
                }
            }
        }
    }

    /// Wakes or puts to sleep these tables of a netns, in one transaction.
    pub fn set_dormant(&mut self, name: &str, families: &[Family], dormant: bool) -> Result<(), NetlinkError> {
        let mut batch = Batch::default();
        for &family in families {
            batch.set_dormant(family, name, dormant);
        }
        self.apply(&batch)
    }

    /// Deletes these tables where they are; says whether one was.
    pub fn delete(&mut self, name: &str, families: &[Family]) -> Result<bool, NetlinkError> {
        let mut batch = Batch::default();
        for &family in families {
            if self.has_table(family, name)? {
                batch.delete_table(family, name);
            }
        }
        match self.apply(&batch) {
            // Somebody was faster.
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(false),
            result => result.map(|()| !batch.is_empty()),
        }
    }
}

/// Closing waits for what anybody deleted in this netns to be freed, 10 to 20 ms after it; on a node there is always
/// somebody who just did. The kernel's own threads do that waiting.
impl Drop for Nft {
    fn drop(&mut self) {
        self.left = LeftToKernel::of(self.socket.as_fd()).ok();
    }
}

impl AsFd for Nft {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
