//! Pods in the node's own network namespace, for the commands: they have no sandbox, and answer to marks all the same.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::time::Duration;

use crate::kernel::cgroup::on_the_node;
use crate::model::audit::chain;
use crate::model::mark::{Desired, Mark};
use crate::model::names::{Key, PodUid};
use crate::model::subject::Subject;
use crate::model::verdict::Verdict;
use crate::node::host_pod::{Asked, HostEnforced, HostNode, HostPodError, Outcome, candidates, desired, sync_one};
use crate::node::state::StateDir;
use crate::status::HostPodStatus;

use super::{Exit, Failure};

/// How long a command waits for whoever is at work on a pod.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

impl From<HostPodError> for Failure {
    fn from(error: HostPodError) -> Self {
        match error {
            HostPodError::State(error) => error.into(),
            HostPodError::Kernel(error) => error.into(),
            error => Self::new(Exit::NotDone, chain(&error)),
        }
    }
}

/// Whether a mark of this name would mean one that is on the node.
pub(super) fn is_here(key: &Key) -> bool {
    HostNode::look().is_ok_and(|node| !node.meant_by(key).is_empty())
}

/// Those that a mark of this name would mean.
pub(super) fn meant_by(key: &Key) -> Result<Vec<PodUid>, Failure> {
    Ok(HostNode::look()?.meant_by(key))
}

/// Brings those that a mark means to it, and says how they are. Whether all are isolated; `None` where there is none.
/// What is newly cut off is said to `is_new`.
pub(super) fn isolate(
    state: &StateDir,
    key: &Key,
    text: &mut String,
    is_new: impl Fn(Subject),
) -> Result<Option<bool>, Failure> {
    let node = HostNode::look()?;
    let mut all = None;
    for uid in node.meant_by(key) {
        let said = match sync_one(state, &node, &uid, Asked::ByMark, false, LOCK_PATIENCE) {
            Ok(Outcome::NotConcerned | Outcome::Ended | Outcome::Waits | Outcome::Kept) => continue,
            Ok(Outcome::Isolated(enforced)) => {
                if enforced.is_new {
                    is_new(Subject::HostPod(uid.clone()));
                }
                say_isolated(text, &uid, &enforced)
            }
            Ok(Outcome::Released) => {
                let _ = writeln!(
                    text,
                    "{uid} ({}, hostNetwork): open: somebody has removed the mark again",
                    node.pod(&uid)
                );
                false
            }
            Err(error) => {
                let _ = writeln!(
                    text,
                    "{uid} ({}, hostNetwork): NOT isolated: {}; the mark stands, `quarantine release` removes it",
                    node.pod(&uid),
                    chain(&error)
                );
                false
            }
        };
        all = Some(all.unwrap_or(true) && said);
    }
    Ok(all)
}

/// What a mark would let through of those that it means; `None` where there is none.
pub(super) fn rules(key: &Key, mark: &Mark) -> Result<Option<String>, Failure> {
    let node = HostNode::look()?;
    let policy = mark.policy.clone().unwrap_or_default();
    let mut text = None;
    for uid in node.meant_by(key) {
        let Some(pod) = node.find(&uid)? else { continue };
        let _ = writeln!(
            text.get_or_insert_with(String::new),
            "# what eBPF programs on the cgroup {} do, as rules would say it (a probe is told by the kubelet's cgroup)\n{}",
            on_the_node(&pod.directory).display(),
            node.rules(&pod, &policy)
        );
    }
    Ok(text)
}

/// Says how it is; whether it is isolated, at least in part.
fn say_isolated(text: &mut String, uid: &PodUid, enforced: &HostEnforced) -> bool {
    let HostEnforced { pod, desired, report, .. } = enforced;
    let Desired::Isolated { policy, fault, .. } = desired else { return false };
    let _ = writeln!(text, "{uid} ({pod}, hostNetwork): {}, policy {policy}", report.verdict.as_str());
    if let Some(fault) = fault {
        let _ = writeln!(text, "  sealed: a mark cannot be understood: {}", fault.to_string().escape_debug());
    }
    for reason in &report.reasons {
        let _ = writeln!(text, "  {reason}");
    }
    for note in &report.notes {
        let _ = writeln!(text, "  {note}");
    }
    report.verdict != Verdict::Open
}

/// Those that marks isolate which are about to go.
pub(super) struct Concerned {
    node: HostNode,
    uids: BTreeSet<PodUid>,
}

impl Concerned {
    /// Those that answer to one of these, or that were named.
    pub(super) fn by(state: &StateDir, keys: &BTreeSet<Key>, named: Option<&Key>) -> Result<Self, Failure> {
        let node = HostNode::look()?;
        let mut uids: BTreeSet<PodUid> = named.into_iter().flat_map(|key| node.meant_by(key)).collect();
        for uid in node.standing() {
            if desired(state, &node.pod(&uid))?.0.iter().any(|key| keys.contains(key)) {
                uids.insert(uid);
            }
        }
        Ok(Self { node, uids })
    }

    /// Releases them, and says so. Whether all are; `None` where there is none.
    pub(super) fn release(&self, state: &StateDir, text: &mut String) -> Option<bool> {
        let mut all = None;
        for uid in &self.uids {
            let (said, done) = match sync_one(state, &self.node, uid, Asked::ByMark, false, LOCK_PATIENCE) {
                Ok(Outcome::NotConcerned | Outcome::Waits | Outcome::Kept) => continue,
                Ok(Outcome::Released | Outcome::Ended) => ("released".to_owned(), true),
                Ok(Outcome::Isolated(_)) => ("isolated: a mark holds for it".to_owned(), false),
                Err(error) => (format!("NOT released: {}", chain(&error)), false),
            };
            let _ = writeln!(text, "{uid} ({}, hostNetwork): {said}", self.node.pod(uid));
            all = Some(all.unwrap_or(true) && done);
        }
        all
    }
}

/// Brings all of the node to their marks; what could not be done. What is newly cut off is said to `is_new`.
pub(super) fn sync(state: &StateDir, is_new: impl Fn(Subject)) -> Result<Vec<String>, Failure> {
    let node = HostNode::look()?;
    let mut failed = Vec::new();
    for uid in candidates(state, &node)? {
        match sync_one(state, &node, &uid, Asked::ByMark, false, LOCK_PATIENCE) {
            Ok(Outcome::Isolated(enforced)) if enforced.is_new => is_new(Subject::HostPod(uid)),
            Ok(_) => {}
            Err(error) => failed.push(format!("{uid} (hostNetwork): {}", chain(&error))),
        }
    }
    Ok(failed)
}

/// All of the node that are isolated or are to be, read back.
pub(super) fn read_all(state: &StateDir) -> Result<Vec<HostPodStatus>, Failure> {
    let node = HostNode::look()?;
    let read = |uid: &PodUid| HostPodStatus::read(state, &node, uid).transpose();
    Ok(candidates(state, &node)?.iter().filter_map(read).collect::<Result<_, _>>()?)
}

/// Those that a mark of this name means.
pub(super) fn read_meant(state: &StateDir, key: &Key) -> Result<Vec<HostPodStatus>, Failure> {
    let node = HostNode::look()?;
    let read = |uid: &PodUid| HostPodStatus::read(state, &node, uid).transpose();
    Ok(node.meant_by(key).iter().filter_map(read).collect::<Result<_, _>>()?)
}
