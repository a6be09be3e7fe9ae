//! The part on each node: objects of its pods become marks, and what the kernel says becomes their status.
//!
//! `plan` decides and `report` words it, both pure; `hands` does it through the library; `publisher` talks to the API server,
//! which nothing here waits for: while it is away the marks stand, and what is done on the node goes on. `readiness` says of
//! the node itself whether its pods are covered.

pub mod changes;
mod hands;
mod plan;
mod publisher;
pub mod readiness;
mod report;
mod tally;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::PathBuf;
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

use crate::api::{Origin, PodQuarantine, PodQuarantineSpec, PodRef, PolicySpec};
use crate::watching::backoff;

use hands::{Hands, Isolated, Job, Seen};
use plan::{Order, order};
use publisher::Message;
use tally::Tally;

/// How often the kernel is read back for every object.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// How many are looked at in one go.
const STALE_AT_ONCE: usize = 16;
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
            Some(()) = changes.recv() => node.look_after(SETTLED_AFTER),
            _ = look.tick() => node.look_at_all(),
            woken = node.woken() => match woken {
                Woken::Settled => node.look_at_those_here(),
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

/// What a round of work gave: what was found of each pod, for the objects as they were then, and who is isolated on the node.
/// The second is none where it was not looked for.
type Done = (Vec<(PodUid, Vec<PodQuarantine>, Seen)>, Option<Vec<Isolated>>);

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
    objects: BTreeMap<String, PodQuarantine>,
    /// The objects of a list that is coming in.
    listed: Option<BTreeSet<String>>,
    /// Whether the objects were listed at least once.
    synced: bool,
    /// What has changed: seen to at once.
    dirty: BTreeSet<PodUid>,
    /// What is looked at regularly: a few at a time, so that nobody who is to be isolated waits for them.
    stale: BTreeSet<PodUid>,
    /// What the last object of a pod asked for before it was deleted: a release that was set is carried out.
    departed: BTreeMap<PodUid, Order>,
    /// The pods of objects that have a sandbox on this node.
    here: BTreeSet<PodUid>,
    tally: Tally,
    look_at_isolated: bool,
    settles_at: Option<tokio::time::Instant>,
    work: Option<JoinHandle<Done>>,
}

impl Node {
    fn new(name: String, hands: Hands, messages: mpsc::UnboundedSender<Message>) -> Self {
        Self {
            name,
            hands: Arc::new(Mutex::new(hands)),
            messages,
            objects: BTreeMap::new(),
            listed: None,
            synced: false,
            dirty: BTreeSet::new(),
            stale: BTreeSet::new(),
            departed: BTreeMap::new(),
            here: BTreeSet::new(),
            tally: Tally::default(),
            look_at_isolated: false,
            settles_at: None,
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
                let absent: Vec<_> = self.objects.keys().filter(|name| !listed.contains(*name)).cloned().collect();
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
            self.dirty.insert(uid);
        }
        self.objects.insert(name, object);
    }

    /// An object is not there any more. If it had been released, that is carried out; else its mark stays.
    fn lose(&mut self, name: &str) {
        let Some(object) = self.objects.remove(name) else { return };
        let Some(uid) = uid_of(&object) else { return };
        self.tally.dropped(&uid);
        self.look_at_isolated = true;
        let is_released = object.spec.is_released(Timestamp::now());
        if !is_released && object.spec.origin == Origin::Cluster {
            log::warn!("event=orphaned object={name} pod={}/{}", object.spec.pod.namespace, object.spec.pod.name);
            let _ = self.messages.send(Message::Orphaned(Box::new(object)));
        } else if is_released && let Some(order) = order(&[&object], Timestamp::now()) {
            self.departed.insert(uid.clone(), order);
        }
        self.dirty.insert(uid);
    }

    /// After a change of the state directory: objects of pods that are long gone can be many, and wait for the regular look.
    fn look_at_those_here(&mut self) {
        self.settles_at = None;
        self.stale.extend(self.here.iter().cloned());
        self.look_at_isolated = true;
    }

    fn look_at_all(&mut self) {
        self.stale.extend(self.objects.values().filter_map(uid_of));
        self.look_at_isolated = true;
    }

    fn look_after(&mut self, pause: Duration) {
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

    fn start_work(&mut self) {
        if self.work.is_some() {
            return;
        }
        let mut due = std::mem::take(&mut self.dirty);
        if due.is_empty() {
            due.extend(std::iter::from_fn(|| self.stale.pop_first()).take(STALE_AT_ONCE));
        }
        // Last, so that what was released meanwhile is not shown as isolated on the node.
        let look_at_isolated = self.stale.is_empty() && std::mem::take(&mut self.look_at_isolated);
        if due.is_empty() && !look_at_isolated {
            return;
        }
        let now = Timestamp::now();
        // The objects go along as they are now: what is found is said of these, and not of what is asked for meanwhile.
        let mut about = Vec::new();
        let mut jobs = Vec::new();
        for uid in due {
            self.stale.remove(&uid);
            let objects = self.objects_of(&uid);
            let order = order(&objects, now);
            about.push(objects.into_iter().cloned().collect());
            let order = order.or_else(|| self.departed.remove(&uid));
            jobs.push(Job { uid, order });
        }
        let hands = self.hands.clone();
        self.work = Some(tokio::task::spawn_blocking(move || {
            let mut hands = hands.lock().unwrap_or_else(PoisonError::into_inner);
            let seen = hands.settle(&jobs);
            let isolated = look_at_isolated.then(|| hands.isolated()).and_then(|isolated| {
                isolated.map_err(|error| log::warn!("event=not-listed error={:?}", error.to_string())).ok()
            });
            let uids = jobs.into_iter().map(|job| job.uid);
            (uids.zip(about).zip(seen).map(|((uid, about), seen)| (uid, about, seen)).collect(), isolated)
        }));
    }

    fn take_done(&mut self, done: Result<Done, tokio::task::JoinError>) {
        self.work = None;
        let (seen, isolated) = match done {
            Ok(done) => done,
            Err(error) => {
                log::error!("event=work-failed error={:?}", error.to_string());
                return;
            }
        };
        for (uid, objects, seen) in seen {
            self.tally.seen(&uid, &seen);
            match &seen {
                Seen::Sandbox(_) if !objects.is_empty() => {
                    self.here.insert(uid);
                }
                Seen::Sandbox(_) | Seen::NoSandbox => {
                    self.here.remove(&uid);
                }
                Seen::Failed(_) => {}
            }
            for object in objects {
                let _ = self.messages.send(Message::Seen(Box::new(object), seen.clone()));
            }
        }
        if let Some(isolated) = isolated.filter(|_| self.synced) {
            let wants = |object: &&PodQuarantine| object.spec.origin == Origin::Cluster;
            self.tally.on_the_node(&isolated, |uid| self.objects_of(uid).iter().any(wants));
            for isolated in isolated {
                self.show(&isolated);
            }
        }
    }

    /// Has an object made for a pod that is isolated on the node and that no object is about.
    fn show(&mut self, isolated: &Isolated) {
        let Some(uid) = &isolated.pod.uid else { return };
        let is_known = !self.objects_of(uid).is_empty() || self.dirty.contains(uid) || self.departed.contains_key(uid);
        let Some(object) = shown_object(isolated, &self.name).filter(|_| !is_known) else { return };
        let _ = self.messages.send(Message::Show(Box::new(object)));
    }

    fn objects_of(&self, uid: &PodUid) -> Vec<&PodQuarantine> {
        self.objects.values().filter(|object| object.spec.pod.uid.as_deref() == Some(uid.as_str())).collect()
    }
}

fn uid_of(object: &PodQuarantine) -> Option<PodUid> {
    PodUid::new(object.spec.pod.uid.as_deref()?).ok()
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
