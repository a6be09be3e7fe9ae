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
use crate::node::enforce::{self, Cause, EnforceError, NodeMarks, Wish};
use crate::node::sandbox::{Applied, Before, Dependence, Sandbox, SandboxError, Scan, Side};
use crate::node::state::{SandboxLock, StateDir};
use crate::node::workers::{Queue, hold};

use super::births::{Birth, Births};
use super::index::Answer;
use super::metrics::Counts;
use super::own_thread::own_thread;
use super::subscribed::most_together;
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
        let together = most_together(count);
        for number in 0..count {
            let mut host = Side::own().map_err(io::Error::other)?;
            let (queue, done, finished) = (queue.clone(), done.clone(), finished.clone());
            let (state, started, collectors) = (state.clone(), started.clone(), collectors.clone());
            let (counts, births) = (counts.clone(), births.clone());
            thread::Builder::new().name(format!("worker-{number}")).stack_size(STACK).spawn(move || {
                let _ = started.send(own_thread());
                let worker = Worker {
                    state: &state,
                    queue: &queue,
                    births: &births,
                    collectors: collectors.as_ref().as_ref(),
                    counts: &counts,
                };
                queue.serve_many(enforce::CUT_AT_ONCE, |tasks| {
                    let mut jobs = worker.cut_off_first(&mut host, tasks);
                    while !jobs.is_empty() {
                        let others = jobs.split_off(jobs.len().min(together));
                        let (outcomes, came_meanwhile) = worker.work(&mut host, jobs);
                        for (job, outcome) in outcomes {
                            hold(&done).push(Done { container_id: job.container_id, answer: job.answer, outcome });
                        }
                        let _ = finished.write(1);
                        jobs = came_meanwhile.into_iter().chain(others).collect();
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
        self.queue.put_last(Task::Attend(birth));
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

/// One of the threads.
struct Worker<'a> {
    state: &'a StateDir,
    queue: &'a Queue<Task>,
    births: &'a Births,
    collectors: Option<&'a Collectors>,
    counts: &'a Counts,
}

/// A sandbox that is locked.
struct Held {
    lock: SandboxLock,
    records: SandboxRecords,
}

/// What came of taking a sandbox's lock.
enum Taken {
    Held(Box<Held>),
    /// Somebody else is at work on it.
    Busy,
    /// It has no record that can be read.
    Unrecorded,
}

/// A job whose sandbox is locked, and what is wanted of it.
struct Ready {
    _lock: SandboxLock,
    records: SandboxRecords,
    desired: Desired,
    events: Option<PodEvents>,
}

impl Worker<'_> {
    /// Of many that wait, has all cut off that are to be, and puts those off for what is left to be done; gives the others.
    fn cut_off_first(&self, host: &mut Side, tasks: Vec<Task>) -> Vec<Job> {
        let (mut jobs, mut were_cut) = (Vec::with_capacity(tasks.len()), Vec::new());
        for task in tasks {
            match task {
                Task::Close(events) => drop(events),
                Task::Apply(job) if job.before == Before::Cut => were_cut.push(job),
                Task::Apply(job) => jobs.push(job),
                Task::Attend(birth) => self.births.attend(self.state, host, &birth),
            }
        }
        if jobs.len() > 1 {
            jobs = self.cut_off(host, jobs);
        }
        were_cut.append(&mut jobs);
        were_cut
    }

    /// Gives those that were not to be cut off, or could not be.
    fn cut_off(&self, host: &mut Side, jobs: Vec<Job>) -> Vec<Job> {
        let marks = NodeMarks::new(self.state);
        let wanted = |job: &Job, records: &SandboxRecords| desired(self.state, &marks, &job.answer, records).ok();
        let cut = enforce::cut_off(self.state, host, &jobs, |job| &job.container_id, wanted);
        let cut: BTreeSet<ContainerId> = cut.into_iter().cloned().collect();
        let (cut, others): (Vec<Job>, Vec<Job>) = jobs.into_iter().partition(|job| cut.contains(&job.container_id));
        cut.into_iter().for_each(|job| self.queue.put_off(Task::Apply(Job { before: Before::Cut, ..job })));
        others
    }

    /// Brings sandboxes to their marks; gives what became of each, and jobs that came meanwhile and that had to be taken from
    /// the queue, to see whether somebody is to be cut off: for that nobody waits until the others are done.
    fn work(&self, host: &mut Side, jobs: Vec<Job>) -> (Vec<(Job, Outcome)>, Vec<Job>) {
        let patience = if jobs.len() > 1 { Duration::ZERO } else { LOCK_PATIENCE };
        let (mut ended, mut held) = (Vec::with_capacity(jobs.len()), Vec::with_capacity(jobs.len()));
        let (mut busy, mut others) = (Vec::new(), Vec::new());
        for job in jobs {
            match self.take(&job, patience) {
                Ok(Taken::Held(it)) => held.push((job, *it)),
                Ok(Taken::Unrecorded) => ended.push((job, Outcome::Unrecorded)),
                Ok(Taken::Busy) if patience.is_zero() => busy.push(job),
                Ok(Taken::Busy) => {
                    log::debug!("{}", Line::new("busy").with("container", &job.container_id));
                    ended.push((job, Outcome::Failed));
                }
                Err(error) => {
                    let outcome = self.failed(&job, &error);
                    ended.push((job, outcome));
                }
            }
        }
        // Under the locks of all of them.
        let (marks, mut ready) = (NodeMarks::new(self.state), Vec::with_capacity(held.len()));
        for (job, it) in held {
            match self.prepare(host, &job, it, &marks) {
                Ok(Some(it)) => ready.push((job, it)),
                Ok(None) => ended.push((job, Outcome::Waiting)),
                Err(error) => {
                    let outcome = self.failed(&job, &error);
                    ended.push((job, outcome));
                }
            }
        }
        let wishes: Vec<_> = ready.iter().map(|(job, it)| it.wish(job)).collect();
        let applied = enforce::apply_together(self.state, host, &wishes, Scan::Sandbox, |host| {
            if others.len() < enforce::CUT_AT_ONCE {
                others.append(&mut self.cut_off_meanwhile(host));
            }
        });
        for ((job, it), applied) in ready.into_iter().zip(applied) {
            let outcome =
                self.conclude(host, &job, it, applied).unwrap_or_else(|error| self.failed(&job, &error.into()));
            ended.push((job, outcome));
        }
        // Those that are waited for come last, and nothing else is held while they are.
        for job in busy {
            let (mut one, mut more) = self.work(host, vec![job]);
            ended.append(&mut one);
            others.append(&mut more);
        }
        (ended, others)
    }

    /// Cuts off whoever is to be of those that came while others are opened; gives what else came.
    fn cut_off_meanwhile(&self, host: &mut Side) -> Vec<Job> {
        let mut jobs = Vec::new();
        for task in self.queue.take_waiting(enforce::CUT_AT_ONCE) {
            match task {
                Task::Apply(job) => jobs.push(job),
                Task::Close(events) => drop(events),
                Task::Attend(birth) => self.queue.put_last(Task::Attend(birth)),
            }
        }
        if jobs.is_empty() { jobs } else { self.cut_off(host, jobs) }
    }

    fn failed(&self, job: &Job, error: &EnforceError) -> Outcome {
        if matches!(error, EnforceError::Sandbox(error) if error.is_gone()) {
            return Outcome::Gone;
        }
        let fault = crate::model::audit::chain(error);
        log::error!("{}", Line::new("failed").with("container", &job.container_id).with("error", fault));
        self.counts.failed();
        Outcome::Failed
    }

    /// Takes the lock, and reads the records under it.
    fn take(&self, job: &Job, patience: Duration) -> Result<Taken, EnforceError> {
        let Some(lock) = self.state.lock_within(&job.container_id, patience)? else { return Ok(Taken::Busy) };
        let (records, damaged) = self.state.records_of(&job.container_id);
        for damaged in damaged {
            let line = Line::new("damaged-record").with("file", damaged.path.display()).with("error", damaged.fault);
            log::warn!("{line}");
        }
        Ok(records.map_or(Taken::Unrecorded, |records| Taken::Held(Box::new(Held { lock, records }))))
    }

    /// Finds out what is wanted. `None` where it is to be released, and may not be yet.
    fn prepare(
        &self,
        host: &mut Side,
        job: &Job,
        held: Held,
        marks: &NodeMarks<'_>,
    ) -> Result<Option<Ready>, EnforceError> {
        let Held { lock, records } = held;
        let desired = desired(self.state, marks, &job.answer, &records)?;
        if !desired.is_isolated() && !job.may_release && is_isolated(host, &records) {
            return Ok(None);
        }
        // Before the rules: what happens to them from now on is heard. That it cannot be is no reason not to isolate.
        let is_to_be_heard = desired.is_isolated() && !job.is_subscribed && job.may_listen;
        let events = if is_to_be_heard { subscribe(&records) } else { None };
        Ok(Some(Ready { _lock: lock, records, desired, events }))
    }

    fn conclude(
        &self,
        host: &mut Side,
        job: &Job,
        mut ready: Ready,
        applied: Result<Applied, SandboxError>,
    ) -> Result<Outcome, SandboxError> {
        let applied = match applied {
            // What was taken to listen may be what is missing.
            Err(error) if error.is_shortage() && ready.events.take().is_some() => {
                let Wish { records, desired, cause, before } = ready.wish(job);
                enforce::apply_desired(self.state, host, records, desired, cause, before, Scan::Sandbox)?
            }
            applied => applied?,
        };
        if applied.is_new_isolation(&ready.desired) {
            self.counts.isolated_after(job.since.elapsed());
            if let Some(collectors) = self.collectors {
                collectors.collect(job.container_id.clone().into());
            }
        }
        let was_altered = ready.wish(job).cause.is_repair(&applied);
        let Ready { records, desired, mut events, .. } = ready;
        if let Some(events) = events.as_mut().filter(|_| job.may_capture && records.is_captured()) {
            events.capture(&records);
        }
        let Desired::Isolated { policy, .. } = desired else {
            return Ok(Outcome::Released { is_to_be_put_back: applied.is_to_be_put_back });
        };
        Ok(Outcome::Isolated {
            events,
            has_interfaces: applied.report.interfaces > 0,
            has_programs: applied.report.programs.iter().any(|programs| programs.hold),
            was_altered,
            depends: applied.report.depends,
            policy,
        })
    }
}

impl Ready {
    fn wish<'a>(&'a self, job: &'a Job) -> Wish<'a> {
        // What is not as it was, although the same is wanted, was changed by somebody, whatever had it looked at.
        let cause = match &job.enforced {
            Some(enforced) if Some(&enforced.policy) == self.desired.policy() => Cause::Disturbed(&enforced.node),
            _ => Cause::Asked,
        };
        Wish { records: &self.records, desired: &self.desired, cause, before: job.before }
    }
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
fn desired(
    state: &StateDir,
    node: &NodeMarks<'_>,
    answer: &Answer,
    records: &SandboxRecords,
) -> Result<Desired, EnforceError> {
    let pod = records.pod();
    let own = Key::from(records.container_id());
    let last = [pod.uid.as_ref().map(Key::from), pod.name_key()];
    let siblings =
        answer.iter().map(|(key, _)| key).filter(|key| **key != own && !last.iter().flatten().any(|last| last == *key));
    let keys: Vec<&Key> = [&own].into_iter().chain(siblings).chain(last.iter().flatten()).collect();
    let marks: Vec<_> = keys.into_iter().filter_map(|key| state.read_mark(key)).collect();
    if marks.is_empty() {
        return Ok(node.desired(records)?);
    }
    Ok(records.desired(&marks))
}
