//! Runs the product: as a CNI plugin, and by its commands, inside a node's network namespace.

use std::env;
use std::io::Write;
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::LazyLock;

use serde_json::Value;

use super::Netns;

/// The program under test: the one that was built with the tests, or the one that `QUARANTINE_BIN` names.
pub(crate) fn program() -> &'static str {
    static PROGRAM: LazyLock<String> =
        LazyLock::new(|| env::var("QUARANTINE_BIN").unwrap_or_else(|_| env!("CARGO_BIN_EXE_quarantine").to_owned()));
    &PROGRAM
}

/// What a run of the product gave back.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) status: ExitStatus,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    /// The run, if it exited 0; panics with its output otherwise.
    #[track_caller]
    pub(crate) fn ok(self) -> Self {
        assert!(self.status.success(), "failed: {self:#?}");
        self
    }

    /// stdout as JSON.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("no JSON ({error}): {self:#?}"))
    }
}

/// One call of the product as a CNI plugin: a clean environment, the six CNI_* variables, and a config on stdin.
pub(crate) struct Invocation {
    command: Command,
    stdin: Vec<u8>,
}

impl Invocation {
    /// A call of `verb` on `node`. All other CNI_* variables are empty, as libcni leaves them, until set.
    pub(crate) fn new(node: &Netns, verb: &str) -> Self {
        let mut command = node.command(program());
        command.env_clear();
        for name in ["CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH"] {
            command.env(name, "");
        }
        command.env("CNI_COMMAND", verb);
        Self { command, stdin: Vec::new() }
    }

    pub(crate) fn container(self, id: &str) -> Self {
        self.env("CNI_CONTAINERID", id)
    }

    pub(crate) fn netns(self, path: &Path) -> Self {
        self.env("CNI_NETNS", path.to_str().unwrap())
    }

    pub(crate) fn ifname(self, name: &str) -> Self {
        self.env("CNI_IFNAME", name)
    }

    pub(crate) fn args(self, args: &str) -> Self {
        self.env("CNI_ARGS", args)
    }

    pub(crate) fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    pub(crate) fn env_remove(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub(crate) fn stdin(mut self, config: impl Into<Vec<u8>>) -> Self {
        self.stdin = config.into();
        self
    }

    pub(crate) fn config(self, config: &Value) -> Self {
        self.stdin(config.to_string())
    }

    pub(crate) fn run(self) -> Run {
        run(self.command, &self.stdin)
    }
}

/// Runs one of the product's commands (`status`, `sync`, …) on `node`, and waits for it.
pub(crate) fn quarantine(node: &Netns, args: &[&str]) -> Run {
    let mut command = node.command(program());
    command.env_remove("CNI_COMMAND").args(args);
    run(command, &[])
}

fn run(mut command: Command, stdin: &[u8]) -> Run {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut pipe = child.stdin.take().unwrap();
    // A plugin that refuses by its environment alone never reads: a broken pipe is no failure of the call.
    let _ = pipe.write_all(stdin);
    drop(pipe);
    let output = child.wait_with_output().unwrap();
    Run {
        status: output.status,
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    }
}
