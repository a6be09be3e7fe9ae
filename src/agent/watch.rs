//! The state directory under inotify: what changed, in the agent's own words.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, InotifyEvent, WatchDescriptor};

use crate::model::names::{ContainerId, Key};
use crate::node::state::StateDir;

/// One thing that is to be looked at.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Change {
    /// Everything: events were lost, or a directory was replaced.
    Everything,
    /// A sandbox's records.
    Sandbox(ContainerId),
    /// A mark.
    Mark(Key),
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Watched {
    Root,
    Isolated,
    Attachments,
    Sandbox(ContainerId),
}

/// The watch over a state directory.
#[derive(Debug)]
pub(super) struct Watch {
    inotify: Inotify,
    watched: HashMap<WatchDescriptor, Watched>,
    state: StateDir,
}

impl Watch {
    /// Watches the directory and what is in it. Whoever calls lists it afterwards, so that nothing falls in between.
    pub(super) fn start(state: &StateDir) -> Result<Self, Errno> {
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let mut watch = Self { inotify, watched: HashMap::new(), state: state.clone() };
        watch.add(state.path(), Watched::Root)?;
        watch.add(&state.isolated(), Watched::Isolated)?;
        watch.add(&state.attachments(), Watched::Attachments)?;
        for container_id in state.sandboxes().unwrap_or_default() {
            watch.add_sandbox(&container_id);
        }
        Ok(watch)
    }

    fn add(&mut self, path: &Path, watched: Watched) -> Result<(), Errno> {
        let mut flags = AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_DELETE
            | AddWatchFlags::IN_MOVED_FROM
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE_SELF
            | AddWatchFlags::IN_MOVE_SELF
            | AddWatchFlags::IN_ONLYDIR;
        if watched == Watched::Isolated {
            flags |= AddWatchFlags::IN_CLOSE_WRITE | AddWatchFlags::IN_MODIFY;
        }
        let descriptor = self.inotify.add_watch(path, flags)?;
        self.watched.insert(descriptor, watched);
        Ok(())
    }

    fn add_sandbox(&mut self, container_id: &ContainerId) {
        let path = self.state.attachments().join(container_id.as_str());
        // It may be gone again; its parent says so too.
        let _ = self.add(&path, Watched::Sandbox(container_id.clone()));
    }

    /// Takes what happened since the last call, each thing once.
    pub(super) fn changes(&mut self) -> BTreeSet<Change> {
        let mut changes = BTreeSet::new();
        loop {
            match self.inotify.read_events() {
                Ok(events) => changes.extend(events.into_iter().filter_map(|event| self.change(&event))),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return changes,
                Err(_) => {
                    changes.insert(Change::Everything);
                    return changes;
                }
            }
        }
    }

    fn change(&mut self, event: &InotifyEvent) -> Option<Change> {
        if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
            return Some(Change::Everything);
        }
        let watched = self.watched.get(&event.wd)?.clone();
        if event.mask.contains(AddWatchFlags::IN_IGNORED) {
            self.watched.remove(&event.wd);
        }
        let is_about_itself = event
            .mask
            .intersects(AddWatchFlags::IN_IGNORED | AddWatchFlags::IN_DELETE_SELF | AddWatchFlags::IN_MOVE_SELF);
        let name = event.name.as_deref().and_then(OsStr::to_str);
        match watched {
            Watched::Sandbox(container_id) => Some(Change::Sandbox(container_id)),
            _ if is_about_itself => Some(Change::Everything),
            // Locks are made here; only the two directories matter.
            Watched::Root => matches!(name, Some("isolated" | "attachments")).then_some(Change::Everything),
            Watched::Isolated => name.and_then(|name| Key::new(name).ok()).map(Change::Mark),
            Watched::Attachments => {
                let container_id = name.and_then(|name| ContainerId::new(name).ok())?;
                if event.mask.intersects(AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO) {
                    self.add_sandbox(&container_id);
                }
                Some(Change::Sandbox(container_id))
            }
        }
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}
