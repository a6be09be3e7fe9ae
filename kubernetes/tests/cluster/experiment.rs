//! The experiment that the project began with: a Deployment with a liveness probe, isolated, beside one that is cut off in the
//! usual way.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::{Namespace, Pod, answers, await_true, get, on};

const SHOP: &str = r#"
apiVersion: apps/v1
kind: Deployment
metadata: {name: web}
spec:
  replicas: 2
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web, team: front}}
    spec:
      terminationGracePeriodSeconds: 1
      containers:
        - name: web
          image: local/box:1
          imagePullPolicy: Never
          command: [sh, -c, 'echo started; exec httpd -f -p 80 -h /www']
          livenessProbe: {tcpSocket: {port: 80}, periodSeconds: 2, timeoutSeconds: 5, failureThreshold: 2}
          readinessProbe: {httpGet: {port: 80, path: /index.html}, periodSeconds: 1, timeoutSeconds: 5}
        - name: side
          image: local/box:1
          imagePullPolicy: Never
          command: [sh, -c, 'sleep 100000 | nc -l -p 7000 >/tmp/received; sleep 100000']
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ipFamilyPolicy: SingleStack
  ports: [{port: 80}]
"#;

/// Ready addresses of the Service, as a proxy sees them.
fn endpoints(namespace: &str) -> Vec<std::net::IpAddr> {
    let slices = get(&format!("-n {namespace} endpointslices -l kubernetes.io/service-name=web")).unwrap();
    let slices = slices["items"].as_array().unwrap().clone();
    let endpoints = slices.iter().flat_map(|slice| slice["endpoints"].as_array().cloned().unwrap_or_default());
    endpoints
        .filter(|endpoint| endpoint["conditions"]["ready"] == true)
        .map(|endpoint| endpoint["addresses"][0].as_str().unwrap().parse().unwrap())
        .collect()
}

/// What has been received of a connection that was there before.
fn received(pod: &Pod) -> u64 {
    let line = "stat -c %s /tmp/received";
    let words = ["-n", &pod.namespace, "exec", &pod.name, "-c", "side", "--", "sh", "-c", line];
    crate::lab::kubectl_as(&crate::lab::admin(), &words, "").unwrap().trim().parse().unwrap()
}

#[test]
fn an_isolated_pod_is_cut_off_and_lives_while_another_takes_its_place() {
    let shop = Namespace::new("experiment");
    shop.apply(SHOP);
    shop.kubectl("rollout status deployment/web --timeout=180s");
    let sender = shop.pod("sender", "b");
    let pods = shop.pods("app=web");
    let [target, vendors] = &pods[..] else { panic!("two pods, and not {}", pods.len()) };
    assert_eq!(target.addresses.len(), 2, "one of each family");

    // The controls: both answer over both families, and a connection is open through which something comes all the time.
    target.assert_answers(true);
    vendors.assert_answers(true);
    target.exec("echo evidence >/tmp/evidence");
    let address = target.addresses[0];
    let stream = format!("(while :; do echo x; sleep 0.05; done | nc {address} 7000) >/dev/null 2>&1 &");
    sender.exec(&stream);
    await_true(60, "the connection carries something", || received(target) > 0);
    let before = received(target);
    await_true(60, "and goes on to", || received(target) > before);

    // A client of the Service, as kube-proxy would have it: it goes by the endpoints that it knows of.
    let ends = Arc::new(AtomicBool::new(false));
    let client = {
        let ends = ends.clone();
        thread::spawn(move || {
            let mut failed = Vec::new();
            while !ends.load(Ordering::Relaxed) {
                let known = endpoints("experiment");
                for address in known {
                    if !answers(address, Duration::from_secs(1)) {
                        failed.push((Instant::now(), address));
                    }
                }
                thread::sleep(Duration::from_millis(100));
            }
            failed
        })
    };

    let said = target.isolate("--reason beacon --case IR-2041");
    assert!(said.contains("contained"), "{said}");
    target.assert_answers(false);
    let cut = received(target);
    await_true(60, "the Service lets it go", || !endpoints("experiment").contains(&address));
    let let_go = Instant::now() + Duration::from_secs(1);

    // The usual way, beside it.
    let other = vendors.addresses[0];
    on(
        &vendors.node,
        &format!(
            "for n in /run/netns/*; do if nsenter --net=$n ip -o addr show | grep -q 'inet {other}/'; then \
             nsenter --net=$n iptables -I INPUT -j DROP; nsenter --net=$n iptables -I OUTPUT -j DROP; exit 0; fi; done; exit 1"
        ),
    );
    target.await_reason(60, "Replaced", "ReplacementReady");
    let owner = get("-n experiment deployment web").unwrap();
    assert_eq!(owner["spec"]["replicas"], 2);

    let minute = Instant::now();
    await_true(60, "the other pod is restarted by its probe", || vendors.restarts() > 0);
    thread::sleep(Duration::from_secs(60).saturating_sub(minute.elapsed()));
    let now = target.again();
    assert_eq!(now.restarts(), 0, "isolated for a minute");
    assert!(now.is_ready(), "its probes pass");
    assert_eq!(target.exec("cat /tmp/evidence"), "evidence\n");
    assert!(shop.kubectl(&format!("logs {} -c web", target.name)).contains("started"));
    assert_eq!(received(target), cut, "nothing came over the connection that was there before");
    target.assert_answers(false);
    let object = target.object().unwrap();
    assert_eq!(object["status"]["verdict"], "contained");
    assert!(object["status"]["drops"]["in"].as_i64().unwrap() > 0, "{object}");

    ends.store(true, Ordering::Relaxed);
    let failed = client.join().unwrap();
    let late: Vec<_> = failed.iter().filter(|(at, to)| *at > let_go && *to != other).collect();
    assert!(late.is_empty(), "clients of the Service failed after its endpoints had changed: {late:?}");

    // Released: it answers again, and what was on its way arrives.
    target.release();
    target.assert_answers(true);
    await_true(60, "the connection goes on", || received(target) > cut);
    assert_eq!(target.condition("Contained"), ("False".into(), "Released".into()));
    assert!(target.has_event("QuarantineContained") && target.has_event("QuarantineReleased"));
    shop.kubectl(&format!("delete pod {} --wait --timeout=30s", target.name));
    target.await_reason(60, "Contained", "Released");
}
