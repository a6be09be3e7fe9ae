//! Which sandboxes of the node are which pod's. What a record says of its pod does not change: each is read once.

use std::collections::{BTreeMap, BTreeSet};

use cni_quarantine::names::{ContainerId, Key, Pod, PodUid};

/// The pods that have records on the node.
#[derive(Debug, Default)]
pub struct Pods {
    by_id: BTreeMap<ContainerId, Pod>,
    by_uid: BTreeMap<PodUid, BTreeSet<ContainerId>>,
}

impl Pods {
    /// All of them.
    pub fn iter(&self) -> impl Iterator<Item = (&ContainerId, &Pod)> {
        self.by_id.iter()
    }

    /// Some of them.
    pub fn of<'a>(&'a self, ids: &'a [ContainerId]) -> impl Iterator<Item = (&'a ContainerId, &'a Pod)> {
        ids.iter().filter_map(|id| self.by_id.get_key_value(id))
    }

    /// The sandboxes of a pod.
    #[must_use]
    pub fn sandboxes_of(&self, uid: &PodUid) -> Vec<ContainerId> {
        self.by_uid.get(uid).into_iter().flatten().cloned().collect()
    }

    /// Brings it to the sandboxes that there are; `pod_of` reads what a record says, and is asked for new ones alone.
    pub fn follow(&mut self, present: &BTreeSet<ContainerId>, pod_of: impl Fn(&ContainerId) -> Option<Pod>) {
        let gone: Vec<_> = self.by_id.keys().filter(|id| !present.contains(*id)).cloned().collect();
        for id in gone {
            let uid = self.by_id.remove(&id).and_then(|pod| pod.uid);
            if let Some((uid, ids)) = uid.and_then(|uid| self.by_uid.get_mut(&uid).map(|ids| (uid, ids))) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_uid.remove(&uid);
                }
            }
        }
        for id in present {
            if !self.by_id.contains_key(id)
                && let Some(pod) = pod_of(id)
            {
                if let Some(uid) = &pod.uid {
                    self.by_uid.entry(uid.clone()).or_default().insert(id.clone());
                }
                self.by_id.insert(id.clone(), pod);
            }
        }
    }

    /// The names under which a mark can hold for a sandbox, the most specific first: its own, those of the pod's other
    /// sandboxes, the pod's UID, its name.
    #[must_use]
    pub fn keys_of(&self, id: &ContainerId, pod: &Pod) -> Vec<Key> {
        let siblings = pod.uid.iter().flat_map(|uid| self.sandboxes_of(uid)).filter(|other| other != id);
        let mut keys = vec![Key::from(id)];
        keys.extend(siblings.map(|id| Key::from(&id)));
        keys.extend(pod.uid.as_ref().map(Key::from));
        keys.extend(pod.name_key());
        keys
    }

    /// The pods that a file of the state directory can be about: a mark's name, or that of a sandbox's records.
    #[must_use]
    pub fn named(&self, name: &str) -> BTreeSet<PodUid> {
        let by_id = ContainerId::new(name).ok().and_then(|id| self.by_id.get(&id)).and_then(|pod| pod.uid.clone());
        let mut named: BTreeSet<PodUid> = by_id.into_iter().chain(PodUid::new(name).ok()).collect();
        // Only a name of namespace and pod has this in it.
        if name.contains('_') {
            let is_it = |pod: &&Pod| pod.name_key().is_some_and(|key| key.as_str() == name);
            named.extend(self.by_id.values().filter(is_it).filter_map(|pod| pod.uid.clone()));
        }
        named
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cni_quarantine::names::PodName;

    fn id(text: &str) -> ContainerId {
        ContainerId::new(text).unwrap()
    }

    fn pod(name: &str, uid: &str) -> Pod {
        Pod { namespace: PodName::new("shop").ok(), name: PodName::new(name).ok(), uid: PodUid::new(uid).ok() }
    }

    #[test]
    fn a_pod_is_found_by_every_name_that_a_mark_can_have_and_only_as_long_as_it_is_there() {
        let mut pods = Pods::default();
        let read = |id: &ContainerId| match id.as_str() {
            "c1" | "c2" => Some(pod("web", "uid-1")),
            "c3" => Some(pod("db", "uid-2")),
            _ => None,
        };
        pods.follow(&["c1", "c2", "c3", "damaged"].map(id).into(), read);
        let uid = PodUid::new("uid-1").unwrap();
        assert_eq!(pods.sandboxes_of(&uid), ["c1", "c2"].map(id));
        let keys = pods.keys_of(&id("c2"), &pod("web", "uid-1"));
        assert_eq!(keys.iter().map(Key::as_str).collect::<Vec<_>>(), ["c2", "c1", "uid-1", "shop_web"]);
        for name in ["c1", "uid-1", "shop_web"] {
            assert!(pods.named(name).contains(&uid), "{name}");
        }
        pods.follow(&["c2"].map(id).into(), |_| None);
        assert_eq!(pods.sandboxes_of(&uid), ["c2"].map(id));
        assert!(!pods.named("c3").contains(&PodUid::new("uid-2").unwrap()));
        pods.follow(&BTreeSet::new(), |_| None);
        assert!(pods.sandboxes_of(&uid).is_empty() && pods.iter().next().is_none());
    }
}
