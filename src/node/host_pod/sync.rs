//! Marks to kernel for a pod in the node's network namespace: what the agent and the commands all do, under its lock.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::kernel::cgroup::on_the_node;
use crate::model::audit::{Line, chain};
use crate::model::mark::Desired;
use crate::model::names::{Key, Pod, PodUid};
use crate::model::policy::Policy;
use crate::model::verdict::Verdict;
use crate::node::state::{StateDir, StateError};

use super::programs::{Attached, Programs, is_displaced, take_off};
use super::{HostNode, HostPodError, HostReport, Told};

/// Why a pod is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Asked {
    /// A person or a mark asked for it.
    ByMark,
    /// It was seen to be isolated: what is missing was taken off by somebody.
    Disturbed,
}

/// A pod that is isolated.
#[derive(Debug)]
pub struct HostEnforced {
    /// The pod.
    pub pod: Pod,
    /// What its marks want.
    pub desired: Desired,
    /// What was read back.
    pub report: HostReport,
    /// Whether it was not isolated before.
    pub is_new: bool,
}

/// What became of a pod.
#[derive(Debug)]
pub enum Outcome {
    /// It is to be isolated.
    Isolated(Box<HostEnforced>),
    /// It was isolated, and is not to be any more.
    Released,
    /// It is isolated, and not to be, and is kept so for now.
    Kept,
    /// It has ended, and its programs with it.
    Ended,
    /// It is marked, and has no process in the node's network namespace: yet, or any more.
    Waits,
    /// No mark holds for it and none did, or it has a record.
    NotConcerned,
}

/// The pods that there may be something to do about: those that marks mean that are on the node and have no record, and those that have programs.
///
/// # Errors
/// [`StateError`] where the marks cannot be listed.
pub fn candidates(state: &StateDir, node: &HostNode) -> Result<BTreeSet<PodUid>, StateError> {
    let marks = state.marks()?;
    let meant: BTreeSet<_> = marks.iter().flat_map(|key| node.meant_by(key)).collect();
    let mut candidates: BTreeSet<_> = node.standing().into_iter().collect();
    for uid in meant {
        if candidates.contains(&uid) || !node.has_record(state, &uid)? {
            candidates.insert(uid);
        }
    }
    Ok(candidates)
}

/// The marks that hold for a pod, and what they want.
///
/// # Errors
/// [`StateError`] where the marks cannot be listed.
pub fn desired(state: &StateDir, pod: &Pod) -> Result<(Vec<Key>, Desired), StateError> {
    loop {
        let marks = state.marks()?;
        let keys = pod.uid.as_ref().map(Key::from).into_iter().chain(pod.name_key());
        let keys: Vec<_> = keys.filter(|key| marks.contains(key)).collect();
        let read: Option<Vec<_>> = keys.iter().map(|key| state.read_mark(key)).collect();
        // One that is gone since was released: look again.
        if let Some(contents) = read {
            return Ok((keys, Desired::by_marks(&contents, &Policy::default())));
        }
    }
}

/// Brings one pod to what its marks want, waiting for its lock no longer than `patience`. Where no mark holds, `keeps` says that it is not
/// yet to be released.
///
/// # Errors
/// [`HostPodError`].
pub fn sync_one(
    state: &StateDir,
    node: &HostNode,
    uid: &PodUid,
    asked: Asked,
    keeps: bool,
    patience: Duration,
) -> Result<Outcome, HostPodError> {
    let started = Instant::now();
    let _lock = state.lock_host_pod(uid, patience)?;
    let pod = node.pod(uid);
    let (_, desired) = desired(state, &pod)?;
    let recorded = node.has_record(state, uid)?;
    let Desired::Isolated { policy, .. } = &desired else {
        return Ok(match node.pins(uid).exist() {
            true if keeps => Outcome::Kept,
            _ => release(node, &pod, uid, "released", started),
        });
    };
    if recorded {
        return Ok(release(node, &pod, uid, "handed-over", started));
    }
    let found = match node.find(uid) {
        Ok(found) => found,
        Err(error) => {
            log::error!("{}", subject("not-isolated", &pod).with("error", chain(&error)));
            return Err(error);
        }
    };
    let Some(found) = found else {
        // One that has no process now may have one again.
        return Ok(if node.has_cgroup(uid) || !node.pins(uid).exist() {
            Outcome::Waits
        } else {
            release(node, &pod, uid, "ended", started);
            Outcome::Ended
        });
    };
    let was_isolated = asked == Asked::Disturbed || node.pins(uid).exist();
    let told = node.prober(&found, policy);
    let programs = Programs::of(node.netns_cookie, &found, policy, told.as_ref().and_then(Told::sender));
    let (attached, refused) = programs.attach();
    let report = node.report(&found, told, &programs, refused);
    let event = match attached {
        Attached::AsBefore => None,
        _ if !was_isolated => Some("isolated"),
        Attached::Replaced => Some("updated"),
        Attached::Anew => Some("repaired"),
    };
    if let Some(event) = event {
        log_isolated(event, &pod, &on_the_node(&found.directory), &desired, &report, started);
    } else if report.verdict == Verdict::Open {
        log::error!("{}", subject("not-isolated", &pod).with("error", sentences(&report)));
    }
    let is_new = event == Some("isolated");
    Ok(Outcome::Isolated(Box::new(HostEnforced { pod, desired, report, is_new })))
}

impl HostNode {
    /// Whether a sandbox of the node is this pod's: then it is isolated by what its records say.
    ///
    /// # Errors
    /// [`StateError`] where the records cannot be listed.
    pub fn has_record(&self, state: &StateDir, uid: &PodUid) -> Result<bool, StateError> {
        Ok(self.recorded(state)?.contains(&Key::from(uid)))
    }

    /// Whether there is a mark that no sandbox of the node answers to.
    ///
    /// # Errors
    /// [`StateError`] where marks or records cannot be listed.
    pub fn has_unanswered_marks(&self, state: &StateDir) -> Result<bool, StateError> {
        let marks = state.marks()?;
        Ok(!marks.is_empty() && !marks.is_subset(self.recorded(state)?))
    }

    /// All names of the sandboxes that have records.
    fn recorded(&self, state: &StateDir) -> Result<&BTreeSet<Key>, StateError> {
        if let Some(recorded) = self.recorded.get() {
            return Ok(recorded);
        }
        let mut recorded = BTreeSet::new();
        let index = state.index();
        for id in state.sandboxes()? {
            let pod = index.pod(&id).cloned().or_else(|| Some(state.records_of(&id).0?.pod().clone()));
            recorded.insert(Key::from(&id));
            recorded.extend(pod.iter().filter_map(|pod| pod.uid.as_ref()).map(Key::from));
            recorded.extend(pod.iter().filter_map(Pod::name_key));
        }
        Ok(self.recorded.get_or_init(|| recorded))
    }

    /// Whether a program of a pod that has some came off. It takes microseconds, and can be asked again and again.
    #[must_use]
    pub fn is_displaced(&self, uid: &PodUid) -> bool {
        is_displaced(&self.pins(uid))
    }
}

fn release(node: &HostNode, pod: &Pod, uid: &PodUid, event: &str, started: Instant) -> Outcome {
    match take_off(&node.pins(uid)) {
        Ok(false) => Outcome::NotConcerned,
        Ok(true) => {
            log::info!("{}", subject(event, pod).with("ms", milliseconds(started)));
            Outcome::Released
        }
        Err(error) => {
            log::error!("{}", subject("not-released", pod).with("error", chain(&error)));
            Outcome::NotConcerned
        }
    }
}

/// The start of every line about a pod: who it is. There is no container here.
fn subject(event: &str, pod: &Pod) -> Line {
    Line::new(event).with("container", "-").with("pod", pod).with_some("uid", pod.uid.as_ref())
}

fn milliseconds(started: Instant) -> String {
    format!("{:.3}", started.elapsed().as_secs_f64() * 1000.0)
}

fn sentences(report: &HostReport) -> String {
    report.reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

fn log_isolated(event: &str, pod: &Pod, cgroup: &Path, desired: &Desired, report: &HostReport, started: Instant) {
    let Desired::Isolated { policy, mark, fault } = desired else { return };
    let contained = report.verdict == Verdict::Contained;
    let line = subject(event, pod)
        .with("cgroup", cgroup.display())
        .with("verdict", report.verdict.as_str())
        .with("policy", policy);
    let line = mark
        .attributed(line)
        .with_some("sealed_because", fault.as_ref())
        .with_some("open", (!contained).then(|| sentences(report)))
        .with("ms", milliseconds(started));
    if contained && event != "repaired" {
        log::info!("{line}");
    } else {
        log::warn!("{line}");
    }
}
