//! Events of nf_tables and of links: how the agent hears that somebody touched what it holds.

use std::os::fd::{AsFd, BorrowedFd};

use super::captures::bind_or_say;
use crate::kernel::netlink::NetlinkError;
use crate::kernel::netns::Netns;
use crate::kernel::nflog::Nflog;
use crate::kernel::nft::{Committer, NftChange, NftEvents};
use crate::kernel::rtnetlink::LinkEvents;
use crate::model::names::ContainerId;
use crate::model::records::SandboxRecords;
use crate::node::sandbox::SandboxError;
use crate::rules::containment::guard_table;
use crate::rules::reports::{GROUP, LENGTH};
use crate::rules::senders::SENDERS;

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

/// The events of one sandbox's netns. They keep it alive, so they are closed as soon as nobody needs it.
#[derive(Debug)]
pub(super) struct PodEvents {
    rules: NftEvents,
    links: LinkEvents,
    capture: Option<PodCapture>,
}

/// That what is dropped of a sandbox is kept.
#[derive(Debug)]
pub(super) struct PodCapture {
    /// What the rules in the pod hand over; where somebody else has that, the host guard's alone is kept.
    pub(super) pod: Option<Nflog>,
}

impl PodEvents {
    pub(super) fn subscribe(netns: &Netns) -> Result<Self, SandboxError> {
        let subscribed = netns.run(|| {
            let (rules, links) = (NftEvents::subscribe()?, LinkEvents::subscribe()?);
            Ok::<_, NetlinkError>(Self { rules, links, capture: None })
        })?;
        Ok(subscribed?)
    }

    /// Has what is dropped be kept too. After the cut, which waits for nothing of it.
    pub(super) fn capture(&mut self, records: &SandboxRecords) {
        let bind = || -> Result<Nflog, SandboxError> {
            let netns = Netns::open(records.netns())?;
            Ok(netns.run(|| Nflog::bind(GROUP, LENGTH))??)
        };
        self.capture = Some(PodCapture { pod: bind_or_say(records.container_id(), bind) });
    }

    /// What is to be kept, once.
    pub(super) fn take_capture(&mut self) -> Option<PodCapture> {
        self.capture.take()
    }

    /// The descriptors to wait for.
    pub(super) fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.rules.as_fd(), self.links.as_fd()]
    }

    /// Takes what waits.
    pub(super) fn drain(&self, buffer: &mut [u8], own: &OwnThreads) -> Heard {
        let mut heard = Heard::default();
        let rules_lost = self.rules.drain(buffer, |change| {
            if let NftChange::Committed(committer) = change {
                heard.strangers.extend(stranger(&committer, own));
            }
        });
        let links_lost = self.links.drain(buffer, |link| heard.links_changed |= !link.is_loopback);
        heard.lost = rules_lost | links_lost;
        heard
    }
}

/// The events of nf_tables on the host.
#[derive(Debug)]
pub(super) struct HostEvents {
    rules: NftEvents,
}

impl HostEvents {
    /// Subscribes in the calling thread's netns.
    pub(super) fn subscribe() -> Result<Self, NetlinkError> {
        let rules = NftEvents::subscribe()?;
        rules.queue_up_to(HOST_QUEUE);
        Ok(Self { rules })
    }

    /// Takes what waits: the sandboxes whose host guard somebody else changed, with who did, and whether all of them may be
    /// concerned, since events were lost or are of all.
    pub(super) fn drain(&self, buffer: &mut [u8], own: &OwnThreads) -> (Vec<(ContainerId, String)>, bool) {
        let (mut touched, mut pending) = (Vec::new(), Vec::new());
        // What tells probes is of all sandboxes that let those of one prober pass.
        let (mut senders_pending, mut senders_touched) = (false, false);
        let lost = self.rules.drain(buffer, |change| match change {
            NftChange::InTable(table) if table.starts_with(SENDERS.as_bytes()) => senders_pending = true,
            NftChange::InTable(table) => {
                pending.extend(guarded_sandbox(&table).filter(|container_id| pending.last() != Some(container_id)));
            }
            NftChange::Committed(committer) => {
                let changed = pending.drain(..);
                senders_touched |= std::mem::take(&mut senders_pending) && stranger(&committer, own).is_some();
                if let Some(stranger) = stranger(&committer, own) {
                    touched.extend(changed.map(|container_id| (container_id, stranger.clone())));
                }
            }
        });
        (touched, lost || senders_touched)
    }
}

impl AsFd for HostEvents {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.rules.as_fd()
    }
}

fn stranger(committer: &Committer, own: &OwnThreads) -> Option<String> {
    let Committer { thread, name } = committer;
    (!own.contains(thread)).then(|| format!("{}[{thread}]", name.escape_ascii()))
}

fn guarded_sandbox(table: &[u8]) -> Option<ContainerId> {
    let table = std::str::from_utf8(table).ok()?;
    let container_id = ContainerId::new(table.split_once('-')?.1).ok()?;
    (guard_table(&container_id) == table).then_some(container_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_told_from_our_own_threads() {
        let committer = Committer { thread: 7, name: b"nft\n".to_vec() };
        assert_eq!(stranger(&committer, &[7]), None);
        assert_eq!(stranger(&committer, &[8]), Some("nft\\n[7]".to_owned()));
    }

    #[test]
    fn only_guards_name_a_sandbox() {
        let named = |table: &str| guarded_sandbox(table.as_bytes()).map(|container_id| container_id.to_string());
        assert_eq!(named("quarantine-a-b"), Some("a-b".to_owned()));
        assert_eq!((named("quarantine"), named("firewall-x"), named("quarantine-")), (None, None, None));
    }
}
