//! Shows something again whenever the state directory changes, and each second, until interrupted.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::node::state::StateDir;

use super::{Exit, Failure, print};

/// What counters show changes without a file changing.
const INTERVAL: Duration = Duration::from_secs(1);
/// A burst of changes is one.
const SETTLE: Duration = Duration::from_millis(50);

/// Shows what `render` gives. On a terminal it stays in place; elsewhere each new state is written once.
pub(super) fn watch(
    state: &StateDir,
    on_terminal: bool,
    render: impl Fn() -> Result<String, Failure>,
) -> Result<Exit, Failure> {
    let interrupted =
        signals().map_err(|errno| Failure::new(Exit::NotDone, format!("cannot wait for signals: {errno}")))?;
    let changed = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC).ok();
    if let Some(changed) = &changed {
        let flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_CLOSE_WRITE
            | AddWatchFlags::IN_MOVE
            | AddWatchFlags::IN_ONLYDIR;
        for directory in [state.isolated(), state.attachments()] {
            // What is not there yet is found by the clock.
            let _ = changed.add_watch(&directory, flags);
        }
    }
    let mut shown = None;
    loop {
        let text = render()?;
        if shown.as_ref() != Some(&text) {
            let before = if on_terminal { "\u{1b}[H\u{1b}[2J\u{1b}[3J" } else { "" };
            if !print(&format!("{before}{text}")) {
                return Ok(Exit::Done);
            }
            shown = Some(text);
        }
        let next = Instant::now() + INTERVAL;
        let mut wake_at = next;
        loop {
            let left = wake_at.saturating_duration_since(Instant::now());
            let timeout = PollTimeout::try_from(left + Duration::from_millis(1)).unwrap_or(PollTimeout::ZERO);
            let mut waiting = vec![PollFd::new(interrupted.as_fd(), PollFlags::POLLIN)];
            waiting.extend(changed.as_ref().map(|changed| PollFd::new(changed.as_fd(), PollFlags::POLLIN)));
            let ready = poll(&mut waiting, timeout).unwrap_or(0);
            let is_ready = |fd: &PollFd<'_>| fd.any().unwrap_or(false);
            if is_ready(&waiting[0]) {
                return Ok(Exit::Done);
            }
            if ready == 0 && Instant::now() >= wake_at {
                break;
            }
            if waiting.get(1).is_some_and(is_ready) {
                let _ = changed.as_ref().map(Inotify::read_events);
                wake_at = next.min(Instant::now() + SETTLE);
            }
        }
    }
}

pub(super) fn signals() -> nix::Result<SignalFd> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)
}
