//! Marks to kernel for one sandbox: what ADD, CHECK, the agent and the commands all do, under the sandbox's lock.

use std::cell::OnceCell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use thiserror::Error;

use crate::model::audit::Line;
use crate::model::difference::joined;
use crate::model::mark::Desired;
use crate::model::names::{ContainerId, Key};
use crate::model::record::NodeOnLink;
use crate::model::records::SandboxRecords;
use crate::model::verdict::{Reason, Verdict};
use crate::node::patience::{self, PutBack};
use crate::node::sandbox::{Applied, Before, Begun, Joint, Report, Sandbox, SandboxError, Scan, Side, load_guards};
use crate::node::state::{ListedMarks, SandboxLock, StateDir, StateError};

/// Why the marks could not be enforced.
#[derive(Debug, Error)]
pub enum EnforceError {
    /// The marks could not be read.
    #[error(transparent)]
    State(#[from] StateError),
    /// The kernel could not be brought to them.
    #[error(transparent)]
    Sandbox(#[from] SandboxError),
}

/// What is wanted, and what was found.
#[derive(Debug)]
pub struct Enforced {
    /// What the marks want.
    pub desired: Desired,
    /// What was read back.
    pub report: Report,
    /// Whether it was isolated just now, and not before.
    pub is_new: bool,
}

impl Enforced {
    fn of(desired: Desired, applied: Applied) -> Self {
        let is_new = applied.is_new_isolation(&desired);
        Self { desired, report: applied.report, is_new }
    }
}

/// What the marks want of a sandbox. The caller holds its lock, or does not mind that the answer may be old.
pub fn desired(state: &StateDir, records: &SandboxRecords) -> Result<Desired, StateError> {
    NodeMarks::new(state).desired(records)
}

/// The same for many: the node's marks are listed once, when the first is asked for, and those that hold are read for each. The
/// caller holds the locks of all of them, or does not mind that the answer may be old: a mark that came after they were listed
/// is not among them.
#[derive(Debug)]
pub struct NodeMarks<'a> {
    state: &'a StateDir,
    /// `None` in it where they could not be listed.
    listed: OnceCell<Option<ListedMarks>>,
}

impl<'a> NodeMarks<'a> {
    /// Nothing is listed yet.
    #[must_use]
    pub fn new(state: &'a StateDir) -> Self {
        Self { state, listed: OnceCell::new() }
    }

    /// What they want of a sandbox.
    ///
    /// # Errors
    /// [`StateError::Io`] where they cannot be listed.
    pub fn desired(&self, records: &SandboxRecords) -> Result<Desired, StateError> {
        let (container_id, pod) = (records.container_id(), records.pod());
        let listed = self.listed.get_or_init(|| self.state.list_marks().ok());
        let marks = match listed.as_ref().and_then(|listed| self.state.marks_among(listed, container_id, pod)) {
            Some(marks) => marks,
            None => self.state.marks_of(container_id, pod)?,
        };
        let contents: Vec<_> = marks.into_iter().map(|(_, mark)| mark).collect();
        Ok(records.desired(&contents))
    }
}

/// Reads the marks of a sandbox and brings the kernel to them. The caller holds the sandbox's lock.
pub fn apply(
    state: &StateDir,
    host: &mut Side,
    records: &SandboxRecords,
    before: Before,
    scan: Scan<'_>,
) -> Result<Enforced, EnforceError> {
    let desired = desired(state, records)?;
    let applied = apply_desired(state, host, records, &desired, Cause::Asked, before, scan)?;
    Ok(Enforced::of(desired, applied))
}

/// Like [`apply`], of a sandbox that is named alone: takes its lock, waiting no longer than `patience`, and reads its
/// records under it. `None` where it was deleted meanwhile.
pub fn apply_locked(
    state: &StateDir,
    host: &mut Side,
    container_id: &ContainerId,
    before: Before,
    scan: Scan<'_>,
    patience: Duration,
) -> Result<Option<Enforced>, EnforceError> {
    let _lock = state.lock(container_id, patience)?;
    let (records, damaged) = state.records_of(container_id);
    match records {
        Some(records) => apply(state, host, &records, before, scan).map(Some),
        None if damaged.is_empty() => Ok(None),
        None => Err(SandboxError::Unknown { container_id: container_id.clone() }.into()),
    }
}

/// Like [`apply_locked`] for many, of which no more than [`CUT_AT_ONCE`] are named: what they want of the node's rules is changed in
/// one transaction. Those that somebody else is at work on come last, each by itself.
pub fn apply_all_locked(
    state: &StateDir,
    host: &mut Side,
    sandboxes: &[ContainerId],
    before: impl Fn(&ContainerId) -> Before,
    scan: Scan<'_>,
    patience: Duration,
) -> Vec<Result<Option<Enforced>, EnforceError>> {
    let mut outcomes = BTreeMap::new();
    if sandboxes.len() > 1 {
        let held = |id| Some((state.lock_within(id, Duration::ZERO).ok()??, state.records_of(id).0?));
        let held: Vec<(SandboxLock, SandboxRecords)> = sandboxes.iter().filter_map(held).collect();
        // Under the locks of all of them.
        let marks = NodeMarks::new(state);
        let wanted: Vec<(&SandboxRecords, Desired)> =
            held.iter().filter_map(|(_, records)| Some((records, marks.desired(records).ok()?))).collect();
        let wishes: Vec<_> = wanted
            .iter()
            .map(|(records, desired)| Wish {
                records,
                desired,
                cause: Cause::Asked,
                before: before(records.container_id()),
            })
            .collect();
        let applied = apply_together(state, host, &wishes, scan, |_| {});
        for ((records, desired), applied) in wanted.into_iter().zip(applied) {
            let enforced = applied.map(|applied| Some(Enforced::of(desired, applied))).map_err(EnforceError::from);
            outcomes.insert(records.container_id().clone(), enforced);
        }
    }
    let mut by_itself = |id| apply_locked(state, &mut *host, id, before(id), scan, patience);
    sandboxes.iter().map(|id| outcomes.remove(id).unwrap_or_else(|| by_itself(id))).collect()
}

/// How many sandboxes have their guards loaded in one transaction: their locks are held for it.
pub const CUT_AT_ONCE: usize = 32;

/// Cuts off those of many sandboxes that are to be isolated and are not, so that the last of them need not wait for what the
/// policies of the others let through: that is for [`apply_locked`] or [`apply_desired`], which are told by [`Before::Cut`].
/// Gives those that were cut off. Nothing is waited for, and nothing fails here: the others are left to whoever applies.
pub fn cut_off<'a, T>(
    state: &StateDir,
    host: &mut Side,
    sandboxes: &'a [T],
    container_id: impl Fn(&T) -> &ContainerId,
    desired: impl Fn(&T, &SandboxRecords) -> Option<Desired>,
) -> BTreeSet<&'a ContainerId>
where
    T: 'a,
{
    let (mut locks, mut guards, mut cut) = (Vec::new(), Vec::new(), BTreeSet::new());
    for sandbox in sandboxes {
        let id = container_id(sandbox);
        let Ok(Some(lock)) = state.lock_within(id, Duration::ZERO) else { continue };
        let Some(records) = state.records_of(id).0 else { continue };
        if !desired(sandbox, &records).is_some_and(|desired| desired.is_isolated()) {
            continue;
        }
        let Ok(mut sandbox) = Sandbox::open(host, &records) else { continue };
        if !matches!(sandbox.is_isolated_in_part(), Ok(false)) {
            continue;
        }
        if let Some(guard) = sandbox.cut() {
            guards.push(guard);
            locks.push(lock);
            cut.insert(id);
        }
    }
    load_guards(host, &guards);
    cut
}

/// The same where it is known which marks there are: those of these sandboxes' own, by container ID, UID and name, are read, and
/// the node's others are not looked through.
pub fn cut_off_marked<'a>(
    state: &StateDir,
    host: &mut Side,
    sandboxes: &'a [ContainerId],
) -> BTreeSet<&'a ContainerId> {
    let wanted = |_: &ContainerId, records: &SandboxRecords| {
        let pod = records.pod();
        let own = [Some(Key::from(records.container_id())), pod.uid.as_ref().map(Key::from), pod.name_key()];
        let marks: Vec<_> = own.iter().flatten().filter_map(|key| state.read_mark(key)).collect();
        Some(records.desired(&marks))
    };
    cut_off(state, host, sandboxes, |id| id, wanted)
}

/// Why a sandbox is looked at.
#[derive(Debug, Clone, Copy)]
pub enum Cause<'a> {
    /// A runtime, a person or a mark asked for it.
    Asked,
    /// It was seen to be as it is wanted, when the node looked like this from each of its interfaces: what is found to
    /// differ was changed by somebody, unless the node has changed.
    Disturbed(&'a [NodeOnLink]),
}

impl Cause<'_> {
    /// Whether what applying changed was put back after somebody.
    #[must_use]
    pub fn is_repair(self, applied: &Applied) -> bool {
        matches!(self, Self::Disturbed(seen) if applied.changed && applied.report.depends.seen == seen)
    }
}

/// Brings the kernel to what is wanted of a sandbox, reads it back, and says so in the log. The caller holds the
/// sandbox's lock, and has read what is wanted under it.
pub fn apply_desired(
    state: &StateDir,
    host: &mut Side,
    records: &SandboxRecords,
    desired: &Desired,
    cause: Cause<'_>,
    before: Before,
    scan: Scan<'_>,
) -> Result<Applied, SandboxError> {
    let started = Instant::now();
    match Sandbox::open(host, records) {
        Ok(mut sandbox) => carry_out(state, &mut sandbox, desired, cause, before, scan, started),
        Err(error) => {
            log_failed(records, desired, &error);
            Err(error)
        }
    }
}

/// One of many sandboxes, as [`apply_desired`] has it.
#[derive(Debug, Clone, Copy)]
pub struct Wish<'a> {
    /// Its records.
    pub records: &'a SandboxRecords,
    /// What is wanted of it, read under its lock.
    pub desired: &'a Desired,
    /// Why it is looked at.
    pub cause: Cause<'a>,
    /// What is known of it.
    pub before: Before,
}

/// Like [`apply_desired`] for many: what all of them want of the node's rules is changed in one transaction. The caller holds
/// their locks; `between` has a turn before each step.
pub fn apply_together(
    state: &StateDir,
    host: &mut Side,
    wishes: &[Wish<'_>],
    scan: Scan<'_>,
    mut between: impl FnMut(&mut Side),
) -> Vec<Result<Applied, SandboxError>> {
    let alone = |host: &mut Side, wish: &Wish<'_>| {
        apply_desired(state, host, wish.records, wish.desired, wish.cause, wish.before, scan)
    };
    if let [wish] = wishes {
        return vec![alone(host, wish)];
    }
    let mut joint = Joint::default();
    let mut begun = Vec::with_capacity(wishes.len());
    for wish in wishes {
        between(host);
        let started = Instant::now();
        let sandbox = Sandbox::open(host, wish.records);
        let one = sandbox.and_then(|sandbox| sandbox.begin(wish.desired, wish.before, &mut joint));
        begun.push(one.ok().flatten().map(|one| (started, one)));
    }
    if let Err(error) = joint.make(host) {
        let error = crate::model::audit::chain(&error);
        log::debug!("{}", Line::new("not-together").with("sandboxes", wishes.len()).with("error", error));
        begun.iter_mut().for_each(|one| *one = None);
    }
    let one_of = |(wish, begun): (&Wish<'_>, Option<_>)| {
        between(host);
        if let Some((started, begun)) = begun {
            let (mut sandbox, rest) = Begun::resume(begun, host, wish.records);
            let applied = sandbox.finish(rest, wish.desired, scan);
            if applied.is_ok() || !wish.desired.is_isolated() {
                return conclude(state, &mut sandbox, wish.desired, wish.cause, started, applied);
            }
        }
        alone(host, wish)
    };
    wishes.iter().zip(begun).map(one_of).collect()
}

/// Like [`apply`] for ADD, of a sandbox that is open already: one of which nothing is isolated or is to be only gets its
/// rules, and nothing is read back. `just_pinned` says that its records are of what was found in it a moment ago.
pub fn install(state: &StateDir, sandbox: &mut Sandbox<'_>, just_pinned: bool) -> Result<(), EnforceError> {
    let started = Instant::now();
    let desired = desired(state, sandbox.records())?;
    if is_released(sandbox, &desired)? {
        sandbox.install(just_pinned)?;
    } else {
        carry_out(state, sandbox, &desired, Cause::Asked, Before::Unknown, Scan::Sandbox, started)?;
    }
    Ok(())
}

fn carry_out(
    state: &StateDir,
    sandbox: &mut Sandbox<'_>,
    desired: &Desired,
    cause: Cause<'_>,
    before: Before,
    scan: Scan<'_>,
    started: Instant,
) -> Result<Applied, SandboxError> {
    let applied = sandbox.apply(desired, before, scan);
    conclude(state, sandbox, desired, cause, started, applied)
}

/// Says in the log what was done, and has connections kept, or lets them go.
fn conclude(
    state: &StateDir,
    sandbox: &mut Sandbox<'_>,
    desired: &Desired,
    cause: Cause<'_>,
    started: Instant,
    mut applied: Result<Applied, SandboxError>,
) -> Result<Applied, SandboxError> {
    let records = sandbox.records();
    match &mut applied {
        Ok(applied) => {
            log_applied(records, desired, applied, cause, started);
            keep_connections(state, sandbox, desired, applied);
        }
        Err(error) => log_failed(records, desired, error),
    }
    applied
}

/// What is not done of it is said, and is no reason for anything else.
fn keep_connections(state: &StateDir, sandbox: &mut Sandbox<'_>, desired: &Desired, applied: &mut Applied) {
    let container_id = sandbox.container_id();
    let kept = match desired {
        Desired::Isolated { policy, .. } => {
            let is_new = applied.is_new_isolation(desired);
            let held = if is_new { patience::hold_flows(sandbox, policy) } else { Ok(()) };
            let (netns, cookie) = sandbox.netns();
            held.and(patience::hold(state, container_id, netns, cookie))
        }
        Desired::Released => {
            let (netns, cookie) = sandbox.netns();
            patience::put_back(state, container_id, netns, cookie)
                .map(|put_back| applied.is_to_be_put_back = put_back == PutBack::Later)
        }
    };
    if let Err(error) = kept {
        let line = subject("not-held", sandbox.records()).with("error", crate::model::audit::chain(&error));
        // Once for each change: what cannot be had now will not be had at each look.
        log::log!(if applied.changed { log::Level::Warn } else { log::Level::Debug }, "{line}");
    }
}

fn log_failed(records: &SandboxRecords, desired: &Desired, error: &SandboxError) {
    if desired.is_isolated() && !error.is_gone() {
        log::error!("{}", subject("not-isolated", records).with("error", crate::model::audit::chain(error)));
    }
}

/// Like [`apply`] for CHECK, of a sandbox that is open already: one that is to be released only has its waking state
/// changed, so that rules that somebody altered are found and not silently replaced.
pub fn check(state: &StateDir, sandbox: &mut Sandbox<'_>) -> Result<Enforced, EnforceError> {
    let started = Instant::now();
    let desired = desired(state, sandbox.records())?;
    if is_released(sandbox, &desired)? {
        let report = sandbox.verify(&desired, Scan::Sandbox)?;
        return Ok(Enforced { desired, report, is_new: false });
    }
    let applied = carry_out(state, sandbox, &desired, Cause::Asked, Before::Unknown, Scan::Sandbox, started)?;
    Ok(Enforced::of(desired, applied))
}

/// Whether nothing of it is isolated, and nothing is to be.
fn is_released(sandbox: &mut Sandbox<'_>, desired: &Desired) -> Result<bool, SandboxError> {
    Ok(!desired.is_isolated() && !sandbox.is_isolated_in_part()?)
}

/// All of them in one line.
#[must_use]
pub fn sentences(reasons: &[Reason]) -> String {
    reasons.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
}

/// The start of every line about a sandbox: who it is.
fn subject(event: &str, records: &SandboxRecords) -> Line {
    let pod = records.pod();
    Line::new(event).with("container", records.container_id()).with("pod", pod).with_some("uid", pod.uid.as_ref())
}

fn log_applied(records: &SandboxRecords, desired: &Desired, applied: &Applied, cause: Cause<'_>, started: Instant) {
    let milliseconds = format!("{:.3}", started.elapsed().as_secs_f64() * 1000.0);
    match desired {
        Desired::Isolated { policy, mark, fault } if applied.changed => {
            let event = match applied.was_isolated {
                // Whether anything was left of the isolation or not.
                _ if cause.is_repair(applied) => "repaired",
                false => "isolated",
                true => "updated",
            };
            let line = subject(event, records).with("verdict", applied.report.verdict.as_str()).with("policy", policy);
            let line = mark
                .attributed(line)
                .with_some("sealed_because", fault.as_ref())
                .with_some(
                    "changed",
                    (event != "isolated" && !applied.altered.is_empty()).then(|| joined(&applied.altered)),
                )
                .with_some(
                    "open",
                    (applied.report.verdict != Verdict::Contained).then(|| sentences(&applied.report.reasons)),
                )
                .with("ms", milliseconds);
            if applied.report.verdict == Verdict::Contained && event != "repaired" {
                log::info!("{line}")
            } else {
                log::warn!("{line}")
            }
        }
        Desired::Released if applied.was_isolated => {
            log::info!("{}", subject("released", records).with("ms", milliseconds));
        }
        _ => {}
    }
}
