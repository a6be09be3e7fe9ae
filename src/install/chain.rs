//! The entry in the runtime's chain: appended, and taken out again.

use std::fs;
use std::path::{Path, PathBuf};

use super::confdir::{self, Text};
use super::conflist::{self, Form, PLUGIN};
use super::plan::{NewFile, Plan, Step};
use super::{InstallError, InstallOptions, program, writers};

pub(super) fn append_entry(plan: &mut Plan, options: &InstallOptions) -> Result<(), InstallError> {
    let path = match &options.conflist {
        Some(path) => current_name(path),
        None => confdir::runtimes_choice(&options.layout.conf_dir)?,
    };
    let text = Text::read(&path)?;
    let chain = text.chain()?;
    program::refuse_apart(options, &path, chain.types())?;
    let refuse = |reason| InstallError::Conflist { path: path.clone(), reason };
    let extension = confdir::dir_of(&path).join(chain.name());
    if chain.extensible() && extension.is_dir() {
        return Err(InstallError::ExtendedElsewhere { path: path.clone(), dir: extension });
    }
    if let Some(warning) = writers::rewritten_by(chain.name(), chain.types()) {
        plan.note(format!("{}: {warning}", path.display()));
    }
    let Some(edited) = chain.with(&options.entry).map_err(refuse)? else {
        if let Some(single) = made_of(&path)? {
            let backup = confdir::backup_of(&single);
            plan.add(Step::Move { from: single, to: backup });
        }
        let after = chain.after_ours();
        if !after.is_empty() {
            let after = after.join(", ");
            plan.note(format!("{}: {after} runs after {PLUGIN}, which expects to be the last.", path.display()));
        }
        return Ok(());
    };
    let backup = confdir::backup_of(&path);
    let entry = options.entry.to_json();
    if confdir::form(&path) == Some(Form::List) {
        let edited =
            NewFile::like(path.clone(), edited.into_bytes(), &path, format!("append {entry} to the chain in"))?;
        plan.add(Step::Keep { path, kept: backup });
        plan.add(Step::Write(edited));
        return Ok(());
    }
    let list = confdir::listed_name(&path);
    keeps_its_rank(&path, &list)?;
    if list.exists() && fs::read(&list).ok() != Some(edited.clone().into_bytes()) {
        return Err(InstallError::ListExists { path, list });
    }
    let what = format!("make a chain of {} and {entry} in", path.display());
    plan.add(Step::Write(NewFile::like(list, edited.into_bytes(), &path, what)?));
    // Until this the runtime goes on with the single plugin, which comes first by name.
    plan.add(Step::Move { from: path, to: backup });
    Ok(())
}

/// Refuses where the runtime would take another file after a change of name.
fn keeps_its_rank(old: &Path, new: &Path) -> Result<(), InstallError> {
    let before = |name: &Path, file: &PathBuf| file.as_path() != old && file.as_path() != new && file.as_path() < name;
    let files = confdir::configurations(confdir::dir_of(old))?;
    match files.iter().find(|file| before(old, file) != before(new, file)) {
        Some(between) => Err(InstallError::Rank { old: old.to_owned(), new: new.to_owned(), between: between.clone() }),
        None => Ok(()),
    }
}

/// Takes the entry out of the chain in `path`, by putting the original back where nothing else was changed since.
pub(super) fn take_entry_out(plan: &mut Plan, path: &Path) -> Result<(), InstallError> {
    let shown = path.display();
    let original = originals_of(path).into_iter().find(|original| confdir::backup_of(original).exists());
    let backup = original.as_deref().map(confdir::backup_of);
    if !path.exists() {
        if let Some(backup) = backup {
            let backup = backup.display();
            plan.note(format!("{shown} is gone; what it was before the installation is left in {backup}."));
        }
        return Ok(());
    }
    if let Some(single) = made_of(path)? {
        let single = single.display();
        plan.note(format!("{single} is what {shown} was made of, and unchanged; it stays."));
        plan.add(Step::Remove(path.to_owned()));
        plan.extend(backup.map(Step::Remove));
        return Ok(());
    }
    let text = Text::read(path)?;
    let stripped =
        text.chain()?.without().map_err(|reason| InstallError::Conflist { path: path.to_owned(), reason })?;
    match (stripped, original.zip(backup)) {
        (None, None) => {}
        (None, Some((original, backup))) if original == path => {
            plan.note(format!(
                "{shown} was written anew since the installation, without the entry; it stays as it is."
            ));
            plan.add(Step::Remove(backup));
        }
        (None, Some((_, backup))) => {
            let backup = backup.display();
            plan.note(format!("{shown} was written anew since the installation; the original is left in {backup}."));
        }
        (Some(stripped), Some((original, backup))) if is_unchanged(&stripped, &original, &backup)? => {
            match original.exists() && original != path {
                true => {
                    let original = original.display();
                    plan.note(format!("{original} was written anew since the installation; it stays as it is."));
                    plan.add(Step::Remove(backup));
                }
                false => plan.add(Step::Move { from: backup, to: original.clone() }),
            }
            if original != path {
                plan.add(Step::Remove(path.to_owned()));
            }
        }
        (Some(stripped), kept) => {
            if kept.is_some() {
                plan.note(format!("{shown} was changed since the installation; only the entry is taken out of it."));
            }
            let what = format!("take the entry {PLUGIN} out of the chain in");
            plan.add(Step::Write(NewFile::like(path.to_owned(), stripped.into_bytes(), path, what)?));
            plan.extend(kept.map(|(_, backup)| Step::Remove(backup)));
        }
    }
    Ok(())
}

/// The chains that an installation has edited or made.
pub(super) fn edited_chains(dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let backups = confdir::backups(dir)?.into_iter().map(|backup| edited_name(&backup.with_extension("")));
    let mut chains: Vec<PathBuf> = backups.collect();
    for list in confdir::configurations(dir)? {
        if confdir::form(&list) == Some(Form::List) && !chains.contains(&list) && made_of(&list)?.is_some() {
            chains.push(list);
        }
    }
    Ok(chains)
}

/// The configurations, besides those that are dealt with, that name the plugin.
pub(super) fn still_naming(dir: &Path, done: &[PathBuf]) -> Result<Vec<PathBuf>, InstallError> {
    let mut files = confdir::configurations(dir)?;
    files.retain(|file| {
        let text = if file.is_file() { fs::read(file).unwrap_or_default() } else { Vec::new() };
        !done.contains(file) && conflist::mentions_plugin(&String::from_utf8_lossy(&text))
    });
    Ok(files)
}

/// The state directory that our entry in a chain names.
pub(super) fn state_dir(chain: &Path) -> Option<PathBuf> {
    let text = Text::read(chain).ok()?;
    Some(text.chain().ok()?.entry()?.get("stateDir")?.as_str()?.into())
}

/// The single plugin's configuration that stands beside the chain that was made of it: where an installation, or its undoing,
/// was killed half-way.
fn made_of(list: &Path) -> Result<Option<PathBuf>, InstallError> {
    let Ok(text) = Text::read(list) else { return Ok(None) };
    let Ok(Some(stripped)) = text.chain()?.without() else { return Ok(None) };
    for single in originals_of(list) {
        if single != list && single.exists() && is_unchanged(&stripped, &single, &single)? {
            return Ok(Some(single));
        }
    }
    Ok(None)
}

/// Whether a chain without our entry is what the installation found.
fn is_unchanged(stripped: &str, original: &Path, backup: &Path) -> Result<bool, InstallError> {
    confdir::trusted_file(backup)?;
    let kept = fs::read(backup).map_err(|reason| InstallError::io("read", backup, reason))?;
    let kept = String::from_utf8_lossy(&kept);
    Ok(match confdir::form(original) {
        Some(Form::Single) => conflist::as_chain(&kept).is_ok_and(|listed| listed == stripped),
        _ => kept == stripped,
    })
}

/// The name that a configuration has by now, which is another if it was made a chain.
pub(super) fn current_name(path: &Path) -> PathBuf {
    match !path.exists() && confdir::backup_of(path).exists() {
        true => edited_name(path),
        false => path.to_owned(),
    }
}

fn edited_name(original: &Path) -> PathBuf {
    match confdir::form(original) {
        Some(Form::Single) => confdir::listed_name(original),
        _ => original.to_owned(),
    }
}

/// The names that the original of a chain can have had.
fn originals_of(chain: &Path) -> [PathBuf; 3] {
    [chain.to_owned(), chain.with_extension("conf"), chain.with_extension("json")]
}
