//! `isolate` and `release`: the mark first, then the kernel, then what the kernel says; and that the disk has the mark before anybody
//! is told so.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::panic::resume_unwind;
use std::path::Path;
use std::thread::{self, ScopedJoinHandle};

use crate::evidence::{self, Says};
use crate::model::audit::Line;
use crate::model::audit::chain;
use crate::model::mark::{Desired, Mark};
use crate::model::names::{ContainerId, Key};
use crate::model::subject::Subject;
use crate::model::verdict::Verdict;
use crate::node::enforce::{EnforceError, Enforced};
use crate::node::sandbox::{Before, NodeScan, Sandbox, SandboxError, Side, remove_guard, standing_guards};
use crate::node::state::{StateDir, StateError};

use super::arguments::{Attribution, Isolate, Release, Target};
use super::host_pods;
use super::inventory::{Inventory, NodeSandbox};
use super::selector::{Selection, select, select_uid};
use super::sync::{Synced, apply_all, sync_all};
use super::{Exit, Failure, actor, print, say_error};
use crate::node::workers::beside_each_other;

/// `quarantine isolate`.
pub(super) fn isolate(state_dir: &Path, arguments: &Isolate, log: &[String]) -> Result<Exit, Failure> {
    let actor = actor(arguments.by.actor.as_deref());
    let mark = Mark {
        policy: arguments.policy(),
        reason: arguments.by.reason.clone(),
        case: arguments.by.case.clone(),
        actor: Some(actor.clone()),
    };
    let done = StateDir::open(state_dir).map_err(Failure::from).and_then(|state| {
        let node = Chosen::inventory(&state, &arguments.target)?;
        let chosen = Chosen::of(&node, &arguments.target, arguments.dry_run)?;
        if arguments.dry_run {
            show_rules(&state, &node, &chosen, &mark)
        } else {
            isolate_chosen(&state, &node, &chosen, &mark, arguments.wait_for_pod, log)
        }
    });
    log_refusal("isolate", &arguments.target, &actor, done)
}

/// `quarantine release`.
pub(super) fn release(state_dir: &Path, arguments: &Release) -> Result<Exit, Failure> {
    let by = Attribution { actor: Some(actor(arguments.by.actor.as_deref())), ..arguments.by.clone() };
    let done = StateDir::open(state_dir).map_err(Failure::from).and_then(|state| {
        let node = Chosen::inventory(&state, &arguments.target)?;
        let chosen = Chosen::of(&node, &arguments.target, false)?;
        release_chosen(&state, &node, &chosen, &by)
    });
    log_refusal("release", &arguments.target, by.actor.as_deref().unwrap_or_default(), done)
}

/// A request that failed is for the auditor too.
fn log_refusal(command: &str, target: &Target, actor: &str, done: Result<Exit, Failure>) -> Result<Exit, Failure> {
    if let Err(failure) = &done {
        let line = Line::new("refused")
            .with("command", command)
            .with("sandbox", target.sandbox.as_deref().unwrap_or("--all"))
            .with("actor", actor)
            .with("error", failure.message.lines().next().unwrap_or_default());
        log::warn!("{line}");
    }
    done
}

/// Which sandboxes are meant, and under which names they are or would be marked.
struct Chosen<'a> {
    sandboxes: Vec<&'a NodeSandbox>,
    /// A name that nothing on the node answers to.
    absent: Option<Key>,
    all: bool,
}

fn meant(node: &Inventory<'_>, word: &str, is_uid: bool) -> Result<Selection, Failure> {
    if is_uid {
        let uid = Key::new(word).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
        return Ok(select_uid(uid, node.names()));
    }
    Ok(select(word, node.names(), |key| node.has_mark(key) || host_pods::is_here(key))?)
}

impl<'a> Chosen<'a> {
    /// As much of the node as it takes to find out what is meant.
    fn inventory(state: &'a StateDir, target: &Target) -> Result<Inventory<'a>, StateError> {
        match &target.sandbox {
            None => Inventory::read(state),
            Some(word) => Inventory::read_to_find(state, |node| meant(node, word, target.uid).ok()?.here()),
        }
    }

    fn of(node: &'a Inventory<'_>, target: &Target, harmless: bool) -> Result<Self, Failure> {
        let Some(word) = &target.sandbox else {
            if !target.yes && !harmless {
                let message = format!("--all means {} sandboxes; say --yes too if you mean it", node.sandboxes.len());
                return Err(Failure::new(Exit::Usage, message));
            }
            return Ok(Self { sandboxes: node.sandboxes.iter().map(AsRef::as_ref).collect(), absent: None, all: true });
        };
        Ok(match meant(node, word, target.uid)? {
            Selection::Here(ids) => {
                let sandboxes = ids.iter().filter_map(|id| node.sandbox(id)).collect();
                Self { sandboxes, absent: None, all: false }
            }
            Selection::Absent(key) => Self { sandboxes: Vec::new(), absent: Some(key), all: false },
        })
    }
}

impl Chosen<'_> {
    /// One name may be that of several pods, an old one and its successor: which were taken is said.
    fn said_as_several_pods(&self) -> String {
        let uids: BTreeSet<_> = self.sandboxes.iter().filter_map(|sandbox| sandbox.pod.uid.as_ref()).collect();
        if self.all || uids.len() < 2 {
            return String::new();
        }
        let each: Vec<_> = self
            .sandboxes
            .iter()
            .map(|sandbox| match &sandbox.pod.uid {
                Some(uid) => format!("{uid} ({})", sandbox.container_id),
                None => sandbox.container_id.to_string(),
            })
            .collect();
        format!("this name is that of {} pods, and all are meant: {}\n", uids.len(), each.join(", "))
    }
}

/// Writes the marks, for everybody to see; the disk is not waited for. Gives those that are there, and how to exit if that is all
/// that goes wrong.
fn show_marks(state: &StateDir, chosen: &Chosen<'_>, mark: &Mark) -> Result<(BTreeSet<Key>, Exit), Failure> {
    let names: BTreeSet<Key> =
        chosen.sandboxes.iter().map(|sandbox| sandbox.mark_key()).chain(chosen.absent.clone()).collect();
    let is_one = names.len() == 1;
    let (mut keys, mut exit) = (BTreeSet::new(), Exit::Done);
    for key in names {
        match state.show_mark(&key, mark) {
            Ok(()) => {
                log_mark("marked", &key, mark);
                keys.insert(key);
            }
            Err(error) if is_one => return Err(error.into()),
            // The others are isolated all the same.
            Err(error) => {
                say_error(&chain(&error));
                exit = Exit::NotPermitted;
            }
        }
    }
    Ok((keys, exit))
}

fn isolate_chosen(
    state: &StateDir,
    node: &Inventory<'_>,
    chosen: &Chosen<'_>,
    mark: &Mark,
    may_wait: bool,
    log: &[String],
) -> Result<Exit, Failure> {
    let (keys, mut exit) = show_marks(state, chosen, mark)?;
    // Each is waited for until it is on the disk, so that is done side by side.
    let shown: Vec<&Key> = keys.iter().collect();
    let keep = || beside_each_other(&shown, |key| state.keep_mark(key));
    // Marks by container ID come before one by UID: what they said would go on to hold instead of what is asked now.
    let marked = chosen.sandboxes.iter().filter(|sandbox| keys.contains(&sandbox.mark_key()));
    let shadowing: BTreeSet<Key> =
        marked.flat_map(|sandbox| node.shadowing(sandbox)).filter(|key| !keys.contains(key)).collect();
    // None goes before the disk has those that take its place.
    let kept_first = if shadowing.is_empty() { Vec::new() } else { keep() };
    let are_kept = kept_first.iter().all(Result::is_ok);
    // The marks are there: from here on nothing that fails keeps them from being applied.
    for key in shadowing.iter().filter(|_| are_kept) {
        match state.remove_mark(key) {
            Ok(true) => log_mark("replaced", key, mark),
            Ok(false) => {}
            Err(error) => {
                say_error(&chain(&error));
                exit = Exit::NotPermitted;
            }
        }
    }
    let again = node.read_again();
    let answering: Vec<_> = match &again {
        Ok(node) => node.answering(&keys),
        Err(error) => {
            say_error(&chain(error));
            exit = Exit::NotPermitted;
            chosen.sandboxes.clone()
        }
    };
    let scan = NodeScan::default();
    let answering_ids: Vec<ContainerId> = answering.iter().map(|sandbox| sandbox.container_id.clone()).collect();
    let sync = || {
        sync_all(state, &answering_ids, &scan, |_, container_id, synced| {
            if let Ok(Some(Enforced { is_new: true, .. })) = &synced {
                keep_evidence(state, &Subject::Sandbox(container_id.clone()), log);
            }
            synced
        })
    };
    let mut text = chosen.said_as_several_pods();
    let mut isolate_on_host =
        |key| host_pods::isolate(state, key, &mut text, |subject| keep_evidence(state, &subject, log));
    // Nobody waits for the disk to be cut off; it is waited for before anybody is told. Nor for the look at the whole node.
    let (results, on_host, kept) = thread::scope(|scope| {
        if !answering.is_empty() {
            scope.spawn(|| scan.look());
        }
        let keeping = shadowing.is_empty().then(|| scope.spawn(keep));
        let results = sync();
        let on_host = chosen.absent.as_ref().filter(|_| answering.is_empty()).map(&mut isolate_on_host);
        let kept = keeping.map_or(Ok(kept_first), ScopedJoinHandle::join);
        (results, on_host, kept.unwrap_or_else(|panic| resume_unwind(panic)))
    });
    for error in kept.into_iter().filter_map(Result::err) {
        say_error(&chain(&error));
        exit = Exit::NotPermitted;
    }
    let results = results?;
    for (sandbox, result) in answering.iter().zip(results) {
        if !say_isolated(&mut text, sandbox, result) && exit == Exit::Done {
            exit = Exit::NotDone;
        }
    }
    if answering.is_empty() {
        match &chosen.absent {
            Some(_) if let Some(done) = on_host.transpose()?.flatten() => {
                if !done && exit == Exit::Done {
                    exit = Exit::NotDone;
                }
            }
            Some(key) => {
                let _ = writeln!(
                    text,
                    "marked, and waits: {key}: nothing on this node answers to it yet; when the pod starts here, it is isolated before its first packet.\n\
                     A pod that runs here already, since before the plugin was in the conflist, has no record and is NOT reached; `quarantine adopt` takes it in.\n\
                     One with hostNetwork has none either: the agent, or `quarantine sync`, isolates it once it runs, and NOT before its first packet."
                );
                if !may_wait && exit == Exit::Done {
                    exit = Exit::Waiting;
                }
                let unreadable: Vec<&str> =
                    again.as_ref().unwrap_or(node).unreadable().map(ContainerId::as_str).collect();
                if !unreadable.is_empty() {
                    let _ = writeln!(
                        text,
                        "It may be here: the records of {} cannot be read, so nobody knows whose they are. If it is one of these, it is NOT isolated;\n\
                         `quarantine list` says what is wrong with them.",
                        unreadable.join(", ")
                    );
                    exit = Exit::NotDone;
                }
            }
            None => {
                let _ = writeln!(text, "nothing was isolated: no sandbox of the node has a record");
            }
        }
    }
    print(&text);
    Ok(exit)
}

/// Has it collected, without waiting: the pod is cut off, and that is what was asked for.
fn keep_evidence(state: &StateDir, subject: &Subject, log: &[String]) {
    if evidence::is_wanted()
        && let Err(error) = evidence::start(state.path(), subject, log, Says::ToNobody)
    {
        say_error(&format!("no evidence is collected of {subject}: {error}"));
    }
}

/// Says how it is; whether it is as it should be.
fn say_isolated(text: &mut String, sandbox: &NodeSandbox, result: Result<Option<Enforced>, EnforceError>) -> bool {
    let NodeSandbox { container_id, pod, .. } = sandbox;
    match result {
        Ok(None) => {
            let _ =
                writeln!(text, "{container_id} ({pod}): deleted meanwhile; the mark stands for what comes after it");
            true
        }
        Ok(Some(Enforced { desired: Desired::Isolated { policy, fault, .. }, report, .. })) => {
            let _ = writeln!(text, "{container_id} ({pod}): {}, policy {policy}", report.verdict.as_str());
            if let Some(fault) = fault {
                let _ = writeln!(text, "  sealed: a mark cannot be understood: {}", fault.to_string().escape_debug());
            }
            for reason in &report.reasons {
                let _ = writeln!(text, "  {reason}");
            }
            let required = sandbox.requires_host_guard();
            report.verdict == Verdict::Contained || report.verdict == Verdict::Partial && !required
        }
        Ok(Some(Enforced { desired: Desired::Released, .. })) => {
            let _ = writeln!(text, "{container_id} ({pod}): open: somebody has removed the mark again");
            false
        }
        Err(EnforceError::Sandbox(error)) if error.is_gone() => {
            let _ = writeln!(
                text,
                "{container_id} ({pod}): gone: {}; the mark stands for what comes after it",
                chain(&error)
            );
            false
        }
        Err(fault) => {
            let _ = writeln!(
                text,
                "{container_id} ({pod}): NOT isolated: {}; the mark stands, `quarantine release` removes it",
                chain(&fault)
            );
            false
        }
    }
}

fn release_chosen(
    state: &StateDir,
    node: &Inventory<'_>,
    chosen: &Chosen<'_>,
    by: &Attribution,
) -> Result<Exit, Failure> {
    let keys: BTreeSet<Key> = if chosen.all {
        node.marks().cloned().collect()
    } else {
        let absent = chosen.absent.iter().filter(|key| node.has_mark(key)).cloned();
        chosen.sandboxes.iter().flat_map(|sandbox| node.keys_of(sandbox)).chain(absent).collect()
    };
    let mut text = chosen.said_as_several_pods();
    let host_pods = host_pods::Concerned::by(state, &keys, chosen.absent.as_ref())?;
    let mark = Mark { policy: None, reason: by.reason.clone(), case: by.case.clone(), actor: by.actor.clone() };
    let names: Vec<&Key> = keys.iter().collect();
    let mut exit = Exit::Done;
    for (key, removed) in names.iter().zip(beside_each_other(&names, |key| state.remove_mark(key))) {
        match removed {
            Ok(true) => {
                log_mark("unmarked", key, &mark);
                let _ = writeln!(text, "removed the mark {key}");
            }
            Ok(false) => {}
            Err(error) => {
                say_error(&chain(&error));
                exit = Exit::NotPermitted;
            }
        }
    }
    let host_pods_released = host_pods.release(state, &mut text);
    if host_pods_released == Some(false) && exit == Exit::Done {
        exit = Exit::NotDone;
    }
    if let Some(absent) = chosen.absent.as_ref().filter(|_| host_pods_released.is_none()) {
        if let Some(container_id) = remove_guard_without_record(node, absent)? {
            log_mark("guard-removed", absent, &mark);
            let _ = writeln!(text, "removed the host guard of {container_id}, of which there is no record");
        }
        let found = if keys.is_empty() { "there is no mark of this name either" } else { "only the mark was there" };
        let _ = writeln!(text, "{absent}: nothing on this node answers to it; {found}");
    }
    // What answered to a mark that had to go is released with it, whether it was meant or not.
    let meant: BTreeSet<&ContainerId> = chosen.sandboxes.iter().map(|sandbox| &sandbox.container_id).collect();
    let mut concerned = node.answering(&keys);
    concerned.extend(chosen.sandboxes.iter().copied().filter(|sandbox| node.keys_of(sandbox).is_empty()));
    let scan = NodeScan::default();
    let concerned_ids: Vec<ContainerId> = concerned.iter().map(|sandbox| sandbox.container_id.clone()).collect();
    let results = apply_all(
        state,
        &concerned_ids,
        |_| Before::Unknown,
        &scan,
        |host, container_id, synced| say_released(state, host, container_id, synced),
    )?;
    for (NodeSandbox { container_id, pod, .. }, result) in concerned.iter().zip(results) {
        let also = if meant.contains(container_id) { "" } else { ", which answered to the same mark" };
        if result.is_err() && exit == Exit::Done {
            exit = Exit::NotDone;
        }
        let (Ok(said) | Err(said)) = result;
        let _ = writeln!(text, "{container_id} ({pod}){also}: {said}");
    }
    print(&text);
    Ok(exit)
}

/// A guard that no record speaks of goes when it is named.
fn remove_guard_without_record(node: &Inventory<'_>, key: &Key) -> Result<Option<ContainerId>, Failure> {
    let mut host = Side::own()?;
    let standing = standing_guards(&mut host)?;
    let named = standing.into_iter().find(|id| Key::from(id) == *key && node.sandbox(id).is_none());
    if let Some(container_id) = &named {
        remove_guard(&mut host, container_id)?;
    }
    Ok(named)
}

/// Says what a sandbox is that was to be released. That is read back from the kernel: whether anything of an isolation is left,
/// whatever was applied.
fn say_released(
    state: &StateDir,
    host: &mut Side,
    container_id: &ContainerId,
    synced: Synced,
) -> Result<String, String> {
    match synced {
        Ok(None) => return Ok("gone".to_owned()),
        Ok(Some(Enforced { desired: Desired::Isolated { .. }, .. })) => {
            return Err("isolated: a mark holds for it".to_owned());
        }
        Ok(Some(Enforced { desired: Desired::Released, .. })) => {}
        Err(EnforceError::Sandbox(error)) if error.is_gone() => return Ok("gone".to_owned()),
        Err(fault) => return Err(format!("NOT released: {}", chain(&fault))),
    }
    match left_behind(state, host, container_id) {
        Ok(false) => Ok("released".to_owned()),
        Ok(true) => Err("NOT released: rules of an isolation are still there".to_owned()),
        Err(error) if error.is_gone() => Ok("gone".to_owned()),
        Err(error) => Err(format!("unknown: it cannot be read back: {}", chain(&error))),
    }
}

fn left_behind(state: &StateDir, host: &mut Side, container_id: &ContainerId) -> Result<bool, SandboxError> {
    match state.records_of(container_id).0 {
        Some(records) => Ok(Sandbox::open(host, &records)?.is_isolated_in_part()?),
        None => Err(SandboxError::Unknown { container_id: container_id.clone() }),
    }
}

fn show_rules(state: &StateDir, node: &Inventory<'_>, chosen: &Chosen<'_>, mark: &Mark) -> Result<Exit, Failure> {
    if let Some(absent) = &chosen.absent {
        if let Some(text) = host_pods::rules(absent, mark)? {
            print(&text);
            return Ok(Exit::Done);
        }
        let message = format!(
            "nothing on this node answers to {absent}: its rules depend on its interfaces, which are yet to come"
        );
        return Err(Failure::new(Exit::NotDone, message));
    }
    let mut host = Side::own()?;
    let mut text = String::new();
    for sandbox in &chosen.sandboxes {
        let own = sandbox.mark_key();
        let replaced = node.shadowing(sandbox);
        let others = node.keys_of(sandbox).into_iter().filter(|key| *key != own && !replaced.contains(key));
        let marks: Vec<_> =
            std::iter::once(Ok(mark.clone())).chain(others.filter_map(|key| state.read_mark(&key))).collect();
        let desired = Desired::by_marks(&marks, &sandbox.configured_policy());
        let tables = sandbox
            .open(&mut host)
            .and_then(|mut opened| opened.tables(&desired))
            .map_err(|error| Failure::new(Exit::NotDone, format!("{}: {}", sandbox.container_id, chain(&error))))?;
        for table in tables {
            let place = if table.name == crate::rules::containment::TABLE { "the pod" } else { "the host" };
            let _ = writeln!(
                text,
                "# in the network namespace of {place} ({}, {})\n{table}",
                sandbox.container_id, sandbox.pod
            );
        }
    }
    print(&text);
    Ok(Exit::Done)
}

fn log_mark(event: &str, key: &Key, mark: &Mark) {
    let line = Line::new(event).with("mark", key).with_some("policy", mark.policy.as_ref());
    log::info!("{}", mark.attributed(line));
}
