//! What is said of a `PodQuarantine`: by its node (from what the kernel says), and by the controller.

use jiff::Timestamp;
use kube::KubeSchema;
use serde::{Deserialize, Serialize};

/// What is so. The node and the controller each apply their part of it.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct PodQuarantineStatus {
    /// The generation of the object that this is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `contained`, `partial`, `open`, `gone` or `unknown`, as the kernel was read back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<String>,
    /// Why the verdict is not another one, and what else is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<WhyNot>,
    /// Which layers were found in place.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Layers>,
    /// The policy that holds, in words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<String>,
    /// The node that says so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<String>,
    /// The sandbox.
    #[serde(rename = "containerID", default, skip_serializing_if = "Option::is_none")]
    pub container_id: Option<String>,
    /// When the kernel was first read back as contained, or as contained in part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub contained_at: Option<Timestamp>,
    /// Packets that were dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub drops: Option<Counts>,
    /// What the pod tried to reach, most tried first: fifty of them.
    #[schemars(length(max = 50))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub attempts: Vec<Attempt>,
    /// `Contained` and `Expired` by the node; `Resolved`, `Detached` and `Replaced` by the controller.
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// A reason, as `quarantine status` gives it.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct WhyNot {
    /// The word for it that runbooks go by.
    pub code: String,
    /// The sentence.
    pub text: String,
}

/// Which layers are in place.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layers {
    /// The rules in the pod's network namespace.
    pub pod: bool,
    /// The host guard.
    pub host: bool,
    /// The programs on its cgroup, of a pod with hostNetwork.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub cgroup: bool,
}

/// Packets, by direction as the pod sees it.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// To the pod.
    #[serde(rename = "in")]
    pub inbound: i64,
    /// From the pod.
    #[serde(rename = "out")]
    pub outbound: i64,
}

/// A destination that the isolated pod tried to reach.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// How.
    pub protocol: String,
    /// Where.
    pub address: String,
    /// On which port, where the protocol has ports.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<i32>,
    /// How often.
    pub packets: i64,
}

/// A condition, as every API of Kubernetes has them.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// Of what.
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One word for why.
    pub reason: String,
    /// The same in words.
    #[serde(default)]
    pub message: String,
    /// Since when the status has been so.
    pub last_transition_time: Timestamp,
    /// The generation of the object that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
}

impl Condition {
    /// A condition that follows `before`: the time is that of the last change of its status.
    #[must_use]
    pub fn after(before: &[Self], kind: &str, status: &str, reason: &str, message: String, now: Timestamp) -> Self {
        let since = before.iter().find(|other| other.kind == kind && other.status == status);
        Self {
            kind: kind.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            last_transition_time: since.map_or(now, |before| before.last_transition_time),
            observed_generation: None,
        }
    }
}

impl PodQuarantineStatus {
    /// The condition of a kind.
    #[must_use]
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }
}
