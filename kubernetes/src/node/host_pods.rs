//! Pods with hostNetwork, for the hands: they have no sandbox, and marks by their UIDs isolate them all the same.

use std::collections::BTreeSet;
use std::time::Duration;

use cni_quarantine::audit::chain;
use cni_quarantine::collecting::Collectors;
use cni_quarantine::host_pods::{Asked, HostNode, Outcome, candidates, sync_one};
use cni_quarantine::names::{Key, PodUid};
use cni_quarantine::state::StateDir;
use cni_quarantine::status::HostPodStatus;
use cni_quarantine::subject::Subject;

use super::hands::{Isolated, Seen};

/// Of these pods, which have none of the node's records, those that are on its network. What cannot be looked at is none.
pub(super) fn among<'a>(uids: impl Iterator<Item = &'a PodUid>) -> BTreeSet<PodUid> {
    let mut uids = uids.peekable();
    if uids.peek().is_none() {
        return BTreeSet::new();
    }
    let Ok(node) = HostNode::look() else { return BTreeSet::new() };
    uids.filter(|uid| !node.meant_by(&Key::from(*uid)).is_empty()).cloned().collect()
}

/// How a mark by one's name would be called, where the kubelet's logs say it.
pub(super) fn name_of(uid: &PodUid) -> Option<Key> {
    HostNode::look().ok()?.pod(uid).name_key()
}

/// Brings one to what its marks want.
pub(super) fn bring(
    state: &StateDir,
    uid: &PodUid,
    patience: Duration,
    collectors: Option<&Collectors>,
) -> Result<(), String> {
    let node = HostNode::look().map_err(|error| chain(&error))?;
    match sync_one(state, &node, uid, Asked::ByMark, false, patience) {
        Ok(Outcome::Isolated(enforced)) if enforced.is_new => {
            if let Some(collectors) = collectors {
                collectors.collect(Subject::HostPod(uid.clone()));
            }
            Ok(())
        }
        Ok(_) => Ok(()),
        Err(error) => Err(chain(&error)),
    }
}

/// How one is.
pub(super) fn look(state: &StateDir, uid: &PodUid) -> Result<Seen, String> {
    let node = HostNode::look().map_err(|error| chain(&error))?;
    let status = HostPodStatus::read(state, &node, uid).map_err(|error| chain(&error))?;
    Ok(status.map_or(Seen::NoSandbox, |status| Seen::HostPod(Box::new(status))))
}

/// Those that marks isolate, of all or of these.
pub(super) fn isolated(state: &StateDir, among: Option<&BTreeSet<PodUid>>) -> Vec<Isolated> {
    if among.is_some_and(BTreeSet::is_empty) {
        return Vec::new();
    }
    let Ok(node) = HostNode::look() else { return Vec::new() };
    let found = candidates(state, &node).unwrap_or_default();
    let found = found.iter().filter(|uid| among.is_none_or(|among| among.contains(*uid)));
    let isolated = found.filter_map(|uid| {
        let HostPodStatus { pod, marking, .. } = HostPodStatus::read(state, &node, uid).ok()??;
        Some(Isolated { pod, marking: marking? })
    });
    isolated.collect()
}
