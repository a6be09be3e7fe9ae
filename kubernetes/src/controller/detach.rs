//! How a pod is taken out of its Services and from its owner, and what comes of that. Pure.
//!
//! Both know their pods by labels alone. Without these the owner lets the pod go and makes another in its place, and the
//! Services' endpoints lose it, while it goes on to run.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::api::GROUP;

/// Labels, or a selector of them.
pub type Labels = BTreeMap<String, String>;

/// What owns a pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// What it is.
    pub kind: OwnerKind,
    /// Its kind as the API writes it.
    pub kind_name: String,
    /// Its name.
    pub name: String,
}

/// Kinds of owners, by what they do without the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OwnerKind {
    /// Makes another one anywhere (`ReplicaSet`, `ReplicationController`, `Job`).
    MakesAnother,
    /// Makes another one on the same node.
    DaemonSet,
    /// Wants one of the same name, which is taken as long as the pod is there.
    StatefulSet,
    /// The kubelet itself, by a file on the node.
    Node,
    /// Some other controller.
    Other,
}

impl Owner {
    /// An owner by what an `ownerReference` says.
    #[must_use]
    pub fn new(kind_name: &str, name: &str) -> Self {
        let kind = match kind_name {
            "ReplicaSet" | "ReplicationController" | "Job" => OwnerKind::MakesAnother,
            "DaemonSet" => OwnerKind::DaemonSet,
            "StatefulSet" => OwnerKind::StatefulSet,
            "Node" => OwnerKind::Node,
            _ => OwnerKind::Other,
        };
        Self { kind, kind_name: kind_name.to_owned(), name: name.to_owned() }
    }
}

/// What is taken off a pod, and from what that takes it away.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Detachment {
    /// The labels, as they were.
    pub labels: Labels,
    /// The Services that selected it.
    pub services: Vec<String>,
}

/// Which labels of a pod have to go: those that a Service selects it by, and those that its owner does. `services` are the
/// selectors of the Services in its namespace; `owner_keys` the keys of its owner's selector.
#[must_use]
pub fn detachment(labels: &Labels, services: &[(String, Labels)], owner_keys: &BTreeSet<String>) -> Detachment {
    let selects =
        |selector: &Labels| !selector.is_empty() && selector.iter().all(|(key, value)| labels.get(key) == Some(value));
    let selecting: Vec<_> = services.iter().filter(|(_, selector)| selects(selector)).collect();
    let keys: BTreeSet<&String> =
        selecting.iter().flat_map(|(_, selector)| selector.keys()).chain(owner_keys).collect();
    Detachment {
        labels: labels.iter().filter(|(key, _)| keys.contains(key)).map(|(k, v)| (k.clone(), v.clone())).collect(),
        services: selecting.iter().map(|(name, _)| name.clone()).collect(),
    }
}

/// The label of a pod that is isolated and was detached.
#[must_use]
pub fn isolated_label() -> String {
    format!("{GROUP}/isolated")
}

/// Where a detached pod keeps the labels that it had.
#[must_use]
pub fn labels_annotation() -> String {
    format!("{GROUP}/labels")
}

/// Where a detached pod keeps who owned it.
#[must_use]
pub fn owner_annotation() -> String {
    format!("{GROUP}/owner")
}

/// What keeps autoscalers from emptying the node of it.
const HOLDING: [(&str, &str); 2] =
    [("cluster-autoscaler.kubernetes.io/safe-to-evict", "false"), ("karpenter.sh/do-not-disrupt", "true")];

/// The merge patch that detaches a pod as it was read; the API server refuses it where the pod has changed since.
#[must_use]
pub fn detaching_patch(detachment: &Detachment, owner: Option<&Owner>, uid: &str, version: &str) -> Value {
    let mut labels: Map<String, Value> = detachment.labels.keys().map(|key| (key.clone(), Value::Null)).collect();
    labels.insert(isolated_label(), json!("true"));
    let mut annotations: Map<String, Value> = HOLDING.iter().map(|(k, v)| ((*k).to_owned(), json!(v))).collect();
    annotations.insert(labels_annotation(), json!(json!(detachment.labels).to_string()));
    if let Some(owner) = owner {
        annotations.insert(owner_annotation(), json!(format!("{}/{}", owner.kind_name, owner.name)));
    }
    json!({ "metadata": { "uid": uid, "resourceVersion": version, "labels": labels, "annotations": annotations } })
}

/// The merge patch of a pod that was released: it stays detached, and nothing holds it any more.
#[must_use]
pub fn releasing_patch(uid: &str) -> Value {
    let annotations: Map<String, Value> = HOLDING.iter().map(|(key, _)| ((*key).to_owned(), Value::Null)).collect();
    json!({ "metadata": { "uid": uid, "labels": { isolated_label(): null }, "annotations": annotations } })
}

/// Why no other pod comes in its place; `None` where one does.
#[must_use]
pub fn never_replaced(owner: Option<&Owner>) -> Option<(&'static str, String)> {
    let Some(owner) = owner else {
        return Some(("NoOwner", "the pod has no owner that would make another".to_owned()));
    };
    match owner.kind {
        OwnerKind::MakesAnother | OwnerKind::DaemonSet => None,
        OwnerKind::StatefulSet => Some((
            "NameTaken",
            format!(
                "StatefulSet {} wants a pod of the same name, which is taken until this one is deleted",
                owner.name
            ),
        )),
        OwnerKind::Node => Some(("StaticPod", "the kubelet owns it, by a file on the node".to_owned())),
        OwnerKind::Other => {
            Some(("OwnerNotKnown", format!("what {} {} does without it is not known", owner.kind_name, owner.name)))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn labels_go_that_a_service_or_the_owner_selects_by() {
        let pod = labels(&[("app", "web"), ("tier", "front"), ("pod-template-hash", "5d"), ("team", "shop")]);
        let service = |name: &str, pairs: &[(&str, &str)]| (name.to_owned(), labels(pairs));
        let keys = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<BTreeSet<_>>();
        for (services, owner, gone, left) in [
            (vec![], keys(&[]), vec![], vec![]),
            (vec![], keys(&["app", "pod-template-hash"]), vec!["app", "pod-template-hash"], vec![]),
            (
                vec![service("web", &[("app", "web")])],
                keys(&["pod-template-hash"]),
                vec!["app", "pod-template-hash"],
                vec!["web"],
            ),
            (vec![service("other", &[("app", "db")])], keys(&[]), vec![], vec![]),
            (vec![service("half", &[("app", "web"), ("tier", "back")])], keys(&[]), vec![], vec![]),
            (vec![service("none", &[])], keys(&[]), vec![], vec![]),
            (
                vec![service("a", &[("tier", "front")]), service("b", &[("team", "shop")])],
                keys(&[]),
                vec!["team", "tier"],
                vec!["a", "b"],
            ),
        ] {
            let found = detachment(&pod, &services, &owner);
            assert_eq!(found.labels.keys().collect::<Vec<_>>(), gone, "{services:?} {owner:?}");
            assert_eq!(found.services, left);
        }
    }

    #[test]
    fn a_patch_says_which_pod_and_keeps_what_it_takes() {
        let detachment = Detachment { labels: labels(&[("app", "web")]), services: vec!["web".into()] };
        let patch = detaching_patch(&detachment, Some(&Owner::new("ReplicaSet", "web-5d")), "uid-1", "7");
        let metadata = &patch["metadata"];
        assert_eq!((metadata["uid"].as_str(), metadata["resourceVersion"].as_str()), (Some("uid-1"), Some("7")));
        assert!(metadata["labels"]["app"].is_null() && metadata["labels"].get("app").is_some());
        assert_eq!(metadata["labels"][isolated_label()], "true");
        assert_eq!(metadata["annotations"][labels_annotation()], r#"{"app":"web"}"#);
        assert_eq!(metadata["annotations"][owner_annotation()], "ReplicaSet/web-5d");
        assert!(patch.get("spec").is_none());
    }

    #[test]
    fn who_makes_another_pod_is_known() {
        for (kind, reason) in [
            (Some("ReplicaSet"), None),
            (Some("Job"), None),
            (Some("DaemonSet"), None),
            (Some("StatefulSet"), Some("NameTaken")),
            (Some("Node"), Some("StaticPod")),
            (Some("Workflow"), Some("OwnerNotKnown")),
            (None, Some("NoOwner")),
        ] {
            let owner = kind.map(|kind| Owner::new(kind, "x"));
            assert_eq!(never_replaced(owner.as_ref()).map(|(reason, _)| reason), reason, "{kind:?}");
        }
    }
}
