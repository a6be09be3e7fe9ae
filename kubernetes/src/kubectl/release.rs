//! `release`: sets `spec.release`, which is the one thing that releases.

use jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams};
use serde_json::json;

use crate::api::PodQuarantine;
use crate::sandboxed::sandbox_uid;

use super::arguments::Release;
use super::wait::{Wanted, wait_for};
use super::{Exit, Failure, Session, confirmed, print};

pub(super) async fn release(session: &Session, arguments: &Release) -> Result<Exit, Failure> {
    let objects = chosen(session, arguments).await?;
    let names: Vec<String> = objects
        .iter()
        .map(|object| format!("{} ({})", object.spec.pod.name, object.spec.pod.uid.as_deref().unwrap_or("no UID yet")))
        .collect();
    confirmed(&arguments.target, "release", &names)?;
    if objects.is_empty() {
        let what = arguments.target.pod.as_deref().or(arguments.target.selector.as_deref()).unwrap_or_default();
        return Err(Failure::new(
            Exit::NotDone,
            format!("{}/{what} is not isolated by the cluster", session.namespace),
        ));
    }
    let me = session.me().await?;
    let mut released = Vec::new();
    for object in &objects {
        let patch = json!({
            "metadata": { "uid": object.metadata.uid },
            "spec": { "release": { "by": me, "reason": arguments.reason } },
        });
        let parameters = PatchParams { dry_run: arguments.dry_run.is_some(), ..PatchParams::default() };
        released.push(session.objects().patch(object.object_name(), &parameters, &Patch::Merge(patch)).await?);
    }
    let mut exit = Exit::Done;
    for object in released {
        let subject = format!("{}/{}", object.spec.pod.namespace, object.spec.pod.name);
        if arguments.dry_run.is_some() {
            print(&format!("{subject}: would be released (server dry run)\n"));
        } else if arguments.waiting.wait {
            let ended = wait_for(session, &object, Wanted::Released, arguments.waiting.timeout).await?;
            if exit == Exit::Done {
                exit = ended;
            }
        } else {
            print(&format!("{subject}: release asked for\n"));
        }
    }
    Ok(exit)
}

async fn chosen(session: &Session, arguments: &Release) -> Result<Vec<PodQuarantine>, Failure> {
    let now = Timestamp::now();
    let mut objects = session.objects_here().await?;
    objects.retain(|object| !object.spec.is_released(now));
    if let Some(name) = &arguments.target.pod {
        objects.retain(|object| object.spec.pod.name == *name);
        return Ok(objects);
    }
    let selector = arguments.target.selector.as_deref().unwrap_or_default();
    let pods = session.pods().list(&ListParams::default().labels(selector)).await?.items;
    objects.retain(|object| pods.iter().any(|pod| sandbox_uid(pod) == object.spec.pod.uid.as_deref()));
    Ok(objects)
}
