//! The agent: watches the state directory and applies each change within milliseconds, and puts back what somebody
//! changed in the rules of an isolated sandbox.
//!
//! One thread waits for everything (marks and records by inotify, nf_tables and links by netlink, signals, the clock)
//! and decides by `index`, which is pure; `worker` threads do what was decided. Nothing is polled. What is decided is
//! only that a sandbox has to be looked at; what is wanted of it is read under its lock by whoever does.

mod births;
mod captures;
mod clock;
mod directory;
mod finished;
mod host_pods;
mod index;
mod memory;
mod metrics;
mod node_changes;
mod own_thread;
mod pacing;
mod probers;
mod programs;
mod subscribed;
mod subscription;
mod watch;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use sd_notify::NotifyState;
use thiserror::Error;

use crate::adopt::{Places, keep_adopting};
use crate::evidence::Collectors;
use crate::kernel::netlink::NetlinkError;
use crate::kernel::nft::Nft;
use crate::kernel::rtnetlink::Links;
use crate::kernel::rtnetlink::NodeEvents;
use crate::model::audit::Line;
use crate::model::names::ContainerId;
use crate::node::sandbox::Before;
use crate::node::state::{StateDir, StateError};
use crate::node::workers;

use births::{Birth, Births};
use captures::Captures;
use clock::Clock;
use directory::Everyone;
use host_pods::HostPods;
use index::{Action, Answer, Index, plan};
use memory::SeenMarks;
use metrics::{Counts, serve_metrics};
use node_changes::{AtWork, NodeChanges};
use own_thread::own_thread;
use pacing::Retries;
use probers::Probers;
use programs::Programs;
use subscribed::Subscribed;
use subscription::HostEvents;
use watch::Watch;
use worker::{Job, Workers};

/// How often everything is looked at again although nothing was heard.
const SLOW_TIMER: Duration = Duration::from_secs(60);
/// How long to wait before a state directory that vanished is looked for again.
const REOPEN: Duration = Duration::from_secs(1);
/// How long after a directory went it is looked for again: whoever removes a tree is not done with its first directory.
const REWATCH: Duration = Duration::from_millis(50);
/// How often a released sandbox is looked at until its connections go on.
const GOES_ON_SOON: Duration = Duration::from_secs(1);
const EVENT_BUFFER: usize = 64 * 1024;

/// What wakes the loop, by the number that epoll is given for it.
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

/// What the agent does besides applying marks.
#[derive(Debug)]
pub struct Options {
    /// A mark that is gone for less than this releases nobody: editors and configuration management replace a file by removing
    /// it and making it anew.
    pub release_after: Duration,
    /// Who keeps the evidence of what it cuts off.
    pub collectors: Option<Collectors>,
    /// Whether pods are adopted that were made without the plugin.
    pub adopts: bool,
    /// What they are adopted by.
    pub places: Places,
    /// Whether what is dropped of isolated pods is kept.
    pub captures: bool,
    /// Where it serves what it counts.
    pub metrics: Option<SocketAddr>,
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// [`AgentError`]; [`StateError::AgentRunning`] in it where another agent runs on this node.
pub fn run(state_dir: &Path, options: Options) -> Result<(), AgentError> {
    let state = StateDir::open_or_create(state_dir)?;
    let _only = state.lock_agent()?;
    subscribed::raise_descriptor_limit();
    let counts = Arc::new(Counts::default());
    let mut agent =
        Agent::start(state, state_dir, options.release_after, options.collectors, options.captures, &counts)?;
    agent.resync(Everyone::Yes);
    agent.sweep_births();
    if options.adopts {
        keep_adopting(&agent.state, options.places.clone());
    }
    if let Some(address) = options.metrics {
        serve_metrics(address, &agent.state, options.places, counts);
    }
    let _ = sd_notify::notify(&[NotifyState::Ready]);
    log::info!(
        "{}",
        Line::new("agent-started")
            .with("sandboxes", agent.index.sandboxes().count())
            .with("marks", agent.index.marks().len())
            // Where the kernel does not say what is hooked, what is listed has to do.
            .with("hooks", if Nft::open().is_ok_and(|mut nft| nft.tells_hooks()) { "told" } else { "not-told" })
    );
    agent.state.tidy_index();
    directory::remove_guards_of_the_past(&agent.state);
    let result = agent.serve();
    let _ = sd_notify::notify(&[NotifyState::Stopping]);
    log::info!("{}", Line::new("agent-stopped"));
    result
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
    /// Who keeps what is dropped of isolated sandboxes.
    captures: Option<Captures>,
    /// Those whose mark is gone, and when they may be released for it.
    waiting: BTreeMap<ContainerId, Instant>,
    workers: Workers,
    epoll: Epoll,
    index: Index,
    seen: SeenMarks,
    rewatch_due: Option<Instant>,
    applied: BTreeMap<ContainerId, Answer>,
    at_work: BTreeMap<ContainerId, AtWork>,
    node_changes: NodeChanges,
    subscribed: BTreeMap<ContainerId, Subscribed>,
    /// How many can be listened to; the descriptors that are left are for the work.
    subscribed_max: usize,
    /// Isolated, and not listened to for want of descriptors.
    unheard: BTreeSet<ContainerId>,
    by_number: BTreeMap<u64, ContainerId>,
    next_number: u64,
    failures: BTreeMap<ContainerId, Retries>,
    due: BTreeSet<(Instant, ContainerId)>,
    programs: Programs,
    probers: Probers,
    host_pods: HostPods,
    births: Arc<Births>,
    /// When all sandboxes are to be looked through for those that want programs.
    births_due: Instant,
    buffer: Vec<u8>,
}

impl Agent {
    fn start(
        state: StateDir,
        state_dir: &Path,
        release_after: Duration,
        collectors: Option<Collectors>,
        captures: bool,
        counts: &Arc<Counts>,
    ) -> Result<Self, AgentError> {
        let mask = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        // Before all other threads, which inherit it.
        mask.thread_block().map_err(system("block signals"))?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)
            .map_err(system("listen to signals"))?;
        // Before anything is applied: from here on the kernel takes rules that hand packets over.
        let captures = captures.then(|| Captures::start(state_dir)).transpose();
        let captures = captures.map_err(|source| AgentError::System { what: "listen to what is dropped", source })?;
        let captures = captures.flatten();
        let count = workers::count();
        let births = Arc::new(Births::default());
        let collectors = Arc::new(collectors);
        let mut workers = Workers::start(&state, count, &collectors, counts, &births)
            .map_err(|source| AgentError::System { what: "start the workers", source })?;
        workers.threads.push(own_thread());
        let host_pods = HostPods::start(&state, release_after, &collectors, counts)
            .map_err(|source| AgentError::System { what: "look after pods with hostNetwork", source })?;
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
            state_dir: state_dir.to_owned(),
            watch: None,
            is_polling: false,
            signals,
            host,
            node,
            release_after,
            captures,
            waiting: BTreeMap::new(),
            workers,
            epoll,
            index: Index::default(),
            seen: SeenMarks::default(),
            rewatch_due: None,
            applied: BTreeMap::new(),
            at_work: BTreeMap::new(),
            node_changes: NodeChanges::default(),
            subscribed: BTreeMap::new(),
            subscribed_max: 0,
            unheard: BTreeSet::new(),
            by_number: BTreeMap::new(),
            next_number: FIRST_SANDBOX,
            failures: BTreeMap::new(),
            due: BTreeSet::new(),
            programs: Programs::of(Links::open()?.netns_cookie()),
            probers: Probers::none(),
            host_pods,
            births,
            births_due: Instant::now(),
            buffer: vec![0; EVENT_BUFFER],
        };
        agent.watch_or_poll(&agent.state.clone());
        agent.subscribed_max = subscribed::most_subscribed(count);
        Ok(agent)
    }

    /// The one loop: what woke it, what that means, what is due.
    fn serve(&mut self) -> Result<(), AgentError> {
        let mut clock = Clock::started(self.resync_pause());
        let mut events = [EpollEvent::empty(); 64];
        loop {
            for event in self.wait(&clock, &mut events)? {
                match event.data() {
                    WATCH => self.state_changed(),
                    SIGNALS if self.signalled() => return Ok(()),
                    SIGNALS => {}
                    FINISHED => self.finished(),
                    HOST => self.host_touched(),
                    NODE => self.node_touched(),
                    number => self.sandbox_touched(number),
                }
            }
            self.do_what_is_due(&mut clock);
        }
    }

    /// Waits for an event, no longer than until something is due.
    fn wait<'a>(&self, clock: &Clock, events: &'a mut [EpollEvent]) -> Result<&'a [EpollEvent], AgentError> {
        let due = self.due.first().map(|(when, _)| *when);
        let looks = [self.programs.due(), self.probers.due(), self.rewatch_due];
        let next = [Some(clock.resync), clock.ping, due].into_iter().chain(looks).flatten().min();
        let wait = next.map_or(SLOW_TIMER, |when| when.saturating_duration_since(Instant::now()));
        // Rounded up: a deadline in half a millisecond is not polled for.
        let milliseconds = u16::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u16::MAX);
        let ready = match self.epoll.wait(events, EpollTimeout::from(milliseconds)) {
            Err(Errno::EINTR) => 0,
            ready => ready.map_err(system("wait for events"))?,
        };
        Ok(&events[..ready])
    }

    fn do_what_is_due(&mut self, clock: &mut Clock) {
        let now = Instant::now();
        while let Some((when, container_id)) = self.due.first().cloned()
            && when <= now
        {
            self.due.pop_first();
            if let Some(subscribed) = self.subscribed.get_mut(&container_id) {
                subscribed.is_due = false;
            }
            self.dispatch(&container_id);
        }
        for container_id in self.programs.displaced(now).into_iter().chain(self.probers.changed(now)) {
            self.dispatch(&container_id);
        }
        if self.rewatch_due.take_if(|when| *when <= now).is_some() {
            self.rewatch();
        }
        if clock.resync <= now {
            self.resync(Everyone::Isolated);
            clock.resync = now + SLOW_TIMER;
            if self.births_due <= now {
                self.sweep_births();
            }
        }
        clock.resync = clock.resync.min(now + self.resync_pause());
        if clock.ping.is_some_and(|when| when <= now) {
            let _ = sd_notify::notify(&[NotifyState::Watchdog]);
            clock.ping = clock.watchdog.map(|interval| now + interval);
        }
    }

    /// Has all sandboxes looked through for those that want programs to wait on them.
    fn sweep_births(&mut self) {
        self.births_due = Instant::now() + SLOW_TIMER;
        if self.births.may_sweep() {
            self.workers.attend(Birth::Sweep(self.index.sandboxes().cloned().collect()));
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

    fn act(&mut self, among: &BTreeSet<ContainerId>) {
        for action in plan(&self.index, &self.applied, among) {
            match action {
                Action::Apply(container_id) => self.dispatch(&container_id),
                Action::Forget(container_id) => self.forget(&container_id),
            }
        }
    }

    /// Has a worker look at a sandbox, once at a time.
    fn dispatch(&mut self, container_id: &ContainerId) {
        if let Some(at_work) = self.at_work.get_mut(container_id) {
            at_work.again = true;
            return;
        }
        // Each that is at work may come back listened to.
        let may_listen = self.subscribed.len() + self.at_work.len() < self.subscribed_max;
        let subscribed = self.subscribed.get(container_id);
        let may_release =
            self.release_after.is_zero() || self.waiting.get(container_id).is_some_and(|&when| when <= Instant::now());
        self.at_work.insert(container_id.clone(), AtWork { again: false, since: self.node_changes.heard() });
        self.workers.submit(Job {
            since: Instant::now(),
            may_release,
            container_id: container_id.clone(),
            answer: self.index.answer_of(container_id),
            is_subscribed: subscribed.is_some(),
            before: Before::Unknown,
            may_listen,
            enforced: subscribed.map(Subscribed::enforced),
            may_capture: self.captures.is_some(),
        });
    }

    /// Events of a sandbox came. It is not listened to again before it was looked at, so that whoever makes events in
    /// a loop sets no pace but ours.
    fn sandbox_touched(&mut self, number: u64) {
        let Some(container_id) = self.by_number.get(&number).cloned() else { return };
        let Some(subscribed) = self.subscribed.get_mut(&container_id) else { return };
        let heard = subscribed.events.drain(&mut self.buffer, &self.workers.threads);
        if !heard.is_of_interest() {
            self.listen_again(&container_id);
            return;
        }
        heard.strangers.into_iter().for_each(|stranger| subscribed.saw(stranger));
        self.look_soon(container_id);
    }

    /// Has it looked at, as soon as its last look is long enough ago.
    fn look_soon(&mut self, container_id: ContainerId) {
        let Some(subscribed) = self.subscribed.get_mut(&container_id) else { return };
        if subscribed.is_due {
            return;
        }
        let now = Instant::now();
        let when = subscribed.looks.next(now);
        if when <= now {
            self.dispatch(&container_id);
        } else {
            subscribed.is_due = true;
            self.due.insert((when, container_id));
        }
    }

    fn host_touched(&mut self) {
        let (touched, lost) = self.host.drain(&mut self.buffer, &self.workers.threads);
        let touched: BTreeSet<_> = if lost {
            self.subscribed.keys().cloned().collect()
        } else {
            let mut concerned = BTreeSet::new();
            for (container_id, stranger) in touched {
                if let Some(subscribed) = self.subscribed.get_mut(&container_id) {
                    subscribed.saw(stranger);
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
