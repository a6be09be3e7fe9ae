//! Which pod a sandbox is of, without reading its records: a link for each sandbox, whose target says it.
//!
//! ```text
//! index/<container ID> -> <namespace>/<name>/<UID>
//! ```
//!
//! For finding by name on a node with a thousand sandboxes, where reading a thousand records takes longer than cutting one
//! off. Nothing rests on it: a sandbox without a link has its records read, one that is chosen by its link has them read
//! too, and whoever enforces reads them under its lock. It can be removed at any time. Only a pod whose namespace, name
//! and UID all of its records say alike has a link.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::PathBuf;

use crate::model::names::{ContainerId, Pod, PodName, PodUid};

use super::{StateDir, create_private};
use crate::node::files::entries;

impl StateDir {
    /// Where the links are.
    pub(super) fn index(&self) -> PathBuf {
        self.path.join("index")
    }

    /// What the index says of a sandbox; `None` where it says nothing that can be understood.
    #[must_use]
    pub fn indexed_pod(&self, container_id: &ContainerId) -> Option<Pod> {
        let target = fs::read_link(self.index().join(container_id.as_str())).ok()?;
        let mut parts = target.to_str()?.split('/');
        let pod = Pod {
            namespace: Some(PodName::new(parts.next()?).ok()?),
            name: Some(PodName::new(parts.next()?).ok()?),
            uid: Some(PodUid::new(parts.next()?).ok()?),
        };
        parts.next().is_none().then_some(pod)
    }

    /// Says of a sandbox which pod it is of; where that is not known whole, or was said otherwise before, nothing. That it
    /// cannot be written down is no failure of whoever asks.
    pub fn index_pod(&self, container_id: &ContainerId, pod: &Pod) {
        let path = self.index().join(container_id.as_str());
        let before = fs::symlink_metadata(&path).is_ok();
        let target = match pod {
            Pod { namespace: Some(namespace), name: Some(name), uid: Some(uid) } => format!("{namespace}/{name}/{uid}"),
            _ if before => return self.unindex(container_id),
            _ => return,
        };
        if before {
            if self.indexed_pod(container_id).as_ref() != Some(pod) {
                self.unindex(container_id);
            }
            return;
        }
        if let Err(error) = symlink(&target, &path)
            && error.kind() == io::ErrorKind::NotFound
            && create_private(&self.index()).is_ok()
        {
            let _ = symlink(&target, &path);
        }
    }

    /// Forgets those that have no records any more: whoever removed them was ended before it came to this.
    pub fn tidy_index(&self) {
        for name in entries(&self.index()).unwrap_or_default() {
            if !self.attachments().join(&name).exists() {
                let _ = fs::remove_file(self.index().join(&name));
            }
        }
    }

    /// Forgets a sandbox.
    pub(super) fn unindex(&self, container_id: &ContainerId) {
        let _ = fs::remove_file(self.index().join(container_id.as_str()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(namespace: &str, name: &str, uid: &str) -> Pod {
        Pod { namespace: PodName::new(namespace).ok(), name: PodName::new(name).ok(), uid: PodUid::new(uid).ok() }
    }

    #[test]
    fn only_what_all_records_say_alike_and_whole_is_said() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(&directory.path().join("state")).unwrap();
        let id = ContainerId::new("a1").unwrap();
        let web = pod("shop", "web", "uid-1");
        assert_eq!(state.indexed_pod(&id), None);
        state.index_pod(&id, &web);
        state.index_pod(&id, &web);
        assert_eq!(state.indexed_pod(&id), Some(web.clone()));
        state.index_pod(&id, &pod("shop", "web", "uid-2"));
        assert_eq!(state.indexed_pod(&id), None, "two records say different things");
        state.index_pod(&id, &web);
        state.index_pod(&id, &Pod::default());
        assert_eq!(state.indexed_pod(&id), None, "one record does not say it");
        state.index_pod(&id, &Pod { uid: None, ..web.clone() });
        assert_eq!(state.indexed_pod(&id), None, "it is not known whole");
        state.index_pod(&id, &web);
        state.tidy_index();
        assert_eq!(state.indexed_pod(&id), None, "it has no records");
    }

    #[test]
    fn what_cannot_be_understood_says_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(&directory.path().join("state")).unwrap();
        create_private(&state.index()).unwrap();
        for (name, target) in
            [("a", "shop/web"), ("b", "shop/web/uid/more"), ("c", "/etc/passwd"), ("d", "shop/we b/uid"), ("e", "//")]
        {
            symlink(target, state.index().join(name)).unwrap();
            assert_eq!(state.indexed_pod(&ContainerId::new(name).unwrap()), None, "{target}");
        }
        fs::write(state.index().join("f"), "shop/web/uid").unwrap();
        assert_eq!(state.indexed_pod(&ContainerId::new("f").unwrap()), None, "no link");
    }
}
