//! What the node counts of what it does and finds.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::PoisonError;
use std::time::Instant;

use cni_quarantine::names::PodUid;
use cni_quarantine::status::{Direction, Finding, HostFinding};

use crate::api::is_of_an_object;
use crate::metrics::{Counted, Shared};

use super::hands::{Isolated, Seen};

/// The counters, and what they are counted from.
#[derive(Debug, Default)]
pub(super) struct Tally {
    counted: Shared,
    /// Of each pod that is isolated, the codes of what speaks against it.
    isolated: BTreeMap<PodUid, Vec<String>>,
    /// When an object came in whose pod was not found contained yet.
    waiting: BTreeMap<PodUid, Instant>,
    /// What the kernel's counters were at the last look, in and out; they begin anew with the rules.
    dropped: BTreeMap<PodUid, [u64; 2]>,
}

/// What was seen of a pod that marks isolate.
enum Isolation {
    /// None does.
    None,
    /// The kernel could not be read.
    Unread,
    /// It was.
    Read {
        verdict: &'static str,
        /// Of what speaks against it, each once.
        codes: Vec<String>,
        dropped: [u64; 2],
    },
}

impl Isolation {
    fn of(seen: &Seen) -> Self {
        const WAYS: [Direction; 2] = [Direction::In, Direction::Out];
        let codes = |codes: BTreeSet<&str>| codes.into_iter().map(str::to_owned).collect();
        match seen {
            Seen::Sandbox(status) if status.entry.marking.is_some() => match &status.finding {
                Finding::Read(reading) => Self::Read {
                    verdict: status.verdict(),
                    codes: codes(reading.reasons.iter().map(|reason| reason.code()).collect()),
                    dropped: WAYS.map(|way| reading.dropped(way)),
                },
                Finding::Gone(_) | Finding::Unknown(_) => Self::Unread,
            },
            Seen::HostPod(status) if status.marking.is_some() => match &status.finding {
                HostFinding::Read(reading) => Self::Read {
                    verdict: status.verdict(),
                    codes: codes(reading.reasons.iter().map(|(code, _)| *code).collect()),
                    dropped: WAYS.map(|way| reading.dropped(way)),
                },
                HostFinding::Unknown(_) => Self::Unread,
            },
            Seen::Sandbox(_) | Seen::HostPod(_) | Seen::NoSandbox | Seen::Failed(_) => Self::None,
        }
    }
}

impl Tally {
    pub(super) fn counted(&self) -> Shared {
        self.counted.clone()
    }

    fn change(&self, change: impl FnOnce(&mut Counted)) {
        change(&mut self.counted.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// An object came in, or changed: its pod is to be isolated.
    pub(super) fn asked(&mut self, uid: &PodUid) {
        if !self.isolated.contains_key(uid) {
            self.waiting.entry(uid.clone()).or_insert_with(Instant::now);
        }
    }

    /// Nothing speaks of the pod any more, or it is to be released.
    pub(super) fn dropped(&mut self, uid: &PodUid) {
        self.waiting.remove(uid);
    }

    /// What was dropped since the last look.
    fn count_dropped(&mut self, uid: &PodUid, now: [u64; 2]) {
        let before = self.dropped.insert(uid.clone(), now).unwrap_or_default();
        self.change(|counted| {
            for ((sum, now), before) in counted.dropped.iter_mut().zip(now).zip(before) {
                *sum += now.checked_sub(before).unwrap_or(now);
            }
        });
    }

    pub(super) fn seen(&mut self, uid: &PodUid, seen: &Seen) {
        if let Seen::Failed(_) = seen {
            self.change(|counted| counted.failures += 1);
            return;
        }
        let isolation = Isolation::of(seen);
        match &isolation {
            Isolation::None => drop(self.dropped.remove(uid)),
            Isolation::Unread => {}
            Isolation::Read { dropped, .. } => self.count_dropped(uid, *dropped),
        }
        let codes = match isolation {
            Isolation::Read { verdict: "contained" | "partial", codes, .. } => Some(codes),
            _ => None,
        };
        match codes {
            Some(codes) => {
                if let Some(since) = self.waiting.remove(uid) {
                    self.change(|counted| counted.contained.observe(since.elapsed()));
                }
                self.isolated.insert(uid.clone(), codes);
            }
            None => drop(self.isolated.remove(uid)),
        }
    }

    /// Sums up, after a round of what was seen.
    pub(super) fn sum_up(&self) {
        let mut partial: BTreeMap<String, usize> = BTreeMap::new();
        for code in self.isolated.values().flatten() {
            *partial.entry(code.clone()).or_default() += 1;
        }
        self.change(|counted| {
            counted.active = self.isolated.len();
            counted.partial = partial;
        });
    }

    /// All that is isolated on the node; `is_spoken_of` says whether an object of the cluster's wants it.
    pub(super) fn on_the_node(&self, isolated: &[Isolated], is_spoken_of: impl Fn(&PodUid) -> bool) {
        let is_orphan = |isolated: &&Isolated| {
            is_of_an_object(&isolated.marking.mark) && isolated.pod.uid.as_ref().is_some_and(|uid| !is_spoken_of(uid))
        };
        let orphans = isolated.iter().filter(is_orphan).count();
        self.change(|counted| counted.orphans = orphans);
    }
}
