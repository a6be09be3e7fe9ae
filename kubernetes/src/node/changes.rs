//! Tells when somebody changes what is in a directory, so that what a person or a daemon does on the node is seen at once.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::mpsc;

/// How long until the directories are watched again, where they cannot be.
const PAUSE: Duration = Duration::from_secs(2);

/// A message for each change of what is in these directories. Where they cannot be watched there are none, and a regular look
/// has to do.
pub fn watch(directories: Vec<PathBuf>) -> mpsc::Receiver<()> {
    // One is enough: what changed is looked up.
    let (changed, changes) = mpsc::channel(1);
    thread::spawn(move || {
        let mut said = false;
        while !changed.is_closed() {
            if let Err(errno) = follow(&directories, &changed)
                && !std::mem::replace(&mut said, true)
            {
                log::warn!("event=unwatched directories={directories:?} error={errno}");
            }
            thread::sleep(PAUSE);
            // What happened while nobody looked.
            let _ = changed.try_send(());
        }
    });
    changes
}

fn follow(directories: &[PathBuf], changed: &mpsc::Sender<()>) -> nix::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let flags = AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_DELETE
        | AddWatchFlags::IN_MOVE
        | AddWatchFlags::IN_CLOSE_WRITE
        | AddWatchFlags::IN_DELETE_SELF
        | AddWatchFlags::IN_MOVE_SELF;
    for directory in directories {
        inotify.add_watch(directory, flags)?;
    }
    loop {
        let events = inotify.read_events()?;
        let of_files = |event: &nix::sys::inotify::InotifyEvent| {
            event.name.as_ref().is_none_or(|name| !name.to_string_lossy().starts_with('.'))
        };
        if events.iter().any(of_files) {
            let _ = changed.try_send(());
        }
        let ended = AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        if changed.is_closed() || events.iter().any(|event| event.mask.intersects(ended)) {
            return Ok(());
        }
    }
}
