//! `status` and `list`: the state directory and the kernel, read back and put together. Nothing is changed here.

use std::io::{self, IsTerminal};
use std::path::Path;

use serde_json::{Value, json};

use crate::adopt::{Uncovered, uncovered};
use crate::model::names::{Key, Pod};
use crate::model::verdict::{Reason, Verdict};
use crate::node::sandbox::{NodeScan, Side, standing_guards};
use crate::node::state::{DamagedRecord, StateDir};
use crate::status::read::read_back;
use crate::status::{
    Damaged, Finding, HostPodStatus, Reading, SandboxEntry, SandboxStatus, Style, UnansweredMark, host_pod_text,
    host_pods_text, list_table, node_to_json, sandbox_text, status_table,
};

use super::arguments::{List, Output, Status};
use super::host_pods;
use super::inventory::{Inventory, NodeSandbox};
use super::selector::{Selection, select};
use super::watch::watch;
use super::{Exit, Failure, print};
use crate::node::workers::on_each;

/// `quarantine list`.
pub(super) fn list(state_dir: &Path, arguments: &List) -> Result<Exit, Failure> {
    let state = StateDir::open(state_dir)?;
    let node = Inventory::read(&state)?;
    let sandboxes: Vec<_> = node.sandboxes.iter().map(|sandbox| node.entry_of(sandbox)).collect();
    let host_pods = host_pods::read_all(&state)?;
    let (unanswered, damaged) = (without_answered(node.unanswered(), &host_pods), damaged(&node));
    let records = node.sandboxes.iter().filter_map(|sandbox| sandbox.records());
    let uncovered = uncovered(&mut Side::own()?, records, &arguments.places.places())?;
    print(&match arguments.output {
        Output::Table => {
            list_table(&sandboxes, &unanswered, &damaged, style())
                + &host_pods_text(&host_pods, style())
                + &uncovered_text(&uncovered)
        }
        Output::Json => {
            let mut document = node_to_json(&sandboxes, &unanswered, &damaged);
            add_host_pods(&mut document, &host_pods);
            document["uncovered"] = uncovered.iter().map(uncovered_to_json).collect();
            pretty(&document)
        }
    });
    Ok(Exit::Done)
}

/// The marks that nothing answers to, no pod in the node's network namespace either.
fn without_answered(mut unanswered: Vec<UnansweredMark>, host_pods: &[HostPodStatus]) -> Vec<UnansweredMark> {
    unanswered.retain(|mark| !host_pods.iter().flat_map(HostPodStatus::keys).any(|key| *key == mark.key));
    unanswered
}

/// Only where there are any: most nodes have none that are marked.
fn add_host_pods(document: &mut Value, host_pods: &[HostPodStatus]) {
    if !host_pods.is_empty() {
        document["hostPods"] = json!(host_pods);
    }
}

/// Nothing where there is none.
fn uncovered_text(uncovered: &[Uncovered]) -> String {
    let mut text = String::new();
    for found in uncovered {
        let who = match &found.cached {
            Some((container_id, pod)) => {
                format!("{container_id} ({pod}); `quarantine adopt {container_id}` takes it in")
            }
            None => "neither libcni's cache nor a runtime says anything of it".to_owned(),
        };
        text += &format!("uncovered: a network namespace behind {}: {who}\n", found.host_ends.join(", "));
    }
    text
}

fn uncovered_to_json(found: &Uncovered) -> Value {
    let (container_id, pod) = found.cached.as_ref().map(|(container_id, pod)| (container_id.as_str(), pod)).unzip();
    json!({ "hostEnds": found.host_ends, "netns": found.netns, "containerID": container_id, "pod": pod })
}

/// `quarantine status`.
pub(super) fn status(state_dir: &Path, arguments: &Status) -> Result<Exit, Failure> {
    let state = StateDir::open(state_dir)?;
    if arguments.watch {
        return watch(&state, io::stdout().is_terminal(), || {
            let view = View::of(&state, arguments.sandbox.as_deref())?;
            Ok(match arguments.output {
                Output::Table => view.to_text(style()),
                Output::Json => format!("{}\n", view.to_json()),
            })
        });
    }
    let view = View::of(&state, arguments.sandbox.as_deref())?;
    print(&match arguments.output {
        Output::Table => view.to_text(style()),
        Output::Json => pretty(&view.to_json()),
    });
    Ok(if view.is_as_marked() { Exit::Done } else { Exit::NotDone })
}

/// What was asked about, as it was found.
#[derive(Default)]
struct View {
    /// Whether exactly one was meant.
    single: bool,
    sandboxes: Vec<SandboxStatus>,
    /// Those in the node's network namespace.
    host_pods: Vec<HostPodStatus>,
    unanswered: Vec<UnansweredMark>,
    damaged: Vec<Damaged>,
}

impl View {
    fn of(state: &StateDir, word: Option<&str>) -> Result<Self, Failure> {
        let Some(word) = word else {
            let node = Inventory::read(state)?;
            let chosen: Vec<_> = node.sandboxes.iter().map(AsRef::as_ref).collect();
            let host_pods = host_pods::read_all(state)?;
            let (unanswered, damaged) = (without_answered(node.unanswered(), &host_pods), damaged(&node));
            let mut sandboxes = read_all(state, &node, &chosen)?;
            sandboxes.extend(without_record(&node)?);
            return Ok(Self { single: false, sandboxes, host_pods, unanswered, damaged });
        };
        let meant =
            |node: &Inventory<'_>| select(word, node.names(), |key| node.has_mark(key) || host_pods::is_here(key));
        let node = Inventory::read_to_find(state, |node| meant(node).ok()?.here())?;
        match meant(&node)? {
            Selection::Here(ids) => {
                let chosen: Vec<_> = ids.iter().filter_map(|id| node.sandbox(id)).collect();
                let damaged = chosen.iter().flat_map(|sandbox| sandbox.damaged()).map(damaged_record).collect();
                let sandboxes = read_all(state, &node, &chosen)?;
                let (host_pods, unanswered) = (Vec::new(), Vec::new());
                Ok(Self { single: ids.len() == 1, sandboxes, host_pods, unanswered, damaged })
            }
            Selection::Absent(key) => match (without_record_of(&node, &key)?, node.unanswered_mark(&key)) {
                (Some(sandbox), _) => Ok(Self { single: true, sandboxes: vec![sandbox], ..Self::default() }),
                _ if let host_pods = host_pods::read_meant(state, &key)?
                    && !host_pods.is_empty() =>
                {
                    Ok(Self { single: host_pods.len() == 1, host_pods, ..Self::default() })
                }
                (None, Some(mark)) => Ok(Self { unanswered: vec![mark], ..Self::default() }),
                (None, None) => Err(Failure::new(
                    Exit::NotDone,
                    format!(
                        "{word} is not on this node, or not marked. Pods with hostNetwork have no record, and are shown once they are marked; pods that started before the plugin was in the conflist cannot be reached until they are adopted"
                    ),
                )),
            },
        }
    }

    fn is_as_marked(&self) -> bool {
        self.damaged.is_empty()
            && self.sandboxes.iter().all(SandboxStatus::is_as_marked)
            && self.host_pods.iter().all(HostPodStatus::is_as_marked)
    }

    fn to_text(&self, style: Style) -> String {
        match (&self.sandboxes[..], &self.host_pods[..]) {
            ([sandbox], _) if self.single => sandbox_text(sandbox, style),
            (_, [host_pod]) if self.single => host_pod_text(host_pod, style),
            (sandboxes, host_pods) => {
                status_table(sandboxes, &self.unanswered, &self.damaged, style) + &host_pods_text(host_pods, style)
            }
        }
    }

    fn to_json(&self) -> Value {
        match (&self.sandboxes[..], &self.host_pods[..]) {
            ([sandbox], _) if self.single => json!(sandbox),
            (_, [host_pod]) if self.single => json!(host_pod),
            (sandboxes, host_pods) => {
                let mut document = node_to_json(sandboxes, &self.unanswered, &self.damaged);
                add_host_pods(&mut document, host_pods);
                document
            }
        }
    }
}

fn damaged(node: &Inventory<'_>) -> Vec<Damaged> {
    node.damaged().map(damaged_record).collect()
}

fn damaged_record(record: &DamagedRecord) -> Damaged {
    Damaged { path: record.path.clone(), fault: record.fault.clone() }
}

/// Host guards that stand although no record says for whom.
fn without_record(node: &Inventory<'_>) -> Result<Vec<SandboxStatus>, Failure> {
    let mut guards = standing_guards(&mut Side::own()?)?;
    guards.retain(|container_id| node.sandbox(container_id).is_none());
    Ok(guards
        .into_iter()
        .map(|container_id| SandboxStatus {
            entry: SandboxEntry { container_id, pod: Pod::default(), netns: None, marking: None },
            finding: Finding::Read(Reading {
                verdict: Verdict::Partial,
                reasons: vec![Reason::NoRecord],
                pod_layer: false,
                host_layer: true,
                bpf_layer: false,
                bpf_ready: false,
                guard_required: false,
                drops: Vec::new(),
                attempts: Vec::new(),
                notes: Vec::new(),
            }),
        })
        .collect())
}

fn without_record_of(node: &Inventory<'_>, key: &Key) -> Result<Option<SandboxStatus>, Failure> {
    Ok(without_record(node)?.into_iter().find(|sandbox| Key::from(&sandbox.entry.container_id) == *key))
}

fn read_all(state: &StateDir, node: &Inventory<'_>, chosen: &[&NodeSandbox]) -> Result<Vec<SandboxStatus>, Failure> {
    let scan = NodeScan::default();
    let read = |host: &mut Side, sandbox: &&NodeSandbox| {
        read_back(state, host, &sandbox.container_id, sandbox.records(), node.entry_of(sandbox), &scan)
    };
    Ok(on_each(chosen, read)?.into_iter().flatten().collect())
}

/// Colour only where a person sees it, and does not mind.
fn style() -> Style {
    let unwanted = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty())
        || std::env::var_os("TERM").is_some_and(|term| term == "dumb");
    Style { colour: io::stdout().is_terminal() && !unwanted }
}

fn pretty(value: &Value) -> String {
    format!("{value:#}\n")
}
