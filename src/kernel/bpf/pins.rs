//! Where links and maps outlive the process that made them: directories in the node's bpffs.

use std::fs::{self, DirBuilder};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::BpfError;
use super::object::{Link, LoadedMap, LoadedProgram};
use super::syscall::{Attributes, Command};
use crate::rules::bpf::{Map, Program};

/// Where systemd mounts it, and every other program looks for it.
const BPFFS: &str = "/sys/fs/bpf";
/// Our directory in it.
const OURS: &str = "quarantine";
/// What the names of pinned links and maps begin with: what is opened by its name may be of any sort.
const LINK: &str = "link-";
const MAP: &str = "map-";

/// What becomes of maps that are not pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Missing {
    /// They are made, and pinned.
    Made,
    /// They are made, and go with the program.
    Tried,
    /// They are not.
    Absent,
}

/// A directory of pins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pins(PathBuf);

impl Pins {
    /// The directory of what belongs to `owner` in the netns of this cookie: two nodes that share a kernel do not meet there.
    /// It may not be there yet.
    #[must_use]
    pub fn of(netns_cookie: u64, owner: &str) -> Self {
        // A name in a bpffs has no dot, and no owner's has a tilde.
        let owner = owner.replace('.', "~");
        Self(Path::new(BPFFS).join(OURS).join(netns_cookie.to_string()).join(owner))
    }

    /// The programs of all links that are pinned for the netns of this cookie, by their IDs.
    #[must_use]
    pub fn programs(netns_cookie: u64) -> Vec<u32> {
        let directory = Path::new(BPFFS).join(OURS).join(netns_cookie.to_string());
        let owners = fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| Self(entry.path()));
        let of = |pins: Self| -> Vec<u32> {
            let names = pins.links().into_iter();
            names.filter_map(|name| Some(pins.link(&name).ok()??.info().ok()?.program)).collect()
        };
        owners.flat_map(of).collect()
    }

    /// Whose directories begin with this, in the netns of this cookie: what comes behind it.
    #[must_use]
    pub fn owners(netns_cookie: u64, prefix: &str) -> Vec<String> {
        let directory = Path::new(BPFFS).join(OURS).join(netns_cookie.to_string());
        let entries = fs::read_dir(directory).into_iter().flatten().flatten();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut owners: Vec<_> = names.filter_map(|name| Some(name.strip_prefix(prefix)?.replace('~', "."))).collect();
        owners.sort();
        owners
    }

    /// Loads a program with the maps that are pinned here by the names that `name_of` gives them; `None` where one is absent and is to be.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn load(
        &self,
        program: &Program,
        name_of: impl Fn(&Map) -> String,
        missing: Missing,
    ) -> Result<Option<LoadedProgram>, BpfError> {
        let mut maps = Vec::with_capacity(program.maps.len());
        for map in &program.maps {
            let name = name_of(map);
            let loaded = match self.map(&name)? {
                Some(loaded) => loaded,
                None if missing == Missing::Absent => return Ok(None),
                None => {
                    let made = LoadedMap::create(map)?;
                    if missing == Missing::Made {
                        self.pin_map(&name, &made)?;
                    }
                    made
                }
            };
            maps.push(loaded);
        }
        LoadedProgram::load(program, &maps).map(Some)
    }

    /// Whether there is one.
    #[must_use]
    pub fn exist(&self) -> bool {
        self.0.is_dir()
    }

    /// Makes the directory, and mounts the bpffs where nobody did.
    ///
    /// # Errors
    /// [`BpfError::NoFilesystem`].
    pub fn make(&self) -> Result<(), BpfError> {
        let failed = |source| BpfError::NoFilesystem { path: BPFFS, source };
        let is_mounted = || statfs(BPFFS).is_ok_and(|found| found.filesystem_type() == BPF_FS_MAGIC);
        if !is_mounted() {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC | MsFlags::MS_RELATIME;
            mount(Some("bpf"), BPFFS, Some("bpf"), flags, Some("mode=700")).map_err(|errno| failed(errno.into()))?;
        }
        let ours = Path::new(BPFFS).join(OURS);
        let inner = ours.join(self.0.parent().and_then(Path::file_name).unwrap_or_default());
        for directory in [&ours, &inner, &self.0] {
            match DirBuilder::new().mode(0o700).create(directory) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(failed(error)),
                _ => {}
            }
            let found = fs::symlink_metadata(directory).map_err(failed)?;
            // Whoever can write to it can take the programs off.
            if !found.is_dir() || found.uid() != 0 || found.mode() & 0o077 != 0 {
                let why = format!("{} is not a directory of root's alone", directory.display());
                return Err(failed(io::Error::new(ErrorKind::PermissionDenied, why)));
            }
        }
        Ok(())
    }

    /// The names of the links in it.
    #[must_use]
    pub fn links(&self) -> Vec<String> {
        self.names().iter().filter_map(|name| Some(name.strip_prefix(LINK)?.to_owned())).collect()
    }

    /// The names in it.
    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        names.sort();
        names
    }

    /// The link that is pinned by this name.
    ///
    /// # Errors
    /// [`BpfError`]; `None` where there is none.
    pub fn link(&self, name: &str) -> Result<Option<Link>, BpfError> {
        Ok(self.get(&format!("{LINK}{name}"))?.map(Link))
    }

    /// The map that is pinned by this name.
    ///
    /// # Errors
    /// [`BpfError`]; `None` where there is none.
    pub fn map(&self, name: &str) -> Result<Option<LoadedMap>, BpfError> {
        Ok(self.get(&format!("{MAP}{name}"))?.map(LoadedMap))
    }

    fn get(&self, name: &str) -> Result<Option<OwnedFd>, BpfError> {
        let path = terminated(&self.0.join(name));
        let mut attributes = Attributes::new().reads(0, &path).word(12, 0);
        // SAFETY: the path ends; the command makes a descriptor.
        match unsafe { attributes.open(Command::ObjGet) } {
            Ok(found) => Ok(Some(found)),
            // Not there; and what is no bpffs can hold no pin.
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(None),
            Err(errno) => Err(BpfError::of("open what is pinned", errno)),
        }
    }

    /// Pins a link, in place of what had the name: that goes when this is there.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn pin_link(&self, name: &str, link: &Link) -> Result<(), BpfError> {
        let (name, new) = (format!("{LINK}{name}"), format!("new-{LINK}{name}"));
        let _ = fs::remove_file(self.0.join(&new));
        self.pin(&new, link.as_fd())?;
        let renamed = fs::rename(self.0.join(&new), self.0.join(&name));
        renamed.map_err(|source| BpfError::NoFilesystem { path: BPFFS, source })
    }

    /// Pins a map.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn pin_map(&self, name: &str, map: &LoadedMap) -> Result<(), BpfError> {
        self.pin(&format!("{MAP}{name}"), map.as_fd())
    }

    fn pin(&self, name: &str, object: BorrowedFd<'_>) -> Result<(), BpfError> {
        let path = terminated(&self.0.join(name));
        let mut attributes = Attributes::new().reads(0, &path).descriptor(8, object).word(12, 0);
        // SAFETY: the path ends.
        let done = unsafe { attributes.call(Command::ObjPin) };
        done.map(drop).map_err(|errno| BpfError::of("pin what was made", errno))
    }

    /// Has those of these links that are on interfaces let everything pass, before they come off. What cannot is only later.
    pub fn let_pass<'a>(&self, links: impl IntoIterator<Item = &'a String>) {
        for link in links.into_iter().filter_map(|name| self.link(name).ok()?) {
            let _ = link.let_pass();
        }
    }

    /// Takes a link off, where there is one.
    pub fn remove_link(&self, name: &str) {
        let _ = self.remove(&format!("{LINK}{name}"));
    }

    /// Forgets the maps whose names satisfy this; what is attached goes on using them.
    pub fn forget_maps(&self, is_unwanted: impl Fn(&str) -> bool) {
        for name in self.names() {
            if name.strip_prefix(MAP).is_some_and(&is_unwanted) {
                let _ = self.remove(&name);
            }
        }
    }

    /// Removes a pin; with the last pin of a link its program comes off.
    fn remove(&self, name: &str) -> Result<(), BpfError> {
        match fs::remove_file(self.0.join(name)) {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(BpfError::NoFilesystem { path: BPFFS, source }),
            _ => Ok(()),
        }
    }

    /// Removes them all, and the directory; says whether there was one.
    ///
    /// Programs on interfaces are left to the kernel, which takes them off in its own time: to take off the three of a sandbox at once
    /// (`Link::detach`) is to wait for an RCU grace period each. A DEL takes 49 ms then instead of 10, `release` 49 instead of 30 (the
    /// quickest of 15 each, Linux 6.18, on a busy machine). At a release they let pass before it ([`Self::let_pass`]). On a
    /// cgroup it is microseconds, and is done there.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn remove_all(&self) -> Result<bool, BpfError> {
        if !self.exist() {
            return Ok(false);
        }
        for name in self.names() {
            self.remove(&name)?;
        }
        let removed = fs::remove_dir(&self.0);
        // The last one that leaves clears up.
        let _ = self.0.parent().map(fs::remove_dir);
        match removed {
            Err(source) if source.kind() != ErrorKind::NotFound => Err(BpfError::NoFilesystem { path: BPFFS, source }),
            _ => Ok(true),
        }
    }
}

fn terminated(path: &Path) -> Vec<u8> {
    let mut bytes = path.as_os_str().as_bytes().to_vec();
    bytes.push(0);
    bytes
}
