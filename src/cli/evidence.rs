//! `evidence`: what was collected of pods that were cut off.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use serde_json::{Value, json};

use crate::evidence::{Fault, Kept, Store, archive, collect};
use crate::model::names::{ContainerId, Key, Pod, PodName, PodUid};
use crate::model::subject::Subject;
use crate::node::state::StateDir;

use super::arguments::{Evidence, Output};
use super::inventory::Inventory;
use super::selector::{Selection, select};
use super::{Exit, Failure, host_pods, print};

/// `quarantine evidence`.
pub(super) fn evidence(state_dir: &Path, arguments: &Evidence) -> Result<Exit, Failure> {
    let state = StateDir::open(state_dir)?;
    let store = Store::of(&state);
    let (mut kept, unreadable) = store.collections()?;
    let chosen = arguments.sandbox.as_deref().map(|word| chosen(&state, &kept, word)).transpose()?;
    if arguments.collect {
        let [subject] = &chosen.clone().unwrap_or_default()[..] else {
            return Err(Failure::new(
                Exit::Usage,
                "several sandboxes have this name; collect of one, by its container ID",
            ));
        };
        let new = collect(&state, subject, arguments.with_executables)?;
        print(&format!("{}", store.path().join(&new.path).display()));
        print(&format!("\n{}", said_of(&new)));
        kept = vec![new];
        if arguments.out.is_none() {
            return Ok(Exit::Done);
        }
    }
    let is_meant = |kept: &Kept| {
        let subject = kept.manifest.subject();
        chosen.as_ref().is_none_or(|chosen| subject.is_some_and(|subject| chosen.contains(&subject)))
    };
    kept.retain(is_meant);
    if arguments.verify {
        let faults = store.verify(is_meant)?;
        return Ok(say_faults(&kept, &faults));
    }
    if let Some(path) = &arguments.out {
        if kept.is_empty() {
            return Err(Failure::new(Exit::NotDone, "nothing was collected of it"));
        }
        archive(&store, &kept, path)?;
        print(&format!("{} collections in {}\n", kept.len(), path.display()));
        return Ok(Exit::Done);
    }
    print(&match arguments.output {
        Output::Table => table(&kept, &unreadable),
        Output::Json => format!("{:#}\n", Value::from(kept.iter().map(to_json).collect::<Vec<_>>())),
    });
    Ok(Exit::Done)
}

/// The sandbox that a word means, where there is just one; `what` is done with one alone.
pub(super) fn chosen_sandbox(
    state: &StateDir,
    kept: &[Kept],
    word: &str,
    what: &'static str,
) -> Result<ContainerId, Failure> {
    match &chosen(state, kept, word)?[..] {
        [Subject::Sandbox(container_id)] => Ok(container_id.clone()),
        [Subject::HostPod(uid)] => Err(Failure::new(
            Exit::NotDone,
            format!(
                "{uid} has hostNetwork, and no sandbox: of such a pod no packets are kept, and there is no report; \
                 `quarantine status {uid}` and `quarantine evidence {uid}` say what is known"
            ),
        )),
        _ => {
            Err(Failure::new(Exit::Usage, format!("several sandboxes have this name; {what} one, by its container ID")))
        }
    }
}

/// The sandboxes and pods with hostNetwork that a word means: of the node, or of the collections.
fn chosen(state: &StateDir, kept: &[Kept], word: &str) -> Result<Vec<Subject>, Failure> {
    if let Some(subject) = Subject::host_pod(word) {
        return Ok(vec![subject]);
    }
    let node = Inventory::read(state)?;
    let mut names: Vec<(ContainerId, Pod)> =
        node.names().map(|(container_id, pod)| (container_id.clone(), pod.clone())).collect();
    let mut host_pods = Vec::new();
    for kept in kept {
        match kept.manifest.subject() {
            Some(Subject::Sandbox(container_id)) if !names.iter().any(|(known, _)| *known == container_id) => {
                names.push((container_id, pod_of(kept)));
            }
            Some(Subject::HostPod(uid)) => host_pods.push((uid, pod_of(kept))),
            _ => {}
        }
    }
    let has_mark = |key: &Key| host_pods.iter().any(|(uid, _)| Key::from(uid) == *key) || host_pods::is_here(key);
    let key = match select(word, names.iter().map(|(container_id, pod)| (container_id, pod)), has_mark)? {
        Selection::Here(chosen) => return Ok(chosen.into_iter().map(Subject::Sandbox).collect()),
        Selection::Absent(key) => key,
    };
    let is_meant = |(uid, pod): &(PodUid, Pod)| Key::from(uid) == key || pod.name_key().as_ref() == Some(&key);
    let kept = host_pods.into_iter().filter(is_meant).map(|(uid, _)| uid);
    let meant: BTreeSet<PodUid> = host_pods::meant_by(&key)?.into_iter().chain(kept).collect();
    if meant.is_empty() {
        let message = format!("{word} is not on this node, and nothing was collected of it");
        return Err(Failure::new(Exit::NotDone, message));
    }
    Ok(meant.into_iter().map(Subject::HostPod).collect())
}

/// The pod that a collection names.
fn pod_of(kept: &Kept) -> Pod {
    let pod = &kept.manifest.pod;
    let name = |name: &Option<String>| name.as_deref().and_then(|name| PodName::new(name).ok());
    let uid = pod.uid.as_deref().and_then(|uid| PodUid::new(uid).ok());
    Pod { namespace: name(&pod.namespace), name: name(&pod.name), uid }
}

/// What is not in it although it was asked for.
fn said_of(kept: &Kept) -> String {
    let mut text = String::new();
    for file in &kept.manifest.files {
        for cut in &file.cut_short {
            let _ = writeln!(text, "  {}: cut short: {cut}", file.name);
        }
    }
    for missing in &kept.manifest.missing {
        let _ = writeln!(text, "  missing: {}: {}", missing.what, missing.why);
    }
    text
}

fn say_faults(kept: &[Kept], faults: &[Fault]) -> Exit {
    let mut text = String::new();
    for fault in faults {
        let _ = writeln!(text, "{fault}");
    }
    if faults.is_empty() {
        let _ = writeln!(text, "{} collections are as they were written", kept.len());
    }
    print(&text);
    if faults.is_empty() { Exit::Done } else { Exit::NotDone }
}

fn length(kept: &Kept) -> u64 {
    kept.manifest.files.iter().map(|file| file.bytes).sum()
}

fn table(kept: &[Kept], unreadable: &[Fault]) -> String {
    let mut text = String::new();
    if kept.is_empty() && unreadable.is_empty() {
        text.push_str("nothing was collected\n");
    }
    for kept in kept {
        let manifest = &kept.manifest;
        let pod = match (&manifest.pod.namespace, &manifest.pod.name) {
            (Some(namespace), Some(name)) => format!("{namespace}/{name}"),
            _ => "-".to_owned(),
        };
        let bytes = length(kept);
        let _ =
            writeln!(text, "{:>4}  {}  {pod}  {bytes} bytes  {}", manifest.sequence, manifest.clock.time, kept.path);
    }
    for fault in unreadable {
        let _ = writeln!(text, "{fault}");
    }
    text
}

fn to_json(kept: &Kept) -> Value {
    json!({ "path": kept.path, "manifestSHA256": kept.sha256, "bytes": length(kept), "manifest": kept.manifest })
}
