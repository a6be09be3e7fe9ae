//! BPF: programs that are loaded, hang on interfaces by links, and are pinned; and what hangs on interfaces at all.
//!
//! By bpf(2) alone. A library would bring a loader of object files and a crate for their debugging data, and the programs here come
//! from no file: they are computed (`rules::bpf`). Nothing is decided here.

mod loaded;
mod object;
mod peer;
mod pins;
mod query;
mod syscall;

use nix::errno::Errno;
use thiserror::Error;

pub use loaded::none_for_interfaces_but;
pub use object::{Hook, Identity, Link, LinkInfo, LoadedMap, LoadedProgram};
pub use peer::may_redirect_to_peers;
pub use pins::{Missing, Pins};
pub use query::{ProgramFound, programs_by_tcx_on, programs_on, refuses_tcx};

/// Why something about programs could not be done.
#[derive(Debug, Error)]
pub enum BpfError {
    /// The kernel does not have it, or lets nobody use it.
    #[error("this kernel cannot {what}: {errno}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        errno: Errno,
    },
    /// The kernel refused.
    #[error("the kernel refused to {what}: {errno}")]
    Refused {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        errno: Errno,
    },
    /// There is nowhere to pin anything.
    #[error("cannot pin anything below {path}; a bpffs of root's has to be mounted there")]
    NoFilesystem {
        /// Where.
        path: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl BpfError {
    pub(super) fn of(what: &'static str, errno: Errno) -> Self {
        match errno {
            // EINVAL is what a kernel says of a hook or a helper that it does not know.
            Errno::ENOSYS | Errno::EPERM | Errno::EINVAL | Errno::EOPNOTSUPP => Self::Unsupported { what, errno },
            _ => Self::Refused { what, errno },
        }
    }
}
