//! The files of one collection: hashed as they are written, and no longer than they may be.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::Serialize;
use sha2::{Digest, Sha256};

use super::manifest::FileEntry;

/// A list ends before its file is longer than this.
const LIST_MAX: u64 = 32 * 1024 * 1024;

/// A directory that is being filled.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
    written: Vec<FileEntry>,
}

impl Files {
    /// Makes the directory, which must not be there.
    pub(super) fn create(directory: PathBuf) -> io::Result<Self> {
        DirBuilder::new().mode(0o700).create(&directory)?;
        Ok(Self { directory, written: Vec::new() })
    }

    /// Writes a document whole.
    pub(super) fn document(&mut self, name: &str, document: &impl Serialize, cut_short: Vec<String>) -> io::Result<()> {
        let mut file = HashedFile::create(&self.directory.join(name))?;
        serde_json::to_writer(&mut file, document)?;
        self.close(name, file, cut_short)
    }

    /// Begins a document that is a list.
    pub(super) fn list(&mut self, name: &'static str) -> io::Result<List<'_>> {
        let mut file = HashedFile::create(&self.directory.join(name))?;
        file.write_all(b"{\"items\":[")?;
        Ok(List { files: self, name, file, count: 0, is_full: false })
    }

    /// Writes what can be read, up to `most` bytes; says how long that was.
    pub(super) fn copy(&mut self, name: &str, from: &mut impl Read, most: u64) -> io::Result<()> {
        let path = self.directory.join(name);
        if let Some(parent) = path.parent().filter(|parent| *parent != self.directory && !parent.exists()) {
            DirBuilder::new().mode(0o700).create(parent)?;
        }
        let mut file = HashedFile::create(&path)?;
        let copied = io::copy(&mut from.take(most), &mut file)?;
        let more = from.read(&mut [0])? > 0;
        self.close(name, file, if more { vec![format!("more than {copied} bytes")] } else { Vec::new() })
    }

    fn close(&mut self, name: &str, file: HashedFile, cut_short: Vec<String>) -> io::Result<()> {
        let (sha256, bytes) = file.finish()?;
        self.written.push(FileEntry { name: name.to_owned(), sha256, bytes, cut_short });
        Ok(())
    }

    /// What was written.
    pub(super) fn finish(self) -> (PathBuf, Vec<FileEntry>) {
        (self.directory, self.written)
    }
}

/// A list that is being written.
#[derive(Debug)]
pub(super) struct List<'a> {
    files: &'a mut Files,
    name: &'static str,
    file: HashedFile,
    count: usize,
    is_full: bool,
}

impl List<'_> {
    /// Appends an item, where there is room.
    pub(super) fn push(&mut self, item: &impl Serialize) -> io::Result<()> {
        if self.file.bytes >= LIST_MAX {
            self.is_full = true;
            return Ok(());
        }
        self.file.write_all(if self.count == 0 { b"\n" } else { b",\n" })?;
        serde_json::to_writer(&mut self.file, item)?;
        self.count += 1;
        Ok(())
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn is_full(&self) -> bool {
        self.is_full
    }

    /// Ends it, and says what is not in it.
    pub(super) fn finish(mut self, mut cut_short: Vec<String>) -> io::Result<()> {
        if self.is_full {
            cut_short
                .push(format!("{} of the list are here: the file would be longer than {LIST_MAX} bytes", self.count));
        }
        write!(self.file, "\n],\"cutShort\":{}}}\n", serde_json::to_string(&cut_short)?)?;
        self.files.close(self.name, self.file, cut_short)
    }
}

#[derive(Debug)]
struct HashedFile {
    file: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
}

impl HashedFile {
    fn create(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        Ok(Self { file: BufWriter::with_capacity(64 * 1024, file), hash: Sha256::new(), bytes: 0 })
    }

    fn finish(self) -> io::Result<(String, u64)> {
        let (hash, bytes) = (hexadecimal(&self.hash.finalize()), self.bytes);
        self.file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
        Ok((hash, bytes))
    }
}

impl Write for HashedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all(bytes)?;
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The SHA-256 of what can be read, up to `most` bytes; `None` where there is more.
pub(super) fn hash(from: &mut impl Read, most: u64) -> io::Result<Option<(String, u64)>> {
    let (mut hash, mut bytes, mut part) = (Sha256::new(), 0_u64, vec![0; 64 * 1024]);
    loop {
        match from.read(&mut part) {
            Ok(0) => return Ok(Some((hexadecimal(&hash.finalize()), bytes))),
            Ok(read) => {
                hash.update(&part[..read]);
                bytes += read as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
        if bytes > most {
            return Ok(None);
        }
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The SHA-256 of bytes.
pub(super) fn hash_of(bytes: &[u8]) -> String {
    hexadecimal(&Sha256::digest(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_what_was_hashed() {
        let directory = tempfile::tempdir().unwrap();
        let mut files = Files::create(directory.path().join("c")).unwrap();
        let mut list = files.list("items.json").unwrap();
        list.push(&"one").unwrap();
        list.push(&2).unwrap();
        list.finish(vec!["3 more".to_owned()]).unwrap();
        files.copy("sub/copied", &mut &b"0123456789"[..], 4).unwrap();
        let (directory, written) = files.finish();
        for entry in &written {
            let content = std::fs::read(directory.join(&entry.name)).unwrap();
            assert_eq!((hash_of(&content), content.len() as u64), (entry.sha256.clone(), entry.bytes));
        }
        let items: serde_json::Value =
            serde_json::from_slice(&std::fs::read(directory.join("items.json")).unwrap()).unwrap();
        assert_eq!(items, serde_json::json!({ "items": ["one", 2], "cutShort": ["3 more"] }));
        assert_eq!((written[1].bytes, &written[1].cut_short[..]), (4, &["more than 4 bytes".to_owned()][..]));
        assert_eq!(hash_of(b""), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(hash(&mut &b"abc"[..], 2).unwrap(), None);
    }
}
