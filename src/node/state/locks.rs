//! Locks: one for each sandbox at work, one for the agent. They end with their process, however that ends.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, Flock, FlockArg, fcntl};
use nix::libc;

use crate::model::fingerprint::fingerprint;
use crate::model::names::{ContainerId, PodUid};

use super::names_in;
use super::{StateDir, StateError, failed};

const NOBODY_FOUND: &str = "a process that cannot be found";

/// What holds a sandbox's lock; others wait until it is dropped, or its process ends.
#[derive(Debug)]
pub struct SandboxLock {
    _file: File,
}

impl StateDir {
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
        self.lock_name_within(container_id.as_str(), patience)
    }

    /// Waits for the lock of a pod in the node's network namespace, which has no sandbox of its own.
    ///
    /// # Errors
    /// [`StateError::PodBusy`] where another process still has it after `patience`, [`StateError::Io`].
    pub fn lock_host_pod(&self, uid: &PodUid, patience: Duration) -> Result<SandboxLock, StateError> {
        // No container ID has a colon.
        self.lock_name_within(&format!("host:{uid}"), patience)?.ok_or_else(|| StateError::PodBusy {
            uid: uid.clone(),
            seconds: patience.as_secs(),
            holder: holder_of(&self.path.join(".lock")),
        })
    }

    fn lock_name_within(&self, name: &str, patience: Duration) -> Result<Option<SandboxLock>, StateError> {
        /// There is no waiting for such a lock with a limit; it is tried again, after pauses that grow to this.
        const PAUSE_MAX: Duration = Duration::from_millis(8);
        let mut pause = Duration::from_micros(125);
        let (path, file) = self.open_lock()?;
        let range = lock_range(name);
        let deadline = Instant::now() + patience;
        loop {
            match fcntl(&file, FcntlArg::F_OFD_SETLK(&range)) {
                Ok(_) => return Ok(Some(SandboxLock { _file: file })),
                Err(Errno::EAGAIN | Errno::EACCES) if Instant::now() >= deadline => return Ok(None),
                Err(Errno::EAGAIN | Errno::EACCES) => {
                    thread::sleep(pause);
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

impl StateDir {
    /// Whether an agent seems to run: for what is said to a person, not for what is decided. The lock is not tried, for an
    /// agent that starts meanwhile would find it taken.
    #[must_use]
    pub fn has_agent(&self) -> bool {
        let said = fs::read_to_string(self.path.join(".agent.lock")).unwrap_or_default();
        let process = said.trim().strip_prefix("process ").filter(|pid| pid.bytes().all(|byte| byte.is_ascii_digit()));
        process.is_some_and(|pid| !pid.is_empty() && Path::new("/proc").join(pid).exists())
    }
}

/// [`search_holder`], for as long as that is bearable: whoever asks the kernel about a process that hangs in the middle of an
/// execve (closing a file of a FUSE that never answers) hangs with it, and a pod can have such a process.
fn holder_of(path: &Path) -> String {
    const PATIENCE: Duration = Duration::from_secs(2);
    let (found, finding) = mpsc::channel();
    let path = path.to_owned();
    let search = thread::Builder::new().name("lock-holder".to_owned()).spawn(move || {
        let _ = found.send(search_holder(&path));
    });
    let holder = search.ok().and_then(|_| finding.recv_timeout(PATIENCE).ok());
    holder.unwrap_or_else(|| NOBODY_FOUND.to_owned())
}

/// Who holds locks on a file, in words. The kernel says nobody's number for such locks (`F_OFD_GETLK` gives -1); the open
/// files of each process say that it has one.
fn search_holder(path: &Path) -> String {
    let Ok(locked) = fs::metadata(path) else { return NOBODY_FOUND.to_owned() };
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
    if holders.is_empty() { NOBODY_FOUND.to_owned() } else { holders.join(", ") }
}

fn has_locked(pid: &str, locked: &Metadata) -> bool {
    let open = names_in(&PathBuf::from(format!("/proc/{pid}/fd"))).unwrap_or_default();
    open.iter().any(|fd| {
        fs::metadata(format!("/proc/{pid}/fd/{fd}"))
            .is_ok_and(|file| (file.dev(), file.ino()) == (locked.dev(), locked.ino()))
            && fs::read_to_string(format!("/proc/{pid}/fdinfo/{fd}")).is_ok_and(|info| info.contains("lock:"))
    })
}

/// The byte that is a sandbox's.
fn lock_range(name: &str) -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: i64::try_from(fingerprint(name) >> 2).unwrap_or_default(),
        l_len: 1,
        l_pid: 0,
    }
}

fn open_lock_file(path: &Path) -> Result<File, StateError> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(0o600).custom_flags(libc::O_NOFOLLOW);
    options.open(path).map_err(failed("open", path))
}
