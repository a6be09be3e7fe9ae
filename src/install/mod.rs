//! Puts the plugin onto a node and takes it off again: the program into the CNI bin directory, its entry into the
//! chain that the runtime uses, the systemd units where they are wanted.
//!
//! Everything is decided first and done afterwards ([`Plan`]), so that a dry run shows what would happen and a refusal
//! has changed nothing. [`conflist`] edits the chain's text, `confdir` knows which file it is and whether it may be
//! edited, `units` has the systemd units, `writers` the projects that write their configuration anew.
//!
//! Not its business: starting anything. What systemd should do is said, and left to the operator.

pub mod command;
pub mod conflist;

mod confdir;
mod diff;
mod error;
mod plan;
mod units;
mod writers;

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

pub use conflist::{Entry, PLUGIN};
pub use error::InstallError;
pub use plan::Plan;

use confdir::Text;
use conflist::Form;
use plan::{NewFile, Step};

/// By this a file is recognised as this program, of whatever version.
pub const MARK: &[u8] = b"\0cni-quarantine program\0";

/// What the plugin keeps in its state directory.
const STATE: [&str; 2] = ["isolated", "attachments"];

/// Where things are on the node.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The runtime's network configurations.
    pub conf_dir: PathBuf,
    /// The runtime's plugins.
    pub bin_dir: PathBuf,
    /// The administrator's systemd units.
    pub unit_dir: PathBuf,
    /// The state directory of the plugin.
    pub state_dir: PathBuf,
    /// The list of files that the Debian package put there, where it is installed.
    pub package: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            bin_dir: "/opt/cni/bin".into(),
            unit_dir: "/etc/systemd/system".into(),
            state_dir: "/var/lib/cni/quarantine".into(),
            package: "/var/lib/dpkg/info/cni-quarantine.list".into(),
        }
    }
}

impl Layout {
    fn program(&self) -> PathBuf {
        self.bin_dir.join(PLUGIN)
    }

    /// Whether this file is the Debian package's.
    fn packaged(&self, path: &Path) -> bool {
        let Ok(list) = fs::read_to_string(&self.package) else { return false };
        list.lines().any(|line| Path::new(line) == path)
    }
}

/// What to install.
#[derive(Debug, Clone)]
pub struct InstallOptions {
    /// Where to.
    pub layout: Layout,
    /// The network configuration to append to, instead of the one that the runtime takes.
    pub conflist: Option<PathBuf>,
    /// What to append.
    pub entry: Entry,
    /// The program to put into the CNI bin directory: the running one.
    pub program: PathBuf,
    /// Whether to put the systemd units in place.
    pub systemd: bool,
}

/// What to take off the node.
#[derive(Debug, Clone, Default)]
pub struct UninstallOptions {
    /// Where from.
    pub layout: Layout,
    /// The network configuration to take the entry out of, instead of every one that was edited by an installation.
    pub conflist: Option<PathBuf>,
    /// Whether the state directory goes too.
    pub purge: bool,
    /// Whether to go on where isolations or running sandboxes speak against it.
    pub yes: bool,
}

/// Decides what has to be done to install. The plan is empty where everything is in place.
///
/// # Errors
/// When something on the node is not as it is understood. Nothing has been changed then.
pub fn plan_install(options: &InstallOptions) -> Result<Plan, InstallError> {
    let layout = &options.layout;
    let conf_dir = conf_dir(layout, options.conflist.as_deref());
    confdir::trusted_dir(conf_dir)?;
    confdir::trusted_dir(&layout.bin_dir)?;
    let mut plan = Plan::locking(conf_dir)?;
    put_program(&mut plan, options)?;
    append_entry(&mut plan, options)?;
    if options.systemd {
        units::put(&mut plan, layout)?;
    }
    if !plan.is_empty() {
        plan.note(
            "Pods that run already are not covered: the plugin is called when a pod's sandbox is made. Recreate them \
             (kubectl drain and uncordon, or a rollout restart).",
        );
    }
    Ok(plan)
}

/// Decides what has to be done to undo an installation. The plan is empty where nothing is left of one.
///
/// # Errors
/// When something on the node is not as it is understood. Nothing has been changed then.
pub fn plan_uninstall(options: &UninstallOptions) -> Result<Plan, InstallError> {
    let layout = &options.layout;
    let conf_dir = conf_dir(layout, options.conflist.as_deref());
    confdir::trusted_dir(conf_dir)?;
    let mut plan = Plan::locking(conf_dir)?;
    let chains = match &options.conflist {
        Some(path) => vec![current_name(path)],
        None => edited_chains(conf_dir)?,
    };
    let mut state_dirs = vec![layout.state_dir.clone()];
    for chain in &chains {
        state_dirs.extend(state_dir(chain));
        take_entry_out(&mut plan, chain)?;
    }
    state_dirs.sort();
    state_dirs.dedup();
    let others = still_naming(conf_dir, &chains)?;
    units::remove(&mut plan, layout)?;
    remove_program(&mut plan, options, &others, &state_dirs)?;
    if options.purge {
        state_dirs.iter().try_for_each(|dir| purge(&mut plan, dir, options.yes))?;
    }
    Ok(plan)
}

fn conf_dir<'o>(layout: &'o Layout, conflist: Option<&'o Path>) -> &'o Path {
    conflist.map_or(&layout.conf_dir, confdir::dir_of)
}

fn put_program(plan: &mut Plan, options: &InstallOptions) -> Result<(), InstallError> {
    let target = options.layout.program();
    let content = fs::read(&options.program).map_err(|source| InstallError::io("read", &options.program, source))?;
    let what = match existing_program(&target)? {
        Some(before) if before == content => return Ok(()),
        Some(_) if options.layout.packaged(&target) => return Err(InstallError::Packaged { path: target }),
        Some(_) => "replace the program at",
        None => "put the program at",
    };
    plan.add(Step::Write(NewFile::of_root(target, content, None, 0o755, what.to_owned())));
    Ok(())
}

/// The content of the program that is in place; an error where it is another one.
fn existing_program(path: &Path) -> Result<Option<Vec<u8>>, InstallError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(InstallError::io("read", path, source)),
        Ok(metadata) if !metadata.is_file() => return Err(InstallError::Foreign { path: path.to_owned() }),
        Ok(_) => {}
    }
    let content = fs::read(path).map_err(|source| InstallError::io("read", path, source))?;
    // The black box keeps the mark in the program as it is, instead of in the comparing instructions.
    let mark = std::hint::black_box(MARK);
    match content.windows(mark.len()).any(|window| window == mark) {
        true => Ok(Some(content)),
        false => Err(InstallError::Foreign { path: path.to_owned() }),
    }
}

fn append_entry(plan: &mut Plan, options: &InstallOptions) -> Result<(), InstallError> {
    let path = match &options.conflist {
        Some(path) => current_name(path),
        None => confdir::runtimes_choice(&options.layout.conf_dir)?,
    };
    let text = Text::read(&path)?;
    let chain = text.chain()?;
    let refuse = |source| InstallError::Conflist { path: path.clone(), source };
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

/// The name that a configuration has by now, which is another if it was made a chain.
fn current_name(path: &Path) -> PathBuf {
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

/// The state directory that our entry in a chain names.
fn state_dir(chain: &Path) -> Option<PathBuf> {
    let text = Text::read(chain).ok()?;
    Some(text.chain().ok()?.entry()?.get("stateDir")?.as_str()?.into())
}

/// The chains that an installation has edited or made.
fn edited_chains(dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let backups = confdir::backups(dir)?.into_iter().map(|backup| edited_name(&backup.with_extension("")));
    let mut chains: Vec<PathBuf> = backups.collect();
    for list in confdir::configurations(dir)? {
        if confdir::form(&list) == Some(Form::List) && !chains.contains(&list) && made_of(&list)?.is_some() {
            chains.push(list);
        }
    }
    Ok(chains)
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

/// Takes the entry out of the chain in `path`, by putting the original back where nothing else was changed since.
fn take_entry_out(plan: &mut Plan, path: &Path) -> Result<(), InstallError> {
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
        text.chain()?.without().map_err(|source| InstallError::Conflist { path: path.to_owned(), source })?;
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

/// The names that the original of a chain can have had.
fn originals_of(chain: &Path) -> [PathBuf; 3] {
    [chain.to_owned(), chain.with_extension("conf"), chain.with_extension("json")]
}

/// Whether a chain without our entry is what the installation found.
fn is_unchanged(stripped: &str, original: &Path, backup: &Path) -> Result<bool, InstallError> {
    confdir::trusted_file(backup)?;
    let kept = fs::read(backup).map_err(|source| InstallError::io("read", backup, source))?;
    let kept = String::from_utf8_lossy(&kept);
    Ok(match confdir::form(original) {
        Some(Form::Single) => conflist::listed(&kept).is_ok_and(|listed| listed == stripped),
        _ => kept == stripped,
    })
}

/// The configurations, besides those that are dealt with, that name the plugin.
fn still_naming(dir: &Path, done: &[PathBuf]) -> Result<Vec<PathBuf>, InstallError> {
    let mut files = confdir::configurations(dir)?;
    files.retain(|file| {
        let text = if file.is_file() { fs::read(file).unwrap_or_default() } else { Vec::new() };
        !done.contains(file) && conflist::mentions_plugin(&String::from_utf8_lossy(&text))
    });
    Ok(files)
}

fn remove_program(
    plan: &mut Plan,
    options: &UninstallOptions,
    others: &[PathBuf],
    state_dirs: &[PathBuf],
) -> Result<(), InstallError> {
    let attached = state_dirs.iter().map(|dir| sandboxes(dir)).collect::<Result<Vec<_>, _>>()?.concat().len();
    let path = options.layout.program();
    let shown = path.display();
    match existing_program(&path) {
        Ok(None) => return Ok(()),
        Err(InstallError::Foreign { .. }) => plan.note(format!("{shown} is not this program; it stays.")),
        Err(error) => return Err(error),
        Ok(Some(_)) if !others.is_empty() => {
            let others: Vec<_> = others.iter().map(|path| path.display().to_string()).collect();
            let others = others.join(", ");
            plan.note(format!("{shown} stays, since {others} names it; take the entry out with --conflist."));
        }
        Ok(Some(_)) if options.layout.packaged(&path) => {
            plan.note(format!("{shown} stays: it is the Debian package's; remove that with apt."));
        }
        Ok(Some(_)) => match (attached, options.yes) {
            (0, _) | (_, true) => plan.add(Step::Remove(path)),
            (count, false) => plan.note(format!(
                "{shown} stays for now: {count} running sandboxes were made with it, and CRI-O and podman call it once more \
                 when these end. Run `quarantine uninstall` again then, or add --yes.",
            )),
        },
    }
    Ok(())
}

fn purge(plan: &mut Plan, dir: &Path, yes: bool) -> Result<(), InstallError> {
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
fn sandboxes(state_dir: &Path) -> Result<Vec<String>, InstallError> {
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
        listed => listed.map_err(|source| InstallError::io("list", dir, source)),
    }
}

#[cfg(test)]
mod tests;
