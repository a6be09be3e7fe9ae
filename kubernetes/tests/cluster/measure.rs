//! What it takes: from the API server's answer to the last packet, memory, requests at rest. It prints, and claims nothing;
//! `scripts/bench-cluster` runs it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;

use quarantine_kube::api::{PodQuarantine, PodQuarantineSpec, PodRef, Release};

use crate::lab::{Namespace, Pod, await_true, kubectl, on};

/// Isolations of each measurement.
const ROUNDS: usize = 100;

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

/// `ping` a thousand times a second, and when its last answer came.
struct Pinging {
    process: Child,
    last: Arc<Mutex<f64>>,
}

impl Pinging {
    fn at(pod: &Pod) -> Self {
        let mut process = Command::new("ping")
            .args(["-n", "-D", "-i", "0.001", &pod.addresses[0].to_string()])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let last = Arc::new(Mutex::new(0.0));
        let lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let seen = last.clone();
        thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                let at = line.strip_prefix('[').and_then(|rest| rest.split(']').next()?.parse().ok());
                if let Some(at) = at.filter(|_| line.contains("bytes from")) {
                    *seen.lock().unwrap() = at;
                }
            }
        });
        Self { process, last }
    }

    fn last(&self) -> f64 {
        *self.last.lock().unwrap()
    }
}

impl Drop for Pinging {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn percentile(sorted: &[f64], part: f64) -> f64 {
    let index = (part * (sorted.len() - 1) as f64).round();
    sorted[index as usize]
}

fn said(what: &str, mut milliseconds: Vec<f64>) {
    milliseconds.sort_by(f64::total_cmp);
    println!(
        "{what}: median {:.1} ms, p90 {:.1} ms, p99 {:.1} ms, of {}",
        percentile(&milliseconds, 0.5),
        percentile(&milliseconds, 0.9),
        percentile(&milliseconds, 0.99),
        milliseconds.len()
    );
}

fn object(pod: &Pod) -> PodQuarantine {
    let reference = PodRef {
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        uid: Some(pod.uid.clone()),
        node_name: Some(pod.node.clone()),
    };
    PodQuarantine::new(&pod.uid, PodQuarantineSpec { detach: false, ..PodQuarantineSpec::of(reference) })
}

/// Isolates and releases again and again: how long after the request, and after its answer, the last packet passed.
async fn rounds(objects: &Api<PodQuarantine>, pod: &Pod) -> (Vec<f64>, Vec<f64>) {
    let (mut from_request, mut from_answer) = (Vec::new(), Vec::new());
    let pinging = Pinging::at(pod);
    for _ in 0..ROUNDS {
        while now() - pinging.last() > 0.01 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let asked = now();
        objects.create(&PostParams::default(), &object(pod)).await.unwrap();
        let answered = now();
        tokio::time::sleep(Duration::from_millis(150)).await;
        // It has stopped when nothing has come for so long.
        while now() - pinging.last() < 0.1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        from_request.push((pinging.last() - asked) * 1000.0);
        from_answer.push((pinging.last() - answered) * 1000.0);
        let release = json!({ "spec": { "release": Release { by: "admin".into(), reason: None } } });
        objects.patch(&pod.uid, &PatchParams::default(), &Patch::Merge(release)).await.unwrap();
        objects.delete(&pod.uid, &DeleteParams::default()).await.unwrap();
    }
    (from_request, from_answer)
}

/// The memory of a program of a node, in KiB.
fn memory(node: &str, command: &str) -> String {
    let line = format!(
        "for p in /proc/[0-9]*; do if tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^{command}'; then \
         grep -E 'VmRSS|RssAnon' $p/status | tr -s '\\t ' ' ' | tr '\\n' ' '; fi; done"
    );
    on(node, &line).trim().to_owned()
}

/// How many requests an account has made of the API server, by its audit of flow control: none is kept, so its log of requests is
/// read from the metrics, which know verbs and resources.
fn requests() -> Vec<(String, f64)> {
    let metrics = kubectl("get --raw /metrics");
    let lines = metrics.lines().filter(|line| {
        line.starts_with("apiserver_request_total{") && (line.contains("podquarantines") || line.contains("leases"))
    });
    lines
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

#[test]
#[ignore = "it measures, for ten minutes; scripts/bench-cluster runs it"]
fn from_the_answer_to_the_last_packet() {
    let namespace = Namespace::new("measured");
    let pod = namespace.pod("web", "b");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = kube::config::KubeConfigOptions::default();
        let kubeconfig = kube::config::Kubeconfig::read_from(crate::lab::admin()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let objects: Api<PodQuarantine> = Api::all(Client::try_from(config).unwrap());
        let mut standing = 0;
        for others in [0, 99, 999] {
            while standing < others {
                // Of pods that are no more, half of them this node's.
                let node = if standing % 2 == 0 { "a" } else { "b" };
                let name = format!("other-{standing}");
                let reference = PodRef {
                    namespace: "measured".into(),
                    name: name.clone(),
                    uid: Some(name.clone()),
                    node_name: Some(node.into()),
                };
                let spec = PodQuarantineSpec { detach: false, ..PodQuarantineSpec::of(reference) };
                objects.create(&PostParams::default(), &PodQuarantine::new(&name, spec)).await.unwrap();
                standing += 1;
            }
            let last = format!("other-{}", others.max(1) - 1);
            while others > 0 && objects.get(&last).await.unwrap().status.is_none() {
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
            tokio::time::sleep(Duration::from_secs(10)).await;
            let (from_request, from_answer) = rounds(&objects, &pod).await;
            said(&format!("{} objects, request to last packet", others + 1), from_request);
            said(&format!("{} objects, answer to last packet", others + 1), from_answer);
            println!("{} objects, node:       {}", others + 1, memory("b", "/bin/quarantine-kube node"));
            for node in ["a", "b"] {
                println!(
                    "{} objects, controller ({node}): {}",
                    others + 1,
                    memory(node, "/bin/quarantine-kube controller")
                );
            }
        }
        let before = requests();
        tokio::time::sleep(Duration::from_secs(60)).await;
        println!("requests in a minute at rest, with 1000 objects on two nodes:");
        for (name, value) in requests() {
            let was = before.iter().find(|(other, _)| *other == name).map_or(0.0, |(_, was)| *was);
            if value > was {
                println!("  {} {name}", value - was);
            }
        }
        for number in 0..standing {
            let name = format!("other-{number}");
            let release = json!({ "spec": { "release": Release { by: "admin".into(), reason: None } } });
            objects.patch(&name, &PatchParams::default(), &Patch::Merge(release)).await.unwrap();
            objects.delete(&name, &DeleteParams::default()).await.unwrap();
        }
    });
    await_true(60, "all marks are gone", || on("a", "ls /var/lib/cni/quarantine/isolated | wc -l").trim() == "0");
}
