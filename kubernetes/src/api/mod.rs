//! `PodQuarantine`: what a responder asks for, and what the kernel was found to say.
//!
//! Pure. The CRD in `conf/kubernetes/` is generated from these types.

// Each printed column is such an attribute.
#![allow(clippy::duplicated_attributes)]

mod policy;
mod status;

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{CustomResourceDefinition, ValidationRule};
use kube::{CustomResource, CustomResourceExt as _, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use cni_quarantine::mark::Mark;

pub use policy::{AllowSpec, PolicySpec, Port};
pub use status::{Attempt, Condition, Counts, Layers, PodQuarantineStatus, WhyNot};

/// The API group of the objects, and the prefix of labels and annotations.
pub const GROUP: &str = "cni-quarantine.dev";

/// What a mark that was written for an object begins its `actor` with: by this it is told from those of others.
const ACTOR: &str = "PodQuarantine/";

/// One pod, cut off the network until `release` is set. Deleting the object releases nobody.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq)]
#[kube(
    group = "cni-quarantine.dev",
    version = "v1alpha1",
    kind = "PodQuarantine",
    plural = "podquarantines",
    shortname = "pq",
    status = "PodQuarantineStatus",
    derive = "PartialEq",
    selectable = ".spec.pod.nodeName",
    doc = "One pod, cut off the network until spec.release is set. Deleting the object releases nobody.",
    printcolumn(name = "Namespace", type_ = "string", json_path = ".spec.pod.namespace"),
    printcolumn(name = "Pod", type_ = "string", json_path = ".spec.pod.name"),
    printcolumn(name = "Node", type_ = "string", json_path = ".spec.pod.nodeName"),
    printcolumn(name = "Verdict", type_ = "string", json_path = ".status.verdict"),
    printcolumn(name = "State", type_ = "string", json_path = ".status.conditions[?(@.type==\"Contained\")].reason"),
    printcolumn(name = "Replaced", type_ = "string", json_path = ".status.conditions[?(@.type==\"Replaced\")].status"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Case", type_ = "string", json_path = ".spec.case", priority = 1),
    printcolumn(name = "Why", type_ = "string", json_path = ".spec.reason", priority = 1),
    printcolumn(name = "By", type_ = "string", json_path = ".spec.actor", priority = 1)
)]
#[x_kube(
    validation = Rule::new("!has(oldSelf.release) || (has(self.release) && self.release == oldSelf.release)")
        .message("a release cannot be taken back: delete the object and make a new one to isolate the pod again"),
    validation = Rule::new("has(self.actor) == has(oldSelf.actor) && (!has(self.actor) || self.actor == oldSelf.actor)")
        .message("who asked for the isolation cannot be changed"),
    validation = Rule::new("self.origin == oldSelf.origin").message("the origin cannot be changed"),
    validation = Rule::new("self.expiry != 'Release' || has(self.expiresAt)")
        .message("expiry Release needs expiresAt")
)]
#[serde(rename_all = "camelCase")]
pub struct PodQuarantineSpec {
    /// Which pod. Its UID and node may be left out; they are filled in once, and never change.
    #[x_kube(
        validation = Rule::new("self.__namespace__ == oldSelf.__namespace__ && self.name == oldSelf.name")
            .message("another pod is another object"),
        validation = Rule::new("!has(oldSelf.uid) || (has(self.uid) && self.uid == oldSelf.uid)")
            .message("the pod's UID cannot be changed: another pod is another object"),
        validation = Rule::new("!has(oldSelf.nodeName) || (has(self.nodeName) && self.nodeName == oldSelf.nodeName)")
            .message("the pod's node cannot be changed: a pod never moves")
    )]
    pub pod: PodRef,
    /// What is still let through; without it, what the node's configuration says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<PolicySpec>,
    /// Why.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The case it belongs to.
    #[schemars(length(max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<String>,
    /// Who asked for it. The API server takes nobody's name but the requester's own.
    #[schemars(length(max = 512))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor: Option<String>,
    /// Whether the pod is taken out of its Services and from its owner, so that a healthy one replaces it.
    #[serde(default = "yes")]
    pub detach: bool,
    /// Who isolated it: the cluster, or somebody on the node, which this object then only shows.
    #[serde(default)]
    pub origin: Origin,
    /// When somebody should look at it again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// What happens then: attention is asked for, or the pod is released.
    #[serde(default)]
    pub expiry: Expiry,
    /// Set to release the pod. Nothing else releases it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub release: Option<Release>,
}

fn yes() -> bool {
    true
}

/// A pod by its names.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct PodRef {
    /// Its namespace.
    #[schemars(length(min = 1, max = 63))]
    pub namespace: String,
    /// Its name.
    #[schemars(length(min = 1, max = 253))]
    pub name: String,
    /// Its UID, as its sandbox has it.
    #[schemars(length(min = 1, max = 63), regex(pattern = "^[A-Za-z0-9][A-Za-z0-9_.-]*$"))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The node that it runs on.
    #[schemars(length(min = 1, max = 253))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
}

/// Who isolated a pod.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Origin {
    /// Whoever made the object.
    #[default]
    Cluster,
    /// Somebody on the node; the object only shows it.
    Node,
}

/// What happens at `expiresAt`.
#[derive(JsonSchema, Serialize, Deserialize, Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Expiry {
    /// A condition and an event ask for attention; the pod stays isolated.
    #[default]
    Attention,
    /// The pod is released.
    Release,
}

/// The act of releasing.
#[derive(KubeSchema, Serialize, Deserialize, Debug, Clone, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Release {
    /// Who released it. The API server takes nobody's name but the requester's own.
    #[schemars(length(min = 1, max = 512))]
    pub by: String,
    /// Why.
    #[schemars(length(max = 1024))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

impl PodQuarantineSpec {
    /// An isolation as the cluster asks for it, with everything else left to what holds without it.
    #[must_use]
    pub fn of(pod: PodRef) -> Self {
        Self {
            pod,
            policy: None,
            reason: None,
            case: None,
            actor: None,
            detach: true,
            origin: Origin::Cluster,
            expires_at: None,
            expiry: Expiry::Attention,
            release: None,
        }
    }

    /// Whether `expiresAt` has passed.
    #[must_use]
    pub fn is_expired(&self, now: Timestamp) -> bool {
        self.expires_at.is_some_and(|at| at <= now)
    }

    /// Whether the pod is to be released: somebody said so, or it was said beforehand that time would.
    #[must_use]
    pub fn is_released(&self, now: Timestamp) -> bool {
        self.release.is_some() || (self.expiry == Expiry::Release && self.is_expired(now))
    }
}

impl PodQuarantine {
    /// The object's name; empty where the API server has not given it one.
    #[must_use]
    pub fn object_name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// The mark that stands for it on the node. A policy that cannot be understood seals, as everywhere.
    #[must_use]
    pub fn mark(&self) -> Mark {
        let by = self.spec.actor.as_deref().map(|actor| format!(" by {actor}")).unwrap_or_default();
        Mark {
            policy: self.spec.policy.as_ref().map(PolicySpec::understood_or_sealed),
            reason: self.spec.reason.clone(),
            case: self.spec.case.clone(),
            actor: Some(format!("{ACTOR}{}{by}", self.object_name())),
        }
    }
}

/// Whether a mark was written for an object.
#[must_use]
pub fn is_of_an_object(mark: &Mark) -> bool {
    mark.actor.as_deref().is_some_and(|actor| actor.starts_with(ACTOR))
}

/// The rules of `metadata` that a derived schema cannot hold: the object is named after the pod's UID, where it is made with
/// one. (One that is made by the pod's name alone gets its UID later, and keeps its name.)
const NAMED_BY_UID: &str = "oldSelf.hasValue() || !has(self.spec.pod.uid) || self.metadata.name == self.spec.pod.uid";

/// The definition that the API server is given.
#[must_use]
pub fn definition() -> CustomResourceDefinition {
    let mut definition = PodQuarantine::crd();
    // Without it the objects are gone, and what they say with them; Helm is not to do that in passing.
    let kept = ("helm.sh/resource-policy".to_owned(), "keep".to_owned());
    definition.metadata.annotations.get_or_insert_default().extend([kept]);
    let rule = ValidationRule {
        rule: NAMED_BY_UID.to_owned(),
        optional_old_self: Some(true),
        message: Some("the object is named after the UID of its pod (spec.pod.uid)".to_owned()),
        ..ValidationRule::default()
    };
    for version in &mut definition.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            schema.x_kubernetes_validations.get_or_insert_default().push(rule.clone());
        }
    }
    definition
}

/// The same as `conf/kubernetes/podquarantines.yaml` has it.
///
/// # Errors
/// Where it cannot be written as YAML.
pub fn definition_as_yaml() -> Result<String, serde_saphyr::ser::Error> {
    let head = "# Generated from the Rust types by `quarantine-kube crd`.\n";
    Ok(format!("{head}{}", serde_saphyr::to_string(&definition())?))
}

#[cfg(test)]
mod tests;
