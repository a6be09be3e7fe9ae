//! What the state directory says of the whole node, read once: its sandboxes, its marks, and which holds for which.
//!
//! For choosing and for listing. Whoever enforces reads records and marks again, under the sandbox's lock.

use std::collections::BTreeSet;
use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use crate::model::mark::{Mark, answering_keys, answers_to};
use crate::model::names::{ContainerId, Key, Pod};
use crate::model::policy::Policy;
use crate::model::record::HostGuard;
use crate::model::records::SandboxRecords;
use crate::node::sandbox::{Sandbox, SandboxError, Side};
use crate::node::state::{DamagedRecord, PodIndex, Said, StateDir, StateError};
use crate::status::{SandboxEntry, UnansweredMark};

/// What could be read of a sandbox's records, and what could not.
type Read = (Option<SandboxRecords>, Vec<DamagedRecord>);

/// A sandbox that has a directory among the records.
#[derive(Debug)]
pub(super) struct NodeSandbox {
    pub(super) container_id: ContainerId,
    pub(super) pod: Pod,
    state: Arc<StateDir>,
    /// Not before somebody asks, where the index says whose it is.
    read: OnceLock<Read>,
}

impl NodeSandbox {
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

/// The index may say this many more things of sandboxes that are gone than there are sandboxes, before it is tidied up.
const GONE_MAX: usize = 256;

/// Finds out whose the sandboxes are. What the index knows nothing of it is told at the end.
struct Finder {
    state: Arc<StateDir>,
    index: Option<PodIndex>,
    not_indexed: Vec<Arc<NodeSandbox>>,
}

impl Finder {
    fn new(state: &StateDir) -> Self {
        Self { state: Arc::new(state.clone()), index: None, not_indexed: Vec::new() }
    }

    fn said(&mut self, container_id: &ContainerId) -> Option<Said> {
        self.index.get_or_insert_with(|| self.state.index()).take(container_id)
    }

    /// By the index, where that knows it, else by its records.
    fn by_index(&mut self, container_id: ContainerId) -> Option<Arc<NodeSandbox>> {
        match self.said(&container_id) {
            Some(Said::Of(pod)) => {
                Some(Arc::new(NodeSandbox { container_id, pod, state: self.state.clone(), read: OnceLock::new() }))
            }
            said => self.read(container_id, said.is_none()),
        }
    }

    /// By its records.
    fn by_records(&mut self, container_id: ContainerId) -> Option<Arc<NodeSandbox>> {
        let is_new = self.said(&container_id).is_none();
        self.read(container_id, is_new)
    }

    /// By its records; `is_new` to the index. `None` where it is being added or deleted.
    fn read(&mut self, container_id: ContainerId, is_new: bool) -> Option<Arc<NodeSandbox>> {
        let read = self.state.records_of(&container_id);
        let pod = match &read {
            (None, damaged) if damaged.is_empty() => return None,
            (records, _) => records.as_ref().map(|records| records.pod().clone()).unwrap_or_default(),
        };
        let sandbox =
            Arc::new(NodeSandbox { container_id, pod, state: self.state.clone(), read: OnceLock::from(read) });
        self.not_indexed.extend(is_new.then(|| sandbox.clone()));
        Some(sandbox)
    }

    /// Tells it what it does not know, and clears away what is left of pods that are gone.
    fn tell_index(&self, sandboxes: usize) {
        if self.index.as_ref().is_some_and(|left| left.count() > sandboxes + GONE_MAX) {
            self.state.tidy_index();
        }
        self.state.index_pods(self.not_indexed.iter().map(|sandbox| (&sandbox.container_id, &sandbox.pod)));
    }
}

/// The sandboxes and marks of the node.
#[derive(Debug)]
pub(super) struct Inventory<'a> {
    state: &'a StateDir,
    /// In the order of their container IDs.
    pub(super) sandboxes: Vec<Arc<NodeSandbox>>,
    marks: BTreeSet<Key>,
    /// As long as the directory's time is this, these are all; `None` where that is not known.
    complete_since: Option<SystemTime>,
}

impl<'a> Inventory<'a> {
    /// All records are read.
    pub(super) fn read(state: &'a StateDir) -> Result<Self, StateError> {
        Self::of(state, Finder::by_records)
    }

    /// For finding what `select` chooses: by the index, so that the records of all others need not be read. Where nothing is
    /// chosen, or the records of what is chosen do not bear the index out, all are read after all.
    pub(super) fn read_to_find(
        state: &'a StateDir,
        select: impl FnOnce(&Self) -> Option<Vec<ContainerId>>,
    ) -> Result<Self, StateError> {
        let node = Self::of(state, Finder::by_index)?;
        let chosen = select(&node).unwrap_or_default();
        let is_borne_out = |id: &ContainerId| node.sandbox(id).is_some_and(NodeSandbox::is_borne_out);
        if !chosen.is_empty() && chosen.iter().all(is_borne_out) { Ok(node) } else { Self::read(state) }
    }

    /// The node as it is by now. Of the sandboxes that were there before no record is read again: what it says of its
    /// pod does not change.
    pub(super) fn read_again(&self) -> Result<Self, StateError> {
        let complete_since = self.state.sandboxes_unchanged_since();
        if complete_since.is_some() && complete_since == self.complete_since {
            let (state, sandboxes) = (self.state, self.sandboxes.clone());
            return Ok(Self { state, sandboxes, marks: state.marks()?, complete_since });
        }
        // Both are in the order of their container IDs.
        let mut known = self.sandboxes.iter().peekable();
        Self::of(self.state, |finder, container_id| {
            while known.next_if(|sandbox| sandbox.container_id < container_id).is_some() {}
            match known.next_if(|sandbox| sandbox.container_id == container_id) {
                Some(known) => Some(known.clone()),
                None => finder.by_index(container_id),
            }
        })
    }

    fn of(
        state: &'a StateDir,
        mut find: impl FnMut(&mut Finder, ContainerId) -> Option<Arc<NodeSandbox>>,
    ) -> Result<Self, StateError> {
        let mut finder = Finder::new(state);
        // Before they are listed.
        let complete_since = state.sandboxes_unchanged_since();
        let listed = state.sandboxes()?;
        let count = listed.len();
        let sandboxes: Vec<_> = listed.into_iter().filter_map(|id| find(&mut finder, id)).collect();
        finder.tell_index(sandboxes.len());
        // One that is being added has no record yet, and its directory already.
        let complete_since = complete_since.filter(|_| sandboxes.len() == count);
        // After the records: a mark that is carried over in between is then found by the pod's UID.
        Ok(Self { state, marks: state.marks()?, sandboxes, complete_since })
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
        self.sandbox_named(container_id.as_str())
    }

    fn sandbox_named(&self, container_id: &str) -> Option<&NodeSandbox> {
        let found = self.sandboxes.binary_search_by(|sandbox| sandbox.container_id.as_str().cmp(container_id)).ok()?;
        self.sandboxes.get(found).map(Arc::as_ref)
    }

    /// The pod of the sandbox that a mark names by its container ID.
    fn pod_marked(&self, key: &Key) -> Option<&Pod> {
        self.sandbox_named(key.as_str()).map(|sandbox| &sandbox.pod)
    }

    /// The marks that hold for a sandbox, the most specific first.
    pub(super) fn keys_of(&self, sandbox: &NodeSandbox) -> Vec<Key> {
        answering_keys(&sandbox.container_id, &sandbox.pod, &self.marks, |key| self.pod_marked(key).cloned())
    }

    /// The sandboxes that answer to one of these marks.
    pub(super) fn answering(&self, keys: &BTreeSet<Key>) -> Vec<&NodeSandbox> {
        let marks: Vec<_> = keys.intersection(&self.marks).map(|key| (key, self.pod_marked(key))).collect();
        let answers = |sandbox: &&NodeSandbox| {
            marks.iter().any(|(key, of)| answers_to(&sandbox.container_id, &sandbox.pod, key, *of))
        };
        self.sandboxes.iter().map(Arc::as_ref).filter(answers).collect()
    }

    /// Marks by the container ID of a sandbox of this one's pod, which come before the one by UID.
    pub(super) fn shadowing(&self, sandbox: &NodeSandbox) -> Vec<Key> {
        let own = sandbox.mark_key();
        self.keys_of(sandbox)
            .into_iter()
            .take_while(|key| *key != own)
            .filter(|key| self.pod_marked(key).is_some())
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

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::time::Duration;

    use super::*;
    use crate::model::names::{PodName, PodUid};

    #[test]
    fn a_sandbox_that_came_meanwhile_is_found_whatever_the_directorys_time_says() {
        let place = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(&place.path().join("state")).unwrap();
        let begin = |id: &str| fs::create_dir_all(state.attachments().join(id)).unwrap();
        let finish = |id: &str| {
            let (namespace, name, uid) = (PodName::new("shop").ok(), PodName::new(id).ok(), PodUid::new(id).ok());
            state.index_pods([(&ContainerId::new(id).unwrap(), &Pod { namespace, name, uid })]);
        };
        let add = |id: &str| (begin(id), finish(id));
        let ids = |node: &Inventory<'_>| node.names().map(|(id, _)| id.to_string()).collect::<Vec<_>>();
        let list = || Inventory::of(&state, Finder::by_index).unwrap();
        let (now, minute) = (SystemTime::now(), Duration::from_secs(60));
        let changed = |when| File::open(state.attachments()).unwrap().set_modified(when).unwrap();

        add("a");
        changed(now - minute);
        let node = list();
        assert!(node.complete_since.is_some());
        assert_eq!(ids(&node.read_again().unwrap()), ["a"]);
        add("b");
        assert_eq!(ids(&node.read_again().unwrap()), ["a", "b"]);

        // In the same tick of the clock as what came before it.
        changed(now);
        let node = list();
        add("c");
        changed(now);
        assert_eq!(ids(&node.read_again().unwrap()), ["a", "b", "c"]);

        // Its directory was there, and nothing in it yet.
        begin("d");
        changed(now - minute);
        let node = list();
        assert_eq!(ids(&node), ["a", "b", "c"]);
        finish("d");
        assert_eq!(ids(&node.read_again().unwrap()), ["a", "b", "c", "d"]);
    }
}
