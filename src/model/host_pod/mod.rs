//! Pods in the node's own network namespace (`hostNetwork`): how one is known, and what may be claimed of it.
//!
//! Pure. CNI is not called for such a pod, so it has no record and no container ID here: its UID, as the kubelet writes it into the name
//! of the pod's cgroup, is all that it is known by. What is in the way of its packets are two programs on that cgroup, which see what its
//! sockets send and receive over IP, and nothing else: no frames, nothing that leaves the cgroup.

mod capabilities;
mod doubt;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

pub use capabilities::{Capability, Privileges};
pub use doubt::{HostDoubt, ProgramFault, Socket, Way};

use crate::model::cgroup::Cgroup;
use crate::model::names::PodUid;
use crate::model::verdict::Verdict;

/// A pod that has processes in the node's network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPod {
    /// Its UID.
    pub uid: PodUid,
    /// Its cgroup.
    pub cgroup: Cgroup,
    /// The directory of that, as this process sees it.
    pub directory: PathBuf,
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
    capabilities::try_any(&text);
    super::cgroup::try_any(&text);
    super::mounts::try_any(&text);
}
