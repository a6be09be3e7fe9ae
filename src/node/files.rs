//! How files are read and written, whatever they hold: whole or not at all, never through a link.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::libc;

/// The names of what a writer that was killed left in a directory.
pub fn names_starting_with_dot(directory: &Path) -> Vec<String> {
    let mut names = entries(directory).unwrap_or_default();
    names.retain(|name| name.starts_with('.') && !name.ends_with(".json"));
    names
}

/// The names in a directory, none where there is no directory. One that is no UTF-8 is no name of ours.
///
/// # Errors
/// When it cannot be read.
pub fn entries(directory: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(entries) => {
            entries.filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose()).collect()
        }
    }
}

/// Reads a regular file. A symbolic link is not followed and a FIFO not waited for.
///
/// # Errors
/// When it cannot be read, is none, or is longer than `limit` bytes.
pub fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
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

/// Whether a file has to be there after a power loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// It and its name are on the disk before this returns.
    Durable,
    /// It outlives nothing that a reboot ends.
    UntilReboot,
}

/// Writes a file so that whoever reads `path` finds the old one or all of the new one: as `temporary`, in the same
/// directory, then renamed. What `finish` does with the temporary file (owner, mode, a last look) comes before the rename.
///
/// # Errors
/// The first one; then `path` is as it was and `temporary` is gone.
pub fn replace(
    path: &Path,
    temporary: &Path,
    content: &[u8],
    durability: Durability,
    finish: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let write = || {
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(temporary)?;
        file.write_all(content)?;
        if durability == Durability::Durable {
            file.sync_all()?;
        }
        finish(&file)?;
        fs::rename(temporary, path)
    };
    write().inspect_err(|_| {
        // The first error is the one to tell.
        let _ = fs::remove_file(temporary);
    })?;
    if durability == Durability::Durable { sync_directory_of(path) } else { Ok(()) }
}

/// Has the disk keep a file that was written before, and its name.
///
/// # Errors
/// When it cannot be opened or synced.
pub fn sync(path: &Path) -> io::Result<()> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    file.sync_all()?;
    sync_directory_of(path)
}

/// Has the disk know which names are in the directory of `path`.
///
/// # Errors
/// When the directory cannot be opened or synced.
pub fn sync_directory_of(path: &Path) -> io::Result<()> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(directory)?.sync_all()
}
