//! Work that may never end, done where its not ending harms nothing.
//!
//! A page of a process' memory, or a file of a pod, can be one that a file system of that pod's own has to deliver, and it may
//! never answer. A process that closes such a file in an `execve` keeps whoever reads a link of its `/proc` waiting too
//! (seen on Linux 6.18). The thread that waits is left behind; it ends with this process, or with the pod.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::Duration;

use nix::unistd::{Pid, gettid};

use super::limits::Budget;

/// So many threads are left behind at most; then nothing of this sort is tried any more.
pub(super) const LOST_MAX: usize = 200;
/// After so many each further one is waited for a tenth as long.
const LOST_PATIENTLY: usize = 8;
/// One that runs and waits for nobody is waited for so many times as long.
pub(super) const WAITS_MAX: usize = 20;
const STACK: usize = 128 * 1024;

type Work = Box<dyn FnOnce() + Send>;

/// A thread that does one thing after the other, and another one after each that did not end.
#[derive(Debug, Default)]
pub(super) struct Guarded {
    worker: Option<Worker>,
    lost: usize,
    budget: Budget,
}

#[derive(Debug)]
struct Worker {
    work: Sender<Work>,
    thread: Pid,
}

/// Why there is no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoResult {
    /// It did not end in time.
    NoAnswer,
    /// So many did not end before it that it was not tried.
    NotTried,
}

impl NoResult {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::NoAnswer => "no answer in time",
            Self::NotTried => "not tried, since too many before it gave no answer",
        }
    }
}

impl Guarded {
    pub(super) fn within(budget: Budget) -> Self {
        Self { budget, ..Self::default() }
    }

    /// Does it, and waits for it no longer than `patience`, which is that of the usual budget.
    pub(super) fn run<T: Send + 'static>(
        &mut self,
        patience: Duration,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, NoResult> {
        if self.lost >= LOST_MAX {
            return Err(NoResult::NotTried);
        }
        let (done, result) = channel();
        let work: Work = Box::new(move || drop(done.send(work())));
        let worker = match self.worker.take() {
            Some(worker) => worker,
            None => start().ok_or(NoResult::NotTried)?,
        };
        worker.work.send(work).map_err(|_| NoResult::NotTried)?;
        let patience = self.budget.patience(patience);
        let patience = if self.lost < LOST_PATIENTLY { patience } else { patience / 10 };
        for _ in 0..WAITS_MAX {
            match result.recv_timeout(patience) {
                Ok(result) => {
                    self.worker = Some(worker);
                    return Ok(result);
                }
                Err(RecvTimeoutError::Timeout) if runs(worker.thread) => {}
                Err(_) => break,
            }
        }
        self.lost += 1;
        Err(NoResult::NoAnswer)
    }
}

/// Whether a thread of this process runs, or would if it had a processor: then it waits for nobody, and the node is busy.
pub(super) fn runs(thread: Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/self/task/{thread}/status")).unwrap_or_default();
    status.lines().find_map(|line| line.strip_prefix("State:")).is_some_and(|state| state.trim_start().starts_with('R'))
}

fn start() -> Option<Worker> {
    let (sender, work): (Sender<Work>, Receiver<Work>) = channel();
    let (tell, told) = channel();
    let thread = thread::Builder::new().name("guarded".to_owned()).stack_size(STACK);
    let doing = move || {
        let _ = tell.send(gettid());
        work.into_iter().for_each(|work| work());
    };
    thread.spawn(doing).ok()?;
    Some(Worker { work: sender, thread: told.recv().ok()? })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_never_ends_holds_up_nothing_for_long() {
        let mut guarded = Guarded::default();
        assert_eq!(guarded.run(Duration::from_secs(10), || 1), Ok(1));
        let (_never, wait) = channel::<()>();
        let hung = guarded.run(Duration::from_millis(5), move || wait.recv().is_err());
        assert_eq!(hung, Err(NoResult::NoAnswer));
        assert_eq!(guarded.run(Duration::from_secs(10), || 2), Ok(2));
    }

    #[test]
    fn so_many_that_hang_are_not_followed_by_more() {
        let mut guarded = Guarded::default();
        let (never, wait) = channel::<()>();
        let wait = std::sync::Arc::new(std::sync::Mutex::new(wait));
        for _ in 0..LOST_MAX {
            let wait = wait.clone();
            let _ = guarded.run(Duration::from_millis(1), move || wait.lock().is_ok_and(|wait| wait.recv().is_err()));
        }
        assert_eq!(guarded.run(Duration::from_secs(10), || 1), Err(NoResult::NotTried));
        drop(never);
    }
}
