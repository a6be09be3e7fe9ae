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
    Damaged, Finding, Reading, SandboxEntry, SandboxStatus, Style, UnansweredMark, list_table, node_to_json,
    sandbox_text, status_table,
};

use super::arguments::{List, Output, Status};
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
    let (unanswered, damaged) = (node.unanswered(), damaged(&node));
    let records = node.sandboxes.iter().filter_map(|sandbox| sandbox.records());
    let uncovered = uncovered(&mut Side::own()?, records, &arguments.places.places())?;
    print(&match arguments.output {
        Output::Table => list_table(&sandboxes, &unanswered, &damaged, style()) + &uncovered_text(&uncovered),
        Output::Json => {
            let mut document = node_to_json(&sandboxes, &unanswered, &damaged);
            document["uncovered"] = uncovered.iter().map(uncovered_to_json).collect();
            pretty(&document)
        }
    });
    Ok(Exit::Done)
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
struct View {
    /// Whether exactly one sandbox was meant.
    single: bool,
    sandboxes: Vec<SandboxStatus>,
    unanswered: Vec<UnansweredMark>,
    damaged: Vec<Damaged>,
}

impl View {
    fn of(state: &StateDir, word: Option<&str>) -> Result<Self, Failure> {
        let Some(word) = word else {
            let node = Inventory::read(state)?;
            let chosen: Vec<_> = node.sandboxes.iter().map(AsRef::as_ref).collect();
            let (unanswered, damaged) = (node.unanswered(), damaged(&node));
            let mut sandboxes = read_all(state, &node, &chosen)?;
            sandboxes.extend(without_record(&node)?);
            return Ok(Self { single: false, sandboxes, unanswered, damaged });
        };
        let meant = |node: &Inventory<'_>| select(word, node.names(), |key| node.has_mark(key));
        let node = Inventory::read_to_find(state, |node| meant(node).ok()?.here())?;
        match meant(&node)? {
            Selection::Here(ids) => {
                let chosen: Vec<_> = ids.iter().filter_map(|id| node.sandbox(id)).collect();
                let damaged = chosen.iter().flat_map(|sandbox| sandbox.damaged()).map(damaged_record).collect();
                let sandboxes = read_all(state, &node, &chosen)?;
                Ok(Self { single: ids.len() == 1, sandboxes, unanswered: Vec::new(), damaged })
            }
            Selection::Absent(key) => match (without_record_of(&node, &key)?, node.unanswered_mark(&key)) {
                (Some(sandbox), _) => {
                    Ok(Self { single: true, sandboxes: vec![sandbox], unanswered: Vec::new(), damaged: Vec::new() })
                }
                (None, Some(mark)) => {
                    Ok(Self { single: false, sandboxes: Vec::new(), unanswered: vec![mark], damaged: Vec::new() })
                }
                (None, None) => Err(Failure::new(
                    Exit::NotDone,
                    format!(
                        "{word} is not on this node and not marked. Pods with hostNetwork, and pods that started before the plugin was in the conflist, have no record and cannot be reached"
                    ),
                )),
            },
        }
    }

    fn is_as_marked(&self) -> bool {
        self.damaged.is_empty() && self.sandboxes.iter().all(SandboxStatus::is_as_marked)
    }

    fn to_text(&self, style: Style) -> String {
        match &self.sandboxes[..] {
            [sandbox] if self.single => sandbox_text(sandbox, style),
            sandboxes => status_table(sandboxes, &self.unanswered, &self.damaged, style),
        }
    }

    fn to_json(&self) -> Value {
        match &self.sandboxes[..] {
            [sandbox] if self.single => json!(sandbox),
            sandboxes => node_to_json(sandboxes, &self.unanswered, &self.damaged),
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
