//! The state directory: marks, attachment records, locks.
//!
//! ```text
//! isolated/<key>                              marks, written by operators; presence isolates
//! attachments/<container ID>/<ifname>.json    records, written by ADD
//! .index                                      which pods they are of, for finding by name; may be lost
//! patience/<container ID>.json                what is to be put back at a release
//! .lock                                       one byte of it is locked for each sandbox at work
//! .agent.lock                                 held by the agent while it runs
//! ```
//!
//! Whoever can write here can release pods, so a directory that others than root can write is refused. Marks are
//! durable where this program writes them; records outlive nothing that their pod does not, and are not.

mod index;
mod locks;
mod marks;
mod records;

use std::fs::{self, DirBuilder, Metadata};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use thiserror::Error;

pub use index::{PodIndex, Said};
pub use locks::SandboxLock;
pub use marks::ListedMarks;
pub use records::DamagedRecord;

use crate::model::names::{ContainerId, PodUid};
use crate::node::files::entries;

/// Where the state directory is when nobody says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/cni/quarantine";

/// A file longer than this is not read; a mark of that length seals.
const FILE_MAX: u64 = 4 * 1024 * 1024;

/// Why the state directory cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Others than root can write a directory.
    #[error(
        "{path} can be written by others than root (owner {owner}, mode {mode:04o}), who could release pods; chown it to root and chmod it to 0700"
    )]
    Unsound {
        /// The directory.
        path: String,
        /// Its owner's user ID.
        owner: u32,
        /// Its mode bits.
        mode: u32,
    },
    /// There is no such directory.
    #[error("{path} does not exist; is quarantine installed on this node, and this its state directory?")]
    Absent {
        /// The directory.
        path: String,
    },
    /// There is something else.
    #[error("{path} is no directory; name another state directory, or make room for it")]
    NotADirectory {
        /// What should be a directory.
        path: String,
    },
    /// A file or directory could not be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process is at work on the sandbox, for longer than is waited.
    #[error(
        "sandbox {container_id} has been locked for more than {seconds} s by {holder}; nothing was changed: try again, or end that process"
    )]
    Busy {
        /// The sandbox.
        container_id: ContainerId,
        /// How long was waited.
        seconds: u64,
        /// Who has the lock, as far as can be found.
        holder: String,
    },
    /// The same of a pod in the node's network namespace.
    #[error(
        "pod {uid} has been locked for more than {seconds} s by {holder}; nothing was changed: try again, or end that process"
    )]
    PodBusy {
        /// The pod.
        uid: PodUid,
        /// How long was waited.
        seconds: u64,
        /// Who has the lock, as far as can be found.
        holder: String,
    },
    /// An agent is at work already.
    #[error("an agent is running on this node already: {holder}")]
    AgentRunning {
        /// Who holds the lock, as it said itself.
        holder: String,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.display().to_string();
    move |source| StateError::Io { what, path, source }
}

/// A state directory that was found sound.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

impl StateDir {
    /// Opens the directory, making what is not there.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open_or_create(path: &Path) -> Result<Self, StateError> {
        let state = Self { path: path.to_owned() };
        let make = || {
            if let Some(parent) = path.parent() {
                // Whatever the umask: who can write above it can put another one in its place.
                DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed("create", parent))?;
            }
            create_private(path)
        };
        require_sound_or(path, make)?;
        for directory in [state.isolated(), state.attachments()] {
            require_sound_or(&directory, || create_private(&directory))?;
        }
        Ok(state)
    }

    /// Opens the directory as it is.
    ///
    /// # Errors
    /// [`StateError::Absent`] where it is not there.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let state = Self { path: path.to_owned() };
        require_sound(&state.path)?;
        for directory in [state.isolated(), state.attachments()] {
            match require_sound(&directory) {
                Ok(()) | Err(StateError::Absent { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(state)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells the directory from another one in its place: device and inode.
    #[must_use]
    pub fn identity(&self) -> Option<(u64, u64)> {
        fs::metadata(&self.path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// Where the marks are.
    #[must_use]
    pub fn isolated(&self) -> PathBuf {
        self.path.join("isolated")
    }

    /// Where the records are.
    #[must_use]
    pub fn attachments(&self) -> PathBuf {
        self.path.join("attachments")
    }
}

impl StateDir {
    /// Where it is kept what connections were held by before.
    #[must_use]
    pub fn patience(&self) -> PathBuf {
        self.path.join("patience")
    }

    /// Makes that directory, where it is not there.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn create_patience(&self) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(self.patience()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
            _ => Ok(()),
        }
    }
}

fn require_sound(path: &Path) -> Result<(), StateError> {
    let metadata: Metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StateError::Absent { path: path.display().to_string() });
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(StateError::NotADirectory { path: path.display().to_string() });
        }
        Err(error) => return Err(failed("read", path)(error)),
    };
    if !metadata.is_dir() {
        return Err(StateError::NotADirectory { path: path.display().to_string() });
    }
    let mode = metadata.mode() & 0o7777;
    if metadata.uid() == 0 && mode & 0o022 == 0 {
        Ok(())
    } else {
        Err(StateError::Unsound { path: path.display().to_string(), owner: metadata.uid(), mode })
    }
}

/// The same of what is made first where it is not there.
fn require_sound_or(path: &Path, make: impl FnOnce() -> Result<(), StateError>) -> Result<(), StateError> {
    match require_sound(path) {
        Err(StateError::Absent { .. }) => {
            make()?;
            require_sound(path)
        }
        sound => sound,
    }
}

fn create_private(path: &Path) -> Result<(), StateError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("create", path)(error)),
    }
}

fn names_in(directory: &Path) -> Result<Vec<String>, StateError> {
    let mut names = entries(directory).map_err(failed("list", directory))?;
    names.retain(|name| !name.starts_with('.') || name.ends_with(".json"));
    names.sort_unstable();
    Ok(names)
}
