//! What a node does with its marks and its kernel, through the library. It blocks, and knows nothing of the API server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::Duration;

use cni_quarantine::apply::{Before, CUT_AT_ONCE, NodeScan, Scan, Side};
use cni_quarantine::apply::{EnforceError, apply_locked, cut_off_marked, on_each};
use cni_quarantine::audit::{Line, chain};
use cni_quarantine::collecting::{Collectors, is_wanted};
use cni_quarantine::mark::{Mark, MarkContent};
use cni_quarantine::names::{ContainerId, Key, Pod, PodUid};
use cni_quarantine::state::{StateDir, StateError};
use cni_quarantine::status::read::read_sandbox;
use cni_quarantine::status::{HostPodStatus, Marking, SandboxEntry, SandboxStatus};

use super::host_pods;
use super::plan::{Order, Step, steps};
use super::pods::Pods;

/// How long is waited for whoever is at work on a sandbox.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// One pod, and what is wanted of it; without an order it is only looked at.
#[derive(Debug, Clone)]
pub struct Job {
    /// The pod.
    pub uid: PodUid,
    /// What is wanted.
    pub order: Option<Order>,
    /// Whether its mark was shown by a [`Marker`] meanwhile, and the disk may not have it.
    pub is_shown: bool,
}

/// Who writes marks while other work goes on: the agent cuts off what is marked, whatever this process is waiting for.
#[derive(Debug)]
pub struct Marker(StateDir);

impl Marker {
    /// Shows the mark of a pod that is to be isolated; says whether it did. What cannot be is done again, and said, by who settles.
    #[must_use]
    pub fn show(&self, uid: &PodUid, order: &Order) -> bool {
        let Order::Hold(mark) = order else { return false };
        let key = Key::from(uid);
        !is_marked(&self.0, &key, mark) && self.0.show_mark(&key, mark).is_ok()
    }
}

/// Whether there is a mark by this name that is as it is wanted, or not the cluster's to change.
fn is_marked(state: &StateDir, key: &Key, wanted: &Mark) -> bool {
    let holding: Vec<_> = state.read_mark(key).map(|mark| (key.clone(), mark)).into_iter().collect();
    steps(&Order::Hold(Box::new(wanted.clone())), key, &holding).is_empty()
}

/// What was found of a pod.
#[derive(Debug, Clone)]
pub enum Seen {
    /// Its sandbox, the worst of them where it has several.
    Sandbox(Box<SandboxStatus>),
    /// The same of one with hostNetwork, which has no sandbox.
    HostPod(Box<HostPodStatus>),
    /// It has none, and is not on the node's network.
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

/// Among which pods is looked for those that are isolated.
#[derive(Debug, Clone, Copy)]
pub enum Among<'a> {
    /// All of the node's.
    All,
    /// These alone.
    These(&'a BTreeSet<PodUid>),
}

/// The state directory, and which sandboxes it has records of.
#[derive(Debug)]
pub struct Hands {
    state: StateDir,
    pods: Pods,
    /// What was cut off, and has not been given what its policy lets through yet.
    cut: BTreeSet<ContainerId>,
    /// Pods whose marks could not be written, or not kept by the disk, and why.
    failed: BTreeMap<PodUid, String>,
    /// Who keeps the evidence of what is cut off here: whoever cuts has it collected. None where it is not wanted.
    collectors: Option<Collectors>,
}

/// A mark that is there, and that the disk is to have.
struct Shown<'a> {
    uid: &'a PodUid,
    key: Key,
    mark: &'a Mark,
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
        let collectors = is_wanted().then(start).transpose()?;
        Ok(Self { state, pods: Pods::default(), cut: BTreeSet::new(), failed: BTreeMap::new(), collectors })
    }

    /// Who writes marks meanwhile.
    #[must_use]
    pub fn marker(&self) -> Marker {
        Marker(self.state.clone())
    }

    /// Brings pods to what is wanted of them, and says what they are then, in the same order. All that are to be cut off are,
    /// before anything else is done about any of them. As soon as `something_waits`, the rest is left for another time (none), so
    /// that what has come in meanwhile can be cut off.
    pub fn settle(&mut self, jobs: &[Job], something_waits: impl Fn() -> bool + Sync) -> Vec<Option<Seen>> {
        self.settle_all(jobs, something_waits)
            .unwrap_or_else(|why| jobs.iter().map(|_| Some(Seen::Failed(why.clone()))).collect())
    }

    fn settle_all(
        &mut self,
        jobs: &[Job],
        something_waits: impl Fn() -> bool + Sync,
    ) -> Result<Vec<Option<Seen>>, String> {
        let mut host = Side::own().map_err(|error| chain(&error))?;
        let marked = self.isolate(&mut host, jobs)?;
        self.refresh().map_err(|error| chain(&error))?;
        let without = jobs.iter().map(|job| &job.uid).filter(|uid| self.pods.sandboxes_of(uid).is_empty());
        let on_host = host_pods::among(without);
        let scan = NodeScan::default();
        let numbered: Vec<(usize, &Job)> = jobs.iter().enumerate().collect();
        let settle = |host: &mut Side, (number, job): &(usize, &Job)| {
            // One at least, or it would never end.
            let is_its_turn = *number == 0 || !something_waits();
            let mut settled = || match on_host.contains(&job.uid) {
                true => self.settle_host_pod(job, &marked),
                false => self.settle_one(host, &scan, job, &marked),
            };
            is_its_turn.then(|| settled().unwrap_or_else(Seen::Failed))
        };
        let seen = match &numbered[..] {
            [] => Vec::new(),
            [one] => vec![settle(&mut host, one)],
            all => on_each(all, settle).map_err(|error| chain(&error))?,
        };
        for (job, _) in jobs.iter().zip(&seen).filter(|(_, seen)| seen.is_some()) {
            for id in self.pods.sandboxes_of(&job.uid) {
                self.cut.remove(&id);
            }
        }
        Ok(seen)
    }

    /// Marks the pods that are to be isolated and are not, and cuts them off; gives these pods. The disk is waited for after that.
    fn isolate(&mut self, host: &mut Side, jobs: &[Job]) -> Result<BTreeSet<PodUid>, String> {
        let mut shown = Vec::new();
        for Job { uid, order, is_shown } in jobs {
            // Once more, if it failed.
            let is_kept = self.failed.remove(uid).is_none() && !is_shown;
            let Some(Order::Hold(mark)) = order else { continue };
            let key = Key::from(uid);
            let is_there = is_marked(&self.state, &key, mark);
            if is_there && is_kept {
                continue;
            }
            match if is_there { Ok(()) } else { self.state.show_mark(&key, mark) } {
                Ok(()) => shown.push(Shown { uid, key, mark }),
                Err(error) => drop(self.failed.insert(uid.clone(), chain(&error))),
            }
        }
        if shown.is_empty() {
            return Ok(BTreeSet::new());
        }
        if shown.iter().any(|shown| self.pods.sandboxes_of(shown.uid).is_empty()) {
            self.refresh().map_err(|error| chain(&error))?;
        }
        let sandboxes: Vec<ContainerId> = shown.iter().flat_map(|shown| self.pods.sandboxes_of(shown.uid)).collect();
        let cut = self.cut_off(host, &sandboxes)?;
        self.cut.extend(cut);
        let without = shown.iter().map(|shown| shown.uid).filter(|uid| self.pods.sandboxes_of(uid).is_empty());
        for uid in host_pods::among(without) {
            // Tried, and said, once more when it is looked at.
            let _ = host_pods::bring(&self.state, &uid, LOCK_PATIENCE, self.collectors.as_ref());
        }
        let kept = match &shown[..] {
            [one] => vec![self.state.keep_mark(&one.key)],
            all => on_each(all, |_, shown| self.state.keep_mark(&shown.key)).map_err(|error| chain(&error))?,
        };
        for (Shown { uid, key, mark }, kept) in shown.iter().zip(kept) {
            if let Err(error) = kept {
                self.failed.insert((*uid).clone(), chain(&error));
            }
            let line = Line::new("marked").with("mark", key).with_some("policy", mark.policy.as_ref());
            log::info!("{}", mark.attributed(line));
        }
        Ok(shown.into_iter().map(|shown| shown.uid.clone()).collect())
    }

    fn cut_off(&self, host: &mut Side, sandboxes: &[ContainerId]) -> Result<BTreeSet<ContainerId>, String> {
        if sandboxes.len() <= CUT_AT_ONCE {
            return Ok(cut_off_marked(&self.state, host, sandboxes).into_iter().cloned().collect());
        }
        let chunks: Vec<&[ContainerId]> = sandboxes.chunks(CUT_AT_ONCE).collect();
        let cut =
            on_each(&chunks, |host, chunk| cut_off_marked(&self.state, host, chunk)).map_err(|error| chain(&error))?;
        Ok(cut.into_iter().flatten().cloned().collect())
    }

    fn settle_one(
        &self,
        host: &mut Side,
        scan: &NodeScan,
        job: &Job,
        marked: &BTreeSet<PodUid>,
    ) -> Result<Seen, String> {
        let sandboxes = self.pods.sandboxes_of(&job.uid);
        let is_released = self.release(job, &sandboxes, None).map_err(|error| chain(&error))?;
        let is_changed = is_released || marked.contains(&job.uid) || sandboxes.iter().any(|id| self.cut.contains(id));
        if is_changed {
            self.apply(host, scan, &sandboxes)?;
        }
        // What could be done without it was done.
        if let Some(why) = self.failed.get(&job.uid) {
            return Err(why.clone());
        }
        let seen = self.look(host, scan, &sandboxes)?;
        // Whatever was changed since by others: an agent that is away repairs nothing.
        match &seen {
            Seen::Sandbox(status) if !is_changed && job.order.is_some() && !status.is_as_marked() => {
                self.apply(host, scan, &sandboxes)?;
                self.look(host, scan, &sandboxes)
            }
            _ => Ok(seen),
        }
    }

    /// The same of a pod with hostNetwork.
    fn settle_host_pod(&self, job: &Job, marked: &BTreeSet<PodUid>) -> Result<Seen, String> {
        let bring = || host_pods::bring(&self.state, &job.uid, LOCK_PATIENCE, self.collectors.as_ref());
        let named = host_pods::name_of(&job.uid);
        let is_released = self.release(job, &[], named).map_err(|error| chain(&error))?;
        if is_released || marked.contains(&job.uid) {
            bring()?;
        }
        if let Some(why) = self.failed.get(&job.uid) {
            return Err(why.clone());
        }
        match host_pods::look(&self.state, &job.uid)? {
            Seen::HostPod(status) if job.order.is_some() && !status.is_as_marked() => {
                // What cannot be is said by what is found then.
                let _ = bring();
                host_pods::look(&self.state, &job.uid)
            }
            seen => Ok(seen),
        }
    }

    /// Removes the marks of a pod that is to be released; says whether there were any. `named` is the mark's name by that of a pod that
    /// has no sandbox to say it.
    fn release(&self, job: &Job, sandboxes: &[ContainerId], named: Option<Key>) -> Result<bool, StateError> {
        let Some(order @ (Order::Release | Order::ReleaseAll)) = &job.order else { return Ok(false) };
        let own = Key::from(&job.uid);
        let steps = steps(order, &own, &self.holding(&own, sandboxes, named));
        for step in &steps {
            if let Step::Remove(key) = step {
                self.state.remove_mark(key)?;
                log::info!("{}", Line::new("unmarked").with("mark", key).with("actor", "PodQuarantine"));
            }
        }
        Ok(!steps.is_empty())
    }

    /// The marks that hold for a pod, the most specific first.
    fn holding(&self, own: &Key, sandboxes: &[ContainerId], named: Option<Key>) -> Vec<(Key, MarkContent)> {
        let pods = self.pods.of(sandboxes);
        let mut keys: Vec<Key> = pods.flat_map(|(id, pod)| self.pods.keys_of(id, pod)).collect();
        keys.push(own.clone());
        keys.extend(named);
        let mut seen = BTreeSet::new();
        keys.retain(|key| seen.insert(key.clone()));
        keys.into_iter().filter_map(|key| self.state.read_mark(&key).map(|mark| (key, mark))).collect()
    }

    fn apply(&self, host: &mut Side, scan: &NodeScan, sandboxes: &[ContainerId]) -> Result<(), String> {
        for id in sandboxes {
            let before = if self.cut.contains(id) { Before::Cut } else { Before::Unknown };
            match apply_locked(&self.state, host, id, before, Scan::Node(scan), LOCK_PATIENCE) {
                Ok(Some(enforced)) if enforced.is_new => {
                    if let Some(collectors) = &self.collectors {
                        collectors.collect(id.clone().into());
                    }
                }
                Ok(_) => {}
                Err(EnforceError::Sandbox(error)) if error.is_gone() => {}
                Err(error) => return Err(chain(&error)),
            }
        }
        Ok(())
    }

    fn look(&self, host: &mut Side, scan: &NodeScan, sandboxes: &[ContainerId]) -> Result<Seen, String> {
        let mut found = Vec::new();
        for id in sandboxes {
            found.extend(read_sandbox(&self.state, host, id, scan).map_err(|error| chain(&error))?);
        }
        Ok(worst(found).map_or(Seen::NoSandbox, |status| Seen::Sandbox(Box::new(status))))
    }

    /// The pods that files of the state directory are about.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn named(&mut self, files: &BTreeSet<String>) -> Result<BTreeSet<PodUid>, StateError> {
        if files.is_empty() {
            return Ok(BTreeSet::new());
        }
        // As they were, too: a record that is gone says nothing of its pod any more.
        let mut named: BTreeSet<PodUid> = files.iter().flat_map(|name| self.pods.named(name)).collect();
        self.refresh()?;
        named.extend(files.iter().flat_map(|name| self.pods.named(name)));
        Ok(named)
    }

    /// Which of these pods marks isolate on the node, whoever wrote them.
    ///
    /// # Errors
    /// [`StateError`].
    pub fn isolated(&mut self, among: Among<'_>) -> Result<Vec<Isolated>, StateError> {
        let mut isolated: Vec<Isolated> = match among {
            Among::All => {
                self.refresh()?;
                let marks = self.state.marks()?;
                let isolated = |(id, pod)| self.isolation_of(id, pod, |key| marks.contains(key));
                self.pods.iter().filter_map(isolated).collect()
            }
            Among::These(uids) => {
                let ids: Vec<ContainerId> = uids.iter().flat_map(|uid| self.pods.sandboxes_of(uid)).collect();
                self.pods.of(&ids).filter_map(|(id, pod)| self.isolation_of(id, pod, |_| true)).collect()
            }
        };
        isolated.extend(match among {
            Among::All => host_pods::isolated(&self.state, None),
            Among::These(uids) => host_pods::isolated(&self.state, Some(uids)),
        });
        Ok(isolated)
    }

    /// `may_be_there`: whether a mark is worth looking for.
    fn isolation_of(&self, id: &ContainerId, pod: &Pod, may_be_there: impl Fn(&Key) -> bool) -> Option<Isolated> {
        let keys = self.pods.keys_of(id, pod).into_iter().filter(may_be_there);
        let marks: Vec<_> = keys.filter_map(|key| self.state.read_mark(&key).map(|mark| (key, mark))).collect();
        if marks.is_empty() {
            return None;
        }
        let records = self.state.records_of(id).0;
        let marking = SandboxEntry::of(&self.state, id, records.as_ref(), marks).marking?;
        Some(Isolated { pod: pod.clone(), marking })
    }

    /// Reads the records that are new.
    fn refresh(&mut self) -> Result<(), StateError> {
        let present: BTreeSet<ContainerId> = self.state.sandboxes()?.into_iter().collect();
        self.cut.retain(|id| present.contains(id));
        let state = &self.state;
        self.pods.follow(&present, |id| state.records_of(id).0.map(|records| records.pod().clone()));
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
