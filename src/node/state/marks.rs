//! Marks: operators' files, whose presence isolates.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::SystemTime;

use nix::unistd::gettid;

use crate::model::fault::Fault;
use crate::model::mark::{Mark, MarkContent, answering_keys};
use crate::model::names::{ContainerId, Key, Pod};

use super::{FILE_MAX, StateDir, StateError, create_private, failed, names_in};
use crate::node::files::{Durability, entries, read_regular, replace, sync, sync_directory_of};

/// Whether two names are of one file, and not the same name.
fn is_one_file(one: &Path, other: &Path) -> bool {
    let identity = |path| fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    one != other && matches!((identity(one), identity(other)), (Ok(one), Ok(other)) if one == other)
}

/// The marks that there were when they were listed.
#[derive(Debug, Default)]
pub struct ListedMarks {
    marks: BTreeSet<Key>,
    /// Of those that name a sandbox by its container ID, its pod.
    pods: BTreeMap<Key, Pod>,
}

/// So many names are looked for one by one.
const ASKED_ONE_BY_ONE: usize = 64;

impl StateDir {
    /// The marks that there are. Names that begin with a dot are none; one that no sandbox can answer to is none
    /// either, and is said in the log by who lists.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn marks(&self) -> Result<BTreeSet<Key>, StateError> {
        Ok(names_in(&self.isolated())?.iter().filter_map(|name| Key::new(name).ok()).collect())
    }

    /// What a mark says, `None` where there is none.
    #[must_use]
    pub fn read_mark(&self, key: &Key) -> Option<MarkContent> {
        let path = self.isolated().join(key.as_str());
        match read_regular(&path, FILE_MAX) {
            Ok(content) => Some(Mark::read(&content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(Err(Fault::Unreadable(error.to_string()))),
        }
    }

    /// The bytes of a mark, `None` where they cannot be read.
    #[must_use]
    pub fn mark_content(&self, key: &Key) -> Option<Vec<u8>> {
        read_regular(&self.isolated().join(key.as_str()), FILE_MAX).ok()
    }

    /// Since when a mark has been there.
    #[must_use]
    pub fn marked_since(&self, key: &Key) -> Option<SystemTime> {
        fs::symlink_metadata(self.isolated().join(key.as_str())).and_then(|metadata| metadata.modified()).ok()
    }

    /// Writes a mark with the content that it had, durably.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn put_mark_back(&self, key: &Key, content: &[u8]) -> Result<(), StateError> {
        self.replace_mark(key, content, Durability::Durable)
    }

    /// Writes a mark that everybody sees at once and that the disk may not have yet: whoever cuts a pod off need not wait for
    /// the disk. Nobody is to be told that it is done before [`Self::keep_mark`].
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn show_mark(&self, key: &Key, mark: &Mark) -> Result<(), StateError> {
        self.replace_mark(key, format!("{}\n", mark.to_json()).as_bytes(), Durability::UntilReboot)
    }

    /// Has the disk keep a mark. One that is gone since was released, and is not missed.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn keep_mark(&self, key: &Key) -> Result<(), StateError> {
        let path = self.isolated().join(key.as_str());
        match sync(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            kept => kept.map_err(failed("keep the mark", &path)),
        }
    }

    fn replace_mark(&self, key: &Key, content: &[u8], durability: Durability) -> Result<(), StateError> {
        let directory = self.isolated();
        create_private(&directory)?;
        let path = directory.join(key.as_str());
        // Named after the thread alone: the longest key leaves no room for more.
        let temporary = directory.join(format!(".{}", gettid()));
        replace(&path, &temporary, content, durability, |_| Ok(())).map_err(failed("write the mark", &path))
    }

    /// Removes a mark, durably; says whether there was one.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn remove_mark(&self, key: &Key) -> Result<bool, StateError> {
        let path = self.isolated().join(key.as_str());
        let removed = match fs::remove_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            // A directory in a mark's place isolates too, and can be released too.
            Err(_) if path.is_dir() => fs::remove_dir(&path),
            result => result,
        };
        removed.and_then(|()| sync_directory_of(&path)).map_err(failed("remove the mark", &path))?;
        Ok(true)
    }

    /// Renames the mark of a sandbox to one of its pod, durably; where the pod has one, both stay as they are. Says
    /// whether it was renamed.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn carry_mark_over(&self, from: &ContainerId, to: &Key) -> Result<bool, StateError> {
        let directory = self.isolated();
        let (from, to) = (directory.join(from.as_str()), directory.join(to.as_str()));
        let is_absent = |error: &io::Error| error.kind() == io::ErrorKind::NotFound;
        // A link first, since it does not replace; a stop in between leaves both, which isolates all the same, and the
        // next one finishes it.
        let carried = match fs::hard_link(&from, &to) {
            Ok(()) => match fs::remove_file(&from) {
                // Its operator was faster; but the link may be another one's mark by now, and in doubt it isolates.
                Err(error) if is_absent(&error) => Ok(()),
                removed => removed,
            },
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && is_one_file(&from, &to) => {
                fs::remove_file(&from)
            }
            Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            // A directory in a mark's place cannot be linked, nor can anything on some file systems.
            Err(_) if fs::symlink_metadata(&to).is_err() => match fs::rename(&from, &to) {
                Err(error) if is_absent(&error) => return Ok(false),
                renamed => renamed,
            },
            Err(error) => Err(error),
        };
        carried.and_then(|()| sync_directory_of(&from)).map(|()| true).map_err(failed("rename the mark", &from))
    }

    /// The marks that hold for a sandbox, the most specific first: its container ID's, then those of other container
    /// IDs of the same pod (its sandbox was recreated without a DEL, or before it), its UID's, its name's.
    ///
    /// # Errors
    /// [`StateError::Io`] where the marks cannot be listed: not to know is not to be released.
    pub fn marks_of(&self, container_id: &ContainerId, pod: &Pod) -> Result<Vec<(Key, MarkContent)>, StateError> {
        loop {
            // One that is gone since was released, or carried over: look again.
            if let Some(marks) = self.marks_among(&self.list_marks()?, container_id, pod) {
                return Ok(marks);
            }
        }
    }

    /// All marks of the node, for asking whose they are by [`Self::marks_among`].
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn list_marks(&self) -> Result<ListedMarks, StateError> {
        // Twice, around the records: a DEL that carries a mark over links it to the UID's name, unlinks the container
        // ID's, and removes the record, in this order. Whichever of them a look misses, the other one sees.
        let names = entries(&self.isolated()).map_err(failed("list", &self.isolated()))?;
        // What the kernel says of an empty directory is of one moment: nobody was marked then.
        if names.is_empty() {
            return Ok(ListedMarks::default());
        }
        let mut marks: BTreeSet<Key> = names.iter().filter_map(|name| Key::new(name).ok()).collect();
        let with_records = self.with_records(&marks)?;
        let pods = with_records.into_iter().filter_map(|key| Some((key.clone(), self.pod_of(key)?))).collect();
        marks.extend(self.marks()?);
        Ok(ListedMarks { marks, pods })
    }

    /// Those of the listed marks that hold for a sandbox, as [`Self::marks_of`] gives them; `None` where one of them is gone since.
    #[must_use]
    pub fn marks_among(
        &self,
        ListedMarks { marks, pods }: &ListedMarks,
        container_id: &ContainerId,
        pod: &Pod,
    ) -> Option<Vec<(Key, MarkContent)>> {
        let keys = answering_keys(container_id, pod, marks, |key| pods.get(key).cloned());
        keys.into_iter().map(|key| self.read_mark(&key).map(|mark| (key, mark))).collect()
    }

    /// The marks that name a sandbox with records by its container ID. Most marks are by UID: where there are many, it is
    /// the sandboxes that are listed.
    fn with_records<'a>(&self, marks: &'a BTreeSet<Key>) -> Result<Vec<&'a Key>, StateError> {
        if marks.len() > ASKED_ONE_BY_ONE {
            let sandboxes: BTreeSet<Key> = self.sandboxes()?.iter().map(Key::from).collect();
            return Ok(marks.iter().filter(|key| sandboxes.contains(*key)).collect());
        }
        let has_records = |key: &Key| {
            let path = self.attachments().join(key.as_str());
            match fs::symlink_metadata(&path) {
                Ok(metadata) => Ok(metadata.is_dir()),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
                Err(error) => Err(failed("look at", &path)(error)),
            }
        };
        marks.iter().filter_map(|key| has_records(key).map(|has| has.then_some(key)).transpose()).collect()
    }

    /// The pod of the sandbox that a mark names by its container ID.
    fn pod_of(&self, key: &Key) -> Option<Pod> {
        let container_id = ContainerId::new(key.as_str()).ok()?;
        Some(self.records_of(&container_id).0?.pod().clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::PodUid;
    use crate::model::record::Record;

    #[test]
    fn a_mark_that_is_shown_holds_before_the_disk_has_it_and_one_that_is_gone_is_not_missed() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(&directory.path().join("state")).unwrap();
        let key = Key::new("uid-1").unwrap();
        let mark = Mark { reason: Some("beacon".into()), ..Mark::default() };
        state.show_mark(&key, &mark).unwrap();
        assert_eq!(state.read_mark(&key), Some(Ok(mark)));
        state.keep_mark(&key).unwrap();
        assert!(state.remove_mark(&key).unwrap());
        state.keep_mark(&key).unwrap();
        assert_eq!(state.read_mark(&key), None);
    }

    /// A DEL was killed between the two: the next one finds both, and takes the container ID's away.
    #[test]
    fn a_mark_that_was_half_carried_over_is_finished_and_another_s_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(&directory.path().join("state")).unwrap();
        let (id, uid) = (ContainerId::new("old").unwrap(), Key::new("uid-1").unwrap());
        let path = |key: &str| state.isolated().join(key);
        fs::write(path("old"), "").unwrap();
        fs::hard_link(path("old"), path("uid-1")).unwrap();
        assert!(state.carry_mark_over(&id, &uid).unwrap());
        assert!(state.marks().unwrap().iter().eq([&uid]));
        fs::write(path("old"), "").unwrap();
        assert!(!state.carry_mark_over(&id, &uid).unwrap());
        assert_eq!(state.marks().unwrap().len(), 2);
    }

    /// What a DEL does to the mark of the old sandbox, while the ADD of the new one looks.
    #[test]
    fn a_mark_that_is_carried_over_is_never_missed() {
        let directory = tempfile::tempdir().unwrap();
        let state = StateDir::open_or_create(&directory.path().join("state")).unwrap();
        let (old, new) = (ContainerId::new("old").unwrap(), ContainerId::new("new").unwrap());
        let uid = PodUid::new("uid-1").unwrap();
        let record = Record::read(
            br#"{"network": "n", "containerID": "old", "ifname": "eth0", "netns": "/x", "netnsCookie": 1,
                 "pod": {"uid": "uid-1"}, "policy": {}, "hostGuard": "auto", "interfaces": []}"#,
        )
        .unwrap();
        let pod = Pod { uid: Some(uid.clone()), ..Pod::default() };
        let mark = |key: &Key| fs::write(state.isolated().join(key.as_str()), "").unwrap();
        for _ in 0..300 {
            state.write_record(&record).unwrap();
            mark(&Key::from(&old));
            std::thread::scope(|scope| {
                let deleted = scope.spawn(|| {
                    assert!(state.carry_mark_over(&old, &Key::from(&uid)).unwrap());
                    state.remove_record(&record.id).unwrap();
                });
                while !deleted.is_finished() {
                    assert!(!state.marks_of(&new, &pod).unwrap().is_empty());
                }
            });
            assert!(state.remove_mark(&Key::from(&uid)).unwrap());
        }
    }
}
