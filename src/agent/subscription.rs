//! Events of nf_tables and of links: how the agent hears that somebody touched what it holds.

use nix::sys::socket::SockProtocol;
use nix::unistd::gettid;
use std::os::fd::{AsFd, BorrowedFd};

use crate::kernel::netlink::{Events, NetlinkError, attribute, be32, text};
use crate::kernel::netns::Netns;
use crate::kernel::rtnetlink::read_link;
use crate::model::names::ContainerId;
use crate::node::sandbox::SandboxError;
use crate::rules::containment::guard_table;

const NFNLGRP_NFTABLES: u32 = 7;
const RTNLGRP_LINK: u32 = 1;
const NFTABLES: u16 = 10 << 8;
const NFT_MSG_NEWGEN: u16 = NFTABLES | 15;
const NFTA_GEN_PROC_PID: u16 = 2;
const NFTA_GEN_PROC_NAME: u16 = 3;
/// In the messages for tables, chains, rules and sets alike, the first attribute is the table's name.
const NFTA_TABLE: u16 = 1;
/// `struct nfgenmsg`.
const HEADER: usize = 4;
/// Bytes of events that may wait for the agent on the host, where each of its own changes makes some too.
const HOST_QUEUE: usize = 16 * 1024 * 1024;

/// What was heard.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Heard {
    /// Who changed nf_tables, other than this process: thread ID and name, as the kernel says them.
    pub(super) strangers: Vec<String>,
    /// Whether an interface appeared, changed or went.
    pub(super) links_changed: bool,
    /// Whether events were lost.
    pub(super) lost: bool,
}

impl Heard {
    /// Whether the sandbox has to be looked at.
    pub(super) fn is_of_interest(&self) -> bool {
        !self.strangers.is_empty() || self.links_changed || self.lost
    }
}

/// The thread IDs by which this process's own changes are known.
pub(super) type OwnThreads = [i32];

/// This thread's ID, as the kernel will say it of its changes.
pub(super) fn own_thread() -> i32 {
    gettid().as_raw()
}

/// The events of one sandbox's netns. They keep it alive, so they are closed as soon as nobody needs it.
#[derive(Debug)]
pub(super) struct PodEvents {
    rules: Events,
    links: Events,
}

impl PodEvents {
    pub(super) fn subscribe(netns: &Netns) -> Result<Self, SandboxError> {
        let subscribed = netns.run(|| {
            Ok::<_, NetlinkError>(Self {
                rules: Events::subscribe(SockProtocol::NetlinkNetFilter, NFNLGRP_NFTABLES)?,
                links: Events::subscribe(SockProtocol::NetlinkRoute, RTNLGRP_LINK)?,
            })
        })?;
        Ok(subscribed?)
    }

    /// The descriptors to wait for.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.rules.as_fd(), self.links.as_fd()]
    }

    /// Takes what waits.
    pub(super) fn drain(&self, buffer: &mut [u8], own: &OwnThreads) -> Heard {
        let mut heard = Heard::default();
        let rules = self.rules.drain(buffer, |kind, payload| heard.strangers.extend(stranger(kind, payload, own)));
        let mut links_changed = false;
        let links = self
            .links
            .drain(buffer, |_, payload| links_changed |= read_link(payload).is_some_and(|link| !link.is_loopback));
        heard.links_changed = links_changed;
        heard.lost = rules.unwrap_or(true) | links.unwrap_or(true);
        heard
    }
}

/// The events of nf_tables on the host.
#[derive(Debug)]
pub(super) struct HostEvents {
    rules: Events,
}

impl HostEvents {
    /// Subscribes in the calling thread's netns.
    pub(super) fn subscribe() -> Result<Self, NetlinkError> {
        let rules = Events::subscribe(SockProtocol::NetlinkNetFilter, NFNLGRP_NFTABLES)?;
        rules.queue_up_to(HOST_QUEUE);
        Ok(Self { rules })
    }

    /// Takes what waits: the sandboxes whose host guard somebody else changed, with who did, and whether events were
    /// lost.
    pub(super) fn drain(&self, buffer: &mut [u8], own: &OwnThreads) -> (Vec<(ContainerId, String)>, bool) {
        let (mut touched, mut pending) = (Vec::new(), Vec::new());
        let drained = self.rules.drain(buffer, |kind, payload| {
            if kind == NFT_MSG_NEWGEN {
                // Each transaction ends with one, and only it says whose it was.
                if let Some(stranger) = stranger(kind, payload, own) {
                    touched.extend(pending.drain(..).map(|container_id| (container_id, stranger.clone())));
                }
                pending.clear();
            } else if let Some(container_id) = guarded_sandbox(payload)
                && pending.last() != Some(&container_id)
            {
                pending.push(container_id);
            }
        });
        (touched, drained.unwrap_or(true))
    }
}

impl AsFd for HostEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rules.as_fd()
    }
}

fn stranger(kind: u16, payload: &[u8], own: &OwnThreads) -> Option<String> {
    if kind != NFT_MSG_NEWGEN {
        return None;
    }
    let attributes = payload.get(HEADER..)?;
    let thread = attribute(attributes, NFTA_GEN_PROC_PID).and_then(be32)?.cast_signed();
    let name = attribute(attributes, NFTA_GEN_PROC_NAME).map(text).unwrap_or_default();
    (!own.contains(&thread)).then(|| format!("{}[{thread}]", name.escape_ascii()))
}

fn guarded_sandbox(payload: &[u8]) -> Option<ContainerId> {
    let table = attribute(payload.get(HEADER..)?, NFTA_TABLE).map(text)?;
    let table = std::str::from_utf8(table).ok()?;
    let container_id = ContainerId::new(table.split_once('-')?.1).ok()?;
    (guard_table(&container_id) == table).then_some(container_id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::{put, put_text};

    #[test]
    fn strangers_are_told_from_our_own_threads() {
        let mut payload = vec![0; HEADER];
        put(&mut payload, NFTA_GEN_PROC_PID, &7_u32.to_be_bytes());
        put_text(&mut payload, NFTA_GEN_PROC_NAME, b"nft\n");
        assert_eq!(stranger(NFT_MSG_NEWGEN, &payload, &[7]), None);
        assert_eq!(stranger(NFT_MSG_NEWGEN, &payload, &[8]), Some("nft\\n[7]".to_owned()));
        assert_eq!(stranger(NFTABLES, &payload, &[8]), None);
    }

    #[test]
    fn only_guards_name_a_sandbox() {
        let named = |table: &str| {
            let mut payload = vec![0; HEADER];
            put_text(&mut payload, NFTA_TABLE, table.as_bytes());
            guarded_sandbox(&payload).map(|container_id| container_id.to_string())
        };
        assert_eq!(named("quarantine-a-b"), Some("a-b".to_owned()));
        assert_eq!((named("quarantine"), named("firewall-x"), named("quarantine-")), (None, None, None));
    }
}
