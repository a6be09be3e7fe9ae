//! The cut: a sandbox is stopped whole, in the smallest batches that there are, before anything is looked up or compiled
//! for what its policy lets through.
//!
//! Here nothing fails: what could not be done is done, or said, by `Sandbox::apply`, which comes behind it and reads back.

use nix::errno::Errno;

use crate::kernel::netlink::NetlinkError;
use crate::kernel::nft::Batch;
use crate::kernel::rtnetlink::Link;
use crate::model::names::{ContainerId, IfName};
use crate::model::record::HostGuard;
use crate::model::records::SandboxRecords;
use crate::rules::containment::{EgressHook, SealedEnd, TABLE, sealed_guard};

use super::{POD_FAMILIES, Sandbox, Side, bpf};

/// What is known of a sandbox that is to be brought to what is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Before {
    /// Nothing: it is asked for.
    Unknown,
    /// It was released, and has just been cut off for this by [`Sandbox::cut`].
    Cut,
}

/// The frame of a host guard that is to be loaded; of no ends, where none can be told or no guard is wanted.
#[derive(Debug)]
pub struct SealedGuard {
    container_id: ContainerId,
    ends: Vec<SealedEnd>,
}

impl Sandbox<'_> {
    /// Wakes the frame that ADD left in the pod, and gives the guard that seals its ends on the host, to be loaded by
    /// [`load_guards`]. The ends are those that ADD found, as long as they can be told without asking more; `apply` finds the
    /// others. `None`, and nothing is touched, where the configuration requires a guard and one of the ends cannot be told.
    pub fn cut(&mut self) -> Option<SealedGuard> {
        let ends = if self.host_guard() == HostGuard::Off { Ok(Vec::new()) } else { self.ends_as_recorded() };
        let Ok(ends) = ends else { return None };
        let sealed = |(link, interface): (Link, IfName)| SealedEnd { device: link.name, interface };
        let ends: Vec<_> = ends.into_iter().map(sealed).collect();
        if self.host_guard() == HostGuard::Require && ends.len() < self.records.pinned_interfaces().len() {
            return None;
        }
        // The quickest first, where it is there at all.
        if self.host_guard() != HostGuard::Off {
            bpf::arm(self.host, self.records.container_id());
        }
        // Whatever is in them: to wake what somebody changed lets no more through than to leave it asleep.
        let _ = self.pod.nft.set_dormant(TABLE, &POD_FAMILIES, false);
        Some(SealedGuard { container_id: self.records.container_id().clone(), ends })
    }

    pub(super) fn ends_as_recorded(&mut self) -> Result<Vec<(Link, IfName)>, NetlinkError> {
        ends_as_recorded(self.host, self.records)
    }
}

/// The ends on the host that ADD found, as long as they can be told without asking more, and whose they are.
pub(super) fn ends_as_recorded(host: &mut Side, records: &SandboxRecords) -> Result<Vec<(Link, IfName)>, NetlinkError> {
    let mut ends = Vec::new();
    for pinned in records.pinned_interfaces() {
        let Some(end) = &pinned.host_end else { continue };
        let link = host.links.by_index(end.index)?.filter(Link::is_pair);
        if let Some(link) = link.filter(|link| end.resembles(&link.name, link.mac)) {
            ends.push((link, pinned.interface.name.clone()));
        }
    }
    Ok(ends)
}

/// Loads guards in one transaction; where the kernel takes that not, each by itself, so that one that cannot be loaded
/// takes none of the others along.
pub fn load_guards(host: &mut Side, guards: &[SealedGuard]) {
    if load(host, guards, EgressHook::Netdev).is_ok() {
        return;
    }
    for guard in guards {
        let guard = std::slice::from_ref(guard);
        if load(host, guard, EgressHook::Netdev).is_err_and(|error| error.errno() == Some(Errno::EOPNOTSUPP)) {
            // No netdev egress hook (before 5.16): what the pod sends is met.
            let _ = load(host, guard, EgressHook::Missing);
        }
    }
}

fn load(host: &mut Side, guards: &[SealedGuard], egress: EgressHook) -> Result<(), NetlinkError> {
    let mut batch = Batch::default();
    for SealedGuard { container_id, ends } in guards.iter().filter(|guard| !guard.ends.is_empty()) {
        batch.add_table(&sealed_guard(container_id, ends, egress));
    }
    host.nft.apply(&batch)
}
