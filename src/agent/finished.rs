//! What a worker has done: what is known of the sandbox from then on, and what is to be done next.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::model::audit::Line;
use crate::model::names::ContainerId;
use crate::model::policy::Policy;

use super::Agent;
use super::GOES_ON_SOON;
use super::index::Answer;
use super::node_changes::AtWork;
use super::worker::{Done, Outcome};

impl Agent {
    pub(super) fn finished(&mut self) {
        for Done { container_id, answer, outcome } in self.workers.take_done() {
            let AtWork { mut again, since } = self.at_work.remove(&container_id).unwrap_or_default();
            let mut is_settled = true;
            if !matches!(outcome, Outcome::Waiting | Outcome::Failed) {
                self.waiting.remove(&container_id);
            }
            match outcome {
                Outcome::Isolated { events, has_interfaces, has_programs, policy, was_altered, depends } => {
                    self.programs.heed(&container_id, has_programs);
                    self.probers.heed(&container_id, depends.prober.as_deref());
                    self.settle(&container_id, answer);
                    match events {
                        Some(events) => self.listen(&container_id, events, policy),
                        None if !self.subscribed.contains_key(&container_id) => self.look_again_later(&container_id),
                        None => self.looked_at(&container_id, policy, was_altered, again),
                    }
                    // What was heard while it was looked at was not known to concern it.
                    again |= self.node_changes.concern(&depends, since);
                    if let Some(subscribed) = self.subscribed.get_mut(&container_id) {
                        subscribed.depends = depends;
                    }
                    self.listen_again(&container_id);
                    if !has_interfaces {
                        self.unheard.remove(&container_id);
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
                Outcome::Released { is_to_be_put_back } => {
                    self.programs.heed(&container_id, false);
                    self.probers.heed(&container_id, None);
                    self.settle(&container_id, answer);
                    self.unheard.remove(&container_id);
                    self.stop_listening(&container_id);
                    if is_to_be_put_back {
                        self.due.insert((Instant::now() + GOES_ON_SOON, container_id.clone()));
                    }
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
                    let pause = self.failures.entry(container_id.clone()).or_default().next_pause();
                    // One retry at a time, whatever else had it looked at in between.
                    self.due.retain(|(_, due)| *due != container_id);
                    if let Some(subscribed) = self.subscribed.get_mut(&container_id) {
                        subscribed.is_due = false;
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

    pub(super) fn looked_at(&mut self, container_id: &ContainerId, policy: Policy, was_altered: bool, again: bool) {
        let Some(subscribed) = self.subscribed.get_mut(container_id) else { return };
        let named = subscribed.looked_at(policy, was_altered, again, Instant::now());
        if !named.is_empty() {
            log::warn!("{}", Line::new("tampering").with("container", container_id).with("by", named.join(",")));
        }
    }

    /// A sandbox is as this answer wants it.
    pub(super) fn settle(&mut self, container_id: &ContainerId, answer: Answer) {
        self.failures.remove(container_id);
        self.index.trust(container_id);
        self.applied.insert(container_id.clone(), answer);
    }

    pub(super) fn forget(&mut self, container_id: &ContainerId) {
        self.programs.heed(container_id, false);
        self.probers.heed(container_id, None);
        self.stop_listening(container_id);
        self.unheard.remove(container_id);
        if self.applied.remove(container_id).is_some_and(|answer| !answer.is_empty()) {
            self.index.doubt(container_id);
        }
        self.failures.remove(container_id);
        self.due.retain(|(_, due)| due != container_id);
    }
}
