//! Why nothing was installed, and what to do about it. Each message is whole: what to do comes after the cause, so the
//! cause stands in it instead of behind it.

use std::io;
use std::path::{Path, PathBuf};

use super::conflist::ConflistError;
use crate::model::json::Unexpected;

/// Why an installation, or its undoing, was refused or failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InstallError {
    /// A file or directory could not be used.
    #[error("cannot {doing} {path}: {reason}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        reason: io::Error,
    },
    /// A directory that must be there is not.
    #[error(
        "cannot use the directory {path}: {reason}; name the runtime's own directories with --conf-dir and --bin-dir"
    )]
    Directory {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: io::Error,
    },
    /// Something else in a directory's place.
    #[error("{path} is not a directory")]
    NotADirectory {
        /// The path.
        path: PathBuf,
    },
    /// Nothing can be run there.
    #[error(
        "{dir} is on a file system that is mounted noexec: the runtime could not run the plugin there, and no pod would start; name the \
         directory that the runtime takes its plugins from with --bin-dir"
    )]
    NoExec {
        /// The directory.
        dir: PathBuf,
    },
    /// The runtime takes its plugins from elsewhere.
    #[error(
        "{dir} has no program {}, which {path} calls: the runtime seems to take its plugins from elsewhere, would not find this one, and \
         no pod would start; name its directory with --bin-dir, or add --plugins-elsewhere if it looks in {dir} too",
        missing.join(", ")
    )]
    Apart {
        /// The directory.
        dir: PathBuf,
        /// The chain.
        path: PathBuf,
        /// The plugins that are not there.
        missing: Vec<String>,
    },
    /// Two at once.
    #[error("another installation is at work in {dir}; try again when it has ended")]
    Busy {
        /// The directory that is locked.
        dir: PathBuf,
    },
    /// A network configuration that is not understood.
    #[error("{path} {reason}")]
    Conflist {
        /// The file.
        path: PathBuf,
        /// What is the matter with it.
        reason: ConflistError,
    },
    /// No network configuration at all.
    #[error(
        "{dir} has no file that ends in .conf, .conflist or .json; install the cluster's network first, or name the runtime's \
         directory with --conf-dir"
    )]
    NoConfiguration {
        /// The directory.
        dir: PathBuf,
    },
    /// The first file is not valid, and runtimes differ in what they do then.
    #[error(
        "{path} comes first, and {reason} (containerd stops there, CRI-O goes on to {other}); repair or remove it, or say \
         which file is meant with --conflist"
    )]
    Doubtful {
        /// The first file.
        path: PathBuf,
        /// What is the matter with it.
        reason: ConflistError,
        /// The next one.
        other: PathBuf,
    },
    /// A name that no runtime reads.
    #[error("{path} does not end in .conflist, .conf or .json, so no runtime reads it")]
    Suffix {
        /// The file.
        path: PathBuf,
    },
    /// A link, which a rename would replace.
    #[error("{path} is a symbolic link; name the file that it points to with --conflist")]
    Symlink {
        /// The link.
        path: PathBuf,
    },
    /// Something else than a file.
    #[error("{path} is not a regular file")]
    NotAFile {
        /// The path.
        path: PathBuf,
    },
    /// Someone else's.
    #[error(
        "{path} belongs to the user {owner}, who could undo what is in it; run `chown root: {path}` if it should be root's"
    )]
    Owner {
        /// The file or directory.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
    },
    /// Others can write it.
    #[error("{path} has the mode {mode:04o}, so others than its owner can change it; run `chmod go-w {path}`")]
    Writable {
        /// The file or directory.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Plugins of a directory are appended to the chain.
    #[error(
        "{path} is continued by the plugins in {dir}, which run after it; set \"loadOnlyInlinedPlugins\": true in it, or \
         add the entry to that directory yourself"
    )]
    ExtendedElsewhere {
        /// The chain.
        path: PathBuf,
        /// The directory.
        dir: PathBuf,
    },
    /// The chain that a single plugin's configuration would become is there already.
    #[error("{list} is there already, beside {path}; remove the one that is not in use")]
    ListExists {
        /// The single plugin's configuration.
        path: PathBuf,
        /// The chain.
        list: PathBuf,
    },
    /// Another file would come first.
    #[error("{old} would become {new}, and {between} stands between the two names; rename one of them first")]
    Rank {
        /// The name as it is.
        old: PathBuf,
        /// The name that a chain needs.
        new: PathBuf,
        /// The file that would change its place relative to it.
        between: PathBuf,
    },
    /// Another program of the same name.
    #[error("{path} is there and is not this program; find out whose it is, and move it away if it is not needed")]
    Foreign {
        /// The program.
        path: PathBuf,
    },
    /// The Debian package's.
    #[error("{path} belongs to the Debian package cni-quarantine, of another version; upgrade that instead")]
    Packaged {
        /// The program.
        path: PathBuf,
    },
    /// A unit of the same name that is not ours.
    #[error("{path} is there and was not put there by quarantine; move it away first")]
    ForeignUnit {
        /// The unit.
        path: PathBuf,
    },
    /// A path that a unit file can't hold as it is.
    #[error("{path} can't be written into a systemd unit; use a path of letters, digits and any of / . _ -")]
    UnitPath {
        /// The path.
        path: PathBuf,
    },
    /// A setting that the plugin would refuse.
    #[error("{0}")]
    Setting(Unexpected),
    /// A policy that is not JSON.
    #[error("the policy in {path} is not JSON: {reason}")]
    Policy {
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The state directory still says something.
    #[error(
        "{dir} is in use: {} isolated ({}), {sandboxes} sandboxes attached; release and end them first, or add --yes to lose \
         the marks (isolated pods stay cut off until they end)",
        marks.len(), marks.join(", ")
    )]
    InUse {
        /// The state directory.
        dir: PathBuf,
        /// The marks.
        marks: Vec<String>,
        /// How many sandboxes have a record.
        sandboxes: usize,
    },
    /// A step failed after everything had been decided.
    #[error("cannot {step}: {reason} ({done} steps before it are done; run the same command again to go on)")]
    Step {
        /// The step.
        step: String,
        /// How many were done before.
        done: usize,
        /// Why it failed.
        reason: io::Error,
    },
}

impl InstallError {
    pub(super) fn io(doing: &'static str, path: &Path, reason: io::Error) -> Self {
        Self::Io { doing, path: path.to_owned(), reason }
    }
}
