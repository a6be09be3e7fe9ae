//! `isolate`: one object a pod, named after its UID.

use jiff::Timestamp;
use kube::api::{DeleteParams, DynamicObject, ListParams, PostParams};
use serde_json::Value;

use crate::api::{Expiry, PodQuarantine, PodQuarantineSpec, PodRef};
use crate::sandboxed::sandbox_uid;

use super::arguments::Isolate;
use super::wait::{Wanted, wait_for};
use super::{Exit, Failure, Session, confirmed, print, say_error};

pub(super) async fn isolate(session: &Session, arguments: &Isolate) -> Result<Exit, Failure> {
    let pods = pods(session, arguments).await?;
    let names: Vec<String> = pods.iter().map(|pod| pod.metadata.name.clone().unwrap_or_default()).collect();
    confirmed(&arguments.target, "isolate", &names)?;
    if pods.is_empty() {
        return Err(Failure::new(Exit::NotDone, "the selector finds no pod: nothing was isolated"));
    }
    let actor = session.me().await?;
    let mut exit = Exit::Done;
    let mut made = Vec::new();
    // All are asked for before the first is waited for.
    for pod in &pods {
        let object = match object_for(pod, &session.namespace, arguments, &actor) {
            Ok(object) => object,
            Err(refusal) if pods.len() > 1 => {
                say_error(&refusal);
                exit = Exit::NotDone;
                continue;
            }
            Err(refusal) => return Err(Failure::new(Exit::NotDone, refusal)),
        };
        match make(session, &object, arguments.dry_run.is_some()).await {
            Ok(object) => made.push(object),
            Err(failure) if pods.len() > 1 => {
                say_error(&failure.message);
                exit = failure.exit;
            }
            Err(failure) => return Err(failure),
        }
    }
    for object in made {
        let PodRef { namespace, name, node_name, .. } = &object.spec.pod;
        let node = node_name.as_deref().unwrap_or("no node yet");
        if arguments.dry_run.is_some() {
            print(&format!("{namespace}/{name} on {node}: would be isolated (server dry run)\n"));
        } else if arguments.waiting.wait {
            let ended = wait_for(session, &object, Wanted::Contained, arguments.waiting.timeout).await?;
            if exit == Exit::Done {
                exit = ended;
            }
        } else {
            print(&format!("{namespace}/{name} on {node}: isolation asked for\n"));
        }
    }
    Ok(exit)
}

async fn pods(session: &Session, arguments: &Isolate) -> Result<Vec<DynamicObject>, Failure> {
    if let Some(name) = &arguments.target.pod {
        return Ok(vec![session.pods().get(name).await?]);
    }
    let selector = arguments.target.selector.as_deref().unwrap_or_default();
    Ok(session.pods().list(&ListParams::default().labels(selector)).await?.items)
}

/// The object that isolates a pod; why there can be none.
fn object_for(pod: &DynamicObject, namespace: &str, arguments: &Isolate, actor: &str) -> Result<PodQuarantine, String> {
    let name = pod.metadata.name.clone().unwrap_or_default();
    let subject = format!("{namespace}/{name}");
    let at = |pointer| pod.data.pointer(pointer);
    if let Some("Succeeded" | "Failed") = at("/status/phase").and_then(Value::as_str) {
        return Err(format!("{subject} has ended; there is nothing to isolate"));
    }
    let uid = sandbox_uid(pod).map(str::to_owned).ok_or_else(|| format!("{subject} has no UID"))?;
    let node_name = at("/spec/nodeName").and_then(Value::as_str).map(str::to_owned);
    let expires_at = match arguments.expires_in {
        Some(time) => Some(Timestamp::now().checked_add(time).map_err(|_| "that is too far in the future".to_owned())?),
        None => None,
    };
    let spec = PodQuarantineSpec {
        policy: arguments.policy(),
        reason: arguments.reason.clone(),
        case: arguments.case.clone(),
        actor: Some(actor.to_owned()),
        detach: !arguments.no_detach,
        expires_at,
        expiry: if arguments.release_at_expiry { Expiry::Release } else { Expiry::Attention },
        ..PodQuarantineSpec::of(PodRef { namespace: namespace.to_owned(), name, uid: Some(uid.clone()), node_name })
    };
    Ok(PodQuarantine::new(&uid, spec))
}

/// Makes the object. One that was released is history, and makes room.
async fn make(session: &Session, object: &PodQuarantine, dry_run: bool) -> Result<PodQuarantine, Failure> {
    let objects = session.objects();
    let parameters = PostParams { dry_run, ..PostParams::default() };
    let error = match objects.create(&parameters, object).await {
        Ok(made) => return Ok(made),
        Err(kube::Error::Api(error)) if error.code == 409 => error,
        Err(error) => return Err(error.into()),
    };
    let Some(standing) = objects.get_opt(object.object_name()).await? else {
        return Err(Failure::new(Exit::NotDone, error.message.clone()));
    };
    let PodRef { namespace, name, .. } = &standing.spec.pod;
    if !standing.spec.is_released(Timestamp::now()) {
        let differs = standing.spec.policy != object.spec.policy;
        let note = if differs { ", with another policy, which still holds (kubectl edit changes it)" } else { "" };
        say_error(&format!("{namespace}/{name} is isolated already{note}"));
        return Ok(standing);
    }
    if dry_run {
        return Ok(standing);
    }
    let same = DeleteParams {
        preconditions: Some(kube::api::Preconditions { uid: standing.metadata.uid.clone(), resource_version: None }),
        ..DeleteParams::default()
    };
    objects.delete(object.object_name(), &same).await?;
    Ok(objects.create(&parameters, object).await?)
}
