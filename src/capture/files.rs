//! The packets of a sandbox on disk: a file after the other, none of which grows long, and no more than a few of them.
//!
//! ```text
//! captures/<container ID>/000001.pcapng    the first one stays: what was tried right after the cut
//! captures/<container ID>/000009.pcapng    the last ones; those in between are removed
//! captures/<container ID>/names.jsonl      who was asked for by name
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::libc;

use super::pcapng::beginning;
use crate::node::files::entries;

/// Bytes of one file.
const FILE_MAX: u64 = 1024 * 1024;
/// How many there are.
const FILES_MAX: usize = 8;
/// Nothing is kept where the file system would be left with less.
const FREE_MIN: u64 = 256 * 1024 * 1024;
const SUFFIX: &str = ".pcapng";

/// The files of one sandbox, and the one that is written.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    description: String,
    file: Option<(File, u64)>,
}

impl Files {
    /// Those in this directory, which is made when there is something to write.
    pub(super) fn new(directory: PathBuf, description: String) -> Self {
        Self { directory, description, file: None }
    }

    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Writes a block at the end of the last file.
    ///
    /// # Errors
    /// When it cannot be written; the next one goes to a new file.
    pub(super) fn write(&mut self, block: &[u8]) -> io::Result<()> {
        let (mut file, length) = match self.file.take() {
            Some((file, length)) if length + block.len() as u64 <= FILE_MAX => (file, length),
            _ => self.begin()?,
        };
        file.write_all(block)?;
        self.file = Some((file, length + block.len() as u64));
        Ok(())
    }

    fn begin(&self) -> io::Result<(File, u64)> {
        make_private(&self.directory)?;
        let free = nix::sys::statvfs::statvfs(&self.directory)?;
        if free.fragment_size().saturating_mul(free.blocks_available()) < FREE_MIN {
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the file system is nearly full"));
        }
        let there = packet_files(&self.directory)?;
        if there.len() >= FILES_MAX {
            for path in &there[1..=there.len() - (FILES_MAX - 1)] {
                fs::remove_file(path)?;
            }
        }
        let number = there.last().and_then(|path| number_of(path)).unwrap_or(0) + 1;
        let mut options = OpenOptions::new();
        options.write(true).create_new(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut file = options.open(self.directory.join(format!("{number:06}{SUFFIX}")))?;
        let first = beginning(&self.description);
        file.write_all(&first)?;
        Ok((file, first.len() as u64))
    }
}

/// The directory and the one above it, for root alone.
fn make_private(directory: &Path) -> io::Result<()> {
    for directory in directory.parent().into_iter().chain([directory]) {
        match DirBuilder::new().mode(0o700).create(directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_suffix(SUFFIX)?.parse().ok()
}

/// The files of packets in a directory, the oldest first; none where there is no directory.
///
/// # Errors
/// When it cannot be read.
pub fn packet_files(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found: Vec<_> = entries(directory)?.into_iter().map(|name| directory.join(name)).collect();
    found.retain(|path| number_of(path).is_some());
    found.sort_by_key(|path| number_of(path));
    Ok(found)
}

/// A file of packets, no more of it than is ever written.
pub(super) fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path)?;
    file.take(2 * FILE_MAX).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_and_the_last_files_stay() {
        let directory = tempfile::tempdir().unwrap();
        let place = directory.path().join("captures/c1");
        fs::create_dir(directory.path().join("captures")).unwrap();
        let mut files = Files::new(place.clone(), "c1".to_owned());
        let block = vec![0; 600 * 1024];
        for _ in 0..12 {
            files.write(&block).unwrap();
        }
        let names = || packet_files(&place).unwrap().iter().filter_map(|path| number_of(path)).collect::<Vec<_>>();
        assert_eq!(names(), [1, 6, 7, 8, 9, 10, 11, 12]);
        // Whoever comes after it goes on behind the last.
        Files::new(place.clone(), "c1".to_owned()).write(&block).unwrap();
        assert_eq!(names(), [1, 7, 8, 9, 10, 11, 12, 13]);
    }
}
