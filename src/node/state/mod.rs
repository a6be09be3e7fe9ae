//! The state directory: marks, attachment records, locks.
//!
//! ```text
//! isolated/<key>                              marks, written by operators; presence isolates
//! attachments/<container ID>/<ifname>.json    records, written by ADD
//! .lock                                       one byte of it is locked for each sandbox at work
//! .agent.lock                                 held by the agent while it runs
//! ```
//!
//! Whoever can write here can release pods, so a directory that others than root can write is refused. Marks are
//! durable where this program writes them; records outlive nothing that their pod does not, and are not.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::time::{Duration, Instant, SystemTime};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use nix::libc;
use nix::unistd::gettid;
use thiserror::Error;

use crate::model::mark::answering_keys;
use crate::model::mark::{Mark, MarkContent};
use crate::model::names::{AttachmentId, ContainerId, IfName, Key, Pod};
use crate::model::record::Record;
use crate::model::records::SandboxRecords;

/// Where the state directory is when nobody says otherwise.
pub const DEFAULT_STATE_DIR: &str = "/var/lib/cni/quarantine";

/// A mark longer than this is not read, and seals.
const MARK_MAX: u64 = 4 * 1024 * 1024;

/// Why the state directory cannot be used.
#[derive(Debug, Error)]
pub enum StateError {
    /// Others than root can write a directory.
    #[error(
        "{path} can be written by others than root (owner {owner}, mode {mode:04o}), who could release pods; chown it to root and chmod it to 0700"
    )]
    Unsound {
        /// The directory.
        path: String,
        /// Its owner's user ID.
        owner: u32,
        /// Its mode bits.
        mode: u32,
    },
    /// There is no such directory.
    #[error("{path} does not exist; is quarantine installed on this node, and this its state directory?")]
    Absent {
        /// The directory.
        path: String,
    },
    /// There is something else.
    #[error("{path} is no directory; name another state directory, or make room for it")]
    NotADirectory {
        /// What should be a directory.
        path: String,
    },
    /// A file or directory could not be read or written.
    #[error("cannot {what} {path}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process is at work on the sandbox, for longer than is waited.
    #[error(
        "sandbox {container_id} has been locked for more than {seconds} s by {holder}; nothing was changed: try again, or end that process"
    )]
    Busy {
        /// The sandbox.
        container_id: ContainerId,
        /// How long was waited.
        seconds: u64,
        /// Who has the lock, as far as can be found.
        holder: String,
    },
    /// An agent is at work already.
    #[error("an agent is running on this node already: {holder}")]
    AgentRunning {
        /// Who holds the lock, as it said itself.
        holder: String,
    },
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StateError {
    let path = path.display().to_string();
    move |source| StateError::Io { what, path, source }
}

/// A state directory that was found sound.
#[derive(Debug, Clone)]
pub struct StateDir {
    path: PathBuf,
}

/// A record that cannot be read.
#[derive(Debug)]
pub struct DamagedRecord {
    /// The file.
    pub path: PathBuf,
    /// What is wrong.
    pub fault: String,
}

/// What holds a sandbox's lock; others wait until it is dropped, or its process ends.
#[derive(Debug)]
pub struct SandboxLock {
    _file: File,
}

impl StateDir {
    /// Opens the directory, making what is not there.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn open_or_create(path: &Path) -> Result<Self, StateError> {
        if !path.exists() {
            if let Some(parent) = path.parent() {
                // Whatever the umask: who can write above it can put another one in its place.
                DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed("create", parent))?;
            }
            create_private(path)?;
        }
        let state = Self { path: path.to_owned() };
        require_sound(&state.path)?;
        for directory in [state.isolated(), state.attachments()] {
            create_private(&directory)?;
            require_sound(&directory)?;
        }
        Ok(state)
    }

    /// Opens the directory as it is.
    ///
    /// # Errors
    /// [`StateError::Absent`] where it is not there.
    pub fn open(path: &Path) -> Result<Self, StateError> {
        let state = Self { path: path.to_owned() };
        require_sound(&state.path)?;
        for directory in [state.isolated(), state.attachments()] {
            match require_sound(&directory) {
                Ok(()) | Err(StateError::Absent { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(state)
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What tells the directory from another one in its place: device and inode.
    #[must_use]
    pub fn identity(&self) -> Option<(u64, u64)> {
        fs::metadata(&self.path).ok().map(|metadata| (metadata.dev(), metadata.ino()))
    }

    /// Where the marks are.
    #[must_use]
    pub fn isolated(&self) -> PathBuf {
        self.path.join("isolated")
    }

    /// Where the records are.
    #[must_use]
    pub fn attachments(&self) -> PathBuf {
        self.path.join("attachments")
    }

    // ---- marks

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
        match read_regular(&path, MARK_MAX) {
            Ok(content) => Some(Mark::read(&content)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(Err(format!("cannot be read: {error}"))),
        }
    }

    /// The bytes of a mark, `None` where they cannot be read.
    #[must_use]
    pub fn mark_content(&self, key: &Key) -> Option<Vec<u8>> {
        read_regular(&self.isolated().join(key.as_str()), MARK_MAX).ok()
    }

    /// Since when a mark has been there.
    #[must_use]
    pub fn marked_since(&self, key: &Key) -> Option<SystemTime> {
        fs::symlink_metadata(self.isolated().join(key.as_str())).and_then(|metadata| metadata.modified()).ok()
    }

    /// Writes a mark, durably.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn write_mark(&self, key: &Key, mark: &Mark) -> Result<(), StateError> {
        self.put_mark_back(key, format!("{}\n", mark.to_json()).as_bytes())
    }

    /// Writes a mark with the content that it had, durably.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn put_mark_back(&self, key: &Key, content: &[u8]) -> Result<(), StateError> {
        let directory = self.isolated();
        create_private(&directory)?;
        let path = directory.join(key.as_str());
        // Named after the thread alone: the longest key leaves no room for more.
        let temporary = directory.join(format!(".{}", gettid()));
        write_new(&temporary, content, true)
            .and_then(|()| fs::rename(&temporary, &path))
            .and_then(|()| sync_directory(&directory))
            .map_err(|source| {
                let _ = fs::remove_file(&temporary);
                failed("write the mark", &path)(source)
            })
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
        removed.and_then(|()| sync_directory(&self.isolated())).map_err(failed("remove the mark", &path))?;
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
        // A link first, since it does not replace; a stop in between leaves both, which isolates all the same.
        let carried = match fs::hard_link(&from, &to) {
            Ok(()) => match fs::remove_file(&from) {
                // Its operator was faster; but the link may be another one's mark by now, and in doubt it isolates.
                Err(error) if is_absent(&error) => Ok(()),
                removed => removed,
            },
            Err(error) if is_absent(&error) || error.kind() == io::ErrorKind::AlreadyExists => return Ok(false),
            // A directory in a mark's place cannot be linked, nor can anything on some file systems.
            Err(_) if fs::symlink_metadata(&to).is_err() => match fs::rename(&from, &to) {
                Err(error) if is_absent(&error) => return Ok(false),
                renamed => renamed,
            },
            Err(error) => Err(error),
        };
        carried.and_then(|()| sync_directory(&directory)).map(|()| true).map_err(failed("rename the mark", &from))
    }

    /// The marks that hold for a sandbox, the most specific first: its container ID's, then those of other container
    /// IDs of the same pod (its sandbox was recreated without a DEL, or before it), its UID's, its name's.
    ///
    /// # Errors
    /// [`StateError::Io`] where the marks cannot be listed: not to know is not to be released.
    pub fn marks_of(&self, container_id: &ContainerId, pod: &Pod) -> Result<Vec<(Key, MarkContent)>, StateError> {
        loop {
            // Twice, around the records: a DEL that carries a mark over links it to the UID's name, unlinks the container
            // ID's, and removes the record, in this order. Whichever of them a look misses, the other one sees.
            let mut marks = self.marks()?;
            // Most marks are by UID; what has no record is not looked for one by one.
            let with_records: BTreeSet<Key> =
                if marks.is_empty() { BTreeSet::new() } else { self.sandboxes()?.iter().map(Key::from).collect() };
            let pods: BTreeMap<Key, Pod> =
                marks.intersection(&with_records).filter_map(|key| Some((key.clone(), self.pod_of(key)?))).collect();
            marks.extend(self.marks()?);
            let keys = answering_keys(container_id, pod, &marks, |key| pods.get(key).cloned());
            let read: Option<Vec<_>> =
                keys.into_iter().map(|key| self.read_mark(&key).map(|mark| (key, mark))).collect();
            // One that is gone since was released, or carried over: look again.
            if let Some(marks) = read {
                return Ok(marks);
            }
        }
    }

    /// The pod of the sandbox that a mark names by its container ID.
    fn pod_of(&self, key: &Key) -> Option<Pod> {
        let container_id = ContainerId::new(key.as_str()).ok()?;
        Some(self.records_of(&container_id).0?.pod().clone())
    }

    // ---- records

    /// The container IDs that have records.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn sandboxes(&self) -> Result<Vec<ContainerId>, StateError> {
        Ok(names_in(&self.attachments())?.iter().filter_map(|name| ContainerId::new(name).ok()).collect())
    }

    /// The records of a sandbox, where any can be read, and those that cannot.
    #[must_use]
    pub fn records_of(&self, container_id: &ContainerId) -> (Option<SandboxRecords>, Vec<DamagedRecord>) {
        let directory = self.attachments().join(container_id.as_str());
        let (mut records, mut damaged) = (Vec::new(), Vec::new());
        for name in names_in(&directory).unwrap_or_default() {
            if !name.ends_with(".json") {
                continue;
            }
            let path = directory.join(&name);
            match read_regular(&path, MARK_MAX) {
                Ok(content) => match Record::read(&content) {
                    Ok(record) if record.container_id() == container_id => records.push(record),
                    Ok(_) => damaged.push(DamagedRecord { path, fault: "it is another sandbox's".to_owned() }),
                    Err(fault) => damaged.push(DamagedRecord { path, fault }),
                },
                // Gone in between.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => damaged.push(DamagedRecord { path, fault: error.to_string() }),
            }
        }
        (SandboxRecords::new(records), damaged)
    }

    /// Writes a record.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn write_record(&self, record: &Record) -> Result<(), StateError> {
        let directory = self.attachments().join(record.container_id().as_str());
        create_private(&directory)?;
        let path = directory.join(record_name(&record.id.ifname));
        let temporary = directory.join(format!(".{}.{}", record.id.ifname, process::id()));
        write_new(&temporary, record.to_json().to_string().as_bytes(), false)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|source| {
                let _ = fs::remove_file(&temporary);
                failed("write the record", &path)(source)
            })
    }

    /// Removes the record of an attachment, and the sandbox's directory with its last one.
    ///
    /// # Errors
    /// [`StateError::Io`]; not where it is gone already.
    pub fn remove_record(&self, attachment: &AttachmentId) -> Result<(), StateError> {
        let directory = self.attachments().join(attachment.container_id.as_str());
        let path = directory.join(record_name(&attachment.ifname));
        match fs::remove_file(&path) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("remove the record", &path)(error)),
        }
        // What an ADD that was killed left behind.
        for name in names_starting_with_dot(&directory) {
            let _ = fs::remove_file(directory.join(name));
        }
        match fs::remove_dir(&directory) {
            // Another attachment is left, or it is gone.
            Err(error) if !matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
                Err(failed("remove", &directory)(error))
            }
            _ => Ok(()),
        }
    }

    // ---- locks

    /// Waits for a sandbox's lock. It is a lock on one byte of one file, so that there is nothing to clean up for
    /// each sandbox, and it ends with the process, however that ends. Two sandboxes whose bytes are the same wait for
    /// each other, no more.
    ///
    /// # Errors
    /// [`StateError::Busy`] where another process still has it after `patience`, [`StateError::Io`].
    pub fn lock(&self, container_id: &ContainerId, patience: Duration) -> Result<SandboxLock, StateError> {
        self.lock_within(container_id, patience)?.ok_or_else(|| StateError::Busy {
            container_id: container_id.clone(),
            seconds: patience.as_secs(),
            holder: holder_of(&self.path.join(".lock")),
        })
    }

    /// Like [`StateDir::lock`], but waits no longer than `patience`; `None` where somebody still had it then.
    ///
    /// # Errors
    /// [`StateError::Io`].
    pub fn lock_within(
        &self,
        container_id: &ContainerId,
        patience: Duration,
    ) -> Result<Option<SandboxLock>, StateError> {
        /// There is no waiting for such a lock with a limit; it is tried again, after pauses that grow to this.
        const PAUSE_MAX: Duration = Duration::from_millis(8);
        let mut pause = Duration::from_micros(125);
        let (path, file) = self.open_lock()?;
        let range = lock_range(container_id);
        let deadline = Instant::now() + patience;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&range)) {
                Ok(_) => return Ok(Some(SandboxLock { _file: file })),
                Err(Errno::EAGAIN | Errno::EACCES) if Instant::now() >= deadline => return Ok(None),
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    std::thread::sleep(pause);
                    pause = PAUSE_MAX.min(2 * pause);
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(failed("lock", &path)(errno.into())),
            }
        }
    }

    fn open_lock(&self) -> Result<(PathBuf, File), StateError> {
        let path = self.path.join(".lock");
        let file = open_lock_file(&path)?;
        Ok((path, file))
    }

    /// Takes the agent's lock without waiting, and writes into it who has it.
    ///
    /// # Errors
    /// [`StateError::AgentRunning`] where another has it.
    pub fn lock_agent(&self) -> Result<Flock<File>, StateError> {
        let path = self.path.join(".agent.lock");
        let file = open_lock_file(&path)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(mut lock) => {
                let written =
                    lock.set_len(0).and_then(|()| lock.write_all(format!("process {}\n", process::id()).as_bytes()));
                written.map_err(failed("write", &path))?;
                Ok(lock)
            }
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut holder = String::new();
                let _ = file.read_to_string(&mut holder);
                Err(StateError::AgentRunning { holder: holder.trim().to_owned() })
            }
            Err((_, errno)) => Err(failed("lock", &path)(errno.into())),
        }
    }
}

/// Who holds locks on a file, in words. The kernel says nobody's number for such locks (`F_OFD_GETLK` gives -1); the open
/// files of each process say that it has one.
fn holder_of(path: &Path) -> String {
    let Ok(locked) = fs::metadata(path) else { return "a process that cannot be found".to_owned() };
    let holders: Vec<_> = names_in(Path::new("/proc"))
        .unwrap_or_default()
        .into_iter()
        .filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()) && *pid != process::id().to_string())
        .filter(|pid| has_locked(pid, &locked))
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
            format!("process {pid} ({})", name.trim().escape_debug())
        })
        .collect();
    if holders.is_empty() { "a process that cannot be found".to_owned() } else { holders.join(", ") }
}

fn has_locked(pid: &str, locked: &Metadata) -> bool {
    let open = names_in(&PathBuf::from(format!("/proc/{pid}/fd"))).unwrap_or_default();
    open.iter().any(|fd| {
        fs::metadata(format!("/proc/{pid}/fd/{fd}"))
            .is_ok_and(|file| (file.dev(), file.ino()) == (locked.dev(), locked.ino()))
            && fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).is_ok_and(|info| info.contains("lock:"))
    })
}

/// Where the record of an interface is in its sandbox's directory.
fn record_name(ifname: &IfName) -> std::ffi::OsString {
    use std::os::unix::ffi::OsStringExt;
    std::ffi::OsString::from_vec([ifname.as_bytes(), b".json"].concat())
}

fn create_private(path: &Path) -> Result<(), StateError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(failed("create", path)(error)),
    }
}

fn require_sound(path: &Path) -> Result<(), StateError> {
    let metadata: Metadata = match fs::metadata(path) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Err(StateError::Absent { path: path.display().to_string() });
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
            return Err(StateError::NotADirectory { path: path.display().to_string() });
        }
        Err(error) => return Err(failed("read", path)(error)),
    };
    if !metadata.is_dir() {
        return Err(StateError::NotADirectory { path: path.display().to_string() });
    }
    let mode = metadata.mode() & 0o7777;
    if metadata.uid() == 0 && mode & 0o022 == 0 {
        Ok(())
    } else {
        Err(StateError::Unsound { path: path.display().to_string(), owner: metadata.uid(), mode })
    }
}

fn names_in(directory: &Path) -> Result<Vec<String>, StateError> {
    let mut names = entries(directory).map_err(failed("list", directory))?;
    names.retain(|name| !name.starts_with('.') || name.ends_with(".json"));
    names.sort_unstable();
    Ok(names)
}

fn names_starting_with_dot(directory: &Path) -> Vec<String> {
    let mut names = entries(directory).unwrap_or_default();
    names.retain(|name| name.starts_with('.') && !name.ends_with(".json"));
    names
}

/// The names in a directory, none where there is no directory. One that is no UTF-8 is no name of ours.
fn entries(directory: &Path) -> io::Result<Vec<String>> {
    match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
        Ok(entries) => {
            entries.filter_map(|entry| entry.map(|entry| entry.file_name().into_string().ok()).transpose()).collect()
        }
    }
}

/// Reads a regular file. A symbolic link is not followed and a FIFO not waited for.
fn read_regular(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut content = Vec::new();
    file.take(limit + 1).read_to_end(&mut content)?;
    if content.len() as u64 > limit {
        return Err(io::Error::other(format!("it is longer than {limit} bytes")));
    }
    Ok(content)
}

fn write_new(path: &Path, content: &[u8], durably: bool) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(content)?;
    if durably { file.sync_all() } else { Ok(()) }
}

fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// The byte that is a sandbox's.
fn lock_range(container_id: &ContainerId) -> libc::flock {
    let hash = container_id
        .as_str()
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: i64::try_from(hash >> 2).unwrap_or_default(),
        l_len: 1,
        l_pid: 0,
    }
}

fn open_lock_file(path: &Path) -> Result<File, StateError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(path).map_err(failed("open", path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::PodUid;

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
