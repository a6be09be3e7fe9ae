//! Which pod a sandbox is of, without reading its records: a line for each sandbox, in one file.
//!
//! ```text
//! .index      <container ID> <namespace> <name> <UID>
//! ```
//!
//! For finding by name on a node with a thousand sandboxes, where reading a thousand records takes longer than cutting one
//! off. Nothing rests on it: a sandbox without a line has its records read, one that is chosen by its line has them read
//! too, and whoever enforces reads them under its lock. It can be removed at any time. Lines are only ever appended, so that two
//! ADDs need not know of each other; those of sandboxes that are gone mean nothing, and two that disagree say nothing. Only a
//! pod whose namespace, name and UID are all known has a line.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use nix::libc;

use crate::model::names::{ContainerId, Pod, PodName, PodUid};

use super::{FILE_MAX, StateDir};
use crate::node::files::{Durability, read_regular, replace};

/// What is longer is begun anew by whoever adds to it, where nobody reads it who would tidy it up.
const LENGTH_MAX: u64 = 1024 * 1024;

/// What the index said when it was read.
#[derive(Debug, Default)]
pub struct PodIndex {
    pods: HashMap<String, Said>,
}

/// What it says of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Said {
    /// It is this pod's.
    Of(Pod),
    /// Its lines disagree, or cannot be understood.
    Disputed,
}

impl PodIndex {
    fn read(text: &str) -> Self {
        let mut pods = HashMap::with_capacity(text.len() / 128);
        for line in text.lines() {
            let mut words = line.split(' ');
            let container_id = words.next().unwrap_or_default().to_owned();
            let said = pod_of(words).map_or(Said::Disputed, Said::Of);
            match pods.entry(container_id) {
                Entry::Vacant(place) => drop(place.insert(said)),
                Entry::Occupied(mut before) if *before.get() != said => drop(before.insert(Said::Disputed)),
                Entry::Occupied(_) => {}
            }
        }
        Self { pods }
    }

    /// Of how many sandboxes it says something.
    #[must_use]
    pub fn count(&self) -> usize {
        self.pods.len()
    }

    /// What it says of a sandbox; `None` where that is nothing.
    #[must_use]
    pub fn get(&self, container_id: &ContainerId) -> Option<&Said> {
        self.pods.get(container_id.as_str())
    }

    /// Takes out what it says of a sandbox.
    pub fn take(&mut self, container_id: &ContainerId) -> Option<Said> {
        self.pods.remove(container_id.as_str())
    }

    /// Which pod a sandbox is of, if it says so.
    #[must_use]
    pub fn pod(&self, container_id: &ContainerId) -> Option<&Pod> {
        match self.get(container_id)? {
            Said::Of(pod) => Some(pod),
            Said::Disputed => None,
        }
    }
}

fn pod_of<'a>(mut words: impl Iterator<Item = &'a str>) -> Option<Pod> {
    let pod = Pod {
        namespace: Some(PodName::new(words.next()?).ok()?),
        name: Some(PodName::new(words.next()?).ok()?),
        uid: Some(PodUid::new(words.next()?).ok()?),
    };
    words.next().is_none().then_some(pod)
}

/// What is written of a sandbox; nothing where its pod is not known whole.
fn line_of(container_id: &ContainerId, pod: &Pod) -> Option<String> {
    let Pod { namespace: Some(namespace), name: Some(name), uid: Some(uid) } = pod else { return None };
    Some(format!("{container_id} {namespace} {name} {uid}\n"))
}

impl StateDir {
    fn index_file(&self) -> PathBuf {
        self.path.join(".index")
    }

    /// Reads the index; one that cannot be read says nothing.
    #[must_use]
    pub fn index(&self) -> PodIndex {
        let text = read_regular(&self.index_file(), FILE_MAX).unwrap_or_default();
        PodIndex::read(&String::from_utf8_lossy(&text))
    }

    /// Says of sandboxes which pods they are of, as far as that is known whole. That it cannot be written down is no failure of
    /// whoever asks.
    pub fn index_pods<'a>(&self, sandboxes: impl IntoIterator<Item = (&'a ContainerId, &'a Pod)>) {
        let lines: String = sandboxes.into_iter().filter_map(|(id, pod)| line_of(id, pod)).collect();
        if lines.is_empty() {
            return;
        }
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK);
        let Ok(mut file) = options.open(self.index_file()) else { return };
        if file.metadata().is_ok_and(|metadata| metadata.len() > LENGTH_MAX) {
            let _ = file.set_len(0);
        }
        // In one call: what others append comes before it or behind.
        let _ = file.write_all(lines.as_bytes());
    }

    /// Forgets those that have no records any more, and what cannot be understood.
    pub fn tidy_index(&self) {
        // What was in its place before.
        let _ = fs::remove_dir_all(self.path.join("index"));
        let Ok(sandboxes) = self.sandboxes() else { return };
        let index = self.index();
        let lines: String = sandboxes.iter().filter_map(|id| line_of(id, index.pod(id)?)).collect();
        let path = self.index_file();
        if lines.is_empty() {
            let _ = fs::remove_file(&path);
            return;
        }
        // A line that is appended meanwhile is lost: its records are read, and it is written anew.
        let _ = replace(&path, &path.with_extension("new"), lines.as_bytes(), Durability::UntilReboot, |_| Ok(()));
    }

    /// Removes the index behind the last sandbox: nothing of pods that are gone stays. The line of one that is added meanwhile may
    /// go with it, and is written anew.
    pub(super) fn remove_index_behind_last(&self) {
        if fs::read_dir(self.attachments()).is_ok_and(|mut sandboxes| sandboxes.next().is_none()) {
            let _ = fs::remove_file(self.index_file());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::{AttachmentId, IfName};

    #[test]
    fn nothing_stays_behind_the_last_sandbox() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(&directory.path().join("state")).unwrap();
        state.tidy_index();
        assert!(!state.index_file().exists(), "there was nothing to be said");
        let ids = ["a1", "a2"].map(|id| ContainerId::new(id).unwrap());
        for id in &ids {
            fs::create_dir_all(state.attachments().join(id.as_str())).unwrap();
            state.index_pods([(id, &pod("shop", "web", "uid-1"))]);
        }
        for (id, stays) in ids.iter().zip([true, false]) {
            let attachment = AttachmentId { container_id: id.clone(), ifname: IfName::new("eth0").unwrap() };
            state.remove_record(&attachment).unwrap();
            assert_eq!(state.index_file().exists(), stays, "{id}");
        }
    }

    fn pod(namespace: &str, name: &str, uid: &str) -> Pod {
        Pod { namespace: PodName::new(namespace).ok(), name: PodName::new(name).ok(), uid: PodUid::new(uid).ok() }
    }

    #[test]
    fn only_what_all_lines_say_alike_and_whole_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(&directory.path().join("state")).unwrap();
        let (one, other) = (ContainerId::new("a1").unwrap(), ContainerId::new("a2").unwrap());
        let (web, db) = (pod("shop", "web", "uid-1"), pod("shop", "db", "uid-2"));
        assert_eq!(state.index().get(&one), None);
        state.index_pods([(&one, &Pod::default()), (&one, &Pod { uid: None, ..web.clone() })]);
        assert_eq!(state.index().get(&one), None, "it is not known whole");
        state.index_pods([(&one, &web), (&other, &db)]);
        state.index_pods([(&one, &web)]);
        assert_eq!((state.index().pod(&one), state.index().pod(&other)), (Some(&web), Some(&db)));
        state.index_pods([(&one, &pod("shop", "web", "uid-3"))]);
        assert_eq!(state.index().get(&one), Some(&Said::Disputed), "two records say different things");
        assert_eq!(state.index().pod(&other), Some(&db));
        fs::create_dir(state.attachments().join("a2")).unwrap();
        fs::create_dir(state.path().join("index")).unwrap();
        state.tidy_index();
        assert_eq!(fs::read_to_string(state.index_file()).unwrap(), "a2 shop db uid-2\n");
        assert!(!state.path().join("index").exists());
    }

    #[test]
    fn what_cannot_be_understood_says_nothing() {
        for text in ["a shop web", "a shop web uid more", "a", "a shop we/b uid", "a  web uid", "a shop web uid "] {
            assert_eq!(PodIndex::read(text).pod(&ContainerId::new("a").unwrap()), None, "{text:?}");
        }
        // A writer that was killed, and the next one behind it.
        let index = PodIndex::read("a shop wb shop db uid-2\nc shop db uid-2\n");
        assert_eq!(index.pod(&ContainerId::new("b").unwrap()), None);
        assert!(index.pod(&ContainerId::new("c").unwrap()).is_some());
    }

    #[test]
    fn one_that_is_long_is_begun_anew() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(&directory.path().join("state")).unwrap();
        fs::write(state.index_file(), "x".repeat(1024 * 1024 + 1)).unwrap();
        let id = ContainerId::new("a1").unwrap();
        state.index_pods([(&id, &pod("shop", "web", "uid-1"))]);
        assert_eq!(fs::read_to_string(state.index_file()).unwrap(), "a1 shop web uid-1\n");
    }
}
