//! The CNI protocol, line by line of CNI.md (A1 … I37), against the product's binary.
//!
//! Here is what the modules share: a [`Node`] with a state directory and [`Pod`]s on it, a [`Call`] of the plugin, and
//! the strict reading of its [`Outcome`]: exactly one JSON document on stdout, or none. Configs and results to compare
//! with are in `testdata/cni/<version>/`. What the rulesets let through is other modules' business.

mod add;
mod check;
mod concurrency;
mod config;
mod del;
mod environment;
mod gc;
mod status;
mod version;

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::lab::{Netns, eventually};

/// What the product says it supports, in this order.
pub(crate) const VERSIONS: [&str; 5] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];

/// A call that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// A network namespace that stands for the machine, and a state directory.
pub(crate) struct Node {
    pub(crate) netns: Netns,
    state: tempfile::TempDir,
    pods: AtomicU8,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self {
            netns: Netns::new("node"),
            // tempfile makes it 0700 and ours, which is what the product asks for.
            state: tempfile::Builder::new().prefix("quarantine-protocol").tempdir().unwrap(),
            pods: AtomicU8::new(0),
        }
    }

    /// A pod with `eth0`, a veth to the node.
    pub(crate) fn pod(&self) -> Pod {
        self.pod_with_interface("eth0")
    }

    pub(crate) fn pod_with_interface(&self, ifname: &str) -> Pod {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let netns = Netns::new("pod");
        self.netns.ip(&format!(
            "link add h{number} type veth peer name {ifname} netns {}\n\
             link set h{number} up\n\
             addr add 10.77.{number}.1/24 dev h{number}",
            netns.name()
        ));
        netns.ip(&format!("link set {ifname} up\naddr add 10.77.{number}.2/24 dev {ifname}"));
        Pod { id: format!("sandbox-{}", netns.name()), netns, ifname: ifname.to_owned(), number }
    }

    pub(crate) fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// The least conflist entry that there is, in the newest version, with this node's state directory.
    pub(crate) fn config(&self) -> Value {
        json!({ "cniVersion": "1.1.0", "name": "testnet", "type": "quarantine", "stateDir": self.state_dir() })
    }

    /// A call of the plugin that has this command, nothing else in its environment, and the least config.
    pub(crate) fn call(&self, command: &str) -> Call<'_> {
        self.bare_call().env("CNI_COMMAND", command).config(self.config())
    }

    /// A call with an empty environment and an empty stdin.
    pub(crate) fn bare_call(&self) -> Call<'_> {
        Call {
            node: self,
            program: crate::lab::program().into(),
            env: BTreeMap::new(),
            stdin: Stdin::Bytes(Vec::new()),
            stdout: None,
            uid: None,
            has_netfilter: true,
        }
    }

    /// Calls `command` for the pod's attachment, with a full config.
    pub(crate) fn plugin(&self, command: &str, pod: &Pod) -> Outcome {
        self.call(command).sandbox(pod).config(pod.chained_config(self)).run()
    }

    /// `isolated/<key>`, its directory made where it is not there yet.
    pub(crate) fn mark_path(&self, key: &str) -> PathBuf {
        let directory = self.state_dir().join("isolated");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::set_permissions(&directory, PermissionsExt::from_mode(0o700)).unwrap();
        directory.join(key)
    }

    /// Writes a mark, as an operator would.
    pub(crate) fn mark(&self, key: &str, text: impl AsRef<[u8]>) {
        std::fs::write(self.mark_path(key), text).unwrap();
    }

    /// The names in `isolated/`, sorted.
    pub(crate) fn marks(&self) -> Vec<String> {
        tree(&self.state_dir().join("isolated"))
    }

    /// What lies under `attachments/`, directories too, sorted.
    pub(crate) fn records(&self) -> Vec<String> {
        tree(&self.state_dir().join("attachments"))
    }

    /// Where ADD writes the record of the pod's attachment.
    pub(crate) fn record_path(&self, pod: &Pod) -> PathBuf {
        self.state_dir().join("attachments").join(&pod.id).join(format!("{}.json", pod.ifname))
    }

    /// No table in the node's namespace, no mark, no record.
    #[track_caller]
    pub(crate) fn is_untouched(&self) {
        assert_eq!(ruleset(&self.netns), "", "the node has tables");
        assert_eq!(self.records(), [""; 0], "records were left");
        assert_eq!(self.marks(), [""; 0], "marks were left");
    }

    /// `quarantine sync`, which applies the marks to every sandbox; it must succeed.
    #[track_caller]
    pub(crate) fn sync(&self) {
        let outcome = self.try_sync();
        assert!(outcome.status.success(), "{outcome:#?}");
    }

    #[track_caller]
    pub(crate) fn try_sync(&self) -> Outcome {
        let mut command = self.netns.command(crate::lab::program());
        command.env_clear().args(["sync", "--state-dir"]).arg(self.state_dir());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        start(command, None).wait()
    }
}

/// Adds an interface that has no other end anywhere. (A bridge: not every kernel has the dummy driver.)
pub(crate) fn lone_interface(netns: &Netns, name: &str) {
    netns.ip(&format!("link add {name} type bridge\nlink set {name} up"));
}

/// What a directory holds, recursively, relative, sorted; nothing when it is not there.
fn tree(directory: &Path) -> Vec<String> {
    let mut names = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(at) = pending.pop() {
        let Ok(entries) = std::fs::read_dir(&at) else { continue };
        for entry in entries.flatten() {
            names.push(entry.path().strip_prefix(directory).unwrap().to_str().unwrap().to_owned());
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                pending.push(entry.path());
            }
        }
    }
    names.sort();
    names
}

/// The nftables ruleset of a namespace, as `nft` prints it.
pub(crate) fn ruleset(netns: &Netns) -> String {
    netns.sh("nft list ruleset")
}

/// Its rules alone, in no order: without what packets change (counters, elements of dynamic sets).
pub(crate) fn rules(netns: &Netns) -> Vec<String> {
    let mut lines: Vec<_> = netns.sh("nft --stateless --terse list ruleset").lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// What the kernel has of our two tables in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tables {
    Absent,
    /// Both there, both dormant.
    Released,
    /// Both there, neither dormant.
    Isolated,
}

/// A sandbox: a network namespace with one interface, and the container ID that it goes by.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) netns: Netns,
    pub(crate) ifname: String,
    number: u8,
}

impl Pod {
    pub(crate) fn path(&self) -> PathBuf {
        self.netns.path()
    }

    /// The node's end of its veth.
    pub(crate) fn host_end(&self) -> String {
        format!("h{}", self.number)
    }

    /// The node's address on that end.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, 1)
    }

    /// What a main plugin would have given for this pod, in the newest version.
    pub(crate) fn prev_result(&self) -> Value {
        let number = self.number;
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": format!("h{number}") },
                { "name": self.ifname, "sandbox": self.path() },
            ],
            "ips": [{ "address": format!("10.77.{number}.2/24"), "gateway": format!("10.77.{number}.1"), "interface": 1 }],
            "dns": {},
        })
    }

    /// The least config for this pod: with `prevResult`.
    pub(crate) fn chained_config(&self, node: &Node) -> Value {
        let mut config = node.config();
        config["prevResult"] = self.prev_result();
        config
    }

    #[track_caller]
    pub(crate) fn tables(&self) -> Tables {
        tables(&self.netns)
    }

    #[track_caller]
    pub(crate) fn is_untouched(&self) {
        assert_eq!(ruleset(&self.netns), "", "the pod has tables");
    }

    /// A datagram from the pod arrives on the node, given time: carriers come up when it pleases them.
    pub(crate) fn reaches_node(&self, node: &Node) -> bool {
        self.datagram_arrives(&self.socket_on(node), Duration::from_secs(10))
    }

    /// None of many datagrams from the pod arrives on the node. (Its control is [`Pod::reaches_node`] before.)
    pub(crate) fn is_cut_off_from(&self, node: &Node) -> bool {
        !self.datagram_arrives(&self.socket_on(node), Duration::from_millis(500))
    }

    /// A datagram from the pod to itself, on `lo`, arrives.
    pub(crate) fn loopback_passes(&self) -> bool {
        let receiver = self.netns.run(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
        self.datagram_arrives(&receiver, Duration::from_millis(500))
    }

    fn socket_on(&self, node: &Node) -> UdpSocket {
        node.netns.run(|| UdpSocket::bind((format!("10.77.{}.1", self.number), 0))).unwrap()
    }

    fn datagram_arrives(&self, receiver: &UdpSocket, limit: Duration) -> bool {
        receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let target = receiver.local_addr().unwrap();
        let sender = self.netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        eventually(limit, || {
            // That nothing arrives is what is asked; how the sender learns of it is not.
            let _ = sender.send_to(b"x", target);
            receiver.recv(&mut [0; 8]).is_ok()
        })
    }
}

/// What the kernel has of our two tables in this namespace; panics when the two are not alike.
#[track_caller]
pub(crate) fn tables(netns: &Netns) -> Tables {
    let ruleset = ruleset(netns);
    let table = |family: &str| {
        let (_, rest) = ruleset.split_once(&format!("table {family} quarantine {{\n"))?;
        Some(rest.lines().next().is_some_and(|line| line.trim() == "flags dormant"))
    };
    match (table("netdev"), table("inet")) {
        (None, None) => Tables::Absent,
        (Some(true), Some(true)) => Tables::Released,
        (Some(false), Some(false)) => Tables::Isolated,
        _ => panic!("the two tables are not alike:\n{ruleset}"),
    }
}

/// What a call reads.
#[derive(Debug)]
pub(crate) enum Stdin {
    Bytes(Vec<u8>),
    /// Written, and never closed.
    Open(Vec<u8>),
    File(File),
}

/// One call of the product as a plugin.
pub(crate) struct Call<'a> {
    node: &'a Node,
    program: PathBuf,
    env: BTreeMap<OsString, OsString>,
    stdin: Stdin,
    stdout: Option<Stdio>,
    uid: Option<u32>,
    has_netfilter: bool,
}

impl Call<'_> {
    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.env.remove(OsStr::new(name));
        self
    }

    /// The three variables that say which attachment.
    pub(crate) fn sandbox(self, pod: &Pod) -> Self {
        self.env("CNI_CONTAINERID", &pod.id).env("CNI_NETNS", pod.path()).env("CNI_IFNAME", &pod.ifname)
    }

    /// CNI_ARGS as containerd gives them, for the pod `web` in `shop`.
    pub(crate) fn pod_uid(self, uid: &str) -> Self {
        self.env(
            "CNI_ARGS",
            format!(
                "K8S_POD_UID={uid};IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_NAMESPACE=shop"
            ),
        )
    }

    pub(crate) fn config(self, config: Value) -> Self {
        self.stdin(Stdin::Bytes(config.to_string().into_bytes()))
    }

    pub(crate) fn stdin(mut self, stdin: Stdin) -> Self {
        self.stdin = stdin;
        self
    }

    /// Where stdout goes instead of to the test.
    pub(crate) fn stdout(mut self, stdout: impl Into<Stdio>) -> Self {
        self.stdout = Some(stdout.into());
        self
    }

    /// As another user, by a copy of the program that this user can reach.
    pub(crate) fn unprivileged(mut self, program: &Path) -> Self {
        self.program = program.to_owned();
        self.uid = Some(65534);
        self
    }

    /// On a kernel that has no netfilter, and no module to load: its netlink protocol is refused.
    pub(crate) fn without_netfilter(mut self) -> Self {
        self.has_netfilter = false;
        self
    }

    #[track_caller]
    pub(crate) fn run(self) -> Outcome {
        self.spawn().wait()
    }

    pub(crate) fn spawn(self) -> Running {
        let mut command: Command = self.node.netns.command(self.program.to_str().unwrap());
        command.env_clear().envs(&self.env);
        command.stdout(self.stdout.unwrap_or_else(Stdio::piped)).stderr(Stdio::piped());
        if let Some(uid) = self.uid {
            // std runs pre_exec hooks (entering the namespace) after it has dropped its privileges, so setpriv does
            // the dropping, once it is inside.
            let mut inside = self.node.netns.command("setpriv");
            inside.args([format!("--reuid={uid}"), format!("--regid={uid}"), "--clear-groups".into()]);
            inside.arg(command.get_program()).env_clear().envs(&self.env);
            inside.stdout(Stdio::piped()).stderr(Stdio::piped());
            command = inside;
        }
        if !self.has_netfilter {
            // SAFETY: between fork and exec the closure makes two system calls and does not allocate.
            unsafe { command.pre_exec(refuse_netfilter) };
        }
        let (bytes, stays_open) = match self.stdin {
            Stdin::File(file) => {
                command.stdin(file);
                (None, false)
            }
            Stdin::Bytes(bytes) => (Some(bytes), false),
            Stdin::Open(bytes) => (Some(bytes), true),
        };
        if bytes.is_some() {
            command.stdin(Stdio::piped());
        }
        let mut running = start(command, bytes);
        if !stays_open {
            running.stdin = None;
        }
        running
    }
}

/// Has the kernel answer `socket(AF_NETLINK, …, NETLINK_NETFILTER)` as one without it does.
fn refuse_netfilter() -> std::io::Result<()> {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    let step = |code, jf, k| libc::sock_filter { code, jt: 0, jf, k };
    // Offsets in struct seccomp_data: the number of the call, the low words of its first and third argument.
    let mut filter = [
        step(LOAD, 0, 0),
        step(EQUAL, 5, libc::SYS_socket as u32),
        step(LOAD, 0, 16),
        step(EQUAL, 3, libc::AF_NETLINK as u32),
        step(LOAD, 0, 32),
        step(EQUAL, 1, libc::NETLINK_NETFILTER as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: takes no pointers.
    let unprivileged = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the kernel copies the program, which lives until the call returns.
    let status = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if unprivileged == 0 && status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Starts a command whose stderr, and stdin where there is something to write, are pipes.
fn start(mut command: Command, input: Option<Vec<u8>>) -> Running {
    // A process group of its own, so that a test's end takes no bystander along.
    let mut child = command.process_group(0).spawn().unwrap();
    let mut stdin = child.stdin.take();
    if let (Some(pipe), Some(input)) = (&mut stdin, input) {
        // A plugin that refuses by its environment alone never reads: a broken pipe is no failure of the call.
        let _ = pipe.write_all(&input);
    }
    let stdout = child.stdout.take().map(read_all);
    let stderr = child.stderr.take().map(read_all).unwrap();
    Running { child, stdout, stderr, stdin }
}

/// Reads to the end on a thread of its own.
fn read_all(mut from: impl Read + Send + 'static) -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = from.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    });
    receiver
}

/// A call that was started.
pub(crate) struct Running {
    child: Child,
    stdout: Option<Receiver<Vec<u8>>>,
    stderr: Receiver<Vec<u8>>,
    stdin: Option<ChildStdin>,
}

impl Running {
    /// SIGKILL, as a runtime's context time-out sends it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    #[track_caller]
    pub(crate) fn wait(mut self) -> Outcome {
        let deadline = Instant::now() + DEADLINE;
        let mut read = |from: &Receiver<Vec<u8>>| {
            from.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap_or_else(|_| {
                let _ = self.child.kill();
                panic!("the call hangs");
            })
        };
        let stdout = self.stdout.as_ref().map(&mut read).unwrap_or_default();
        let stderr = read(&self.stderr);
        Outcome {
            status: self.child.wait().unwrap(),
            stdout: String::from_utf8(stdout).expect("stdout is UTF-8"),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }
}

/// How a call ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Outcome {
    /// Exit 0 and an empty stdout.
    #[track_caller]
    pub(crate) fn succeeded_silently(&self) {
        assert!(self.status.success(), "{self:#?}");
        assert_eq!(self.stdout, "", "{self:#?}");
    }

    /// Exit 0 and exactly one JSON document.
    #[track_caller]
    pub(crate) fn result(&self) -> Value {
        assert!(self.status.success(), "{self:#?}");
        self.document()
    }

    /// Exit other than 0 (and no signal), and exactly one JSON document, which is a CNI error.
    #[track_caller]
    pub(crate) fn error(&self) -> CniError {
        assert!(self.status.code().is_some_and(|code| code != 0), "{self:#?}");
        let document = self.document();
        let object = document.as_object().unwrap_or_else(|| panic!("{self:#?}"));
        for key in object.keys() {
            assert!(["cniVersion", "code", "msg", "details"].contains(&key.as_str()), "{key}: {self:#?}");
        }
        let text = |key: &str| {
            object.get(key).map(|value| value.as_str().unwrap_or_else(|| panic!("{key}: {self:#?}")).to_owned())
        };
        let error = CniError {
            code: object["code"].as_u64().unwrap_or_else(|| panic!("{self:#?}")),
            message: text("msg").unwrap_or_default(),
            details: text("details").unwrap_or_default(),
        };
        assert!(text("cniVersion").is_some(), "no cniVersion: {self:#?}");
        assert!(!error.message.is_empty(), "no msg: {self:#?}");
        error
    }

    #[track_caller]
    fn document(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("not one JSON document ({error}): {self:#?}"))
    }
}

/// The error object of the protocol.
#[derive(Debug)]
pub(crate) struct CniError {
    pub(crate) code: u64,
    pub(crate) message: String,
    pub(crate) details: String,
}

impl CniError {
    /// msg and details, for tests that do not care which of the two says it.
    pub(crate) fn text(&self) -> String {
        format!("{}; {}", self.message, self.details)
    }

    /// The text says all of these.
    #[track_caller]
    pub(crate) fn says(&self, parts: &[&str]) {
        let text = self.text();
        let missing = parts.iter().filter(|part| !text.contains(**part)).fold(String::new(), |mut all, part| {
            let _ = write!(all, " {part:?}");
            all
        });
        assert!(missing.is_empty(), "the error does not say{missing}: {self:?}");
    }
}

/// A file of `testdata/cni/`: what the plugin is given and what it has to print.
pub(crate) struct Vector {
    pub(crate) name: String,
    stdin: Value,
    stdout: Value,
}

impl Vector {
    /// All of one version.
    pub(crate) fn of(version: &str) -> Vec<Self> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/cni").join(version);
        let mut vectors: Vec<Self> = std::fs::read_dir(&directory)
            .unwrap()
            .map(|entry| {
                let path = entry.unwrap().path();
                let mut file: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
                Self {
                    name: format!("{version}/{}", path.file_stem().unwrap().to_str().unwrap()),
                    stdin: file["stdin"].take(),
                    stdout: file["stdout"].take(),
                }
            })
            .collect();
        vectors.sort_by(|a, b| a.name.cmp(&b.name));
        assert!(!vectors.is_empty(), "nothing in {}", directory.display());
        vectors
    }

    pub(crate) fn named(version: &str, name: &str) -> Self {
        Self::of(version).into_iter().find(|vector| vector.name.ends_with(&format!("/{name}"))).unwrap()
    }

    /// stdin for this pod. The files say `/run/netns/pod`.
    pub(crate) fn config(&self, node: &Node, pod: &Pod) -> Value {
        let mut config = at(&self.stdin, pod);
        config["stateDir"] = json!(node.state_dir());
        config
    }

    /// stdout for this pod.
    pub(crate) fn result(&self, pod: &Pod) -> Value {
        at(&self.stdout, pod)
    }
}

fn at(document: &Value, pod: &Pod) -> Value {
    serde_json::from_str(&document.to_string().replace("/run/netns/pod", pod.path().to_str().unwrap())).unwrap()
}
