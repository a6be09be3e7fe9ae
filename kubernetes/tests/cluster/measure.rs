//! What it takes: from the API server's answer to the last packet, memory, requests at rest; beside a `NetworkPolicy` where there
//! is an agent for these. It prints, and claims nothing; `scripts/bench-cluster` runs it.

use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::StreamExt as _;
use kube::api::{DeleteParams, DynamicObject, Patch, PatchParams, PostParams};
use kube::runtime::watcher;
use kube::{Api, Client};
use serde_json::json;

use quarantine_kube::api::{PodQuarantine, PodQuarantineSpec, PodRef, Release};

use crate::lab::{Namespace, Pod, await_true, kubectl, on};

/// Isolations of each measurement; `ROUNDS` says another number, to see whether it runs.
fn rounds_each() -> usize {
    std::env::var("ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(100)
}

/// Nodes that watch besides the two that are there.
const HOLLOW: usize = 98;

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
}

impl Drop for Pinging {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Opens a connection after the other to a port where nobody listens: each refusal is a packet that came through, of a flow that is
/// new. (An agent for `NetworkPolicy` may let flows live that it knows.)
struct Knocking {
    last: Arc<Mutex<f64>>,
    ends: Arc<AtomicBool>,
}

impl Knocking {
    fn at(pod: &Pod) -> Self {
        let (last, ends) = (Arc::new(Mutex::new(0.0)), Arc::new(AtomicBool::new(false)));
        let address = SocketAddr::new(pod.addresses[0], 9);
        let knocking = Self { last: last.clone(), ends: ends.clone() };
        thread::spawn(move || {
            while !ends.load(Ordering::Relaxed) {
                let at = now();
                let refused = TcpStream::connect_timeout(&address, Duration::from_millis(50));
                if refused.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused) {
                    *last.lock().unwrap() = at;
                }
                thread::sleep(Duration::from_micros(500));
            }
        });
        knocking
    }
}

impl Drop for Knocking {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
    }
}

/// Something that says when a packet last came through.
trait Witness {
    fn last(&self) -> f64;
}

impl Witness for Knocking {
    fn last(&self) -> f64 {
        *self.last.lock().unwrap()
    }
}

impl Witness for Pinging {
    fn last(&self) -> f64 {
        *self.last.lock().unwrap()
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

/// How long after a request, and after its answer, the last packet passed.
#[derive(Default)]
struct Times {
    from_request: Vec<f64>,
    from_answer: Vec<f64>,
}

impl Times {
    fn say(self, what: &str) {
        said(&format!("{what}, request to last packet"), self.from_request);
        said(&format!("{what}, answer to last packet"), self.from_answer);
    }

    /// Asks for it, once packets pass, and waits until none does.
    async fn take(&mut self, witness: &impl Witness, asking: impl Future<Output = ()>) {
        while now() - witness.last() > 0.01 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let asked = now();
        asking.await;
        let answered = now();
        tokio::time::sleep(Duration::from_millis(150)).await;
        // It has stopped when nothing has come for so long.
        while now() - witness.last() < 0.1 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.from_request.push((witness.last() - asked) * 1000.0);
        self.from_answer.push((witness.last() - answered) * 1000.0);
    }
}

/// Isolates and releases again and again.
async fn rounds(objects: &Api<PodQuarantine>, pod: &Pod, witness: impl Witness) -> Times {
    let mut times = Times::default();
    for _ in 0..rounds_each() {
        let asking = async { drop(objects.create(&PostParams::default(), &object(pod)).await.unwrap()) };
        times.take(&witness, asking).await;
        let release = json!({ "spec": { "release": Release { by: "admin".into(), reason: None } } });
        objects.patch(&pod.uid, &PatchParams::default(), &Patch::Merge(release)).await.unwrap();
        objects.delete(&pod.uid, &DeleteParams::default()).await.unwrap();
    }
    times
}

/// The same by a policy that lets nothing in or out.
async fn policy_rounds(client: Client, pod: &Pod) -> Times {
    let resource = kube::api::ApiResource::erase::<k8s_openapi::api::networking::v1::NetworkPolicy>(&());
    let policies: Api<DynamicObject> = Api::namespaced_with(client, &pod.namespace, &resource);
    let spec = json!({ "podSelector": { "matchLabels": { "app": pod.name } }, "policyTypes": ["Ingress", "Egress"] });
    let policy = DynamicObject::new("deny", &resource).data(json!({ "spec": spec }));
    let (witness, mut times) = (Knocking::at(pod), Times::default());
    for _ in 0..rounds_each() {
        let asking = async { drop(policies.create(&PostParams::default(), &policy).await.unwrap()) };
        times.take(&witness, asking).await;
        policies.delete("deny", &DeleteParams::default()).await.unwrap();
    }
    times
}

/// Nodes that watch their objects like any other, each over a connection of its own, and have none.
fn hollow_nodes(config: &kube::Config, count: usize) {
    for number in 0..count {
        let objects: Api<PodQuarantine> = Api::all(Client::try_from(config.clone()).unwrap());
        let field = format!("spec.pod.nodeName=hollow-{number}");
        let mut events = Box::pin(watcher(objects, watcher::Config::default().fields(&field)));
        tokio::spawn(async move { while events.next().await.is_some() {} });
    }
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
#[ignore = "it measures, for a quarter of an hour; scripts/bench-cluster runs it"]
fn from_the_answer_to_the_last_packet() {
    let namespace = Namespace::new("measured");
    let pod = namespace.pod("web", "b");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let options = kube::config::KubeConfigOptions::default();
        let kubeconfig = kube::config::Kubeconfig::read_from(crate::lab::admin()).unwrap();
        let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
        let client = Client::try_from(config.clone()).unwrap();
        let objects: Api<PodQuarantine> = Api::all(client.clone());
        hollow_nodes(&config, HOLLOW);
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
            rounds(&objects, &pod, Pinging::at(&pod)).await.say(&format!("{} objects", others + 1));
            if std::env::var_os("NETWORK_POLICIES").is_some() {
                rounds(&objects, &pod, Knocking::at(&pod)).await.say(&format!("{} objects, new flows", others + 1));
                policy_rounds(client.clone(), &pod).await.say("NetworkPolicy, new flows");
            }
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
        println!("requests in a minute at rest, with 1000 objects on two nodes, and {HOLLOW} that watch:");
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
