//! Absence never releases.

use std::thread;
use std::time::Duration;

use crate::lab::{Knocking, Namespace, admin, await_true, get, kubectl, kubectl_as, on, quarantine};

#[test]
fn an_object_that_is_deleted_releases_nobody_and_is_shown_again() {
    let namespace = Namespace::new("deleted");
    let pod = namespace.pod("web", "a");
    pod.isolate("--reason beacon");
    let knocking = Knocking::at(&pod);
    let before = pod.object().unwrap()["metadata"]["uid"].clone();
    kubectl(&format!("delete podquarantine {}", pod.uid));
    await_true(60, "the node shows its mark again", || {
        pod.object().is_some_and(|object| object["metadata"]["uid"] != before && object["spec"]["origin"] == "Node")
    });
    pod.await_reason(60, "Contained", "Contained");
    assert_eq!(pod.object().unwrap()["spec"]["reason"], "beacon");
    await_true(60, "an event says so", || pod.has_event("QuarantineOrphaned"));
    let scraped =
        || on("a", "exec 3<>/dev/tcp/127.0.0.1/9469; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3");
    await_true(60, "a metric says so", || scraped().contains("\nquarantine_orphan_marks 1\n"));
    let metrics = scraped();
    assert!(metrics.contains("\nquarantine_active 1\n") && metrics.ends_with("# EOF\n"), "{metrics}");
    assert!(!metrics.contains("quarantine_contain_seconds_count{stage=\"node\"} 0"), "{metrics}");
    thread::sleep(Duration::from_secs(3));
    knocking.assert_never_answered();
    // Release is an act, also of what was shown.
    pod.release();
    pod.assert_answers(true);
}

#[test]
fn a_definition_that_is_deleted_releases_nobody() {
    let namespace = Namespace::new("undefined");
    let pod = namespace.pod("web", "b");
    pod.isolate("");
    let knocking = Knocking::at(&pod);
    kubectl("delete crd podquarantines.cni-quarantine.dev");
    thread::sleep(Duration::from_secs(5));
    let definition = concat!(env!("CARGO_MANIFEST_DIR"), "/../conf/kubernetes/podquarantines.yaml");
    kubectl(&format!("apply -f {definition}"));
    kubectl("wait --for=condition=Established crd/podquarantines.cni-quarantine.dev --timeout=30s");
    await_true(60, "the node shows its mark", || kubectl_as(&admin(), &["get", "podquarantine", &pod.uid], "").is_ok());
    pod.await_reason(60, "Contained", "Contained");
    knocking.assert_never_answered();
    pod.release();
    pod.assert_answers(true);
}

#[test]
fn another_pod_of_the_same_name_is_never_followed() {
    let namespace = Namespace::new("renamed");
    let pod = namespace.pod("web", "a");
    pod.isolate("");
    pod.assert_answers(false);
    namespace.kubectl("delete pod web --force --grace-period=0");
    let other = namespace.pod("web", "a");
    assert_ne!(other.uid, pod.uid);
    other.assert_answers(true);
    pod.await_reason(60, "Contained", "TargetGone");
    assert!(other.object().is_none());
    let (code, said) = quarantine("-n renamed release web --wait");
    assert_eq!(code, 0, "{said}");
    other.assert_answers(true);
}

#[test]
fn time_asks_for_attention_and_releases_only_where_that_was_said() {
    let namespace = Namespace::new("expiring");
    let (held, freed) = (namespace.pod("held", "a"), namespace.pod("freed", "b"));
    held.isolate("--expires-in 4s");
    freed.isolate("--expires-in 4s --release-at-expiry");
    freed.await_reason(60, "Contained", "Released");
    held.await_reason(60, "Expired", "NeedsAttention");
    held.assert_answers(false);
    freed.assert_answers(true);
    assert!(held.has_event("QuarantineNeedsAttention"));
    held.release();
}

#[test]
fn a_release_cannot_be_taken_back_and_the_pod_can_be_isolated_again() {
    let namespace = Namespace::new("again");
    let pod = namespace.pod("web", "a");
    pod.isolate("");
    pod.release();
    let unset = r#"[{"op":"remove","path":"/spec/release"}]"#;
    let refused = kubectl_as(&admin(), &["patch", "podquarantine", &pod.uid, "--type=json", "-p", unset], "");
    assert!(refused.unwrap_err().contains("a release cannot be taken back"));
    pod.isolate("--reason again");
    pod.assert_answers(false);
    assert_eq!(get(&format!("podquarantine {}", pod.uid)).unwrap()["spec"]["reason"], "again");
    pod.release();
    pod.assert_answers(true);
}
