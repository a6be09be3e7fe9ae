//! What the controller asks of pods, their owners and Services. Objects are read as plain values: of each a handful of fields
//! counts, and typed ones cannot be read with numbers of any precision on, which the plugin has in its `serde_json`.

use std::collections::BTreeSet;

use k8s_openapi::api::{apps, batch, core};
use kube::api::{Api, ApiResource, DynamicObject, ListParams, Patch, PatchParams};
use kube::{Client, Resource};
use serde_json::Value;

use super::detach::{Labels, Owner};

/// The pods of the cluster, and what selects them.
#[derive(Clone)]
pub(super) struct Pods {
    client: Client,
}

impl Pods {
    pub(super) fn new(client: Client) -> Self {
        Self { client }
    }

    fn api<K: Resource<DynamicType = ()>>(&self, namespace: &str) -> Api<DynamicObject> {
        Api::namespaced_with(self.client.clone(), namespace, &ApiResource::erase::<K>(&()))
    }

    pub(super) async fn get(&self, namespace: &str, name: &str) -> Result<Option<DynamicObject>, kube::Error> {
        self.api::<core::v1::Pod>(namespace).get_opt(name).await
    }

    pub(super) async fn patch(&self, namespace: &str, name: &str, patch: Value) -> Result<(), kube::Error> {
        let pods = self.api::<core::v1::Pod>(namespace);
        pods.patch_metadata(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(|_| ())
    }

    /// The Services of a namespace, with what they select by.
    pub(super) async fn services(&self, namespace: &str) -> Result<Vec<(String, Labels)>, kube::Error> {
        let services = self.api::<core::v1::Service>(namespace).list(&ListParams::default()).await?;
        let selector = |service: DynamicObject| {
            let name = service.metadata.name?;
            Some((name, labels_at(&service.data, "/spec/selector")))
        };
        Ok(services.items.into_iter().filter_map(selector).collect())
    }

    /// An owner, where it is of a kind that is known and still there.
    pub(super) async fn owner(&self, namespace: &str, owner: &Owner) -> Result<Option<DynamicObject>, kube::Error> {
        let api = match owner.kind_name.as_str() {
            "ReplicaSet" => self.api::<apps::v1::ReplicaSet>(namespace),
            "StatefulSet" => self.api::<apps::v1::StatefulSet>(namespace),
            "DaemonSet" => self.api::<apps::v1::DaemonSet>(namespace),
            "Job" => self.api::<batch::v1::Job>(namespace),
            "ReplicationController" => self.api::<core::v1::ReplicationController>(namespace),
            _ => return Ok(None),
        };
        api.get_opt(&owner.name).await
    }

    /// The pods that an owner selects.
    pub(super) async fn of_owner(
        &self,
        namespace: &str,
        owner: &DynamicObject,
    ) -> Result<Vec<DynamicObject>, kube::Error> {
        let parameters = ListParams::default().labels(&selector_text(&owner.data));
        let mut pods = self.api::<core::v1::Pod>(namespace).list(&parameters).await?.items;
        let uid = owner.metadata.uid.as_deref().unwrap_or_default();
        pods.retain(|pod| pod.metadata.owner_references.iter().flatten().any(|reference| reference.uid == uid));
        Ok(pods)
    }
}

fn labels_at(data: &Value, pointer: &str) -> Labels {
    let pairs = data.pointer(pointer).and_then(Value::as_object).into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

/// What an owner selects by: a `ReplicationController` has plain labels, the others a selector.
fn match_labels(owner: &Value) -> Labels {
    let labels = labels_at(owner, "/spec/selector/matchLabels");
    if labels.is_empty() { labels_at(owner, "/spec/selector") } else { labels }
}

fn expressions(owner: &Value) -> impl Iterator<Item = &Value> {
    owner.pointer("/spec/selector/matchExpressions").and_then(Value::as_array).into_iter().flatten()
}

/// The keys of an owner's selector.
pub(super) fn selector_keys(owner: &Value) -> BTreeSet<String> {
    let of_expressions = expressions(owner).filter_map(|one| Some(one.get("key")?.as_str()?.to_owned()));
    match_labels(owner).into_keys().chain(of_expressions).collect()
}

/// An owner's selector as a request writes it. Expressions are left out: what they would exclude has another owner.
fn selector_text(owner: &Value) -> String {
    match_labels(owner).iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// The owner that is in charge of a pod.
pub(super) fn owner_of(pod: &DynamicObject) -> Option<Owner> {
    let mut references = pod.metadata.owner_references.iter().flatten();
    let reference = references.find(|reference| reference.controller == Some(true))?;
    Some(Owner::new(&reference.kind, &reference.name))
}

pub(super) fn is_ready(pod: &DynamicObject) -> bool {
    let conditions = pod.data.pointer("/status/conditions").and_then(Value::as_array).into_iter().flatten();
    pod.metadata.deletion_timestamp.is_none()
        && conditions.into_iter().any(|condition| {
            condition.get("type").and_then(Value::as_str) == Some("Ready")
                && condition.get("status").and_then(Value::as_str) == Some("True")
        })
}

pub(super) fn node_of(pod: &DynamicObject) -> Option<&str> {
    pod.data.pointer("/spec/nodeName").and_then(Value::as_str)
}

pub(super) fn replicas_of(owner: &DynamicObject) -> usize {
    let wanted = owner.data.pointer("/spec/replicas").and_then(Value::as_u64).unwrap_or(1);
    usize::try_from(wanted).unwrap_or(usize::MAX)
}
