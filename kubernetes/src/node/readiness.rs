//! Whether the pods that are made on this node are covered, said of the node itself: by the condition `QuarantineReady`, and by
//! the taint `cni-quarantine.dev/not-ready`, which keeps pods away that would not be. And which pods are not.
//!
//! The API server is asked when something has changed, and once in a long while, in case somebody else changed it there.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::Client;
use kube::api::{Api, Patch, PatchParams};
use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::time::Instant;

use cni_quarantine::adopting::{Places, uncovered_pods};
use cni_quarantine::state::StateDir;

use super::changes::watch;
use crate::metrics::Shared;

/// The type of the condition.
pub const CONDITION: &str = "QuarantineReady";
/// The key of the taint.
pub const TAINT: &str = "cni-quarantine.dev/not-ready";

/// How often the node is looked at without a change that was noticed.
const LOOK_EVERY: Duration = Duration::from_secs(30);
/// How often it is said again what has not changed.
const SAY_EVERY: Duration = Duration::from_secs(600);
/// How soon it is said again what could not be said.
const TRY_EVERY: Duration = Duration::from_secs(5);
/// A node that has not been covered for so long is tainted: a configuration that is being written anew is no reason.
const TAINTED_AFTER: Duration = Duration::from_secs(20);
/// So many pods are named.
const NAMED_MAX: usize = 10;

/// What is looked at, and what may be done about it.
#[derive(clap::Args, Debug)]
pub struct ReadinessArguments {
    /// The file by which `keep` says whether the plugin is installed.
    #[arg(long, value_name = "FILE", default_value = crate::keep::SAID)]
    said: PathBuf,
    /// libcni's cache, which names the pods that are not covered.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni")]
    cni_cache: PathBuf,
    /// Taint this node where its pods are not covered.
    #[arg(long)]
    taint: bool,
}

/// Whether new pods are covered; why not.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Readiness {
    Ready,
    Not { reason: &'static str, message: String },
}

/// Looks at the node, and says how it is, until the process ends.
pub async fn run(
    arguments: ReadinessArguments,
    program: PathBuf,
    state_dir: PathBuf,
    node: String,
    client: Client,
    counted: Shared,
) {
    let nodes: Api<Node> = Api::all(client);
    let mut changes = watch(arguments.said.parent().into_iter().map(Path::to_owned).collect());
    let mut uncovered = Uncovered::default();
    let mut ready_before = Instant::now();
    let mut told: Option<(NodeCondition, Instant)> = None;
    loop {
        let readiness = look(&arguments.said, &program, &state_dir).await;
        if readiness == Readiness::Ready {
            ready_before = Instant::now();
        }
        let names = uncovered.look(&state_dir, &arguments.cni_cache).await;
        counted.lock().unwrap_or_else(std::sync::PoisonError::into_inner).uncovered = names.len();
        let taint = match readiness {
            Readiness::Ready => Some(false),
            Readiness::Not { .. } if arguments.taint && ready_before.elapsed() >= TAINTED_AFTER => Some(true),
            Readiness::Not { .. } => None,
        };
        let condition = condition(&readiness, &names);
        let mut pause = LOOK_EVERY;
        let is_known = told
            .as_ref()
            .is_some_and(|(before, at)| same(before, &condition) && at.elapsed() < SAY_EVERY && taint != Some(true));
        if !is_known {
            match tell(&nodes, &node, condition.clone(), taint).await {
                Ok(()) => told = Some((condition, Instant::now())),
                Err(error) => {
                    log::warn!("event=node-not-told error={:?}", error.to_string());
                    pause = TRY_EVERY;
                }
            }
        }
        if readiness != Readiness::Ready {
            pause = TRY_EVERY;
        }
        tokio::select! {
            Some(_) = changes.recv() => while changes.try_recv().is_ok() {},
            () = tokio::time::sleep(pause) => {}
        }
    }
}

async fn look(said: &Path, program: &Path, state_dir: &Path) -> Readiness {
    match std::fs::read_to_string(said) {
        Ok(fault) if fault.is_empty() => {}
        Ok(fault) => return Readiness::Not { reason: "NotInstalled", message: fault },
        Err(_) => {
            let message = "the part that installs the plugin has not said anything yet".to_owned();
            return Readiness::Not { reason: "NotInstalled", message };
        }
    }
    match ask_status(program, state_dir).await {
        Ok(()) => Readiness::Ready,
        Err(message) => Readiness::Not { reason: "CannotIsolate", message },
    }
}

/// What the plugin answers to STATUS: whether the kernel and the state directory let it isolate.
async fn ask_status(program: &Path, state_dir: &Path) -> Result<(), String> {
    let cannot_run = |error: std::io::Error| format!("{} cannot be run: {error}", program.display());
    let mut command = tokio::process::Command::new(program);
    command.env("CNI_COMMAND", "STATUS").env("CNI_PATH", "/opt/cni/bin");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).kill_on_drop(true);
    let mut child = command.spawn().map_err(cannot_run)?;
    let config = json!({ "cniVersion": "1.1.0", "name": "readiness", "type": "quarantine", "stateDir": state_dir });
    if let Some(mut input) = child.stdin.take() {
        input.write_all(config.to_string().as_bytes()).await.map_err(cannot_run)?;
    }
    let answered = tokio::time::timeout(Duration::from_secs(10), child.wait_with_output()).await;
    let output = answered.map_err(|_| "the plugin does not answer".to_owned())?.map_err(cannot_run)?;
    if output.status.success() {
        return Ok(());
    }
    let error: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
    Err(format!("{} {}", text("msg"), text("details")).trim().to_owned())
}

/// The pods that are not covered.
#[derive(Default)]
struct Uncovered {
    /// At the last look: a pod that is being made has its interface before its record.
    last: BTreeSet<String>,
}

impl Uncovered {
    /// Those that were so at the last look, too.
    async fn look(&mut self, state_dir: &Path, cache: &Path) -> BTreeSet<String> {
        let (state_dir, cache) = (state_dir.to_owned(), cache.to_owned());
        let found = tokio::task::spawn_blocking(move || {
            let state = StateDir::open_or_create(&state_dir).map_err(|error| error.to_string())?;
            // The runtime's socket is not in this container.
            let places = Places { cache, conf: PathBuf::new(), cri: Vec::new() };
            uncovered_pods(&state, &places).map_err(|error| error.to_string())
        });
        let found: BTreeSet<String> = match found.await {
            Ok(Ok(found)) => found.into_iter().collect(),
            Ok(Err(error)) => {
                log::warn!("event=coverage-unknown error={error:?}");
                return self.last.clone();
            }
            Err(_) => return self.last.clone(),
        };
        let both = found.intersection(&self.last).cloned().collect();
        self.last = found;
        both
    }
}

fn condition(readiness: &Readiness, uncovered: &BTreeSet<String>) -> NodeCondition {
    let (status, reason, mut message) = match readiness {
        Readiness::Ready if uncovered.is_empty() => ("True", "Covered", "pods are covered".to_owned()),
        Readiness::Ready => ("True", "SomeUncovered", "pods that are made now are covered".to_owned()),
        Readiness::Not { reason, message } => ("False", *reason, message.clone()),
    };
    if !uncovered.is_empty() {
        let named: Vec<&str> = uncovered.iter().take(NAMED_MAX).map(String::as_str).collect();
        let more = if uncovered.len() > NAMED_MAX { ", …" } else { "" };
        message += &format!("; not covered: {} ({}{more})", uncovered.len(), named.join(", "));
    }
    let now = Some(Time(jiff::Timestamp::now()));
    NodeCondition {
        type_: CONDITION.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: now.clone(),
        last_transition_time: now,
    }
}

fn same(before: &NodeCondition, after: &NodeCondition) -> bool {
    (&before.status, &before.reason, &before.message) == (&after.status, &after.reason, &after.message)
}

/// Writes the condition; and sets the taint (`Some(true)`), takes it away (`Some(false)`), or leaves it.
async fn tell(
    nodes: &Api<Node>,
    name: &str,
    mut condition: NodeCondition,
    taint: Option<bool>,
) -> Result<(), kube::Error> {
    let node = nodes.get(name).await?;
    let conditions = node.status.and_then(|status| status.conditions).unwrap_or_default();
    let before = conditions.iter().find(|before| before.type_ == CONDITION);
    if !before.is_some_and(|before| same(before, &condition)) {
        if let Some(before) = before.filter(|before| before.status == condition.status) {
            condition.last_transition_time = before.last_transition_time.clone();
        }
        log::info!(
            "event=node-coverage ready={} reason={} message={:?}",
            condition.status,
            condition.reason.as_deref().unwrap_or_default(),
            condition.message.as_deref().unwrap_or_default()
        );
        let patch = Patch::Strategic(json!({ "status": { "conditions": [condition] } }));
        nodes.patch_status(name, &PatchParams::default(), &patch).await?;
    }
    let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
    let Some(wanted) = taints_after(&taints, taint) else { return Ok(()) };
    log::info!("event={}", if taint == Some(true) { "tainted" } else { "taint-taken-away" });
    // The list is replaced whole: only where it is still the one that was read.
    let taints =
        json!({ "metadata": { "resourceVersion": node.metadata.resource_version }, "spec": { "taints": wanted } });
    match nodes.patch(name, &PatchParams::default(), &Patch::Merge(taints)).await {
        Err(kube::Error::Api(error)) if error.code == 409 => {
            // By the condition that was written just now, at the least.
            let node = nodes.get(name).await?;
            let taints = node.spec.and_then(|spec| spec.taints).unwrap_or_default();
            let Some(wanted) = taints_after(&taints, taint) else { return Ok(()) };
            let version = node.metadata.resource_version;
            let taints = json!({ "metadata": { "resourceVersion": version }, "spec": { "taints": wanted } });
            nodes.patch(name, &PatchParams::default(), &Patch::Merge(taints)).await.map(drop)
        }
        other => other.map(drop),
    }
}

/// The taints as they are to be; none where they are so.
fn taints_after(taints: &[Taint], wanted: Option<bool>) -> Option<Vec<Taint>> {
    let is_ours = |taint: &&Taint| taint.key == TAINT;
    let has_it = taints.iter().any(|taint| is_ours(&taint));
    match wanted {
        Some(true) if !has_it => {
            let ours = Taint { key: TAINT.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
            Some(taints.iter().cloned().chain([ours]).collect())
        }
        Some(false) if has_it => Some(taints.iter().filter(|taint| !is_ours(taint)).cloned().collect()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_taint_comes_and_goes() {
        let taint = |key: &str, effect: &str| Taint { key: key.into(), effect: effect.into(), ..Taint::default() };
        let other = taint("node.kubernetes.io/not-ready", "NoExecute");
        let ours = taint(TAINT, "NoSchedule");
        for (before, wanted, after) in [
            (vec![], None, None),
            (vec![], Some(false), None),
            (vec![other.clone()], Some(true), Some(vec![other.clone(), ours.clone()])),
            (vec![ours.clone()], Some(true), None),
            (vec![ours.clone()], None, None),
            // Whatever its effect: a node may be registered with any.
            (vec![taint(TAINT, "NoExecute"), other.clone(), ours], Some(false), Some(vec![other])),
        ] {
            assert_eq!(taints_after(&before, wanted), after, "{before:?} {wanted:?}");
        }
    }

    #[test]
    fn pods_that_are_not_covered_are_named_whether_or_not_new_ones_are() {
        let names = |count: usize| (0..count).map(|number| format!("shop/web-{number:02}")).collect::<BTreeSet<_>>();
        let not = Readiness::Not { reason: "NotInstalled", message: "it is no JSON".to_owned() };
        for (readiness, uncovered, expected) in [
            (Readiness::Ready, 0, ("True", "Covered", "pods are covered")),
            (
                Readiness::Ready,
                1,
                ("True", "SomeUncovered", "pods that are made now are covered; not covered: 1 (shop/web-00)"),
            ),
            (not.clone(), 0, ("False", "NotInstalled", "it is no JSON")),
            (not, 1, ("False", "NotInstalled", "it is no JSON; not covered: 1 (shop/web-00)")),
        ] {
            let said = condition(&readiness, &names(uncovered));
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            assert_eq!((said.status.as_str(), text(&said.reason).as_str(), text(&said.message).as_str()), expected);
        }
        let many = condition(&Readiness::Ready, &names(12)).message.unwrap();
        assert!(many.contains("not covered: 12 (") && many.ends_with("shop/web-09, …)"), "{many}");
    }
}
