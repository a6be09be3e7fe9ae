//! Pods in the node's own network namespace: no record says that one has come, so the cgroups are watched while there are marks.
//!
//! A thread of its own, which costs nothing while nothing is marked. It looks when it is told that marks or records changed, when a pod's
//! cgroup appears, and every second while programs stand or a pod that is marked has no process here yet.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::evidence::Collectors;
use crate::model::audit::{Line, chain};
use crate::model::names::PodUid;
use crate::model::subject::Subject;
use crate::model::verdict::Verdict;
use crate::node::host_pod::{Asked, HostNode, HostPodError, Outcome, candidates, sync_one};
use crate::node::sandbox::{ProberSeen, cgroup_of};
use crate::node::state::StateDir;

use super::SLOW_TIMER;
use super::metrics::Counts;

/// How often programs that stand are looked at, and pods that may yet get a process here.
const PAUSE: Duration = Duration::from_secs(1);
/// The same in the time after a pod's cgroup has appeared: its first process is soon to come.
const PAUSE_SOON: Duration = Duration::from_millis(25);
const SOON: Duration = Duration::from_secs(10);
/// How long is waited for whoever is at work on a pod.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// Who looks after them.
#[derive(Debug)]
pub(super) struct HostPods {
    changed: Arc<EventFd>,
    is_busy: Arc<AtomicBool>,
}

impl HostPods {
    /// Starts the thread. The calling one is in the node's network namespace.
    pub(super) fn start(
        state: &StateDir,
        release_after: Duration,
        collectors: &Arc<Option<Collectors>>,
        counts: &Arc<Counts>,
    ) -> io::Result<Self> {
        let changed = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let is_busy = Arc::new(AtomicBool::new(false));
        let mut keeper = Keeper {
            is_busy: is_busy.clone(),
            state: state.clone(),
            release_after,
            collectors: collectors.clone(),
            counts: counts.clone(),
            heard: Instant::now(),
            changed: changed.clone(),
            appeared: None,
            is_watching: false,
            isolated: BTreeMap::new(),
            failed: BTreeSet::new(),
            unmarked: BTreeMap::new(),
            is_waiting: false,
            soon_until: None,
        };
        thread::Builder::new().name("host-pods".to_owned()).spawn(move || keeper.serve())?;
        Ok(Self { changed, is_busy })
    }

    /// Whether there are any that are isolated or are to be: only then a record that changes means something here.
    pub(super) fn is_busy(&self) -> bool {
        self.is_busy.load(Ordering::Relaxed)
    }

    /// Marks or records changed.
    pub(super) fn look(&self) {
        let _ = self.changed.write(1);
    }
}

struct Keeper {
    state: StateDir,
    release_after: Duration,
    collectors: Arc<Option<Collectors>>,
    counts: Arc<Counts>,
    /// When it was woken for what it is at.
    heard: Instant,
    changed: Arc<EventFd>,
    is_busy: Arc<AtomicBool>,
    /// Tells of cgroups that appear.
    appeared: Option<Inotify>,
    is_watching: bool,
    /// Those that were seen to be isolated, and by whose cgroup their probes were told.
    isolated: BTreeMap<PodUid, Option<ProberSeen>>,
    /// Those of which that could not be done: it is tried again when something changes.
    failed: BTreeSet<PodUid>,
    /// Those whose mark is gone, and since when.
    unmarked: BTreeMap<PodUid, Instant>,
    /// Whether a pod that is marked has a cgroup and no process here.
    is_waiting: bool,
    soon_until: Option<Instant>,
}

impl Keeper {
    fn serve(&mut self) {
        let mut last = Instant::now();
        let mut all = true;
        loop {
            if all || last.elapsed() >= SLOW_TIMER {
                last = Instant::now();
                self.failed.clear();
                self.look_at_all();
            } else {
                self.look_at_those_at_work();
            }
            self.is_busy.store(self.is_waiting || !self.isolated.is_empty(), Ordering::Relaxed);
            all = self.wait();
            self.heard = Instant::now();
        }
    }

    /// Waits until something changes, or is due. Whether something changed.
    fn wait(&mut self) -> bool {
        let now = Instant::now();
        self.soon_until = self.soon_until.filter(|until| *until > now);
        let released =
            self.unmarked.values().min().map(|since| (*since + self.release_after).saturating_duration_since(now));
        let look = match (self.is_waiting, self.soon_until) {
            (true, Some(_)) => PAUSE_SOON,
            (true, None) => PAUSE,
            (false, _) if !self.isolated.is_empty() => PAUSE,
            // It cannot be watched where pods appear.
            (false, _) if self.appeared.is_none() && self.is_watching => PAUSE,
            (false, _) => SLOW_TIMER,
        };
        let pause = released.map_or(look, |released| released.min(look)).max(Duration::from_millis(1));
        let mut waiting = vec![PollFd::new(self.changed.as_fd(), PollFlags::POLLIN)];
        waiting.extend(self.appeared.as_ref().map(|appeared| PollFd::new(appeared.as_fd(), PollFlags::POLLIN)));
        let ready = poll(&mut waiting, PollTimeout::try_from(pause).unwrap_or(PollTimeout::MAX)).unwrap_or(0);
        let has_appeared = waiting.get(1).is_some_and(|appeared| appeared.any() == Some(true));
        drop(waiting);
        if has_appeared {
            while self.appeared.as_ref().is_some_and(|appeared| appeared.read_events().is_ok()) {}
            self.soon_until = Some(Instant::now() + SOON);
        }
        while self.changed.read().is_ok() {}
        ready > 0
    }

    /// Looks at every pod that is marked, or has programs.
    fn look_at_all(&mut self) {
        // Where the marks are gone as a whole, nobody is released for it.
        if !self.state.isolated().is_dir() {
            return;
        }
        let looked = HostNode::look().and_then(|node| {
            self.watch(&node)?;
            let candidates = candidates(&self.state, &node)?;
            Ok((node, candidates))
        });
        match looked {
            Ok((node, candidates)) => self.sync(&node, candidates),
            Err(error) => log::error!("{}", Line::new("failed").with("error", chain(&error))),
        }
    }

    /// Looks at those whose programs came off, that may have a process by now, or that are to be released.
    fn look_at_those_at_work(&mut self) {
        let Ok(node) = HostNode::look() else { return };
        let now = Instant::now();
        // A kubelet that is started anew may be in another cgroup.
        let is_another =
            |seen: &Option<ProberSeen>| seen.as_ref().is_some_and(|seen| cgroup_of(&seen.prober).ok() != seen.cgroup);
        let changed = self.isolated.iter().filter(|(uid, seen)| node.is_displaced(uid) || is_another(seen));
        let mut concerned: BTreeSet<PodUid> = changed.map(|(uid, _)| uid.clone()).collect();
        concerned.extend(
            self.unmarked.iter().filter(|(_, since)| **since + self.release_after <= now).map(|(uid, _)| uid.clone()),
        );
        if std::mem::take(&mut self.is_waiting) || (self.is_watching && self.appeared.is_none()) {
            let waiting = candidates(&self.state, &node).unwrap_or_default().into_iter();
            concerned.extend(waiting.filter(|uid| !self.isolated.contains_key(uid) && !self.failed.contains(uid)));
        }
        if !concerned.is_empty() {
            self.sync_some(&node, concerned);
        }
    }

    fn sync(&mut self, node: &HostNode, candidates: BTreeSet<PodUid>) {
        self.isolated.retain(|uid, _| candidates.contains(uid));
        self.unmarked.retain(|uid, _| candidates.contains(uid));
        self.is_waiting = false;
        self.sync_some(node, candidates);
    }

    fn sync_some(&mut self, node: &HostNode, uids: BTreeSet<PodUid>) {
        let now = Instant::now();
        let mut is_waiting = false;
        for uid in uids {
            let asked = if self.isolated.contains_key(&uid) { Asked::Disturbed } else { Asked::ByMark };
            let keeps = self.unmarked.get(&uid).is_none_or(|since| *since + self.release_after > now)
                && !self.release_after.is_zero();
            match sync_one(&self.state, node, &uid, asked, keeps, LOCK_PATIENCE) {
                Ok(Outcome::Isolated(enforced)) => {
                    self.unmarked.remove(&uid);
                    if enforced.report.verdict == Verdict::Open {
                        self.failed.insert(uid.clone());
                        self.counts.failed();
                    }
                    if enforced.is_new {
                        self.isolated_anew(&uid);
                    }
                    self.isolated.insert(uid, enforced.report.prober);
                }
                Ok(Outcome::Kept) => {
                    self.unmarked.entry(uid).or_insert(now);
                }
                Ok(Outcome::Released | Outcome::Ended) => {
                    self.isolated.remove(&uid);
                    self.unmarked.remove(&uid);
                }
                Ok(Outcome::Waits) => is_waiting = true,
                Ok(Outcome::NotConcerned) => {
                    self.isolated.remove(&uid);
                    self.unmarked.remove(&uid);
                }
                Err(_) => {
                    self.counts.failed();
                    self.failed.insert(uid);
                }
            }
        }
        self.is_waiting |= is_waiting;
    }

    /// It was cut off just now.
    fn isolated_anew(&self, uid: &PodUid) {
        self.counts.isolated_after(self.heard.elapsed());
        if let Some(collectors) = self.collectors.as_ref() {
            collectors.collect(Subject::HostPod(uid.clone()));
        }
    }

    /// Watches where pods appear, while there are marks that nothing else answers to.
    fn watch(&mut self, node: &HostNode) -> Result<(), HostPodError> {
        self.is_watching = node.has_unanswered_marks(&self.state)?;
        if !self.is_watching {
            self.appeared = None;
            return Ok(());
        }
        if self.appeared.is_none() {
            self.appeared = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).ok();
        }
        let flags = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_ONLYDIR;
        let watched = node.watched();
        let watch = |appeared: &Inotify| -> Result<(), Errno> {
            watched.iter().try_for_each(|directory| match appeared.add_watch(directory, flags) {
                // Gone in between.
                Err(Errno::ENOENT) => Ok(()),
                added => added.map(drop),
            })
        };
        if self.appeared.as_ref().is_some_and(|appeared| watch(appeared).is_err()) {
            self.appeared = None;
        }
        Ok(())
    }
}
