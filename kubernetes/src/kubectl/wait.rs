//! Waiting until a pod's node has read its kernel back.

use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};

use crate::api::{Condition, PodQuarantine};
use crate::watching::backoff;

use super::{Exit, Failure, Session, print, say_error};

/// What is waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Wanted {
    Contained,
    Released,
}

pub(super) async fn wait_for(
    session: &Session,
    object: &PodQuarantine,
    wanted: Wanted,
    timeout: Duration,
) -> Result<Exit, Failure> {
    let subject = format!("{}/{}", object.spec.pod.namespace, object.spec.pod.name);
    match tokio::time::timeout(timeout, settled(session, object, wanted)).await {
        Ok(Some((exit, text))) => {
            print(&format!("{subject}: {text}\n"));
            Ok(exit)
        }
        Ok(None) => Err(Failure::new(Exit::NotDone, format!("{subject}: the object was deleted meanwhile"))),
        Err(_) => {
            let seen = session.objects().get_opt(object.object_name()).await?;
            let condition = seen.as_ref().and_then(|object| object.status.as_ref()?.condition("Contained"));
            let said = condition.map_or("its node has said nothing".to_owned(), |condition| {
                format!("{}: {}", condition.reason, condition.message)
            });
            say_error(&format!("{subject}: asked for, and waits after {} s: {said}", timeout.as_secs()));
            Ok(Exit::Waiting)
        }
    }
}

/// Ends with what the node says; `None` where the object was deleted.
async fn settled(session: &Session, object: &PodQuarantine, wanted: Wanted) -> Option<(Exit, String)> {
    let config = watcher::Config::default().fields(&format!("metadata.name={}", object.object_name()));
    let mut events = Box::pin(watcher(session.objects(), config).backoff(backoff()));
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(seen) | watcher::Event::InitApply(seen)) => {
                let is_current = seen.metadata.uid == object.metadata.uid;
                if let Some(said) = said(&seen, object.metadata.generation, wanted).filter(|_| is_current) {
                    return Some(said);
                }
            }
            Ok(watcher::Event::Delete(_)) => return None,
            Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
            Err(error) => say_error(&cni_quarantine::audit::chain(&error)),
        }
    }
    None
}

/// What the node says of this generation of the object; `None` where it has not looked at it, or goes on to work.
fn said(object: &PodQuarantine, generation: Option<i64>, wanted: Wanted) -> Option<(Exit, String)> {
    let status = object.status.as_ref()?;
    if status.observed_generation < generation {
        return None;
    }
    let condition = status.condition("Contained")?;
    let policy = status.policy.as_deref().map(|policy| format!(", policy {policy}")).unwrap_or_default();
    let text = |words: &str| {
        let Condition { message, .. } = condition;
        if message.is_empty() { format!("{words}{policy}") } else { format!("{words}{policy}\n  {message}") }
    };
    Some(match (wanted, condition.reason.as_str()) {
        (Wanted::Contained, "Contained") => (Exit::Done, text("contained")),
        // As on the node: most is stopped, and what is not is said.
        (Wanted::Contained, "PartlyContained") => (Exit::Done, text("partial")),
        (Wanted::Released, "Released") => (Exit::Done, text("released")),
        (_, "WaitingForSandbox" | "MarkNotWritten" | "CannotBeRead") => return None,
        (Wanted::Released, "Contained" | "PartlyContained") => return None,
        (_, reason) => (Exit::NotDone, text(reason)),
    })
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use crate::api::{PodQuarantineSpec, PodQuarantineStatus, PodRef};

    use super::*;

    #[test]
    fn it_ends_when_the_node_has_said_how_it_is() {
        let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: None, node_name: None };
        let mut object = PodQuarantine::new("uid-1", PodQuarantineSpec::of(pod));
        assert_eq!(said(&object, Some(1), Wanted::Contained), None, "nothing was said");
        for (reason, observed, wanted, exit) in [
            ("Contained", 1, Wanted::Contained, Some(Exit::Done)),
            ("Contained", 0, Wanted::Contained, None),
            ("PartlyContained", 1, Wanted::Contained, Some(Exit::Done)),
            ("WaitingForSandbox", 1, Wanted::Contained, None),
            ("NotContained", 1, Wanted::Contained, Some(Exit::NotDone)),
            ("HostNetwork", 1, Wanted::Contained, Some(Exit::NotDone)),
            ("NotCovered", 1, Wanted::Contained, Some(Exit::NotDone)),
            ("TargetGone", 1, Wanted::Contained, Some(Exit::NotDone)),
            ("Contained", 1, Wanted::Released, None),
            ("Released", 1, Wanted::Released, Some(Exit::Done)),
            ("HeldOnNode", 1, Wanted::Released, Some(Exit::NotDone)),
        ] {
            let condition =
                Condition::after(&[], "Contained", "True", reason, String::new(), Timestamp::constant(0, 0));
            object.status = Some(PodQuarantineStatus {
                observed_generation: Some(observed),
                conditions: vec![condition],
                ..PodQuarantineStatus::default()
            });
            assert_eq!(said(&object, Some(1), wanted).map(|(exit, _)| exit), exit, "{reason} {observed} {wanted:?}");
        }
    }
}
