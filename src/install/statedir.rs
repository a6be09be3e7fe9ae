//! What the plugin has left in its state directory: asked before the program goes, removed when that is wanted.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::Path;

use super::plan::{Plan, Step};
use super::{InstallError, confdir};

/// What the plugin keeps in its state directory.
const STATE: [&str; 8] =
    ["isolated", "attachments", "index", ".index", ".index.new", "patience", ".lock", ".agent.lock"];

pub(super) fn purge(plan: &mut Plan, dir: &Path, yes: bool) -> Result<(), InstallError> {
    if !dir.exists() {
        return Ok(());
    }
    confdir::trusted_dir(dir)?;
    let (marks, sandboxes) = (entries(&dir.join("isolated"))?, sandboxes(dir)?.len());
    if !yes && (!marks.is_empty() || sandboxes > 0) {
        return Err(InstallError::InUse { dir: dir.to_owned(), marks, sandboxes });
    }
    // Only what is known to be the plugin's, in case the directory is another one.
    for part in STATE {
        let part = dir.join(part);
        match fs::symlink_metadata(&part) {
            Ok(metadata) if metadata.is_dir() => plan.add(Step::RemoveTree(part)),
            Ok(_) => plan.add(Step::Remove(part)),
            Err(_) => {}
        }
    }
    plan.add(Step::RemoveEmpty(dir.to_owned()));
    Ok(())
}

/// The sandboxes that have a record.
pub(super) fn sandboxes(state_dir: &Path) -> Result<Vec<String>, InstallError> {
    entries(&state_dir.join("attachments"))
}

/// What is in a directory of the state directory; nothing where it does not exist.
fn entries(dir: &Path) -> Result<Vec<String>, InstallError> {
    let list = || -> io::Result<Vec<String>> {
        let names = fs::read_dir(dir)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
        names.filter(|name| name.as_ref().map_or(true, |name| !name.starts_with('.'))).collect()
    };
    match list() {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        listed => listed.map_err(|reason| InstallError::io("list", dir, reason)),
    }
}
