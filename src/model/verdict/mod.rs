//! What may be claimed of a sandbox, from what was read back. Pure.
//!
//! The host guard covers everything that an interface carries, unless something on the host's end takes packets past
//! it. The pod-side rules cover what passes the pod's own hooks: not frames in to a packet socket, which come before
//! ingress, not AF_XDP out, and not what the pod's own tc redirects. So only the host guard, whole and not passed by,
//! makes an interface `contained`; the pod-side rules alone make it `partial`.

mod bypass;
mod programs;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::IpAddr;

pub use bypass::Bypass;
pub use programs::{ProgramDoubt, ProgramPlace, Programs};

use bypass::Leak;

use crate::model::difference::{Difference, joined};

/// What may be claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Nothing passes but what the policy lets through.
    Contained,
    /// Something is stopped, and something is not; the reasons say what.
    Partial,
    /// Traffic flows.
    Open,
}

impl Verdict {
    /// As `status` writes it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Contained => "contained",
            Self::Partial => "partial",
            Self::Open => "open",
        }
    }
}

/// One interface that leads out of the sandbox, as it was found.
#[derive(Debug, Clone)]
pub struct Exposure {
    /// Its name.
    pub interface: String,
    /// The host guard on its other end.
    pub guard: Guard,
    /// How its end in the sandbox stands to the pod-side rules.
    pub pod_side: PodSide,
    /// The programs of the eBPF layer on both of its ends.
    pub programs: Programs,
}

/// How an interface stands to the pod-side rules, where they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodSide {
    /// Its packets meet them.
    InTheWay,
    /// The sandbox's own tc or XDP takes packets past them.
    PassedBy,
    /// It is not in the sandbox's netns any more: somebody moved it, into a netns below perhaps.
    Left,
}

/// The host guard of one interface.
#[derive(Debug, Clone)]
pub enum Guard {
    /// In place.
    Holds {
        /// What takes packets past it.
        passed_by: Vec<Bypass>,
        /// Whether it has its chain towards the pod, which needs the netdev egress hook.
        both_ways: bool,
    },
    /// Not in place.
    Missing(NoGuard),
    /// An interface that came after ADD and leads to a netns that is neither the sandbox's nor the host's: one below,
    /// if root in the pod made it, since it could make no other.
    Elsewhere,
    /// The end on the host that ADD found is not in the node's netns any more, nor is the interface in the sandbox.
    PairGone,
    /// The interface is not in the sandbox any more, and what has the index of its end on the host is another one, as far
    /// as can be told.
    IndexTaken {
        /// What has it.
        device: String,
    },
}

/// Why there is no host guard on an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NoGuard {
    /// The configuration asks for none.
    Off,
    /// It has no end on the host: what it is instead.
    NoPeer {
        /// The kind of the interface, as the kernel calls it; empty for a physical one.
        kind: String,
    },
    /// It had none on the host, and has left the sandbox.
    LeftWithoutPeer,
    /// Its end on the host is not where ADD found it.
    EndGone,
    /// The rules are not as they should be: in what they differ.
    NotInPlace {
        /// All that was found.
        differences: Vec<Difference>,
    },
}

impl fmt::Display for NoGuard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Off => f.write_str("hostGuard is \"off\""),
            Self::NoPeer { kind } if kind.is_empty() => {
                f.write_str("a physical device has no peer on the host for a host guard")
            }
            Self::NoPeer { kind } => write!(f, "{kind} has no peer on the host for a host guard"),
            Self::LeftWithoutPeer => {
                f.write_str("an interface that left the sandbox has no peer on the host for a host guard")
            }
            Self::EndGone => f.write_str("its end on the host is not where ADD found it"),
            Self::NotInPlace { differences } => {
                write!(f, "the host guard is not in place ({})", joined(differences))
            }
        }
    }
}

impl NoGuard {
    fn code(&self) -> &'static str {
        match self {
            Self::Off => "host-guard-off",
            Self::NoPeer { .. } => "no-host-peer",
            Self::LeftWithoutPeer => "interface-left",
            Self::EndGone => "host-end-gone",
            Self::NotInPlace { .. } => "guard-missing",
        }
    }
}

/// What an operator should know of a sandbox that has nothing to do with what is stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Note {
    /// What would be a probe of the node's own came from an address that is not known to be the node's.
    ProbeSource {
        /// The address.
        source: IpAddr,
        /// How many segments that opened a connection.
        packets: u64,
    },
    /// Probes of the cgroup that the policy names are not told from those of root's other processes.
    ProberUntold {
        /// The cgroup, as the policy says it.
        prober: String,
        /// Why.
        why: String,
    },
    /// The policy lets probes through, and nothing tells them from other connections.
    NoProber {
        /// Why.
        why: String,
    },
    /// The sockets of the family `AF_UNIX` that are the node's are not stopped.
    LocalSockets,
    /// What a pod with hostNetwork tries is counted alone.
    PacketsNotKept,
}

impl Note {
    /// A word for it that does not change.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::ProbeSource { .. } => "probe-source",
            Self::ProberUntold { .. } => "prober-untold",
            Self::NoProber { .. } => "no-prober",
            Self::LocalSockets => "local-sockets",
            Self::PacketsNotKept => "packets-not-kept",
        }
    }
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ProbeSource { source, packets } => write!(
                f,
                "probes do not pass: {packets} of the node's own packets that would open a connection came from {source}, which is no address of the node's towards the pod; something on the node translates them"
            ),
            Self::ProberUntold { prober, why } => write!(
                f,
                "probes are not bound to the cgroup {prober:?} that the policy names: {why}; what any root process of the node opens to the pod passes, those of pods with hostNetwork among them"
            ),
            Self::NoProber { why } => {
                write!(f, "probes do not pass, since only by its cgroup could be told who probes: {why}")
            }
            Self::LocalSockets => f.write_str(
                "what is no IP is not stopped: local sockets (AF_UNIX), those without a file too, are the node's, and whoever listens there can pass on what the pod says",
            ),
            Self::PacketsNotKept => f.write_str(
                "what it tries is counted, and none of its packets is kept: programs on a cgroup hand none over",
            ),
        }
    }
}

/// Why a sandbox cannot be called `contained`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// An interface that the host guard does not cover whole.
    Interface {
        /// Its name.
        interface: String,
        /// What is wrong with the guard.
        doubt: Doubt,
        /// What stands behind it.
        behind: Behind,
    },
    /// Something is wrong with the eBPF layer of an interface.
    Programs {
        /// Its name.
        interface: String,
        /// What it is.
        doubt: ProgramDoubt,
    },
    /// An interface that came after ADD and leads to a third netns.
    LeadsElsewhere {
        /// Its name.
        interface: String,
    },
    /// An interface of the record, of which neither end can be found.
    PairGone {
        /// Its name.
        interface: String,
    },
    /// An interface of the record that is gone, and the index of its end on the host is another's.
    IndexTaken {
        /// Its name.
        interface: String,
        /// What has the index.
        device: String,
    },
    /// There is no interface that anything could be said of.
    NothingFound,
    /// No mark holds for it, and yet something of an isolation is in place.
    NotReleased {
        /// Whether it is the pod-side rules; else it is the host guard.
        pod_side: bool,
    },
    /// A host guard of which no record says whose it is.
    NoRecord,
    /// Its record was made after its pod had run. This alone makes no verdict worse.
    Adopted,
}

/// What is wrong with a host guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Doubt {
    /// It is not there.
    NoGuard(NoGuard),
    /// It is passed by.
    PassedBy(Vec<Bypass>),
    /// It is passed by, and the programs of the eBPF layer stop all but what a neighbour redirects.
    NeighbourRedirects(Vec<Bypass>),
    /// It sees only what leaves the pod.
    NoEgressHook,
}

/// How the pod-side rules stand behind a guard that does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Behind {
    /// They hold, which leaves what they cannot see.
    Holds,
    /// They hold, and eBPF programs at the same place, which leaves less.
    HoldsWithPrograms,
    /// The sandbox's own tc or XDP takes packets past them.
    PassedBy,
    /// They do not hold.
    Missing,
    /// The interface is not where they are.
    Left,
}

impl Behind {
    fn of(pod_side_holds: bool, pod_side: PodSide) -> Self {
        match (pod_side_holds, pod_side) {
            (true, PodSide::InTheWay) => Self::Holds,
            (true, PodSide::PassedBy) => Self::PassedBy,
            (false, _) => Self::Missing,
            (true, PodSide::Left) => Self::Left,
        }
    }

    fn verdict(self) -> Verdict {
        match self {
            Self::Holds | Self::HoldsWithPrograms | Self::PassedBy => Verdict::Partial,
            Self::Missing | Self::Left => Verdict::Open,
        }
    }
}

impl Reason {
    /// A word for it that does not change: what runbooks and alerts go by.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Interface { doubt: Doubt::NoGuard(why), .. } => why.code(),
            Self::Interface { doubt: Doubt::PassedBy(ways), .. } => ways.first().map_or("passed-by", Bypass::code),
            Self::Interface { doubt: Doubt::NoEgressHook, .. } => "no-egress-hook",
            Self::Interface { doubt: Doubt::NeighbourRedirects(_), .. } => "neighbour-redirects",
            Self::Programs { doubt, .. } => doubt.code(),
            Self::LeadsElsewhere { .. } => "leads-elsewhere",
            Self::PairGone { .. } => "pair-gone",
            Self::IndexTaken { .. } => "index-taken",
            Self::NothingFound => "nothing-found",
            Self::NotReleased { .. } => "not-released",
            Self::NoRecord => "no-record",
            Self::Adopted => "adopted",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Interface { interface, doubt, behind } => {
                write!(f, "{interface}: ")?;
                if let Doubt::NeighbourRedirects(ways) = doubt {
                    let ways: Vec<_> = ways.iter().map(ToString::to_string).collect();
                    return write!(
                        f,
                        "{} takes packets past the host guard; eBPF programs stop them, but for frames that another pod of this node, as root with CAP_NET_ADMIN, redirects by tc: some program on this node puts frames straight into pods (bpf_redirect_peer), and those reach this pod's packet sockets",
                        ways.join(", ")
                    );
                }
                match doubt {
                    Doubt::NeighbourRedirects(_) => {}
                    Doubt::NoGuard(why) => write!(f, "{why}")?,
                    Doubt::PassedBy(ways) => {
                        let ways: Vec<_> = ways.iter().map(ToString::to_string).collect();
                        write!(f, "{} takes packets past the host guard", ways.join(", "))?;
                    }
                    Doubt::NoEgressHook => f.write_str(
                        "this kernel has no netdev egress hook, so the host guard does not see what goes to the pod, and lets segments of TCP flows to the node itself pass",
                    )?,
                }
                f.write_str(match behind {
                    Behind::Holds => {
                        "; the pod-side rules hold, but frames in to a packet socket of the pod and AF_XDP out of it are not covered"
                    }
                    Behind::HoldsWithPrograms => {
                        "; the pod-side rules hold, and eBPF programs stop what comes in, but AF_XDP out of the pod is not covered"
                    }
                    Behind::PassedBy => "; tc or XDP in the pod takes packets past the pod-side rules",
                    Behind::Missing => ", and the pod-side rules do not hold",
                    Behind::Left => {
                        ", and the pod's end of it has left the sandbox, where the pod-side rules are"
                    }
                })
            }
            Self::Programs { interface, doubt } => write!(f, "{interface}: {doubt}"),
            Self::LeadsElsewhere { interface } => write!(
                f,
                "{interface}: it came after ADD and leads to another network namespace; that one is below the pod, or the host made it, which cannot be told apart"
            ),
            Self::PairGone { interface } => write!(
                f,
                "{interface}: neither the interface nor its end on the host is where ADD found it; they were deleted, or both were moved, which cannot be told apart"
            ),
            Self::IndexTaken { interface, device } => write!(
                f,
                "{interface}: it has left the sandbox, and {device} has the index of its end on the host, with another name and another address: another pod's by now, it seems, and left alone"
            ),
            Self::NothingFound => f.write_str(
                "no interface was found that leads out of the sandbox, so nothing can be said of what leaves it",
            ),
            Self::NotReleased { pod_side } => {
                let layer = if *pod_side { "the pod-side rules are awake" } else { "the host guard is in place" };
                write!(f, "no mark holds for it, but {layer}; `quarantine sync` releases it")
            }
            Self::Adopted => f.write_str(
                "it was adopted: the pod had run before the plugin knew it, so its interfaces and addresses are those that the runtime's cache says, and what was moved out of it before cannot be told",
            ),
            Self::NoRecord => f.write_str(
                "a host guard stands for it, but no record says what it was: it is left in place; once its pod has ended, `quarantine release` of this container ID removes it",
            ),
        }
    }
}

/// Verdict and reasons. It is never better than what it was computed from: over nothing it is `open`.
pub fn judge(pod_side_holds: bool, exposures: &[Exposure]) -> (Verdict, Vec<Reason>) {
    if exposures.is_empty() {
        return (Verdict::Open, vec![Reason::NothingFound]);
    }
    let mut verdict = Verdict::Contained;
    let mut reasons = Vec::new();
    for Exposure { interface, guard, pod_side, programs } in exposures {
        let interface = interface.clone();
        let behind = match (Behind::of(pod_side_holds, *pod_side), guard, programs) {
            (Behind::Holds, Guard::Missing(_), Programs::Hold { .. }) => Behind::HoldsWithPrograms,
            (behind, ..) => behind,
        };
        if let Programs::Doubted(doubts) = programs {
            verdict = verdict.max(Verdict::Partial);
            let reason = |doubt: &ProgramDoubt| Reason::Programs { interface: interface.clone(), doubt: doubt.clone() };
            reasons.extend(doubts.iter().map(reason));
        }
        let (worst, reason) = match guard {
            Guard::Holds { passed_by, both_ways } => {
                let left = |leak| -> Vec<Bypass> {
                    let is_left = |way: &&Bypass| match programs {
                        Programs::Hold { into_pods } => way.behind_programs(*into_pods) == leak,
                        Programs::NotWanted | Programs::Doubted(_) => leak == Leak::Open,
                    };
                    passed_by.iter().filter(is_left).cloned().collect()
                };
                let (open, of_neighbours) = (left(Leak::Open), left(Leak::OfNeighbours));
                let doubt = match both_ways {
                    _ if !open.is_empty() => Doubt::PassedBy(open),
                    false => Doubt::NoEgressHook,
                    true if of_neighbours.is_empty() => continue,
                    true => {
                        let doubt = Doubt::NeighbourRedirects(of_neighbours);
                        verdict = verdict.max(Verdict::Partial);
                        reasons.push(Reason::Interface { interface, doubt, behind });
                        continue;
                    }
                };
                (behind.verdict(), Reason::Interface { interface, doubt, behind })
            }
            Guard::Missing(why) => {
                (behind.verdict(), Reason::Interface { interface, doubt: Doubt::NoGuard(why.clone()), behind })
            }
            Guard::Elsewhere => (Verdict::Partial, Reason::LeadsElsewhere { interface }),
            Guard::PairGone => (Verdict::Partial, Reason::PairGone { interface }),
            Guard::IndexTaken { device } => {
                (Verdict::Partial, Reason::IndexTaken { interface, device: device.clone() })
            }
        };
        verdict = verdict.max(worst);
        reasons.push(reason);
    }
    (verdict, reasons)
}
