//! `report`: a page about one sandbox.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use jiff::Timestamp;

use crate::evidence::Store;
use crate::model::audit::chain;
use crate::node::state::StateDir;
use crate::report::{GatherError, compose, gather, to_html, to_markdown};

use super::arguments::{Page, Report};
use super::evidence::chosen_sandbox;
use super::{Exit, Failure, print};

/// `quarantine report`.
pub(super) fn report(state_dir: &Path, arguments: &Report) -> Result<Exit, Failure> {
    let state = StateDir::open(state_dir)?;
    let (kept, _) = Store::of(&state).collections()?;
    let container_id = &chosen_sandbox(&state, &kept, &arguments.sandbox, "report of")?;
    let found = gather(&state, container_id, arguments.history.as_deref()).map_err(|error| match error {
        GatherError::State(error) => error.into(),
        GatherError::Evidence(error) => error.into(),
        error @ GatherError::Log { .. } => Failure::new(Exit::NotDone, chain(&error)),
    })?;
    let document = compose(&found, Timestamp::now());
    let page = match arguments.output {
        Page::Html => to_html(&document),
        Page::Md => to_markdown(&document),
    };
    let Some(path) = &arguments.out else {
        print(&page);
        return Ok(Exit::Done);
    };
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(page.as_bytes()))
        .map_err(|error| Failure::new(Exit::NotDone, format!("cannot write {}: {error}", path.display())))?;
    Ok(Exit::Done)
}
