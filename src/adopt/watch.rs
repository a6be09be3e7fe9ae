//! Adopts when the agent starts, and whenever the network configurations change: that is when the plugin gets its entry.

use std::thread;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::model::audit::Line;
use crate::node::state::StateDir;

use super::{Places, adopt_all};

/// Whoever writes a configuration may write more than once.
const SETTLE: Duration = Duration::from_millis(300);
const STACK: usize = 256 * 1024;

/// Goes on for as long as this process does, on a thread of its own; what it writes, the agent sees as it sees an ADD's.
pub fn keep_adopting(state: &StateDir, places: Places) {
    let state = state.clone();
    // Watched first, so that no change falls in between.
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC).and_then(|inotify| {
        let changes = AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        inotify.add_watch(&places.conf, changes).map(|_| inotify)
    });
    let adopting = move || {
        adopt_all(&state, &places);
        let inotify = match inotify {
            Ok(inotify) => inotify,
            Err(errno) => {
                let line = Line::new("not-watching").with("directory", places.conf.display()).with("error", errno);
                log::warn!("{line}");
                return;
            }
        };
        while inotify.read_events().is_ok() {
            thread::sleep(SETTLE);
            adopt_all(&state, &places);
        }
    };
    let started = thread::Builder::new().name("adopting".to_owned()).stack_size(STACK).spawn(adopting);
    if let Err(error) = started {
        log::warn!("{}", Line::new("not-adopted").with("error", error));
    }
}
