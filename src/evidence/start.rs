//! The process that collects: started right after the cut, and waited for by nobody who cuts.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::limits::Budget;
use crate::model::audit::Line;
use crate::model::subject::Subject;

/// Says that nothing is to be collected, where it is `off`, or within how many seconds.
const SWITCH: &str = "QUARANTINE_EVIDENCE";
/// So long after the kernel has ended a collector, one that is still there is past ending, and left alone.
const GRACE: Duration = Duration::from_secs(5);
/// So many collect at a time: they are to leave the processors to whoever isolates.
const AT_A_TIME: usize = 2;
const STACK: usize = 64 * 1024;

/// Whether evidence is to be collected: not where the environment says `QUARANTINE_EVIDENCE=off`.
#[must_use]
pub fn is_wanted() -> bool {
    std::env::var_os(SWITCH).is_none_or(|value| value != "off")
}

/// The time that a collection has, as the environment says: `QUARANTINE_EVIDENCE=60` gives it 60 seconds.
pub(super) fn budget() -> Budget {
    Budget::said(std::env::var_os(SWITCH).as_deref())
}

/// The program that runs here, whatever is in its place by now.
pub const THIS_PROGRAM: &str = "/proc/self/exe";

/// Starts a process of this program that collects the evidence of a sandbox or pod. Its standard output is closed when it ends.
///
/// # Errors
/// When no process can be started.
pub fn start(state_dir: &Path, subject: &Subject, log: &[String], says: Says) -> io::Result<Child> {
    start_of(Path::new(THIS_PROGRAM), state_dir, subject, log, says)
}

fn start_of(program: &Path, state_dir: &Path, subject: &Subject, log: &[String], says: Says) -> io::Result<Child> {
    let (output, error) = match says {
        Says::ToNobody => (Stdio::null(), Stdio::null()),
        Says::ToLog => (Stdio::piped(), Stdio::inherit()),
    };
    Command::new(program)
        .args(["evidence", &subject.to_string(), "--collect", "--state-dir"])
        .arg(state_dir)
        .args(log)
        .env_remove("CNI_COMMAND")
        .env_remove("NOTIFY_SOCKET")
        .env_remove("WATCHDOG_USEC")
        .stdin(Stdio::null())
        .stdout(output)
        .stderr(error)
        // What interrupts the one who isolates does not interrupt it.
        .process_group(0)
        .spawn()
}

/// Whom a collector speaks to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Says {
    /// Syslog, where it is; whoever started it does not wait.
    ToNobody,
    /// Also this process' standard error; whoever started it waits.
    ToLog,
}

/// Waits until it has ended, or is past ending.
fn wait(mut child: Child) {
    if let Some(output) = &child.stdout {
        let mut ends = [PollFd::new(output.as_fd(), PollFlags::POLLHUP)];
        let patience = PollTimeout::try_from(budget().end() + GRACE).unwrap_or(PollTimeout::MAX);
        // What it prints is little, and stays in the pipe.
        while poll(&mut ends, patience) == Err(nix::errno::Errno::EINTR) {}
        let ended = ends[0].revents().is_some_and(|events| events.contains(PollFlags::POLLHUP));
        if !ended {
            let _ = child.kill();
            let _ = child.try_wait();
            return;
        }
    }
    let _ = child.wait();
}

/// Collects in the background, a few at a time.
#[derive(Debug)]
pub struct Collectors {
    queue: Sender<Subject>,
    threads: Vec<thread::JoinHandle<()>>,
}

impl Collectors {
    /// Collectors for a state directory, processes of this `quarantine`, which are given these options of the log.
    ///
    /// # Errors
    /// When no thread can be started.
    pub fn new(program: PathBuf, state_dir: PathBuf, log: Vec<String>) -> io::Result<Self> {
        let (queue, due) = channel();
        let due = Arc::new(Mutex::new(due));
        let collector = |number| {
            let (program, state_dir, log, due) = (program.clone(), state_dir.clone(), log.clone(), due.clone());
            let thread = thread::Builder::new().name(format!("evidence-{number}")).stack_size(STACK);
            thread.spawn(move || {
                while let Some(subject) = next(&due) {
                    match start_of(&program, &state_dir, &subject, &log, Says::ToLog) {
                        Ok(child) => wait(child),
                        Err(error) => {
                            log::error!("{}", line_about("no-evidence", &subject).with("error", error));
                        }
                    }
                }
            })
        };
        Ok(Self { queue, threads: (0..AT_A_TIME).map(collector).collect::<io::Result<_>>()? })
    }

    /// Has the evidence of a sandbox or pod collected; does not wait.
    pub fn collect(&self, subject: Subject) {
        let _ = self.queue.send(subject);
    }

    /// Waits until all of it is.
    pub fn finish(self) {
        drop(self.queue);
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

/// The start of a line of the log: where there is no container, the pod's UID says whom it is about.
pub(super) fn line_about(event: &str, subject: &Subject) -> Line {
    let line = Line::new(event);
    match subject {
        Subject::Sandbox(container_id) => line.with("container", container_id),
        Subject::HostPod(uid) => line.with("container", "-").with("uid", uid),
    }
}

fn next(due: &Mutex<Receiver<Subject>>) -> Option<Subject> {
    due.lock().unwrap_or_else(PoisonError::into_inner).recv().ok()
}
