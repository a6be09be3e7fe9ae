//! One in the cluster: gives objects that name a pod its UID and node, takes isolated pods out of their Services and from their
//! owners, and says whether another pod has come in their place. What has to go off a pod is decided in `detach`, which is pure.
//!
//! It isolates nobody: that is between the object and the node, and happens whether this runs or not.

mod detach;
mod lease;
mod pods;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use jiff::Timestamp;
use kube::api::{DynamicObject, Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource as _};
use serde_json::json;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::api::{Condition, Origin, PodQuarantine, PodRef};
use crate::sandboxed::sandbox_uid;
use crate::watching::{backoff, ended};

use detach::{Owner, OwnerKind, detaching_patch, detachment, isolated_label, labels_annotation, owner_annotation};
use lease::Turn;
use pods::{Pods, is_ready, node_of, owner_of, replicas_of, selector_keys};

/// The field manager of what the controller applies.
const MANAGER: &str = "quarantine-controller";
/// Objects that are worked at at a time.
const AT_ONCE: usize = 16;
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// `quarantine-kube controller`.
#[derive(clap::Args, Debug)]
pub struct ControllerArguments {
    /// The namespace of the lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "quarantine-system")]
    namespace: String,
    /// Who holds the lease; the pod's name by default.
    #[arg(long, env = "POD_NAME", default_value_t = format!("process-{}", std::process::id()))]
    identity: String,
}

/// Runs until it is told to end, or until another controller takes over.
///
/// # Errors
/// Where the lease was lost.
pub async fn run(arguments: ControllerArguments, client: Client) -> anyhow::Result<()> {
    let turn = Turn::new(client.clone(), &arguments.namespace, "quarantine-controller", arguments.identity);
    let mut end = std::pin::pin!(ended());
    tokio::select! {
        () = turn.take() => log::info!("event=leading"),
        () = &mut end => return Ok(()),
    }
    tokio::select! {
        lost = turn.keep() => Err(lost),
        () = work(client) => Ok(()),
        () = &mut end => turn.give_back().await,
    }
}

async fn work(client: Client) {
    let objects: Api<PodQuarantine> = Api::all(client.clone());
    let mut events = Box::pin(watcher(objects.clone(), watcher::Config::default()).backoff(backoff()));
    let worker = Arc::new(Worker { objects, pods: Pods::new(client), permits: Semaphore::new(AT_ONCE) });
    let mut running: HashMap<String, (Option<i64>, JoinHandle<()>)> = HashMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => {
                let name = object.object_name().to_owned();
                let generation = object.metadata.generation;
                // What nodes and this controller write into the status is no reason to begin anew.
                if running.get(&name).is_some_and(|(of, _)| *of == generation) {
                    continue;
                }
                let worker = worker.clone();
                let task = tokio::spawn(async move { worker.see_to(object).await });
                if let Some((_, before)) = running.insert(name, (generation, task)) {
                    before.abort();
                }
            }
            Ok(watcher::Event::Delete(object)) => {
                if let Some((_, task)) = running.remove(object.object_name()) {
                    task.abort();
                }
            }
            Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
            Err(error) => log::warn!("event=watch-failed error={:?}", error.to_string()),
        }
    }
}

struct Worker {
    objects: Api<PodQuarantine>,
    pods: Pods,
    permits: Semaphore,
}

/// What is to be done after a step.
enum Next {
    /// Nothing; the object's next change begins anew.
    Nothing,
    /// The same again, a little later.
    Again,
}

impl Worker {
    async fn see_to(&self, object: PodQuarantine) {
        let mut object = object;
        let mut pause = PAUSE_MIN;
        loop {
            let done = match self.permits.acquire().await {
                Ok(_permit) => self.step(&mut object).await,
                Err(_) => return,
            };
            match done {
                Ok(Next::Nothing) => return,
                Ok(Next::Again) => {}
                Err(error) => {
                    log::warn!("event=not-done object={} error={:?}", object.object_name(), error.to_string());
                }
            }
            tokio::time::sleep(pause).await;
            pause = PAUSE_MAX.min(pause * 2);
        }
    }

    async fn step(&self, object: &mut PodQuarantine) -> Result<Next, kube::Error> {
        let PodRef { namespace, name, uid, node_name } = object.spec.pod.clone();
        if object.spec.origin == Origin::Node {
            return Ok(Next::Nothing);
        }
        let pod = self.pods.get(&namespace, &name).await?;
        if uid.is_none() || node_name.is_none() {
            return self.resolve(object, pod).await;
        }
        let pod = pod.filter(|pod| sandbox_uid(pod) == uid.as_deref());
        if object.spec.is_released(Timestamp::now()) {
            return self.let_go(object, pod).await;
        }
        if !object.spec.detach {
            let reason = "NotWanted";
            let message = "detach is false";
            self.say(object, &[("Detached", "False", reason, message.to_owned())]).await?;
            return Ok(Next::Nothing);
        }
        match pod {
            Some(pod) => self.detach_and_wait(object, pod).await,
            None => {
                let message = "the pod is gone".to_owned();
                self.say(object, &[("Replaced", "Unknown", "TargetGone", message)]).await?;
                Ok(Next::Nothing)
            }
        }
    }

    /// Fills in the UID and node of an object that names its pod alone.
    async fn resolve(&self, object: &PodQuarantine, pod: Option<DynamicObject>) -> Result<Next, kube::Error> {
        let Some(pod) = pod else {
            self.say(object, &[("Resolved", "False", "NoSuchPod", "there is no pod of this name".to_owned())]).await?;
            return Ok(Next::Again);
        };
        let (Some(uid), Some(node)) = (sandbox_uid(&pod), node_of(&pod)) else {
            let message = "the pod has no node yet".to_owned();
            self.say(object, &[("Resolved", "False", "NotScheduled", message)]).await?;
            return Ok(Next::Again);
        };
        if object.spec.pod.uid.as_ref().is_some_and(|wanted| wanted != uid) {
            let message = "the pod of this name is another one".to_owned();
            self.say(object, &[("Resolved", "False", "TargetGone", message)]).await?;
            return Ok(Next::Nothing);
        }
        let patch = json!({
            "metadata": { "uid": object.metadata.uid },
            "spec": { "pod": { "uid": uid, "nodeName": node } },
        });
        self.objects.patch(object.object_name(), &PatchParams::default(), &Patch::Merge(patch)).await?;
        self.say(object, &[("Resolved", "True", "Found", format!("it is {uid} on {node}"))]).await?;
        // The change comes back as an event of its own.
        Ok(Next::Nothing)
    }

    async fn detach_and_wait(&self, object: &PodQuarantine, pod: DynamicObject) -> Result<Next, kube::Error> {
        let PodRef { namespace, name, .. } = &object.spec.pod;
        let annotations = pod.metadata.annotations.clone().unwrap_or_default();
        let owner = match annotations.get(&owner_annotation()) {
            Some(kept) => kept.split_once('/').map(|(kind, name)| Owner::new(kind, name)),
            None => owner_of(&pod),
        };
        let is_detached = pod.metadata.labels.iter().flatten().any(|(key, _)| *key == isolated_label())
            && annotations.contains_key(&labels_annotation());
        let owned = match &owner {
            Some(owner) => self.pods.owner(namespace, owner).await?,
            None => None,
        };
        if !is_detached {
            let services = self.pods.services(namespace).await?;
            let keys = owned.as_ref().map(|owner| selector_keys(&owner.data)).unwrap_or_default();
            let labels = pod.metadata.labels.clone().unwrap_or_default();
            let found = detachment(&labels, &services, &keys);
            let uid = pod.metadata.uid.as_deref().unwrap_or_default();
            let version = pod.metadata.resource_version.as_deref().unwrap_or_default();
            self.pods.patch(namespace, name, detaching_patch(&found, owner.as_ref(), uid, version)).await?;
            let listed = |names: Vec<String>| if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let message = format!(
                "labels taken off: {}; Services left: {}; the labels are in the pod's annotation {}",
                listed(found.labels.keys().cloned().collect()),
                listed(found.services),
                labels_annotation()
            );
            self.say(object, &[("Detached", "True", "Detached", message)]).await?;
        }
        let (truth, reason, message, next) = match detach::never_replaced(owner.as_ref()) {
            Some((reason, message)) => ("False", reason, message, Next::Nothing),
            None => match (&owner, owned) {
                (Some(owner), Some(owned)) if self.is_replaced(object, owner, &owned).await? => (
                    "True",
                    "ReplacementReady",
                    format!("{} {} has all it wants", owner.kind_name, owner.name),
                    Next::Nothing,
                ),
                (Some(owner), Some(_)) => {
                    ("False", "Waiting", format!("{} {} makes another pod", owner.kind_name, owner.name), Next::Again)
                }
                _ => ("False", "OwnerGone", "its owner was deleted".to_owned(), Next::Nothing),
            },
        };
        let said = [("Detached", "True", "Detached", String::new()), ("Replaced", truth, reason, message)];
        self.say(object, &said).await?;
        Ok(next)
    }

    /// Whether the owner has as many other pods that are ready as it wants.
    async fn is_replaced(
        &self,
        object: &PodQuarantine,
        owner: &Owner,
        owned: &DynamicObject,
    ) -> Result<bool, kube::Error> {
        let PodRef { namespace, uid, node_name, .. } = &object.spec.pod;
        let mut others = self.pods.of_owner(namespace, owned).await?;
        others.retain(|pod| pod.metadata.uid != *uid && is_ready(pod));
        Ok(match owner.kind {
            OwnerKind::DaemonSet => others.iter().any(|pod| node_of(pod) == node_name.as_deref()),
            _ if owner.kind_name == "Job" => !others.is_empty(),
            _ => others.len() >= replicas_of(owned),
        })
    }

    /// A released pod is held by nothing any more. It stays detached: its place has been taken.
    async fn let_go(&self, object: &PodQuarantine, pod: Option<DynamicObject>) -> Result<Next, kube::Error> {
        let Some(pod) = pod else { return Ok(Next::Nothing) };
        if !pod.metadata.labels.iter().flatten().any(|(key, _)| *key == isolated_label()) {
            return Ok(Next::Nothing);
        }
        let uid = pod.metadata.uid.as_deref().unwrap_or_default();
        let PodRef { namespace, name, .. } = &object.spec.pod;
        self.pods.patch(namespace, name, detach::releasing_patch(uid)).await?;
        Ok(Next::Nothing)
    }

    /// Applies conditions of the controller's; those that it says nothing of now are as they were.
    async fn say(&self, object: &PodQuarantine, said: &[(&str, &str, &str, String)]) -> Result<(), kube::Error> {
        let current = self.objects.get_opt(object.object_name()).await?;
        let Some(current) = current.filter(|current| current.metadata.uid == object.metadata.uid) else {
            return Ok(());
        };
        let before = current.status.unwrap_or_default().conditions;
        let mine = ["Resolved", "Detached", "Replaced"];
        let mut conditions: Vec<Condition> = before
            .iter()
            .filter(|condition| mine.contains(&condition.kind.as_str()))
            .filter(|condition| !said.iter().any(|(kind, ..)| *kind == condition.kind))
            .cloned()
            .collect();
        for (kind, truth, reason, message) in said {
            let kept = before.iter().find(|condition| condition.kind == *kind && condition.status == *truth);
            let message = if message.is_empty() {
                kept.map(|condition| condition.message.clone()).unwrap_or_default()
            } else {
                message.clone()
            };
            conditions.push(Condition::after(&before, kind, truth, reason, message, Timestamp::now()));
        }
        let unchanged = conditions.iter().all(|condition| before.contains(condition));
        if unchanged {
            return Ok(());
        }
        let patch = json!({
            "apiVersion": PodQuarantine::api_version(&()),
            "kind": PodQuarantine::kind(&()),
            "metadata": { "name": object.object_name(), "uid": object.metadata.uid },
            "status": { "conditions": conditions },
        });
        let parameters = PatchParams::apply(MANAGER).force();
        self.objects.patch_status(object.object_name(), &parameters, &Patch::Apply(patch)).await.map(|_| ())
    }
}
