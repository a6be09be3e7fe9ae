//! Pods on the host's network: isolated by their cgroups, as others are from the cluster.

use std::net::SocketAddr;
use std::time::Duration;

use crate::lab::{Namespace, Pod, await_true, get, on};

const PORT: u16 = 8080;

/// A web server without privileges, on the network of node a.
fn host_pod(namespace: &Namespace) -> Pod {
    namespace.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: host, labels: {{app: host}}}}, spec: {{nodeName: a, hostNetwork: true, \
         terminationGracePeriodSeconds: 1, containers: [{{name: web, image: 'local/box:1', imagePullPolicy: Never, \
         command: [httpd, -f, -p, '{PORT}', -h, /www], securityContext: {{runAsUser: 65534, \
         allowPrivilegeEscalation: false, capabilities: {{drop: [ALL]}}}}}}]}}}}"
    ));
    namespace.kubectl("expose pod host --port 80 --target-port 8080");
    namespace.ready("host")
}

fn answers(pod: &Pod) -> bool {
    crate::lab::answers_at(SocketAddr::new(pod.addresses[0], PORT), Duration::from_millis(500))
}

#[track_caller]
fn assert_answers(pod: &Pod, wanted: bool) {
    await_true(60, if wanted { "it answers" } else { "it does not answer" }, || answers(pod) == wanted);
}

#[test]
fn it_is_isolated_by_its_cgroup_and_detached_and_released_as_others() {
    let namespace = Namespace::new("hostnet");
    let pod = host_pod(&namespace);
    assert_answers(&pod, true);
    // The pause container may do what the pod's own may not.
    let said = pod.isolate("");
    assert!(said.contains("partial") && said.contains("CAP_NET_RAW"), "{said}");
    assert_answers(&pod, false);
    pod.await_reason(60, "Contained", "PartlyContained");
    let status = pod.object().unwrap()["status"].clone();
    assert_eq!((&status["verdict"], &status["layers"]["cgroup"]), (&"partial".into(), &true.into()), "{status:#}");
    let codes: Vec<_> = status["reasons"].as_array().unwrap().iter().map(|why| why["code"].as_str().unwrap()).collect();
    assert!(codes.contains(&"capabilities") && codes.contains(&"local-sockets"), "{status:#}");
    await_true(60, "what is dropped is told", || {
        !answers(&pod) && pod.object().unwrap()["status"]["drops"]["in"].as_i64() > Some(0)
    });
    pod.await_reason(60, "Detached", "Detached");
    let endpoints = get("-n hostnet endpoints host").unwrap();
    assert!(endpoints["subsets"].as_array().is_none_or(Vec::is_empty), "{endpoints:#}");
    let kept = format!("ls /var/lib/cni/quarantine/evidence/host:{}/*/processes.json", pod.uid);
    await_true(60, "evidence is kept", || on("a", &format!("{kept} 2>/dev/null || true")).contains("processes.json"));
    let metrics = |port: u16| {
        on("a", &format!("exec 3<>/dev/tcp/127.0.0.1/{port}; printf 'GET /metrics HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3"))
    };
    for port in [9468, 9469] {
        let counted = || metrics(port).lines().any(|line| line == "quarantine_partial{reason=\"capabilities\"} 1");
        await_true(60, "it is counted", counted);
    }

    pod.release();
    assert_answers(&pod, true);
    pod.await_reason(60, "Contained", "Released");
    assert!(on("a", &format!("ls /sys/fs/bpf/quarantine/*/ | grep -c host:{} || true", pod.uid)).trim() == "0");

    // What somebody on the node isolates is shown, by the name that the kubelet's logs say.
    crate::lab::release_and_delete(&pod.uid);
    on("a", "/opt/cni/bin/quarantine isolate hostnet/host --actor alice");
    assert_answers(&pod, false);
    pod.await_reason(60, "Contained", "PartlyContained");
    assert_eq!(pod.object().unwrap()["spec"]["origin"], "Node");
    pod.release();
    assert_answers(&pod, true);
    assert!(!on("a", "ls /var/lib/cni/quarantine/isolated").contains("hostnet_host"));
}
