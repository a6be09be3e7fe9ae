//! What changed in nf_tables, heard as it happens.

use std::os::fd::{AsFd, BorrowedFd};

use nix::libc;
use nix::sys::socket::SockProtocol;

use super::kernel;
use super::read::behind_header;
use crate::kernel::netlink::{Events, NetlinkError, attribute, be32, text};

/// One thing that was heard. The changes of a transaction come first, then who made it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NftChange {
    /// Something was made, changed or deleted in the table of this name.
    InTable(Vec<u8>),
    /// A transaction ended.
    Committed(Committer),
}

/// Who made a transaction, as the kernel says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Committer {
    /// The thread's ID.
    pub thread: i32,
    /// Its name, which it may choose.
    pub name: Vec<u8>,
}

/// The events of nf_tables in one netns.
#[derive(Debug)]
pub struct NftEvents {
    events: Events,
}

impl NftEvents {
    /// Subscribes in the calling thread's netns.
    ///
    /// # Errors
    /// `NetlinkError::Socket`.
    pub fn subscribe() -> Result<Self, NetlinkError> {
        let group = libc::NFNLGRP_NFTABLES.unsigned_abs();
        Ok(Self { events: Events::subscribe(SockProtocol::NetlinkNetFilter, group)? })
    }

    /// How many bytes of events may wait.
    pub fn queue_up_to(&self, bytes: usize) {
        self.events.queue_up_to(bytes);
    }

    /// Takes what waits, each change to `each`; says whether some were lost.
    pub fn drain(&self, buffer: &mut [u8], mut each: impl FnMut(NftChange)) -> bool {
        let drained = self.events.drain(buffer, |kind, payload| {
            if let Some(change) = read_change(kind, payload) {
                each(change);
            }
        });
        drained.unwrap_or(true)
    }
}

impl AsFd for NftEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

fn read_change(kind: u16, payload: &[u8]) -> Option<NftChange> {
    let attributes = behind_header(payload);
    if kind == kernel::SUBSYSTEM | kernel::MSG_NEWGEN {
        let thread = attribute(attributes, kernel::GEN_PROC_PID).and_then(be32)?.cast_signed();
        let name = attribute(attributes, kernel::GEN_PROC_NAME).map(text).unwrap_or_default().to_vec();
        return Some(NftChange::Committed(Committer { thread, name }));
    }
    // Of tables, chains, rules and sets alike, the first attribute is the table's name.
    attribute(attributes, kernel::TABLE_NAME).map(|table| NftChange::InTable(text(table).to_vec()))
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(bytes: &[u8]) {
    for kind in [kernel::MSG_NEWGEN, kernel::MSG_NEWRULE] {
        let _ = read_change(kernel::SUBSYSTEM | kind, bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::{put, put_text};

    #[test]
    fn who_committed_is_told() {
        let mut payload = vec![0; 4];
        put(&mut payload, kernel::GEN_PROC_PID, &7_u32.to_be_bytes());
        put_text(&mut payload, kernel::GEN_PROC_NAME, b"nft\n");
        let committer = Committer { thread: 7, name: b"nft\n".to_vec() };
        assert_eq!(
            read_change(kernel::SUBSYSTEM | kernel::MSG_NEWGEN, &payload),
            Some(NftChange::Committed(committer))
        );
    }

    #[test]
    fn what_changed_is_told_by_its_table() {
        let mut payload = vec![0; 4];
        put_text(&mut payload, kernel::RULE_TABLE, b"quarantine-c1");
        let change = read_change(kernel::SUBSYSTEM | kernel::MSG_NEWRULE, &payload);
        assert_eq!(change, Some(NftChange::InTable(b"quarantine-c1".to_vec())));
        assert_eq!(read_change(kernel::SUBSYSTEM | kernel::MSG_NEWRULE, &[]), None);
    }
}
