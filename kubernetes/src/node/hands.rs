//! What a node does with its marks and its kernel, through the library. It blocks, and knows nothing of the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use cni_quarantine::apply::{Before, NodeScan, Scan, Side};
use cni_quarantine::apply::{EnforceError, apply_locked};
use cni_quarantine::audit::{Line, chain};
use cni_quarantine::collecting::{Collectors, is_wanted};
use cni_quarantine::mark::{MarkContent, answering_keys};
use cni_quarantine::names::{ContainerId, Key, Pod, PodUid};
use cni_quarantine::state::{StateDir, StateError};
use cni_quarantine::status::read::{read_entry, read_sandbox};
use cni_quarantine::status::{Marking, SandboxStatus};

use super::plan::{Order, Step, steps};

/// How long is waited for whoever is at work on a sandbox.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// One pod, and what is wanted of it; without an order it is only looked at.
#[derive(Debug, Clone)]
pub struct Job {
    /// The pod.
    pub uid: PodUid,
    /// What is wanted.
    pub order: Option<Order>,
}

/// What was found of a pod.
#[derive(Debug, Clone)]
pub enum Seen {
    /// Its sandbox, the worst of them where it has several.
    Sandbox(Box<SandboxStatus>),
    /// It has none.
    NoSandbox,
    /// It could not be done; why.
    Failed(String),
}

/// A pod that is isolated on the node, whoever wanted that.
#[derive(Debug, Clone)]
pub struct Isolated {
    /// The pod.
    pub pod: Pod,
    /// What holds for it.
    pub marking: Marking,
}

/// The state directory, and which sandboxes it has records of.
#[derive(Debug)]
pub struct Hands {
    state: StateDir,
    /// What a record says of its pod does not change: each is read once.
    pods: BTreeMap<ContainerId, Pod>,
    /// Who keeps the evidence of what is cut off here: whoever cuts has it collected. None where it is not wanted.
    collectors: Option<Collectors>,
}

impl Hands {
    /// Opens the state directory, making what is not there. `program` is the plugin's, which collects evidence.
    ///
    /// # Errors
    /// [`StateError`]; or no thread can be started.
    pub fn open(path: &Path, program: &Path) -> anyhow::Result<Self> {
        let state = StateDir::open_or_create(path)?;
        let log = ["--log", "stderr"].map(str::to_owned).to_vec();
        let start = || Collectors::new(program.to_owned(), path.to_owned(), log);
        Ok(Self { state, pods: BTreeMap::new(), collectors: is_wanted().then(start).transpose()? })
    }

    /// Brings pods to what is wanted of them, and says what they are then, in the same order.
    pub fn settle(&mut self, jobs: &[Job]) -> Vec<Seen> {
        self.settle_all(jobs).unwrap_or_else(|why| jobs.iter().map(|_| Seen::Failed(why.clone())).collect())
    }

    fn settle_all(&mut self, jobs: &[Job]) -> Result<Vec<Seen>, String> {
        let mut host = Side::own().map_err(|error| chain(&error))?;
        self.refresh().map_err(|error| chain(&error))?;
        // Each job changes its own pod's marks alone.
        let marks = self.state.marks().map_err(|error| chain(&error))?;
        let scan = NodeScan::default();
        let settle = |job| self.settle_one(&mut host, &scan, &marks, job).unwrap_or_else(Seen::Failed);
        Ok(jobs.iter().map(settle).collect())
    }

    fn settle_one(&self, host: &mut Side, scan: &NodeScan, marks: &BTreeSet<Key>, job: &Job) -> Result<Seen, String> {
        let own = Key::from(&job.uid);
        let sandboxes: Vec<&ContainerId> =
            self.pods.iter().filter(|(_, pod)| pod.uid.as_ref() == Some(&job.uid)).map(|(id, _)| id).collect();
        let holding = self.holding(marks, &own, &sandboxes);
        let steps = job.order.as_ref().map(|order| steps(order, &own, &holding)).unwrap_or_default();
        for step in &steps {
            self.take(&own, step).map_err(|error| chain(&error))?;
        }
        if !steps.is_empty() {
            self.apply(host, scan, &sandboxes)?;
        }
        let seen = self.look(host, scan, &sandboxes)?;
        // Whatever was changed since by others: an agent that is away repairs nothing.
        match &seen {
            Seen::Sandbox(status) if steps.is_empty() && job.order.is_some() && !status.is_as_marked() => {
                self.apply(host, scan, &sandboxes)?;
                self.look(host, scan, &sandboxes)
            }
            _ => Ok(seen),
        }
    }

    /// The marks that hold for a pod, the most specific first.
    fn holding(&self, marks: &BTreeSet<Key>, own: &Key, sandboxes: &[&ContainerId]) -> Vec<(Key, MarkContent)> {
        let mut keys: Vec<Key> = Vec::new();
        for id in sandboxes {
            let pod = self.pods.get(id).cloned().unwrap_or_default();
            keys.extend(answering_keys(id, &pod, marks, |key| self.pod_of(key)));
        }
        keys.extend(marks.get(own).cloned());
        let mut seen = BTreeSet::new();
        keys.retain(|key| seen.insert(key.clone()));
        keys.into_iter().filter_map(|key| self.state.read_mark(&key).map(|mark| (key, mark))).collect()
    }

    fn pod_of(&self, key: &Key) -> Option<Pod> {
        self.pods.get(&ContainerId::new(key.as_str()).ok()?).cloned()
    }

    fn take(&self, own: &Key, step: &Step) -> Result<(), StateError> {
        match step {
            Step::Write(mark) => {
                self.state.write_mark(own, mark)?;
                let line = Line::new("marked")
                    .with("mark", own)
                    .with_some("policy", mark.policy.as_ref())
                    .with_some("reason", mark.reason.as_ref())
                    .with_some("case", mark.case.as_ref())
                    .with_some("actor", mark.actor.as_ref());
                log::info!("{line}");
            }
            Step::Remove(key) => {
                self.state.remove_mark(key)?;
                log::info!("{}", Line::new("unmarked").with("mark", key).with("actor", "PodQuarantine"));
            }
        }
        Ok(())
    }

    fn apply(&self, host: &mut Side, scan: &NodeScan, sandboxes: &[&ContainerId]) -> Result<(), String> {
        for id in sandboxes {
            match apply_locked(&self.state, host, id, Before::Unknown, Scan::Node(scan), LOCK_PATIENCE) {
                Ok(Some(enforced)) if enforced.is_new => {
                    if let Some(collectors) = &self.collectors {
                        collectors.collect((*id).clone());
                    }
                }
                Ok(_) => {}
                Err(EnforceError::Sandbox(error)) if error.is_gone() => {}
                Err(error) => return Err(chain(&error)),
            }
        }
        Ok(())
    }

    fn look(&self, host: &mut Side, scan: &NodeScan, sandboxes: &[&ContainerId]) -> Result<Seen, String> {
        let mut found = Vec::new();
        for id in sandboxes {
            found.extend(read_sandbox(&self.state, host, id, scan).map_err(|error| chain(&error))?);
        }
        Ok(worst(found).map_or(Seen::NoSandbox, |status| Seen::Sandbox(Box::new(status))))
    }

    /// The pods that marks isolate on the node, whoever wrote them.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn isolated(&mut self) -> Result<Vec<Isolated>, StateError> {
        if self.state.marks()?.is_empty() {
            return Ok(Vec::new());
        }
        self.refresh()?;
        let mut isolated = Vec::new();
        for (id, pod) in &self.pods {
            let Some((_, entry)) = read_entry(&self.state, id)? else { continue };
            if let Some(marking) = entry.marking {
                isolated.push(Isolated { pod: pod.clone(), marking });
            }
        }
        Ok(isolated)
    }

    /// Reads the records that are new.
    fn refresh(&mut self) -> Result<(), StateError> {
        let present: BTreeSet<ContainerId> = self.state.sandboxes()?.into_iter().collect();
        self.pods.retain(|id, _| present.contains(id));
        for id in present {
            if !self.pods.contains_key(&id)
                && let Some(records) = self.state.records_of(&id).0
            {
                self.pods.insert(id, records.pod().clone());
            }
        }
        Ok(())
    }
}

/// Of several sandboxes of one pod, the one that speaks most against it; one whose network namespace has ended only where
/// there is no other.
fn worst(found: Vec<SandboxStatus>) -> Option<SandboxStatus> {
    found.into_iter().max_by_key(|status| match status.verdict() {
        "open" => 4,
        "unknown" => 3,
        "partial" => 2,
        "contained" => 1,
        _ => 0,
    })
}
