//! Onto a cluster that runs already, off it, and what happens to both while it is exchanged.

use std::net::TcpListener;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::{
    Knocking, Namespace, Pod, await_true, directory, get, kubectl, machine, on, quarantine, web_container,
};

const NODES: [&str; 2] = ["a", "b"];
const SYSTEM: &str = "-n quarantine-system";

fn root() -> &'static str {
    concat!(env!("CARGO_MANIFEST_DIR"), "/..")
}

fn conflist(node: &str) -> String {
    on(node, "cat /etc/cni/net.d/10-pods.conflist")
}

/// As it was before anything was installed.
fn original(node: &str) -> String {
    std::fs::read_to_string(directory().join(format!("run/{node}/10-pods.conflist"))).unwrap()
}

fn has_entry(node: &str) -> bool {
    conflist(node).contains("\"quarantine\"")
}

fn await_installed() {
    kubectl(&format!("{SYSTEM} rollout status daemonset/quarantine-node --timeout=120s"));
    kubectl(&format!("{SYSTEM} rollout status deployment/quarantine-controller --timeout=120s"));
    for node in NODES {
        await_true(60, "the entry is there", || has_entry(node));
        await_true(60, &format!("{node} says that its pods are covered"), || readiness(node).0 == "True");
    }
}

fn install() {
    kubectl(&format!("apply -f {}/conf/kubernetes/quarantine.yaml", root()));
    await_installed();
}

/// Takes it off both nodes.
fn uninstall(flags: &str) {
    let (code, said) = quarantine(&format!("uninstall {flags}"));
    assert_eq!(code, 0, "{said}");
    assert_is_out();
}

fn assert_is_out() {
    for node in NODES {
        assert_eq!(conflist(node), original(node), "{node}: as it was, byte for byte");
        assert_eq!(readiness(node).0, "", "{node} says nothing of it any more");
    }
}

/// Status and message of the condition by which a node says whether its pods are covered.
fn readiness(node: &str) -> (String, String) {
    let node = get(&format!("node {node}")).unwrap();
    let conditions = node["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["type"] == "QuarantineReady");
    let text = |key: &str| found.and_then(|found| found[key].as_str()).unwrap_or_default().to_owned();
    (text("status"), text("message"))
}

fn is_tainted(node: &str) -> bool {
    let node = get(&format!("node {node}")).unwrap();
    let taints = node["spec"]["taints"].as_array().cloned().unwrap_or_default();
    taints.iter().any(|taint| taint["key"] == "cni-quarantine.dev/not-ready")
}

/// The record of a pod, as its node has it.
fn record(pod: &Pod) -> Option<Value> {
    let texts = on(
        &pod.node,
        "for f in /var/lib/cni/quarantine/attachments/*/*.json; do cat $f; echo; echo ---; done 2>/dev/null",
    );
    let records = texts.split("---").filter_map(|text| serde_json::from_str::<Value>(text).ok());
    records.into_iter().find(|record| record.to_string().contains(&pod.uid))
}

/// Takes a pod out of libcni's cache: what is known of it then, its runtime says.
fn forget_in_cache(pod: &Pod) {
    let of_pod = format!("grep -l {} /var/lib/cni/results/*", pod.uid);
    on(&pod.node, &format!("{of_pod} | xargs rm; ! {of_pod}"));
}

/// A file of the one collection of evidence of a sandbox.
fn evidence(node: &str, container: &str, file: &str) -> Option<Value> {
    let path = format!("/var/lib/cni/quarantine/evidence/{container}/*/{file}");
    let text = machine(&["exec", node, "/bin/bash", "-c", &format!("cat {path}")]).ok()?;
    Some(serde_json::from_str(&text).unwrap())
}

/// Where the network namespace of a sandbox is, which is isolated.
fn netns_of(node: &str, container: &str) -> String {
    let status = on(node, &format!("/opt/cni/bin/quarantine status {container} -o json"));
    let status: Value = serde_json::from_str(&status).unwrap();
    status["netns"].as_str().unwrap().to_owned()
}

/// Most pods are older than the plugin when it is first installed.
#[test]
fn pods_that_are_older_than_the_plugin_are_adopted_and_the_evidence_names_who_holds_the_connection() {
    let command = TcpListener::bind("10.200.0.1:0").unwrap();
    let port = command.local_addr().unwrap().port();
    for round in ["older-once", "older-twice"] {
        uninstall("");
        let namespace = Namespace::new(round);
        let (control, uncached) = (namespace.pod("control", "a"), namespace.pod("uncached", "a"));
        forget_in_cache(&uncached);
        namespace.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: implant}}, spec: {{nodeName: b, terminationGracePeriodSeconds: 1, \
             containers: [{}, {{name: beacon, image: 'local/box:1', imagePullPolicy: Never, \
             command: [sh, -c, 'while :; do busybox nslookup -type=a c2.example 10.200.0.1; sleep 1; done >/dev/null 2>&1 & \
             sleep 100000 | nc 10.200.0.1 {port}']}}]}}}}",
            web_container("livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 2}")
        ));
        let pod = namespace.ready("implant");
        let (_connection, from) = command.accept().unwrap();
        install();
        for pod in [&pod, &control, &uncached] {
            await_true(60, "it is adopted", || record(pod).is_some_and(|record| record["adopted"] == true));
        }
        uncached.isolate("--no-detach");
        uncached.assert_answers(false);
        uncached.release();
        uncached.assert_answers(true);

        let said = pod.isolate("--no-detach --reason beacon");
        assert!(said.contains("contained"), "{said}");
        pod.assert_answers(false);
        control.assert_answers(true);
        let container = pod.object().unwrap()["status"]["containerID"].as_str().unwrap().to_owned();
        await_true(60, "the evidence is collected", || evidence("b", &container, "manifest.json").is_some());
        let sockets = evidence("b", &container, "sockets.json").unwrap();
        let is_it = |socket: &&Value| {
            socket["kind"] == "tcp" && socket["remotePort"] == port && socket["localPort"] == from.port()
        };
        let socket = sockets["items"].as_array().unwrap().iter().find(is_it).unwrap_or_else(|| panic!("{sockets:#}"));
        let owner = socket["owners"][0]["pid"].as_u64().unwrap_or_else(|| panic!("nobody has {socket:#}"));
        let processes = evidence("b", &container, "processes.json").unwrap();
        let holds = |process: &&Value| process["pid"] == owner;
        let process = processes["items"].as_array().unwrap().iter().find(holds).unwrap();
        assert_eq!(process["arguments"], serde_json::json!(["nc", "10.200.0.1", port.to_string()]), "{process:#}");
        assert!(process["executable"]["sha256"].is_string(), "{process:#}");

        let names =
            || on("b", &format!("cat /var/lib/cni/quarantine/captures/{container}/names.jsonl 2>/dev/null || true"));
        await_true(60, "the name that it asks for is kept", || names().contains("\"c2.example\""));
        // What the agent of a container can do as well as one on the node: the pod's connections outlive the investigation.
        let netns = netns_of("b", &container);
        let patience = || on("b", &format!("nsenter --net={netns} cat /proc/sys/net/ipv4/tcp_retries2"));
        await_true(60, "connections are kept from being given up", || patience().trim() == "255");

        thread::sleep(Duration::from_secs(10));
        assert_eq!(pod.restarts(), 0, "its probes pass");
        pod.assert_answers(false);
        pod.release();
        pod.assert_answers(true);
        await_true(240, "and left to themselves again", || patience().trim() == "15");
    }
}

#[test]
fn a_node_is_given_no_pods_before_they_would_be_covered() {
    uninstall("");
    // As a kubelet registers its node with --register-with-taints.
    kubectl("taint node b cni-quarantine.dev/not-ready:NoSchedule");
    let untaint = crate::lab::AtEnd(|| {
        if is_tainted("b") {
            kubectl("taint node b cni-quarantine.dev/not-ready-");
        }
    });
    let namespace = Namespace::new("not-yet");
    namespace.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {{nodeSelector: {{kubernetes.io/hostname: b}}, \
         terminationGracePeriodSeconds: 1, containers: [{}]}}}}",
        web_container("")
    ));
    await_true(60, "it waits for a node", || {
        let pod = get("-n not-yet pod web").unwrap();
        pod["status"]["conditions"][0]["reason"] == "Unschedulable"
    });
    install();
    let pod = namespace.ready("web");
    assert!(!is_tainted("b"));
    let record = record(&pod).unwrap();
    assert!(record.get("adopted").is_none_or(|adopted| adopted == false), "the plugin was called for it: {record}");
    drop(untaint);
}

#[test]
fn uninstalling_is_refused_while_a_pod_is_isolated_and_releases_nobody_where_it_is_done_all_the_same() {
    let namespace = Namespace::new("leaving");
    let pod = namespace.pod("web", "a");
    pod.isolate("--no-detach");
    let (code, said) = quarantine("uninstall");
    assert!(code == 2 && said.contains("leaving/web (a)"), "{code} {said}");
    assert!(NODES.iter().all(|node| has_entry(node)), "nothing was changed");
    let knocking = Knocking::at(&pod);
    let (code, said) = quarantine("uninstall --yes");
    assert!(code == 0 && said.contains("leaving/web (a)"), "{code} {said}");
    assert_is_out();
    pod.assert_answers(false);
    install();
    pod.await_reason(60, "Contained", "Contained");
    knocking.assert_never_answered();
    pod.release();
    pod.assert_answers(true);
}

#[test]
fn what_is_exchanged_pod_by_pod_releases_nobody() {
    let namespace = Namespace::new("rolling");
    let (first, second) = (namespace.pod("first", "a"), namespace.pod("second", "b"));
    first.isolate("--no-detach");
    let knocking = Knocking::at(&first);
    kubectl(&format!("{SYSTEM} rollout restart daemonset/quarantine-node deployment/quarantine-controller"));
    // In the midst of it.
    let (code, said) = quarantine("-n rolling isolate second --no-detach");
    assert_eq!(code, 0, "{said}");
    await_installed();
    second.await_reason(60, "Contained", "Contained");
    second.assert_answers(false);
    first.await_reason(60, "Contained", "Contained");
    knocking.assert_never_answered();
    first.release();
    second.release();
    first.assert_answers(true);
    second.assert_answers(true);
}

/// The network's daemon writes the configuration anew while pods are made all the time.
#[test]
fn pods_that_start_while_the_configuration_is_written_anew_are_adopted_or_named_as_uncovered() {
    let namespace = Namespace::new("gap");
    namespace.apply(&format!(
        "{{apiVersion: apps/v1, kind: DaemonSet, metadata: {{name: unused}}, spec: {{selector: {{matchLabels: {{app: unused}}}}, \
         template: {{metadata: {{labels: {{app: unused}}}}, spec: {{nodeSelector: {{none: none}}, containers: [{}]}}}}}}}}",
        web_container("")
    ));
    let original = directory().join("run/b/10-pods.conflist");
    let mut times = Vec::new();
    for round in 0..6 {
        for number in 0..2 {
            namespace.apply(&format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: web-{round}-{number}, labels: {{app: web}}}}, spec: {{nodeName: b, \
                 terminationGracePeriodSeconds: 1, containers: [{}]}}}}",
                web_container("")
            ));
        }
        // Sooner or later in the starting of these two.
        thread::sleep(Duration::from_millis(150 * round));
        on(
            "b",
            &format!(
                "cp {} /etc/cni/net.d/.new && mv /etc/cni/net.d/.new /etc/cni/net.d/10-pods.conflist",
                original.display()
            ),
        );
        let written = Instant::now();
        await_true(60, "the entry is back", || has_entry("b"));
        times.push(written.elapsed());
    }
    println!("under load the entry was back after {times:?}, the look itself included");
    await_true(120, "all pods run", || {
        let pods = namespace.pods("app=web");
        pods.len() == 12 && pods.iter().all(Pod::is_ready)
    });
    let pods = namespace.pods("app=web");
    let named = || on("b", "/opt/cni/bin/quarantine list -o json");
    await_true(60, "each is covered, or named", || {
        let listed: Value = serde_json::from_str(&named()).unwrap();
        let uncovered = listed["uncovered"].to_string();
        pods.iter().all(|pod| record(pod).is_some() || uncovered.contains(&pod.name))
    });
    let adopted = pods.iter().filter(|pod| record(pod).is_some_and(|record| record["adopted"] == true)).count();
    let missing: Vec<&Pod> = pods.iter().filter(|pod| record(pod).is_none()).collect();
    println!("of {} pods {adopted} were adopted, and {} are named as uncovered", pods.len(), missing.len());
    if !missing.is_empty() {
        await_true(90, "the node's condition counts them", || readiness("b").1.contains("not covered"));
    }
    // What is covered can be isolated, adopted or not.
    for pod in pods.iter().filter(|pod| record(pod).is_some()).take(3) {
        pod.isolate("--no-detach");
        pod.assert_answers(false);
        pod.release();
    }
}

fn helm(words: &str) -> Result<String, String> {
    let mut command = Command::new(directory().join("bin/helm"));
    let output = command.args(words.split_whitespace()).env("KUBECONFIG", crate::lab::admin()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let said = text(&output.stdout) + &text(&output.stderr);
    if output.status.success() { Ok(said) } else { Err(said) }
}

/// By Helm, with values of one's own; and back to the one file.
#[test]
fn the_chart_installs_is_upgraded_and_refuses_to_go_while_a_pod_is_isolated() {
    uninstall("");
    kubectl(&format!("delete -f {}/conf/kubernetes/quarantine.yaml --wait --timeout=60s --ignore-not-found", root()));
    let back = crate::lab::AtEnd(|| {
        if helm(&format!("uninstall quarantine {SYSTEM} --no-hooks --wait")).is_ok() {
            // It had other settings.
            NODES.iter().for_each(|node| drop(on(node, "/opt/cni/bin/quarantine uninstall >&2")));
        }
        install();
    });
    kubectl("create namespace quarantine-system");
    kubectl("label namespace quarantine-system pod-security.kubernetes.io/enforce=privileged");
    let chart = format!("{}/kubernetes/chart", root());
    let flags = "--set node.policy.loopback=true --set node.policy.probes.ports={80} --set node.taint=true";
    helm(&format!("install quarantine {chart} {SYSTEM} {flags} --wait --timeout 120s")).unwrap();
    await_installed();
    assert!(conflist("a").contains("\"policy\""), "{}", conflist("a"));
    let namespace = Namespace::new("charted");
    let pod = namespace.pod("web", "a");
    let said = pod.isolate("--no-detach");
    assert!(said.contains("probes:80"), "the policy is the chart's: {said}");
    let knocking = Knocking::at(&pod);
    helm(&format!("upgrade quarantine {chart} {SYSTEM} --reuse-values --set node.taint=false --wait --timeout 120s"))
        .unwrap();
    await_installed();
    let refused = helm(&format!("uninstall quarantine {SYSTEM} --timeout 60s")).unwrap_err();
    assert!(refused.contains("quarantine-uninstall failed"), "{refused}");
    let log = kubectl(&format!("{SYSTEM} logs job/quarantine-uninstall"));
    assert!(log.contains("charted/web (a)"), "{log}");
    assert!(NODES.iter().all(|node| has_entry(node)), "nothing was changed");
    knocking.assert_never_answered();
    pod.release();
    pod.assert_answers(true);
    helm(&format!("uninstall quarantine {SYSTEM} --wait --timeout 120s")).unwrap();
    assert_is_out();
    assert!(get("crd podquarantines.cni-quarantine.dev").is_some(), "the definition stays, and the objects with it");
    drop(back);
}
