//! What a collection says of itself, and the chain that the collections of a node make: each names its predecessor by the
//! hash of its manifest, and the head names the last one. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::model::names::{ContainerId, PodUid};
use crate::model::subject::Subject;

/// The form of the files; a reader that knows another one leaves them alone.
pub(super) const FORMAT: u32 = 1;

/// `manifest.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// [`FORMAT`].
    pub format: u32,
    /// Who wrote it, and which version.
    pub program: String,
    /// The sandbox; none of a pod in the node's network namespace, which is known by its UID.
    #[serde(rename = "containerID", default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// Its pod, as far as it is known.
    pub pod: ManifestPod,
    /// When.
    pub clock: Clock,
    /// How long the collecting took.
    pub milliseconds: u64,
    /// Its files.
    pub files: Vec<FileEntry>,
    /// What could not be had, and why.
    pub missing: Vec<Missing>,
    /// Its number on this node, from 1 on.
    pub sequence: u64,
    /// The one before it; none for the first.
    pub predecessor: Option<Link>,
}

impl Manifest {
    /// Whom it is about; `None` where that is no name of either kind.
    #[must_use]
    pub fn subject(&self) -> Option<Subject> {
        match (&self.container_id, &self.pod.uid) {
            (Some(container_id), _) => ContainerId::new(container_id).ok().map(Subject::Sandbox),
            (None, Some(uid)) => PodUid::new(uid).ok().map(Subject::HostPod),
            (None, None) => None,
        }
    }
}

/// A pod.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestPod {
    /// Its namespace.
    pub namespace: Option<String>,
    /// Its name.
    pub name: Option<String>,
    /// Its UID.
    pub uid: Option<String>,
}

/// What tells the moment, by more than a clock that somebody can set.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Clock {
    /// The node's clock, in UTC.
    pub time: String,
    /// Milliseconds since the node started.
    pub since_boot_milliseconds: u64,
    /// The kernel's random name of that start.
    #[serde(rename = "bootID")]
    pub boot_id: String,
    /// The node.
    pub host: String,
    /// Its kernel.
    pub kernel: String,
}

/// One file of a collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FileEntry {
    /// Its path in the collection.
    pub name: String,
    /// Its hash.
    pub sha256: String,
    /// Its length.
    pub bytes: u64,
    /// What is not in it although it was there.
    pub cut_short: Vec<String>,
}

/// Something that is not in a collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Missing {
    /// What.
    pub what: String,
    /// Why.
    pub why: String,
}

/// A manifest, named from outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Where its collection is below `evidence/`.
    pub path: String,
    /// The SHA-256 of its `manifest.json`.
    pub sha256: String,
    /// Its number.
    pub sequence: u64,
}

/// A manifest that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) own: Link,
    pub(super) predecessor: Option<Link>,
}

/// Something that is not as it was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A collection that others speak of is not there.
    Removed {
        /// Where it was.
        path: String,
    },
    /// Its manifest is another one.
    ManifestChanged {
        /// Where it is.
        path: String,
    },
    /// A collection that no other speaks of as it would.
    Added {
        /// Where it is.
        path: String,
    },
    /// The head is gone.
    NoHead,
    /// Its manifest cannot be read.
    Unreadable {
        /// Where it is.
        path: String,
        /// Why.
        why: String,
    },
    /// A file of a collection is gone.
    FileRemoved {
        /// The file.
        path: String,
    },
    /// A file of a collection is another one.
    FileChanged {
        /// The file.
        path: String,
    },
    /// A file that is in no manifest.
    FileAdded {
        /// The file.
        path: String,
    },
}

impl Fault {
    /// Where it is.
    #[cfg(test)]
    fn path(&self) -> &str {
        match self {
            Self::NoHead => "head.json",
            Self::Removed { path }
            | Self::ManifestChanged { path }
            | Self::Added { path }
            | Self::Unreadable { path, .. }
            | Self::FileRemoved { path }
            | Self::FileChanged { path }
            | Self::FileAdded { path } => path,
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Removed { path } => write!(f, "{path}: the collection was removed"),
            Self::ManifestChanged { path } => write!(f, "{path}/manifest.json: was changed"),
            Self::Added { path } => {
                write!(f, "{path}: the collection was added, or put into another's place in the chain")
            }
            Self::NoHead => write!(f, "head.json: was removed: whether the last collections were too cannot be told"),
            Self::Unreadable { path, why } => write!(f, "{path}/manifest.json: cannot be read: {why}"),
            Self::FileRemoved { path } => write!(f, "{path}: was removed"),
            Self::FileChanged { path } => write!(f, "{path}: was changed"),
            Self::FileAdded { path } => write!(f, "{path}: was added"),
        }
    }
}

/// Compares the manifests that were found with what they, and the head, say of each other. A collection that was removed is
/// named by the one that came after it, the last one by the head.
pub(super) fn check_chain(found: &[Found], head: Option<&Link>) -> Vec<Fault> {
    let mut faults = BTreeSet::new();
    let by_path: BTreeMap<&str, &Found> = found.iter().map(|found| (found.own.path.as_str(), found)).collect();
    let mut named = BTreeSet::new();
    for link in found.iter().filter_map(|found| found.predecessor.as_ref()).chain(head) {
        match by_path.get(link.path.as_str()) {
            None => drop(faults.insert(Fault::Removed { path: link.path.clone() })),
            Some(there) if there.own != *link => {
                faults.insert(Fault::ManifestChanged { path: link.path.clone() });
            }
            Some(_) => {}
        }
        named.insert(link.path.as_str());
    }
    if head.is_none() && !found.is_empty() {
        faults.insert(Fault::NoHead);
    }
    for Found { own, predecessor } in found {
        let is_in_order = match predecessor {
            Some(before) => before.sequence.checked_add(1) == Some(own.sequence),
            None => own.sequence == 1,
        };
        // Whose successor was removed is named by none, and yet was there: it is followed by a gap.
        let is_followed = named.contains(own.path.as_str())
            || !found.iter().any(|other| Some(other.own.sequence) == own.sequence.checked_add(1));
        let is_alone = !found.iter().any(|other| other.own.sequence == own.sequence && other.own.path != own.path);
        let is_known = named.contains(own.path.as_str());
        let beyond_head = head.is_some_and(|head| own.sequence > head.sequence);
        if !is_in_order || beyond_head || !is_followed || !(is_alone || is_known) {
            faults.insert(Fault::Added { path: own.path.clone() });
        }
    }
    faults.into_iter().collect()
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(bytes: &[u8]) {
    let Ok(manifest) = serde_json::from_slice::<Manifest>(bytes) else { return };
    let again = serde_json::to_vec(&manifest).ok().and_then(|text| serde_json::from_slice::<Manifest>(&text).ok());
    assert_eq!(again.as_ref(), Some(&manifest));
    let own = Link { path: "c1/t".to_owned(), sha256: "x".to_owned(), sequence: manifest.sequence };
    let found = [Found { own: own.clone(), predecessor: manifest.predecessor }];
    let faults = check_chain(&found, Some(&own));
    // Alone it is whole only as the first of all.
    assert_eq!(faults.is_empty(), own.sequence == 1 && found[0].predecessor.is_none(), "{faults:?}");
}

#[cfg(test)]
mod tests {
    use super::*;

    fn link(number: u64) -> Link {
        Link { path: format!("c{number}/t"), sha256: format!("hash-{number}"), sequence: number }
    }

    fn chain(length: u64) -> (Vec<Found>, Link) {
        let found = |number| Found { own: link(number), predecessor: (number > 1).then(|| link(number - 1)) };
        ((1..=length).map(found).collect(), link(length))
    }

    fn removed(number: u64) -> Fault {
        Fault::Removed { path: link(number).path }
    }

    #[test]
    fn a_chain_as_it_was_written_has_no_fault() {
        for length in 0..5 {
            let (found, head) = chain(length);
            assert_eq!(check_chain(&found, (length > 0).then_some(&head)), []);
        }
    }

    #[test]
    fn whatever_was_removed_is_named() {
        for number in 1..=4 {
            let (mut found, head) = chain(4);
            found.retain(|found| found.own.sequence != number);
            assert_eq!(check_chain(&found, Some(&head)), [removed(number)]);
        }
        let (found, _) = chain(2);
        assert_eq!(check_chain(&found, None), [Fault::NoHead]);
        assert_eq!(check_chain(&[], Some(&link(1))), [removed(1)]);
    }

    #[test]
    fn whatever_was_changed_or_added_is_named() {
        let (mut found, head) = chain(3);
        found[1].own.sha256 = "another".to_owned();
        assert_eq!(check_chain(&found, Some(&head)), [Fault::ManifestChanged { path: link(2).path }]);
        for (sequence, before) in [(2, Some(link(1))), (4, Some(link(3))), (1, None), (7, Some(link(2)))] {
            let (mut found, head) = chain(3);
            let own = Link { path: "forged/t".to_owned(), sha256: "x".to_owned(), sequence };
            found.push(Found { own, predecessor: before });
            assert_eq!(check_chain(&found, Some(&head)), [Fault::Added { path: "forged/t".to_owned() }], "{sequence}");
        }
    }

    #[test]
    fn a_manifest_is_read_as_it_is_written() {
        let manifest = Manifest {
            format: FORMAT,
            program: "quarantine 0.1.0".to_owned(),
            container_id: Some("c1".to_owned()),
            pod: ManifestPod { name: Some("web".to_owned()), ..ManifestPod::default() },
            clock: Clock { time: "2026-11-27T07:00:00Z".to_owned(), ..Clock::default() },
            milliseconds: 12,
            files: vec![FileEntry { name: "a".to_owned(), sha256: "b".to_owned(), bytes: 1, cut_short: Vec::new() }],
            missing: vec![Missing { what: "x".to_owned(), why: "y".to_owned() }],
            sequence: 2,
            predecessor: Some(link(1)),
        };
        let text = serde_json::to_string(&manifest).unwrap();
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), manifest);
        assert_eq!(manifest.subject(), Some(Subject::Sandbox(ContainerId::new("c1").unwrap())));
        let pod = ManifestPod { uid: Some("uid-1".to_owned()), ..ManifestPod::default() };
        let of_host_pod = Manifest { container_id: None, pod, ..manifest };
        let text = serde_json::to_string(&of_host_pod).unwrap();
        assert!(!text.contains("containerID"), "{text}");
        assert_eq!(serde_json::from_str::<Manifest>(&text).unwrap(), of_host_pod);
        assert_eq!(of_host_pod.subject(), Some(Subject::HostPod(PodUid::new("uid-1").unwrap())));
    }

    proptest::proptest! {
        #[test]
        fn removing_or_changing_any_is_found(length in 1_u64..12, which in 0_u64..12, change: bool) {
            let (mut found, head) = chain(length);
            let which = 1 + which % length;
            if change {
                found[usize::try_from(which - 1).unwrap()].own.sha256.push('x');
            } else {
                found.retain(|found| found.own.sequence != which);
            }
            let faults = check_chain(&found, Some(&head));
            proptest::prop_assert!(faults.iter().any(|fault| fault.path() == link(which).path), "{faults:?}");
        }
    }
}
