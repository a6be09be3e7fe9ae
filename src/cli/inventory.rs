//! What the state directory says of the whole node, read once: its sandboxes, its marks, and which holds for which.
//!
//! For choosing and for listing. Whoever enforces reads records and marks again, under the sandbox's lock.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use crate::model::mark::Mark;
use crate::model::mark::answering_keys;
use crate::model::names::{ContainerId, Key, Pod};
use crate::model::policy::Policy;
use crate::model::record::HostGuard;
use crate::model::records::SandboxRecords;
use crate::node::sandbox::{Sandbox, SandboxError, Side};
use crate::node::state::{DamagedRecord, StateDir, StateError};
use crate::status::{SandboxEntry, UnansweredMark};

/// What could be read of a sandbox's records, and what could not.
type Read = (Option<SandboxRecords>, Vec<DamagedRecord>);

/// A sandbox that has a directory among the records.
#[derive(Debug)]
pub(super) struct NodeSandbox {
    pub(super) container_id: ContainerId,
    pub(super) pod: Pod,
    state: StateDir,
    /// Not before somebody asks, where the index says whose it is.
    read: OnceLock<Read>,
}

impl NodeSandbox {
    /// By the index, where that knows it, else by its records. `None` where it is being added or deleted.
    fn found(state: &StateDir, container_id: ContainerId) -> Option<Self> {
        let pod = state.indexed_pod(&container_id);
        let is_indexed = pod.is_some();
        let sandbox = Self { container_id, pod: pod.unwrap_or_default(), state: state.clone(), read: OnceLock::new() };
        if is_indexed { Some(sandbox) } else { sandbox.by_its_records() }
    }

    /// With what its records say.
    fn by_its_records(mut self) -> Option<Self> {
        let (records, damaged) = self.read();
        if records.is_none() && damaged.is_empty() {
            return None;
        }
        if let Some(records) = records {
            let pod = records.pod().clone();
            self.state.index_pod(&self.container_id, &pod);
            self.pod = pod;
        }
        Some(self)
    }

    fn read(&self) -> &Read {
        self.read.get_or_init(|| self.state.records_of(&self.container_id))
    }

    /// `None` where none can be read.
    pub(super) fn records(&self) -> Option<&SandboxRecords> {
        self.read().0.as_ref()
    }

    /// The records that cannot be read.
    pub(super) fn damaged(&self) -> &[DamagedRecord] {
        &self.read().1
    }

    /// Whether its records say of its pod what the index said.
    fn is_borne_out(&self) -> bool {
        self.records().is_some_and(|records| *records.pod() == self.pod)
    }

    /// Opens it.
    pub(super) fn open<'a>(&'a self, host: &'a mut Side) -> Result<Sandbox<'a>, SandboxError> {
        match self.records() {
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
        self.records().is_some_and(|records| records.host_guard() == HostGuard::Require)
    }

    /// The policy that holds where a mark gives none.
    pub(super) fn configured_policy(&self) -> Policy {
        self.records().map(|records| records.policy().clone()).unwrap_or_default()
    }
}

/// The sandboxes and marks of the node.
#[derive(Debug)]
pub(super) struct Inventory<'a> {
    state: &'a StateDir,
    /// In the order of their container IDs.
    pub(super) sandboxes: Vec<Arc<NodeSandbox>>,
    marks: BTreeSet<Key>,
    pods: BTreeMap<Key, Pod>,
}

impl<'a> Inventory<'a> {
    /// All records are read.
    pub(super) fn read(state: &'a StateDir) -> Result<Self, StateError> {
        Self::of(state, |container_id| {
            let (pod, read) = (Pod::default(), OnceLock::new());
            NodeSandbox { container_id, pod, state: state.clone(), read }.by_its_records().map(Arc::new)
        })
    }

    /// For finding what `select` chooses: by the index, so that the records of all others need not be read. Where nothing is
    /// chosen, or the records of what is chosen do not bear the index out, all are read after all.
    pub(super) fn read_to_find(
        state: &'a StateDir,
        select: impl FnOnce(&Self) -> Option<Vec<ContainerId>>,
    ) -> Result<Self, StateError> {
        let node = Self::of(state, |container_id| NodeSandbox::found(state, container_id).map(Arc::new))?;
        let chosen = select(&node).unwrap_or_default();
        let is_borne_out = |id: &ContainerId| node.sandbox(id).is_some_and(NodeSandbox::is_borne_out);
        if !chosen.is_empty() && chosen.iter().all(is_borne_out) { Ok(node) } else { Self::read(state) }
    }

    /// The node as it is by now. Of the sandboxes that were there before no record is read again: what it says of its
    /// pod does not change.
    pub(super) fn read_again(&self) -> Result<Self, StateError> {
        let known: BTreeMap<_, _> = self.sandboxes.iter().map(|sandbox| (&sandbox.container_id, sandbox)).collect();
        Self::of(self.state, |container_id| match known.get(&container_id) {
            Some(&known) => Some(known.clone()),
            None => NodeSandbox::found(self.state, container_id).map(Arc::new),
        })
    }

    fn of(
        state: &'a StateDir,
        mut find: impl FnMut(ContainerId) -> Option<Arc<NodeSandbox>>,
    ) -> Result<Self, StateError> {
        let sandboxes: Vec<_> = state.sandboxes()?.into_iter().filter_map(&mut find).collect();
        let pods = sandboxes.iter().map(|sandbox| (Key::from(&sandbox.container_id), sandbox.pod.clone())).collect();
        // After the records: a mark that is carried over in between is then found by the pod's UID.
        Ok(Self { state, marks: state.marks()?, sandboxes, pods })
    }

    /// The records of all sandboxes that cannot be read.
    pub(super) fn damaged(&self) -> impl Iterator<Item = &DamagedRecord> {
        self.sandboxes.iter().flat_map(|sandbox| sandbox.damaged())
    }

    pub(super) fn names(&self) -> impl Iterator<Item = (&ContainerId, &Pod)> + Clone {
        self.sandboxes.iter().map(|sandbox| (&sandbox.container_id, &sandbox.pod))
    }

    /// Sandboxes without a record that can be read: they could be anybody's.
    pub(super) fn unreadable(&self) -> impl Iterator<Item = &ContainerId> {
        self.sandboxes.iter().filter(|sandbox| sandbox.records().is_none()).map(|sandbox| &sandbox.container_id)
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
        SandboxEntry::of(self.state, &sandbox.container_id, sandbox.records(), marks)
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
