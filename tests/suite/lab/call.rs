//! Calls of the product: as a CNI plugin, and by its commands, inside a node's network namespace.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

use super::run::start;
use super::{Netns, Pod, Run, Running};

/// The program under test: the one that was built with the tests, or the one that `QUARANTINE_BIN` names.
pub(crate) fn program() -> &'static str {
    static PROGRAM: LazyLock<String> = LazyLock::new(|| {
        std::env::var("QUARANTINE_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_quarantine").to_owned())
    });
    &PROGRAM
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
    netns: &'a Netns,
    program: PathBuf,
    env: BTreeMap<OsString, OsString>,
    stdin: Stdin,
    stdout: Option<Stdio>,
    uid: Option<u32>,
    has_netfilter: bool,
}

impl<'a> Call<'a> {
    /// A call with an empty environment and an empty stdin.
    pub(crate) fn bare(netns: &'a Netns) -> Self {
        Self {
            netns,
            program: program().into(),
            env: BTreeMap::new(),
            stdin: Stdin::Bytes(Vec::new()),
            stdout: None,
            uid: None,
            has_netfilter: true,
        }
    }

    /// A call of `verb`, whose other variables are empty, as libcni leaves them, until they are set.
    pub(crate) fn new(netns: &'a Netns, verb: &str) -> Self {
        let others = ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"];
        others.iter().fold(Self::bare(netns), |call, name| call.env(name, "")).env("CNI_COMMAND", verb)
    }

    /// The three variables that say which attachment.
    pub(crate) fn attachment(self, container: &str, netns: &Path, ifname: &str) -> Self {
        self.env("CNI_CONTAINERID", container).env("CNI_NETNS", netns).env("CNI_IFNAME", ifname)
    }

    /// The attachment of this pod.
    pub(crate) fn sandbox(self, pod: &Pod) -> Self {
        self.attachment(&pod.id, &pod.path(), &pod.ifname)
    }

    pub(crate) fn args(self, args: &str) -> Self {
        self.env("CNI_ARGS", args)
    }

    pub(crate) fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.insert(name.as_ref().to_owned(), value.as_ref().to_owned());
        self
    }

    pub(crate) fn without(mut self, name: &str) -> Self {
        self.env.remove(OsStr::new(name));
        self
    }

    /// CNI_ARGS as containerd gives them, for the pod `web` in `shop`.
    pub(crate) fn pod_uid(self, uid: &str) -> Self {
        self.args(&format!(
            "K8S_POD_UID={uid};IgnoreUnknown=1;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=x;K8S_POD_NAMESPACE=shop"
        ))
    }

    pub(crate) fn config(self, config: impl Borrow<Value>) -> Self {
        self.stdin(Stdin::Bytes(config.borrow().to_string().into_bytes()))
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
    pub(crate) fn run(self) -> Run {
        self.spawn().wait()
    }

    pub(crate) fn spawn(self) -> Running {
        let mut command: Command = self.netns.command(self.program.to_str().unwrap());
        command.env_clear().envs(&self.env);
        command.stdout(self.stdout.unwrap_or_else(Stdio::piped)).stderr(Stdio::piped());
        if let Some(uid) = self.uid {
            // std runs pre_exec hooks (entering the namespace) after it has dropped its privileges, so setpriv does
            // the dropping, once it is inside.
            let mut inside = self.netns.command("setpriv");
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
    // Offsets in struct seccomp_data: the number of the call, the low words of its first and third argument.
    confine(&mut [
        step(LOAD, 0, 0),
        step(EQUAL, 5, libc::SYS_socket as u32),
        step(LOAD, 0, 16),
        step(EQUAL, 3, libc::AF_NETLINK as u32),
        step(LOAD, 0, 32),
        step(EQUAL, 1, libc::NETLINK_NETFILTER as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ERRNO | libc::EPROTONOSUPPORT as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ])
}

/// Has the kernel answer as a disk does that keeps nothing.
fn refuse_sync() -> std::io::Result<()> {
    confine(&mut [
        step(LOAD, 0, 0),
        step(EQUAL, 1, libc::SYS_fsync as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ERRNO | libc::EIO as u32),
        step(RETURN, 0, libc::SECCOMP_RET_ALLOW),
    ])
}

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;

fn step(code: u16, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf, k }
}

/// Has the kernel ask this filter about each system call of the calling process.
fn confine(filter: &mut [libc::sock_filter]) -> std::io::Result<()> {
    let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
    // SAFETY: takes no pointers.
    let unprivileged = unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    // SAFETY: the kernel copies the program, which lives until the call returns.
    let status = unsafe { libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program) };
    if unprivileged == 0 && status == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Runs one of the product's commands (`status`, `sync`, …) on `node`, and waits for it.
#[track_caller]
pub(crate) fn quarantine(node: &Netns, args: &[&str]) -> Run {
    start(command(node, args), None).wait()
}

/// The same on a node whose disk keeps nothing.
#[track_caller]
pub(crate) fn quarantine_on_a_bad_disk(node: &Netns, args: &[&str]) -> Run {
    let mut command = command(node, args);
    // SAFETY: between fork and exec the closure makes two system calls and does not allocate.
    unsafe { command.pre_exec(refuse_sync) };
    start(command, None).wait()
}

fn command(node: &Netns, args: &[&str]) -> Command {
    let mut command = node.command(program());
    command.env_remove("CNI_COMMAND").args(args);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
