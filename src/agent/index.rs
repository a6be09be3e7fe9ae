//! What the agent knows of marks and sandboxes, and what follows from it. Pure.
//!
//! It only says *when* a sandbox has to be looked at again, never what is wanted of it: that is read from the marks
//! under the sandbox's lock.

use std::collections::{BTreeMap, BTreeSet};

use crate::model::mark::answering_keys;
use crate::model::names::{ContainerId, Key, Pod, PodUid};

/// The marks that a sandbox answers to, each with how often it has changed since the agent started.
pub(super) type Answer = Vec<(Key, u64)>;

/// Marks and sandboxes of the node.
#[derive(Debug, Default)]
pub(super) struct Index {
    marks: BTreeSet<Key>,
    /// Kept also for marks that are gone: one that comes back is another one.
    changes: BTreeMap<Key, u64>,
    sandboxes: BTreeMap<ContainerId, Pod>,
    by_uid: BTreeMap<PodUid, BTreeSet<ContainerId>>,
    by_name: BTreeMap<Key, BTreeSet<ContainerId>>,
    doubted: BTreeSet<ContainerId>,
}

/// What is to be done about a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Action {
    /// Bring it to its marks.
    Apply(ContainerId),
    /// Let go of it: it has no record any more.
    Forget(ContainerId),
}

impl Index {
    /// A mark was written or changed.
    pub(super) fn mark(&mut self, key: Key) {
        *self.changes.entry(key.clone()).or_default() += 1;
        self.marks.insert(key);
    }

    /// A mark was removed.
    pub(super) fn unmark(&mut self, key: &Key) {
        self.marks.remove(key);
    }

    /// The marks.
    pub(super) fn marks(&self) -> &BTreeSet<Key> {
        &self.marks
    }

    /// The sandboxes.
    pub(super) fn sandboxes(&self) -> impl Iterator<Item = &ContainerId> {
        self.sandboxes.keys()
    }

    /// Whether this is one of them.
    pub(super) fn knows(&self, container_id: &ContainerId) -> bool {
        self.sandboxes.contains_key(container_id)
    }

    /// A sandbox has records, of this pod.
    pub(super) fn record(&mut self, container_id: ContainerId, pod: Pod) {
        self.unrecord(&container_id);
        if let Some(uid) = &pod.uid {
            self.by_uid.entry(uid.clone()).or_default().insert(container_id.clone());
        }
        if let Some(name) = pod.name_key() {
            self.by_name.entry(name).or_default().insert(container_id.clone());
        }
        self.sandboxes.insert(container_id, pod);
    }

    /// A sandbox has no records any more.
    pub(super) fn unrecord(&mut self, container_id: &ContainerId) {
        let Some(pod) = self.sandboxes.remove(container_id) else { return };
        if let Some(uid) = pod.uid.as_ref() {
            remove_from(&mut self.by_uid, uid, container_id);
        }
        if let Some(name) = pod.name_key() {
            remove_from(&mut self.by_name, &name, container_id);
        }
    }

    /// What a sandbox is was lost with its records, or never known: should they come back, it has to be looked at even
    /// if it answers to no mark by then.
    pub(super) fn doubt(&mut self, container_id: &ContainerId) {
        self.doubted.insert(container_id.clone());
    }

    /// A sandbox was brought to its marks.
    pub(super) fn trust(&mut self, container_id: &ContainerId) {
        self.doubted.remove(container_id);
    }

    /// The sandboxes that a mark could concern.
    pub(super) fn concerned_by(&self, key: &Key) -> BTreeSet<ContainerId> {
        let own = ContainerId::new(key.as_str()).ok();
        let siblings = own.as_ref().and_then(|own| self.sandboxes.get(own)).and_then(|pod| self.siblings_of(pod));
        let by_uid = PodUid::new(key.as_str()).ok().and_then(|uid| self.by_uid.get(&uid));
        let sets = [siblings, by_uid, self.by_name.get(key)];
        let mut concerned: BTreeSet<_> = sets.into_iter().flatten().flatten().cloned().collect();
        concerned.extend(own.filter(|own| self.sandboxes.contains_key(own)));
        concerned
    }

    /// The sandboxes that may be of the same pod.
    fn siblings_of(&self, pod: &Pod) -> Option<&BTreeSet<ContainerId>> {
        match &pod.uid {
            Some(uid) => self.by_uid.get(uid),
            None => self.by_name.get(&pod.name_key()?),
        }
    }

    /// The marks that a sandbox answers to, the most specific first.
    pub(super) fn answer_of(&self, container_id: &ContainerId) -> Answer {
        let Some(pod) = self.sandboxes.get(container_id) else { return Vec::new() };
        // Only marks that could be a sibling's are looked at, not all of the node's.
        let siblings = self.siblings_of(pod).into_iter().flatten().map(Key::from);
        let own = [Some(Key::from(container_id)), pod.uid.as_ref().map(Key::from), pod.name_key()];
        let candidates: BTreeSet<_> =
            siblings.chain(own.into_iter().flatten()).filter(|key| self.marks.contains(key)).collect();
        answering_keys(container_id, pod, &candidates, |key| {
            ContainerId::new(key.as_str()).ok().and_then(|id| self.sandboxes.get(&id).cloned())
        })
        .into_iter()
        .map(|key| (self.changes.get(&key).copied().unwrap_or_default(), key))
        .map(|(change, key)| (key, change))
        .collect()
    }
}

fn remove_from<K: Ord + Clone>(sets: &mut BTreeMap<K, BTreeSet<ContainerId>>, key: &K, container_id: &ContainerId) {
    if let Some(set) = sets.get_mut(key) {
        set.remove(container_id);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}

/// What is to be done about the sandboxes `among`: marks and records against what was applied. A sandbox that was never
/// applied and answers to no mark is left alone, since its ADD has seen to it; but for those that are doubted.
pub(super) fn plan(
    index: &Index,
    applied: &BTreeMap<ContainerId, Answer>,
    among: &BTreeSet<ContainerId>,
) -> Vec<Action> {
    among
        .iter()
        .filter_map(|container_id| {
            let was = applied.get(container_id);
            if !index.sandboxes.contains_key(container_id) {
                return was.map(|_| Action::Forget(container_id.clone()));
            }
            let nothing = Vec::new();
            let is_due =
                index.doubted.contains(container_id) || index.answer_of(container_id) != *was.unwrap_or(&nothing);
            is_due.then(|| Action::Apply(container_id.clone()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::PodName;

    fn id(text: &str) -> ContainerId {
        ContainerId::new(text).unwrap()
    }

    fn key(text: &str) -> Key {
        Key::new(text).unwrap()
    }

    fn pod(name: &str, uid: &str) -> Pod {
        Pod { namespace: PodName::new("ns").ok(), name: PodName::new(name).ok(), uid: PodUid::new(uid).ok() }
    }

    fn index() -> Index {
        let mut index = Index::default();
        index.record(id("a1"), pod("a", "uid-a"));
        index.record(id("a2"), pod("a", "uid-a"));
        index.record(id("b1"), pod("b", "uid-b"));
        index.record(id("c1"), Pod::default());
        index
    }

    fn planned(index: &Index, applied: &BTreeMap<ContainerId, Answer>, key_text: &str) -> Vec<Action> {
        plan(index, applied, &index.concerned_by(&key(key_text)))
    }

    #[test]
    fn a_mark_concerns_those_that_answer_to_it_and_their_siblings() {
        for (mark, concerned) in [
            ("a1", vec!["a1", "a2"]),
            ("uid-a", vec!["a1", "a2"]),
            ("ns_b", vec!["b1"]),
            ("c1", vec!["c1"]),
            ("nobody", vec![]),
        ] {
            let mut index = index();
            index.mark(key(mark));
            let expected: Vec<_> = concerned.into_iter().map(|text| Action::Apply(id(text))).collect();
            assert_eq!(planned(&index, &BTreeMap::new(), mark), expected, "{mark}");
        }
    }

    #[test]
    fn what_was_applied_is_applied_again_only_after_a_change() {
        let mut index = index();
        index.mark(key("b1"));
        let mut applied = BTreeMap::from([(id("b1"), index.answer_of(&id("b1")))]);
        assert_eq!(planned(&index, &applied, "b1"), []);
        index.mark(key("b1"));
        assert_eq!(planned(&index, &applied, "b1"), [Action::Apply(id("b1"))]);
        applied.insert(id("b1"), index.answer_of(&id("b1")));
        index.unmark(&key("b1"));
        assert_eq!(planned(&index, &applied, "b1"), [Action::Apply(id("b1"))]);
        applied.insert(id("b1"), Vec::new());
        index.mark(key("b1"));
        assert_eq!(planned(&index, &applied, "b1"), [Action::Apply(id("b1"))], "removed and written again");
    }

    #[test]
    fn a_doubted_sandbox_is_applied_once_its_records_are_back() {
        let mut index = index();
        index.unrecord(&id("b1"));
        index.doubt(&id("b1"));
        let among = BTreeSet::from([id("b1"), id("a1")]);
        assert_eq!(plan(&index, &BTreeMap::new(), &among), [], "nothing can be done without records");
        index.record(id("b1"), pod("b", "uid-b"));
        assert_eq!(plan(&index, &BTreeMap::new(), &among), [Action::Apply(id("b1"))], "although there is no mark");
        index.trust(&id("b1"));
        assert_eq!(plan(&index, &BTreeMap::new(), &among), []);
    }

    #[test]
    fn a_sandbox_without_records_is_let_go() {
        let mut index = index();
        let applied = BTreeMap::from([(id("b1"), Vec::new())]);
        let among = BTreeSet::from([id("b1"), id("a1")]);
        index.unrecord(&id("b1"));
        index.unrecord(&id("a1"));
        assert_eq!(plan(&index, &applied, &among), [Action::Forget(id("b1"))]);
        assert!(index.concerned_by(&key("uid-b")).is_empty() && index.concerned_by(&key("ns_b")).is_empty());
    }
}
