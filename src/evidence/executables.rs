//! What processes run: hashed, and copied where no image has it any more.
//!
//! Only on file systems that the kernel serves by itself are files opened: one that a process serves may belong to the pod,
//! and never answer. Which one a file is on is said by the kernel's lists, without touching it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::PathBuf;
use std::sync::Arc;

use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use serde::Serialize;

use super::guarded::Guarded;
use super::limits;
use super::proc::{FileKind, MappedFile, Mount, kind_of};
use super::processes::place;
use super::writer::hash;
use crate::model::escaped::Escaped;

/// File systems that answer without a process or another machine, but for `overlay` of such ones that do not.
const LOCAL: [&str; 16] = [
    "bcachefs", "btrfs", "erofs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "ramfs", "rootfs", "squashfs",
    "tmpfs", "vfat", "xfs", "zfs",
];

/// Whether what is on a mount can be read without waiting for anybody.
pub(super) fn answers(mount: &Mount) -> bool {
    LOCAL.iter().any(|local| local.as_bytes() == mount.file_system.0)
}

/// What a process runs.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Executable {
    path: Option<Escaped>,
    kind: Option<FileKind>,
    sha256: Option<String>,
    bytes: Option<u64>,
    /// Why there is no hash.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_read: Option<String>,
}

/// A file, however many names it has, as long as nobody writes it.
type Identity = (u64, u64, u64, i64, i64);

/// The executables that were seen.
#[derive(Debug, Default)]
pub(super) struct Executables {
    /// By device, whether its file system answers by itself.
    devices: BTreeMap<(u32, u32), bool>,
    hashes: BTreeMap<Identity, (String, u64)>,
    /// Those that are to be copied, by hash; none where no copies are asked for.
    wanted: Option<BTreeMap<String, File>>,
}

impl Executables {
    /// With the file systems of these mounts; `with_copies` of what is in no image.
    pub(super) fn on(mounts: &[Mount], with_copies: bool) -> Self {
        let mut executables = Self { wanted: with_copies.then(BTreeMap::new), ..Self::default() };
        executables.learn(mounts);
        if let Ok(memory) = memfd_create(c"quarantine", MFdFlags::MFD_CLOEXEC)
            && let Ok(metadata) = File::from(memory).metadata()
        {
            // Where all memory files are; no list of mounts has it.
            executables.devices.insert((libc::major(metadata.dev()), libc::minor(metadata.dev())), true);
        }
        executables
    }

    /// Takes in the file systems of more mounts. One device is one file system, wherever it is mounted.
    pub(super) fn learn(&mut self, mounts: &[Mount]) {
        for mount in mounts {
            if let Some(device) = numbers(&mount.device, 10) {
                let answers = answers(mount);
                self.devices.entry(device).and_modify(|known| *known &= answers).or_insert(answers);
            }
        }
    }

    /// What the process of this opened directory runs, of which these files are mapped into it.
    pub(super) fn read(
        &mut self,
        guarded: &mut Guarded,
        directory: &Arc<File>,
        path: Option<PathBuf>,
        mapped: &[MappedFile],
    ) -> Executable {
        // The kernel's own threads run none.
        let Some(path) = path else {
            return Executable { path: None, kind: None, sha256: None, bytes: None, not_read: None };
        };
        let name = path.as_os_str().as_bytes();
        let mut found = Executable {
            path: Some(name.into()),
            kind: Some(kind_of(name)),
            sha256: None,
            bytes: None,
            not_read: None,
        };
        match self.hash(guarded, directory, name, mapped) {
            Ok((file, (sha256, bytes))) => {
                if found.kind != Some(FileKind::File)
                    && let Some(wanted) = &mut self.wanted
                    && wanted.len() < limits::COPIES
                {
                    wanted.entry(sha256.clone()).or_insert(file);
                }
                (found.sha256, found.bytes) = (Some(sha256), Some(bytes));
            }
            Err(why) => found.not_read = Some(why),
        }
        found
    }

    fn hash(
        &mut self,
        guarded: &mut Guarded,
        directory: &Arc<File>,
        name: &[u8],
        mapped: &[MappedFile],
    ) -> Result<(File, (String, u64)), String> {
        // The kernel escapes more in the list of what is mapped; such a name is not found there, and not read.
        let device = mapped.iter().find(|file| file.path.0 == name).and_then(|file| numbers(&file.device, 16));
        match device.map(|device| self.devices.get(&device)) {
            Some(Some(true)) => {}
            Some(Some(false)) => return Err("it is on a file system that another process or machine serves".to_owned()),
            Some(None) => return Err("no list of mounts says which file system it is on".to_owned()),
            None => return Err("the list of what is mapped does not say which file system it is on".to_owned()),
        }
        let directory = directory.clone();
        let opened = guarded.run(limits::FILE_PATIENCE, move || {
            let file = open(&directory)?;
            let metadata = file.metadata()?;
            Ok((file, (metadata.dev(), metadata.ino(), metadata.size(), metadata.mtime(), metadata.mtime_nsec())))
        });
        let opened: std::io::Result<(File, Identity)> = opened.map_err(|why| why.as_str().to_owned())?;
        let (mut file, identity) = opened.map_err(|error| error.to_string())?;
        if let Some(known) = self.hashes.get(&identity) {
            return Ok((file, known.clone()));
        }
        let hashed =
            guarded.run(limits::FILE_PATIENCE, move || hash(&mut file, limits::HASHED).map(|hash| (file, hash)));
        match hashed.map_err(|why| why.as_str().to_owned())?.map_err(|error| error.to_string())? {
            (file, Some(hashed)) => {
                self.hashes.insert(identity, hashed.clone());
                Ok((file, hashed))
            }
            (_, None) => Err(format!("it is longer than {} bytes", limits::HASHED)),
        }
    }

    /// Those that are to be copied, by hash.
    pub(super) fn take_wanted(&mut self) -> BTreeMap<String, File> {
        self.wanted.take().unwrap_or_default()
    }
}

fn open(directory: &File) -> std::io::Result<File> {
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(place(directory, "exe"))?;
    if file.metadata()?.is_file() { Ok(file) } else { Err(std::io::Error::other("it is not a regular file")) }
}

/// `MAJOR:MINOR`: in decimal in lists of mounts, in hexadecimal in lists of what is mapped.
fn numbers(device: &str, radix: u32) -> Option<(u32, u32)> {
    let (major, minor) = device.split_once(':')?;
    Some((u32::from_str_radix(major, radix).ok()?, u32::from_str_radix(minor, radix).ok()?))
}

#[cfg(test)]
mod tests {
    use super::super::proc::read_mountinfo;
    use super::*;

    #[test]
    fn only_what_answers_by_itself_is_opened() {
        let text = b"1 0 0:50 / / rw - overlay o rw\n2 1 0:60 / /mnt rw - fuse.x f rw\n3 1 0:70 / /n rw - nfs4 n rw\n\
                     4 1 0:60 / /other rw - tmpfs lies rw\n";
        let executables = Executables::on(&read_mountinfo(text, 9).0, false);
        assert!(executables.devices[&(0, 50)]);
        assert!(!executables.devices[&(0, 60)] && !executables.devices[&(0, 70)]);
        assert_eq!((numbers("fe:01", 16), numbers("254:1", 10)), (Some((254, 1)), Some((254, 1))));
    }
}
