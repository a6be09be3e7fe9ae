//! What it takes: from the API server's answer to the last packet, memory, requests at rest; beside a `NetworkPolicy` where there
//! is an agent for these. It prints tables, and claims nothing; `scripts/bench-cluster` runs it.

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

use crate::lab::{Namespace, Pod, Request, await_true, counted, on, requests};

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
    /// Rows of the table: objects, what was done and what saw it, from where; median, 90th and 99th percentile, how many.
    fn rows(self, objects: usize, what: &str) -> String {
        let row = |from: &str, mut milliseconds: Vec<f64>| {
            milliseconds.sort_by(f64::total_cmp);
            let [median, most, nearly_all] = [0.5, 0.9, 0.99].map(|part| percentile(&milliseconds, part));
            let count = milliseconds.len();
            format!("| {objects} | {what} | {from} | {median:.1} ms | {most:.1} | {nearly_all:.1} | {count} |\n")
        };
        row("request", self.from_request) + &row("answer", self.from_answer)
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

/// The memory of a program on whichever nodes it runs, in MB: all that is resident, and what of it is not of a file.
fn memory(command: &str) -> String {
    let line = format!(
        "for p in /proc/[0-9]*; do if tr '\\0' ' ' <$p/cmdline 2>/dev/null | grep -q '^{command}'; then \
         grep -E 'VmRSS|RssAnon' $p/status; fi; done"
    );
    let text = ["a", "b"].map(|node| on(node, &line)).concat();
    let most = |key: &str| {
        let values =
            text.lines().filter_map(|line| line.strip_prefix(key)?.split_whitespace().nth(1)?.parse::<f64>().ok());
        values.fold(0.0, f64::max) / 1000.0
    };
    format!("{:.1} | {:.1}", most("VmRSS"), most("RssAnon"))
}

#[test]
#[ignore = "it measures, for a quarter of an hour; scripts/bench-cluster runs it"]
fn from_the_answer_to_the_last_packet() {
    let namespace = Namespace::new("measured");
    let pod = namespace.pod("web", "b");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let report = runtime.block_on(measure(&pod));
    println!("{report}");
    if let Some(path) = std::env::var_os("CLUSTER_REPORT") {
        std::fs::write(path, report).unwrap();
    }
    await_true(60, "all marks are gone", || on("a", "ls /var/lib/cni/quarantine/isolated | wc -l").trim() == "0");
}

/// Objects of pods that are no more, as many as are to stand; half of them are of the measured node.
async fn fill(objects: &Api<PodQuarantine>, standing: std::ops::Range<usize>) {
    for number in standing.clone() {
        let name = format!("other-{number}");
        let reference = PodRef {
            namespace: "measured".into(),
            name: name.clone(),
            uid: Some(name.clone()),
            node_name: Some(if number % 2 == 0 { "a" } else { "b" }.into()),
        };
        let spec = PodQuarantineSpec { detach: false, ..PodQuarantineSpec::of(reference) };
        objects.create(&PostParams::default(), &PodQuarantine::new(&name, spec)).await.unwrap();
    }
    for number in standing {
        while objects.get(&format!("other-{number}")).await.unwrap().status.is_none() {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
    tokio::time::sleep(Duration::from_secs(10)).await;
}

async fn measure(pod: &Pod) -> String {
    let options = kube::config::KubeConfigOptions::default();
    let kubeconfig = kube::config::Kubeconfig::read_from(crate::lab::admin()).unwrap();
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap();
    let client = Client::try_from(config.clone()).unwrap();
    let objects: Api<PodQuarantine> = Api::all(client.clone());
    hollow_nodes(&config, HOLLOW);
    let mut times = String::from(
        "| objects | what was written | from its | to the last packet: median | p90 | p99 | n |\n|--:|---|---|--:|--:|--:|--:|\n",
    );
    let mut memories =
        String::from("| objects | node: resident MB | of it anonymous | controller: resident MB | of it anonymous |\n");
    memories += "|--:|--:|--:|--:|--:|\n";
    let mut standing = 0;
    for others in [0, 99, 999] {
        fill(&objects, standing..others).await;
        standing = others;
        let count = others + 1;
        times +=
            &rounds(&objects, pod, Pinging::at(pod)).await.rows(count, "PodQuarantine; a flow that was there (ping)");
        if std::env::var_os("NETWORK_POLICIES").is_some() {
            times += &rounds(&objects, pod, Knocking::at(pod)).await.rows(count, "PodQuarantine; new flows");
            times += &policy_rounds(client.clone(), pod).await.rows(count, "NetworkPolicy, kube-router; new flows");
        }
        let [node, controller] = ["node", "controller"].map(|part| memory(&format!("/bin/quarantine-kube {part}")));
        memories += &format!("| {count} | {node} | {controller} |\n");
    }
    let before = requests().len();
    tokio::time::sleep(Duration::from_secs(60)).await;
    let mut asked = String::from("| account | asks | of | in a minute |\n|---|---|---|--:|\n");
    for (Request { account, verb, resource }, count) in counted(&requests()[before..]) {
        asked += &format!("| {account} | {verb} | {resource} | {count} |\n");
    }
    for number in 0..standing {
        let name = format!("other-{number}");
        let release = json!({ "spec": { "release": Release { by: "admin".into(), reason: None } } });
        objects.patch(&name, &PatchParams::default(), &Patch::Merge(release)).await.unwrap();
        objects.delete(&name, &DeleteParams::default()).await.unwrap();
    }
    format!(
        "### From the API server to the last packet\n\n\
         Two nodes, and {HOLLOW} more that watch their objects; API server and etcd on the same cores. Half of the objects are the measured \
         node's. The answer is the API server's own, to whoever wrote the object.\n\n{times}\n\
         ### Memory\n\n{memories}\n\
         ### Requests to the API server at rest, with 1000 objects on two nodes\n\n\
         By its audit log: all that the accounts of the parts asked for.\n\n{asked}"
    )
}
