//! Programs that wait on released sandboxes: attached by the agent, off the path of whoever makes a pod, where the node's network takes
//! packets past netfilter.
//!
//! At a sandbox's birth, and once a minute for those of which it was not known then: no event tells that a program was attached somewhere.
//! One after another, since the kernel takes them so, and with less right than any mark.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use crate::model::audit::{Line, chain};
use crate::model::names::ContainerId;
use crate::model::record::Ebpf;
use crate::model::records::SandboxRecords;
use crate::node::enforce::{self, EnforceError};
use crate::node::sandbox::{NodeScan, Readiness, Sandbox, SandboxError, Scan, Side, are_ready};
use crate::node::state::StateDir;
use crate::node::workers::hold;

/// Sandboxes that may want programs.
#[derive(Debug)]
pub(super) enum Birth {
    /// One that was made.
    Of(ContainerId),
    /// All that there are.
    Sweep(Vec<ContainerId>),
}

/// Whether a sandbox's own ends were there when the node was looked at.
#[derive(Debug, Clone, Copy)]
enum Seen {
    Surely,
    Perhaps,
}

/// What the workers know of it together.
#[derive(Debug, Default)]
pub(super) struct Births {
    /// What was found on the node's interfaces at the last sweep.
    scan: RwLock<Arc<NodeScan>>,
    is_sweeping: AtomicBool,
    /// Those of which it was said that it cannot be done.
    failed: Mutex<BTreeSet<ContainerId>>,
}

impl Births {
    /// Whether a sweep may begin, which is the caller's then.
    pub(super) fn may_sweep(&self) -> bool {
        !self.is_sweeping.swap(true, Ordering::AcqRel)
    }

    /// Attaches what is wanted.
    pub(super) fn attend(&self, state: &StateDir, host: &mut Side, birth: &Birth) {
        match birth {
            Birth::Of(container_id) => {
                let scan = self.scan.read().unwrap_or_else(PoisonError::into_inner).clone();
                self.attend_one(state, host, container_id, &scan, Seen::Perhaps);
            }
            Birth::Sweep(sandboxes) => {
                let scan = Arc::new(NodeScan::default());
                *self.scan.write().unwrap_or_else(PoisonError::into_inner) = scan.clone();
                sandboxes
                    .iter()
                    .for_each(|container_id| self.attend_one(state, host, container_id, &scan, Seen::Surely));
                hold(&self.failed).retain(|container_id| sandboxes.contains(container_id));
                self.is_sweeping.store(false, Ordering::Release);
                log::debug!("{}", Line::new("births-swept").with("sandboxes", sandboxes.len()));
            }
        }
    }

    fn attend_one(&self, state: &StateDir, host: &mut Side, container_id: &ContainerId, scan: &NodeScan, seen: Seen) {
        if are_ready(host.links.netns_cookie(), container_id) {
            return;
        }
        let why = match make_ready(state, host, container_id, scan, seen) {
            Ok(Readiness::Ready) => {
                log::debug!("{}", Line::new("ebpf-ready").with("container", container_id));
                hold(&self.failed).remove(container_id);
                return;
            }
            Ok(Readiness::NotWanted) => return,
            Ok(Readiness::Failed(why)) => why,
            Err(EnforceError::Sandbox(error)) if error.is_gone() => return,
            Err(error) => chain(&error),
        };
        if hold(&self.failed).insert(container_id.clone()) {
            log::warn!("{}", Line::new("ebpf-not-ready").with("container", container_id).with("error", why));
        }
    }
}

/// How long is waited for whoever is at work on a sandbox, its ADD above all; the next sweep comes.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

fn make_ready(
    state: &StateDir,
    host: &mut Side,
    container_id: &ContainerId,
    scan: &NodeScan,
    seen: Seen,
) -> Result<Readiness, EnforceError> {
    // A record is read in less time than a netns is entered.
    let is_wanted = |records: &SandboxRecords, host: &mut Side| match (records.ebpf(), seen) {
        (Ebpf::Off, _) => Ok(false),
        (Ebpf::Always, _) | (Ebpf::Auto, Seen::Perhaps) => Ok(true),
        (Ebpf::Auto, Seen::Surely) => scan.finds_any(host),
    };
    let Some(_lock) = state.lock_within(container_id, LOCK_PATIENCE)? else { return Ok(Readiness::NotWanted) };
    let Some(records) = state.records_of(container_id).0 else { return Ok(Readiness::NotWanted) };
    if !is_wanted(&records, host).map_err(SandboxError::from)? || enforce::desired(state, &records)?.is_isolated() {
        return Ok(Readiness::NotWanted);
    }
    let mut sandbox = Sandbox::open(host, &records)?;
    if sandbox.is_isolated_in_part().map_err(SandboxError::from)? {
        return Ok(Readiness::NotWanted);
    }
    Ok(sandbox.make_ready(Scan::Node(scan))?)
}
