//! The same as JSON, which scripts rely on: keys are added, none is taken away.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use jiff::Timestamp;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};

use super::{Attempt, AttemptProtocol, Damaged, Drops, Finding, Marking, SandboxEntry, SandboxStatus, UnansweredMark};
use crate::model::fault::Fault;
use crate::model::mark::Mark;
use crate::model::names::{ContainerId, Key, NetnsPath, Pod, PodName, PodUid};
use crate::model::policy::Policy;
use crate::model::verdict::{Note, Reason};

/// What `status` says of a sandbox.
#[derive(Serialize)]
struct StatusJson<'a> {
    #[serde(flatten)]
    entry: EntryJson<'a>,
    #[serde(flatten)]
    found: FoundJson<'a, LayersJson>,
}

/// How the kernel was found, whatever layers there are.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct FoundJson<'a, Layers> {
    pub(super) verdict: &'static str,
    pub(super) reasons: Vec<String>,
    pub(super) reason_codes: Vec<CodedJson>,
    pub(super) layers: Layers,
    pub(super) drops: &'a [Drops],
    pub(super) attempts: &'a [Attempt],
    pub(super) notes: Vec<CodedJson>,
    pub(super) error: Option<&'a str>,
}

#[derive(Serialize)]
pub(super) struct CodedJson {
    pub(super) code: &'static str,
    pub(super) text: String,
}

#[derive(Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct LayersJson {
    pod: bool,
    host: bool,
    /// Only where programs are attached.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    bpf: bool,
    /// Only where programs wait on a released sandbox.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    bpf_ready: bool,
}

/// What `list` says of a sandbox.
#[derive(Serialize)]
struct EntryJson<'a> {
    #[serde(rename = "containerID")]
    container_id: &'a ContainerId,
    pod: PodJson<'a>,
    netns: Option<&'a NetnsPath>,
    state: &'static str,
    policy: Option<&'a Policy>,
    mark: Option<MarkingJson<'a>>,
}

/// With every key, null where it is not known.
#[derive(Serialize)]
pub(super) struct PodJson<'a> {
    namespace: Option<&'a PodName>,
    name: Option<&'a PodName>,
    uid: Option<&'a PodUid>,
}

#[derive(Serialize)]
pub(super) struct MarkingJson<'a> {
    keys: &'a [Key],
    #[serde(flatten)]
    said: SaidJson<'a>,
}

#[derive(Serialize)]
struct UnansweredJson<'a> {
    key: &'a Key,
    #[serde(flatten)]
    said: SaidJson<'a>,
}

/// What a mark says, but for its policy.
#[derive(Serialize)]
struct SaidJson<'a> {
    reason: Option<&'a str>,
    case: Option<&'a str>,
    actor: Option<&'a str>,
    since: Option<String>,
    fault: Option<&'a Fault>,
}

impl Serialize for SandboxStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (reading, error) = match &self.finding {
            Finding::Read(reading) => (Some(reading), None),
            Finding::Gone(_) => (None, None),
            Finding::Unknown(error) => (None, Some(error.as_str())),
        };
        let reason = |reason: &Reason| CodedJson { code: reason.code(), text: reason.to_string() };
        let found = FoundJson {
            verdict: self.verdict(),
            reasons: self.reasons(),
            reason_codes: reading.map(|reading| reading.reasons.iter().map(reason).collect()).unwrap_or_default(),
            layers: reading
                .map(|reading| LayersJson {
                    pod: reading.pod_layer,
                    host: reading.host_layer,
                    bpf: reading.bpf_layer,
                    bpf_ready: reading.bpf_ready,
                })
                .unwrap_or_default(),
            drops: reading.map(|reading| &reading.drops[..]).unwrap_or_default(),
            attempts: reading.map(|reading| &reading.attempts[..]).unwrap_or_default(),
            notes: self.notes().iter().map(CodedJson::of_note).collect(),
            error,
        };
        StatusJson { entry: EntryJson::of(&self.entry), found }.serialize(serializer)
    }
}

impl Serialize for SandboxEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        EntryJson::of(self).serialize(serializer)
    }
}

impl Serialize for UnansweredMark {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        UnansweredJson { key: &self.key, said: SaidJson::of(&self.mark, self.fault.as_ref(), self.since) }
            .serialize(serializer)
    }
}

impl Serialize for AttemptProtocol {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'a> EntryJson<'a> {
    fn of(entry: &'a SandboxEntry) -> Self {
        Self {
            container_id: &entry.container_id,
            pod: PodJson::of(&entry.pod),
            netns: entry.netns.as_ref(),
            state: entry.state(),
            policy: entry.marking.as_ref().map(|marking| &marking.policy),
            mark: entry.marking.as_ref().map(MarkingJson::of),
        }
    }
}

impl CodedJson {
    pub(super) fn of_note(note: &Note) -> Self {
        Self { code: note.code(), text: note.to_string() }
    }
}

impl<'a> PodJson<'a> {
    pub(super) fn of(Pod { namespace, name, uid }: &'a Pod) -> Self {
        Self { namespace: namespace.as_ref(), name: name.as_ref(), uid: uid.as_ref() }
    }
}

impl<'a> MarkingJson<'a> {
    pub(super) fn of(Marking { keys, mark, fault, since, .. }: &'a Marking) -> Self {
        Self { keys, said: SaidJson::of(mark, fault.as_ref(), *since) }
    }
}

impl<'a> SaidJson<'a> {
    fn of(mark: &'a Mark, fault: Option<&'a Fault>, since: Option<SystemTime>) -> Self {
        let Mark { policy: _, reason, case, actor } = mark;
        Self {
            reason: reason.as_deref(),
            case: case.as_deref(),
            actor: actor.as_deref(),
            since: since.map(timestamp),
            fault,
        }
    }
}

/// Not every path is text.
pub(super) fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&path.display())
}

/// All of a node. `sandboxes` are what `status` or `list` says of each.
#[must_use]
pub fn node_to_json(sandboxes: &[impl Serialize], unanswered: &[UnansweredMark], damaged: &[Damaged]) -> Value {
    json!({ "sandboxes": sandboxes, "unanswered": unanswered, "damaged": damaged })
}

/// A time as RFC 3339 has it, in UTC, to the second.
#[must_use]
pub fn timestamp(time: SystemTime) -> String {
    let seconds = match time.duration_since(UNIX_EPOCH) {
        Ok(after) => i64::try_from(after.as_secs()).unwrap_or(i64::MAX),
        Err(before) => -i64::try_from(before.duration().as_secs()).unwrap_or(i64::MAX),
    };
    // What no calendar has is no time of a file that anybody wrote.
    Timestamp::from_second(seconds).unwrap_or_default().to_string()
}
