//! The agent and the state directory: what is in it, what changed, and what to do where it was taken away.

use std::collections::BTreeSet;
use std::os::fd::AsFd;
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::model::audit::{Line, chain};
use crate::model::names::{ContainerId, Key};
use crate::node::sandbox::{Side, remove_guards_of_nothing};
use crate::node::state::{StateDir, StateError};

use super::births::Birth;
use super::watch::{Change, Watch};
use super::{Agent, REWATCH, WATCH};

/// Which sandboxes a resync looks at.
#[derive(PartialEq, Eq)]
pub(super) enum Everyone {
    Yes,
    /// Those that answer to a mark, or did.
    Isolated,
}

impl Agent {
    /// Watches the state directory; where the kernel has no watch left to give (`user.max_inotify_instances`, others
    /// use them up too), it is listed every second, and that is said.
    pub(super) fn watch_or_poll(&mut self, state: &StateDir) {
        let watch = Watch::start(state).and_then(|watch| {
            self.epoll.add(watch.as_fd(), EpollEvent::new(EpollFlags::EPOLLIN, WATCH)).map(|()| watch)
        });
        match watch {
            Ok(watch) => {
                self.watch = Some(watch);
                if std::mem::take(&mut self.is_polling) {
                    log::info!("{}", Line::new("watching"));
                }
            }
            Err(errno) => {
                if !std::mem::replace(&mut self.is_polling, true) {
                    let reason =
                        format!("the state directory cannot be watched: {errno}; see user.max_inotify_instances");
                    log::warn!("{}", Line::new("polling").with("every", "1s").with("reason", reason));
                }
            }
        }
    }

    pub(super) fn state_changed(&mut self) {
        let changes = self.watch.as_mut().map(Watch::changes).unwrap_or_default();
        if changes.contains(&Change::Everything) {
            self.rewatch_due.get_or_insert_with(|| Instant::now() + REWATCH);
            return;
        }
        let (mut concerned, mut host_pods) = (BTreeSet::new(), false);
        for change in changes {
            match change {
                Change::Mark(key) => {
                    self.look_at_mark(&key);
                    let by_mark = self.index.concerned_by(&key);
                    host_pods |= by_mark.is_empty();
                    // It came and went, or came back: what it is gone for counts anew.
                    self.waiting.retain(|container_id, _| !by_mark.contains(container_id));
                    concerned.extend(by_mark);
                }
                Change::Sandbox(container_id) => {
                    concerned.extend(self.index.concerned_by(&Key::from(&container_id)));
                    self.look_at_records(&container_id);
                    if self.index.knows(&container_id) {
                        self.workers.attend(Birth::Of(container_id.clone()));
                    }
                    concerned.extend(self.index.concerned_by(&Key::from(&container_id)));
                    concerned.insert(container_id);
                    host_pods |= self.host_pods.is_busy();
                }
                Change::Everything => {}
            }
        }
        self.act(&concerned);
        if host_pods {
            self.host_pods.look();
        }
    }

    fn look_at_mark(&mut self, key: &Key) {
        if self.state.isolated().join(key.as_str()).symlink_metadata().is_ok() {
            self.seen.stands(key.clone(), self.state.mark_content(key));
            self.index.mark(key.clone());
        } else {
            self.seen.is_gone(key, Instant::now(), self.release_after);
            self.index.unmark(key);
        }
    }

    pub(super) fn look_at_records(&mut self, container_id: &ContainerId) {
        let (records, damaged) = self.state.records_of(container_id);
        match records {
            Some(records) => self.index.record(container_id.clone(), records.pod().clone()),
            None => {
                if !damaged.is_empty() {
                    self.index.doubt(container_id);
                }
                self.index.unrecord(container_id);
            }
        }
    }

    /// Watches a state directory anew: one of its directories was replaced, or events were lost.
    pub(super) fn rewatch(&mut self) {
        if let Some(watch) = self.watch.take() {
            let _ = self.epoll.delete(watch.as_fd());
        }
        let opened = StateDir::open_or_create(&self.state_dir).and_then(|state| {
            if state.identity() != self.identity {
                self.put_marks_back(&state)?;
            }
            Ok(state)
        });
        match opened {
            Ok(state) => {
                self.identity = state.identity();
                self.watch_or_poll(&state);
                self.relist(Everyone::Isolated);
            }
            // Without the marks nothing is released.
            Err(error) => {
                log::error!("{}", Line::new("state-directory-lost").with("error", chain(&error)))
            }
        }
    }

    /// The state directory is another one: what stood in the old one is written into it.
    fn put_marks_back(&self, state: &StateDir) -> Result<(), StateError> {
        for (key, content) in self.seen.lost(Instant::now(), self.release_after) {
            if state.read_mark(key).is_none() {
                state.put_mark_back(key, content)?;
                log::warn!(
                    "{}",
                    Line::new("mark-put-back").with("mark", key).with("because", "its directory was replaced")
                );
            }
        }
        Ok(())
    }

    /// Lists everything anew.
    pub(super) fn resync(&mut self, everyone: Everyone) {
        if self.watch.is_none() {
            self.rewatch();
            if everyone == Everyone::Isolated {
                return;
            }
        }
        self.relist(everyone);
    }

    fn relist(&mut self, everyone: Everyone) {
        self.host_pods.look();
        let (marks, sandboxes) = match self.state.marks().and_then(|marks| Ok((marks, self.state.sandboxes()?))) {
            Ok(listed) => listed,
            Err(error) => {
                log::error!("{}", Line::new("state-directory-unreadable").with("error", chain(&error)));
                return;
            }
        };
        let known: Vec<_> = self.index.marks().difference(&marks).cloned().collect();
        known.iter().for_each(|key| {
            self.seen.is_gone(key, Instant::now(), self.release_after);
            self.index.unmark(key);
        });
        for key in marks {
            self.seen.stands(key.clone(), self.state.mark_content(&key));
            self.index.mark(key);
        }
        let mut concerned: BTreeSet<ContainerId> = self.index.sandboxes().chain(self.applied.keys()).cloned().collect();
        concerned.extend(sandboxes);
        for container_id in &concerned {
            self.look_at_records(container_id);
        }
        if everyone == Everyone::Yes {
            let all: Vec<_> = self.index.sandboxes().cloned().collect();
            all.iter().for_each(|container_id| self.dispatch(container_id));
            concerned.retain(|container_id| !all.contains(container_id));
        }
        self.act(&concerned);
    }
}

/// What pods left behind that ended while nobody was there. Nothing depends on it: their interfaces are gone.
pub(super) fn remove_guards_of_the_past(state: &StateDir) {
    // Without the list of the records every guard would be one without a record.
    let Ok(recorded) = state.sandboxes() else { return };
    let removed = Side::own()
        .and_then(|mut host| remove_guards_of_nothing(&mut host, |container_id| recorded.contains(container_id)));
    if let Err(error) = removed {
        log::warn!("{}", Line::new("failed").with("error", chain(&error)));
    }
}
