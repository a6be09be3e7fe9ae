//! Pods in the node's own network namespace (`hostNetwork`): how one is known, and what may be claimed of it.
//!
//! Pure. CNI is not called for such a pod, so it has no record and no container ID here: its UID, as the kubelet writes it into the name
//! of the pod's cgroup, is all that it is known by. What is in the way of its packets are two programs on that cgroup, which see what its
//! sockets send and receive over IP, and nothing else: no frames, nothing that leaves the cgroup.

mod capabilities;
mod doubt;
mod mounts;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

pub use capabilities::{Capability, Privileges};
pub use doubt::{HostDoubt, ProgramFault, Socket, Way};
pub use mounts::mounts;

use crate::model::names::PodUid;
use crate::model::verdict::Verdict;

/// A pod that has processes in the node's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPod {
    /// Its UID.
    pub uid: PodUid,
    /// Its cgroup.
    pub cgroup: Cgroup,
}

/// A cgroup of version 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    /// Its directory.
    pub path: PathBuf,
    /// What the kernel calls it; never given twice.
    pub id: u64,
}

impl Cgroup {
    /// Whether it is another one or below it.
    #[must_use]
    pub fn is_within(&self, other: &Path) -> bool {
        self.path.starts_with(other)
    }
}

/// The pod whose cgroup has this name, as the kubelet makes it: `pod<UID>`, or `…-pod<UID>.slice` by systemd's rules, in which a
/// hyphen is one more level and a UID's are written as underscores.
#[must_use]
pub fn pod_of_cgroup(name: &str) -> Option<PodUid> {
    let uid = match name.strip_suffix(".slice") {
        Some(slice) => slice.rsplit('-').next()?.strip_prefix("pod")?.replace('_', "-"),
        None => name.strip_prefix("pod")?.to_owned(),
    };
    // By itself it would be another's name.
    PodUid::new(&uid).ok().filter(|uid| !uid.as_str().ends_with(".slice"))
}

/// Whether a cgroup of this name is the one that the kubelet keeps all pods below.
#[must_use]
pub fn is_root_of_pods(name: &str) -> bool {
    name == "kubepods" || name.strip_suffix(".slice").is_some_and(|slice| slice.rsplit('-').next() == Some("kubepods"))
}

/// Whether a cgroup of this name, below that one, holds pods of a class.
#[must_use]
pub fn is_class_of_pods(name: &str) -> bool {
    const CLASSES: [&str; 3] = ["guaranteed", "burstable", "besteffort"];
    let last = name.strip_suffix(".slice").and_then(|slice| slice.rsplit('-').next()).unwrap_or(name);
    CLASSES.contains(&last)
}

/// The program on one of the two ways, as it was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Program {
    /// It is the one that belongs there.
    Holds,
    /// It is not.
    Faulty(ProgramFault),
}

/// What was found of a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// The program for what it receives, and the one for what it sends.
    pub programs: [Program; 2],
    /// What of its processes speaks against the programs.
    pub doubts: Vec<HostDoubt>,
}

impl Found {
    /// Verdict and reasons. Where neither program is in the way it is `open`, whatever else was found.
    #[must_use]
    pub fn judge(self) -> (Verdict, Vec<HostDoubt>) {
        let holds = self.programs.iter().filter(|program| **program == Program::Holds).count();
        let faults = self.programs.into_iter().zip([Way::In, Way::Out]).filter_map(|(program, way)| match program {
            Program::Holds => None,
            Program::Faulty(fault) => Some(HostDoubt::Program(way, fault)),
        });
        let doubts: Vec<_> = faults.chain(self.doubts).collect();
        let verdict = match holds {
            0 => Verdict::Open,
            _ if doubts.is_empty() => Verdict::Contained,
            _ => Verdict::Partial,
        };
        (verdict, doubts)
    }
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for name in text.lines() {
        let _ = (is_root_of_pods(name), is_class_of_pods(name));
        let Some(uid) = pod_of_cgroup(name) else { continue };
        // It can be a file name, and is found again by both names that the kubelet would give it.
        assert!(!uid.as_str().contains('/') && !uid.as_str().starts_with('.'));
        assert_eq!(pod_of_cgroup(&format!("pod{uid}")).as_ref(), Some(&uid));
        let escaped = uid.as_str().replace('-', "_");
        if !uid.as_str().contains('_') {
            assert_eq!(pod_of_cgroup(&format!("kubepods-burstable-pod{escaped}.slice")), Some(uid));
        }
    }
    capabilities::try_any(&text);
    mounts::try_any(&text);
}
