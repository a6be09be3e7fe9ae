//! The same of pods in the node's own network namespace, which have no record: an entry of a kind of its own.

use std::path::PathBuf;

use serde::{Serialize, Serializer};

use crate::kernel::cgroup::on_the_node;
use crate::model::audit::chain;
use crate::model::host_pod::{HostDoubt, Way};
use crate::model::mark::Desired;
use crate::model::names::{Key, Pod, PodUid};
use crate::model::verdict::{Note, Reason, Verdict};
use crate::node::host_pod::{HostNode, HostPodError, HostReport, desired};
use crate::node::state::{StateDir, StateError};

use super::json::{CodedJson, FoundJson, MarkingJson, PodJson};
use super::read::attempt;
use super::{Attempt, Direction, Drops, Layer, Marking, dropped, merge_attempts};

/// Such a pod, and how the kernel was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPodStatus {
    /// The pod; its name is a hint.
    pub pod: Pod,
    /// Its cgroup; unknown where it has ended.
    pub cgroup: Option<PathBuf>,
    /// The marks that hold for it.
    pub marking: Option<Marking>,
    /// What was found.
    pub finding: HostFinding,
}

/// What a look at the kernel gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostFinding {
    /// It was read.
    Read(HostReading),
    /// It could not be; why.
    Unknown(String),
}

/// What was read back.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostReading {
    /// What may be claimed.
    pub verdict: Verdict,
    /// Why it is not another one: a word that does not change, and a sentence.
    pub reasons: Vec<(&'static str, String)>,
    /// Whether both programs are in place.
    pub cgroup_layer: bool,
    /// What each program has dropped.
    pub drops: Vec<Drops>,
    /// What the pod tried to reach.
    pub attempts: Vec<Attempt>,
    /// What else is to be known.
    pub notes: Vec<Note>,
}

impl HostReading {
    fn of(node: &HostNode, uid: &PodUid, report: HostReport, marking: &Marking) -> Self {
        let drops = node.drops(uid).into_iter().map(|(way, packets, bytes)| Drops {
            layer: Layer::Cgroup,
            interface: None,
            direction: match way {
                Way::In => Direction::In,
                Way::Out => Direction::Out,
            },
            packets,
            bytes,
        });
        let counted = report.sets.iter().flat_map(|set| {
            let name = set.name.trim_end_matches(['4', '6']);
            let elements = node.elements(uid, set).into_iter();
            elements.filter_map(move |(key, packets)| attempt(name, &key, packets))
        });
        Self {
            verdict: report.verdict,
            reasons: report.reasons.iter().map(|doubt: &HostDoubt| (doubt.code(), doubt.to_string())).collect(),
            cgroup_layer: report.layer,
            drops: drops.collect(),
            attempts: merge_attempts(counted, &marking.policy),
            notes: report.notes,
        }
    }

    /// How many packets of a direction were dropped.
    #[must_use]
    pub fn dropped(&self, direction: Direction) -> u64 {
        dropped(&self.drops, direction)
    }

    /// Of one whose programs stand although nothing isolates it.
    fn not_released() -> Self {
        let reason = Reason::NotReleased { pod_side: false };
        let text = "no mark holds for it, but eBPF programs are on its cgroup; `quarantine sync` takes them off";
        Self {
            verdict: Verdict::Partial,
            reasons: vec![(reason.code(), text.to_owned())],
            cgroup_layer: true,
            drops: Vec::new(),
            attempts: Vec::new(),
            notes: Vec::new(),
        }
    }
}

impl HostPodStatus {
    /// Reads one. `None` where no mark holds for it and no program is in its way, or it is no pod of the node's network namespace.
    ///
    /// # Errors
    /// [`StateError`] where the marks cannot be listed.
    pub fn read(state: &StateDir, node: &HostNode, uid: &PodUid) -> Result<Option<Self>, StateError> {
        let pod = node.pod(uid);
        let (keys, desired) = desired(state, &pod)?;
        let stands = node.standing().contains(uid);
        let found = match node.find(uid) {
            // Whatever it once was: its ADD has come since.
            _ if node.has_record(state, uid)? => return Ok(None),
            Ok(None) if !stands => return Ok(None),
            found => found,
        };
        let cgroup = found.as_ref().ok().and_then(|found| Some(on_the_node(&found.as_ref()?.directory)));
        let marking = match desired {
            Desired::Released if !stands => return Ok(None),
            Desired::Released => None,
            Desired::Isolated { policy, mark, fault } => {
                let since = keys.iter().filter_map(|key| state.marked_since(key)).min();
                Some(Marking { keys, policy, mark: *mark, fault, since })
            }
        };
        let finding = match (found, &marking) {
            (_, None) => HostFinding::Read(HostReading::not_released()),
            (Ok(Some(found)), Some(marking)) => {
                let report = node.verify(&found, &marking.policy);
                HostFinding::Read(HostReading::of(node, uid, report, marking))
            }
            (Ok(None), Some(_)) => HostFinding::Unknown("it has no process any more".to_owned()),
            (Err(error), Some(_)) => HostFinding::Unknown(unreached(&error)),
        };
        Ok(Some(Self { pod, cgroup, marking, finding }))
    }

    /// Whether it is as its marks want it.
    #[must_use]
    pub fn is_as_marked(&self) -> bool {
        match (&self.finding, &self.marking) {
            (HostFinding::Read(reading), Some(_)) => reading.verdict != Verdict::Open,
            _ => false,
        }
    }

    /// `isolated` or `released`, as the marks want it.
    #[must_use]
    pub fn state(&self) -> &'static str {
        if self.marking.is_some() { "isolated" } else { "released" }
    }

    /// The verdict in one word.
    #[must_use]
    pub fn verdict(&self) -> &'static str {
        match &self.finding {
            HostFinding::Read(reading) => reading.verdict.as_str(),
            HostFinding::Unknown(_) => "unknown",
        }
    }

    /// Why the verdict is not another one.
    #[must_use]
    pub fn reasons(&self) -> Vec<String> {
        match &self.finding {
            HostFinding::Read(reading) => reading.reasons.iter().map(|(_, text)| text.clone()).collect(),
            HostFinding::Unknown(why) => vec![why.clone()],
        }
    }

    /// The marks that hold for it.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.marking.iter().flat_map(|marking| &marking.keys)
    }
}

fn unreached(error: &HostPodError) -> String {
    format!("it is NOT isolated: {}", chain(error))
}

#[derive(Serialize)]
struct HostPodJson<'a> {
    kind: &'static str,
    pod: PodJson<'a>,
    cgroup: Option<String>,
    state: &'static str,
    policy: Option<&'a crate::model::policy::Policy>,
    mark: Option<MarkingJson<'a>>,
    #[serde(flatten)]
    found: FoundJson<'a, LayersJson>,
}

#[derive(Default, Serialize)]
struct LayersJson {
    cgroup: bool,
}

impl Serialize for HostPodStatus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let (reading, error) = match &self.finding {
            HostFinding::Read(reading) => (Some(reading), None),
            HostFinding::Unknown(error) => (None, Some(error.as_str())),
        };
        let coded = |(code, text): &(&'static str, String)| CodedJson { code, text: text.clone() };
        let found = FoundJson {
            verdict: self.verdict(),
            reasons: self.reasons(),
            reason_codes: reading.map(|reading| reading.reasons.iter().map(coded).collect()).unwrap_or_default(),
            layers: reading.map(|reading| LayersJson { cgroup: reading.cgroup_layer }).unwrap_or_default(),
            drops: reading.map(|reading| &reading.drops[..]).unwrap_or_default(),
            attempts: reading.map(|reading| &reading.attempts[..]).unwrap_or_default(),
            notes: reading.map(|reading| reading.notes.iter().map(CodedJson::of_note).collect()).unwrap_or_default(),
            error,
        };
        HostPodJson {
            kind: "host-network",
            pod: PodJson::of(&self.pod),
            cgroup: self.cgroup.as_ref().map(|cgroup| cgroup.display().to_string()),
            state: self.state(),
            policy: self.marking.as_ref().map(|marking| &marking.policy),
            mark: self.marking.as_ref().map(MarkingJson::of),
            found,
        }
        .serialize(serializer)
    }
}
