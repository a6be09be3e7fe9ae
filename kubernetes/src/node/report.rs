//! What a node says of an object, from what it found. Pure.

use jiff::Timestamp;
use kube::core::DynamicObject;

use cni_quarantine::status::{Direction, Finding, HostFinding, HostPodStatus, Marking, SandboxStatus};
use cni_quarantine::verdict::Note;

use crate::api::{Attempt, Condition, Counts, Layers, PodQuarantine, PodQuarantineStatus, WhyNot, is_of_an_object};
use crate::sandboxed::sandbox_uid;

/// The most attempts that are written into an object.
const ATTEMPTS_MAX: usize = 50;

/// What was found of a pod on its node.
#[derive(Debug, Clone)]
pub enum Found {
    /// Its sandbox; the worst of them where it has several.
    Sandbox(Box<SandboxStatus>),
    /// It has none, and is on the node's network.
    HostPod(Box<HostPodStatus>),
    /// It has no sandbox that the plugin knows.
    NoSandbox(Target),
    /// The marks could not be changed or read; why.
    Failed(String),
}

/// What the API server says of a pod that has no sandbox here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// There is none of this name.
    Gone,
    /// There is one of this name, with another UID.
    Another,
    /// It has ended: no container of it runs, or ever will.
    Ended,
    /// It is on the host's network.
    HostNetwork,
    /// It has not started yet, or its sandbox is being made again.
    Starting,
    /// It is being deleted.
    Ending,
    /// It runs, and the plugin was not called for it.
    NotCovered,
    /// It could not be asked for.
    Unknown,
}

/// Why a pod is what it is: the reasons of the condition `Contained`.
mod why {
    pub(super) const CONTAINED: &str = "Contained";
    pub(super) const PARTIAL: &str = "PartlyContained";
    pub(super) const OPEN: &str = "NotContained";
    pub(super) const UNKNOWN: &str = "CannotBeRead";
    pub(super) const RELEASED: &str = "Released";
    pub(super) const HELD: &str = "HeldOnNode";
    pub(super) const FREE: &str = "NoMarkOnNode";
    pub(super) const FAILED: &str = "MarkNotWritten";
    pub(super) const TARGET_GONE: &str = "TargetGone";
    pub(super) const HOST_NETWORK: &str = "HostNetwork";
    pub(super) const WAITING: &str = "WaitingForSandbox";
    pub(super) const NOT_COVERED: &str = "NotCovered";
}

/// The status of an object as its node says it: its own fields and conditions, none of the controller's.
#[must_use]
pub fn status(object: &PodQuarantine, node: &str, found: &Found, now: Timestamp) -> PodQuarantineStatus {
    let before = object.status.clone().unwrap_or_default();
    let mut status = PodQuarantineStatus {
        observed_generation: object.metadata.generation,
        node: Some(node.to_owned()),
        contained_at: before.contained_at,
        ..PodQuarantineStatus::default()
    };
    let (truth, reason, message) = contained(object, found, now);
    match found {
        Found::Sandbox(sandbox) => describe(&mut status, sandbox),
        Found::HostPod(pod) => describe_host_pod(&mut status, pod),
        Found::NoSandbox(_) => status.verdict = Some("gone".to_owned()),
        Found::Failed(_) => status.verdict = Some("unknown".to_owned()),
    }
    if [why::CONTAINED, why::PARTIAL].contains(&reason) {
        status.contained_at = before.contained_at.or(Some(now));
    }
    let condition = |kind, truth, reason, message| Condition {
        observed_generation: object.metadata.generation,
        ..Condition::after(&before.conditions, kind, truth, reason, message, now)
    };
    status.conditions.push(condition("Contained", truth, reason, message));
    if let Some(at) = object.spec.expires_at {
        let (truth, reason, message) = match (object.spec.is_expired(now), object.spec.is_released(now)) {
            (false, _) => ("False", "NotYet", format!("expires at {at}")),
            (true, true) => ("True", "Released", format!("expired at {at}, and was released")),
            (true, false) => {
                ("True", "NeedsAttention", format!("expired at {at}; it stays isolated until somebody releases it"))
            }
        };
        status.conditions.push(condition("Expired", truth, reason, message));
    }
    status
}

/// The condition `Contained`: status, reason, message.
fn contained(object: &PodQuarantine, found: &Found, now: Timestamp) -> (&'static str, &'static str, String) {
    let released = object.spec.is_released(now);
    match found {
        Found::Failed(why) => ("Unknown", why::FAILED, why.clone()),
        Found::NoSandbox(_) if released => ("False", why::RELEASED, "released; it has no sandbox".to_owned()),
        Found::NoSandbox(target) => absent(*target),
        Found::Sandbox(sandbox) => match (&sandbox.finding, &sandbox.entry.marking) {
            (Finding::Unknown(error), _) => ("Unknown", why::UNKNOWN, error.clone()),
            (Finding::Gone(error), _) => ("False", why::WAITING, format!("its sandbox has ended: {error}")),
            (Finding::Read(_), None) if released => ("False", why::RELEASED, released_by(object)),
            (Finding::Read(_), None) => {
                let message = "no mark on the node holds for it any more";
                ("False", why::FREE, message.to_owned())
            }
            (Finding::Read(_), Some(marking)) if released => held(marking),
            (Finding::Read(_), Some(marking)) => isolated(marking, sandbox.verdict(), &sandbox.reasons()),
        },
        Found::HostPod(pod) => match (&pod.finding, &pod.marking) {
            // Why nothing can be done about it, or that it has ended.
            (HostFinding::Unknown(error), _) => ("False", why::HOST_NETWORK, error.clone()),
            // No mark holds for it, and its programs are there.
            (HostFinding::Read(_), None) => ("True", why::HELD, pod.reasons().join("; ")),
            (HostFinding::Read(_), Some(marking)) if released => held(marking),
            (HostFinding::Read(_), Some(marking)) => isolated(marking, pod.verdict(), &pod.reasons()),
        },
    }
}

/// What is released in the cluster, and isolated all the same.
fn held(marking: &Marking) -> (&'static str, &'static str, String) {
    let keys: Vec<_> = marking.keys.iter().map(|key| key.as_str()).collect();
    let message = format!(
        "released in the cluster, but a mark on the node goes on to hold: {} ({}); `quarantine release` there removes it",
        keys.join(", "),
        marking.mark.actor.as_deref().unwrap_or("nobody signed it")
    );
    ("True", why::HELD, message)
}

/// What is isolated, as the kernel was found.
fn isolated(marking: &Marking, verdict: &str, reasons: &[String]) -> (&'static str, &'static str, String) {
    let mut message = reasons.join("; ");
    if let Some(fault) = &marking.fault {
        message = format!("sealed, since a mark on the node cannot be understood: {fault}. {message}");
    } else if !is_of_an_object(&marking.mark) {
        let actor = marking.mark.actor.as_deref().unwrap_or("nobody signed it");
        message = format!("by a mark of the node ({actor}). {message}");
    }
    let message = message.trim().to_owned();
    match verdict {
        "contained" => ("True", why::CONTAINED, message),
        "partial" => ("False", why::PARTIAL, message),
        _ => ("False", why::OPEN, message),
    }
}

fn released_by(object: &PodQuarantine) -> String {
    match &object.spec.release {
        Some(release) => {
            let why = release.reason.as_deref().map(|reason| format!(": {reason}")).unwrap_or_default();
            format!("released by {}{why}", release.by)
        }
        None => "released, as it was to be at its expiry".to_owned(),
    }
}

fn absent(target: Target) -> (&'static str, &'static str, String) {
    let (reason, message) = match target {
        Target::Gone => (why::TARGET_GONE, "the pod is gone"),
        Target::Another => {
            (why::TARGET_GONE, "the pod is gone; another one has its name now, and is not isolated by this")
        }
        Target::Ended => (why::TARGET_GONE, "the pod has ended"),
        Target::HostNetwork => (
            why::HOST_NETWORK,
            "the pod is on the host's network, and no process of it is found on the node: it is isolated by its cgroup as soon as there is one, and NOT before its first packet",
        ),
        Target::Starting => (why::WAITING, "marked: it is isolated before its first packet"),
        Target::Ending => (why::WAITING, "the pod is being deleted, and has no sandbox any more"),
        Target::NotCovered => (
            why::NOT_COVERED,
            "the pod runs, but the plugin was not called for it (it is older than the plugin): it is NOT isolated",
        ),
        Target::Unknown => (why::WAITING, "it has no sandbox here, and the API server could not be asked for the pod"),
    };
    ("False", reason, message.to_owned())
}

fn describe(status: &mut PodQuarantineStatus, sandbox: &SandboxStatus) {
    status.verdict = Some(sandbox.verdict().to_owned());
    status.container_id = Some(sandbox.entry.container_id.to_string());
    status.policy = sandbox.entry.marking.as_ref().map(|marking| marking.policy.to_string());
    let Finding::Read(reading) = &sandbox.finding else { return };
    let reasons =
        reading.reasons.iter().map(|reason| WhyNot { code: reason.code().to_owned(), text: reason.to_string() });
    status.reasons = reasons.chain(reading.notes.iter().map(of_note)).collect();
    status.layers = Some(Layers { pod: reading.pod_layer, host: reading.host_layer, cgroup: false });
    if sandbox.entry.marking.is_some() {
        count(status, |direction| reading.dropped(direction), &reading.attempts);
    }
}

fn describe_host_pod(status: &mut PodQuarantineStatus, pod: &HostPodStatus) {
    status.verdict = Some(pod.verdict().to_owned());
    status.policy = pod.marking.as_ref().map(|marking| marking.policy.to_string());
    let HostFinding::Read(reading) = &pod.finding else { return };
    let reasons = reading.reasons.iter().map(|(code, text)| WhyNot { code: (*code).to_owned(), text: text.clone() });
    status.reasons = reasons.chain(reading.notes.iter().map(of_note)).collect();
    status.layers = Some(Layers { pod: false, host: false, cgroup: reading.cgroup_layer });
    if pod.marking.is_some() {
        count(status, |direction| reading.dropped(direction), &reading.attempts);
    }
}

fn of_note(note: &Note) -> WhyNot {
    WhyNot { code: note.code().to_owned(), text: note.to_string() }
}

/// What was stopped, and what the pod tried.
fn count(
    status: &mut PodQuarantineStatus,
    dropped: impl Fn(Direction) -> u64,
    attempts: &[cni_quarantine::status::Attempt],
) {
    let dropped = |direction| i64::try_from(dropped(direction)).unwrap_or(i64::MAX);
    status.drops = Some(Counts { inbound: dropped(Direction::In), outbound: dropped(Direction::Out) });
    status.attempts = attempts
        .iter()
        .take(ATTEMPTS_MAX)
        .map(|attempt| Attempt {
            protocol: attempt.protocol.to_string(),
            address: attempt.address.to_string(),
            port: attempt.port.map(i32::from),
            packets: i64::try_from(attempt.packets).unwrap_or(i64::MAX),
        })
        .collect();
}

/// What the API server says of a pod that has no sandbox here. `was_covered`: whether it had one before.
#[must_use]
pub fn target(pod: Option<&DynamicObject>, uid: &str, was_covered: bool) -> Target {
    let Some(pod) = pod else { return Target::Gone };
    if sandbox_uid(pod) != Some(uid) {
        return Target::Another;
    }
    let text = |pointer| pod.data.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default();
    let host_network = pod.data.pointer("/spec/hostNetwork").and_then(serde_json::Value::as_bool) == Some(true);
    match text("/status/phase") {
        "Succeeded" | "Failed" => Target::Ended,
        _ if pod.metadata.deletion_timestamp.is_some() => Target::Ending,
        _ if host_network => Target::HostNetwork,
        "Running" if !was_covered => Target::NotCovered,
        _ => Target::Starting,
    }
}

/// How urgent it is that the API server learns of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Urgency {
    /// Nothing has changed.
    None,
    /// Counters have.
    Later,
    /// More than counters has.
    Now,
}

/// What of an object's status is its node's.
#[must_use]
pub fn own_part(status: &PodQuarantineStatus) -> PodQuarantineStatus {
    let mut own = status.clone();
    own.conditions.retain(|condition| ["Contained", "Expired"].contains(&condition.kind.as_str()));
    own
}

/// Whether a status says anything new.
#[must_use]
pub fn urgency(before: Option<&PodQuarantineStatus>, after: &PodQuarantineStatus) -> Urgency {
    let Some(before) = before else { return Urgency::Now };
    if before == after {
        return Urgency::None;
    }
    // The sentence of a note has a counter in it.
    let codes = |reasons: &[WhyNot]| reasons.iter().map(|why| WhyNot { text: String::new(), ..why.clone() }).collect();
    let without_counters = |status: &PodQuarantineStatus| PodQuarantineStatus {
        drops: None,
        attempts: Vec::new(),
        reasons: codes(&status.reasons),
        ..status.clone()
    };
    if without_counters(before) == without_counters(after) { Urgency::Later } else { Urgency::Now }
}

#[cfg(test)]
mod tests {
    use cni_quarantine::mark::Mark;
    use cni_quarantine::names::{ContainerId, Key, Pod};
    use cni_quarantine::policy::Policy;
    use cni_quarantine::status::{Drops, HostReading, Layer, Marking, Reading, SandboxEntry};
    use cni_quarantine::verdict::{Reason, Verdict};
    use serde_json::json;

    use super::*;
    use crate::api::{Expiry, PodQuarantineSpec, PodRef, Release};

    const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

    fn object(change: impl FnOnce(&mut PodQuarantineSpec)) -> PodQuarantine {
        let pod = PodRef { namespace: "n".into(), name: "p".into(), uid: Some("uid-1".into()), node_name: None };
        let mut spec = PodQuarantineSpec::of(pod);
        change(&mut spec);
        let mut object = PodQuarantine::new("uid-1", spec);
        object.metadata.generation = Some(3);
        object
    }

    fn released(spec: &mut PodQuarantineSpec) {
        spec.release = Some(Release { by: "alice".into(), reason: Some("clean".into()) });
    }

    fn marking(mark: Mark) -> Marking {
        Marking { keys: vec![Key::new("uid-1").unwrap()], policy: Policy::default(), mark, fault: None, since: None }
    }

    fn sandbox(mark: Option<Mark>, verdict: Verdict, reasons: Vec<Reason>) -> Found {
        let marking = mark.map(marking);
        let drop = |direction, packets| Drops { layer: Layer::Host, interface: None, direction, packets, bytes: 0 };
        let reading = Reading {
            verdict,
            reasons,
            pod_layer: true,
            host_layer: verdict == Verdict::Contained,
            bpf_layer: false,
            bpf_ready: false,
            guard_required: false,
            drops: vec![drop(Direction::In, 3), drop(Direction::Out, 4), drop(Direction::In, 1)],
            attempts: Vec::new(),
            notes: vec![Note::ProbeSource { source: std::net::Ipv4Addr::LOCALHOST.into(), packets: 1 }],
        };
        let container_id = ContainerId::new("c1").unwrap();
        let entry = SandboxEntry { container_id, pod: Pod::default(), netns: None, marking };
        Found::Sandbox(Box::new(SandboxStatus { entry, finding: Finding::Read(reading) }))
    }

    fn host_pod(mark: Option<Mark>, finding: HostFinding) -> Found {
        let marking = mark.map(marking);
        Found::HostPod(Box::new(HostPodStatus { pod: Pod::default(), cgroup: None, marking, finding }))
    }

    fn read(verdict: Verdict) -> HostFinding {
        let drop = |direction, packets| Drops { layer: Layer::Cgroup, interface: None, direction, packets, bytes: 0 };
        HostFinding::Read(HostReading {
            verdict,
            reasons: vec![("packet-socket", "it has one".to_owned())],
            cgroup_layer: verdict != Verdict::Open,
            drops: vec![drop(Direction::In, 2), drop(Direction::Out, 5)],
            attempts: Vec::new(),
            notes: vec![Note::LocalSockets],
        })
    }

    #[test]
    fn a_pod_with_host_network_is_what_its_cgroup_s_programs_are() {
        let ours = || Some(object(|_| ()).mark());
        let (held, free) = (object(|_| ()), object(released));
        let unknown = || HostFinding::Unknown("it is NOT isolated: version 1".to_owned());
        for (object, found, truth, reason) in [
            (&held, host_pod(ours(), read(Verdict::Contained)), "True", "Contained"),
            (&held, host_pod(ours(), read(Verdict::Partial)), "False", "PartlyContained"),
            (&held, host_pod(ours(), read(Verdict::Open)), "False", "NotContained"),
            (&held, host_pod(ours(), unknown()), "False", "HostNetwork"),
            (&free, host_pod(ours(), read(Verdict::Contained)), "True", "HeldOnNode"),
            (&free, host_pod(None, read(Verdict::Partial)), "True", "HeldOnNode"),
        ] {
            let said = contained_is(object, &found);
            assert_eq!((said.0.as_str(), said.1.as_str()), (truth, reason), "{found:?}");
        }
        let status = status(&held, "a", &host_pod(ours(), read(Verdict::Partial)), NOW);
        let codes: Vec<_> = status.reasons.iter().map(|why| why.code.as_str()).collect();
        assert_eq!((status.verdict.as_deref(), &codes[..]), (Some("partial"), &["packet-socket", "local-sockets"][..]));
        assert_eq!(status.drops, Some(Counts { inbound: 2, outbound: 5 }));
        assert_eq!((status.layers.map(|layers| layers.cgroup), status.container_id), (Some(true), None));
    }

    fn contained_is(object: &PodQuarantine, found: &Found) -> (String, String) {
        let status = status(object, "a", found, NOW);
        let condition = status.condition("Contained").unwrap();
        (condition.status.clone(), condition.reason.clone())
    }

    #[test]
    fn contained_is_said_of_what_was_read_back_alone() {
        let ours = || Some(object(|_| ()).mark());
        let by_hand = || Some(Mark { actor: Some("root".into()), ..Mark::default() });
        let (held, free) = (object(|_| ()), object(released));
        for (object, found, truth, reason) in [
            (&held, sandbox(ours(), Verdict::Contained, vec![]), "True", "Contained"),
            (&held, sandbox(by_hand(), Verdict::Contained, vec![]), "True", "Contained"),
            (&held, sandbox(ours(), Verdict::Partial, vec![Reason::NothingFound]), "False", "PartlyContained"),
            (&held, sandbox(ours(), Verdict::Open, vec![Reason::NothingFound]), "False", "NotContained"),
            (&held, sandbox(None, Verdict::Open, vec![]), "False", "NoMarkOnNode"),
            (&free, sandbox(None, Verdict::Open, vec![]), "False", "Released"),
            (&free, sandbox(by_hand(), Verdict::Contained, vec![]), "True", "HeldOnNode"),
            (&held, Found::Failed("no space".into()), "Unknown", "MarkNotWritten"),
            (&held, Found::NoSandbox(Target::Gone), "False", "TargetGone"),
            (&held, Found::NoSandbox(Target::Another), "False", "TargetGone"),
            (&held, Found::NoSandbox(Target::Ended), "False", "TargetGone"),
            (&held, Found::NoSandbox(Target::HostNetwork), "False", "HostNetwork"),
            (&held, Found::NoSandbox(Target::Starting), "False", "WaitingForSandbox"),
            (&held, Found::NoSandbox(Target::NotCovered), "False", "NotCovered"),
            (&held, Found::NoSandbox(Target::Unknown), "False", "WaitingForSandbox"),
            (&free, Found::NoSandbox(Target::Unknown), "False", "Released"),
        ] {
            let said = contained_is(object, &found);
            assert_eq!((said.0.as_str(), said.1.as_str()), (truth, reason), "{found:?}");
        }
    }

    #[test]
    fn what_was_found_is_in_the_status_and_the_first_time_stays() {
        let mut object = object(|_| ());
        let first = status(&object, "a", &sandbox(Some(object.mark()), Verdict::Contained, vec![]), NOW);
        assert_eq!(first.drops, Some(Counts { inbound: 4, outbound: 4 }));
        assert_eq!((first.verdict.as_deref(), first.container_id.as_deref()), (Some("contained"), Some("c1")));
        assert_eq!((first.contained_at, first.observed_generation), (Some(NOW), Some(3)));
        object.status = Some(first.clone());
        let later = Timestamp::constant(1_800_000_100, 0);
        let second = status(&object, "a", &sandbox(Some(object.mark()), Verdict::Contained, vec![]), later);
        assert_eq!(second, first, "nothing has changed, so nothing is written");
        assert_eq!(urgency(Some(&first), &second), Urgency::None);
        let partial = sandbox(Some(object.mark()), Verdict::Partial, vec![Reason::NothingFound]);
        let partial = status(&object, "a", &partial, later);
        assert_eq!(
            partial.reasons.iter().map(|why| why.code.as_str()).collect::<Vec<_>>(),
            ["nothing-found", "probe-source"]
        );
        assert_eq!(partial.contained_at, Some(NOW));
        assert_eq!(partial.condition("Contained").unwrap().last_transition_time, later);
        assert_eq!(urgency(Some(&first), &partial), Urgency::Now);
        let counted = PodQuarantineStatus { drops: Some(Counts { inbound: 5, outbound: 4 }), ..first.clone() };
        assert_eq!(urgency(Some(&first), &counted), Urgency::Later);
        assert_eq!(urgency(None, &first), Urgency::Now);
    }

    #[test]
    fn time_asks_for_attention_or_releases() {
        let found = || sandbox(Some(Mark::default()), Verdict::Contained, vec![]);
        let at = |seconds: i64| Timestamp::new(NOW.as_second() + seconds, 0).ok();
        for (expires_at, expiry, expected) in [
            (None, Expiry::Attention, None),
            (at(1), Expiry::Attention, Some(("False", "NotYet"))),
            (at(-1), Expiry::Attention, Some(("True", "NeedsAttention"))),
            (at(-1), Expiry::Release, Some(("True", "Released"))),
        ] {
            let object = object(|spec| {
                spec.expires_at = expires_at;
                spec.expiry = expiry;
            });
            let status = status(&object, "a", &found(), NOW);
            let said = status.condition("Expired").map(|found| (found.status.as_str(), found.reason.as_str()));
            assert_eq!(said, expected);
        }
    }

    #[test]
    fn a_pod_is_told_by_its_uid() {
        let pod = |uid: &str, data: serde_json::Value| {
            let mut pod =
                DynamicObject::new("p", &kube::api::ApiResource::erase::<k8s_openapi::api::core::v1::Pod>(&()));
            pod.metadata.uid = Some(uid.to_owned());
            pod.data = data;
            pod
        };
        let phase = |phase: &str| json!({ "status": { "phase": phase } });
        for (pod, was_covered, expected) in [
            (None, false, Target::Gone),
            (Some(pod("uid-2", phase("Running"))), true, Target::Another),
            (Some(pod("uid-1", phase("Failed"))), false, Target::Ended),
            (Some(pod("uid-1", json!({ "spec": { "hostNetwork": true } }))), false, Target::HostNetwork),
            (Some(pod("uid-1", phase("Pending"))), false, Target::Starting),
            (Some(pod("uid-1", phase("Running"))), false, Target::NotCovered),
            (Some(pod("uid-1", phase("Running"))), true, Target::Starting),
        ] {
            assert_eq!(target(pod.as_ref(), "uid-1", was_covered), expected, "{pod:?}");
        }
    }
}
