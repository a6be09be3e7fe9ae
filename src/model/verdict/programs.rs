//! The programs of the eBPF layer on an interface, and what is wrong with them.

use std::fmt;

/// The programs of the eBPF layer on one interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Programs {
    /// None is wanted there.
    NotWanted,
    /// All of them are in place, and first where that matters.
    Hold {
        /// Whether there may be programs on the node that put frames straight into a pod.
        into_pods: bool,
    },
    /// They are wanted, and something is wrong with them.
    Doubted(Vec<ProgramDoubt>),
}

/// Where one of the programs is, and what it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum ProgramPlace {
    /// tcx ingress of the host's end: what the pod sends.
    FromPod,
    /// tcx egress of the host's end: what is sent to the pod.
    ToPod,
    /// XDP of the interface itself: what is put into the pod past the host's end, or where there is none.
    InPod,
    /// tcx egress of the interface itself, where there is no host's end: what the pod sends.
    OutOfPod,
}

/// What is wrong with one of the programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramDoubt {
    /// None of them is attached.
    NoneAttached,
    /// It is not attached.
    Missing(ProgramPlace),
    /// It is another one.
    Altered(ProgramPlace),
    /// Another program sees packets before it.
    NotFirst(ProgramPlace),
    /// The kernel does not have what it takes.
    Unsupported(ProgramPlace, String),
    /// It could not be attached, or be read.
    Failed(ProgramPlace, String),
}

impl fmt::Display for ProgramPlace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::FromPod => "for what the pod sends",
            Self::ToPod => "for what is sent to the pod",
            Self::InPod => "at the pod's end",
            Self::OutOfPod => "at the pod's end for what it sends",
        })
    }
}

impl fmt::Display for ProgramDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoneAttached => f.write_str("no eBPF program is attached yet; `quarantine sync` attaches them"),
            Self::Missing(place) => write!(f, "the eBPF program {place} is not attached"),
            Self::Altered(place) => write!(f, "the eBPF program {place} is not the one that belongs there"),
            Self::NotFirst(place) => write!(f, "another eBPF program comes before the one {place}"),
            Self::Unsupported(place, why) => {
                write!(f, "the eBPF program {place} cannot be attached on this kernel: {why}")
            }
            Self::Failed(place, why) => write!(f, "the eBPF program {place} could not be attached or read: {why}"),
        }
    }
}

impl ProgramDoubt {
    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::NoneAttached | Self::Missing(_) => "ebpf-missing",
            Self::Altered(_) => "ebpf-altered",
            Self::NotFirst(_) => "ebpf-not-first",
            Self::Unsupported(..) => "ebpf-unsupported",
            Self::Failed(..) => "ebpf-failed",
        }
    }
}
