//! From what was found to what is said. Pure.

use std::collections::BTreeMap;
use std::net::IpAddr;

use jiff::Timestamp;
use serde_json::Value;

use super::diagram::{Diagram, End};
use super::document::{Block, Document, Section};
use super::gather::Findings;
use crate::status::{Finding, Reading, SandboxStatus, timestamp};

/// The most rows of each table; all of them are in the files.
const ROWS_MAX: usize = 300;

/// The report of what was found, made at this time.
#[must_use]
pub fn compose(found: &Findings, now: Timestamp) -> Document {
    let pod = pod_of(found);
    let verdict = found.status.as_ref().map_or("gone", SandboxStatus::verdict);
    let host = found.collections.last().map(|kept| kept.manifest.clock.host.clone()).unwrap_or_default();
    let on_host = if host.is_empty() { String::new() } else { format!(" on {host}") };
    Document {
        title: format!("Quarantine of {pod}"),
        verdict: verdict.to_owned(),
        subtitle: format!("Made {now:.0}{on_host} by quarantine {}", env!("CARGO_PKG_VERSION")),
        sections: vec![
            summary(found, &pod),
            Section { title: "Who talked to whom", blocks: vec![Block::Diagram(diagram(found, pod))] },
            history(found),
            cut(found),
            attempts(found),
            timeline(found),
            processes(found),
            sockets(found),
            kept(found),
        ],
    }
}

fn reading(found: &Findings) -> Option<&Reading> {
    match &found.status.as_ref()?.finding {
        Finding::Read(reading) => Some(reading),
        Finding::Gone(_) | Finding::Unknown(_) => None,
    }
}

fn pod_of(found: &Findings) -> String {
    let of_evidence = || {
        let pod = &found.collections.last()?.manifest.pod;
        Some(format!("{}/{}", pod.namespace.as_ref()?, pod.name.as_ref()?))
    };
    let of_record = found.status.as_ref().map(|status| status.entry.pod.to_string()).filter(|pod| pod != "-");
    of_record.or_else(of_evidence).unwrap_or_else(|| found.container_id.to_string())
}

fn summary(found: &Findings, pod: &str) -> Section {
    let mut facts = vec![("Pod", pod.to_owned()), ("Sandbox", found.container_id.to_string())];
    let Some(status) = &found.status else {
        facts.push(("State", "it has no record on this node any more: the pod has ended".to_owned()));
        return Section { title: "Summary", blocks: vec![Block::Facts(facts)] };
    };
    let entry = &status.entry;
    facts.extend(entry.pod.uid.as_ref().map(|uid| ("UID", uid.to_string())));
    facts.push(("State", entry.state().to_owned()));
    facts.push(("Verdict", status.verdict().to_owned()));
    facts.extend(status.reasons().into_iter().map(|reason| ("", reason)));
    if let Some(marking) = &entry.marking {
        let said = |value: &Option<String>| value.clone().unwrap_or_else(|| "not said".to_owned());
        facts.extend([
            ("Isolated by", said(&marking.mark.actor)),
            ("Because", said(&marking.mark.reason)),
            ("Case", said(&marking.mark.case)),
            ("Since", marking.since.map_or_else(|| "not known".to_owned(), timestamp)),
            ("Still let through", marking.policy.to_string()),
            ("Marks", marking.keys.iter().map(|key| key.as_str()).collect::<Vec<_>>().join(", ")),
        ]);
        facts.extend(marking.fault.as_ref().map(|fault| ("Sealed because", fault.to_string())));
    }
    facts.extend(status.notes().iter().map(|note| ("Note", note.to_string())));
    Section { title: "Summary", blocks: vec![Block::Facts(facts)] }
}

fn history(found: &Findings) -> Section {
    let blocks = match &found.history {
        None => vec![Block::Text(
            "No log was found on this node that speaks of it. Give one: journalctl -t quarantine | quarantine report … --history -"
                .to_owned(),
        )],
        Some((log, entries)) => {
            let row = |entry: &super::history::Entry| {
                let shown = ["verdict", "policy", "reason", "case", "actor", "changed", "open", "by", "error", "manifest"];
                let pairs = shown.iter().filter_map(|key| Some(format!("{key}: {}", entry.get(key)?)));
                vec![entry.when.clone(), entry.event.clone(), pairs.collect::<Vec<_>>().join("; ")]
            };
            let rows = entries.iter().map(row).collect();
            let mut blocks = vec![Block::Text(format!("As {log} has it."))];
            let nothing = "It says nothing of this sandbox.";
            blocks.extend(Block::table(&["When", "Event", "What"], rows, ROWS_MAX, nothing));
            blocks
        }
    };
    Section { title: "History", blocks }
}

fn cut(found: &Findings) -> Section {
    let drops = reading(found).map(|reading| &reading.drops[..]).unwrap_or_default();
    let row = |drops: &crate::status::Drops| {
        let interface = drops.interface.clone().unwrap_or_else(|| "all".to_owned());
        let numbers = [drops.packets.to_string(), drops.bytes.to_string()];
        let place = [drops.layer.as_str().to_owned(), interface, drops.direction.as_str().to_owned()];
        place.into_iter().chain(numbers).collect()
    };
    let rows = drops.iter().filter(|drops| drops.packets > 0).map(row).collect();
    let head = &["Layer", "Interface", "Direction", "Packets", "Bytes"];
    let mut blocks = Block::table(head, rows, ROWS_MAX, "No packet was dropped, or the rules are gone.");
    let rows =
        connections(found).map(|connection| vec![connection.local, connection.remote, connection.owners]).collect();
    blocks.push(Block::Text("Connections that were established at the cut:".to_owned()));
    blocks.extend(Block::table(&["Here", "There", "Whose"], rows, ROWS_MAX, "None is known."));
    Section { title: "What was cut", blocks }
}

struct Connection {
    local: String,
    remote: String,
    address: IpAddr,
    port: u64,
    owners: String,
}

/// Of the collection's sockets, those that lead out.
fn connections(found: &Findings) -> impl Iterator<Item = Connection> {
    found.sockets.iter().filter_map(|socket| {
        let address: IpAddr = text(&socket["remoteAddress"]).parse().ok()?;
        let port = socket["remotePort"].as_u64().filter(|port| *port > 0)?;
        let local: IpAddr = text(&socket["localAddress"]).parse().ok()?;
        (socket["kind"] == "tcp" && !address.is_loopback() && text(&socket["state"]) != "time-wait").then(|| {
            Connection {
                local: end_of(local, socket["localPort"].as_u64().unwrap_or_default()),
                remote: end_of(address.to_canonical(), port),
                address: address.to_canonical(),
                port,
                owners: owners(found, socket),
            }
        })
    })
}

fn end_of(address: IpAddr, port: u64) -> String {
    match address {
        IpAddr::V4(address) => format!("{address}:{port}"),
        IpAddr::V6(address) => format!("[{address}]:{port}"),
    }
}

fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

/// The processes that have a socket, by name and number.
fn owners(found: &Findings, socket: &Value) -> String {
    let owners = socket["owners"].as_array().map(Vec::as_slice).unwrap_or_default();
    let name = |pid: &Value| {
        let process = found.processes.iter().find(|process| process["pid"] == *pid);
        format!("{} [{pid}]", process.map(|process| text(&process["name"])).unwrap_or_default())
    };
    let mut names: Vec<_> = owners.iter().map(|owner| name(&owner["pid"])).collect();
    names.dedup();
    names.join(", ")
}

fn attempts(found: &Findings) -> Section {
    let attempts = reading(found).map(|reading| &reading.attempts[..]).unwrap_or_default();
    let row = |attempt: &crate::status::Attempt| {
        let names: Vec<_> =
            attempt.names.iter().map(|asked| format!("{} {}", asked.kind.as_str(), asked.name)).collect();
        vec![
            attempt.protocol.to_string(),
            attempt.address.to_string(),
            attempt.port.map(|port| port.to_string()).unwrap_or_default(),
            attempt.packets.to_string(),
            names.join(", "),
        ]
    };
    let rows = attempts.iter().map(row).collect();
    let head = &["Protocol", "Address", "Port", "Packets", "Asked for"];
    Section { title: "What it tried since", blocks: Block::table(head, rows, ROWS_MAX, "Nothing was counted.") }
}

/// The packets that were kept, one row for each conversation.
fn timeline(found: &Findings) -> Section {
    struct Row {
        first: Timestamp,
        last: Timestamp,
        count: usize,
        names: Vec<String>,
    }
    let mut rows: BTreeMap<(bool, String), Row> = BTreeMap::new();
    for (packet, ends, is_inward) in found.conversations() {
        let time = Timestamp::try_from(packet.time).unwrap_or_default();
        let who = match ends.destination.1 {
            Some(port) => format!("{} {}", ends.protocol, end_of(ends.destination.0, port.into())),
            None => format!("{} {}", ends.protocol, ends.destination.0),
        };
        let who = if is_inward { format!("from {} to {who}", ends.source.0) } else { format!("to {who}") };
        let row = rows.entry((is_inward, who)).or_insert(Row { first: time, last: time, count: 0, names: Vec::new() });
        (row.first, row.last) = (row.first.min(time), row.last.max(time));
        row.count += 1;
        row.names.extend(packet.comment.clone().filter(|comment| !row.names.contains(comment)));
    }
    let mut rows: Vec<_> = rows.into_iter().collect();
    rows.sort_by_key(|(_, row)| row.first);
    let row = |((is_inward, who), row): ((bool, String), Row)| {
        let way = if is_inward { "in" } else { "out" };
        let times = [format!("{:.3}", row.first), format!("{:.3}", row.last)];
        times.into_iter().chain([way.to_owned(), who, row.count.to_string(), row.names.join(", ")]).collect()
    };
    let rows = rows.into_iter().map(row).collect();
    let head = &["First", "Last", "Way", "Who", "Kept", "Said"];
    let nothing =
        "No packet was kept: the agent keeps them, where the network configuration does not say \"capture\": false.";
    Section { title: "Timeline", blocks: Block::table(head, rows, ROWS_MAX, nothing) }
}

fn processes(found: &Findings) -> Section {
    let joined = |value: &Value| {
        let words = value.as_array().map(Vec::as_slice).unwrap_or_default();
        words.iter().map(text).collect::<Vec<_>>().join(" ")
    };
    let row = |process: &Value| {
        let executable = &process["executable"];
        let kind = text(&executable["kind"]);
        let kind = if kind == "file" || kind.is_empty() { String::new() } else { format!(" ({kind})") };
        let sha256: String = text(&executable["sha256"]).chars().take(16).collect();
        vec![
            text(&process["pid"]),
            text(&process["parent"]),
            text(&process["name"]),
            joined(&process["arguments"]),
            format!("{}{kind}", text(&executable["path"])),
            sha256,
            text(&process["credentials"]["users"][1]),
            text(&process["started"]),
        ]
    };
    let rows = found.processes.iter().map(row).collect();
    let head = &["PID", "Parent", "Name", "Arguments", "Executable", "SHA-256", "User", "Started"];
    let nothing = "None is known: nothing was collected, or no process could be seen.";
    Section { title: "Processes at the last collection", blocks: Block::table(head, rows, ROWS_MAX, nothing) }
}

fn sockets(found: &Findings) -> Section {
    let is_shown = |socket: &&Value| !matches!(text(&socket["kind"]).as_str(), "unix" | "netlink");
    let row = |socket: &Value| {
        let end = |address: &str, port: &str| match text(&socket[address]).parse() {
            Ok(address) => end_of(address, socket[port].as_u64().unwrap_or_default()),
            Err(_) => String::new(),
        };
        vec![
            text(&socket["kind"]),
            text(&socket["state"]),
            end("localAddress", "localPort"),
            end("remoteAddress", "remotePort"),
            owners(found, socket),
        ]
    };
    let rows = found.sockets.iter().filter(is_shown).map(row).collect();
    let head = &["Kind", "State", "Here", "There", "Whose"];
    let nothing = "None is known.";
    Section { title: "Sockets at the last collection", blocks: Block::table(head, rows, ROWS_MAX, nothing) }
}

fn kept(found: &Findings) -> Section {
    let row = |kept: &crate::evidence::Kept| {
        let manifest = &kept.manifest;
        let cut = manifest
            .files
            .iter()
            .flat_map(|file| file.cut_short.iter().map(move |cut| format!("{}: {cut}", file.name)));
        let missing = manifest.missing.iter().map(|missing| format!("missing {}: {}", missing.what, missing.why));
        let time = manifest.clock.time.clone();
        vec![
            manifest.sequence.to_string(),
            time,
            kept.sha256.clone(),
            cut.chain(missing).collect::<Vec<_>>().join("; "),
        ]
    };
    let rows = found.collections.iter().map(row).collect();
    let head = &["Number", "Collected", "SHA-256 of its manifest", "What is not in it"];
    let mut blocks = Block::table(head, rows, ROWS_MAX, "Nothing was collected.");
    if !found.collections.is_empty() {
        blocks.push(Block::Text(match &found.faults[..] {
            [] => "All files are as their manifests say, and the chain of the node is whole.".to_owned(),
            faults => faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "),
        }));
    }
    blocks.push(Block::Text(format!("{} packets are kept in captures/{}.", found.packets.len(), found.container_id)));
    Section { title: "What this is made of", blocks }
}

fn diagram(found: &Findings, pod: String) -> Diagram {
    let mut ends = Vec::new();
    for connection in connections(found) {
        let end = End {
            address: connection.address,
            // Who opened it is not known any more; a port of the pod's that listens says it.
            is_inward: listens(found, &connection.local),
            was_connected: true,
            packets: 0,
            lines: vec![format!("tcp {}", connection.port), connection.owners],
        };
        ends.push(End { lines: end.lines.into_iter().filter(|line| !line.is_empty()).collect(), ..end });
    }
    for attempt in reading(found).map(|reading| &reading.attempts[..]).unwrap_or_default() {
        let how = match attempt.port {
            Some(port) => format!("{} {port}", attempt.protocol),
            None => attempt.protocol.to_string(),
        };
        let names = attempt.names.iter().map(|asked| asked.name.clone());
        let lines = std::iter::once(how).chain(names).collect();
        let (address, packets) = (attempt.address, attempt.packets);
        ends.push(End { address, is_inward: false, was_connected: false, packets, lines });
    }
    let mut inward: BTreeMap<IpAddr, (u64, Vec<String>)> = BTreeMap::new();
    for (_, conversation, is_inward) in found.conversations() {
        if is_inward {
            let (count, lines) = inward.entry(conversation.source.0).or_default();
            *count += 1;
            let how = match conversation.destination.1 {
                Some(port) => format!("{} {port}", conversation.protocol),
                None => conversation.protocol.to_string(),
            };
            if !lines.contains(&how) {
                lines.push(how);
            }
        }
    }
    ends.extend(inward.into_iter().map(|(address, (packets, lines))| End {
        address,
        is_inward: true,
        was_connected: false,
        packets,
        lines,
    }));
    Diagram::new(pod, ends)
}

/// Whether the pod listened on the port of this end of its.
fn listens(found: &Findings, local: &str) -> bool {
    let port = local.rsplit(':').next().and_then(|port| port.parse::<u64>().ok());
    let is_listener = |socket: &Value| socket["state"] == "listening" && socket["localPort"].as_u64() == port;
    port.is_some() && found.sockets.iter().any(|socket| socket["kind"] == "tcp" && is_listener(socket))
}
