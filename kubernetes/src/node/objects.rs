//! The objects that a node knows, and which of them are about which pod.

use std::collections::{BTreeMap, BTreeSet};

use cni_quarantine::names::PodUid;

use crate::api::PodQuarantine;

/// Objects by their names.
#[derive(Debug, Default)]
pub(super) struct Objects {
    by_name: BTreeMap<String, PodQuarantine>,
    by_uid: BTreeMap<PodUid, BTreeSet<String>>,
}

/// The pod that an object is about; none where it does not say yet.
pub(super) fn uid_of(object: &PodQuarantine) -> Option<PodUid> {
    PodUid::new(object.spec.pod.uid.as_deref()?).ok()
}

impl Objects {
    pub(super) fn get(&self, name: &str) -> Option<&PodQuarantine> {
        self.by_name.get(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &String> {
        self.by_name.keys()
    }

    /// The pods that there are objects about.
    pub(super) fn pods(&self) -> impl Iterator<Item = &PodUid> {
        self.by_uid.keys()
    }

    /// Those about a pod.
    pub(super) fn of(&self, uid: &PodUid) -> Vec<&PodQuarantine> {
        self.by_uid.get(uid).into_iter().flatten().filter_map(|name| self.by_name.get(name)).collect()
    }

    /// Puts one in the place of what it was.
    pub(super) fn insert(&mut self, object: PodQuarantine) {
        let name = object.object_name().to_owned();
        self.remove(&name);
        if let Some(uid) = uid_of(&object) {
            self.by_uid.entry(uid).or_default().insert(name.clone());
        }
        self.by_name.insert(name, object);
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<PodQuarantine> {
        let object = self.by_name.remove(name)?;
        if let Some(uid) = uid_of(&object)
            && let Some(names) = self.by_uid.get_mut(&uid)
        {
            names.remove(name);
            if names.is_empty() {
                self.by_uid.remove(&uid);
            }
        }
        Some(object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::{PodQuarantineSpec, PodRef};

    fn object(name: &str, uid: Option<&str>) -> PodQuarantine {
        let pod = PodRef {
            namespace: "shop".into(),
            name: "web".into(),
            uid: uid.map(str::to_owned),
            node_name: Some("a".into()),
        };
        PodQuarantine::new(name, PodQuarantineSpec::of(pod))
    }

    #[test]
    fn several_can_be_about_one_pod_and_one_can_come_to_be_about_one() {
        let uid = PodUid::new("uid-1").unwrap();
        let mut objects = Objects::default();
        objects.insert(object("first", Some("uid-1")));
        objects.insert(object("second", None));
        let names = |objects: &Objects| {
            objects.of(&uid).iter().map(|object| object.object_name().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(names(&objects), ["first"]);
        objects.insert(object("second", Some("uid-1")));
        assert_eq!(names(&objects), ["first", "second"]);
        assert!(objects.remove("first").is_some() && objects.remove("first").is_none());
        assert_eq!(names(&objects), ["second"]);
        objects.remove("second");
        assert!(objects.pods().next().is_none() && objects.names().next().is_none());
    }
}
