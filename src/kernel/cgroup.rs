//! Cgroups of version 2 as the node has them, whatever of them this process's own container shows.
//!
//! By an ID and a level of the whole tree, as the kernel compares them in rules (`socket cgroupv2`) and in eBPF programs.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use crate::model::probes::CgroupPath;

/// The inode number of the first cgroup namespace (`PROC_CGROUP_INIT_INO`), which sees the whole tree.
const FIRST_NAMESPACE: u64 = 0xefff_fffb;
/// The ID of the tree's root.
const ROOT: u64 = 1;

/// The whole tree, where it can be seen.
#[derive(Debug)]
pub struct CgroupTree {
    mounted_at: PathBuf,
}

impl CgroupTree {
    /// Where this process or the node's first one sees it. `None` where neither does: there is none of version 2, or its root is
    /// hidden from both.
    #[must_use]
    pub fn find() -> Option<Self> {
        let seen_by = |process: &str, root: &str| {
            let mounts = fs::read_to_string(format!("/proc/{process}/mounts")).ok()?;
            let mut fields = mounts.lines().map(|line| line.split(' '));
            fields.find_map(|mut fields| {
                let (path, kind) = (fields.nth(1)?, fields.next()?);
                let path = PathBuf::from(format!("{root}{path}"));
                let is_whole = kind == "cgroup2" && fs::metadata(&path).is_ok_and(|root| root.ino() == ROOT);
                is_whole.then_some(Self { mounted_at: path })
            })
        };
        seen_by("self", "").or_else(|| seen_by("1", "/proc/1/root"))
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
