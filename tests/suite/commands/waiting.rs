//! Nothing waits without end: not for a log that nobody reads, not for a lock that nobody gives back.

use std::fs::OpenOptions;
use std::io::Write;
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde_json::{Value, json};

use super::{Lab, Place, exits, pod, says};
use crate::lab::Topology;

/// Seconds after which a program that hangs is ended and fails the test.
const LIMIT: &str = "50";

/// A syslog socket that nobody reads, filled to the last datagram.
struct StalledSyslog {
    directory: tempfile::TempDir,
    _socket: UnixDatagram,
}

impl StalledSyslog {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(directory.path().join("log")).unwrap();
        let filler = UnixDatagram::unbound().unwrap();
        filler.set_nonblocking(true).unwrap();
        while filler.send_to(b"x", directory.path().join("log")).is_ok() {}
        Self { directory, _socket: socket }
    }

    /// A command that sees this socket as its /dev/log.
    fn command(&self, topology: &Topology) -> Command {
        let devices = self.directory.path().display();
        let script = format!(
            "mount -t tmpfs none /mnt; cp -a /dev/null /dev/zero /dev/urandom /mnt/; ln -s {devices}/log /mnt/log; \
             mount --bind /mnt /dev; exec \"$@\""
        );
        let mut command = topology.node.command("timeout");
        command.args([LIMIT, "unshare", "--mount", "sh", "-ec", &script, "sh", crate::lab::program()]);
        command.env_remove("CNI_COMMAND");
        command
    }
}

fn run(mut command: Command, input: &Value) -> Output {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.to_string().as_bytes()).unwrap();
    child.wait_with_output().unwrap()
}

fn plugin(mut command: Command, lab: &Lab<'_>, verb: &str, id: &str) -> Output {
    command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", id).env("CNI_IFNAME", "eth0");
    command.env("CNI_NETNS", lab.topology.pod.path()).env("CNI_ARGS", pod("web", "uid-1"));
    run(command, &lab.config(Place::Pod, &json!({})))
}

/// A journald that had stalled: `isolate`, ADD of a marked pod and DEL hung before anything was applied.
#[test]
fn a_log_that_nobody_reads_delays_nothing() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    let syslog = StalledSyslog::new();
    lab.add("c1", &pod("web", "uid-1"));
    let mut isolate = syslog.command(&topology);
    isolate.args(["isolate", "c1", "--state-dir", lab.state.path().to_str().unwrap()]);
    let output = run(isolate, &Value::Null);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(lab.status("c1")["verdict"], "contained");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("event=isolated"), "what syslog does not take goes to standard error: {said}");
    // DEL carries the mark over, ADD isolates: both have something to say.
    let output = plugin(syslog.command(&topology), &lab, "DEL", "c1");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let output = plugin(syslog.command(&topology), &lab, "ADD", "c2");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert_eq!(lab.status("c2")["verdict"], "contained");
}

/// Another process has the locks of all sandboxes.
struct Locked(#[expect(dead_code, reason = "it is the lock, as long as it is open")] std::fs::File);

impl Locked {
    fn in_directory(state: &Path) -> Self {
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(state.join(".lock"));
        let file = file.unwrap();
        let whole = libc::flock {
            l_type: libc::F_WRLCK as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: 0,
            l_len: 0,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&whole)).unwrap();
        Self(file)
    }
}

/// `isolate`, ADD, CHECK and DEL waited for ever for a lock that another process had.
#[test]
fn a_lock_that_is_never_given_back_is_an_error_that_says_who_has_it() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("c1", &pod("web", "uid-1"));
    let locked = Locked::in_directory(lab.state.path());
    let holder = format!("process {} (", std::process::id());
    let program = || {
        let mut command = topology.node.command("timeout");
        command.args([LIMIT, crate::lab::program()]).env_remove("CNI_COMMAND");
        command
    };
    let run = std::thread::scope(|scope| {
        let isolate = scope.spawn(|| lab.run(&["isolate", "c1"]));
        for (verb, id, code) in [("ADD", "c2", 11), ("CHECK", "c1", 11), ("DEL", "c1", 5)] {
            let output = plugin(program(), &lab, verb, id);
            let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{verb}: {output:?}"));
            assert_eq!(error["code"], code, "{verb}: {error}");
            says(error["msg"].as_str().unwrap(), &[&holder]);
        }
        isolate.join().unwrap()
    });
    let run = exits(run, 1);
    says(&format!("{}{}", run.stdout, run.stderr), &[&holder, "c1"]);
    drop(locked);
    exits(lab.run(&["isolate", "c1"]), 0);
}
