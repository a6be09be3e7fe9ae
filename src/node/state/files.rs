//! How files and directories are read and written here, whatever they hold: whole or not at all, never through a link.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use nix::libc;

use super::{StateError, failed};

pub(super) fn create_private(path: &Path) -> Result<(), StateError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("create", path)(error)),
    }
}

pub(super) fn names_in(directory: &Path) -> Result<Vec<String>, StateError> {
    let mut names = entries(directory).map_err(failed("list", directory))?;
    names.retain(|name| !name.starts_with('.') || name.ends_with(".json"));
    names.sort_unstable();
    Ok(names)
}

pub(super) fn names_starting_with_dot(directory: &Path) -> Vec<String> {
    let mut names = entries(directory).unwrap_or_default();
    names.retain(|name| name.starts_with('.') && !name.ends_with(".json"));
    names
}

/// The names in a directory, none where there is no directory. One that is no UTF-8 is no name of ours.
pub(super) fn entries(directory: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(entries) => {
            entries.filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose()).collect()
        }
    }
}

/// Reads a regular file. A symbolic link is not followed and a FIFO not waited for.
pub(super) fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::other(format!("it is longer than {limit} bytes")));
    }
    Ok(content)
}

pub(super) fn write_new(path: &Path, content: &[u8], durably: bool) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    if durably { file.sync_all() } else { Ok(()) }
}

pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
