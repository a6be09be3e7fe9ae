//! What may be claimed of a sandbox, from what was read back. Pure.
//!
//! The host guard covers everything that an interface carries, unless something on the host's end takes packets past
//! it. The pod-side rules cover what passes the pod's own hooks: not frames in to a packet socket, which come before
//! ingress, not AF_XDP out, and not what the pod's own tc redirects. So only the host guard, whole and not passed by,
//! makes an interface `contained`; the pod-side rules alone make it `partial`.

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
        passed_by: Vec<String>,
        /// Whether it has its chain towards the pod, which needs the netdev egress hook.
        both_ways: bool,
    },
    /// Not in place.
    Missing(String),
    /// An interface that came after ADD and leads to a netns that is neither the sandbox's nor the host's: one below,
    /// if root in the pod made it, since it could make no other.
    Elsewhere,
}

/// Verdict and reasons.
pub fn judge(pod_side_holds: bool, exposures: &[Exposure]) -> (Verdict, Vec<String>) {
    const NOT_COVERED: &str = "frames in to a packet socket of the pod and AF_XDP out of it are not covered";
    let mut verdict = Verdict::Contained;
    let mut reasons = Vec::new();
    for Exposure { interface, guard, pod_side } in exposures {
        let behind = match (pod_side_holds, pod_side) {
            (true, PodSide::InTheWay) => Ok(format!("the pod-side rules hold, but {NOT_COVERED}")),
            (true, PodSide::PassedBy) => Ok("tc or XDP in the pod takes packets past the pod-side rules".to_owned()),
            (false, _) => Err("the pod-side rules do not hold"),
            (_, PodSide::Left) => Err("the pod's end of it has left the sandbox, where the pod-side rules are"),
        };
        let doubt = match guard {
            Guard::Holds { passed_by, both_ways: true } if passed_by.is_empty() => continue,
            Guard::Holds { passed_by, both_ways: false } if passed_by.is_empty() => {
                "this kernel has no netdev egress hook, so the host guard does not see what goes to the pod, and lets segments of TCP flows to the node itself pass".to_owned()
            }
            Guard::Holds { passed_by, .. } => format!("{} takes packets past the host guard", passed_by.join(", ")),
            Guard::Missing(why) => why.clone(),
            Guard::Elsewhere => {
                verdict = verdict.max(Verdict::Partial);
                reasons.push(format!("{interface}: it came after ADD and leads to another network namespace; that one is below the pod, or the host made it, which cannot be told apart"));
                continue;
            }
        };
        let (worst, reason) = match behind {
            Ok(behind) => (Verdict::Partial, format!("{doubt}; {behind}")),
            Err(behind) => (Verdict::Open, format!("{doubt}, and {behind}")),
        };
        verdict = verdict.max(worst);
        reasons.push(format!("{interface}: {reason}"));
    }
    (verdict, reasons)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holds(passed_by: &[&str], both_ways: bool) -> Guard {
        Guard::Holds { passed_by: passed_by.iter().map(ToString::to_string).collect(), both_ways }
    }

    fn verdict(pod_side_holds: bool, guard: Guard, pod_side: PodSide) -> Verdict {
        let exposure = Exposure { interface: "eth0".to_owned(), guard, pod_side };
        let (verdict, reasons) = judge(pod_side_holds, &[exposure]);
        assert_eq!(reasons.is_empty(), verdict == Verdict::Contained, "every doubt has its reason");
        verdict
    }

    #[test]
    fn only_the_whole_host_guard_contains() {
        use PodSide::{InTheWay, Left, PassedBy};
        use Verdict::{Contained, Open, Partial};
        let missing = || Guard::Missing("no host-side peer".to_owned());
        for (pod_side_holds, guard, pod_side, expected) in [
            (true, holds(&[], true), InTheWay, Contained),
            (true, holds(&[], true), PassedBy, Contained),
            (true, holds(&[], true), Left, Contained),
            (false, holds(&[], true), InTheWay, Contained),
            (true, holds(&[], false), InTheWay, Partial),
            (false, holds(&[], false), InTheWay, Open),
            (true, holds(&["a tc redirect"], true), InTheWay, Partial),
            (true, holds(&["a tc redirect"], true), PassedBy, Partial),
            (true, holds(&["a tc redirect"], true), Left, Open),
            (false, holds(&["a tc redirect"], true), InTheWay, Open),
            (true, missing(), InTheWay, Partial),
            (true, missing(), PassedBy, Partial),
            (true, missing(), Left, Open),
            (false, missing(), InTheWay, Open),
            (false, Guard::Elsewhere, InTheWay, Partial),
        ] {
            assert_eq!(
                verdict(pod_side_holds, guard.clone(), pod_side),
                expected,
                "{pod_side_holds} {guard:?} {pod_side:?}"
            );
        }
    }

    #[test]
    fn the_worst_interface_decides_and_a_sandbox_without_any_is_contained() {
        let exposure = |guard| Exposure { interface: "eth0".to_owned(), guard, pod_side: PodSide::InTheWay };
        let both = [exposure(holds(&[], true)), exposure(Guard::Missing("none".to_owned()))];
        assert_eq!(judge(true, &both).0, Verdict::Partial);
        assert_eq!(judge(false, &[]).0, Verdict::Contained);
    }
}
