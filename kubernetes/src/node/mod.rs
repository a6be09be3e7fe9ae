//! The part on each node: objects of its pods become marks, and what the kernel says becomes their status.
//!
//! `plan` decides and `report` words it, both pure; `hands` does it through the library; `publisher` talks to the API server,
//! which nothing here waits for: while it is away the marks stand, and what is done on the node goes on. `readiness` says of
//! the node itself whether its pods are covered.

pub mod changes;
mod hands;
mod host_pods;
mod objects;
mod plan;
mod pods;
mod publisher;
pub mod readiness;
mod report;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt as _;
use jiff::Timestamp;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use cni_quarantine::names::PodUid;
use cni_quarantine::state::StateError;

use crate::api::{Origin, PodQuarantine, PodQuarantineSpec, PodRef, PolicySpec};
use crate::watching::backoff;

use changes::Changed;
use hands::{Among, Hands, Isolated, Job, Marker, Seen};
use objects::{Objects, uid_of};
use plan::{Order, order};
use publisher::Message;
use tally::Tally;

/// How often the kernel is read back for every object.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How many are looked at in one go, if nothing comes in between.
const STALE_AT_ONCE: usize = 32;
/// How long after a change of the state directory it is looked at: a record comes a moment after its directory.
const SETTLED_AFTER: Duration = Duration::from_millis(20);

/// `quarantine-kube node`.
#[derive(clap::Args, Debug)]
pub struct NodeArguments {
    /// The name of this node.
    #[arg(long, env = "NODE_NAME")]
    node_name: String,
    /// The plugin's state directory.
    #[arg(long, default_value = cni_quarantine::state::DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    /// The plugin's program, which collects the evidence of what is cut off.
    #[arg(long, default_value = "/bin/quarantine")]
    program: PathBuf,
    /// Where metrics are served.
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9469")]
    metrics: SocketAddr,
    #[command(flatten)]
    readiness: readiness::ReadinessArguments,
}

/// Runs until it is told to end.
///
/// # Errors
/// Where it cannot begin: the state directory is unsound, or there is no way to the API server.
pub async fn run(arguments: NodeArguments, client: Client) -> anyhow::Result<()> {
    let hands = Hands::open(&arguments.state_dir, &arguments.program)
        .with_context(|| format!("cannot use the state directory {}", arguments.state_dir.display()))?;
    let (messages, inbox) = mpsc::unbounded_channel();
    let publisher = tokio::spawn(publisher::run(client.clone(), arguments.node_name.clone(), inbox));
    let config = watcher::Config::default().fields(&format!("spec.pod.nodeName={}", arguments.node_name));
    let mut events = Box::pin(watcher(Api::<PodQuarantine>::all(client.clone()), config).backoff(backoff()));
    let mut changes = changes::watch(["isolated", "attachments"].map(|name| arguments.state_dir.join(name)).to_vec());
    let mut look = tokio::time::interval(LOOK_EVERY);
    let mut node = Node::new(arguments.node_name, hands, messages);
    tokio::spawn(readiness::run(
        arguments.readiness,
        arguments.program,
        arguments.state_dir,
        node.name.clone(),
        client,
        node.tally.counted(),
    ));
    crate::metrics::serve(arguments.metrics, node.tally.counted());
    let mut end = std::pin::pin!(crate::watching::ended());
    log::info!("event=started node={}", node.name);
    loop {
        node.start_work();
        tokio::select! {
            Some(event) = events.next() => node.take_event(event),
            Some(changed) = changes.recv() => node.look_after(SETTLED_AFTER, changed),
            _ = look.tick() => node.look_at_all(),
            woken = node.woken() => match woken {
                Woken::Settled => node.look_at_what_changed(),
                Woken::Done(done) => node.take_done(done),
            },
            () = &mut end => break,
        }
    }
    log::info!("event=ended node={}; what is isolated stays so", node.name);
    drop(node);
    // What was found last is still told, where the API server answers.
    let _ = tokio::time::timeout(Duration::from_secs(2), publisher).await;
    Ok(())
}

/// What a round of work gave.
struct Done {
    /// What was found of each pod, for the objects as they were then; none of those that it did not come to.
    seen: Vec<(PodUid, Vec<PodQuarantine>, Option<Seen>)>,
    /// The pods that the files which had changed are about.
    named: BTreeSet<PodUid>,
    /// Who is isolated on the node.
    isolated: Vec<Isolated>,
    /// Whether these are all.
    are_all: bool,
}

/// What the node was waiting for itself.
enum Woken {
    /// A change of the state directory is complete.
    Settled,
    /// A round of work is done.
    Done(Result<Done, tokio::task::JoinError>),
}

/// What the node knows, and what it has to do.
struct Node {
    name: String,
    hands: Arc<Mutex<Hands>>,
    messages: mpsc::UnboundedSender<Message>,
    objects: Objects,
    /// The objects of a list that is coming in.
    listed: Option<BTreeSet<String>>,
    /// Whether the objects were listed at least once.
    synced: bool,
    /// What has changed: seen to at once.
    dirty: BTreeSet<PodUid>,
    /// Whether there is any of that: what goes on meanwhile is put off.
    something_waits: Arc<AtomicBool>,
    /// Of that, what was marked while other work went on.
    shown: BTreeSet<PodUid>,
    marker: Marker,
    /// The pods that the work which goes on is about.
    at_work: BTreeSet<PodUid>,
    /// What was begun, and put off.
    begun: BTreeSet<PodUid>,
    /// What is looked at regularly.
    stale: BTreeSet<PodUid>,
    /// What the last object of a pod asked for before it was deleted: a release that was set is carried out.
    departed: BTreeMap<PodUid, Order>,
    tally: Tally,
    look_at_isolated: bool,
    /// Names of files of the state directory that have changed.
    changed: BTreeSet<String>,
    /// When they are looked at: then the change is complete.
    settles_at: Option<tokio::time::Instant>,
    look_at_changed: bool,
    work: Option<JoinHandle<Done>>,
}

impl Node {
    fn new(name: String, hands: Hands, messages: mpsc::UnboundedSender<Message>) -> Self {
        Self {
            name,
            marker: hands.marker(),
            hands: Arc::new(Mutex::new(hands)),
            messages,
            objects: Objects::default(),
            listed: None,
            synced: false,
            dirty: BTreeSet::new(),
            something_waits: Arc::new(AtomicBool::new(false)),
            shown: BTreeSet::new(),
            at_work: BTreeSet::new(),
            begun: BTreeSet::new(),
            stale: BTreeSet::new(),
            departed: BTreeMap::new(),
            tally: Tally::default(),
            look_at_isolated: false,
            changed: BTreeSet::new(),
            settles_at: None,
            look_at_changed: false,
            work: None,
        }
    }

    fn take_event(&mut self, event: watcher::Result<watcher::Event<PodQuarantine>>) {
        match event {
            Ok(watcher::Event::Init) => self.listed = Some(BTreeSet::new()),
            Ok(watcher::Event::InitApply(object)) => {
                if let Some(listed) = &mut self.listed {
                    listed.insert(object.object_name().to_owned());
                }
                self.keep(object);
            }
            Ok(watcher::Event::InitDone) => {
                let listed = self.listed.take().unwrap_or_default();
                let absent: Vec<_> = self.objects.names().filter(|name| !listed.contains(*name)).cloned().collect();
                for name in absent {
                    self.lose(&name);
                }
                self.synced = true;
                self.look_at_isolated = true;
            }
            Ok(watcher::Event::Apply(object)) => self.keep(object),
            Ok(watcher::Event::Delete(object)) => {
                let name = object.object_name().to_owned();
                self.keep(object);
                self.lose(&name);
            }
            Err(error) => log::warn!("event=watch-failed error={:?}", error.to_string()),
        }
    }

    fn keep(&mut self, object: PodQuarantine) {
        // The selector says so already; another node's pod is never touched.
        if object.spec.pod.node_name.as_deref() != Some(&self.name) {
            return;
        }
        let name = object.object_name().to_owned();
        // A status that was written, by this node or by another, changes nothing here.
        let same = self.objects.get(&name).is_some_and(|known| {
            known.metadata.uid == object.metadata.uid && known.metadata.generation == object.metadata.generation
        });
        if !same && let Some(uid) = uid_of(&object) {
            if object.spec.origin == Origin::Cluster && !object.spec.is_released(Timestamp::now()) {
                self.tally.asked(&uid);
            } else {
                self.tally.dropped(&uid);
            }
            self.departed.remove(&uid);
            self.see_to(uid);
        }
        self.objects.insert(object);
    }

    fn see_to(&mut self, uid: PodUid) {
        self.dirty.insert(uid);
        self.something_waits.store(true, Ordering::Relaxed);
    }

    /// An object is not there any more. If it had been released, that is carried out; else its mark stays.
    fn lose(&mut self, name: &str) {
        let Some(object) = self.objects.remove(name) else { return };
        let Some(uid) = uid_of(&object) else { return };
        self.tally.dropped(&uid);
        // Its mark, which nothing speaks of any more.
        self.changed.insert(uid.to_string());
        self.look_at_changed = true;
        let is_released = object.spec.is_released(Timestamp::now());
        if !is_released && object.spec.origin == Origin::Cluster {
            log::warn!("event=orphaned object={name} pod={}/{}", object.spec.pod.namespace, object.spec.pod.name);
            let _ = self.messages.send(Message::Orphaned(Box::new(object)));
        } else if is_released && let Some(order) = order(&[&object], Timestamp::now()) {
            self.departed.insert(uid.clone(), order);
        }
        self.see_to(uid);
    }

    fn look_at_what_changed(&mut self) {
        self.settles_at = None;
        self.look_at_changed = true;
    }

    fn look_at_all(&mut self) {
        self.stale.extend(self.objects.pods().cloned());
        self.look_at_isolated = true;
    }

    fn look_after(&mut self, pause: Duration, changed: Changed) {
        match changed {
            Changed::Named(name) => drop(self.changed.insert(name)),
            Changed::Anything => return self.look_at_all(),
        }
        self.settles_at.get_or_insert_with(|| tokio::time::Instant::now() + pause);
    }

    /// Ends with the work that is going on, or when a change of the state directory is to be looked at.
    async fn woken(&mut self) -> Woken {
        let settles_at = self.settles_at;
        let settled = async {
            match settles_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let done = async {
            match &mut self.work {
                Some(work) => work.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = settled => Woken::Settled,
            done = done => Woken::Done(done),
        }
    }

    /// What goes on may be waiting for the kernel, which others keep busy.
    fn mark_meanwhile(&mut self) {
        let now = Timestamp::now();
        let is_shown =
            |uid: &&PodUid| order(&self.objects.of(uid), now).is_some_and(|order| self.marker.show(uid, &order));
        // A release that is being carried out would take the new mark for the old one.
        let free = self.dirty.difference(&self.shown).filter(|uid| !self.at_work.contains(*uid));
        let shown: Vec<PodUid> = free.filter(is_shown).cloned().collect();
        self.shown.extend(shown);
    }

    fn start_work(&mut self) {
        if self.work.is_some() {
            self.mark_meanwhile();
            return;
        }
        let mut due = std::mem::take(&mut self.dirty);
        self.something_waits.store(false, Ordering::Relaxed);
        if due.is_empty() {
            due = std::mem::take(&mut self.begun);
        }
        if due.is_empty() {
            due.extend(std::iter::from_fn(|| self.stale.pop_first()).take(STALE_AT_ONCE));
        }
        let changed =
            if std::mem::take(&mut self.look_at_changed) { std::mem::take(&mut self.changed) } else { BTreeSet::new() };
        // Last, so that what was released meanwhile is not shown as isolated on the node.
        let are_all = self.stale.is_empty() && self.begun.is_empty() && std::mem::take(&mut self.look_at_isolated);
        if due.is_empty() && changed.is_empty() && !are_all {
            return;
        }
        let now = Timestamp::now();
        // The objects go along as they are now: what is found is said of these, and not of what is asked for meanwhile.
        let mut about = Vec::new();
        let mut jobs = Vec::new();
        for uid in due {
            self.stale.remove(&uid);
            self.begun.remove(&uid);
            let objects = self.objects.of(&uid);
            let order = order(&objects, now).or_else(|| self.departed.get(&uid).cloned());
            about.push(objects.into_iter().cloned().collect::<Vec<_>>());
            let is_shown = self.shown.remove(&uid);
            jobs.push(Job { uid, order, is_shown });
        }
        self.at_work = jobs.iter().map(|job| job.uid.clone()).collect();
        let (hands, something_waits) = (self.hands.clone(), self.something_waits.clone());
        self.work = Some(tokio::task::spawn_blocking(move || {
            let mut hands = hands.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = hands.settle(&jobs, || something_waits.load(Ordering::Relaxed));
            let unlisted = |error| log::warn!("event=not-listed error={:?}", StateError::to_string(&error));
            let named = hands.named(&changed).map_err(unlisted).unwrap_or_default();
            let isolated = hands.isolated(if are_all { Among::All } else { Among::These(&named) }).map_err(unlisted);
            let are_all = are_all && isolated.is_ok();
            let about = jobs.into_iter().zip(about).zip(seen);
            let seen = about.map(|((job, about), seen)| (job.uid, about, seen)).collect();
            Done { seen, named, isolated: isolated.unwrap_or_default(), are_all }
        }));
    }

    fn take_done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        self.work = None;
        self.at_work.clear();
        let done = match done {
            Ok(done) => done,
            Err(error) => {
                log::error!("event=work-failed error={:?}", error.to_string());
                return;
            }
        };
        for (uid, objects, seen) in done.seen {
            let Some(seen) = seen else {
                self.begun.insert(uid);
                continue;
            };
            self.tally.seen(&uid, &seen);
            // What was lost meanwhile is still to be done.
            if !self.dirty.contains(&uid) {
                self.departed.remove(&uid);
            }
            for object in objects {
                let _ = self.messages.send(Message::Seen(Box::new(object), seen.clone()));
            }
        }
        self.tally.sum_up();
        self.stale.extend(done.named.into_iter().filter(|uid| !self.objects.of(uid).is_empty()));
        if !self.synced {
            self.look_at_isolated |= !done.isolated.is_empty();
            return;
        }
        if done.are_all {
            let wants = |object: &&PodQuarantine| object.spec.origin == Origin::Cluster;
            self.tally.on_the_node(&done.isolated, |uid| self.objects.of(uid).iter().any(wants));
        }
        for isolated in done.isolated {
            self.show(&isolated);
        }
    }

    /// Has an object made for a pod that is isolated on the node and that no object is about.
    fn show(&mut self, isolated: &Isolated) {
        let Some(uid) = &isolated.pod.uid else { return };
        let is_known = !self.objects.of(uid).is_empty() || self.dirty.contains(uid) || self.departed.contains_key(uid);
        let Some(object) = shown_object(isolated, &self.name).filter(|_| !is_known) else { return };
        let _ = self.messages.send(Message::Show(Box::new(object)));
    }
}

/// The object that shows a pod which marks on the node isolate; none where the runtime did not say which pod it is.
fn shown_object(isolated: &Isolated, node: &str) -> Option<PodQuarantine> {
    let (pod, marking) = (&isolated.pod, &isolated.marking);
    let uid = pod.uid.as_ref()?.to_string();
    let spec = PodQuarantineSpec {
        policy: Some(PolicySpec::from(&marking.policy)),
        reason: marking.mark.reason.clone(),
        case: marking.mark.case.clone(),
        actor: marking.mark.actor.clone(),
        detach: false,
        origin: Origin::Node,
        ..PodQuarantineSpec::of(PodRef {
            namespace: pod.namespace.as_ref()?.to_string(),
            name: pod.name.as_ref()?.to_string(),
            uid: Some(uid.clone()),
            node_name: Some(node.to_owned()),
        })
    };
    Some(PodQuarantine::new(&uid, spec))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(uid: &str) -> PodQuarantine {
        let pod =
            PodRef { namespace: "shop".into(), name: uid.into(), uid: Some(uid.into()), node_name: Some("a".into()) };
        PodQuarantine::new(uid, PodQuarantineSpec::of(pod))
    }

    #[tokio::test]
    async fn what_is_to_be_isolated_is_marked_while_other_work_waits() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("state");
        let hands = Hands::open(&path, "/bin/quarantine".as_ref()).unwrap();
        let (messages, _inbox) = mpsc::unbounded_channel();
        let mut node = Node::new("a".into(), hands, messages);
        let is_marked = |uid: &str| path.join("isolated").join(uid).exists();

        // Work about one pod that does not end, whatever it waits for.
        let (end, ended) = tokio::sync::oneshot::channel::<()>();
        node.at_work.insert(PodUid::new("u-at-work").unwrap());
        node.work = Some(tokio::spawn(async {
            let _ = ended.await;
            Done { seen: Vec::new(), named: BTreeSet::new(), isolated: Vec::new(), are_all: false }
        }));
        node.start_work();
        assert!(!is_marked("u-other"));

        node.take_event(Ok(watcher::Event::Apply(object("u-other"))));
        node.take_event(Ok(watcher::Event::Apply(object("u-at-work"))));
        node.start_work();
        assert!(is_marked("u-other"));
        // Of this one a release may be under way, which would take the new mark for the old one.
        assert!(!is_marked("u-at-work"));

        drop(end);
        let Woken::Done(done) = node.woken().await else { panic!("nothing else was to come") };
        node.take_done(done);
        node.start_work();
        assert!(node.work.is_some() && node.dirty.is_empty() && node.shown.is_empty());
    }
}
