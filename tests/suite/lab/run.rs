//! A run of the product, from its start to what it gave back.

use std::fmt::Write as _;
use std::io::{Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, ExitStatus};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A run that takes longer hangs.
const DEADLINE: Duration = Duration::from_secs(60);

/// How a run ended.
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
        self.json()
    }

    /// Exit other than 0 (and no signal), and exactly one JSON document, which is a CNI error.
    #[track_caller]
    pub(crate) fn error(&self) -> CniError {
        assert!(self.status.code().is_some_and(|code| code != 0), "{self:#?}");
        let document = self.json();
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

    /// stdout as one JSON document, however the run ended.
    #[track_caller]
    pub(crate) fn json(&self) -> Value {
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

/// Starts a command whose stderr, and stdin where there is something to write, are pipes.
pub(super) fn start(mut command: Command, input: Option<Vec<u8>>) -> Running {
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

/// A run that was started.
pub(crate) struct Running {
    child: Child,
    stdout: Option<Receiver<Vec<u8>>>,
    stderr: Receiver<Vec<u8>>,
    pub(super) stdin: Option<ChildStdin>,
}

impl Running {
    /// SIGKILL, as a runtime's context time-out sends it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
    }

    #[track_caller]
    pub(crate) fn wait(mut self) -> Run {
        let deadline = Instant::now() + DEADLINE;
        let mut read = |from: &Receiver<Vec<u8>>| {
            from.recv_timeout(deadline.saturating_duration_since(Instant::now())).unwrap_or_else(|_| {
                let _ = self.child.kill();
                panic!("the run hangs");
            })
        };
        let stdout = self.stdout.as_ref().map(&mut read).unwrap_or_default();
        let stderr = read(&self.stderr);
        Run {
            status: self.child.wait().unwrap(),
            stdout: String::from_utf8(stdout).expect("stdout is UTF-8"),
            stderr: String::from_utf8_lossy(&stderr).into_owned(),
        }
    }
}
