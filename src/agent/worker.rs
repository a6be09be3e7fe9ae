//! What the agent's threads do: bring one sandbox to its marks, at a time each.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::evidence::Collectors;
use crate::kernel::netns::Netns;
use crate::model::audit::Line;
use crate::model::mark::Desired;
use crate::model::names::{ContainerId, Key};
use crate::model::policy::Policy;
use crate::model::record::NodeOnLink;
use crate::model::records::SandboxRecords;
use crate::node::enforce::{self, Cause, EnforceError};
use crate::node::sandbox::{Before, Dependence, Sandbox, SandboxError, Scan, Side};
use crate::node::state::StateDir;
use crate::node::workers::{Queue, hold};

use super::births::{Birth, Births};
use super::index::Answer;
use super::metrics::Counts;
use super::own_thread::own_thread;
use super::subscription::PodEvents;

/// Stack of a worker; its deepest call is reading a record.
const STACK: usize = 512 * 1024;
/// How long a worker waits for whoever else is at work on a sandbox, before it turns to others and comes back.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);

/// A sandbox to be brought to its marks.
#[derive(Debug)]
pub(super) struct Job {
    /// When what it is done for was heard of.
    pub(super) since: Instant,
    pub(super) container_id: ContainerId,
    /// The marks that it answered to when the job was made.
    pub(super) answer: Answer,
    /// Whether its events are listened to already.
    pub(super) is_subscribed: bool,
    /// Whether descriptors are left to listen to them.
    pub(super) may_listen: bool,
    /// Whether there is anybody who keeps what is dropped.
    pub(super) may_capture: bool,
    /// Whether it may be released: not before its mark has been gone for as long as replacing one may take.
    pub(super) may_release: bool,
    /// What is known of it.
    pub(super) before: Before,
    /// How it was isolated when it was last looked at.
    pub(super) enforced: Option<Enforced>,
}

/// How a sandbox was isolated: what differs though this is the same was changed by somebody.
#[derive(Debug, Clone)]
pub(super) struct Enforced {
    pub(super) policy: Policy,
    /// What the node looked like from each of its interfaces.
    pub(super) node: Vec<NodeOnLink>,
}

/// What became of a job.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) container_id: ContainerId,
    pub(super) answer: Answer,
    pub(super) outcome: Outcome,
}

/// How a job ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// It is isolated.
    Isolated {
        /// The events of its netns, where they were not listened to and can be.
        events: Option<PodEvents>,
        /// Whether it has an interface besides `lo`.
        has_interfaces: bool,
        /// By this policy.
        policy: Policy,
        /// Whether somebody had changed its rules.
        was_altered: bool,
        /// Whether it has eBPF programs.
        has_programs: bool,
        /// What of the node that depends on.
        depends: Dependence,
    },
    /// No mark holds for it any more, and it may not be released yet.
    Waiting,
    /// It is released.
    Released {
        /// Whether connections still have to go on, so that it has to be looked at again.
        is_to_be_put_back: bool,
    },
    /// It has ended.
    Gone,
    /// It has no record that can be read.
    Unrecorded,
    /// It could not be brought to its marks.
    Failed,
}

enum Task {
    Apply(Job),
    /// Attaching takes tens of milliseconds a sandbox. It is put off, and comes alone.
    Attend(Birth),
    /// Closing can take milliseconds after something was deleted in that netns.
    Close(PodEvents),
}

/// The threads and their queue.
pub(super) struct Workers {
    queue: Arc<Queue<Task>>,
    done: Arc<Mutex<Vec<Done>>>,
    /// Readable when something was done.
    pub(super) finished: Arc<EventFd>,
    /// Their thread IDs, by which the kernel names who changed rules.
    pub(super) threads: Vec<i32>,
}

impl Workers {
    /// Starts `count` threads in the calling thread's netns.
    pub(super) fn start(
        state: &StateDir,
        count: usize,
        collectors: &Arc<Option<Collectors>>,
        counts: &Arc<Counts>,
        births: &Arc<Births>,
    ) -> io::Result<Self> {
        let (queue, done) = (Arc::new(Queue::open()), Arc::new(Mutex::new(Vec::new())));
        let finished = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?);
        let (started, starting) = std::sync::mpsc::channel();
        for number in 0..count {
            let mut host = Side::own().map_err(io::Error::other)?;
            let (queue, done, finished) = (queue.clone(), done.clone(), finished.clone());
            let (state, started, collectors) = (state.clone(), started.clone(), collectors.clone());
            let (counts, births) = (counts.clone(), births.clone());
            thread::Builder::new().name(format!("worker-{number}")).stack_size(STACK).spawn(move || {
                let _ = started.send(own_thread());
                queue.serve_many(enforce::CUT_AT_ONCE, |tasks| {
                    for job in cut_off_first(&state, &mut host, &queue, &births, tasks) {
                        let outcome = work(&state, &mut host, &job, collectors.as_ref().as_ref(), &counts);
                        hold(&done).push(Done { container_id: job.container_id, answer: job.answer, outcome });
                        let _ = finished.write(1);
                    }
                });
            })?;
        }
        drop(started);
        Ok(Self { queue, done, finished, threads: starting.iter().take(count).collect() })
    }

    /// Puts a job at the end of the queue.
    pub(super) fn submit(&self, job: Job) {
        self.queue.push(Task::Apply(job));
    }

    /// Has a sandbox's birth attended to, when nothing else waits.
    pub(super) fn attend(&self, birth: Birth) {
        self.queue.put_off(Task::Attend(birth));
    }

    /// Has a subscription closed by one of the threads.
    pub(super) fn close(&self, events: PodEvents) {
        self.queue.push(Task::Close(events));
    }

    /// Takes what was done.
    pub(super) fn take_done(&self) -> Vec<Done> {
        let _ = self.finished.read();
        std::mem::take(&mut hold(&self.done))
    }
}

/// Of many that wait, has all cut off that are to be, and puts those off for what is left to be done; gives the others.
fn cut_off_first(
    state: &StateDir,
    host: &mut Side,
    queue: &Queue<Task>,
    births: &Births,
    tasks: Vec<Task>,
) -> Vec<Job> {
    let mut jobs = Vec::with_capacity(tasks.len());
    for task in tasks {
        match task {
            Task::Close(events) => drop(events),
            Task::Apply(job) => jobs.push(job),
            Task::Attend(birth) => births.attend(state, host, &birth),
        }
    }
    if jobs.len() < 2 {
        return jobs;
    }
    let wanted = |job: &Job, records: &SandboxRecords| desired(state, &job.answer, records).ok();
    let cut = enforce::cut_off(state, host, &jobs, |job| &job.container_id, wanted);
    let cut: BTreeSet<ContainerId> = cut.into_iter().cloned().collect();
    let (cut, others): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| cut.contains(&job.container_id));
    cut.into_iter().for_each(|job| queue.put_off(Task::Apply(Job { before: Before::Cut, ..job })));
    others
}

fn work(state: &StateDir, host: &mut Side, job: &Job, collectors: Option<&Collectors>, counts: &Counts) -> Outcome {
    match apply(state, host, job, collectors, counts) {
        Ok(outcome) => outcome,
        Err(EnforceError::Sandbox(error)) if error.is_gone() => Outcome::Gone,
        Err(error) => {
            let fault = crate::model::audit::chain(&error);
            log::error!("{}", Line::new("failed").with("container", &job.container_id).with("error", fault));
            counts.failed();
            Outcome::Failed
        }
    }
}

fn apply(
    state: &StateDir,
    host: &mut Side,
    job: &Job,
    collectors: Option<&Collectors>,
    counts: &Counts,
) -> Result<Outcome, EnforceError> {
    let container_id = &job.container_id;
    let Some(_lock) = state.lock_within(container_id, LOCK_PATIENCE)? else {
        log::debug!("{}", Line::new("busy").with("container", container_id));
        return Ok(Outcome::Failed);
    };
    let (records, damaged) = state.records_of(container_id);
    for damaged in damaged {
        log::warn!("{}", Line::new("damaged-record").with("file", damaged.path.display()).with("error", damaged.fault));
    }
    let Some(records) = records else { return Ok(Outcome::Unrecorded) };
    let desired = desired(state, &job.answer, &records)?;
    if !desired.is_isolated() && !job.may_release && is_isolated(host, &records) {
        return Ok(Outcome::Waiting);
    }
    let policy = match &desired {
        Desired::Isolated { policy, .. } => Some(policy),
        Desired::Released => None,
    };
    // Before the rules: what happens to them from now on is heard. That it cannot be is no reason not to isolate.
    let mut events = if policy.is_some() && !job.is_subscribed && job.may_listen { subscribe(&records) } else { None };
    // What is not as it was, although the same is wanted, was changed by somebody, whatever had it looked at.
    let cause = match &job.enforced {
        Some(enforced) if Some(&enforced.policy) == policy => Cause::Disturbed(&enforced.node),
        _ => Cause::Asked,
    };
    let mut apply = || enforce::apply_desired(state, host, &records, &desired, cause, job.before, Scan::Sandbox);
    let applied = match apply() {
        // What was taken to listen may be what is missing.
        Err(error) if error.is_shortage() && events.take().is_some() => apply()?,
        applied => applied?,
    };
    if applied.is_new_isolation(&desired) {
        counts.isolated_after(job.since.elapsed());
        if let Some(collectors) = collectors {
            collectors.collect(container_id.clone().into());
        }
    }
    if let Some(events) = events.as_mut().filter(|_| job.may_capture && records.is_captured()) {
        events.capture(&records);
    }
    let Some(policy) = policy else {
        return Ok(Outcome::Released { is_to_be_put_back: applied.is_to_be_put_back });
    };
    Ok(Outcome::Isolated {
        events,
        has_interfaces: applied.report.interfaces > 0,
        has_programs: applied.report.programs.iter().any(|programs| programs.hold),
        was_altered: cause.is_repair(&applied),
        depends: applied.report.depends,
        policy: policy.clone(),
    })
}

fn subscribe(records: &SandboxRecords) -> Option<PodEvents> {
    let subscribed =
        Netns::open(records.netns()).map_err(SandboxError::from).and_then(|netns| PodEvents::subscribe(&netns));
    match subscribed {
        Err(error) if !error.is_gone() => {
            let error = crate::model::audit::chain(&error);
            log::warn!("{}", Line::new("not-heard").with("container", records.container_id()).with("error", error));
            None
        }
        subscribed => subscribed.ok(),
    }
}

/// Whether there is anything to be released; what cannot be found out is left to whoever applies.
fn is_isolated(host: &mut Side, records: &SandboxRecords) -> bool {
    Sandbox::open(host, records).and_then(|mut sandbox| Ok(sandbox.is_isolated_in_part()?)).unwrap_or(false)
}

/// What the marks want, now and under the lock: the job may be older than a mark. To isolate, the marks that the job
/// names and the sandbox's own will do; only to release are all of the node's looked through.
fn desired(state: &StateDir, answer: &Answer, records: &SandboxRecords) -> Result<Desired, EnforceError> {
    let pod = records.pod();
    let own = Key::from(records.container_id());
    let last = [pod.uid.as_ref().map(Key::from), pod.name_key()];
    let siblings =
        answer.iter().map(|(key, _)| key).filter(|key| **key != own && !last.iter().flatten().any(|last| last == *key));
    let keys: Vec<&Key> = [&own].into_iter().chain(siblings).chain(last.iter().flatten()).collect();
    let marks: Vec<_> = keys.into_iter().filter_map(|key| state.read_mark(key)).collect();
    if marks.is_empty() {
        return Ok(enforce::desired(state, records)?);
    }
    Ok(records.desired(&marks))
}
