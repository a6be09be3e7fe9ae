//! What was found of a sandbox, and what that was computed from.

use std::collections::BTreeSet;
use std::fmt;
use std::net::IpAddr;

use crate::kernel::rtnetlink::NodeChange;
use crate::model::cgroup::Cgroup;
use crate::model::difference::Difference;
use crate::model::mark::Desired;
use crate::model::probes::Prober;
use crate::model::record::NodeOnLink;
use crate::model::verdict::{Note, Reason, Verdict};
use crate::rules::ruleset::{Family, Table};

use super::Holder;

/// A difference, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Deviation {
    /// Which side's rules.
    pub layer: Layer,
    /// Of which table of that side.
    pub family: Family,
    /// What it is.
    pub difference: Difference,
}

/// Where rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Layer {
    /// In the pod's netns.
    Pod,
    /// In the host's.
    Host,
}

impl fmt::Display for Deviation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let layer = match self.layer {
            Layer::Pod => "pod",
            Layer::Host => "host",
        };
        write!(f, "{layer} {} {}", self.family, self.difference)
    }
}

/// What a sandbox was found to be, read back from the kernel.
#[derive(Debug, Clone)]
pub struct Report {
    /// What may be claimed.
    pub verdict: Verdict,
    /// Why it is not `contained`, where it is isolated.
    pub reasons: Vec<Reason>,
    /// What an operator should know besides.
    pub notes: Vec<Note>,
    /// How many interfaces the rules are for.
    pub interfaces: usize,
    /// Whether the pod-side tables are as wanted.
    pub pod_side: bool,
    /// Whether the host guard is in place on every interface that leads outside.
    pub host_guard: bool,
    /// The interfaces on which eBPF programs are wanted.
    pub programs: Vec<ProgramsOn>,
    /// In what the pod-side tables and the guard differ from what is wanted.
    pub differences: Vec<Deviation>,
    /// The rules as they are wanted, pod-side and host guard.
    pub tables: Vec<Table>,
    /// What of the node they were computed from.
    pub depends: Dependence,
}

/// An interface on which eBPF programs are wanted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProgramsOn {
    /// Its name.
    pub interface: String,
    /// What they are on.
    pub holder: Holder,
    /// Whether all of them are in place.
    pub hold: bool,
}

/// What of the node the rules of a sandbox were computed from: where it changes they are to be computed again.
#[derive(Debug, Clone, Default)]
pub struct Dependence {
    /// Links, by index: the host's ends, and those that the node reaches the sandbox by.
    pub links: BTreeSet<u32>,
    /// The sandbox's addresses, which routes lead to.
    pub addresses: Vec<IpAddr>,
    /// What the node looked like from each interface.
    pub seen: Vec<NodeOnLink>,
    /// Where the policy names a prober.
    pub prober: Option<Box<ProberSeen>>,
}

/// A prober, and the cgroup that it was found in, if it was.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProberSeen {
    /// Whose connections are probes.
    pub prober: Prober,
    /// Where those are from.
    pub cgroup: Option<Cgroup>,
}

impl Dependence {
    /// Whether a change of the node concerns the sandbox.
    #[must_use]
    pub fn is_concerned_by(&self, change: NodeChange) -> bool {
        match change {
            NodeChange::Link(index) => self.links.contains(&index),
            // An address of `lo`, which has index 1 in every netns, can be one that the node speaks from.
            NodeChange::Address(index) => index == 1 || self.links.contains(&index),
            NodeChange::Route(destination) => self.addresses.iter().any(|&address| destination.contains(address)),
            NodeChange::Rule | NodeChange::Unknown => true,
        }
    }
}

/// What applying found and did.
#[derive(Debug, Clone)]
pub struct Applied {
    /// Whether anything was changed.
    pub changed: bool,
    /// Whether it was awake before: it had been isolated already.
    pub was_isolated: bool,
    /// In what the rules differed from what is wanted.
    pub altered: Vec<Deviation>,
    /// Whether connections of a released sandbox still have to go on, before the kernel may give them up as soon as before.
    pub is_to_be_put_back: bool,
    /// What was read back afterwards.
    pub report: Report,
}

impl Applied {
    /// Whether this was the cut: nothing of an isolation was there before.
    #[must_use]
    pub fn is_new_isolation(&self, desired: &Desired) -> bool {
        desired.is_isolated() && self.changed && !self.was_isolated
    }
}
