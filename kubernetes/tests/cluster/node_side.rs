//! What is done on the node by hand is shown in the cluster, and what the cluster did is not undone by it.

use std::thread;
use std::time::Duration;

use crate::lab::{
    AtEnd, Namespace, apply, await_true, counted, get, kubectl_as, machine, on, release_and_delete, requests,
};

const QUARANTINE: &str = "/opt/cni/bin/quarantine";

#[test]
fn a_mark_that_was_made_on_the_node_is_shown_and_can_be_released_from_the_cluster() {
    let namespace = Namespace::new("by-hand");
    let pod = namespace.pod("web", "a");
    on("a", &format!("{QUARANTINE} isolate by-hand/web --reason beacon --actor alice --probe-port 80"));
    pod.assert_answers(false);
    pod.await_reason(60, "Contained", "Contained");
    let object = pod.object().unwrap();
    assert_eq!(object["spec"]["origin"], "Node");
    assert_eq!((&object["spec"]["actor"], &object["spec"]["reason"]), (&"alice".into(), &"beacon".into()));
    assert_eq!(object["spec"]["policy"]["probePorts"], serde_json::json!([80]));
    assert_eq!(object["status"]["policy"], "loopback+probes:80");
    pod.release();
    pod.assert_answers(true);
    assert!(!on("a", "ls /var/lib/cni/quarantine/isolated").contains(&pod.uid));
}

#[test]
fn a_mark_of_the_node_that_goes_on_the_node_is_said_to_be_gone() {
    let namespace = Namespace::new("by-hand-released");
    let pod = namespace.pod("web", "b");
    on("b", &format!("{QUARANTINE} isolate by-hand-released/web"));
    pod.await_reason(60, "Contained", "Contained");
    on("b", &format!("{QUARANTINE} release by-hand-released/web"));
    pod.assert_answers(true);
    pod.await_reason(60, "Contained", "NoMarkOnNode");
}

#[test]
fn the_cluster_s_own_mark_comes_back_and_one_of_the_node_outlives_the_cluster_s_release() {
    let namespace = Namespace::new("both");
    let pod = namespace.pod("web", "a");
    pod.isolate("");
    on("a", &format!("rm /var/lib/cni/quarantine/isolated/{}", pod.uid));
    await_true(60, "the mark is back", || on("a", "ls /var/lib/cni/quarantine/isolated").contains(&pod.uid));
    pod.await_reason(60, "Contained", "Contained");
    pod.assert_answers(false);
    on("a", "touch /var/lib/cni/quarantine/isolated/both_web");
    let (code, said) = crate::lab::quarantine("-n both release web --wait");
    assert_eq!(code, 1, "{said}");
    assert!(said.contains("a mark on the node goes on to hold: both_web"), "{said}");
    pod.assert_answers(false);
    on("a", "rm /var/lib/cni/quarantine/isolated/both_web");
    pod.await_reason(60, "Contained", "Released");
    pod.assert_answers(true);
}

#[test]
fn without_the_api_server_the_node_goes_on_and_catches_up() {
    let namespace = Namespace::new("alone");
    let (pod, other) = (namespace.pod("web", "a"), namespace.pod("other", "a"));
    pod.isolate("");
    machine(&["off", "plane"]).unwrap();
    on("a", &format!("{QUARANTINE} isolate alone/other --actor alice"));
    let verdict = |name: &str| on("a", &format!("{QUARANTINE} status alone/{name} -o json"));
    assert!(verdict("web").contains("\"contained\"") && verdict("other").contains("\"contained\""));
    machine(&["on", "plane"]).unwrap();
    await_true(60, "the API server is back", || {
        kubectl_as(&crate::lab::admin(), &["get", "--raw", "/readyz", "--request-timeout=2s"], "").is_ok()
    });
    other.await_reason(60, "Contained", "Contained");
    assert_eq!(other.object().unwrap()["spec"]["origin"], "Node");
    pod.await_reason(60, "Contained", "Contained");
    pod.assert_answers(false);
    other.assert_answers(false);
    pod.release();
    other.release();
    pod.assert_answers(true);
    other.assert_answers(true);
}

#[test]
fn a_configuration_that_the_network_s_daemon_writes_anew_gets_its_entry_back() {
    let original = crate::lab::directory().join("run/b/10-pods.conflist");
    let entry = || on("b", "cat /etc/cni/net.d/10-pods.conflist").contains("\"quarantine\"");
    assert!(entry());
    for way in [
        "cp {} /etc/cni/net.d/10-pods.conflist",
        "cp {} /etc/cni/net.d/.new && mv /etc/cni/net.d/.new /etc/cni/net.d/10-pods.conflist",
    ] {
        for _ in 0..3 {
            on("b", &way.replace("{}", &original.display().to_string()));
            let written = std::time::Instant::now();
            await_true(60, "the entry is back", entry);
            println!("the entry was back after {:?}", written.elapsed());
        }
    }
    // And a pod that is made then is covered.
    let namespace = Namespace::new("rewritten");
    let pod = namespace.pod("web", "b");
    pod.isolate("");
    pod.assert_answers(false);
    pod.release();
}

#[test]
fn the_plugin_goes_out_of_the_configuration_byte_for_byte_and_comes_in_again() {
    let original = std::fs::read_to_string(crate::lab::directory().join("run/a/10-pods.conflist")).unwrap();
    let scratch = "d=$(mktemp -d); cp -r /etc/cni/net.d $d/net.d; mkdir $d/bin; cp /opt/cni/bin/* $d/bin/";
    let flags = "--conf-dir $d/net.d --bin-dir $d/bin";
    let conflist = on(
        "a",
        &format!(
            "{scratch}; for i in 1 2; do {QUARANTINE} uninstall {flags} --yes >&2; {QUARANTINE} install {flags} >&2; done; \
             {QUARANTINE} uninstall {flags} --yes >&2; cat $d/net.d/10-pods.conflist"
        ),
    );
    assert_eq!(conflist, original);
}

#[test]
fn at_rest_nothing_is_asked_of_the_api_server_but_the_watch_and_the_lease() {
    let _gone = AtEnd(|| (0..20).for_each(|number| release_and_delete(&format!("resting-{number}"))));
    for number in 0..20 {
        let node = if number % 2 == 0 { "a" } else { "b" };
        apply(&format!(
            "{{apiVersion: cni-quarantine.dev/v1alpha1, kind: PodQuarantine, metadata: {{name: resting-{number}}}, spec: {{detach: false, \
             pod: {{namespace: default, name: none, uid: resting-{number}, nodeName: {node}}}}}}}"
        ));
    }
    let all_say = |reason: &str| {
        let objects = get("podquarantines").unwrap();
        let objects = objects["items"].as_array().unwrap();
        objects.iter().filter(|object| object["status"]["conditions"].to_string().contains(reason)).count() >= 20
    };
    await_true(60, "it is said of all that their pods are gone", || all_say("TargetGone"));
    await_true(60, "and that they need not be detached", || all_say("NotWanted"));
    thread::sleep(Duration::from_secs(12));
    let before = requests().len();
    // Longer than any look, and than counters are held back.
    thread::sleep(Duration::from_secs(20));
    let mut asked = counted(&requests()[before..]);
    // The node's condition is asserted every ten minutes, whatever else happens.
    asked.retain(|request, _| {
        !matches!(&*request.resource, "leases" | "nodes" | "nodes/status") && request.verb != "watch"
    });
    assert!(asked.is_empty(), "{asked:?}");
}
