//! The cgroups that the probes of isolated sandboxes come from: looked at again and again, since a kubelet that is started anew may be in
//! another one, and its probes must pass before they have failed for long.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::model::names::ContainerId;
use crate::node::sandbox::{ProberSeen, cgroup_of};

/// How long a cgroup may be another before it is seen. A kubelet takes longer from its start to its first probe.
const PAUSE: Duration = Duration::from_secs(1);

/// Those whose policies name a prober, and as what it was found when they were looked at.
#[derive(Debug)]
pub(super) struct Probers {
    sandboxes: BTreeMap<ContainerId, ProberSeen>,
    due: Instant,
}

impl Probers {
    pub(super) fn none() -> Self {
        Self { sandboxes: BTreeMap::new(), due: Instant::now() }
    }

    /// What the rules of a sandbox were computed from, as it was just read back.
    pub(super) fn heed(&mut self, container_id: &ContainerId, seen: Option<&ProberSeen>) {
        match seen {
            Some(seen) => drop(self.sandboxes.insert(container_id.clone(), seen.clone())),
            None => drop(self.sandboxes.remove(container_id)),
        }
    }

    /// When they are to be looked at; never where there are none.
    pub(super) fn due(&self) -> Option<Instant> {
        (!self.sandboxes.is_empty()).then_some(self.due)
    }

    /// Those whose prober is found as something else by now, where they are due.
    pub(super) fn changed(&mut self, now: Instant) -> Vec<ContainerId> {
        if self.due().is_none_or(|due| due > now) {
            return Vec::new();
        }
        self.due = now + PAUSE;
        let seen: BTreeSet<&ProberSeen> = self.sandboxes.values().collect();
        let is_changed = |seen: &&ProberSeen| cgroup_of(&seen.prober).ok() != seen.cgroup;
        let changed: BTreeSet<&ProberSeen> = seen.into_iter().filter(is_changed).collect();
        let of_these = self.sandboxes.iter().filter(|(_, seen)| changed.contains(seen));
        of_these.map(|(container_id, _)| container_id.clone()).collect()
    }
}
