//! The eBPF programs of isolated sandboxes: looked at again and again, since the kernel tells nobody when one comes off, or when another
//! is put before it.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use crate::model::names::ContainerId;
use crate::node::sandbox::programs_are_displaced;

/// How long a program may be displaced before it is seen. A look takes microseconds a sandbox.
const PAUSE: Duration = Duration::from_secs(1);

/// Those that have programs.
#[derive(Debug)]
pub(super) struct Programs {
    netns_cookie: u64,
    sandboxes: BTreeSet<ContainerId>,
    due: Instant,
}

impl Programs {
    /// Of the node whose netns has this cookie.
    pub(super) fn of(netns_cookie: u64) -> Self {
        Self { netns_cookie, sandboxes: BTreeSet::new(), due: Instant::now() }
    }

    /// Whether a sandbox has them, as it was just read back.
    pub(super) fn heed(&mut self, container_id: &ContainerId, has_programs: bool) {
        if has_programs {
            self.sandboxes.insert(container_id.clone());
        } else {
            self.sandboxes.remove(container_id);
        }
    }

    /// When they are to be looked at; never where there are none.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.sandboxes.is_empty()).then_some(self.due)
    }

    /// Those of which one is displaced, where they are due.
    pub(super) fn displaced(&mut self, now: Instant) -> Vec<ContainerId> {
        if self.due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        self.due = now + PAUSE;
        let is_displaced = |container_id: &&ContainerId| programs_are_displaced(self.netns_cookie, container_id);
        self.sandboxes.iter().filter(is_displaced).cloned().collect()
    }
}
