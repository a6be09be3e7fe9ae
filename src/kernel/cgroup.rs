//! Cgroups as the node has them, whatever of them this process's own container shows: the tree of version 2, and the hierarchies of
//! version 1 beside it.
//!
//! In rules (`socket cgroupv2`) and in eBPF programs the kernel compares an ID and a level of the whole tree; a program can be attached to
//! a cgroup of any part of it that is seen.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::libc;
use nix::sched::{CloneFlags, setns};

use crate::model::cgroup::{Cgroup, CgroupPath};
use crate::model::mounts::{Mount, mounts};

/// The inode number of the first cgroup namespace (`PROC_CGROUP_INIT_INO`), which sees the whole tree.
const FIRST_NAMESPACE: u64 = 0xefff_fffb;
/// The ID of the tree's root.
const ROOT: u64 = 1;
/// How this process reaches what the node's first one sees.
const SEEN_BY_THE_NODE: &str = "/proc/1/root";

/// The tree of version 2.
#[derive(Debug, Clone)]
pub struct CgroupTree {
    mounted_at: PathBuf,
    is_whole: bool,
}

impl CgroupTree {
    /// Where this process or the node's first one sees it, whole where either does. Else the part that the node's first one has for
    /// its root, or this process: a node may be a container itself. `None` where there is none of version 2.
    #[must_use]
    pub fn find() -> Option<Self> {
        let trees = |seen: Vec<Mount>| -> Vec<(Self, Mount)> {
            let of_second = seen.into_iter().filter(|mount| mount.kind == "cgroup2");
            let tree = |mount: Mount| {
                let is_whole = fs::metadata(&mount.point).ok()?.ino() == ROOT;
                Some((Self { mounted_at: mount.point.clone(), is_whole }, mount))
            };
            of_second.filter_map(tree).collect()
        };
        let whole =
            |trees: &[(Self, Mount)]| trees.iter().find(|(tree, _)| tree.is_whole).map(|(tree, _)| tree.clone());
        let own = trees(mounts_seen("self", ""));
        if let Some(tree) = whole(&own) {
            return Some(tree);
        }
        let of_node = trees(mounts_seen("1", SEEN_BY_THE_NODE));
        let in_part = || of_node.iter().chain(&own).find(|(_, mount)| mount.is_whole).map(|(tree, _)| tree.clone());
        whole(&of_node).or_else(in_part)
    }

    /// Whether its root is that of all the node's cgroups: only then levels are the kernel's.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.is_whole
    }

    /// The directory of its root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.mounted_at
    }

    /// The cgroup of a directory of it.
    #[must_use]
    pub fn cgroup(&self, directory: &Directory) -> Option<Cgroup> {
        let path = directory.path.strip_prefix(&self.mounted_at).ok()?;
        Some(Cgroup { path: CgroupPath::new(path.to_str()?)?, id: directory.id })
    }

    /// The ID of a cgroup; `None` where there is none of this path.
    #[must_use]
    pub fn id_of(&self, path: &CgroupPath) -> Option<u64> {
        fs::metadata(self.mounted_at.join(path.as_str())).ok().filter(fs::Metadata::is_dir).map(|cgroup| cgroup.ino())
    }

    /// The names of the cgroups right below one.
    #[must_use]
    pub fn children_of(&self, path: &CgroupPath) -> Vec<String> {
        let entries = fs::read_dir(self.mounted_at.join(path.as_str())).into_iter().flatten().flatten();
        let cgroups = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        cgroups.filter_map(|entry| entry.file_name().into_string().ok()).collect()
    }
}

/// The roots of the hierarchies of version 1, as this process sees them; where it sees none, as the node's first one does.
#[must_use]
pub fn old_hierarchies() -> Vec<PathBuf> {
    let whole = |seen: Vec<Mount>| -> Vec<PathBuf> {
        let of_first = seen.into_iter().filter(|mount| mount.kind == "cgroup" && mount.is_whole);
        of_first.map(|mount| mount.point).collect()
    };
    let own = whole(mounts_seen("self", ""));
    if own.is_empty() { whole(mounts_seen("1", SEEN_BY_THE_NODE)) } else { own }
}

/// Where a process has cgroups mounted, as this one reaches it.
fn mounts_seen(process: &str, root: &str) -> Vec<Mount> {
    let text = fs::read_to_string(format!("/proc/{process}/mountinfo")).unwrap_or_default();
    // Of the others there are thousands on a node with many pods.
    let of_cgroups = text.lines().filter(|line| line.contains(" - cgroup"));
    let reached = |mount: Mount| Mount { point: PathBuf::from(format!("{root}{}", mount.point.display())), ..mount };
    of_cgroups.flat_map(mounts).map(reached).collect()
}

/// A directory as the node has it, which this process may reach by another way.
#[must_use]
pub fn on_the_node(directory: &Path) -> PathBuf {
    directory.strip_prefix(SEEN_BY_THE_NODE).map_or_else(|_| directory.to_owned(), |path| Path::new("/").join(path))
}

/// A cgroup by its directory, of either version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub path: PathBuf,
    /// What the kernel calls it.
    pub id: u64,
}

/// The cgroups right below a directory that are root's: those that were handed to a user hold what that user says.
#[must_use]
pub fn below(directory: &Path) -> Vec<Directory> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let cgroup = |entry: fs::DirEntry| {
        let metadata = entry.metadata().ok().filter(|metadata| metadata.is_dir() && metadata.uid() == 0)?;
        Some(Directory { name: entry.file_name().into_string().ok()?, path: entry.path(), id: metadata.ino() })
    };
    let mut found: Vec<_> = entries.filter_map(cgroup).collect();
    found.sort_by(|one, other| one.name.cmp(&other.name));
    found
}

/// The processes of a cgroup and of those below it, by their numbers. One that is of no number here is 0.
///
/// # Errors
/// As the kernel gives it; [`is_gone`] tells where the cgroup is not there any more.
pub fn processes_of(cgroup: &Path) -> io::Result<Vec<u32>> {
    let mut found: Vec<u32> = match fs::read_to_string(cgroup.join("cgroup.procs")) {
        Ok(text) => text.lines().filter_map(|line| line.parse().ok()).collect(),
        // In a threaded one, whose processes are listed by the one above.
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Vec::new(),
        Err(error) => return Err(error),
    };
    for entry in fs::read_dir(cgroup)?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            match processes_of(&entry.path()) {
                // Gone in between.
                Err(error) if is_gone(&error) => {}
                below => found.extend(below?),
            }
        }
    }
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

/// The IDs of a cgroup and of those below it.
#[must_use]
pub fn ids_within(cgroup: &Path) -> BTreeSet<u64> {
    let own = fs::metadata(cgroup).ok().map(|found| found.ino());
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    own.into_iter().chain(directories.flat_map(|entry| ids_within(&entry.path()))).collect()
}

/// Whether a cgroup or a process is not there any more.
#[must_use]
pub fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ESRCH))
}

/// The cgroup of a process, as the calling thread's cgroup namespace sees it.
#[must_use]
pub fn cgroup_of_process(process: &str) -> Option<CgroupPath> {
    let cgroups = fs::read_to_string(Path::new("/proc").join(process).join("cgroup")).ok()?;
    cgroups.lines().find_map(|line| line.strip_prefix("0::")).and_then(CgroupPath::new)
}

/// Has the calling thread see the whole tree. The kernel counts levels in a rule from where whoever loads it stands.
///
/// # Errors
/// Where it stands elsewhere, and the node's first process does too, or may not be followed.
pub fn see_whole_tree() -> io::Result<()> {
    let is_first = |namespace: &str| Ok::<_, io::Error>(fs::metadata(namespace)?.ino() == FIRST_NAMESPACE);
    if is_first("/proc/thread-self/ns/cgroup")? {
        return Ok(());
    }
    const OF_THE_NODE: &str = "/proc/1/ns/cgroup";
    if !is_first(OF_THE_NODE)? {
        return Err(io::Error::other("the node's first process is in a cgroup namespace of its own"));
    }
    Ok(setns(File::open(OF_THE_NODE)?, CloneFlags::CLONE_NEWCGROUP)?)
}
