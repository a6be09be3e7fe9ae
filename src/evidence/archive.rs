//! Collections as one file to be handed on: tar in zstd, which every forensic tool opens.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use ruzstd::encoding::{CompressionLevel, compress};

use super::EvidenceError;
use super::store::{Kept, Store};

/// Writes these collections to a new file; nothing is left where that fails.
///
/// # Errors
/// [`EvidenceError::Io`].
pub fn archive(store: &Store, kept: &[Kept], path: &Path) -> Result<(), EvidenceError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    let file = file.map_err(EvidenceError::io("create", path))?;
    let written = write(store, kept, &file, path).and_then(|()| file.sync_all());
    written.map_err(|error| {
        let _ = std::fs::remove_file(path);
        EvidenceError::io("write", path)(error)
    })
}

/// The compressor reads, and tar writes: in between is a file that soon has no name.
fn write(store: &Store, kept: &[Kept], file: &File, path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".tar");
    let plain = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&name)?;
    std::fs::remove_file(&name)?;
    let mut tar = tar::Builder::new(&plain);
    tar.follow_symlinks(false);
    tar.mode(tar::HeaderMode::Deterministic);
    for kept in kept {
        for (name, place) in store.files_of(kept) {
            tar.append_path_with_name(place, format!("evidence/{}/{name}", kept.path))?;
        }
    }
    tar.finish()?;
    drop(tar);
    (&plain).seek(SeekFrom::Start(0))?;
    let mut source = Remembering { inner: &plain, error: None };
    let mut drain = Remembering { inner: BufWriter::new(file), error: None };
    compress(&mut source, &mut drain, CompressionLevel::Fastest);
    let flushed = drain.inner.flush();
    source.error.or(drain.error).map_or(flushed, Err)
}

/// The compressor panics where reading or writing fails: here neither does, and what failed is said afterwards.
struct Remembering<T> {
    inner: T,
    error: Option<io::Error>,
}

impl<T: Read> Read for Remembering<T> {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(bytes) {
            Err(error) if error.kind() != io::ErrorKind::Interrupted => {
                self.error.get_or_insert(error);
                Ok(0)
            }
            read => read,
        }
    }
}

impl<T: Write> Write for Remembering<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.error.is_none() {
            self.error = self.inner.write_all(bytes).err();
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
