//! An isolated sandbox whose events are listened to, and what was heard of it.

use std::time::Instant;

use crate::model::policy::Policy;
use crate::node::sandbox::Dependence;

use super::pacing::{LOOKS_FORGOTTEN, Looks};
use super::subscription::PodEvents;

/// Of those who were seen changing rules, so many are named.
const STRANGERS_MAX: usize = 4;

/// An isolated sandbox whose events are listened to.
pub(super) struct Listened {
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
    /// Whether that changed since: what the next look finds to differ is then nobody's tampering.
    pub(super) node_changed: bool,
}

impl Listened {
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
            node_changed: false,
        }
    }

    pub(super) fn saw(&mut self, stranger: String) {
        if self.strangers.len() < STRANGERS_MAX && !self.strangers.contains(&stranger) {
            self.strangers.push(stranger);
        }
    }

    /// The policy that it should be found with, where nothing but tampering can have changed that.
    pub(super) fn enforced(&mut self) -> Option<Policy> {
        (!std::mem::take(&mut self.node_changed)).then(|| self.policy.clone())
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
