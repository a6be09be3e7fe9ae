//! What the agent counts, and what it says of the node when it is asked: that is read from the kernel then.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::adopt::{Places, uncovered_pods};
use crate::metrics::{Exposition, Histogram, serve};
use crate::model::audit::{Line, chain};
use crate::model::mark::answering_keys;
use crate::model::names::{ContainerId, Key, Pod};
use crate::node::sandbox::{NodeScan, Side};
use crate::node::state::{StateDir, StateError};
use crate::node::workers::hold;
use crate::status::read::read_sandbox;
use crate::status::{Direction, Finding};

/// What is counted while the agent runs.
#[derive(Debug, Default)]
pub(super) struct Counts {
    contained: Mutex<Histogram>,
    failures: AtomicU64,
}

impl Counts {
    /// A sandbox was isolated: so long after its mark was heard of, the kernel had been read back.
    pub(super) fn isolated_after(&self, time: Duration) {
        hold(&self.contained).observe(time);
    }

    /// A sandbox could not be brought to its marks.
    pub(super) fn failed(&self) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
}

/// Answers scrapers. That the address cannot be had is said, and keeps nothing else from working.
pub(super) fn serve_metrics(address: SocketAddr, state: &StateDir, places: Places, counts: Arc<Counts>) {
    let (state, mut dropped) = (state.clone(), Dropped::default());
    let text = move || text(&state, &places, &counts, &mut dropped);
    if let Err(error) = serve(address, text) {
        log::warn!("{}", Line::new("no-metrics").with("address", address).with("error", error));
    }
}

fn text(state: &StateDir, places: &Places, counts: &Counts, dropped: &mut Dropped) -> String {
    let mut text = Exposition::default();
    match Node::read(state, dropped) {
        Ok(node) => {
            text.gauge("quarantine_active", "Sandboxes of this node that are isolated.", node.active);
            let partial = node.partial.iter().map(|(code, count)| (*code, *count));
            text.gauge_by("quarantine_partial", "Sandboxes contained in part, by reason.", "reason", partial);
            let help = "Marks that no sandbox of this node answers to.";
            text.gauge("quarantine_orphan_marks", help, node.orphans);
        }
        Err(error) => {
            counts.failed();
            log::warn!("{}", Line::new("not-counted").with("error", chain(&error)));
        }
    }
    let by_direction = [("in", dropped.inbound), ("out", dropped.outbound)];
    let help = "Packets of isolated sandboxes that were dropped, as far as somebody looked before they were released.";
    text.counter_by("quarantine_dropped_packets", help, "direction", by_direction);
    match uncovered_pods(state, places) {
        Ok(uncovered) => {
            let help = "Network namespaces with an interface on the node and no record: they cannot be isolated.";
            text.gauge("quarantine_uncovered_pods", help, uncovered.len());
        }
        Err(error) => log::warn!("{}", Line::new("not-counted").with("error", chain(&error))),
    }
    let failures = counts.failures.load(Ordering::Relaxed);
    let help = "How often a sandbox could not be brought to its marks, or the node not be read.";
    text.counter("quarantine_failures", help, failures);
    let help = "From a mark's being heard of to its sandbox's being read back as isolated.";
    text.histogram("quarantine_contain_seconds", help, ("stage", "agent"), &hold(&counts.contained));
    text.finish()
}

/// What was dropped until now: the kernel's counters begin anew with the rules.
#[derive(Debug, Default)]
struct Dropped {
    inbound: u64,
    outbound: u64,
    /// What the kernel's counters were at the last look, by sandbox.
    last: BTreeMap<ContainerId, [u64; 2]>,
}

impl Dropped {
    fn add(&mut self, found: BTreeMap<ContainerId, [u64; 2]>) {
        for (id, now) in &found {
            let before = self.last.get(id).copied().unwrap_or_default();
            let more = |index: usize| now[index].checked_sub(before[index]).unwrap_or(now[index]);
            self.inbound += more(0);
            self.outbound += more(1);
        }
        self.last = found;
    }
}

/// What is read of the node.
#[derive(Debug, Default)]
struct Node {
    active: usize,
    partial: BTreeMap<&'static str, usize>,
    orphans: usize,
}

impl Node {
    fn read(state: &StateDir, dropped: &mut Dropped) -> Result<Self, StateError> {
        let marks = state.marks()?;
        let mut node = Self::default();
        let mut drops = BTreeMap::new();
        if !marks.is_empty() {
            let pods: BTreeMap<ContainerId, Pod> = state
                .sandboxes()?
                .into_iter()
                .map(|id| {
                    let pod = state.records_of(&id).0.map(|records| records.pod().clone()).unwrap_or_default();
                    (id, pod)
                })
                .collect();
            let pod_of = |key: &Key| pods.get(&ContainerId::new(key.as_str()).ok()?).cloned();
            let mut answered = BTreeSet::new();
            let marked = pods.iter().filter(|(id, pod)| {
                let keys = answering_keys(id, pod, &marks, pod_of);
                let is_marked = !keys.is_empty();
                answered.extend(keys);
                is_marked
            });
            let marked: Vec<&ContainerId> = marked.map(|(id, _)| id).collect();
            node.orphans = marks.difference(&answered).count();
            if let Ok(mut host) = Side::own() {
                let scan = NodeScan::default();
                for id in marked {
                    node.take(state, &mut host, &scan, id, &mut drops)?;
                }
            }
        }
        dropped.add(drops);
        Ok(node)
    }

    fn take(
        &mut self,
        state: &StateDir,
        host: &mut Side,
        scan: &NodeScan,
        id: &ContainerId,
        drops: &mut BTreeMap<ContainerId, [u64; 2]>,
    ) -> Result<(), StateError> {
        let Some(status) = read_sandbox(state, host, id, scan)? else { return Ok(()) };
        let Finding::Read(reading) = &status.finding else { return Ok(()) };
        drops.insert(id.clone(), [Direction::In, Direction::Out].map(|direction| reading.dropped(direction)));
        match status.verdict() {
            "contained" => self.active += 1,
            "partial" => {
                self.active += 1;
                for reason in &reading.reasons {
                    *self.partial.entry(reason.code()).or_default() += 1;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dropped_never_becomes_less() {
        let found = |name: &str, packets: [u64; 2]| (ContainerId::new(name).unwrap(), packets);
        let mut dropped = Dropped::default();
        for (now, expected) in [
            (vec![found("c1", [3, 1])], [3, 1]),
            (vec![found("c1", [5, 1]), found("c2", [0, 7])], [5, 8]),
            // The rules of the first were written anew.
            (vec![found("c1", [2, 0]), found("c2", [0, 9])], [7, 10]),
            (vec![], [7, 10]),
            (vec![found("c2", [1, 1])], [8, 11]),
        ] {
            dropped.add(now.into_iter().collect());
            assert_eq!([dropped.inbound, dropped.outbound], expected);
        }
    }
}
