//! The pods of this node by their cgroups, as the kubelet makes them.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::model::host_pod::{Cgroup, is_class_of_pods, is_root_of_pods, mounts, pod_of_cgroup};
use crate::model::names::{Key, PodUid};

/// How deep below the root of the cgroups the kubelet's are looked for: `--cgroup-root` may be anything.
const DEPTH: usize = 3;
/// Where the kubelet keeps each pod's logs, in directories of its own making: `<namespace>_<name>_<UID>`.
const LOGS: &str = "/var/log/pods";

/// Where cgroups are mounted.
#[derive(Debug, Clone, Default)]
pub(super) struct Hierarchies {
    /// The one of version 2.
    pub(super) second: Option<PathBuf>,
    /// Those of version 1.
    pub(super) first: Vec<PathBuf>,
}

impl Hierarchies {
    /// As this process sees them.
    pub(super) fn read() -> Self {
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let mut found = Self::default();
        for mount in mounts(&text).filter(|mount| mount.is_whole) {
            match mount.kind.as_str() {
                "cgroup2" => found.second = found.second.or(Some(mount.point)),
                "cgroup" => found.first.push(mount.point),
                _ => {}
            }
        }
        found
    }
}

/// The cgroups of pods in a hierarchy, whatever they are pods of.
pub(super) fn pods_in(hierarchy: &Path) -> BTreeMap<PodUid, Vec<Cgroup>> {
    let mut pods: BTreeMap<PodUid, Vec<Cgroup>> = BTreeMap::new();
    for root in roots_of_pods(hierarchy) {
        for (name, cgroup) in below(&root) {
            let of_class = if is_class_of_pods(&name) { below(&cgroup.path) } else { vec![(name, cgroup)] };
            for (name, cgroup) in of_class {
                if let Some(uid) = pod_of_cgroup(&name) {
                    pods.entry(uid).or_default().push(cgroup);
                }
            }
        }
    }
    pods
}

/// The cgroups below which the kubelet keeps pods, in a hierarchy.
pub(super) fn roots_of_pods(hierarchy: &Path) -> Vec<PathBuf> {
    let mut roots = Vec::new();
    let mut level = vec![hierarchy.to_owned()];
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for (name, cgroup) in level.iter().flat_map(|directory| below(directory)) {
            if is_root_of_pods(&name) {
                roots.push(cgroup.path);
            } else {
                next.push(cgroup.path);
            }
        }
        level = next;
    }
    roots
}

/// Whether a directory below that one which the kubelet keeps pods below holds pods of a class.
pub(super) fn classes_of_pods(root: &Path) -> Vec<PathBuf> {
    below(root).into_iter().filter(|(name, _)| is_class_of_pods(name)).map(|(_, cgroup)| cgroup.path).collect()
}

/// The cgroups in a directory that are root's: those that were handed to a user hold what that user says.
fn below(directory: &Path) -> Vec<(String, Cgroup)> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let cgroup = |entry: fs::DirEntry| {
        let metadata = entry.metadata().ok().filter(|metadata| metadata.is_dir() && metadata.uid() == 0)?;
        Some((entry.file_name().into_string().ok()?, Cgroup { path: entry.path(), id: metadata.ino() }))
    };
    let mut found: Vec<_> = entries.filter_map(cgroup).collect();
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
}

/// The processes of a cgroup and of those below it, by their numbers. One that is of no number here is 0.
pub(super) fn processes_of(cgroup: &Path) -> io::Result<Vec<u32>> {
    let mut found: Vec<u32> = match fs::read_to_string(cgroup.join("cgroup.procs")) {
        Ok(text) => text.lines().filter_map(|line| line.parse().ok()).collect(),
        // In a threaded one, whose processes are listed by the one above.
        Err(error) if error.raw_os_error() == Some(nix::libc::EOPNOTSUPP) => Vec::new(),
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
pub(super) fn ids_within(cgroup: &Path) -> BTreeSet<u64> {
    let own = fs::metadata(cgroup).ok().map(|found| found.ino());
    let entries = fs::read_dir(cgroup).into_iter().flatten().flatten();
    let directories = entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    own.into_iter().chain(directories.flat_map(|entry| ids_within(&entry.path()))).collect()
}

/// Whether a cgroup or a process is not there any more.
pub(super) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
        || matches!(error.raw_os_error(), Some(nix::libc::ENODEV | nix::libc::ESRCH))
}

/// The names of pods as the kubelet's directories of logs say them: a hint of root's own. Nothing else on a node does, but for the
/// kubelet and the runtime, who would have to be asked.
pub(super) fn names() -> Vec<(Key, PodUid)> {
    let is_roots = |path: &Path| {
        fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == 0 && found.mode() & 0o022 == 0)
    };
    if !is_roots(Path::new(LOGS)) {
        return Vec::new();
    }
    let entries = fs::read_dir(LOGS).into_iter().flatten().flatten();
    let named = entries.filter(|entry| is_roots(&entry.path())).filter_map(|entry| {
        let name = entry.file_name().into_string().ok()?;
        // Neither a namespace nor a pod's name has an underscore.
        let (name, uid) = name.rsplit_once('_')?;
        Some((Key::new(name).ok().filter(|_| name.matches('_').count() == 1)?, PodUid::new(uid).ok()?))
    });
    named.collect()
}

/// Whether sockets of this node may belong to no cgroup of version 2: until Linux 5.15, once a cgroup of version 1 had sorted
/// packets, all that were made after it.
pub(super) fn leaves_sockets_outside() -> bool {
    const MENDED: (u32, u32) = (5, 15);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|number| number.parse().unwrap_or_default());
    let version = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    if version >= MENDED {
        return false;
    }
    let controllers = fs::read_to_string("/proc/cgroups").unwrap_or_default();
    controllers.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace();
        matches!(fields.next(), Some("net_cls" | "net_prio")) && fields.next().is_some_and(|hierarchy| hierarchy != "0")
    })
}
