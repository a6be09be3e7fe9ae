//! `sync`: brings every sandbox of the node to what its marks want, once.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use crate::evidence::Collectors;
use crate::kernel::netlink::NetlinkError;
use crate::model::audit::chain;
use crate::model::names::ContainerId;
use crate::model::subject::Subject;
use crate::node::enforce::{self, CUT_AT_ONCE, EnforceError, Enforced};
use crate::node::sandbox::{Before, NodeScan, Scan, Side, remove_guards_of_nothing};
use crate::node::state::StateDir;

use super::{Exit, Failure, host_pods, print, say_error};
use crate::node::workers::{count, on_each};

/// How long a command waits for whoever is at work on a sandbox.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// `quarantine sync`.
pub(super) fn sync(state_dir: &Path, collectors: Option<Collectors>) -> Result<Exit, Failure> {
    let state = StateDir::open(state_dir)?;
    let sandboxes = state.sandboxes()?;
    let scan = NodeScan::default();
    let results = sync_all(&state, &sandboxes, &scan, |_, _, synced| synced)?;
    let mut exit = Exit::Done;
    let cleaned = Side::own()
        .and_then(|mut host| remove_guards_of_nothing(&mut host, |container_id| sandboxes.contains(container_id)));
    if let Err(error) = cleaned {
        say_error(&chain(&error));
        exit = Exit::NotDone;
    }
    for (container_id, result) in sandboxes.iter().zip(results) {
        match result {
            Ok(outcome) => {
                if let Some(collectors) = collectors.as_ref().filter(|_| outcome.is_some_and(|outcome| outcome.is_new))
                {
                    collectors.collect(container_id.clone().into());
                }
            }
            // Nothing is left of it to isolate; its record stays for the runtime's DEL or GC.
            Err(EnforceError::Sandbox(error)) if error.is_gone() => {
                print(&format!("{container_id}: gone: {}\n", chain(&error)));
            }
            Err(error) => {
                say_error(&format!("{container_id}: {}", chain(&error)));
                exit = Exit::NotDone;
            }
        }
    }
    let is_new = |subject: Subject| collectors.iter().for_each(|collectors| collectors.collect(subject.clone()));
    for failure in host_pods::sync(&state, is_new)? {
        say_error(&failure);
        exit = Exit::NotDone;
    }
    // A service manager ends what is left of a service when its main process ends.
    if let Some(collectors) = collectors {
        collectors.finish();
    }
    Ok(exit)
}

/// What became of a sandbox: `None` where it was deleted meanwhile.
pub(super) type Synced = Result<Option<Enforced>, EnforceError>;

/// Brings each of these to what its marks want; where they are many, all that are to be isolated are cut off first. What became
/// of each is handed to `done`.
pub(super) fn sync_all<R: Send>(
    state: &StateDir,
    sandboxes: &[ContainerId],
    scan: &NodeScan,
    done: impl Fn(&mut Side, &ContainerId, Synced) -> R + Sync,
) -> Result<Vec<R>, NetlinkError> {
    let chunks: Vec<_> = sandboxes.chunks(CUT_AT_ONCE).filter(|_| sandboxes.len() > 1).collect();
    let cut = on_each(&chunks, |host, chunk| {
        // Whoever is marked after that is cut off when it is applied.
        let marks = enforce::NodeMarks::new(state);
        enforce::cut_off(state, host, chunk, |id| id, |_, records| marks.desired(records).ok())
    })?;
    let cut: BTreeSet<&ContainerId> = cut.into_iter().flatten().collect();
    let before = |id: &ContainerId| if cut.contains(id) { Before::Cut } else { Before::Unknown };
    apply_all(state, sandboxes, before, scan, done)
}

/// The same where nobody is to be cut off first.
pub(super) fn apply_all<R: Send>(
    state: &StateDir,
    sandboxes: &[ContainerId],
    before: impl Fn(&ContainerId) -> Before + Sync,
    scan: &NodeScan,
    done: impl Fn(&mut Side, &ContainerId, Synced) -> R + Sync,
) -> Result<Vec<R>, NetlinkError> {
    // So that each thread has some.
    let together = sandboxes.len().div_ceil(count()).clamp(1, CUT_AT_ONCE);
    let chunks: Vec<_> = sandboxes.chunks(together).collect();
    let results = on_each(&chunks, |host, chunk| {
        let synced = enforce::apply_all_locked(state, host, chunk, &before, Scan::Node(scan), LOCK_PATIENCE);
        chunk.iter().zip(synced).map(|(id, synced)| done(host, id, synced)).collect::<Vec<_>>()
    })?;
    Ok(results.into_iter().flatten().collect())
}
