//! `sync`: brings every sandbox of the node to what its marks want, once.

use std::io::Write;
use std::path::Path;

use crate::attachment::ContainerId;
use crate::enforce::{self, EnforceError, Outcome};
use crate::plugin::chain;
use crate::sandbox::{Scan, Side};
use crate::state::StateDir;

use super::workers::on_each;
use super::{Exit, Failure, print};

/// `quarantine sync`.
pub(super) fn sync(state_dir: &Path) -> Result<Exit, Failure> {
    let state = StateDir::open(state_dir)?;
    let sandboxes = state.sandboxes()?;
    let results = on_each(&sandboxes, |host, container_id| bring(&state, host, container_id))?;
    let mut exit = Exit::So;
    for (container_id, result) in sandboxes.iter().zip(results) {
        match result {
            Ok(_) => {}
            Err(Fault { isolated: false, error: EnforceError::Sandbox(error) }) if error.is_gone() => {
                print(&format!("{container_id}: gone, and not marked: {}\n", chain(&error)));
            }
            Err(fault) => {
                let _ = writeln!(std::io::stderr(), "quarantine: {container_id}: {}", chain(&fault.error));
                exit = Exit::NotSo;
            }
        }
    }
    Ok(exit)
}

/// Why a sandbox could not be brought to what is wanted.
pub(super) struct Fault {
    /// Whether a mark holds for it, or it is not known that none does.
    pub(super) isolated: bool,
    pub(super) error: EnforceError,
}

/// Brings one sandbox to what its marks want, under its lock.
pub(super) fn bring(state: &StateDir, host: &mut Side, container_id: &ContainerId) -> Result<Outcome, Fault> {
    let unsure = |error: EnforceError| Fault { isolated: true, error };
    let _lock = state.lock(container_id).map_err(|error| unsure(error.into()))?;
    let (records, _) = state.records_of(container_id);
    enforce::apply(state, host, container_id, &records, Scan::Node).map_err(|error| {
        let pod = enforce::pod_of(&records);
        let isolated =
            enforce::desired(state, container_id, &pod, &records).map_or(true, |desired| desired.is_isolated());
        Fault { isolated, error }
    })
}
