//! Work that may never end, done where its not ending harms nothing.
//!
//! A page of a process' memory, or a file of a pod, can be one that a file system of that pod's own has to deliver, and it may
//! never answer. A process that closes such a file in an `execve` keeps whoever reads a link of its `/proc` waiting too
//! (seen on Linux 6.18). The thread that waits is left behind; it ends with this process, or with the pod.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

/// So many threads are left behind at most; then nothing of this sort is tried any more.
pub(super) const LOST_MAX: usize = 200;
/// After so many each further one is waited for a tenth as long.
const LOST_PATIENTLY: usize = 8;
const STACK: usize = 128 * 1024;

type Work = Box<dyn FnOnce() + Send>;

/// A thread that does one thing after the other, and another one after each that did not end.
#[derive(Debug, Default)]
pub(super) struct Guarded {
    worker: Option<Sender<Work>>,
    lost: usize,
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
    /// Does it, and waits for it no longer than `patience`.
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
        let sent = match self.worker.take() {
            Some(worker) => worker.send(work).map(|()| worker).map_err(|returned| returned.0),
            None => Err(work),
        };
        let worker = match sent {
            Ok(worker) => worker,
            Err(work) => {
                let worker = start().ok_or(NoResult::NotTried)?;
                worker.send(work).map_err(|_| NoResult::NotTried)?;
                worker
            }
        };
        let patience = if self.lost < LOST_PATIENTLY { patience } else { patience / 10 };
        match result.recv_timeout(patience) {
            Ok(result) => {
                self.worker = Some(worker);
                Ok(result)
            }
            Err(_) => {
                self.lost += 1;
                Err(NoResult::NoAnswer)
            }
        }
    }
}

fn start() -> Option<Sender<Work>> {
    let (sender, work): (Sender<Work>, Receiver<Work>) = channel();
    let thread = thread::Builder::new().name("guarded".to_owned()).stack_size(STACK);
    thread.spawn(move || work.into_iter().for_each(|work| work())).ok()?;
    Some(sender)
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
