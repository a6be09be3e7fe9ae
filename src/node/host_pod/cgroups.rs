//! The pods of this node by their cgroups, as the kubelet makes them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use crate::kernel::cgroup::{Directory, below};
use crate::model::cgroup::{is_class_of_pods, is_root_of_pods, pod_of_cgroup};
use crate::model::names::{Key, PodUid};

/// How deep below the root of the cgroups the kubelet's are looked for: `--cgroup-root` may be anything.
const DEPTH: usize = 3;
/// Where the kubelet keeps each pod's logs, in directories of its own making: `<namespace>_<name>_<UID>`.
const LOGS: &str = "/var/log/pods";
/// The same where this process is in a container that has not that directory of the node's.
const LOGS_OF_THE_NODE: &str = "/proc/1/root/var/log/pods";

/// The cgroups of pods in a hierarchy, whatever they are pods of.
pub(super) fn pods_in(hierarchy: &Path) -> BTreeMap<PodUid, Vec<Directory>> {
    let mut pods: BTreeMap<PodUid, Vec<Directory>> = BTreeMap::new();
    for cgroup in roots_of_pods(hierarchy).iter().flat_map(|root| below(root)) {
        let of_class = if is_class_of_pods(&cgroup.name) { below(&cgroup.path) } else { vec![cgroup] };
        for cgroup in of_class {
            if let Some(uid) = pod_of_cgroup(&cgroup.name) {
                pods.entry(uid).or_default().push(cgroup);
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
        let found = level.iter().flat_map(|directory| below(directory));
        let (of_pods, others): (Vec<_>, Vec<_>) = found.partition(|cgroup| is_root_of_pods(&cgroup.name));
        roots.extend(of_pods.into_iter().map(|cgroup| cgroup.path));
        level = others.into_iter().map(|cgroup| cgroup.path).collect();
    }
    roots
}

/// Whether a directory below that one which the kubelet keeps pods below holds pods of a class.
pub(super) fn classes_of_pods(root: &Path) -> Vec<PathBuf> {
    below(root).into_iter().filter(|cgroup| is_class_of_pods(&cgroup.name)).map(|cgroup| cgroup.path).collect()
}

/// The names of pods as the kubelet's directories of logs say them: a hint of root's own. Nothing else on a node does, but for the
/// kubelet and the runtime, who would have to be asked.
pub(super) fn names() -> Vec<(Key, PodUid)> {
    let is_roots = |path: &Path| {
        fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() == 0 && found.mode() & 0o022 == 0)
    };
    let places = [LOGS, LOGS_OF_THE_NODE].map(Path::new);
    let Some(logs) = places.into_iter().find(|logs| is_roots(logs)) else { return Vec::new() };
    let entries = fs::read_dir(logs).into_iter().flatten().flatten();
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
