//! Takes the plugin off every node: the parts of the cluster first, so that nothing puts it back, then its entry out of each
//! node's network configuration, by a pod on each. What else there is (roles, policies, the controller) goes by whatever put it
//! there: `kubectl delete -f`, or Helm, which calls this before.
//!
//! Nobody is released by it: rules are in the kernel, and marks are files.

use std::time::Duration;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Node;
use kube::Client;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams, PropagationPolicy};
use serde_json::json;
use thiserror::Error;
use tokio::time::Instant;

use crate::api::PodQuarantine;
use crate::node::readiness::{CONDITION, TAINT};

/// The `DaemonSet` that is taken away, and the one that does it.
const NODE: &str = "quarantine-node";
const UNINSTALL: &str = "quarantine-uninstall";
const LOOK_EVERY: Duration = Duration::from_millis(300);

/// `uninstall`.
#[derive(clap::Args, Debug)]
pub struct UninstallArguments {
    /// Where the DaemonSet is
    #[arg(long, value_name = "NAMESPACE", default_value = "quarantine-system")]
    system_namespace: String,
    /// Go on although pods are isolated: they stay so, and only their nodes can release them then
    #[arg(long)]
    yes: bool,
    /// How long the nodes are waited for, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120)]
    patience: u64,
}

/// Why it is not done, or not whole.
#[derive(Debug, Error)]
pub enum UninstallError {
    /// Pods are isolated.
    #[error(
        "{} pods are isolated, and would stay so with nobody to release them from the cluster; release them, or say --yes:\n  {}",
        .0.len(), .0.join("\n  ")
    )]
    Isolated(Vec<String>),
    /// Some nodes did not do it in time.
    #[error(
        "{done} of {of} nodes are done; the others are off, or the pods of DaemonSet {daemon_set} there say why. Run it again"
    )]
    Incomplete {
        /// So many have done it.
        done: i32,
        /// Of so many.
        of: i32,
        /// Who does it.
        daemon_set: &'static str,
    },
    /// The API server did not do it.
    #[error(transparent)]
    Api(#[from] kube::Error),
}

/// Does it, and says what it does.
///
/// # Errors
/// [`UninstallError`]; nothing was changed where pods are isolated.
pub async fn run(
    arguments: &UninstallArguments,
    client: Client,
    say: &mut impl FnMut(&str),
) -> Result<(), UninstallError> {
    let isolated = isolated(&client).await?;
    if !arguments.yes && !isolated.is_empty() {
        return Err(UninstallError::Isolated(isolated));
    }
    let sets: Api<DaemonSet> = Api::namespaced(client.clone(), &arguments.system_namespace);
    let deadline = Instant::now() + Duration::from_secs(arguments.patience);
    let leaving = match sets.get_opt(NODE).await? {
        Some(installed) => {
            let leaving = leaving(&installed);
            sets.delete(NODE, &in_the_foreground()).await?;
            await_gone(&sets, NODE, deadline).await?;
            say("the parts on the nodes are gone");
            leaving
        }
        // An earlier try came so far.
        None => match sets.get_opt(UNINSTALL).await? {
            Some(leaving) => leaving,
            None => {
                say("it is not installed; there is nothing to do");
                return Ok(());
            }
        },
    };
    match sets.create(&PostParams::default(), &leaving).await {
        Err(kube::Error::Api(error)) if error.code == 409 => {}
        created => drop(created?),
    }
    await_done(&sets, deadline).await?;
    sets.delete(UNINSTALL, &in_the_foreground()).await?;
    await_gone(&sets, UNINSTALL, deadline).await?;
    let nodes: Api<Node> = Api::all(client);
    for node in nodes.list(&ListParams::default()).await? {
        forget(&nodes, &node).await?;
    }
    say(
        "the plugin is out of every node's network configuration; roles, policies and the controller go by what put them there",
    );
    if !isolated.is_empty() {
        say("these stay isolated; `quarantine release` on their nodes releases them:");
        isolated.iter().for_each(|pod| say(&format!("  {pod}")));
    }
    Ok(())
}

async fn isolated(client: &Client) -> Result<Vec<String>, kube::Error> {
    let objects: Api<PodQuarantine> = Api::all(client.clone());
    let objects = match objects.list(&ListParams::default()).await {
        // The definition is gone already.
        Err(kube::Error::Api(error)) if error.code == 404 => return Ok(Vec::new()),
        listed => listed?,
    };
    let now = jiff::Timestamp::now();
    let holds = |object: &&PodQuarantine| {
        let is_gone = object.status.as_ref().and_then(|status| status.condition("Contained"));
        !object.spec.is_released(now)
            && is_gone.is_none_or(|contained| !["TargetGone", "NoMarkOnNode"].contains(&contained.reason.as_str()))
    };
    let name = |object: &PodQuarantine| {
        let node = object.spec.pod.node_name.as_deref().unwrap_or("no node yet");
        format!("{}/{} ({node})", object.spec.pod.namespace, object.spec.pod.name)
    };
    Ok(objects.iter().filter(holds).map(name).collect())
}

/// The `DaemonSet` that takes the plugin off: the installed one, whose first container uninstalls, and which then does nothing.
fn leaving(installed: &DaemonSet) -> DaemonSet {
    let labels = || Some([("app.kubernetes.io/name".to_owned(), UNINSTALL.to_owned())].into());
    let mut leaving = DaemonSet { spec: installed.spec.clone(), ..DaemonSet::default() };
    leaving.metadata.name = Some(UNINSTALL.to_owned());
    leaving.metadata.labels = labels();
    let Some(spec) = &mut leaving.spec else { return leaving };
    spec.selector.match_labels = labels();
    spec.template.metadata.get_or_insert_default().labels = labels();
    let Some(pod) = &mut spec.template.spec else { return leaving };
    // It asks the API server nothing.
    pod.service_account_name = None;
    pod.automount_service_account_token = Some(false);
    pod.containers.truncate(1);
    let words = |words: &[&str]| Some(words.iter().map(|word| (*word).to_owned()).collect());
    for (container, name) in pod.init_containers.iter_mut().flatten().zip(["uninstall"]) {
        container.name = name.to_owned();
        container.args = None;
        container.command = words(&[
            "/bin/quarantine",
            "uninstall",
            "--conf-dir",
            "/host/etc/cni/net.d",
            "--bin-dir",
            "/host/opt/cni/bin",
        ]);
    }
    for container in &mut pod.containers {
        container.name = "done".to_owned();
        container.args = None;
        container.command = words(&["/bin/quarantine-kube", "rest"]);
        container.volume_mounts = None;
    }
    leaving
}

fn in_the_foreground() -> DeleteParams {
    DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() }
}

async fn await_gone(sets: &Api<DaemonSet>, name: &str, deadline: Instant) -> Result<(), UninstallError> {
    while let Some(set) = sets.get_opt(name).await? {
        if Instant::now() > deadline {
            let status = set.status.unwrap_or_default();
            let of = status.desired_number_scheduled.max(status.current_number_scheduled);
            return Err(UninstallError::Incomplete {
                done: of - status.current_number_scheduled,
                of,
                daemon_set: NODE,
            });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

async fn await_done(sets: &Api<DaemonSet>, deadline: Instant) -> Result<(), UninstallError> {
    loop {
        let set = sets.get(UNINSTALL).await?;
        let status = set.status.unwrap_or_default();
        let is_seen = status.observed_generation >= set.metadata.generation;
        let (done, of) = (status.number_ready, status.desired_number_scheduled);
        if is_seen && done >= of {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(UninstallError::Incomplete { done, of, daemon_set: UNINSTALL });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Takes away what the node said of itself, and the taint.
async fn forget(nodes: &Api<Node>, node: &Node) -> Result<(), kube::Error> {
    let Some(name) = &node.metadata.name else { return Ok(()) };
    let conditions = node.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    if conditions.into_iter().any(|condition| condition.type_ == CONDITION) {
        let removed = json!({ "status": { "conditions": [{ "$patch": "delete", "type": CONDITION }] } });
        nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(removed)).await?;
    }
    let taints = node.spec.iter().filter_map(|spec| spec.taints.as_ref()).flatten();
    let (ours, others): (Vec<_>, Vec<_>) = taints.partition(|taint| taint.key == TAINT);
    if !ours.is_empty() {
        nodes.patch(name, &PatchParams::default(), &Patch::Merge(json!({ "spec": { "taints": others } }))).await?;
    }
    Ok(())
}
