//! Tells the API server what was found: status by server-side apply, events on the pod, and objects for what somebody on the
//! node has isolated. Never waited for: what cannot be said now is said at the next look.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use futures::stream::{FuturesUnordered, StreamExt};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::api::{Api, ApiResource, DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource};
use serde_json::json;
use tokio::sync::mpsc;

use crate::api::{Condition, PodQuarantine, PodQuarantineStatus, PodRef};

use super::hands::Seen;
use super::report::{self, Found, Target, Urgency};

/// The field manager of what nodes apply, and the reporter of their events.
const MANAGER: &str = "quarantine-node";
/// How long the API server is waited for.
const PATIENCE: Duration = Duration::from_secs(10);
/// Counters of an object are written no more often.
const COUNTERS_EVERY: Duration = Duration::from_secs(10);
/// Requests at a time.
const AT_ONCE: usize = 8;

/// What is to be told.
#[derive(Debug)]
pub enum Message {
    /// What was found of an object's pod.
    Seen(Box<PodQuarantine>, Seen),
    /// A pod that somebody on the node isolated, and that no object shows.
    Show(Box<PodQuarantine>),
    /// An object went without having been released.
    Orphaned(Box<PodQuarantine>),
}

/// What is remembered of an object, so that nothing is told twice.
#[derive(Debug, Default)]
struct Told {
    status: Option<PodQuarantineStatus>,
    at: Option<Instant>,
    target: Option<(Target, Instant)>,
}

/// What is still to be told, of each object one thing at a time.
#[derive(Debug, Default)]
struct Waiting {
    /// Of each object, in the order in which it came in.
    messages: HashMap<String, VecDeque<Message>>,
    /// Whose turn it is: objects of which something waits and nothing is being told.
    turns: VecDeque<String>,
    busy: HashSet<String>,
}

impl Waiting {
    fn push(&mut self, message: Message) {
        let name = name_of(&message).to_owned();
        let messages = self.messages.entry(name.clone()).or_default();
        // Of what was found only the last counts.
        let has_its_turn = !messages.is_empty();
        if matches!(message, Message::Seen(..)) {
            messages.retain(|other| !matches!(other, Message::Seen(..)));
        }
        messages.push_back(message);
        if !has_its_turn && !self.busy.contains(&name) {
            self.turns.push_back(name);
        }
    }

    /// What is to be told next.
    fn pop(&mut self) -> Option<Message> {
        let name = self.turns.pop_front()?;
        let message = self.messages.get_mut(&name)?.pop_front();
        self.busy.insert(name);
        message
    }

    /// Something was told of an object.
    fn told(&mut self, name: String) {
        self.busy.remove(&name);
        match self.messages.get(&name) {
            Some(messages) if !messages.is_empty() => self.turns.push_back(name),
            _ => drop(self.messages.remove(&name)),
        }
    }
}

/// Tells what comes in until nobody sends any more.
pub async fn run(client: Client, node: String, mut messages: mpsc::UnboundedReceiver<Message>) {
    let teller = Teller::new(client, node);
    let mut known: HashMap<String, Told> = HashMap::new();
    let mut waiting = Waiting::default();
    let mut running = FuturesUnordered::new();
    loop {
        while running.len() < AT_ONCE
            && let Some(message) = waiting.pop()
        {
            let before = known.remove(name_of(&message)).unwrap_or_default();
            running.push(teller.tell(message, before));
        }
        tokio::select! {
            Some((name, after)) = running.next(), if !running.is_empty() => {
                if let Some(after) = after {
                    known.insert(name.clone(), after);
                }
                waiting.told(name);
            }
            message = messages.recv() => match message {
                Some(message) => waiting.push(message),
                None => return,
            }
        }
    }
}

fn name_of(message: &Message) -> &str {
    let (Message::Seen(object, _) | Message::Show(object) | Message::Orphaned(object)) = message;
    object.object_name()
}

struct Teller {
    objects: Api<PodQuarantine>,
    client: Client,
    recorder: Recorder,
    node: String,
}

impl Teller {
    fn new(client: Client, node: String) -> Self {
        let reporter = Reporter { controller: format!("{}/node", crate::api::GROUP), instance: Some(node.clone()) };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { objects: Api::all(client.clone()), client, recorder, node }
    }

    /// What is remembered afterwards; none where the object is gone.
    async fn tell(&self, message: Message, before: Told) -> (String, Option<Told>) {
        let name = name_of(&message).to_owned();
        let after = match message {
            Message::Seen(object, seen) => self.tell_seen(&object, seen, before).await,
            Message::Show(object) => {
                self.show(&object).await;
                Some(before)
            }
            Message::Orphaned(object) => {
                let note = format!(
                    "PodQuarantine {} was deleted without a release: the pod stays isolated",
                    object.object_name()
                );
                self.say(&object.spec.pod, EventType::Warning, "QuarantineOrphaned", note).await;
                None
            }
        };
        (name, after)
    }

    async fn tell_seen(&self, object: &PodQuarantine, seen: Seen, mut before: Told) -> Option<Told> {
        let found = match seen {
            Seen::Sandbox(status) => {
                before.target = None;
                Found::Sandbox(status)
            }
            Seen::HostPod(status) => {
                before.target = None;
                Found::HostPod(status)
            }
            Seen::Failed(why) => Found::Failed(why),
            Seen::NoSandbox => {
                let (target, at) = self.target(object, before.target).await;
                before.target = Some((target, at));
                Found::NoSandbox(target)
            }
        };
        let status = report::status(object, &self.node, &found, Timestamp::now());
        let known = before.status.clone().or_else(|| object.status.as_ref().map(report::own_part));
        let due = match report::urgency(known.as_ref(), &status) {
            Urgency::None => false,
            Urgency::Later => before.at.is_none_or(|at| at.elapsed() >= COUNTERS_EVERY),
            Urgency::Now => true,
        };
        if !due {
            return Some(before);
        }
        match self.apply(object, &status).await {
            Ok(()) => {
                self.say_changes(object, known.as_ref(), &status).await;
                Some(Told { status: Some(status), at: Some(Instant::now()), target: before.target })
            }
            Err(kube::Error::Api(error)) if error.code == 404 => None,
            Err(error) => {
                log::warn!("event=not-told object={} error={:?}", object.object_name(), error.to_string());
                Some(before)
            }
        }
    }

    async fn apply(&self, object: &PodQuarantine, status: &PodQuarantineStatus) -> Result<(), kube::Error> {
        let patch = json!({
            "apiVersion": PodQuarantine::api_version(&()),
            "kind": PodQuarantine::kind(&()),
            // One that was deleted and made again under the same name is another.
            "metadata": { "name": object.object_name(), "uid": object.metadata.uid },
            "status": status,
        });
        let parameters = PatchParams::apply(MANAGER).force();
        within(self.objects.patch_status(object.object_name(), &parameters, &Patch::Apply(patch))).await.map(|_| ())
    }

    /// What the API server says of a pod without a sandbox; it is asked again only where the answer can change.
    async fn target(&self, object: &PodQuarantine, before: Option<(Target, Instant)>) -> (Target, Instant) {
        if let Some((target, at)) = before {
            let lasts = match target {
                Target::Gone | Target::Another | Target::Ended => Duration::MAX,
                Target::HostNetwork | Target::NotCovered => Duration::from_secs(60),
                Target::Starting => Duration::from_secs(10),
                Target::Ending => Duration::from_secs(2),
                Target::Unknown => Duration::ZERO,
            };
            if at.elapsed() < lasts {
                return (target, at);
            }
        }
        let PodRef { namespace, name, uid, .. } = &object.spec.pod;
        let pods: Api<DynamicObject> = Api::namespaced_with(self.client.clone(), namespace, &pod_resource());
        let was_covered = object.status.as_ref().is_some_and(|status| status.container_id.is_some());
        let target = match within(pods.get_opt(name)).await {
            Ok(pod) => report::target(pod.as_ref(), uid.as_deref().unwrap_or_default(), was_covered),
            Err(_) => Target::Unknown,
        };
        (target, Instant::now())
    }

    async fn show(&self, object: &PodQuarantine) {
        match within(self.objects.create(&PostParams::default(), object)).await {
            Ok(_) => {
                let note = "isolated by a mark on the node; shown by a PodQuarantine with origin Node".to_owned();
                self.say(&object.spec.pod, EventType::Warning, "IsolatedOnNode", note).await;
            }
            Err(kube::Error::Api(error)) if error.code == 409 => {}
            Err(error) => {
                log::warn!("event=not-shown object={} error={:?}", object.object_name(), error.to_string());
            }
        }
    }

    async fn say_changes(
        &self,
        object: &PodQuarantine,
        before: Option<&PodQuarantineStatus>,
        after: &PodQuarantineStatus,
    ) {
        for condition in &after.conditions {
            let was = before.and_then(|before| before.condition(&condition.kind));
            if is_news(was, condition) {
                let calm = ["Contained", "Released", "TargetGone", "WaitingForSandbox"];
                let kind =
                    if calm.contains(&condition.reason.as_str()) { EventType::Normal } else { EventType::Warning };
                let verdict = after.verdict.as_deref().unwrap_or_default();
                let note = if condition.message.is_empty() { verdict.to_owned() } else { condition.message.clone() };
                self.say(&object.spec.pod, kind, &format!("Quarantine{}", condition.reason), note).await;
            }
        }
    }

    async fn say(&self, pod: &PodRef, kind: EventType, reason: &str, mut note: String) {
        // The most that the API server takes.
        if let Some((end, _)) = note.char_indices().nth(1000) {
            note.truncate(end);
        }
        let event = Event {
            type_: kind,
            reason: reason.to_owned(),
            note: Some(note),
            action: "Quarantine".to_owned(),
            secondary: None,
        };
        let about = ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            namespace: Some(pod.namespace.clone()),
            name: Some(pod.name.clone()),
            uid: pod.uid.clone(),
            ..ObjectReference::default()
        };
        if let Err(error) = within(self.recorder.publish(&event, &about)).await {
            log::warn!("event=no-event reason={reason} error={:?}", error.to_string());
        }
    }
}

/// A condition is said by an event when it is another one than before; not when nothing has happened yet.
fn is_news(before: Option<&Condition>, after: &Condition) -> bool {
    match before {
        Some(before) => (&before.status, &before.reason) != (&after.status, &after.reason),
        None => after.kind == "Contained" || after.status == "True",
    }
}

fn pod_resource() -> ApiResource {
    ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&())
}

async fn within<T>(request: impl Future<Output = Result<T, kube::Error>>) -> Result<T, kube::Error> {
    match tokio::time::timeout(PATIENCE, request).await {
        Ok(result) => result,
        Err(elapsed) => Err(kube::Error::Service(Box::new(elapsed))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::PodQuarantineSpec;

    fn object(name: &str) -> Box<PodQuarantine> {
        let pod = PodRef { namespace: "shop".into(), name: "web".into(), uid: None, node_name: None };
        Box::new(PodQuarantine::new(name, PodQuarantineSpec::of(pod)))
    }

    #[test]
    fn of_an_object_one_thing_is_told_at_a_time_and_of_what_was_found_the_last() {
        let seen = |name: &str, why: &str| Message::Seen(object(name), Seen::Failed(why.to_owned()));
        let mut waiting = Waiting::default();
        for message in [seen("a", "1"), seen("a", "2"), Message::Orphaned(object("a")), seen("b", "1"), seen("a", "3")]
        {
            waiting.push(message);
        }
        assert!(matches!(waiting.pop(), Some(Message::Orphaned(_))));
        assert!(matches!(waiting.pop(), Some(Message::Seen(object, _)) if object.object_name() == "b"));
        assert!(waiting.pop().is_none(), "something is being told of both");
        waiting.push(seen("b", "2"));
        assert!(waiting.pop().is_none());
        waiting.told("a".into());
        assert!(matches!(waiting.pop(), Some(Message::Seen(_, Seen::Failed(why))) if why == "3"));
        waiting.told("b".into());
        assert!(matches!(waiting.pop(), Some(Message::Seen(_, Seen::Failed(why))) if why == "2"));
        waiting.told("a".into());
        waiting.told("b".into());
        assert!(waiting.pop().is_none() && waiting.messages.is_empty() && waiting.busy.is_empty());
    }
}
