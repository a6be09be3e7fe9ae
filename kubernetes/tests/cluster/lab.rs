//! No tests: what the others are built of.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::Value;

/// Where the cluster is.
pub(crate) fn directory() -> PathBuf {
    PathBuf::from(std::env::var("CLUSTER").expect("CLUSTER says where the cluster is; scripts/test-cluster sets it"))
}

fn output(command: &mut Command, input: &str) -> Output {
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}"));
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    format!("{}{}", text(&output.stdout), text(&output.stderr))
}

/// Runs `kubectl` as somebody, and gives what it says where it fails.
pub(crate) fn kubectl_as(kubeconfig: &PathBuf, words: &[&str], input: &str) -> Result<String, String> {
    let mut command = Command::new(directory().join("bin/kubectl"));
    command.args(words).env("KUBECONFIG", kubeconfig);
    let output = output(&mut command, input);
    if output.status.success() { Ok(String::from_utf8_lossy(&output.stdout).into_owned()) } else { Err(said(&output)) }
}

pub(crate) fn admin() -> PathBuf {
    directory().join("run/pki/admin.conf")
}

/// Runs `kubectl`, which has to succeed. The words are split at blanks.
pub(crate) fn kubectl(words: &str) -> String {
    let words: Vec<&str> = words.split_whitespace().collect();
    kubectl_as(&admin(), &words, "").unwrap_or_else(|error| panic!("kubectl {words:?}: {error}"))
}

pub(crate) fn apply(yaml: &str) {
    kubectl_as(&admin(), &["apply", "-f", "-"], yaml).unwrap();
}

/// An object as JSON; none where there is none.
pub(crate) fn get(words: &str) -> Option<Value> {
    let words: Vec<&str> = ["get", "-o", "json"].into_iter().chain(words.split_whitespace()).collect();
    match kubectl_as(&admin(), &words, "") {
        Ok(text) => Some(serde_json::from_str(&text).unwrap()),
        Err(error) if error.contains("NotFound") || error.contains("not found") => None,
        Err(error) => panic!("kubectl {words:?}: {error}"),
    }
}

/// Runs `kubectl quarantine`: its exit code, and what it said.
pub(crate) fn quarantine(words: &str) -> (i32, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-quarantine"));
    command.args(words.split_whitespace()).env("KUBECONFIG", admin());
    let output = output(&mut command, "");
    (output.status.code().unwrap_or(-1), said(&output))
}

/// The same, where it has to succeed.
pub(crate) fn quarantine_ok(words: &str) -> String {
    let (code, said) = quarantine(words);
    assert_eq!(code, 0, "kubectl quarantine {words}: {said}");
    said
}

/// A `kubectl quarantine` that goes on until this is dropped, and what it says.
pub(crate) struct Saying {
    process: Child,
    lines: Receiver<String>,
}

impl Saying {
    pub(crate) fn of(words: &str) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kubectl-quarantine"));
        command.args(words.split_whitespace()).env("KUBECONFIG", admin()).stdout(Stdio::piped());
        let mut process = command.spawn().unwrap();
        let (said, lines) = channel();
        let output = BufReader::new(process.stdout.take().unwrap());
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| said.send(line)));
        Self { process, lines }
    }

    pub(crate) fn await_line(&self, start: &str) {
        let mut before = Vec::new();
        loop {
            match self.lines.recv_timeout(Duration::from_secs(30)) {
                Ok(line) if line.starts_with(start) => return,
                Ok(line) => before.push(line),
                Err(_) => panic!("it did not say {start:?}, but {before:#?}"),
            }
        }
    }
}

impl Drop for Saying {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Does something to a machine: `on`, `off`, `kill`, `exec`.
pub(crate) fn machine(words: &[&str]) -> Result<String, String> {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/../scripts/cluster/node");
    let mut command = Command::new(script);
    let output = output(command.arg(directory()).args(words), "");
    if output.status.success() { Ok(String::from_utf8_lossy(&output.stdout).into_owned()) } else { Err(said(&output)) }
}

/// Runs a shell's line on a node.
pub(crate) fn on(node: &str, line: &str) -> String {
    machine(&["exec", node, "/bin/bash", "-c", line]).unwrap_or_else(|error| panic!("{line} on {node}: {error}"))
}

/// Waits until something is so.
pub(crate) fn await_true(seconds: u64, what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !is_so() {
        assert!(Instant::now() < deadline, "not within {seconds} s: {what}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Done at the end, however a test ends; where it fails the test's own failure counts.
pub(crate) struct AtEnd<F: FnMut()>(pub(crate) F);

impl<F: FnMut()> Drop for AtEnd<F> {
    fn drop(&mut self) {
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| (self.0)()));
        assert!(done.is_ok() || thread::panicking(), "what the test changed could not be put back");
    }
}

/// A namespace of a test's own, which goes with it.
pub(crate) struct Namespace(pub(crate) &'static str);

impl Namespace {
    pub(crate) fn new(name: &'static str) -> Self {
        apply(&format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}"));
        await_true(60, "the namespace has its account", || get(&format!("-n {name} serviceaccount default")).is_some());
        Self(name)
    }

    pub(crate) fn kubectl(&self, words: &str) -> String {
        kubectl(&format!("-n {} {words}", self.0))
    }

    pub(crate) fn apply(&self, yaml: &str) {
        kubectl_as(&admin(), &["apply", "-n", self.0, "-f", "-"], yaml).unwrap();
    }

    /// A pod of one container that answers on port 80, on a node.
    pub(crate) fn pod(&self, name: &str, node: &str) -> Pod {
        self.apply(&format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, labels: {{app: {name}}}}}, spec: {{nodeName: {node}, \
             terminationGracePeriodSeconds: 1, containers: [{}]}}}}",
            web_container("")
        ));
        self.ready(name)
    }

    /// Waits until a pod is ready.
    pub(crate) fn ready(&self, name: &str) -> Pod {
        self.kubectl(&format!("wait --for=condition=Ready --timeout=180s pod/{name}"));
        let pod = get(&format!("-n {} pod {name}", self.0)).unwrap();
        Pod::of(&pod)
    }

    pub(crate) fn pods(&self, selector: &str) -> Vec<Pod> {
        let list = get(&format!("-n {} pods -l {selector}", self.0)).unwrap();
        list["items"].as_array().unwrap().iter().map(Pod::of).collect()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // What is isolated holds its namespace: an admin may delete it all the same.
        let _ = kubectl_as(&admin(), &["-n", self.0, "delete", "pods", "--all", "--force", "--grace-period=0"], "");
        let _ = kubectl_as(&admin(), &["delete", "namespace", self.0, "--wait=false"], "");
        let objects = get("podquarantines");
        for object in objects.iter().flat_map(|list| list["items"].as_array().unwrap()) {
            if object["spec"]["pod"]["namespace"] == self.0 {
                release_and_delete(object["metadata"]["name"].as_str().unwrap());
            }
        }
    }
}

/// Releases what an object is about, and deletes the object.
pub(crate) fn release_and_delete(object: &str) {
    let patch = r#"{"spec":{"release":{"by":"admin"}}}"#;
    let _ = kubectl_as(&admin(), &["patch", "podquarantine", object, "--type=merge", "-p", patch], "");
    let _ = kubectl_as(&admin(), &["delete", "podquarantine", object], "");
}

/// A container that answers on port 80; `more` are further keys of it.
pub(crate) fn web_container(more: &str) -> String {
    format!(
        "{{name: web, image: 'local/box:1', imagePullPolicy: Never, command: [httpd, -f, -p, '80', -h, /www]{}{more}}}",
        if more.is_empty() { "" } else { ", " }
    )
}

/// A pod as it was when it was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) namespace: String,
    pub(crate) name: String,
    pub(crate) uid: String,
    pub(crate) node: String,
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) json: Value,
}

impl Pod {
    fn of(json: &Value) -> Self {
        let text = |pointer: &str| json.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let addresses = json["status"]["podIPs"].as_array().into_iter().flatten();
        Self {
            namespace: text("/metadata/namespace"),
            name: text("/metadata/name"),
            uid: text("/metadata/uid"),
            node: text("/spec/nodeName"),
            addresses: addresses.map(|address| address["ip"].as_str().unwrap().parse().unwrap()).collect(),
            json: json.clone(),
        }
    }

    pub(crate) fn again(&self) -> Self {
        Self::of(&get(&format!("-n {} pod {}", self.namespace, self.name)).unwrap())
    }

    pub(crate) fn is_ready(&self) -> bool {
        let conditions = self.json["status"]["conditions"].as_array().into_iter().flatten();
        conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
    }

    /// How often its containers were started again.
    pub(crate) fn restarts(&self) -> i64 {
        let pod = self.again();
        let statuses = pod.json["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
        statuses.iter().map(|status| status["restartCount"].as_i64().unwrap()).sum()
    }

    /// Runs a shell's line in its container `web`.
    pub(crate) fn exec(&self, line: &str) -> String {
        let words = ["-n", &self.namespace, "exec", &self.name, "-c", "web", "--", "sh", "-c", line];
        kubectl_as(&admin(), &words, "").unwrap()
    }

    pub(crate) fn isolate(&self, flags: &str) -> String {
        quarantine_ok(&format!("-n {} isolate {} --wait {flags}", self.namespace, self.name))
    }

    pub(crate) fn release(&self) -> String {
        quarantine_ok(&format!("-n {} release {} --wait", self.namespace, self.name))
    }

    /// Whether it answers a request, over each of its addresses.
    pub(crate) fn answers(&self) -> Vec<bool> {
        assert!(!self.addresses.is_empty(), "{} has no address", self.name);
        self.addresses.iter().map(|&address| answers(address, Duration::from_secs(1))).collect()
    }

    /// Whether all of its addresses answer, or all do not, as `wanted`.
    pub(crate) fn assert_answers(&self, wanted: bool) {
        assert_eq!(self.answers(), vec![wanted; self.addresses.len()], "{}: {:?}", self.name, self.addresses);
    }

    /// The object that is about it.
    pub(crate) fn object(&self) -> Option<Value> {
        get(&format!("podquarantine {}", self.uid))
    }

    /// Status and reason of a condition of its object.
    pub(crate) fn condition(&self, kind: &str) -> (String, String) {
        let object = self.object().unwrap_or_default();
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        let found = conditions.iter().find(|condition| condition["type"] == kind);
        let text = |key: &str| found.and_then(|found| found[key].as_str()).unwrap_or_default().to_owned();
        (text("status"), text("reason"))
    }

    pub(crate) fn await_reason(&self, seconds: u64, kind: &str, reason: &str) {
        let mut last = (String::new(), String::new());
        let deadline = Instant::now() + Duration::from_secs(seconds);
        while last.1 != reason {
            assert!(Instant::now() < deadline, "{} of {} is {last:?} after {seconds} s, not {reason}", kind, self.name);
            thread::sleep(Duration::from_millis(100));
            last = self.condition(kind);
        }
    }

    /// Whether the pod has an event of this reason.
    pub(crate) fn has_event(&self, reason: &str) -> bool {
        let selector = format!("involvedObject.uid={},reason={reason}", self.uid);
        let events = get(&format!("-n {} events --field-selector {selector}", self.namespace)).unwrap();
        !events["items"].as_array().unwrap().is_empty()
    }
}

/// Whether a web server answers there.
pub(crate) fn answers(address: IpAddr, patience: Duration) -> bool {
    answers_at(SocketAddr::new(address, 80), patience)
}

/// The same on a port.
pub(crate) fn answers_at(address: SocketAddr, patience: Duration) -> bool {
    let Ok(mut stream) = TcpStream::connect_timeout(&address, patience) else { return false };
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut answer = String::new();
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n").is_ok()
        && stream.read_to_string(&mut answer).is_ok()
        && answer.contains("hello")
}

/// Something that tries all the time to reach a pod, and counts how often it did.
pub(crate) struct Knocking {
    reached: Arc<AtomicU64>,
    tried: Arc<AtomicU64>,
    ends: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Knocking {
    pub(crate) fn at(pod: &Pod) -> Self {
        let (reached, tried) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let ends = Arc::new(AtomicBool::new(false));
        let threads = pod.addresses.iter().map(|&address| {
            let (reached, tried, ends) = (reached.clone(), tried.clone(), ends.clone());
            thread::spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    tried.fetch_add(1, Ordering::Relaxed);
                    if answers(address, Duration::from_millis(300)) {
                        reached.fetch_add(1, Ordering::Relaxed);
                    }
                    thread::sleep(Duration::from_millis(20));
                }
            })
        });
        let threads = threads.collect();
        Self { reached, tried, ends, threads }
    }

    /// How often it tried, and how often it was answered.
    pub(crate) fn end(self) -> (u64, u64) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads {
            thread.join().unwrap();
        }
        (self.tried.load(Ordering::Relaxed), self.reached.load(Ordering::Relaxed))
    }

    pub(crate) fn assert_never_answered_for(self, seconds: u64) {
        thread::sleep(Duration::from_secs(seconds));
        self.assert_never_answered();
    }

    pub(crate) fn assert_never_answered(self) {
        let (tried, reached) = self.end();
        assert!(tried > 3 && reached == 0, "{reached} of {tried} were answered");
    }
}

/// A kubeconfig of an account, with a token of its own.
pub(crate) fn kubeconfig_of(namespace: &str, account: &str, bound_to_node: Option<&str>) -> PathBuf {
    let node = bound_to_node.map(|node| format!("--bound-object-kind Node --bound-object-name {node}"));
    let token = kubectl(&format!("-n {namespace} create token {account} {}", node.unwrap_or_default()));
    let name = format!("{account}-{}.conf", bound_to_node.unwrap_or("any"));
    let path = directory().join("run/pki").join(name);
    let authority = directory().join("run/pki/ca.crt");
    let config = format!(
        "{{apiVersion: v1, kind: Config, current-context: c, \
         clusters: [{{name: k, cluster: {{server: 'https://10.96.0.1', certificate-authority: '{}'}}}}], \
         users: [{{name: u, user: {{token: {}}}}}], contexts: [{{name: c, context: {{cluster: k, user: u}}}}]}}",
        authority.display(),
        token.trim()
    );
    std::fs::write(&path, config).unwrap();
    path
}

/// Something that one of the parts asked of the API server.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Request {
    pub(crate) account: String,
    pub(crate) verb: String,
    pub(crate) resource: String,
}

/// All that the accounts of the parts have asked for since the cluster came up, by the API server's audit log; a watch when it
/// begins.
pub(crate) fn requests() -> Vec<Request> {
    let log = std::fs::read_to_string(directory().join("run/plane/log/audit")).unwrap();
    let events = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let request = |event: Value| {
        let text = |pointer: &str| event.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (verb, stage) = (text("/verb"), text("/stage"));
        let (resource, part) = (text("/objectRef/resource"), text("/objectRef/subresource"));
        (stage == if verb == "watch" { "ResponseStarted" } else { "ResponseComplete" }).then(|| Request {
            account: text("/user/username").rsplit(':').next().unwrap_or_default().to_owned(),
            verb,
            resource: if part.is_empty() { resource } else { format!("{resource}/{part}") },
        })
    };
    events.filter_map(request).collect()
}

/// How many there are of each.
pub(crate) fn counted(requests: &[Request]) -> BTreeMap<Request, usize> {
    let mut counted = BTreeMap::new();
    for request in requests {
        *counted.entry(request.clone()).or_default() += 1;
    }
    counted
}
