//! The program in the CNI bin directory: put there, replaced by another version, removed; never another's. And whether a
//! runtime could run it there.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::{FsFlags, statvfs};

use super::plan::{NewFile, Plan, Step};
use super::{InstallError, InstallOptions, PLUGIN, UninstallOptions, statedir};

/// By this a file is recognised as this program, of whatever version.
pub const MARK: &[u8] = b"\0cni-quarantine program\0";

pub(super) fn put(plan: &mut Plan, options: &InstallOptions) -> Result<(), InstallError> {
    refuse_noexec(&options.layout.bin_dir)?;
    let target = options.layout.program();
    let content = fs::read(&options.program).map_err(|reason| InstallError::io("read", &options.program, reason))?;
    let what = match existing_program(&target)? {
        Some(before) if before == content => return Ok(()),
        Some(_) if options.layout.packaged(&target) => return Err(InstallError::Packaged { path: target }),
        Some(_) => "replace the program at",
        None => "put the program at",
    };
    plan.add(Step::Write(NewFile::of_root(target, content, None, 0o755, what.to_owned())));
    Ok(())
}

/// Every new pod of the node would fail by a plugin that nobody may run.
fn refuse_noexec(bin_dir: &Path) -> Result<(), InstallError> {
    let mounted = statvfs(bin_dir).map_err(|errno| InstallError::io("read", bin_dir, errno.into()))?;
    match mounted.flags().contains(FsFlags::ST_NOEXEC) {
        true => Err(InstallError::NoExec { dir: bin_dir.to_owned() }),
        false => Ok(()),
    }
}

/// Refuses a directory that has not all the plugins of the chain `path`: the runtime looks for them elsewhere, and would not
/// find this one.
pub(super) fn refuse_apart<'t>(
    options: &InstallOptions,
    path: &Path,
    types: impl Iterator<Item = &'t str>,
) -> Result<(), InstallError> {
    if options.plugins_elsewhere {
        return Ok(());
    }
    let dir = &options.layout.bin_dir;
    let can_run = |name: &str| {
        // Links are followed: one program may be many plugins.
        fs::metadata(dir.join(name)).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
    };
    let mut missing: Vec<String> = Vec::new();
    for name in types.filter(|name| *name != PLUGIN && !can_run(name)) {
        if !missing.iter().any(|known| known == name) {
            missing.push(name.to_owned());
        }
    }
    match missing.is_empty() {
        true => Ok(()),
        false => Err(InstallError::Apart { dir: dir.to_owned(), path: path.to_owned(), missing }),
    }
}

pub(super) fn remove(
    plan: &mut Plan,
    options: &UninstallOptions,
    others: &[PathBuf],
    state_dirs: &[PathBuf],
) -> Result<(), InstallError> {
    let attached = state_dirs.iter().map(|dir| statedir::sandboxes(dir)).collect::<Result<Vec<_>, _>>()?.concat().len();
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
                "{shown} stays for now: sandboxes that were made with it still run ({count}), and CRI-O and podman call it once \
                 more when these end. Run `quarantine uninstall` again then, or add --yes.",
            )),
        },
    }
    Ok(())
}

/// The content of the program that is in place; an error where it is another one.
fn existing_program(path: &Path) -> Result<Option<Vec<u8>>, InstallError> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(reason) => return Err(InstallError::io("read", path, reason)),
        Ok(metadata) if !metadata.is_file() => return Err(InstallError::Foreign { path: path.to_owned() }),
        Ok(_) => {}
    }
    let content = fs::read(path).map_err(|reason| InstallError::io("read", path, reason))?;
    // The black box keeps the mark in the program as it is, instead of in the comparing instructions.
    let mark = std::hint::black_box(MARK);
    match content.windows(mark.len()).any(|window| window == mark) {
        true => Ok(Some(content)),
        false => Err(InstallError::Foreign { path: path.to_owned() }),
    }
}
