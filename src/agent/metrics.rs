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
use crate::model::subject::Subject;
use crate::model::verdict::Reason;
use crate::node::host_pod::{HostNode, candidates};
use crate::node::sandbox::{NodeScan, Side};
use crate::node::state::{StateDir, StateError};
use crate::node::workers::hold;
use crate::status::read::read_sandbox;
use crate::status::{Direction, Finding, HostFinding, HostPodStatus};

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
            text.gauge(
                "quarantine_active",
                "Sandboxes and pods with hostNetwork of this node that are isolated.",
                node.active,
            );
            let partial = node.partial.iter().map(|(code, count)| (*code, *count));
            text.gauge_by("quarantine_partial", "Those contained in part, by reason.", "reason", partial);
            let help = "Marks that nothing on this node answers to.";
            text.gauge("quarantine_orphan_marks", help, node.orphans);
        }
        Err(error) => {
            counts.failed();
            log::warn!("{}", Line::new("not-counted").with("error", chain(&error)));
        }
    }
    let by_direction = [("in", dropped.inbound), ("out", dropped.outbound)];
    let help = "Packets of those that were dropped, as far as somebody looked before they were released.";
    text.counter_by("quarantine_dropped_packets", help, "direction", by_direction);
    match uncovered_pods(state, places) {
        Ok(uncovered) => {
            let help = "Network namespaces with an interface on the node and no record: they cannot be isolated.";
            text.gauge("quarantine_uncovered_pods", help, uncovered.len());
        }
        Err(error) => log::warn!("{}", Line::new("not-counted").with("error", chain(&error))),
    }
    let failures = counts.failures.load(Ordering::Relaxed);
    let help = "How often a pod could not be brought to its marks, or the node not be read.";
    text.counter("quarantine_failures", help, failures);
    let help = "From a mark's being heard of to its pod's being read back as isolated.";
    text.histogram("quarantine_contain_seconds", help, ("stage", "agent"), &hold(&counts.contained));
    text.finish()
}

/// What was dropped until now: the kernel's counters begin anew with the rules.
#[derive(Debug, Default)]
struct Dropped {
    inbound: u64,
    outbound: u64,
    /// What the kernel's counters were at the last look.
    last: Counters,
}

/// Packets that were dropped on the way in and out, of each that is isolated.
type Counters = BTreeMap<Subject, [u64; 2]>;

impl Dropped {
    fn add(&mut self, found: Counters) {
        for (subject, now) in &found {
            let before = self.last.get(subject).copied().unwrap_or_default();
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
            let of_host_pods = host_pods(state);
            answered.extend(of_host_pods.iter().flat_map(HostPodStatus::keys).cloned());
            node.orphans = marks.difference(&answered).count();
            of_host_pods.iter().for_each(|status| node.take_host_pod(status, &mut drops));
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
        drops: &mut Counters,
    ) -> Result<(), StateError> {
        let Some(status) = read_sandbox(state, host, id, scan)? else { return Ok(()) };
        let Finding::Read(reading) = &status.finding else { return Ok(()) };
        drops.insert(id.clone().into(), [Direction::In, Direction::Out].map(|direction| reading.dropped(direction)));
        self.count(status.verdict(), reading.reasons.iter().map(Reason::code));
        Ok(())
    }

    fn take_host_pod(&mut self, status: &HostPodStatus, drops: &mut Counters) {
        let (HostFinding::Read(reading), Some(uid), Some(_)) = (&status.finding, &status.pod.uid, &status.marking)
        else {
            return;
        };
        let dropped = [Direction::In, Direction::Out].map(|direction| reading.dropped(direction));
        drops.insert(Subject::HostPod(uid.clone()), dropped);
        self.count(status.verdict(), reading.reasons.iter().map(|(code, _)| *code));
    }

    /// One that marks isolate, as it was found.
    fn count(&mut self, verdict: &str, reasons: impl Iterator<Item = &'static str>) {
        if !matches!(verdict, "contained" | "partial") {
            return;
        }
        self.active += 1;
        // Two interfaces, or two processes, of one pod may speak against it in the same way.
        let reasons: BTreeSet<_> = reasons.filter(|_| verdict == "partial").collect();
        reasons.into_iter().for_each(|code| *self.partial.entry(code).or_default() += 1);
    }
}

/// Those with hostNetwork that marks mean or programs are on; what cannot be looked at is said by who looks after them.
fn host_pods(state: &StateDir) -> Vec<HostPodStatus> {
    let Ok(node) = HostNode::look() else { return Vec::new() };
    let candidates = candidates(state, &node).unwrap_or_default();
    candidates.iter().filter_map(|uid| HostPodStatus::read(state, &node, uid).ok()?).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_dropped_never_becomes_less() {
        let found = |name: &str, packets: [u64; 2]| (Subject::Sandbox(ContainerId::new(name).unwrap()), packets);
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
