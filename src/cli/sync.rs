//! `sync`: brings every sandbox of the node to what its marks want, once.

use std::path::Path;
use std::time::Duration;

use crate::evidence::Collectors;
use crate::model::audit::chain;
use crate::model::names::ContainerId;
use crate::node::enforce::{self, EnforceError, Enforced};
use crate::node::sandbox::{NodeScan, Scan, Side, remove_guards_of_nothing};
use crate::node::state::StateDir;

use super::{Exit, Failure, print, say_error};
use crate::node::workers::on_each;

/// How long a command waits for whoever is at work on a sandbox.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// `quarantine sync`.
pub(super) fn sync(state_dir: &Path, collectors: Option<Collectors>) -> Result<Exit, Failure> {
    let state = StateDir::open(state_dir)?;
    let sandboxes = state.sandboxes()?;
    let scan = NodeScan::default();
    let results = on_each(&sandboxes, |host, container_id| sync_one(&state, host, container_id, &scan))?;
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
                    collectors.collect(container_id.clone());
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
    // A service manager ends what is left of a service when its main process ends.
    if let Some(collectors) = collectors {
        collectors.finish();
    }
    Ok(exit)
}

/// Brings one sandbox to what its marks want. `None` where it was deleted meanwhile.
pub(super) fn sync_one(
    state: &StateDir,
    host: &mut Side,
    container_id: &ContainerId,
    scan: &NodeScan,
) -> Result<Option<Enforced>, EnforceError> {
    enforce::apply_locked(state, host, container_id, Scan::Node(scan), LOCK_PATIENCE)
}
