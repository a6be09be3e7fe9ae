//! What an installation or its undoing is going to do: a list of steps that can be shown, or done.
//!
//! Everything is decided before the first step is done, so a dry run shows just what would happen, a refusal has changed
//! nothing, and no step needs to be undone. The steps are in an order in which a crash between any two of
//! them leaves a node that works: the runtime always finds one valid configuration and every plugin that it names.
//! Running the same command again then does the rest.

use std::fmt;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, fchown};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use super::{InstallError, diff};
use crate::node::files::{Durability, replace, sync_directory_of};

/// What is going to be done, and what the operator should know about it.
#[derive(Debug)]
pub struct Plan {
    steps: Vec<Step>,
    notes: Vec<String>,
    /// Held until the plan is done or dropped, so that two installations do not mix.
    _lock: Flock<File>,
}

#[derive(Debug)]
pub(super) enum Step {
    /// Write a file under a temporary name, make it durable, rename it.
    Write(NewFile),
    /// Give a file that is about to be replaced a second name.
    Keep { path: PathBuf, kept: PathBuf },
    /// Rename a file.
    Move { from: PathBuf, to: PathBuf },
    /// Remove a file.
    Remove(PathBuf),
    /// Remove a directory with all that is in it.
    RemoveTree(PathBuf),
    /// Remove a directory if nothing is in it.
    RemoveEmpty(PathBuf),
}

#[derive(Debug)]
pub(super) struct NewFile {
    pub(super) path: PathBuf,
    pub(super) content: Vec<u8>,
    /// What is there now.
    pub(super) before: Option<Vec<u8>>,
    pub(super) mode: u32,
    /// User and group.
    pub(super) owner: (u32, u32),
    /// What is done to the file, as in "append … to".
    pub(super) what: String,
}

impl NewFile {
    /// A file of root's in a place where there may be one already.
    pub(super) fn of_root(path: PathBuf, content: Vec<u8>, before: Option<Vec<u8>>, mode: u32, what: String) -> Self {
        let owner = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        Self { path, content, before, mode, owner, what }
    }

    /// A file that takes the owner and the mode of another.
    pub(super) fn like(path: PathBuf, content: Vec<u8>, model: &Path, what: String) -> Result<Self, InstallError> {
        let read = || Ok((fs::metadata(model)?, fs::read(&path).ok()));
        let (metadata, before) = read().map_err(|reason| InstallError::io("read", model, reason))?;
        let owner = (metadata.uid(), metadata.gid());
        Ok(Self { path, content, before, mode: metadata.mode() & 0o7777, owner, what })
    }

    fn put(&self) -> io::Result<()> {
        let name = self.path.file_name().ok_or(io::ErrorKind::InvalidFilename)?;
        // The lock makes it ours: what a killed run left there may go. No runtime reads a file of this suffix.
        let temporary = self.path.with_file_name(format!(".{}.quarantine-new", name.to_string_lossy()));
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        replace(&self.path, &temporary, &self.content, Durability::Durable, |file| {
            fchown(file, Some(self.owner.0), Some(self.owner.1))?;
            file.set_permissions(fs::Permissions::from_mode(self.mode))?;
            file.sync_all()?;
            // Its writer may just have written it anew. (Between this and the rename it still may: nothing locks it out.)
            match &self.before {
                Some(before) if fs::read(&self.path)? != *before => Err(io::Error::other("it was changed meanwhile")),
                _ => Ok(()),
            }
        })
    }
}

impl Plan {
    /// An empty plan that holds the lock of `dir`.
    pub(super) fn locking(dir: &Path) -> Result<Self, InstallError> {
        let file = File::open(dir).map_err(|reason| InstallError::io("open", dir, reason))?;
        let lock = Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|_| InstallError::Busy { dir: dir.to_owned() })?;
        Ok(Self { steps: Vec::new(), notes: Vec::new(), _lock: lock })
    }

    pub(super) fn add(&mut self, step: Step) {
        self.steps.push(step);
    }

    pub(super) fn extend(&mut self, steps: impl IntoIterator<Item = Step>) {
        self.steps.extend(steps);
    }

    pub(super) fn note(&mut self, note: impl Into<String>) {
        self.notes.push(note.into());
    }

    /// How many steps there are, and the plan with only the first so many of them: as if it was killed then.
    #[cfg(test)]
    pub(super) fn killed_after(mut self, steps: usize) -> (usize, Self) {
        let all = self.steps.len();
        self.steps.truncate(steps);
        (all, self)
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What the operator should know, a paragraph each.
    #[must_use]
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Every change of a text file as a unified diff.
    #[must_use]
    pub fn diff(&self) -> String {
        self.steps.iter().filter_map(Step::diff).collect()
    }

    /// Does it.
    ///
    /// # Errors
    /// At the first step that fails; those before it are done, and running the same command again goes on from there.
    pub fn apply(&self) -> Result<(), InstallError> {
        for (index, step) in self.steps.iter().enumerate() {
            step.apply().map_err(|reason| InstallError::Step { step: step.to_string(), done: index, reason })?;
        }
        Ok(())
    }
}

impl fmt::Display for Plan {
    /// A line for each step.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.steps.iter().try_for_each(|step| writeln!(f, "{step}"))
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Write(file) => write!(f, "{} {}", file.what, file.path.display()),
            Self::Keep { path, kept } => write!(f, "keep {} as {}", path.display(), kept.display()),
            Self::Move { from, to } => write!(f, "move {} to {}", from.display(), to.display()),
            Self::Remove(path) | Self::RemoveTree(path) => write!(f, "remove {}", path.display()),
            Self::RemoveEmpty(path) => write!(f, "remove {} if nothing else is in it", path.display()),
        }
    }
}

impl Step {
    fn apply(&self) -> io::Result<()> {
        match self {
            Self::Write(file) => file.put(),
            Self::Keep { path, kept } => {
                match fs::remove_file(kept) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
                fs::hard_link(path, kept)?;
                sync_directory_of(kept)
            }
            Self::Move { from, to } => fs::rename(from, to).and_then(|()| sync_directory_of(to)),
            Self::Remove(path) => fs::remove_file(path).and_then(|()| sync_directory_of(path)),
            Self::RemoveTree(path) => fs::remove_dir_all(path),
            Self::RemoveEmpty(path) => match fs::remove_dir(path) {
                Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
                _ => Ok(()),
            },
        }
    }

    fn diff(&self) -> Option<String> {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).ok().filter(|text| !text.contains('\0'));
        match self {
            Self::Write(file) => {
                let (path, new) = (file.path.display().to_string(), text(&file.content)?);
                match &file.before {
                    Some(old) => Some(diff::unified(&path, Some(&text(old)?), &path, Some(&new))),
                    None => Some(diff::unified("/dev/null", None, &path, Some(&new))),
                }
            }
            Self::Remove(path) => {
                let old = text(&fs::read(path).ok()?)?;
                Some(diff::unified(&path.display().to_string(), Some(&old), "/dev/null", None))
            }
            Self::Keep { .. } | Self::Move { .. } | Self::RemoveTree(_) | Self::RemoveEmpty(_) => None,
        }
    }
}
