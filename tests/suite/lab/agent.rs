//! A running agent: started, listened to, and killed.

use std::io::{BufRead, BufReader};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::process::{Child, ExitStatus, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Netns, Node, PATIENCE, eventually, program};

/// A running agent; killed when dropped.
pub(crate) struct Agent {
    process: Child,
    notifications: UnixDatagram,
    _directory: tempfile::TempDir,
    log: Arc<Log>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Log {
    lines: Mutex<Vec<String>>,
    grown: Condvar,
}

impl Agent {
    /// An agent for this state directory, in `netns`, that has said that it is ready.
    pub(crate) fn start(netns: &Netns, state_dir: &Path) -> Self {
        Self::start_with(netns, state_dir, &[])
    }

    /// One with these arguments too.
    pub(crate) fn start_with(netns: &Netns, state_dir: &Path, arguments: &[&str]) -> Self {
        Self::spawn_with(netns, state_dir, arguments, &[], &[]).ready()
    }

    /// One that is started by another program: `before`, with the agent's command line as its last arguments.
    pub(crate) fn start_below(netns: &Netns, state_dir: &Path, before: &[&str]) -> Self {
        Self::spawn_with(netns, state_dir, &[], &[], before).ready()
    }

    pub(crate) fn ready(self) -> Self {
        let agent = self;
        agent.await_notification("READY=1");
        // The socket by which it said so is closed by then.
        agent.await_line(&["event=agent-started"]);
        agent
    }

    pub(crate) fn on(node: &Node) -> Self {
        Self::start(&node.netns, node.state_dir())
    }

    /// One that was started and may not be ready yet, with these variables too.
    pub(crate) fn spawn(netns: &Netns, state_dir: &Path, variables: &[(&str, &str)]) -> Self {
        Self::spawn_with(netns, state_dir, &[], variables, &[])
    }

    pub(crate) fn spawn_with(
        netns: &Netns,
        state_dir: &Path,
        arguments: &[&str],
        variables: &[(&str, &str)],
        before: &[&str],
    ) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("notify");
        let notifications = UnixDatagram::bind(&socket).unwrap();
        let mut words = before.iter().copied().chain([program()]);
        let mut command = netns.command(words.next().unwrap());
        command.args(words).env_clear().env("NOTIFY_SOCKET", &socket).env("QUARANTINE_EVIDENCE", "off");
        command.envs(variables.iter().copied());
        command
            .args(["agent", "--log", "stderr", "--log-level", "debug", "--state-dir"])
            .arg(state_dir)
            .args(arguments);
        if !arguments.contains(&"--cni-conf") {
            // What this machine's own runtime has is no business of a test's.
            command.arg("--no-adopt");
        }
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        let log = Arc::new(Log::default());
        let written = log.clone();
        let reader = std::thread::spawn(move || {
            for line in stderr.split(b'\n').map_while(Result::ok) {
                written.lines.lock().unwrap().push(String::from_utf8_lossy(&line).into_owned());
                written.grown.notify_all();
            }
        });
        Self { process, notifications, _directory: directory, log, reader: Some(reader) }
    }

    /// Waits for a notification to the service manager, and ignores those before it.
    #[track_caller]
    pub(crate) fn await_notification(&self, wanted: &str) {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = [0; 256];
        loop {
            let left = deadline.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
            self.notifications.set_read_timeout(Some(left)).unwrap();
            let length =
                self.notifications.recv(&mut buffer).unwrap_or_else(|_| panic!("no {wanted}: {:#?}", self.lines()));
            if String::from_utf8_lossy(&buffer[..length]).lines().any(|line| line == wanted) {
                return;
            }
        }
    }

    pub(crate) fn lines(&self) -> Vec<String> {
        self.log.lines.lock().unwrap().clone()
    }

    /// How many lines of its log contain all of these words.
    pub(crate) fn count(&self, words: &[&str]) -> usize {
        self.log.lines.lock().unwrap().iter().filter(|line| words.iter().all(|word| line.contains(word))).count()
    }

    /// Waits for a line that contains all of these words.
    #[track_caller]
    pub(crate) fn await_line(&self, words: &[&str]) -> String {
        self.await_lines(words, 1).remove(0)
    }

    /// Waits until `count` lines contain all of these words.
    #[track_caller]
    pub(crate) fn await_lines(&self, words: &[&str], count: usize) -> Vec<String> {
        let found = |lines: &Vec<String>| -> Vec<String> {
            lines.iter().filter(|line| words.iter().all(|word| line.contains(word))).cloned().collect()
        };
        let lines = self.log.lines.lock().unwrap();
        let (lines, _) =
            self.log.grown.wait_timeout_while(lines, PATIENCE, |lines| found(lines).len() < count).unwrap();
        let found = found(&lines);
        let all = lines.join("\n");
        drop(lines);
        assert!(found.len() >= count, "{} of {count} lines with {words:?} in:\n{all}", found.len());
        found
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid().cast_signed()), signal).unwrap();
    }

    /// Waits for its end, and gives all that it logged.
    pub(crate) fn wait(mut self) -> (ExitStatus, Vec<String>) {
        let mut status = None;
        let ended = eventually(PATIENCE, || {
            status = self.process.try_wait().unwrap();
            status.is_some()
        });
        assert!(ended, "the agent does not end: {:#?}", self.lines());
        if let Some(reader) = self.reader.take() {
            reader.join().unwrap();
        }
        (status.unwrap(), self.lines())
    }

    /// SIGKILL; it is gone when this returns.
    pub(crate) fn kill(mut self) -> Vec<String> {
        self.process.kill().unwrap();
        self.process.wait().unwrap();
        self.lines()
    }

    /// The same once it rests: at its start it opens some to look around.
    pub(crate) fn descriptors_at_rest(&self) -> usize {
        let mut woken = self.wakeups();
        let rests = || {
            std::thread::sleep(Duration::from_millis(200));
            let before = std::mem::replace(&mut woken, self.wakeups());
            before == woken
        };
        assert!(eventually(PATIENCE, rests), "it does not come to rest");
        self.descriptors()
    }

    /// How often its threads have been woken, but for the one that keeps what pods send: their own kernels say something now
    /// and then.
    pub(crate) fn wakeups(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        tasks
            .map(|task| std::fs::read_to_string(task.unwrap().path().join("status")).unwrap())
            .filter(|status| !status.starts_with("Name:\tcaptures"))
            .map(|status| {
                let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")).unwrap();
                line.trim().parse::<u64>().unwrap()
            })
            .sum()
    }

    /// How many files it holds open.
    pub(crate) fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}
