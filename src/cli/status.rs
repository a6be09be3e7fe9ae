//! `status` and `list`: the state directory and the kernel, read back and put together. Nothing is changed here.

use std::io::{self, IsTerminal};
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use crate::kernel::nft::Element;
use crate::model::audit::chain;
use crate::model::mark::Desired;
use crate::model::names::{IfName, Key, Pod};
use crate::model::verdict::{Note, Reason, Verdict};
use crate::node::sandbox::{NodeScan, Report, Sandbox, SandboxError, Scan, Side, standing_guards};
use crate::node::state::StateDir;
use crate::rules::containment::{ATTEMPTS, NEIGHBOUR_ATTEMPTS, PORTLESS_ATTEMPTS, STRAY_PROBES, TABLE, guarded_by};
use crate::rules::ruleset::{Chain, Hook, Table};
use crate::status::{
    Attempt, AttemptProtocol, Damaged, Direction, Drops, Finding, Layer, Listed, Marking, Reading, SandboxStatus,
    Style, UnansweredMark, list_table, merge_attempts, node_to_json, sandbox_text, status_table,
};

use super::arguments::{List, Output, Status};
use super::node::{Node, NodeSandbox};
use super::selector::{Selection, select};
use super::watch::watch;
use super::workers::on_each;
use super::{Exit, Failure, print};

/// `quarantine list`.
pub(super) fn list(state_dir: &Path, arguments: &List) -> Result<Exit, Failure> {
    let state = StateDir::open(state_dir)?;
    let node = Node::read(&state)?;
    let sandboxes: Vec<_> = node.sandboxes.iter().map(|sandbox| node.listed(sandbox)).collect();
    let (unanswered, damaged) = (node.unanswered(), damaged(&node));
    print(&match arguments.output {
        Output::Table => list_table(&sandboxes, &unanswered, &damaged, style()),
        Output::Json => pretty(&node_to_json(&sandboxes, &unanswered, &damaged)),
    });
    Ok(Exit::Done)
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
        let node = Node::read(state)?;
        let Some(word) = word else {
            let chosen: Vec<_> = node.sandboxes.iter().map(AsRef::as_ref).collect();
            let (unanswered, damaged) = (node.unanswered(), damaged(&node));
            let mut sandboxes = read_all(state, &node, &chosen)?;
            sandboxes.extend(without_record(&node)?);
            return Ok(Self { single: false, sandboxes, unanswered, damaged });
        };
        match select(word, node.names(), |key| node.has_mark(key))? {
            Selection::Here(ids) => {
                let chosen: Vec<_> = ids.iter().filter_map(|id| node.sandbox(id)).collect();
                let mut damaged = damaged(&node);
                damaged.retain(|record| {
                    ids.iter().any(|id| record.path.parent() == Some(&state.attachments().join(id.as_str())))
                });
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

fn damaged(node: &Node<'_>) -> Vec<Damaged> {
    node.damaged.iter().map(|record| Damaged { path: record.path.clone(), fault: record.fault.clone() }).collect()
}

/// Host guards that stand although no record says for whom.
fn without_record(node: &Node<'_>) -> Result<Vec<SandboxStatus>, Failure> {
    let mut guards = standing_guards(&mut Side::own()?)?;
    guards.retain(|container_id| node.sandbox(container_id).is_none());
    Ok(guards
        .into_iter()
        .map(|container_id| SandboxStatus {
            listed: Listed { container_id, pod: Pod::default(), netns: None, marking: None },
            finding: Finding::Read(Reading {
                verdict: Verdict::Partial,
                reasons: vec![Reason::NoRecord],
                pod_layer: false,
                host_layer: true,
                guard_required: false,
                drops: Vec::new(),
                attempts: Vec::new(),
                notes: Vec::new(),
            }),
        })
        .collect())
}

fn without_record_of(node: &Node<'_>, key: &Key) -> Result<Option<SandboxStatus>, Failure> {
    Ok(without_record(node)?.into_iter().find(|sandbox| Key::from(&sandbox.listed.container_id) == *key))
}

/// How long `status` waits for whoever is at work on a sandbox.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

fn read_all(state: &StateDir, node: &Node<'_>, chosen: &[&NodeSandbox]) -> Result<Vec<SandboxStatus>, Failure> {
    let scan = NodeScan::default();
    Ok(on_each(chosen, |host, sandbox| read(state, node, host, sandbox, &scan))?.into_iter().flatten().collect())
}

/// Reads a sandbox without its lock, so that a sandbox at which somebody is at work delays nobody; where that gives
/// anything but what is wanted, again with the lock, because it may have been half done; but whoever holds it for long
/// does not keep what was read from being said. `None` where it was deleted meanwhile.
fn read(
    state: &StateDir,
    node: &Node<'_>,
    host: &mut Side,
    sandbox: &NodeSandbox,
    scan: &NodeScan,
) -> Option<SandboxStatus> {
    let status = find(host, sandbox, node.listed(sandbox), scan);
    if status.is_as_marked() {
        return Some(status);
    }
    let Ok(Some(_lock)) = state.lock_within(&sandbox.container_id, LOCK_PATIENCE) else { return Some(status) };
    match NodeSandbox::read(state, &sandbox.container_id) {
        Ok(Some((sandbox, listed))) => Some(find(host, &sandbox, listed, scan)),
        Ok(None) => None,
        Err(_) => Some(status),
    }
}

/// How the kernel is found.
fn find(host: &mut Side, sandbox: &NodeSandbox, listed: Listed, scan: &NodeScan) -> SandboxStatus {
    let desired = match listed.marking.clone() {
        None => Desired::Released,
        Some(Marking { policy, mark, fault, .. }) => Desired::Isolated { policy, mark: Box::new(mark), fault },
    };
    let finding = match find_wanted(host, sandbox, &desired, scan) {
        Ok(reading) => Finding::Read(reading),
        Err(error) if error.is_gone() => Finding::Gone(chain(&error)),
        Err(error) => Finding::Unknown(chain(&error)),
    };
    SandboxStatus { listed, finding }
}

fn find_wanted(
    host: &mut Side,
    sandbox: &NodeSandbox,
    desired: &Desired,
    scan: &NodeScan,
) -> Result<Reading, SandboxError> {
    let mut opened = sandbox.open(host)?;
    let guard_required = opened.requires_host_guard();
    let Desired::Isolated { policy, .. } = desired else {
        return released(&mut opened, guard_required);
    };
    let report = opened.verify(desired, Scan::Node(scan))?;
    let counted = counted(&mut opened, &report);
    Ok(Reading {
        verdict: report.verdict,
        reasons: report.reasons,
        pod_layer: report.pod_side,
        host_layer: report.host_guard,
        guard_required,
        drops: counted.drops,
        attempts: merge_attempts(counted.attempts, policy),
        notes: counted.notes,
    })
}

fn released(sandbox: &mut Sandbox<'_>, guard_required: bool) -> Result<Reading, SandboxError> {
    let (pod_layer, host_layer) = sandbox.layers_in_place()?;
    let (verdict, reasons) = if pod_layer || host_layer {
        (Verdict::Partial, vec![Reason::NotReleased { pod_side: pod_layer }])
    } else {
        (Verdict::Open, Vec::new())
    };
    let Counted { drops, attempts, notes } = Counted::default();
    Ok(Reading { verdict, reasons, pod_layer, host_layer, guard_required, drops, attempts, notes })
}

/// What rules have counted.
#[derive(Default)]
struct Counted {
    drops: Vec<Drops>,
    attempts: Vec<Attempt>,
    notes: Vec<Note>,
}

/// Drop counters, attempts and stray probes of all tables that are there.
fn counted(sandbox: &mut Sandbox<'_>, report: &Report) -> Counted {
    let mut counted = Counted::default();
    for table in &report.tables {
        let nft = &mut sandbox.side_of(table).nft;
        // Whoever is root in the pod can keep its tables from being read, or put others in their place. The verdict
        // has been read by then, and has to stand without the counters.
        let Ok(Some(loaded)) = nft.read_table(table) else { continue };
        for chain in table.chains.iter().filter(|chain| loaded.has_chain_named(&chain.name)) {
            let count = loaded.dropped(&chain.name);
            counted.drops.push(Drops { packets: count.packets, bytes: count.bytes, ..place(table, chain) });
        }
        for set in table.sets.iter().filter(|set| loaded.has_set(set)) {
            let name = set.name.trim_end_matches(['4', '6']);
            let mut elements = || nft.elements(table, set).unwrap_or_default();
            if [ATTEMPTS, PORTLESS_ATTEMPTS, NEIGHBOUR_ATTEMPTS].contains(&name) {
                counted.attempts.extend(elements().iter().filter_map(|element| attempt(name, element)));
            } else if name == STRAY_PROBES {
                counted.notes.extend(elements().iter().filter_map(stray_probe));
            }
        }
    }
    counted
}

fn stray_probe(element: &Element) -> Option<Note> {
    let source = read_address(element.key.first()?)?;
    Some(Note::ProbeSource { source, packets: element.count.packets })
}

fn read_address(bytes: &[u8]) -> Option<IpAddr> {
    match bytes.len() {
        4 => <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from),
    }
}

/// Where a chain drops.
fn place(table: &Table, chain: &Chain) -> Drops {
    let layer = if table.name == TABLE { Layer::Pod } else { Layer::Host };
    // The chains of the guard are hooked at the host's end, and named after the pod's.
    let guarded = guarded_by(&chain.name).map(|(interface, _)| interface.to_owned());
    let (direction, interface) = match (&chain.hook, layer) {
        (Hook::Ingress(device), Layer::Pod) => (Direction::In, Some(IfName::to_string(device))),
        (Hook::Egress(device), Layer::Pod) => (Direction::Out, Some(IfName::to_string(device))),
        (Hook::Egress(_), Layer::Host) => (Direction::In, guarded),
        (Hook::Ingress(_), Layer::Host) => (Direction::Out, guarded),
        (Hook::Input, _) => (Direction::In, None),
        (Hook::Output, _) => (Direction::Out, None),
        (Hook::Forward, _) => (Direction::Forward, None),
    };
    Drops { layer, interface, direction, packets: 0, bytes: 0 }
}

fn attempt(set: &str, element: &Element) -> Option<Attempt> {
    let fields: Vec<&[u8]> = element.key.iter().map(Vec::as_slice).collect();
    let (protocol, address, port) = match (set, &fields[..]) {
        (NEIGHBOUR_ATTEMPTS, [address]) => (AttemptProtocol::Arp, *address, None),
        (PORTLESS_ATTEMPTS, [[protocol], address]) => (AttemptProtocol::Ip(*protocol), *address, None),
        (ATTEMPTS, [[protocol], address, [high, low]]) => {
            (AttemptProtocol::Ip(*protocol), *address, Some(u16::from_be_bytes([*high, *low])))
        }
        _ => return None,
    };
    let address = read_address(address)?;
    Some(Attempt { protocol, address, port, packets: element.count.packets })
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
