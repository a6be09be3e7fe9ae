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
use crate::node::enforce::{self, EnforceError};
use crate::node::sandbox::{NodeScan, Readiness, Sandbox, SandboxError, Scan, Side, are_ready, wants_ready};
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
                self.attend_one(state, host, container_id, &scan);
            }
            Birth::Sweep(sandboxes) => {
                let scan = Arc::new(NodeScan::default());
                *self.scan.write().unwrap_or_else(PoisonError::into_inner) = scan.clone();
                for container_id in sandboxes {
                    if !are_ready(host.links.netns_cookie(), container_id) {
                        self.attend_one(state, host, container_id, &scan);
                    }
                }
                hold(&self.failed).retain(|container_id| sandboxes.contains(container_id));
                self.is_sweeping.store(false, Ordering::Release);
                log::debug!("{}", Line::new("births-swept").with("sandboxes", sandboxes.len()));
            }
        }
    }

    fn attend_one(&self, state: &StateDir, host: &mut Side, container_id: &ContainerId, scan: &NodeScan) {
        let why = match make_ready(state, host, container_id, scan) {
            Ok(None | Some(Readiness::Stood)) => return,
            Ok(Some(Readiness::Attached)) => {
                log::debug!("{}", Line::new("ebpf-ready").with("container", container_id));
                hold(&self.failed).remove(container_id);
                return;
            }
            Ok(Some(Readiness::Failed(why))) => why,
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

/// `None` where nothing is wanted, or cannot be had now. Whether it is, is asked before the lock, and without entering the sandbox: on a node
/// where nothing redirects that is all.
fn make_ready(
    state: &StateDir,
    host: &mut Side,
    container_id: &ContainerId,
    scan: &NodeScan,
) -> Result<Option<Readiness>, EnforceError> {
    let records = |state: &StateDir| state.records_of(container_id).0;
    let Some(recorded) = records(state) else { return Ok(None) };
    if !wants_ready(host, &recorded, Scan::Node(scan)).map_err(SandboxError::from)? {
        return Ok(None);
    }
    let Some(_lock) = state.lock_within(container_id, LOCK_PATIENCE)? else { return Ok(None) };
    let Some(records) = records(state).filter(|records| records.ebpf() == recorded.ebpf()) else { return Ok(None) };
    if enforce::desired(state, &records)?.is_isolated() {
        return Ok(None);
    }
    let mut sandbox = Sandbox::open(host, &records)?;
    if sandbox.is_isolated_in_part().map_err(SandboxError::from)? {
        return Ok(None);
    }
    Ok(Some(sandbox.make_ready()?))
}
