//! The agent: watches the state directory and applies each change within milliseconds, and puts back what somebody
//! changed in the rules of an isolated sandbox.
//!
//! One thread waits for everything (marks and records by inotify, nf_tables and links by netlink, signals, the clock)
//! and decides by `index`, which is pure; `worker` threads do what was decided. Nothing is polled. What is decided is
//! only that a sandbox has to be looked at; what is wanted of it is read under its lock by whoever does.

mod index;
mod memory;
mod subscription;
mod watch;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sd_notify::NotifyState;
use thiserror::Error;

use crate::kernel::netlink::NetlinkError;
use crate::kernel::rtnetlink::NodeEvents;
use crate::model::audit::Line;
use crate::model::names::{ContainerId, Key};
use crate::model::policy::Policy;
use crate::node::sandbox::Dependence;
use crate::node::state::{StateDir, StateError};

use index::{Action, Answer, Index, plan};
use memory::SeenMarks;
use subscription::{HostEvents, PodEvents, own_thread};
use watch::{Change, Watch};
use worker::{Done, Job, Outcome, Workers};

/// How often everything is looked at again although nothing was heard.
const SLOW_TIMER: Duration = Duration::from_secs(60);
/// How long to wait before a state directory that vanished is looked for again.
const REOPEN: Duration = Duration::from_secs(1);
/// How long after a directory went it is looked for again: whoever removes a tree is not done with its first directory.
const REWATCH: Duration = Duration::from_millis(50);
/// The wait after the first failure of a sandbox; it doubles each time, up to the longest.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_LONGEST: Duration = Duration::from_secs(60);
/// The wait between two looks at the same sandbox that events in it ask for; it doubles each time, up to the longest,
/// whether there was something to repair or not: whoever makes events in a loop gets no more of the processor. The host
/// guard holds meanwhile.
const LOOK_PAUSE_FIRST: Duration = Duration::from_millis(5);
const LOOK_PAUSE_LONGEST: Duration = Duration::from_millis(250);
/// After so long without such a look the next one is a first one again.
const LOOKS_FORGOTTEN: Duration = Duration::from_secs(10);
/// Of those who were seen changing rules, so many are named.
const STRANGERS_MAX: usize = 4;
const EVENT_BUFFER: usize = 64 * 1024;

const WATCH: u64 = 0;
const SIGNALS: u64 = 1;
const FINISHED: u64 = 2;
const HOST: u64 = 3;
const NODE: u64 = 4;
/// Sandboxes' events have the numbers from here on.
const FIRST_SANDBOX: u64 = 16;

/// Why the agent ended.
#[derive(Debug, Error)]
pub enum AgentError {
    /// The state directory cannot be used, or another agent has it.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel cannot be listened to.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// Something that every process has could not be had.
    #[error("cannot {what}")]
    System {
        /// What was being done.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn system(what: &'static str) -> impl FnOnce(Errno) -> AgentError {
    move |errno| AgentError::System { what, source: errno.into() }
}

/// Runs until SIGTERM or SIGINT. A mark that is gone for less than `release_after` releases nobody: editors and
/// configuration management replace a file by removing it and making it anew.
///
/// # Errors
/// [`AgentError`]; [`StateError::AgentRunning`] in it where another agent runs on this node.
pub fn run(state_dir: &std::path::Path, release_after: Duration) -> Result<(), AgentError> {
    let state = StateDir::open_or_create(state_dir)?;
    let _only = state.lock_agent()?;
    raise_descriptor_limit();
    let mut agent = Agent::start(state, state_dir.to_owned(), release_after)?;
    agent.resync(Everyone::Yes);
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    log::info!(
        "{}",
        Line::new("agent-started")
            .with("sandboxes", agent.index.sandboxes().count())
            .with("marks", agent.index.marks().len())
    );
    let result = agent.serve();
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    log::info!("{}", Line::new("agent-stopped"));
    result
}

/// Each isolated sandbox takes two descriptors.
fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// An isolated sandbox whose events are listened to.
struct Listened {
    events: PodEvents,
    number: u64,
    /// What it was isolated with.
    policy: Policy,
    /// Who was heard changing rules that no look has told apart yet.
    strangers: Vec<String>,
    /// When rules were put back that nobody has been named for yet: who did it may be heard only later.
    unnamed: Option<Instant>,
    looks: u32,
    last_look: Option<Instant>,
    /// Whether the next look is due already.
    is_due: bool,
    /// What of the node its rules were computed from.
    depends: Dependence,
    /// Whether that changed since: what the next look finds to differ is then nobody's tampering.
    node_changed: bool,
}

impl Listened {
    fn saw(&mut self, stranger: String) {
        if self.strangers.len() < STRANGERS_MAX && !self.strangers.contains(&stranger) {
            self.strangers.push(stranger);
        }
    }

    /// The policy that it should be found with, where nothing but tampering can have changed that.
    fn enforced(&mut self) -> Option<Policy> {
        (!std::mem::take(&mut self.node_changed)).then(|| self.policy.clone())
    }

    /// When the look that events ask for now is to be.
    fn next_look(&mut self, now: Instant) -> Instant {
        let when = match self.last_look {
            Some(last) if now < last + LOOKS_FORGOTTEN => {
                let pause = LOOK_PAUSE_FIRST.saturating_mul(1 << self.looks.min(16)).min(LOOK_PAUSE_LONGEST);
                self.looks = self.looks.saturating_add(1);
                now.max(last + pause)
            }
            _ => {
                self.looks = 0;
                now
            }
        };
        self.last_look = Some(when);
        when
    }

    /// It was looked at; gives those who are to be named for what was found altered, now or before.
    fn looked_at(&mut self, policy: Policy, was_altered: bool, again: bool, now: Instant) -> Vec<String> {
        self.policy = policy;
        if was_altered {
            self.unnamed = Some(now);
        }
        let is_to_be_named = self.unnamed.is_some_and(|when| now < when + LOOKS_FORGOTTEN);
        if is_to_be_named && !self.strangers.is_empty() {
            self.unnamed = None;
            return std::mem::take(&mut self.strangers);
        }
        // What was heard while it was looked at, only the next look will find.
        if !again {
            self.strangers.clear();
        }
        Vec::new()
    }
}

/// Which sandboxes a resync looks at.
#[derive(PartialEq, Eq)]
enum Everyone {
    Yes,
    /// Those that answer to a mark, or did.
    Isolated,
}

struct Agent {
    state: StateDir,
    state_dir: PathBuf,
    /// What the state directory was told by when it was last opened.
    identity: Option<(u64, u64)>,
    /// `None` while the state directory is gone, or cannot be watched.
    watch: Option<Watch>,
    /// Whether it is listed every second instead.
    is_polling: bool,
    signals: SignalFd,
    host: HostEvents,
    node: NodeEvents,
    release_after: Duration,
    /// Those whose mark is gone, and when they may be released for it.
    waiting: BTreeMap<ContainerId, Instant>,
    workers: Workers,
    epoll: Epoll,
    index: Index,
    seen: SeenMarks,
    rewatch_due: Option<Instant>,
    applied: BTreeMap<ContainerId, Answer>,
    /// At work; those that are to be looked at again afterwards are `true`.
    at_work: BTreeMap<ContainerId, bool>,
    listened: BTreeMap<ContainerId, Listened>,
    by_number: BTreeMap<u64, ContainerId>,
    next_number: u64,
    failures: BTreeMap<ContainerId, u32>,
    due: BTreeSet<(Instant, ContainerId)>,
    buffer: Vec<u8>,
}

impl Agent {
    fn start(state: StateDir, state_dir: PathBuf, release_after: Duration) -> Result<Self, AgentError> {
        let mask = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        // Before the workers, which inherit it.
        mask.thread_block().map_err(system("block signals"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(system("listen to signals"))?;
        let count = 2 * available_parallelism().map_or(1, usize::from);
        let mut workers =
            Workers::start(&state, count).map_err(|source| AgentError::System { what: "start the workers", source })?;
        workers.threads.push(own_thread());
        let host = HostEvents::subscribe()?;
        let node = NodeEvents::subscribe()?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC).map_err(system("wait for events"))?;
        let wait = |fd, number| epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, number));
        wait(signals.as_fd(), SIGNALS)
            .and_then(|()| wait(workers.finished.as_fd(), FINISHED))
            .and_then(|()| wait(host.as_fd(), HOST))
            .and_then(|()| wait(node.as_fd(), NODE))
            .map_err(system("wait for events"))?;
        let mut agent = Self {
            identity: state.identity(),
            state,
            state_dir,
            watch: None,
            is_polling: false,
            signals,
            host,
            node,
            release_after,
            waiting: BTreeMap::new(),
            workers,
            epoll,
            index: Index::default(),
            seen: SeenMarks::default(),
            rewatch_due: None,
            applied: BTreeMap::new(),
            at_work: BTreeMap::new(),
            listened: BTreeMap::new(),
            by_number: BTreeMap::new(),
            next_number: FIRST_SANDBOX,
            failures: BTreeMap::new(),
            due: BTreeSet::new(),
            buffer: vec![0; EVENT_BUFFER],
        };
        agent.watch_or_poll(&agent.state.clone());
        Ok(agent)
    }

    /// Watches the state directory; where the kernel has no watch left to give (`user.max_inotify_instances`, others
    /// use them up too), it is listed every second, and that is said.
    fn watch_or_poll(&mut self, state: &StateDir) {
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

    /// The one loop.
    fn serve(&mut self) -> Result<(), AgentError> {
        let watchdog = sd_notify::watchdog_enabled().map(|interval| interval / 2);
        let mut next_ping = watchdog.map(|interval| Instant::now() + interval);
        let mut next_resync = Instant::now() + self.resync_pause();
        let mut events = [EpollEvent::empty(); 64];
        loop {
            let now = Instant::now();
            let deadlines = [Some(next_resync), next_ping, self.rewatch_due, self.due.first().map(|(when, _)| *when)];
            let wait =
                deadlines.into_iter().flatten().min().map_or(SLOW_TIMER, |when| when.saturating_duration_since(now));
            // Rounded up: a deadline in half a millisecond is not polled for.
            let milliseconds = u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
            let ready = match self.epoll.wait(&mut events, EpollTimeout::from(milliseconds)) {
                Err(Errno::EINTR) => 0,
                ready => ready.map_err(system("wait for events"))?,
            };
            for event in &events[..ready] {
                match event.data() {
                    WATCH => self.state_changed(),
                    SIGNALS => {
                        if self.signalled() {
                            return Ok(());
                        }
                    }
                    FINISHED => self.finished(),
                    HOST => self.host_touched(),
                    NODE => self.node_touched(),
                    number => self.sandbox_touched(number),
                }
            }
            let now = Instant::now();
            while let Some((when, container_id)) = self.due.first().cloned()
                && when <= now
            {
                self.due.pop_first();
                if let Some(listened) = self.listened.get_mut(&container_id) {
                    listened.is_due = false;
                }
                self.dispatch(&container_id);
            }
            if self.rewatch_due.take_if(|when| *when <= now).is_some() {
                self.rewatch();
            }
            if next_resync <= now {
                self.resync(Everyone::Isolated);
                next_resync = now + SLOW_TIMER;
            }
            next_resync = next_resync.min(now + self.resync_pause());
            if let (Some(interval), Some(ping)) = (watchdog, next_ping)
                && ping <= now
            {
                let _ = sd_notify::notify(&[NotifyState::Watchdog]);
                next_ping = Some(now + interval);
            }
        }
    }

    /// How long nothing may be heard before everything is listed.
    fn resync_pause(&self) -> Duration {
        if self.watch.is_some() { SLOW_TIMER } else { REOPEN }
    }

    /// Whether to end.
    fn signalled(&mut self) -> bool {
        while let Ok(Some(signal)) = self.signals.read_signal() {
            if i32::try_from(signal.ssi_signo) == Ok(Signal::SIGHUP as i32) {
                self.resync(Everyone::Yes);
            } else {
                return true;
            }
        }
        false
    }

    fn state_changed(&mut self) {
        let changes = self.watch.as_mut().map(Watch::changes).unwrap_or_default();
        if changes.contains(&Change::Everything) {
            self.rewatch_due.get_or_insert_with(|| Instant::now() + REWATCH);
            return;
        }
        let mut concerned = BTreeSet::new();
        for change in changes {
            match change {
                Change::Mark(key) => {
                    self.look_at_mark(&key);
                    let by_mark = self.index.concerned_by(&key);
                    // It came and went, or came back: what it is gone for counts anew.
                    self.waiting.retain(|container_id, _| !by_mark.contains(container_id));
                    concerned.extend(by_mark);
                }
                Change::Sandbox(container_id) => {
                    concerned.extend(self.index.concerned_by(&Key::from(&container_id)));
                    self.look_at_records(&container_id);
                    concerned.extend(self.index.concerned_by(&Key::from(&container_id)));
                    concerned.insert(container_id);
                }
                Change::Everything => {}
            }
        }
        self.act(&concerned);
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

    fn look_at_records(&mut self, container_id: &ContainerId) {
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

    fn act(&mut self, among: &BTreeSet<ContainerId>) {
        for action in plan(&self.index, &self.applied, among) {
            match action {
                Action::Apply(container_id) => self.dispatch(&container_id),
                Action::Forget(container_id) => self.forget(&container_id),
            }
        }
    }

    /// Watches a state directory anew: one of its directories was replaced, or events were lost.
    fn rewatch(&mut self) {
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
                log::error!("{}", Line::new("state-directory-lost").with("error", crate::model::audit::chain(&error)))
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
    fn resync(&mut self, everyone: Everyone) {
        if self.watch.is_none() {
            self.rewatch();
            if everyone == Everyone::Isolated {
                return;
            }
        }
        self.relist(everyone);
    }

    fn relist(&mut self, everyone: Everyone) {
        let (marks, sandboxes) = match self.state.marks().and_then(|marks| Ok((marks, self.state.sandboxes()?))) {
            Ok(listed) => listed,
            Err(error) => {
                log::error!(
                    "{}",
                    Line::new("state-directory-unreadable").with("error", crate::model::audit::chain(&error))
                );
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

    /// Has a worker look at a sandbox, once at a time.
    fn dispatch(&mut self, container_id: &ContainerId) {
        if let Some(again) = self.at_work.get_mut(container_id) {
            *again = true;
            return;
        }
        let listened = self.listened.get_mut(container_id);
        let may_release =
            self.release_after.is_zero() || self.waiting.get(container_id).is_some_and(|&when| when <= Instant::now());
        self.at_work.insert(container_id.clone(), false);
        self.workers.submit(Job {
            may_release,
            container_id: container_id.clone(),
            answer: self.index.answer_of(container_id),
            is_subscribed: listened.is_some(),
            enforced: listened.and_then(Listened::enforced),
        });
    }

    fn finished(&mut self) {
        for Done { container_id, answer, outcome } in self.workers.take_done() {
            let again = self.at_work.remove(&container_id).unwrap_or(false);
            let mut is_settled = true;
            if !matches!(outcome, Outcome::Waiting | Outcome::Failed) {
                self.waiting.remove(&container_id);
            }
            match outcome {
                Outcome::Isolated { events, has_interfaces, policy, was_altered, depends } => {
                    self.settle(&container_id, answer);
                    match events {
                        Some(events) => self.listen(&container_id, events, policy),
                        None => self.looked_at(&container_id, policy, was_altered, again),
                    }
                    if let Some(listened) = self.listened.get_mut(&container_id) {
                        listened.depends = depends;
                    }
                    self.listen_again(&container_id);
                    if !has_interfaces {
                        // It is being taken down, and our sockets must not be what keeps it.
                        self.stop_listening(&container_id);
                    }
                }
                Outcome::Waiting => {
                    let when = Instant::now() + self.release_after;
                    let when = *self.waiting.entry(container_id.clone()).or_insert(when);
                    self.due.insert((when, container_id.clone()));
                    self.listen_again(&container_id);
                    is_settled = false;
                }
                Outcome::Released => {
                    self.settle(&container_id, answer);
                    self.stop_listening(&container_id);
                }
                Outcome::Gone => {
                    self.forget(&container_id);
                    // Its records may still be there; they are not looked at again before something changes.
                    self.settle(&container_id, answer);
                }
                Outcome::Unrecorded => {
                    self.forget(&container_id);
                    // Whatever the job was to change has not been changed.
                    self.index.doubt(&container_id);
                    self.look_at_records(&container_id);
                }
                Outcome::Failed => {
                    let failures = self.failures.entry(container_id.clone()).or_default();
                    let pause = RETRY_FIRST.saturating_mul(1 << (*failures).min(16)).min(RETRY_LONGEST);
                    *failures += 1;
                    // One retry at a time, whatever else had it looked at in between.
                    self.due.retain(|(_, due)| *due != container_id);
                    if let Some(listened) = self.listened.get_mut(&container_id) {
                        listened.is_due = false;
                    }
                    self.due.insert((Instant::now() + pause, container_id.clone()));
                    is_settled = false;
                }
            }
            if again {
                self.dispatch(&container_id);
            } else if is_settled {
                self.act(&BTreeSet::from([container_id]));
            }
        }
    }

    fn looked_at(&mut self, container_id: &ContainerId, policy: Policy, was_altered: bool, again: bool) {
        let Some(listened) = self.listened.get_mut(container_id) else { return };
        let named = listened.looked_at(policy, was_altered, again, Instant::now());
        if !named.is_empty() {
            log::warn!("{}", Line::new("tampering").with("container", container_id).with("by", named.join(",")));
        }
    }

    fn listen(&mut self, container_id: &ContainerId, events: PodEvents, policy: Policy) {
        let number = self.next_number;
        self.next_number += 1;
        for fd in events.descriptors() {
            let once = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
            if let Err(errno) = self.epoll.add(fd, EpollEvent::new(once, number)) {
                log::error!("{}", Line::new("failed").with("container", container_id).with("error", errno));
            }
        }
        self.by_number.insert(number, container_id.clone());
        let listened = Listened {
            events,
            number,
            policy,
            strangers: Vec::new(),
            unnamed: None,
            looks: 0,
            last_look: None,
            is_due: false,
            depends: Dependence::default(),
            node_changed: false,
        };
        self.listened.insert(container_id.clone(), listened);
    }

    fn stop_listening(&mut self, container_id: &ContainerId) {
        if let Some(listened) = self.listened.remove(container_id) {
            self.by_number.remove(&listened.number);
            for fd in listened.events.descriptors() {
                let _ = self.epoll.delete(fd);
            }
            self.workers.close(listened.events);
        }
    }

    /// A sandbox is as this answer wants it.
    fn settle(&mut self, container_id: &ContainerId, answer: Answer) {
        self.failures.remove(container_id);
        self.index.trust(container_id);
        self.applied.insert(container_id.clone(), answer);
    }

    fn forget(&mut self, container_id: &ContainerId) {
        self.stop_listening(container_id);
        if self.applied.remove(container_id).is_some_and(|answer| !answer.is_empty()) {
            self.index.doubt(container_id);
        }
        self.failures.remove(container_id);
        self.due.retain(|(_, due)| due != container_id);
    }

    /// Events of a sandbox came. It is not listened to again before it was looked at, so that whoever makes events in
    /// a loop sets no pace but ours.
    fn sandbox_touched(&mut self, number: u64) {
        let Some(container_id) = self.by_number.get(&number).cloned() else { return };
        let Some(listened) = self.listened.get_mut(&container_id) else { return };
        let heard = listened.events.drain(&mut self.buffer, &self.workers.threads);
        if !heard.is_of_interest() {
            self.listen_again(&container_id);
            return;
        }
        heard.strangers.into_iter().for_each(|stranger| listened.saw(stranger));
        self.look_soon(container_id);
    }

    /// Has it looked at, as soon as its last look is long enough ago.
    fn look_soon(&mut self, container_id: ContainerId) {
        let Some(listened) = self.listened.get_mut(&container_id) else { return };
        if listened.is_due {
            return;
        }
        let now = Instant::now();
        let when = listened.next_look(now);
        if when <= now {
            self.dispatch(&container_id);
        } else {
            listened.is_due = true;
            self.due.insert((when, container_id));
        }
    }

    /// The node's links, addresses, routes or rules changed: the holes for its probes may lead elsewhere by now.
    fn node_touched(&mut self) {
        let mut changes = Vec::new();
        let lost = self.node.drain(&mut self.buffer, |change| {
            if changes.last() != Some(&change) {
                changes.push(change);
            }
        });
        let is_concerned =
            |listened: &Listened| lost || changes.iter().any(|&change| listened.depends.is_concerned_by(change));
        let concerned: Vec<_> =
            self.listened.iter().filter(|(_, listened)| is_concerned(listened)).map(|(id, _)| id.clone()).collect();
        for container_id in concerned {
            if let Some(listened) = self.listened.get_mut(&container_id) {
                listened.node_changed = true;
            }
            self.look_soon(container_id);
        }
    }

    /// After it was looked at.
    fn listen_again(&self, container_id: &ContainerId) {
        let Some(listened) = self.listened.get(container_id) else { return };
        for fd in listened.events.descriptors() {
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, listened.number);
            let _ = self.epoll.modify(fd, &mut event);
        }
    }

    fn host_touched(&mut self) {
        let (touched, lost) = self.host.drain(&mut self.buffer, &self.workers.threads);
        let touched: BTreeSet<_> = if lost {
            self.listened.keys().cloned().collect()
        } else {
            let mut concerned = BTreeSet::new();
            for (container_id, stranger) in touched {
                if let Some(listened) = self.listened.get_mut(&container_id) {
                    listened.saw(stranger);
                    concerned.insert(container_id);
                }
            }
            concerned
        };
        for container_id in touched {
            self.dispatch(&container_id);
        }
    }
}
