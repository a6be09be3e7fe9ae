//! The directory of network configurations: which of its files the runtime takes, and whether one may be edited.
//!
//! Runtimes take the first by name that ends in `.conf`, `.conflist` or `.json`; the last suffix alone decides whether
//! it is read as a chain. Where that first one is not valid they differ: containerd stops, CRI-O goes on to the next.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::InstallError;
use super::conflist::{self, Conflist, ConflistError, Form};

/// What a file's name ends in while an edited or converted one stands in its place. No runtime reads this suffix.
const BACKUP: &str = "before-quarantine";

/// How a runtime reads the file; `None` where it does not.
pub(super) fn form(path: &Path) -> Option<Form> {
    match path.extension()?.to_str()? {
        "conflist" => Some(Form::List),
        "conf" | "json" => Some(Form::Single),
        _ => None,
    }
}

/// The files that a runtime reads, in its order.
pub(super) fn configurations(dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let mut files = names(dir)?;
    files.retain(|path| form(path).is_some() && !path.is_dir());
    Ok(files)
}

/// The backups that an installation left, in order of name.
pub(super) fn backups(dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let mut files = names(dir)?;
    files.retain(|path| path.extension() == Some(OsStr::new(BACKUP)));
    Ok(files)
}

fn names(dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let list = || fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>, std::io::Error>>();
    let mut names = list().map_err(|reason| InstallError::io("list", dir, reason))?;
    names.sort_by(|one, other| one.as_os_str().cmp(other.as_os_str()));
    Ok(names)
}

/// The directory that a file is in.
pub(super) fn dir_of(path: &Path) -> &Path {
    match path.parent() {
        Some(dir) if !dir.as_os_str().is_empty() => dir,
        _ => Path::new("."),
    }
}

/// Where the original of `path` is kept.
pub(super) fn backup_of(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(BACKUP);
    name.into()
}

/// The name under which a single plugin's file becomes a chain.
pub(super) fn listed_name(path: &Path) -> PathBuf {
    path.with_extension("conflist")
}

/// The file that a runtime would take.
pub(super) fn runtimes_choice(dir: &Path) -> Result<PathBuf, InstallError> {
    let files = configurations(dir)?;
    let Some((first, others)) = files.split_first() else {
        return Err(InstallError::NoConfiguration { dir: dir.to_owned() });
    };
    match (Text::read(first), others.first()) {
        (Err(InstallError::Conflist { path, reason }), Some(other)) => {
            Err(InstallError::Doubtful { path, reason, other: other.clone() })
        }
        (Err(error), _) => Err(error),
        (Ok(_), _) => Ok(first.clone()),
    }
}

/// A network configuration that may be edited.
#[derive(Debug)]
pub(super) struct Text {
    path: PathBuf,
    /// As a chain: the file's text, or what a single plugin's configuration becomes.
    list: String,
}

impl Text {
    /// Reads a file that is trustworthy and that this program understands.
    pub(super) fn read(path: &Path) -> Result<Self, InstallError> {
        let Some(form) = form(path) else { return Err(InstallError::Suffix { path: path.to_owned() }) };
        trusted_file(path)?;
        let refuse = |reason| InstallError::Conflist { path: path.to_owned(), reason };
        let bytes = fs::read(path).map_err(|reason| InstallError::io("read", path, reason))?;
        let text = String::from_utf8(bytes).map_err(|error| refuse(ConflistError::NotJson(error.to_string())))?;
        let list = match form {
            Form::List => text,
            Form::Single => conflist::as_chain(&text).map_err(refuse)?,
        };
        Conflist::parse(&list).map_err(refuse)?;
        Ok(Self { path: path.to_owned(), list })
    }

    pub(super) fn chain(&self) -> Result<Conflist<'_>, InstallError> {
        Conflist::parse(&self.list).map_err(|reason| InstallError::Conflist { path: self.path.clone(), reason })
    }
}

/// Refuses a file that is none, or that someone else can change: what it says runs as root.
pub(super) fn trusted_file(path: &Path) -> Result<(), InstallError> {
    let metadata = fs::symlink_metadata(path).map_err(|reason| InstallError::io("read", path, reason))?;
    match () {
        () if metadata.is_symlink() => Err(InstallError::Symlink { path: path.to_owned() }),
        () if !metadata.is_file() => Err(InstallError::NotAFile { path: path.to_owned() }),
        () => trusted(path, &metadata),
    }
}

/// Refuses a directory in which someone else can rename files.
pub(super) fn trusted_dir(path: &Path) -> Result<(), InstallError> {
    let metadata = fs::metadata(path).map_err(|reason| InstallError::Directory { path: path.to_owned(), reason })?;
    match metadata.is_dir() {
        true => trusted(path, &metadata),
        false => Err(InstallError::NotADirectory { path: path.to_owned() }),
    }
}

fn trusted(path: &Path, metadata: &fs::Metadata) -> Result<(), InstallError> {
    let (path, owner, mode) = (path.to_owned(), metadata.uid(), metadata.mode() & 0o7777);
    match () {
        () if owner != 0 && owner != nix::unistd::geteuid().as_raw() => Err(InstallError::Owner { path, owner }),
        () if mode & 0o022 != 0 => Err(InstallError::Writable { path, mode }),
        () => Ok(()),
    }
}
