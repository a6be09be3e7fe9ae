//! How much a collection may take: time, memory, processor, files. A hostile pod decides how much there is to collect.

use std::ffi::OsStr;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::resource::{Resource, setrlimit};

const MEMORY: u64 = 384 * 1024 * 1024;
/// Longer than any file that is meant.
const FILE_LENGTH: u64 = 256 * 1024 * 1024;
const OPEN_FILES: u64 = 512;

/// Sockets of each sort.
pub(super) const SOCKETS: usize = 20_000;
/// The same of the node, where those of a pod with hostNetwork are among them.
pub(super) const SOCKETS_OF_NODE: usize = 200_000;
/// Processes of the node that are looked at to find the pod's.
pub(super) const PROCESSES_OF_NODE: usize = 400_000;
/// Processes of the pod.
pub(super) const PROCESSES: usize = 16_384;
/// Open files of one process, and of all together.
pub(super) const OPEN_FILES_OF_ONE: usize = 16_384;
pub(super) const OPEN_FILES_OF_ALL: usize = 200_000;
/// So many of them are looked at before it is seen whether they answer.
pub(super) const LINKS_AT_A_TIME: usize = 512;
/// Mapped files of one process.
pub(super) const MAPPED_FILES: usize = 512;
/// Arguments, and names in the environment, of one process.
pub(super) const STRINGS: usize = 256;
/// One of them.
pub(super) const STRING_LENGTH: usize = 4_096;
/// A file of `/proc`.
pub(super) const PROC_FILE: u64 = 2 * 1024 * 1024;
/// Mounts of one namespace, and mount namespaces.
pub(super) const MOUNTS: usize = 4_096;
pub(super) const MOUNT_NAMESPACES: usize = 64;
/// Routes, neighbours, rules, filters, elements.
pub(super) const OBJECTS: usize = 4_096;
/// Tracked flows.
pub(super) const FLOWS: usize = 20_000;
/// An executable that is hashed.
pub(super) const HASHED: u64 = 256 * 1024 * 1024;
/// Executables that are copied: one, and how many.
pub(super) const COPIED: u64 = 64 * 1024 * 1024;
pub(super) const COPIES: usize = 32;

/// How long is waited for a page of a process' memory, in the usual time ([`Budget::patience`]).
pub(super) const MEMORY_PATIENCE: Duration = Duration::from_millis(500);
/// How long is waited for a link of `/proc`.
pub(super) const LINK_PATIENCE: Duration = Duration::from_millis(100);
/// How long is waited for a file.
pub(super) const FILE_PATIENCE: Duration = Duration::from_secs(3);

/// The time that a collection has. After it a collection only closes what it has begun; after three times of it the kernel ends
/// the process, whatever it waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Budget {
    seconds: u32,
}

impl Default for Budget {
    fn default() -> Self {
        Self { seconds: Self::USUAL_SECONDS }
    }
}

impl Budget {
    const USUAL_SECONDS: u32 = 20;

    /// The usual one, or as many seconds as are said here, from one of them to an hour's.
    pub(super) fn said(said: Option<&OsStr>) -> Self {
        let seconds = said.and_then(OsStr::to_str).and_then(|said| said.parse().ok());
        Self { seconds: seconds.filter(|seconds| (1..=3600).contains(seconds)).unwrap_or(Self::USUAL_SECONDS) }
    }

    /// When the kernel ends the process.
    pub(super) fn end(self) -> Duration {
        Duration::from_secs(u64::from(self.alarm()))
    }

    fn alarm(self) -> u32 {
        3 * self.seconds
    }

    /// So much as is waited for something in the usual time, in this one: who has more of it is not sooner taken for hanging.
    pub(super) fn patience(self, usual: Duration) -> Duration {
        usual * self.seconds / Self::USUAL_SECONDS
    }
}

/// When a collection has to end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline {
    budget: Budget,
    started: Instant,
}

impl Deadline {
    pub(super) fn start(budget: Budget) -> Self {
        Self { budget, started: Instant::now() }
    }

    pub(super) fn budget(self) -> Budget {
        self.budget
    }

    pub(super) fn is_over(self) -> bool {
        self.started.elapsed() >= Duration::from_secs(u64::from(self.budget.seconds))
    }

    pub(super) fn elapsed(self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn said(self) -> String {
        format!("more than {} s", self.budget.seconds)
    }
}

/// Holds this process to them, and lets every other one go first.
pub(super) fn hold_this_process(budget: Budget) {
    let limits = [
        (Resource::RLIMIT_AS, MEMORY),
        (Resource::RLIMIT_CPU, u64::from(budget.alarm())),
        (Resource::RLIMIT_FSIZE, FILE_LENGTH),
        (Resource::RLIMIT_NOFILE, OPEN_FILES),
        // What was read of a pod's processes is not to be left in a core file.
        (Resource::RLIMIT_CORE, 0),
    ];
    for (resource, limit) in limits {
        // One that is lower already holds.
        let _ = setrlimit(resource, limit, limit);
    }
    // An isolation matters more, should memory run out.
    let _ = std::fs::write("/proc/self/oom_score_adj", "800");
    // SAFETY: it takes numbers alone, and changes the niceness of this process.
    let _ = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
    // SAFETY: it takes a number alone; the signal ends this process, which is what it is for.
    let _ = unsafe { libc::alarm(budget.alarm()) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_budget_is_the_usual_one_unless_another_is_said() {
        for (said, seconds) in [(None, 20), (Some("on"), 20), (Some("0"), 20), (Some("300"), 300), (Some("3601"), 20)] {
            let budget = Budget::said(said.map(OsStr::new));
            assert_eq!((budget.seconds, budget.end()), (seconds, Duration::from_secs(u64::from(3 * seconds))));
        }
        let patience = Budget { seconds: 40 }.patience(LINK_PATIENCE);
        assert_eq!(patience, 2 * LINK_PATIENCE);
    }
}
