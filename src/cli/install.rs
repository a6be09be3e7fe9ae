//! `install`: puts the plugin onto the node, and says what it does not cover yet, or takes it in.

use std::io;
use std::path::Path;

use nix::unistd::geteuid;

use crate::adopt::{Places, uncovered};
use crate::install::command::InstallArgs;
use crate::node::sandbox::Side;
use crate::node::state::StateDir;

use super::inventory::Inventory;
use super::{Exit, Failure, adopt, print};

/// `quarantine install`.
pub(super) fn install(state_dir: &Path, arguments: &InstallArgs) -> Result<Exit, Failure> {
    arguments.run(state_dir, &mut io::stdout())?;
    let places = Places { conf: arguments.conf_dir(), ..Places::default() };
    if arguments.adopts_now() {
        print("\n");
        return adopt::all(state_dir, &places);
    }
    if geteuid().is_root()
        && let Some(text) = uncovered_text(state_dir, &places)
    {
        print(&text);
    }
    Ok(Exit::Done)
}

/// How many pods wait to be taken in; nothing where there is none, or where that cannot be told.
fn uncovered_text(state_dir: &Path, places: &Places) -> Option<String> {
    let state = StateDir::open(state_dir).ok();
    let node = state.as_ref().and_then(|state| Inventory::read(state).ok());
    let records = node.iter().flat_map(|node| node.sandboxes.iter().filter_map(|sandbox| sandbox.records()));
    let found = uncovered(&mut Side::own().ok()?, records, places).ok()?;
    let known = found.iter().filter(|found| found.cached.is_some()).count();
    let all = found.len();
    (all > 0).then(|| {
        format!(
            "\n{all} network namespaces on this node have no record yet: pods that run already, and what else has one. \
             {known} of them can be taken in (quarantine adopt --all).\n"
        )
    })
}
