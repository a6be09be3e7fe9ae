//! Sandboxes, read back: what their marks want, and how the kernel is found. Nothing is changed here.

use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use crate::capture::{self, KeptName, read_names};
use crate::kernel::nft::Element;
use crate::model::audit::chain;
use crate::model::mark::{Desired, MarkContent};
use crate::model::names::{ContainerId, IfName, Key};
use crate::model::records::SandboxRecords;
use crate::model::verdict::{Note, ProgramPlace, Reason, Verdict};
use crate::node::sandbox::{Holder, NodeScan, ProgramsOn, Report, Sandbox, SandboxError, Scan, Side};
use crate::node::state::{StateDir, StateError};
use crate::rules::containment::{ATTEMPTS, NEIGHBOUR_ATTEMPTS, PORTLESS_ATTEMPTS, STRAY_PROBES, TABLE, guarded_by};
use crate::rules::ruleset::{Chain, Family, Hook, Table};

use super::{
    Attempt, AttemptProtocol, Direction, Drops, Finding, Layer, Marking, Reading, SandboxEntry, SandboxStatus,
    merge_attempts, name_attempts,
};

/// How long is waited for whoever is at work on a sandbox.
const LOCK_PATIENCE: Duration = Duration::from_secs(2);

/// Reads one sandbox: its records, its marks, the kernel. `None` where it has no record.
///
/// # Errors
/// [`StateError`] where the marks cannot be listed.
pub fn read_sandbox(
    state: &StateDir,
    host: &mut Side,
    container_id: &ContainerId,
    scan: &NodeScan,
) -> Result<Option<SandboxStatus>, StateError> {
    Ok(match read_entry(state, container_id)? {
        Some((records, entry)) => read_back(state, host, container_id, records.as_ref(), entry, scan),
        None => None,
    })
}

/// The records of a sandbox, and what holds for it now. `None` where it was deleted.
///
/// # Errors
/// [`StateError`] where the marks cannot be listed.
pub fn read_entry(
    state: &StateDir,
    container_id: &ContainerId,
) -> Result<Option<(Option<SandboxRecords>, SandboxEntry)>, StateError> {
    let (records, damaged) = state.records_of(container_id);
    if records.is_none() && damaged.is_empty() {
        return Ok(None);
    }
    let pod = records.as_ref().map(|records| records.pod().clone()).unwrap_or_default();
    let marks = state.marks_of(container_id, &pod)?;
    let entry = SandboxEntry::of(state, container_id, records.as_ref(), marks);
    Ok(Some((records, entry)))
}

impl SandboxEntry {
    /// What these marks want of a sandbox, and who wrote them.
    #[must_use]
    pub fn of(
        state: &StateDir,
        container_id: &ContainerId,
        records: Option<&SandboxRecords>,
        marks: Vec<(Key, MarkContent)>,
    ) -> Self {
        let (keys, contents): (Vec<_>, Vec<_>) = marks.into_iter().unzip();
        let configured = records.map(|records| records.policy().clone()).unwrap_or_default();
        let marking = match Desired::by_marks(&contents, &configured) {
            Desired::Released => None,
            Desired::Isolated { policy, mark, fault } => {
                let since = keys.iter().filter_map(|key| state.marked_since(key)).min();
                Some(Marking { keys, policy, mark: *mark, fault, since })
            }
        };
        Self {
            container_id: container_id.clone(),
            pod: records.map(|records| records.pod().clone()).unwrap_or_default(),
            netns: records.map(|records| records.netns().clone()),
            marking,
        }
    }
}

/// Reads a sandbox without its lock, so that a sandbox at which somebody is at work delays nobody; where that gives
/// anything but what is wanted, again with the lock, because it may have been half done; but whoever holds it for long
/// does not keep what was read from being said. `None` where it was deleted meanwhile.
#[must_use]
pub fn read_back(
    state: &StateDir,
    host: &mut Side,
    container_id: &ContainerId,
    records: Option<&SandboxRecords>,
    entry: SandboxEntry,
    scan: &NodeScan,
) -> Option<SandboxStatus> {
    let status = find(state, host, records, entry, scan);
    if status.is_as_marked() {
        return Some(status);
    }
    let Ok(Some(_lock)) = state.lock_within(container_id, LOCK_PATIENCE) else { return Some(status) };
    match read_entry(state, container_id) {
        Ok(Some((records, entry))) => Some(find(state, host, records.as_ref(), entry, scan)),
        Ok(None) => None,
        Err(_) => Some(status),
    }
}

/// How the kernel is found.
fn find(
    state: &StateDir,
    host: &mut Side,
    records: Option<&SandboxRecords>,
    entry: SandboxEntry,
    scan: &NodeScan,
) -> SandboxStatus {
    let desired = match entry.marking.clone() {
        None => Desired::Released,
        Some(Marking { policy, mark, fault, .. }) => Desired::Isolated { policy, mark: Box::new(mark), fault },
    };
    let finding = match find_wanted(host, &entry.container_id, records, &desired, scan) {
        Ok(mut reading) => {
            if let Some(marking) = &entry.marking {
                name_attempts(&mut reading.attempts, names_since(state, &entry.container_id, marking.since));
            }
            Finding::Read(reading)
        }
        Err(error) if error.is_gone() => Finding::Gone(chain(&error)),
        Err(error) => Finding::Unknown(chain(&error)),
    };
    SandboxStatus { entry, finding }
}

/// The names that a sandbox has asked for since it was marked, not those of an earlier isolation.
fn names_since(state: &StateDir, container_id: &ContainerId, since: Option<SystemTime>) -> Vec<KeptName> {
    let mut names = read_names(&capture::directory(state.path(), container_id));
    names.retain(|kept| since.is_none_or(|since| SystemTime::from(kept.time) >= since));
    names
}

fn find_wanted(
    host: &mut Side,
    container_id: &ContainerId,
    records: Option<&SandboxRecords>,
    desired: &Desired,
    scan: &NodeScan,
) -> Result<Reading, SandboxError> {
    let records = records.ok_or_else(|| SandboxError::Unknown { container_id: container_id.clone() })?;
    let mut opened = Sandbox::open(host, records)?;
    let guard_required = opened.requires_host_guard();
    let Desired::Isolated { policy, .. } = desired else {
        return released(&mut opened, guard_required);
    };
    let report = opened.verify(desired, Scan::Node(scan))?;
    let mut counted = counted(&mut opened, &report);
    counted.notes.extend(report.notes);
    Ok(Reading {
        verdict: report.verdict,
        reasons: report.reasons,
        pod_layer: report.pod_side,
        host_layer: report.host_guard,
        bpf_ready: false,
        bpf_layer: !report.programs.is_empty() && report.programs.iter().all(|programs| programs.hold),
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
    let (bpf_layer, bpf_ready) = (false, sandbox.is_ready());
    Ok(Reading {
        verdict,
        reasons,
        pod_layer,
        host_layer,
        bpf_layer,
        bpf_ready,
        guard_required,
        drops,
        attempts,
        notes,
    })
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
                let attempt = |Element { key, count }: &Element| attempt(name, key, count.packets);
                counted.attempts.extend(elements().iter().filter_map(attempt));
            } else if name == STRAY_PROBES {
                let stray = |element: &Element| stray_probe(element.key.first()?, element.count.packets);
                counted.notes.extend(elements().iter().filter_map(stray));
            }
        }
    }
    count_programs(sandbox, report, &mut counted);
    counted
}

/// The same of the eBPF programs. They see packets after the pod-side rules and before the host guard, or where both are passed by.
fn count_programs(sandbox: &mut Sandbox<'_>, report: &Report, counted: &mut Counted) {
    for ProgramsOn { interface, holder, .. } in &report.programs {
        for (place, packets, bytes) in sandbox.program_drops(*holder) {
            let direction = match place {
                ProgramPlace::FromPod | ProgramPlace::OutOfPod => Direction::Out,
                ProgramPlace::ToPod | ProgramPlace::InPod => Direction::In,
            };
            let (layer, interface) = (Layer::Bpf, Some(interface.clone()));
            counted.drops.push(Drops { layer, interface, direction, packets, bytes });
        }
        let is_theirs = |table: &&Table| match holder {
            Holder::Pair(_) => table.name != TABLE,
            Holder::Alone(_) => table.name == TABLE && table.family == Family::Netdev,
        };
        for set in report.tables.iter().filter(is_theirs).flat_map(|table| &table.sets) {
            let name = set.name.trim_end_matches(['4', '6']);
            for (key, packets) in sandbox.program_elements(*holder, set) {
                if [ATTEMPTS, PORTLESS_ATTEMPTS, NEIGHBOUR_ATTEMPTS].contains(&name) {
                    counted.attempts.extend(attempt(name, &key, packets));
                } else if name == STRAY_PROBES {
                    // Several interfaces have one set.
                    let note = key.first().and_then(|field| stray_probe(field, packets));
                    counted.notes.extend(note.filter(|note| !counted.notes.contains(note)));
                }
            }
        }
    }
}

fn stray_probe(source: &[u8], packets: u64) -> Option<Note> {
    Some(Note::ProbeSource { source: read_address(source)?, packets })
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
        (Hook::Egress(_), Layer::Host | Layer::Bpf | Layer::Cgroup) => (Direction::In, guarded),
        (Hook::Ingress(_), Layer::Host | Layer::Bpf | Layer::Cgroup) => (Direction::Out, guarded),
        (Hook::Input, _) => (Direction::In, None),
        (Hook::Output | Hook::NodeOutput, _) => (Direction::Out, None),
        (Hook::Forward, _) => (Direction::Forward, None),
    };
    Drops { layer, interface, direction, packets: 0, bytes: 0 }
}

pub(super) fn attempt(set: &str, key: &[Vec<u8>], packets: u64) -> Option<Attempt> {
    let fields: Vec<&[u8]> = key.iter().map(Vec::as_slice).collect();
    let (protocol, address, port) = match (set, &fields[..]) {
        (NEIGHBOUR_ATTEMPTS, [address]) => (AttemptProtocol::Arp, *address, None),
        (PORTLESS_ATTEMPTS, [[protocol], address]) => (AttemptProtocol::Ip(*protocol), *address, None),
        (ATTEMPTS, [[protocol], address, [high, low]]) => {
            (AttemptProtocol::Ip(*protocol), *address, Some(u16::from_be_bytes([*high, *low])))
        }
        _ => return None,
    };
    let address = read_address(address)?;
    Some(Attempt { protocol, address, port, packets, names: Vec::new() })
}
