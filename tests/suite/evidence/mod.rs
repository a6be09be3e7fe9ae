//! Evidence as an investigator meets it: what is there after a cut, of real processes, sockets and mounts.

mod chain;
mod content;
pub(crate) mod fuse;
mod hostile;
mod scale;

use std::net::TcpListener;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use serde_json::Value;

use crate::lab::topology::PEER4;
use crate::lab::{Netns, PATIENCE, Run, Sandbox, Topology, eventually, program};

/// A process in a pod; killed when dropped.
struct Process(Child);

impl Process {
    fn start(netns: &Netns, program: &str, arguments: &[&str]) -> Self {
        Self::start_with(netns, program, arguments, Stdio::null())
    }

    fn start_with(netns: &Netns, program: &str, arguments: &[&str], stdin: Stdio) -> Self {
        let mut command = netns.command(program);
        command.args(arguments).env("PASSWORD", "hunter2").stdin(stdin).stdout(Stdio::null()).stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A process of the pod that holds a connection to the peer as its standard input.
fn process_with_connection(topology: &Topology) -> (Process, u16, TcpStream) {
    let listener = topology.peer.run(|| TcpListener::bind((PEER4, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let stream = topology.pod.run(|| TcpStream::connect((PEER4, port)).unwrap());
    let (accepted, _) = listener.accept().unwrap();
    let process = Process::start_with(&topology.pod, "sleep", &["1000"], Stdio::from(OwnedFd::from(stream)));
    (process, port, accepted)
}

/// One collection.
struct Collection(PathBuf);

impl Collection {
    /// Collects now, by the command.
    #[track_caller]
    fn collect(sandbox: &Sandbox<'_>, options: &[&str]) -> Self {
        let mut arguments = vec!["evidence", sandbox.id(), "--collect"];
        arguments.extend(options);
        let run = with_evidence(sandbox, &arguments).ok();
        Self(PathBuf::from(run.stdout.lines().next().unwrap()))
    }

    fn document(&self, name: &str) -> Value {
        let text = std::fs::read(self.0.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        serde_json::from_slice(&text).unwrap_or_else(|error| panic!("{name}: {error}"))
    }

    fn items(&self, name: &str) -> Vec<Value> {
        self.document(name)["items"].as_array().unwrap().clone()
    }

    #[track_caller]
    fn process(&self, pid: u32) -> Value {
        let processes = self.items("processes.json");
        let found = processes.iter().find(|process| process["pid"] == pid);
        found.unwrap_or_else(|| panic!("{pid} is not in {processes:#?}")).clone()
    }
}

/// The collections of a sandbox, the oldest first.
fn collections(state_dir: &str, id: &str) -> Vec<PathBuf> {
    let directory = Path::new(state_dir).join("evidence").join(id);
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let mut found: Vec<_> = entries.map(|entry| entry.unwrap().path()).collect();
    found.retain(|path| !path.file_name().unwrap().to_str().unwrap().starts_with('.'));
    found.sort();
    found
}

#[track_caller]
fn await_collections(sandbox: &Sandbox<'_>, count: usize) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let so = eventually(Duration::from_secs(BUDGET_SECONDS) + PATIENCE, || {
        found = collections(sandbox.state_dir(), sandbox.id());
        found.len() >= count
    });
    assert!(so, "{found:?} are not {count}");
    found
}

/// The seconds that a collection has here. A test is of what is kept, and not of how fast this machine is.
pub(crate) const BUDGET_SECONDS: u64 = 240;

/// A command of the product for which evidence is not turned off.
fn with_evidence(sandbox: &Sandbox<'_>, arguments: &[&str]) -> Run {
    let mut command = sandbox.node().command(program());
    command.env("QUARANTINE_EVIDENCE", BUDGET_SECONDS.to_string()).env_remove("CNI_COMMAND").args(arguments);
    command.args(["--state-dir", sandbox.state_dir(), "--log", "stderr"]);
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Run { status: output.status, stdout: text(&output.stdout), stderr: text(&output.stderr) }
}

pub(crate) fn sha256_of(path: &Path) -> String {
    let output = std::process::Command::new("sha256sum").arg(path).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().trim_start_matches('\\').split(' ').next().unwrap().to_owned()
}
