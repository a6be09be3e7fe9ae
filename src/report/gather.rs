//! What a report is made of: read from the state directory, the kernel, and a log where one is given.

use std::io;
use std::path::Path;

use serde_json::Value;

use super::history::{Entry, entries};
use crate::capture::{Conversation, Direction, Packet, dissect, read_packets};
use crate::evidence::{EvidenceError, Fault, Kept, Store};
use crate::model::names::{ContainerId, Key};
use crate::node::sandbox::{NodeScan, Side};
use crate::node::state::{StateDir, StateError};
use crate::status::SandboxStatus;
use crate::status::read::read_sandbox;

/// A file of evidence that is longer than this is not read for a report.
const FILE_MAX: u64 = 64 * 1024 * 1024;
/// The logs that are looked into where none is given.
const LOGS: [&str; 3] = ["/var/log/syslog", "/var/log/daemon.log", "/var/log/messages"];
/// Of a longer log the end is read.
const LOG_MAX: u64 = 64 * 1024 * 1024;

/// All that was found of a sandbox.
#[derive(Debug)]
pub struct Findings {
    /// Which.
    pub container_id: ContainerId,
    /// How it is now; `None` where it has no record any more.
    pub status: Option<SandboxStatus>,
    /// What was collected of it, the oldest first.
    pub collections: Vec<Kept>,
    /// What was done to that since.
    pub faults: Vec<Fault>,
    /// Items of `sockets.json` and `processes.json` of the last collection.
    pub sockets: Vec<Value>,
    /// The same of its processes.
    pub processes: Vec<Value>,
    /// The packets that were kept.
    pub packets: Vec<(Packet, Option<Conversation>)>,
    /// What the log says, and which.
    pub history: Option<(String, Vec<Entry>)>,
}

/// Reads it all. What cannot be had is left out, and said by the report.
///
/// # Errors
/// [`StateError`] and [`EvidenceError`] where marks or collections cannot be listed.
pub fn gather(state: &StateDir, container_id: &ContainerId, log: Option<&Path>) -> Result<Findings, GatherError> {
    let status = match Side::own() {
        Ok(mut host) => read_sandbox(state, &mut host, container_id, &NodeScan::default())?,
        Err(_) => None,
    };
    let store = Store::of(state);
    let is_meant = |kept: &Kept| kept.manifest.container_id.as_deref() == Some(container_id.as_str());
    let (mut collections, _) = store.collections()?;
    collections.retain(is_meant);
    let faults = if collections.is_empty() { Vec::new() } else { store.verify(is_meant)? };
    let last = collections.last().map(|kept| store.path().join(&kept.path));
    let items = |name: &str| last.as_ref().and_then(|last| read_items(&last.join(name)).ok()).unwrap_or_default();
    let (sockets, processes) = (items("sockets.json"), items("processes.json"));
    let packets = read_packets(state.path(), container_id).unwrap_or_default();
    let ends = packets.into_iter().map(|packet| (dissect(&packet.frame), packet));
    let packets = ends.map(|(ends, packet)| (packet, ends)).collect();
    let keys: Vec<Key> = status
        .as_ref()
        .map(|status| {
            let pod = &status.entry.pod;
            let marked = status.entry.marking.iter().flat_map(|marking| marking.keys.iter().cloned());
            marked.chain(pod.uid.as_ref().map(Key::from)).chain(pod.name_key()).collect()
        })
        .unwrap_or_default();
    let history = match log {
        Some(path) => {
            let text =
                read_log(path).map_err(|source| GatherError::Log { path: path.display().to_string(), source })?;
            Some((path.display().to_string(), entries(&text, container_id.as_str(), &keys)))
        }
        None => LOGS.iter().find_map(|path| {
            let found = entries(&read_log(Path::new(path)).ok()?, container_id.as_str(), &keys);
            (!found.is_empty()).then(|| ((*path).to_owned(), found))
        }),
    };
    Ok(Findings {
        container_id: container_id.clone(),
        status,
        collections,
        faults,
        sockets,
        processes,
        packets,
        history,
    })
}

impl Findings {
    /// The packets that have ends, with these, and whether they were on their way to the pod.
    pub(super) fn conversations(&self) -> impl Iterator<Item = (&Packet, &Conversation, bool)> {
        self.packets
            .iter()
            .filter_map(|(packet, found)| Some((packet, found.as_ref()?, packet.direction == Direction::In)))
    }
}

/// Why a report cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum GatherError {
    /// The marks cannot be listed.
    #[error(transparent)]
    State(#[from] StateError),
    /// The collections cannot.
    #[error(transparent)]
    Evidence(#[from] EvidenceError),
    /// The log that was asked for cannot be read.
    #[error("cannot read the log {path}")]
    Log {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn read_items(path: &Path) -> io::Result<Vec<Value>> {
    let text = crate::node::files::read_regular(path, FILE_MAX)?;
    let document: Value = serde_json::from_slice(&text)?;
    Ok(document["items"].as_array().cloned().unwrap_or_default())
}

/// The end of a log; `-` is standard input.
fn read_log(path: &Path) -> io::Result<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut text = Vec::new();
    if path == Path::new("-") {
        io::stdin().lock().take(LOG_MAX).read_to_end(&mut text)?;
    } else {
        let mut file = std::fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(LOG_MAX)))?;
        file.take(LOG_MAX).read_to_end(&mut text)?;
    }
    Ok(String::from_utf8_lossy(&text).into_owned())
}
