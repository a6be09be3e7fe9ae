//! Whatever is killed, at whatever time: nothing leaks, and what the cluster says becomes true again.

use crate::lab::{Knocking, Namespace, Pod, await_true, directory, get, kubectl_as, machine, on, quarantine};

const CRICTL: &str = "crictl -r unix:///run/containerd/containerd.sock";

/// Kills a container of one of the parts, as it runs on a node.
fn kill_container(node: &str, name: &str) {
    on(node, &format!("{CRICTL} ps -q --name '^{name}$' | while read -r id; do {CRICTL} stop --timeout 0 $id; done"));
}

fn api_answers() -> bool {
    kubectl_as(&crate::lab::admin(), &["get", "--raw", "/readyz", "--request-timeout=2s"], "").is_ok()
}

/// Whether the node goes on to say how it is: it has written a status since.
fn says_again(pod: &Pod, verdict: &str) {
    await_true(60, "the API server answers", api_answers);
    await_true(90, &format!("the status is {verdict}"), || {
        pod.object().is_some_and(|object| object["status"]["verdict"] == verdict)
    });
}

fn kill(what: &str, pod: &Pod) {
    match what {
        "kubelet" | "containerd" => machine(&["kill", &pod.node, what]).map(drop).unwrap(),
        "etcd" | "apiserver" => machine(&["kill", "plane", what]).map(drop).unwrap(),
        "agent" | "node" => kill_container(&pod.node, what),
        "controller" => ["a", "b"].iter().for_each(|node| kill_container(node, what)),
        other => panic!("{other}"),
    }
}

const PARTS: [&str; 7] = ["kubelet", "containerd", "agent", "node", "controller", "apiserver", "etcd"];

#[test]
fn nothing_leaks_while_any_part_is_killed_during_an_isolation() {
    let namespace = Namespace::new("killed");
    let pod = namespace.pod("web", "a");
    pod.assert_answers(true);
    pod.isolate("");
    let knocking = Knocking::at(&pod);
    for part in PARTS {
        kill(part, &pod);
        says_again(&pod, "contained");
    }
    knocking.assert_never_answered();
    await_true(60, "the node writes again", || pod.condition("Contained").1 == "Contained");
    pod.release();
    pod.assert_answers(true);
}

#[test]
fn an_isolation_and_a_release_that_a_part_dies_in_come_about() {
    let namespace = Namespace::new("dying");
    let pod = namespace.pod("web", "b");
    for part in PARTS {
        let (code, said) = quarantine("-n dying isolate web");
        assert_eq!(code, 0, "{part}: {said}");
        kill(part, &pod);
        await_true(90, &format!("it is isolated although {part} was killed"), || {
            api_answers() && pod.condition("Contained").1 == "Contained"
        });
        pod.assert_answers(false);
        let (code, said) = quarantine("-n dying release web");
        assert_eq!(code, 0, "{part}: {said}");
        kill(part, &pod);
        await_true(90, &format!("it is released although {part} was killed"), || {
            api_answers() && pod.condition("Contained").1 == "Released"
        });
        pod.assert_answers(true);
    }
}

#[test]
fn a_sandbox_that_is_stopped_is_isolated_anew_before_its_first_packet() {
    let namespace = Namespace::new("stopped");
    let pod = namespace.pod("web", "a");
    pod.isolate("");
    let before = pod.object().unwrap()["status"]["containerID"].clone();
    on("a", &format!("{CRICTL} stopp {}", before.as_str().unwrap()));
    await_true(60, "there is another sandbox, and it is contained", || {
        let status = pod.object().unwrap()["status"].clone();
        status["containerID"] != before && status["verdict"] == "contained"
    });
    let again = namespace.ready("web");
    assert_eq!(again.uid, pod.uid);
    Knocking::at(&again).assert_never_answered_for(2);
    again.release();
    again.assert_answers(true);
}

#[test]
fn a_node_whose_power_was_cut_isolates_its_pods_before_their_first_packet() {
    let namespace = Namespace::new("rebooted");
    let pod = namespace.pod("web", "b");
    let control = namespace.pod("control", "b");
    pod.isolate("");
    machine(&["off", "b"]).unwrap();
    machine(&["on", "b"]).unwrap();
    // Addresses are given anew. Each that either pod has had, or gets, is tried from the first moment on.
    await_true(120, "the other pod of the node answers again", || {
        let control = control.again();
        !control.addresses.is_empty() && control.answers().iter().all(|answer| *answer)
    });
    await_true(120, "it has a new sandbox", || {
        let again = pod.again();
        again.addresses != pod.addresses && !again.addresses.is_empty() && again.restarts() > 0
    });
    let knocking = Knocking::at(&pod.again());
    pod.await_reason(60, "Contained", "Contained");
    let again = namespace.ready("web");
    assert_eq!(again.uid, pod.uid, "the kubelet made it again, as the same pod");
    says_again(&again, "contained");
    knocking.assert_never_answered();
    again.release();
    again.assert_answers(true);
    assert!(directory().join("run").exists());
    assert!(get("node b").is_some());
}
