//! Where collections are kept, and what was done to them since.
//!
//! ```text
//! evidence/<container ID>/<time>/manifest.json and the files that it names; of a pod with hostNetwork evidence/host:<UID>/…
//! evidence/<container ID>/.<time>               one that is being made, or was not finished
//! evidence/head.json                            the last one of the node's chain
//! evidence/.lock                                held while a manifest is put into the chain
//! ```

use std::collections::BTreeSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use nix::libc;

use crate::model::subject::Subject;
use crate::node::state::StateDir;

use super::EvidenceError;
use super::manifest::{FORMAT, Fault, Found, Link, Manifest, check_chain};
use super::writer::{hash, hash_of};

const MANIFEST: &str = "manifest.json";
const HEAD: &str = "head.json";
const MANIFEST_MAX: u64 = 4 * 1024 * 1024;
/// Nothing is collected where the file system would be left with less.
const FREE_MIN: u64 = 256 * 1024 * 1024;

/// The directory of all collections.
#[derive(Debug, Clone)]
pub struct Store {
    path: PathBuf,
}

/// A collection that was found.
#[derive(Debug, Clone)]
pub struct Kept {
    /// Where it is below the store.
    pub path: String,
    /// What it says of itself.
    pub manifest: Manifest,
    /// The hash of that.
    pub sha256: String,
}

impl Kept {
    fn link(&self) -> Link {
        Link { path: self.path.clone(), sha256: self.sha256.clone(), sequence: self.manifest.sequence }
    }
}

impl Store {
    /// The store of a state directory, which may not be there yet.
    #[must_use]
    pub fn of(state: &StateDir) -> Self {
        Self { path: state.path().join("evidence") }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The directory of a sandbox or pod, made where it is not there, in a file system that has room.
    pub(super) fn prepare(&self, subject: &Subject) -> Result<PathBuf, EvidenceError> {
        let directory = self.path.join(subject.to_string());
        for directory in [&self.path, &directory] {
            match DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(EvidenceError::io("create", directory)(error));
                }
                _ => {}
            }
            require_private(directory)?;
        }
        let status = nix::sys::statvfs::statvfs(&directory)
            .map_err(|errno| EvidenceError::io("look at the file system of", &directory)(errno.into()))?;
        let free = status.fragment_size().saturating_mul(status.blocks_available());
        if free < FREE_MIN {
            return Err(EvidenceError::NoRoom { path: directory.display().to_string(), free, least: FREE_MIN });
        }
        Ok(directory)
    }

    /// Puts a finished collection into its place and into the chain.
    pub(super) fn seal(
        &self,
        partial: &Path,
        subject: &Subject,
        time: &str,
        mut manifest: Manifest,
    ) -> Result<Kept, EvidenceError> {
        let lock_path = self.path.join(".lock");
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let lock = options.open(&lock_path);
        let lock = lock.map_err(EvidenceError::io("open", &lock_path))?;
        let _lock = Flock::lock(lock, FlockArg::LockExclusive)
            .map_err(|(_, errno)| EvidenceError::io("lock", &lock_path)(errno.into()))?;
        let head = self.head()?;
        manifest.sequence = head.as_ref().map_or(1, |head| head.sequence + 1);
        manifest.predecessor = head;
        let text = serde_json::to_vec_pretty(&manifest)
            .map_err(|error| EvidenceError::io("write", &partial.join(MANIFEST))(error.into()))?;
        write_new(&partial.join(MANIFEST), &text)?;
        let (path, directory) = self.free_place(subject, time);
        let kept = Kept { path, sha256: hash_of(&text), manifest };
        // The head first: a stop in between leaves a collection that is named and not finished, and never one that is
        // finished and not named.
        let temporary = self.path.join(".head");
        let _ = fs::remove_file(&temporary);
        let head = serde_json::to_vec_pretty(&kept.link()).unwrap_or_default();
        write_new(&temporary, &head)?;
        let place = self.path.join(HEAD);
        fs::rename(&temporary, &place).map_err(EvidenceError::io("write", &place))?;
        fs::rename(partial, &directory).map_err(EvidenceError::io("name", &directory))?;
        for directory in [&self.path, &self.path.join(subject.to_string()), &directory] {
            let synced = File::open(directory).and_then(|directory| directory.sync_all());
            synced.map_err(EvidenceError::io("sync", directory))?;
        }
        Ok(kept)
    }

    /// Two collections within one second have different names.
    fn free_place(&self, subject: &Subject, time: &str) -> (String, PathBuf) {
        let names = (1..).map(|number| if number == 1 { time.to_owned() } else { format!("{time}-{number}") });
        let mut places = names.map(|name| {
            let path = format!("{subject}/{name}");
            let directory = self.path.join(&path);
            (path, directory)
        });
        places.find(|(_, directory)| !directory.exists()).unwrap_or_default()
    }

    fn head(&self) -> Result<Option<Link>, EvidenceError> {
        let path = self.path.join(HEAD);
        match read(&path) {
            Ok(text) => serde_json::from_slice(&text)
                .map(Some)
                .map_err(|error| EvidenceError::io("understand", &path)(error.into())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(EvidenceError::io("read", &path)(error)),
        }
    }

    /// The collections that there are, in the order of their numbers, and those that cannot be read.
    ///
    /// # Errors
    /// [`EvidenceError::Io`] where they cannot be listed.
    pub fn collections(&self) -> Result<(Vec<Kept>, Vec<Fault>), EvidenceError> {
        let (mut kept, mut faults) = (Vec::new(), Vec::new());
        for sandbox in names_in(&self.path)?.into_iter().filter(|name| self.path.join(name).is_dir()) {
            for time in names_in(&self.path.join(&sandbox))? {
                let path = format!("{sandbox}/{time}");
                let read = read(&self.path.join(&path).join(MANIFEST));
                let understood = read.and_then(|text| {
                    let manifest: Manifest = serde_json::from_slice(&text)?;
                    if manifest.format == FORMAT {
                        Ok((manifest, hash_of(&text)))
                    } else {
                        Err(io::Error::other(format!(
                            "it has format {}, which this version does not know",
                            manifest.format
                        )))
                    }
                });
                match understood {
                    Ok((manifest, sha256)) => kept.push(Kept { path, manifest, sha256 }),
                    Err(error) => faults.push(Fault::Unreadable { path, why: error.to_string() }),
                }
            }
        }
        kept.sort_by(|a, b| (a.manifest.sequence, &a.path).cmp(&(b.manifest.sequence, &b.path)));
        Ok((kept, faults))
    }

    /// What is not as it was written: in the chain, and in the files of those collections that `is_meant`.
    ///
    /// # Errors
    /// [`EvidenceError::Io`] where they cannot be listed.
    pub fn verify(&self, is_meant: impl Fn(&Kept) -> bool) -> Result<Vec<Fault>, EvidenceError> {
        let (kept, mut faults) = self.collections()?;
        let found: Vec<_> = kept
            .iter()
            .map(|kept| Found { own: kept.link(), predecessor: kept.manifest.predecessor.clone() })
            .collect();
        match self.head() {
            Ok(head) => faults.extend(check_chain(&found, head.as_ref())),
            Err(error) => {
                faults.push(Fault::Unreadable { path: HEAD.to_owned(), why: error.to_string() });
                faults.extend(check_chain(&found, found.last().map(|found| &found.own)));
            }
        }
        // One that cannot be read was not removed.
        let unreadable: BTreeSet<_> = faults
            .iter()
            .filter_map(|fault| match fault {
                Fault::Unreadable { path, .. } => Some(path.clone()),
                _ => None,
            })
            .collect();
        faults.retain(|fault| !matches!(fault, Fault::Removed { path } if unreadable.contains(path)));
        for kept in kept.iter().filter(|kept| is_meant(kept)) {
            faults.extend(self.verify_files(kept)?);
        }
        Ok(faults)
    }

    fn verify_files(&self, kept: &Kept) -> Result<Vec<Fault>, EvidenceError> {
        let directory = self.path.join(&kept.path);
        let mut faults = Vec::new();
        let mut expected = BTreeSet::from([MANIFEST.to_owned()]);
        for entry in &kept.manifest.files {
            expected.insert(entry.name.clone());
            let path = format!("{}/{}", kept.path, entry.name);
            match open(&directory.join(&entry.name)).and_then(|mut file| hash(&mut file, entry.bytes)) {
                Ok(Some((sha256, bytes))) if sha256 == entry.sha256 && bytes == entry.bytes => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => faults.push(Fault::FileRemoved { path }),
                _ => faults.push(Fault::FileChanged { path }),
            }
        }
        for name in files_below(&directory)? {
            if !expected.contains(&name) {
                faults.push(Fault::FileAdded { path: format!("{}/{name}", kept.path) });
            }
        }
        Ok(faults)
    }

    /// The files of a collection: names in it, and where they are.
    pub(super) fn files_of(&self, kept: &Kept) -> Vec<(String, PathBuf)> {
        let directory = self.path.join(&kept.path);
        let names = kept.manifest.files.iter().map(|entry| entry.name.clone());
        names.chain([MANIFEST.to_owned()]).map(|name| (name.clone(), directory.join(name))).collect()
    }
}

/// All that is in a directory and those below it, by path from there. Links are not followed.
fn files_below(directory: &Path) -> Result<Vec<String>, EvidenceError> {
    let (mut found, mut left) = (Vec::new(), vec![String::new()]);
    while let Some(below) = left.pop() {
        let path = directory.join(&below);
        let entries = fs::read_dir(&path).map_err(EvidenceError::io("list", &path))?;
        for entry in entries.filter_map(Result::ok) {
            let name = entry.file_name().to_string_lossy().into_owned();
            let name = if below.is_empty() { name } else { format!("{below}/{name}") };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                left.push(name);
            } else {
                found.push(name);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// The names in a directory that do not begin with a dot; none where there is no directory.
fn names_in(directory: &Path) -> Result<Vec<String>, EvidenceError> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(EvidenceError::io("list", directory)(error)),
        Ok(entries) => {
            let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let mut names: Vec<_> = names.filter(|name| !name.starts_with('.')).collect();
            names.sort();
            Ok(names)
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::Error::other("it is not a regular file")) }
}

fn read(path: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    open(path)?.take(MANIFEST_MAX).read_to_end(&mut text)?;
    Ok(text)
}

fn write_new(path: &Path, content: &[u8]) -> Result<(), EvidenceError> {
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(content).and_then(|()| file.sync_all()))
        .map_err(EvidenceError::io("write", path))
}

/// Who can write here can forge what is evidence against them.
fn require_private(directory: &Path) -> Result<(), EvidenceError> {
    let metadata = fs::symlink_metadata(directory).map_err(EvidenceError::io("look at", directory))?;
    if metadata.is_dir() && metadata.uid() == 0 && metadata.mode() & 0o022 == 0 {
        Ok(())
    } else {
        Err(EvidenceError::Unsound { path: directory.display().to_string() })
    }
}
