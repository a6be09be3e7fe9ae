//! What an operator's mark says, which marks answer for a sandbox, and which of them decides.
//!
//! Pure. Where marks are kept is the business of `node::state`; what a policy allows, that of `policy`.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::model::audit::Line;
use crate::model::fault::Fault;
use crate::model::json::{At, Unexpected};
use crate::model::names::{ContainerId, Key, Pod};
use crate::model::policy::Policy;

/// What an operator wrote into a mark.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mark {
    /// Replaces the conflist's policy whole.
    pub policy: Option<Policy>,
    /// Why.
    pub reason: Option<String>,
    /// The case it belongs to.
    pub case: Option<String>,
    /// Who.
    pub actor: Option<String>,
}

impl Mark {
    /// A line of the log with why it was set, in which case and by whom.
    #[must_use]
    pub fn attributed(&self, line: Line) -> Line {
        line.with_some("reason", self.reason.as_ref())
            .with_some("case", self.case.as_ref())
            .with_some("actor", self.actor.as_ref())
    }

    /// Reads a mark. Nothing but white space (`touch`, `echo >`) is a mark that says nothing.
    ///
    /// # Errors
    /// Says what is wrong when it is not a JSON object of known keys; such a mark seals.
    pub fn read(content: &[u8]) -> Result<Self, Fault> {
        if content.iter().all(u8::is_ascii_whitespace) {
            return Ok(Self::default());
        }
        let value: Value = serde_json::from_slice(content).map_err(|error| Fault::NotJson(error.to_string()))?;
        Ok(Self::from_json(&At::new("", &value))?)
    }

    fn from_json(at: &At<'_>) -> Result<Self, Unexpected> {
        at.object_of(&["policy", "reason", "case", "actor"])?;
        let text = |key| at.get(key)?.map(|value| value.text().map(str::to_owned)).transpose();
        Ok(Self {
            policy: at.get("policy")?.map(|policy| Policy::read(&policy)).transpose()?,
            reason: text("reason")?,
            case: text("case")?,
            actor: text("actor")?,
        })
    }

    /// The mark as `read` reads it, without what it does not say.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let mut object = Map::new();
        if let Some(policy) = &self.policy {
            object.insert("policy".to_owned(), policy.to_json());
        }
        for (key, text) in [("reason", &self.reason), ("case", &self.case), ("actor", &self.actor)] {
            if let Some(text) = text {
                object.insert(key.to_owned(), json!(text));
            }
        }
        Value::Object(object)
    }
}

/// What a file in `isolated/` says: its presence isolates, whatever it holds.
pub type MarkContent = Result<Mark, Fault>;

/// What is wanted of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Desired {
    /// Traffic flows.
    Released,
    /// Nothing passes but what the policy lets through.
    Isolated {
        /// What is still let through.
        policy: Policy,
        /// The mark that decided (reason, case, actor).
        mark: Box<Mark>,
        /// Why the sandbox is sealed although nobody asked for that: a mark that can't be read.
        fault: Option<Fault>,
    },
}

impl Desired {
    /// Decides by the marks that name a sandbox, the most specific first (container ID, UID, name). The first one
    /// gives the policy, else the attachment's own (`configured`) holds; one that can't be read seals.
    #[must_use]
    pub fn by_marks(marks: &[MarkContent], configured: &Policy) -> Self {
        let Some(first) = marks.first() else { return Self::Released };
        let mark = first.as_ref().ok().cloned().unwrap_or_default();
        match marks.iter().find_map(|mark| mark.as_ref().err()) {
            Some(fault) => {
                Self::Isolated { policy: Policy::sealed(), mark: Box::new(mark), fault: Some(fault.clone()) }
            }
            None => {
                let policy = mark.policy.clone().unwrap_or_else(|| configured.clone());
                Self::Isolated { policy, mark: Box::new(mark), fault: None }
            }
        }
    }

    /// What is still let through, where it is to be isolated.
    #[must_use]
    pub fn policy(&self) -> Option<&Policy> {
        match self {
            Self::Isolated { policy, .. } => Some(policy),
            Self::Released => None,
        }
    }

    /// Whether the sandbox is to be isolated.
    #[must_use]
    pub fn is_isolated(&self) -> bool {
        matches!(self, Self::Isolated { .. })
    }
}

/// Which of `marks` a sandbox answers to, the most specific first; `pod_of` says to which pod the sandbox that a mark
/// names by its container ID belongs.
#[must_use]
pub fn answering_keys(
    container_id: &ContainerId,
    pod: &Pod,
    marks: &BTreeSet<Key>,
    pod_of: impl Fn(&Key) -> Option<Pod>,
) -> Vec<Key> {
    let own = Key::from(container_id);
    let uid = pod.uid.as_ref().map(Key::from);
    let name = pod.name_key();
    let siblings = marks.iter().filter(|&key| {
        *key != own
            && Some(key) != uid.as_ref()
            && Some(key) != name.as_ref()
            && pod_of(key).is_some_and(|other| pod.is(&other))
    });
    let mut keys: Vec<Key> = Vec::new();
    for key in [&own].into_iter().chain(siblings).chain(&uid).chain(&name) {
        if marks.contains(key) && !keys.contains(key) {
            keys.push(key.clone());
        }
    }
    keys
}

/// Whether a sandbox answers to a mark; `of` is the pod of the sandbox that the mark names by its container ID.
#[must_use]
pub fn answers_to(container_id: &ContainerId, pod: &Pod, mark: &Key, of: Option<&Pod>) -> bool {
    mark.as_str() == container_id.as_str()
        || pod.uid.as_ref().is_some_and(|uid| uid.as_str() == mark.as_str())
        || pod.is_named(mark)
        || of.is_some_and(|other| pod.is(other))
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    if let Ok(mark) = Mark::read(bytes) {
        assert_eq!(Mark::read(mark.to_json().to_string().as_bytes()), Ok(mark));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::{PodName, PodUid};
    use crate::model::policy::Probes;

    #[test]
    fn marks_say_nothing_something_or_seal() {
        assert_eq!(Mark::read(b""), Ok(Mark::default()));
        assert_eq!(Mark::read(b" \n\t"), Ok(Mark::default()));
        let mark = Mark::read(br#"{"reason": "beacon", "policy": {"probes": false}}"#).unwrap();
        assert_eq!(Mark::read(mark.to_json().to_string().as_bytes()), Ok(mark));
        for bad in [
            &b"yes"[..],
            b"null",
            b"[]",
            b"{",
            b"{}x",
            br#"{"polciy": {}}"#,
            br#"{"reason": 1}"#,
            b"\xff",
            b"{\"policy\": null}",
        ] {
            assert!(Mark::read(bad).is_err(), "{}", String::from_utf8_lossy(bad));
        }
    }

    #[test]
    fn the_most_specific_mark_decides_and_an_unreadable_one_seals() {
        let configured = Policy { loopback: false, ..Policy::default() };
        let own = Mark { policy: Some(Policy { probes: Probes::Off, ..Policy::default() }), ..Mark::default() };
        let silent = Mark::default();
        let decide = |marks: &[MarkContent]| match Desired::by_marks(marks, &configured) {
            Desired::Released => None,
            Desired::Isolated { policy, .. } => Some(policy),
        };
        assert_eq!(decide(&[]), None);
        assert_eq!(decide(&[Ok(silent.clone())]), Some(configured.clone()));
        assert_eq!(decide(&[Ok(own.clone()), Ok(silent.clone())]), own.policy);
        assert_eq!(decide(&[Ok(silent.clone()), Ok(own.clone())]), Some(configured.clone()));
        assert_eq!(decide(&[Ok(own), Err(Fault::Unreadable("broken".to_owned()))]), Some(Policy::sealed()));
        assert_eq!(decide(&[Err(Fault::Unreadable("broken".to_owned())), Ok(silent)]), Some(Policy::sealed()));
    }

    #[test]
    fn the_most_specific_mark_comes_first() {
        let key = |text: &str| Key::new(text).unwrap();
        let marks: BTreeSet<_> =
            ["ns_n", "uid-1", "old", "new", "other", "uid-2", "uidless"].map(key).into_iter().collect();
        let pod = Pod {
            namespace: Some(PodName::new("ns").unwrap()),
            name: Some(PodName::new("n").unwrap()),
            uid: Some(PodUid::new("uid-1").unwrap()),
        };
        let with_uid = |uid: &str| Some(Pod { uid: PodUid::new(uid).ok(), ..Pod::default() });
        let nameless = Pod { uid: None, ..pod.clone() };
        let pod_of = |key: &Key| match key.as_str() {
            "old" | "new" => with_uid("uid-1"),
            "other" => with_uid("uid-2"),
            "uidless" => Some(nameless.clone()),
            _ => None,
        };
        let keys = answering_keys(&ContainerId::new("new").unwrap(), &pod, &marks, pod_of);
        assert_eq!(keys, ["new", "old", "uid-1", "ns_n"].map(key));
        let by_name = answering_keys(&ContainerId::new("next").unwrap(), &nameless, &marks, pod_of);
        assert_eq!(by_name, ["uidless", "ns_n"].map(key), "where neither has a UID the name tells");
        let nobody = answering_keys(&ContainerId::new("x").unwrap(), &Pod::default(), &marks, pod_of);
        assert_eq!(nobody, []);
        for (id, pod) in [("new", &pod), ("next", &nameless), ("x", &Pod::default())] {
            let id = ContainerId::new(id).unwrap();
            let keys = answering_keys(&id, pod, &marks, pod_of);
            for mark in &marks {
                assert_eq!(answers_to(&id, pod, mark, pod_of(mark).as_ref()), keys.contains(mark), "{id} {mark}");
            }
        }
    }
}
