//! Tells when somebody changes what is in a directory, so that what a person or a daemon does on the node is seen at once.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::sync::mpsc;

/// How long until the directories are watched again, where they cannot be.
const PAUSE: Duration = Duration::from_secs(2);

/// What has changed in one of the directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Changed {
    /// What has this name.
    Named(String),
    /// Nobody knows what.
    Anything,
}

/// A message for each change of what is in these directories. Where they cannot be watched there are none, and a regular look
/// has to do.
pub fn watch(directories: Vec<PathBuf>) -> mpsc::UnboundedReceiver<Changed> {
    let (changed, changes) = mpsc::unbounded_channel();
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
            let _ = changed.send(Changed::Anything);
        }
    });
    changes
}

fn follow(directories: &[PathBuf], changed: &mpsc::UnboundedSender<Changed>) -> nix::Result<()> {
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
        for event in &events {
            let what = match &event.name {
                // A temporary file is none of ours to look at.
                Some(name) if name.as_encoded_bytes().starts_with(b".") => continue,
                Some(name) => name.to_str().map_or(Changed::Anything, |name| Changed::Named(name.to_owned())),
                None => Changed::Anything,
            };
            let _ = changed.send(what);
        }
        let ended = AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF;
        if changed.is_closed() || events.iter().any(|event| event.mask.intersects(ended)) {
            return Ok(());
        }
    }
}
