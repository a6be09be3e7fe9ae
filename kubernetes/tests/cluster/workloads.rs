//! Owners of every kind, and probes of every kind that the image can answer.

use std::thread;
use std::time::Duration;

use crate::lab::{
    Namespace, Pod, Saying, apply, await_true, get, kubectl, on, quarantine, quarantine_ok, web_container,
};

fn template(labels: &str) -> String {
    format!(
        "{{metadata: {{labels: {{{labels}}}}}, spec: {{terminationGracePeriodSeconds: 1, containers: [{}]}}}}",
        web_container("")
    )
}

/// Of a probe that is let through none fails, and of one that is not each: the patience is for a machine that has other things to do.
const PROBING: &str = "periodSeconds: 1, timeoutSeconds: 5, failureThreshold: 2";

fn first(namespace: &Namespace, selector: &str) -> Pod {
    await_true(60, "a pod is ready", || namespace.pods(selector).iter().any(Pod::is_ready));
    namespace.pods(selector).into_iter().find(Pod::is_ready).unwrap()
}

#[test]
fn a_stateful_set_s_pod_is_detached_and_cannot_be_replaced() {
    let namespace = Namespace::new("stateful");
    namespace.apply(&format!(
        "{{apiVersion: apps/v1, kind: StatefulSet, metadata: {{name: db}}, spec: {{serviceName: db, replicas: 1, \
         selector: {{matchLabels: {{app: db}}}}, template: {}}}}}",
        template("app: db")
    ));
    let pod = first(&namespace, "app=db");
    pod.isolate("");
    pod.await_reason(60, "Detached", "Detached");
    pod.await_reason(60, "Replaced", "NameTaken");
    assert_eq!(pod.again().uid, pod.uid, "it is still there");
    pod.assert_answers(false);
    pod.release();
}

#[test]
fn a_daemon_set_s_and_a_job_s_pod_are_replaced() {
    let namespace = Namespace::new("owners");
    namespace.apply(&format!(
        "{{apiVersion: apps/v1, kind: DaemonSet, metadata: {{name: log}}, spec: {{selector: {{matchLabels: {{app: log}}}}, \
         template: {}}}}}",
        template("app: log")
    ));
    let job = "{apiVersion: batch/v1, kind: Job, metadata: {name: once}, spec: {template: {spec: {restartPolicy: Never, \
               terminationGracePeriodSeconds: 1, containers: [{name: web, image: 'local/box:1', imagePullPolicy: Never, \
               command: [httpd, -f, -p, '80', -h, /www]}]}}}}";
    namespace.apply(job);
    for selector in ["app=log", "batch.kubernetes.io/job-name=once"] {
        let pod = first(&namespace, selector);
        pod.isolate("");
        pod.await_reason(60, "Replaced", "ReplacementReady");
        let others = namespace.pods(selector);
        assert!(others.iter().any(|other| other.uid != pod.uid && other.is_ready()), "{selector}");
        assert_eq!(pod.again().uid, pod.uid);
        pod.release();
    }
}

/// The evidence outlives whoever made it.
#[test]
fn an_owner_that_is_scaled_down_and_deleted_leaves_its_isolated_pod() {
    let namespace = Namespace::new("shrinking");
    namespace.apply(&format!(
        "{{apiVersion: apps/v1, kind: Deployment, metadata: {{name: web}}, spec: {{replicas: 2, \
         selector: {{matchLabels: {{app: web}}}}, template: {}}}}}",
        template("app: web")
    ));
    namespace.kubectl("rollout status deployment/web --timeout=180s");
    let pod = first(&namespace, "app=web");
    pod.exec("echo evidence >/tmp/evidence");
    pod.isolate("");
    pod.await_reason(60, "Replaced", "ReplacementReady");
    namespace.kubectl("scale deployment web --replicas=0");
    await_true(60, "all of the others go", || namespace.pods("app=web").is_empty());
    namespace.kubectl("delete deployment web --wait --cascade=foreground --timeout=60s");
    assert!(get("-n shrinking deployment web").is_none());
    assert_eq!(pod.again().uid, pod.uid, "it is still there");
    assert_eq!(pod.exec("cat /tmp/evidence"), "evidence\n");
    pod.assert_answers(false);
    pod.release();
    pod.assert_answers(true);
}

#[test]
fn a_bare_pod_has_nobody_to_replace_it_and_one_that_is_not_to_be_detached_stays() {
    let namespace = Namespace::new("bare");
    let (bare, kept) = (namespace.pod("bare", "a"), namespace.pod("kept", "b"));
    bare.isolate("");
    bare.await_reason(60, "Replaced", "NoOwner");
    kept.isolate("--no-detach");
    kept.await_reason(60, "Detached", "NotWanted");
    assert_eq!(kept.again().json["metadata"]["labels"]["app"], "kept");
    bare.release();
    kept.release();
}

#[test]
fn an_object_that_names_its_pod_alone_is_filled_in_and_isolates() {
    let namespace = Namespace::new("named");
    let pod = namespace.pod("web", "b");
    apply(
        "{apiVersion: cni-quarantine.dev/v1alpha1, kind: PodQuarantine, metadata: {name: by-name}, \
         spec: {detach: false, pod: {namespace: named, name: web}}}",
    );
    await_true(60, "it is contained", || {
        let object = get("podquarantine by-name").unwrap();
        object["status"]["verdict"] == "contained" && object["spec"]["pod"]["uid"] == pod.uid.as_str()
    });
    pod.assert_answers(false);
    pod.release();
    pod.assert_answers(true);
}

#[test]
fn probes_of_every_kind_pass_for_a_minute_s_worth_of_them() {
    let namespace = Namespace::new("probes");
    let probe = |kind: &str| format!("{{{kind}, {PROBING}}}");
    let pods: Vec<(&str, String)> = vec![
        ("http", format!("livenessProbe: {}", probe("httpGet: {port: 80, path: /index.html}"))),
        ("tcp", format!("livenessProbe: {}", probe("tcpSocket: {port: 80}"))),
        ("exec", format!("livenessProbe: {}", probe("exec: {command: [cat, /www/index.html]}"))),
        (
            "by-name",
            format!(
                "ports: [{{name: web, containerPort: 80}}], livenessProbe: {}, startupProbe: {}, readinessProbe: {}",
                probe("httpGet: {port: web, path: /index.html}"),
                probe("tcpSocket: {port: web}"),
                probe("tcpSocket: {port: 80}")
            ),
        ),
        ("started", format!("startupProbe: {}", probe("httpGet: {port: 80, path: /index.html}"))),
        (
            "grpc",
            format!(
                "lifecycle: {{postStart: {{exec: {{command: [sh, -c, 'health >/dev/null 2>&1 &']}}}}}}, livenessProbe: {}",
                probe("initialDelaySeconds: 3, grpc: {port: 9000}")
            ),
        ),
    ];
    let mut isolated = Vec::new();
    for (name, more) in &pods {
        namespace.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: a, terminationGracePeriodSeconds: 1, \
             containers: [{}]}}}}",
            web_container(more)
        ));
    }
    // The control: with probes to another port only, the same liveness probe fails and its container is restarted.
    namespace.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: control}}, spec: {{nodeName: a, terminationGracePeriodSeconds: 1, \
         containers: [{}]}}}}",
        web_container(&pods[0].1)
    ));
    for (name, _) in &pods {
        let pod = namespace.ready(name);
        pod.isolate("--no-detach");
        isolated.push(pod);
    }
    let control = namespace.ready("control");
    control.isolate("--no-detach --probe-port 81");
    await_true(60, "the control is restarted", || control.restarts() > 0);
    thread::sleep(Duration::from_secs(10));
    for pod in &isolated {
        assert_eq!(pod.restarts(), 0, "{}", pod.name);
        pod.assert_answers(false);
    }
    for pod in isolated.iter().chain([&control]) {
        pod.release();
    }
}

/// A probe of a port that the policy leaves out fails, and one of a port that it names passes, by whatever name it goes.
#[test]
fn probes_pass_to_the_ports_that_are_named_and_to_no_others() {
    let namespace = Namespace::new("ports");
    let second = |name: &str, more: &str| {
        format!(
            "{{name: {name}, image: 'local/box:1', imagePullPolicy: Never, command: [httpd, -f, -p, '8081', -h, /www], \
             ports: [{{name: admin, containerPort: 8081}}], {more}}}"
        )
    };
    let pod = |name: &str, web: &str, admin: &str| {
        namespace.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, spec: {{nodeName: b, terminationGracePeriodSeconds: 1, \
             containers: [{}, {}]}}}}",
            web_container(web),
            second("admin", admin)
        ));
    };
    let alive = format!("livenessProbe: {{httpGet: {{port: admin, path: /index.html}}, {PROBING}}}");
    pod("admin-lives", &format!("readinessProbe: {{tcpSocket: {{port: 80}}, {PROBING}}}"), &alive);
    pod("web-lives", &format!("livenessProbe: {{tcpSocket: {{port: 80}}, {PROBING}}}"), &alive);
    let (admin, web) = (namespace.ready("admin-lives"), namespace.ready("web-lives"));
    for pod in [&admin, &web] {
        pod.isolate("--no-detach --probe-port 8081");
        pod.assert_answers(false);
    }
    await_true(60, "the one whose probe has another port is restarted", || web.restarts() > 0);
    await_true(60, "its readiness probe has another port too", || !admin.again().is_ready());
    assert_eq!(admin.restarts(), 0);
    admin.release();
    web.release();
    await_true(60, "it is ready again", || admin.again().is_ready());
}

/// Whoever may delete it deletes it; what it does before it ends is inside it, and goes on.
#[test]
fn an_isolated_pod_that_is_deleted_does_what_it_does_before_it_stops() {
    let namespace = Namespace::new("stopping");
    namespace.apply(&format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: web}}, spec: {{nodeName: a, terminationGracePeriodSeconds: 20, \
         volumes: [{{name: out, hostPath: {{path: /tmp/stopping, type: DirectoryOrCreate}}}}], containers: [{}]}}}}",
        web_container(
            "volumeMounts: [{name: out, mountPath: /out}], \
             lifecycle: {preStop: {exec: {command: [sh, -c, 'sleep 1; wget -qO /out/own http://127.0.0.1/index.html']}}}"
        )
    ));
    let pod = namespace.ready("web");
    pod.isolate("--no-detach");
    namespace.kubectl("delete pod web --wait --timeout=60s");
    assert_eq!(on("a", "cat /tmp/stopping/own"), "hello\n", "it reached itself, and nobody else");
    pod.await_reason(60, "Contained", "TargetGone");
}

/// The kubelet makes it of a file, and the API server knows a copy of it alone, with another UID.
#[test]
fn a_static_pod_is_isolated_and_released_like_any_other() {
    let namespace = Namespace::new("static");
    let file = "/etc/kubernetes/manifests/web.yaml";
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, namespace: static}}\n\
         spec: {{terminationGracePeriodSeconds: 1, containers: [{}]}}",
        web_container("")
    );
    on("a", &format!("cat >{file} <<'X'\n{manifest}\nX"));
    let gone = crate::lab::AtEnd(|| drop(on("a", &format!("rm -f {file}"))));
    await_true(60, "the API server has a copy", || get("-n static pod web-a").is_some());
    let copy = namespace.ready("web-a");
    copy.assert_answers(true);
    quarantine_ok("-n static isolate web-a --wait --reason beacon");
    copy.assert_answers(false);
    let uid = copy.json["metadata"]["annotations"]["kubernetes.io/config.hash"].as_str().unwrap();
    assert_ne!(uid, copy.uid);
    let object = get(&format!("podquarantine {uid}")).unwrap();
    assert_eq!(object["status"]["verdict"], "contained");
    // The copy is only a copy.
    namespace.kubectl("delete pod web-a --wait=false --grace-period=0 --force");
    await_true(60, "the kubelet makes another copy", || {
        get("-n static pod web-a").is_some_and(|pod| pod["metadata"]["uid"] != copy.uid.as_str())
    });
    copy.assert_answers(false);
    quarantine_ok("-n static release web-a --wait");
    copy.assert_answers(true);
    drop(gone);
    await_true(60, "it goes with its file", || get("-n static pod web-a").is_none());
}

#[test]
fn a_selector_means_many_and_is_listed_before_it_is_done() {
    let namespace = Namespace::new("many");
    namespace.apply(&format!(
        "{{apiVersion: apps/v1, kind: ReplicaSet, metadata: {{name: web}}, spec: {{replicas: 3, \
         selector: {{matchLabels: {{app: web}}}}, template: {}}}}}",
        template("app: web")
    ));
    await_true(60, "three are ready", || namespace.pods("app=web").iter().filter(|pod| pod.is_ready()).count() == 3);
    let pods = namespace.pods("app=web");
    let (code, said) = quarantine("-n many isolate -l app=web");
    assert!(code == 2 && pods.iter().all(|pod| said.contains(&pod.name)), "{code} {said}");
    assert!(pods.iter().all(|pod| pod.object().is_none()));
    let (code, said) = quarantine("-n many isolate -l app=web --yes --dry-run=server");
    assert!(code == 0 && pods.iter().all(|pod| pod.object().is_none()), "{said}");
    let (code, said) = quarantine("-n many isolate -l app=web --yes --wait --no-detach");
    assert_eq!(code, 0, "{said}");
    for pod in &pods {
        pod.assert_answers(false);
    }
    let (code, said) = quarantine("-n many release -l app=web --yes --wait");
    assert_eq!(code, 0, "{said}");
    for pod in &pods {
        pod.assert_answers(true);
    }
}

#[test]
fn the_command_and_the_api_server_show_what_is_so() {
    let namespace = Namespace::new("shown");
    let pod = namespace.pod("web", "a");
    pod.isolate("--reason beacon --case IR-2041 --no-detach");
    let row = |text: &str, name: &str| text.lines().find(|line| line.contains(name)).unwrap_or_default().to_owned();
    let listed = row(&quarantine_ok("-n shown list"), "web");
    let got = row(&kubectl("get podquarantines"), &pod.uid);
    for words in [&listed, &got] {
        for word in ["shown", "web", " a ", "contained", "Contained"] {
            assert!(words.contains(word), "{word:?} is not in {words}");
        }
    }
    assert!(got.len() < 140, "it fits a terminal: {got}");
    let said = quarantine_ok("-n shown status web");
    for word in ["contained", "beacon", "IR-2041", "loopback+probes", "pod+host", "admin"] {
        assert!(said.contains(word), "{word} is not in {said}");
    }
    // What it tries is seen in the object.
    pod.exec("nc -w 1 10.200.0.1 4444 </dev/null; true");
    await_true(60, "the attempt is listed", || quarantine_ok("-n shown status web").contains("10.200.0.1 port 4444"));
    assert!(pod.object().unwrap()["status"]["drops"]["out"].as_i64().unwrap() > 0);
    // Who watches sees the release.
    let watching = Saying::of("-n shown status web -w");
    watching.await_line("contained True, Contained");
    pod.release();
    watching.await_line("contained False, Released");
}
