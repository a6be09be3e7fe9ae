//! What is said of the sandboxes of a node: the data of `status` and `list`, and its JSON form, which scripts rely on.
//!
//! Who reads the kernel is `read`; how it looks on a terminal is `table`. The rest is pure.

mod host_pod;
mod json;
pub mod read;
mod table;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

use crate::capture::{KeptName, Kind};
use crate::model::fault::Fault;
use crate::model::mark::Mark;
use crate::model::names::{ContainerId, Key, NetnsPath, Pod};
use crate::model::policy::Policy;
use crate::model::verdict::{Note, Reason, Verdict};

pub use crate::model::attempt::AttemptProtocol;
pub use crate::model::direction::Direction;
pub use host_pod::{HostFinding, HostPodStatus, HostReading};
pub use json::{node_to_json, timestamp};
pub use table::{Style, host_pod_text, host_pods_text, list_table, sandbox_text, status_table};

/// A sandbox and what its marks want.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxEntry {
    /// Its container ID.
    pub container_id: ContainerId,
    /// Its pod.
    pub pod: Pod,
    /// Where its netns is; unknown where no record can be read.
    pub netns: Option<NetnsPath>,
    /// The marks that hold for it; none where it is to be released.
    pub marking: Option<Marking>,
}

/// The marks of a sandbox, taken together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marking {
    /// Their names, the most specific first.
    pub keys: Vec<Key>,
    /// What they let through.
    pub policy: Policy,
    /// The one that decided.
    pub mark: Mark,
    /// What is wrong with one that cannot be read, and seals.
    pub fault: Option<Fault>,
    /// When the first of them was written.
    pub since: Option<SystemTime>,
}

/// A mark that nothing on the node answers to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnansweredMark {
    /// Its name.
    pub key: Key,
    /// What it says.
    pub mark: Mark,
    /// What is wrong with it, where it cannot be read.
    pub fault: Option<Fault>,
    /// When it was written.
    pub since: Option<SystemTime>,
}

/// A record that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damaged {
    /// The file.
    #[serde(serialize_with = "json::lossy")]
    pub path: PathBuf,
    /// What is wrong with it.
    pub fault: Fault,
}

/// A sandbox and how the kernel was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxStatus {
    /// What is wanted of it.
    pub entry: SandboxEntry,
    /// What it is.
    pub finding: Finding,
}

/// What a look at the kernel gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It was read.
    Read(Reading),
    /// Its netns does not exist any more; why that is known.
    Gone(String),
    /// It could not be read; why.
    Unknown(String),
}

/// What was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// What may be claimed.
    pub verdict: Verdict,
    /// Why it is not another one.
    pub reasons: Vec<Reason>,
    /// Whether the pod-side rules are in place.
    pub pod_layer: bool,
    /// Whether the host guard is.
    pub host_layer: bool,
    /// Whether eBPF programs are, on every interface where they are wanted and on one at least.
    pub bpf_layer: bool,
    /// Whether eBPF programs wait on every end of a released sandbox, to be armed by whoever isolates it.
    pub bpf_ready: bool,
    /// Whether the configuration requires the host guard.
    pub guard_required: bool,
    /// What each chain has dropped since its rules were written.
    pub drops: Vec<Drops>,
    /// What the pod tried to reach.
    pub attempts: Vec<Attempt>,
    /// What else is to be known.
    pub notes: Vec<Note>,
}

impl Reading {
    /// How many packets of a direction were dropped. One meets one layer only: the first on its way drops it.
    #[must_use]
    pub fn dropped(&self, direction: Direction) -> u64 {
        dropped(&self.drops, direction)
    }
}

fn dropped(drops: &[Drops], direction: Direction) -> u64 {
    drops.iter().filter(|drops| drops.direction == direction).map(|drops| drops.packets).sum()
}

/// What one chain has dropped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Drops {
    /// Which side it is on.
    pub layer: Layer,
    /// The pod's interface; none for a chain that sees all interfaces.
    pub interface: Option<String>,
    /// Which way the packets went.
    pub direction: Direction,
    /// How many.
    pub packets: u64,
    /// How long together.
    pub bytes: u64,
}

/// Where rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Layer {
    /// In the pod's netns.
    Pod,
    /// In the host's.
    Host,
    /// In eBPF programs on both.
    Bpf,
    /// In eBPF programs on the pod's cgroup.
    Cgroup,
}

/// A destination that an isolated pod tried to reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Attempt {
    /// How.
    pub protocol: AttemptProtocol,
    /// Where.
    pub address: IpAddr,
    /// On which port, where the protocol has ports.
    pub port: Option<u16>,
    /// How often.
    pub packets: u64,
    /// Whom it asked for there by name, as far as its packets were kept.
    pub names: Vec<AskedFor>,
}

/// A name that was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct AskedFor {
    /// How.
    pub kind: Kind,
    /// Whom; escaped.
    pub name: String,
}

impl SandboxStatus {
    /// Whether it is as its marks want it: enforced where there is one, released where there is none.
    #[must_use]
    pub fn is_as_marked(&self) -> bool {
        match (&self.finding, &self.entry.marking) {
            (Finding::Read(reading), Some(_)) => match reading.verdict {
                Verdict::Contained => true,
                Verdict::Partial => !reading.guard_required,
                Verdict::Open => false,
            },
            (Finding::Read(reading), None) => reading.verdict == Verdict::Open,
            (Finding::Gone(_), None) => true,
            (Finding::Gone(_), Some(_)) | (Finding::Unknown(_), _) => false,
        }
    }

    /// The verdict in one word.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match &self.finding {
            Finding::Read(reading) => reading.verdict.as_str(),
            Finding::Gone(_) => "gone",
            Finding::Unknown(_) => "unknown",
        }
    }

    /// Why the verdict is not another one.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        match &self.finding {
            Finding::Read(reading) => reading.reasons.iter().map(ToString::to_string).collect(),
            Finding::Gone(why) | Finding::Unknown(why) => vec![why.clone()],
        }
    }

    /// What else is to be known of it.
    #[must_use]
    pub fn notes(&self) -> &[Note] {
        match &self.finding {
            Finding::Read(reading) => &reading.notes,
            Finding::Gone(_) | Finding::Unknown(_) => &[],
        }
    }
}

impl SandboxEntry {
    /// `isolated` or `released`, as the marks want it.
    #[must_use]
    pub fn state(&self) -> &'static str {
        if self.marking.is_some() { "isolated" } else { "released" }
    }
}

impl Layer {
    /// As JSON has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pod => "pod",
            Self::Host => "host",
            Self::Bpf => "bpf",
            Self::Cgroup => "cgroup",
        }
    }
}

/// Puts together what several sets have counted: each packet passes one set in each layer, so a destination that is
/// in several was tried as often as the largest count says. What the policy allows is no attempt. Most tried first.
#[must_use]
pub fn merge_attempts(counted: impl IntoIterator<Item = Attempt>, policy: &Policy) -> Vec<Attempt> {
    let mut merged: BTreeMap<(AttemptProtocol, IpAddr, Option<u16>), u64> = BTreeMap::new();
    for Attempt { protocol, address, port, packets, .. } in counted {
        let count = merged.entry((protocol, address, port)).or_default();
        *count = packets.max(*count);
    }
    let mut attempts: Vec<_> = merged
        .into_iter()
        .filter(|((protocol, address, port), _)| match (protocol, port) {
            (AttemptProtocol::Ip(protocol), Some(port)) => !policy.allows_egress(*protocol, *address, *port),
            _ => true,
        })
        .map(|((protocol, address, port), packets)| Attempt { protocol, address, port, packets, names: Vec::new() })
        .collect();
    attempts.sort_by_key(|attempt| std::cmp::Reverse(attempt.packets));
    attempts
}

/// Puts the names that were asked for beside where they were asked. What is not counted (any more) was tried once at least.
pub fn name_attempts(attempts: &mut Vec<Attempt>, names: impl IntoIterator<Item = KeptName>) {
    for KeptName { kind, name, protocol, address, port, .. } in names {
        let asked = AskedFor { kind, name };
        let protocol = AttemptProtocol::Ip(protocol);
        let is_there =
            |attempt: &&mut Attempt| (attempt.protocol, attempt.address, attempt.port) == (protocol, address, port);
        match attempts.iter_mut().find(is_there) {
            Some(attempt) => attempt.names.push(asked),
            None => attempts.push(Attempt { protocol, address, port, packets: 1, names: vec![asked] }),
        }
    }
}

#[cfg(test)]
mod tests;
