//! An isolated sandbox whose events are listened to, and what was heard of it.

use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollFlags};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::model::audit::Line;
use crate::model::names::ContainerId;
use crate::model::policy::Policy;
use crate::node::sandbox::Dependence;

use super::Agent;
use super::pacing::{LOOKS_FORGOTTEN, Looks};
use super::subscription::PodEvents;
use super::worker::Enforced;

/// Of those who were seen changing rules, so many are named.
const STRANGERS_MAX: usize = 4;

/// Descriptors that one sandbox takes which is listened to: rules, links, packets, and the file for these.
const DESCRIPTORS_EACH: usize = 4;
/// Descriptors that a worker may need at a time: a lock, a netns, sockets in it, a record, a mark, and some to spare.
const DESCRIPTORS_AT_WORK: usize = 16;
/// Descriptors that each of many takes that are brought to their marks together: a lock, a netns, sockets in it, its events.
const DESCRIPTORS_TOGETHER: usize = 8;
/// More are not worth the memory: what all of them want is in it at once, with every rule of their guards, for each worker.
const TOGETHER_MAX: usize = 8;
/// How often an isolated sandbox is looked at that cannot be listened to.
const UNHEARD_PAUSE: Duration = Duration::from_secs(1);

/// The limit that the process may have, whatever it was started with.
pub(super) fn raise_descriptor_limit() {
    if let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

fn descriptor_limit() -> usize {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| usize::try_from(soft).unwrap_or(usize::MAX))
}

/// How many sandboxes each of so many workers can bring to their marks together: for that a quarter of the descriptors is kept.
pub(super) fn most_together(workers: usize) -> usize {
    (descriptor_limit() / 4 / workers / DESCRIPTORS_TOGETHER).clamp(1, TOGETHER_MAX)
}

/// How many sandboxes can be listened to beside so many workers: isolating comes before hearing.
pub(super) fn most_subscribed(workers: usize) -> usize {
    let open = std::fs::read_dir("/proc/self/fd").map_or(64, Iterator::count);
    let at_work = workers * (DESCRIPTORS_AT_WORK + most_together(workers) * DESCRIPTORS_TOGETHER);
    descriptor_limit().saturating_sub(open + DESCRIPTORS_AT_WORK + at_work) / DESCRIPTORS_EACH
}

/// An isolated sandbox whose events are listened to.
pub(super) struct Subscribed {
    pub(super) events: PodEvents,
    /// By which its events are told from those of others.
    pub(super) number: u64,
    /// What it was isolated with.
    policy: Policy,
    /// Who was heard changing rules that no look has told apart yet.
    strangers: Vec<String>,
    /// When rules were put back that nobody has been named for yet: who did it may be heard only later.
    unnamed: Option<Instant>,
    pub(super) looks: Looks,
    /// Whether the next look is due already.
    pub(super) is_due: bool,
    /// What of the node its rules were computed from.
    pub(super) depends: Dependence,
}

impl Subscribed {
    pub(super) fn new(events: PodEvents, number: u64, policy: Policy) -> Self {
        Self {
            events,
            number,
            policy,
            strangers: Vec::new(),
            unnamed: None,
            looks: Looks::default(),
            is_due: false,
            depends: Dependence::default(),
        }
    }

    pub(super) fn saw(&mut self, stranger: String) {
        if self.strangers.len() < STRANGERS_MAX && !self.strangers.contains(&stranger) {
            self.strangers.push(stranger);
        }
    }

    /// How it should be found, where nothing but tampering can have changed that.
    pub(super) fn enforced(&self) -> Enforced {
        Enforced { policy: self.policy.clone(), node: self.depends.seen.clone() }
    }

    /// It was looked at; gives those who are to be named for what was found altered, now or before.
    pub(super) fn looked_at(&mut self, policy: Policy, was_altered: bool, again: bool, now: Instant) -> Vec<String> {
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

impl Agent {
    pub(super) fn listen(&mut self, container_id: &ContainerId, mut events: PodEvents, policy: Policy) {
        if let (Some(captures), Some(capture)) = (&self.captures, events.take_capture()) {
            captures.watch(container_id.clone(), capture.pod);
        }
        let number = self.next_number;
        self.next_number += 1;
        for fd in events.descriptors() {
            let once = EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT;
            if let Err(errno) = self.epoll.add(fd, EpollEvent::new(once, number)) {
                log::error!("{}", Line::new("failed").with("container", container_id).with("error", errno));
            }
        }
        self.by_number.insert(number, container_id.clone());
        let subscribed = Subscribed::new(events, number, policy);
        self.unheard.remove(container_id);
        self.subscribed.insert(container_id.clone(), subscribed);
    }

    pub(super) fn stop_listening(&mut self, container_id: &ContainerId) {
        if let Some(subscribed) = self.subscribed.remove(container_id) {
            if let Some(captures) = &self.captures {
                captures.stop(container_id);
            }
            self.by_number.remove(&subscribed.number);
            for fd in subscribed.events.descriptors() {
                let _ = self.epoll.delete(fd);
            }
            self.workers.close(subscribed.events);
        }
    }

    /// After it was looked at.
    pub(super) fn listen_again(&self, container_id: &ContainerId) {
        let Some(subscribed) = self.subscribed.get(container_id) else { return };
        for fd in subscribed.events.descriptors() {
            let mut event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, subscribed.number);
            let _ = self.epoll.modify(fd, &mut event);
        }
    }

    /// It is isolated and cannot be listened to: it is looked at every second instead.
    pub(super) fn look_again_later(&mut self, container_id: &ContainerId) {
        if self.unheard.insert(container_id.clone()) {
            let reason = "no file descriptors are left to listen to it; raise the agent's LimitNOFILE=";
            log::warn!(
                "{}",
                Line::new("polling").with("container", container_id).with("every", "1s").with("reason", reason)
            );
        }
        self.due.retain(|(_, due)| due != container_id);
        self.due.insert((Instant::now() + UNHEARD_PAUSE, container_id.clone()));
    }
}
