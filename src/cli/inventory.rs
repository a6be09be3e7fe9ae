//! What the state directory says of the whole node, read once: its sandboxes, its marks, and which holds for which.
//!
//! For choosing and for listing. Whoever enforces reads the marks again, under the sandbox's lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::mark::Mark;
use crate::model::mark::answering_keys;
use crate::model::names::{ContainerId, Key, Pod};
use crate::model::policy::Policy;
use crate::model::record::HostGuard;
use crate::model::records::SandboxRecords;
use crate::node::sandbox::{Sandbox, SandboxError, Side};
use crate::node::state::{DamagedRecord, StateDir, StateError};
use crate::status::{SandboxEntry, UnansweredMark};

/// A sandbox that has a directory among the records.
#[derive(Debug)]
pub(super) struct NodeSandbox {
    pub(super) container_id: ContainerId,
    pub(super) pod: Pod,
    /// None where none can be read.
    pub(super) records: Option<SandboxRecords>,
}

fn pod_of(records: Option<&SandboxRecords>) -> Pod {
    records.map(|records| records.pod().clone()).unwrap_or_default()
}

impl NodeSandbox {
    /// Opens it.
    pub(super) fn open<'a>(&'a self, host: &'a mut Side) -> Result<Sandbox<'a>, SandboxError> {
        match &self.records {
            Some(records) => Sandbox::open(host, records),
            None => Err(SandboxError::Unknown { container_id: self.container_id.clone() }),
        }
    }

    /// The name under which it is marked: its pod's UID, which a recreated sandbox has too, else its own.
    pub(super) fn mark_key(&self) -> Key {
        self.pod.uid.as_ref().map_or_else(|| Key::from(&self.container_id), Key::from)
    }

    /// Whether it counts as isolated only with a host guard.
    pub(super) fn requires_host_guard(&self) -> bool {
        self.records.as_ref().is_some_and(|records| records.host_guard() == HostGuard::Require)
    }

    /// The policy that holds where a mark gives none.
    pub(super) fn configured_policy(&self) -> Policy {
        self.records.as_ref().map(|records| records.policy().clone()).unwrap_or_default()
    }
}

/// The sandboxes and marks of the node.
#[derive(Debug)]
pub(super) struct Inventory<'a> {
    state: &'a StateDir,
    /// In the order of their container IDs.
    pub(super) sandboxes: Vec<Arc<NodeSandbox>>,
    pub(super) damaged: Vec<DamagedRecord>,
    marks: BTreeSet<Key>,
    pods: BTreeMap<Key, Pod>,
}

impl<'a> Inventory<'a> {
    pub(super) fn read(state: &'a StateDir) -> Result<Self, StateError> {
        Self::read_beyond(state, &[])
    }

    /// The node as it is by now. Of the sandboxes that were there before no record is read again: what it says of its
    /// pod does not change.
    pub(super) fn read_again(&self) -> Result<Self, StateError> {
        Self::read_beyond(self.state, &self.sandboxes)
    }

    fn read_beyond(state: &'a StateDir, known: &[Arc<NodeSandbox>]) -> Result<Self, StateError> {
        let mut node =
            Self { state, sandboxes: Vec::new(), damaged: Vec::new(), marks: BTreeSet::new(), pods: BTreeMap::new() };
        let known: BTreeMap<_, _> = known.iter().map(|sandbox| (&sandbox.container_id, sandbox)).collect();
        for container_id in state.sandboxes()? {
            if let Some(&known) = known.get(&container_id).filter(|known| known.records.is_some()) {
                node.push(known.clone());
                continue;
            }
            let (records, damaged) = state.records_of(&container_id);
            if records.is_none() && damaged.is_empty() {
                // It is being added or deleted.
                continue;
            }
            node.damaged.extend(damaged);
            node.push(Arc::new(NodeSandbox { container_id, pod: pod_of(records.as_ref()), records }));
        }
        // After the records: a mark that is carried over in between is then found by the pod's UID.
        node.marks = state.marks()?;
        Ok(node)
    }

    fn push(&mut self, sandbox: Arc<NodeSandbox>) {
        self.pods.insert(Key::from(&sandbox.container_id), sandbox.pod.clone());
        self.sandboxes.push(sandbox);
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (&ContainerId, &Pod)> + Clone {
        self.sandboxes.iter().map(|sandbox| (&sandbox.container_id, &sandbox.pod))
    }

    /// Sandboxes without a record that can be read: they could be anybody's.
    pub(super) fn unreadable(&self) -> impl Iterator<Item = &ContainerId> {
        self.sandboxes.iter().filter(|sandbox| sandbox.records.is_none()).map(|sandbox| &sandbox.container_id)
    }

    pub(super) fn has_mark(&self, key: &Key) -> bool {
        self.marks.contains(key)
    }

    pub(super) fn marks(&self) -> impl Iterator<Item = &Key> {
        self.marks.iter()
    }

    pub(super) fn sandbox(&self, container_id: &ContainerId) -> Option<&NodeSandbox> {
        self.sandboxes.iter().map(Arc::as_ref).find(|sandbox| sandbox.container_id == *container_id)
    }

    /// The marks that hold for a sandbox, the most specific first.
    pub(super) fn keys_of(&self, sandbox: &NodeSandbox) -> Vec<Key> {
        answering_keys(&sandbox.container_id, &sandbox.pod, &self.marks, |key| self.pods.get(key).cloned())
    }

    /// The sandboxes that answer to one of these marks.
    pub(super) fn answering(&self, keys: &BTreeSet<Key>) -> Vec<&NodeSandbox> {
        let sandboxes = self.sandboxes.iter().map(Arc::as_ref);
        sandboxes.filter(|sandbox| self.keys_of(sandbox).iter().any(|key| keys.contains(key))).collect()
    }

    /// Marks by the container ID of a sandbox of this one's pod, which come before the one by UID.
    pub(super) fn shadowing(&self, sandbox: &NodeSandbox) -> Vec<Key> {
        let own = sandbox.mark_key();
        self.keys_of(sandbox)
            .into_iter()
            .take_while(|key| *key != own)
            .filter(|key| self.sandboxes.iter().any(|other| Key::from(&other.container_id) == *key))
            .collect()
    }

    /// What the marks want of a sandbox, and who wrote them.
    pub(super) fn entry_of(&self, sandbox: &NodeSandbox) -> SandboxEntry {
        let keys = self.keys_of(sandbox).into_iter();
        let marks = keys.filter_map(|key| self.state.read_mark(&key).map(|mark| (key, mark))).collect();
        SandboxEntry::of(self.state, &sandbox.container_id, sandbox.records.as_ref(), marks)
    }

    /// The marks that nothing on the node answers to.
    pub(super) fn unanswered(&self) -> Vec<UnansweredMark> {
        let answered: BTreeSet<Key> = self.sandboxes.iter().flat_map(|sandbox| self.keys_of(sandbox)).collect();
        self.marks.difference(&answered).filter_map(|key| self.unanswered_mark(key)).collect()
    }

    /// One of them.
    pub(super) fn unanswered_mark(&self, key: &Key) -> Option<UnansweredMark> {
        let content = self.state.read_mark(key)?;
        let since = self.state.marked_since(key);
        let (mark, fault) = match content {
            Ok(mark) => (mark, None),
            Err(fault) => (Mark::default(), Some(fault)),
        };
        Some(UnansweredMark { key: key.clone(), mark, fault, since })
    }
}
