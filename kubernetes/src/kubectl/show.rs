//! `status` and `list`.

use std::fmt::Write as _;

use futures::StreamExt as _;
use kube::api::ListParams;
use kube::runtime::{WatchStreamExt as _, watcher};

use crate::api::{PodQuarantine, PodQuarantineStatus};
use crate::watching::backoff;

use super::arguments::{List, Output, Status};
use super::{Exit, Failure, Session, print, say_error};

pub(super) async fn status(session: &Session, arguments: &Status) -> Result<Exit, Failure> {
    let mut objects = session.objects_here().await?;
    objects.retain(|object| object.spec.pod.name == arguments.pod);
    let Some(last) = objects.last() else {
        let subject = format!("{}/{}", session.namespace, arguments.pod);
        return Err(Failure::new(Exit::NotDone, format!("there is no PodQuarantine of {subject}")));
    };
    if arguments.watch {
        return follow(session, last, arguments.output).await;
    }
    for object in &objects {
        print(&shown(object, arguments.output));
    }
    let is_so = |object: &PodQuarantine| {
        let reason = object.status.as_ref().and_then(|status| status.condition("Contained")).map(|found| &found.reason);
        reason.is_some_and(|reason| ["Contained", "PartlyContained", "Released"].contains(&reason.as_str()))
    };
    Ok(if objects.iter().all(is_so) { Exit::Done } else { Exit::NotDone })
}

async fn follow(session: &Session, object: &PodQuarantine, output: Output) -> Result<Exit, Failure> {
    let config = watcher::Config::default().fields(&format!("metadata.name={}", object.object_name()));
    let mut events = Box::pin(watcher(session.objects(), config).backoff(backoff()));
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(object) | watcher::Event::InitApply(object)) => print(&shown(&object, output)),
            Ok(watcher::Event::Delete(_)) => {
                say_error("the object was deleted; that releases nobody");
                return Ok(Exit::NotDone);
            }
            Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
            Err(error) => say_error(&cni_quarantine::audit::chain(&error)),
        }
    }
    Ok(Exit::Done)
}

pub(super) async fn list(session: &Session, arguments: &List) -> Result<Exit, Failure> {
    let objects = if arguments.all_namespaces {
        session.objects().list(&ListParams::default()).await?.items
    } else {
        session.objects_here().await?
    };
    print(&match arguments.output {
        Output::Json => format!("{:#}\n", serde_json::json!({ "items": objects })),
        Output::Table => table(&objects),
    });
    Ok(Exit::Done)
}

fn shown(object: &PodQuarantine, output: Output) -> String {
    match output {
        Output::Json => format!("{:#}\n", serde_json::json!(object)),
        Output::Table => page(object),
    }
}

/// What is said of one pod; a line for each thing that is known.
fn page(object: &PodQuarantine) -> String {
    let spec = &object.spec;
    let nothing = PodQuarantineStatus::default();
    let status = object.status.as_ref().unwrap_or(&nothing);
    let mut text = String::new();
    let mut line = |key: &str, value: Option<String>| {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            let _ = writeln!(text, "{key:<10}{}", printable(&value));
        }
    };
    line("pod", Some(format!("{}/{}", spec.pod.namespace, spec.pod.name)));
    line("uid", spec.pod.uid.clone());
    line("node", spec.pod.node_name.clone());
    line("verdict", status.verdict.clone());
    line("policy", status.policy.clone());
    line(
        "layers",
        status.layers.map(|layers| {
            [("pod", layers.pod), ("host", layers.host), ("cgroup", layers.cgroup)]
                .iter()
                .filter(|(_, there)| *there)
                .map(|(name, _)| *name)
                .collect::<Vec<_>>()
                .join("+")
        }),
    );
    line("since", status.contained_at.map(|at| at.to_string()));
    line("reason", spec.reason.clone());
    line("case", spec.case.clone());
    line("by", spec.actor.clone());
    line(
        "released",
        spec.release.as_ref().map(|release| {
            let why = release.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("by {}{why}", release.by)
        }),
    );
    for condition in &status.conditions {
        let message = if condition.message.is_empty() { String::new() } else { format!(": {}", condition.message) };
        line(&condition.kind.to_lowercase(), Some(format!("{}, {}{message}", condition.status, condition.reason)));
    }
    line("dropped", status.drops.map(|drops| format!("{} in, {} out", drops.inbound, drops.outbound)));
    for attempt in status.attempts.iter().take(20) {
        let port = attempt.port.map(|port| format!(" port {port}")).unwrap_or_default();
        line("tried", Some(format!("{} {}{port}, {} packets", attempt.protocol, attempt.address, attempt.packets)));
    }
    text
}

fn table(objects: &[PodQuarantine]) -> String {
    const HEAD: [&str; 7] = ["NAMESPACE", "POD", "NODE", "VERDICT", "STATE", "REPLACED", "CASE"];
    let condition = |object: &PodQuarantine, kind: &str, reason: bool| {
        let found = object.status.as_ref().and_then(|status| status.condition(kind));
        found.map(|found| if reason { found.reason.clone() } else { found.status.clone() })
    };
    let rows: Vec<[String; 7]> = objects
        .iter()
        .map(|object| {
            [
                Some(object.spec.pod.namespace.clone()),
                Some(object.spec.pod.name.clone()),
                object.spec.pod.node_name.clone(),
                object.status.as_ref().and_then(|status| status.verdict.clone()),
                condition(object, "Contained", true),
                condition(object, "Replaced", false),
                object.spec.case.clone(),
            ]
            .map(|cell| printable(&cell.unwrap_or_else(|| "-".to_owned())))
        })
        .collect();
    let mut widths = HEAD.map(str::len);
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = (*width).max(cell.chars().count());
        }
    }
    let mut text = String::new();
    for row in std::iter::once(HEAD.map(str::to_owned)).chain(rows) {
        let cells: Vec<_> = row.iter().zip(widths).map(|(cell, width)| format!("{cell:<width$}")).collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text
}

/// What somebody wrote, without what a terminal would act on.
fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}
