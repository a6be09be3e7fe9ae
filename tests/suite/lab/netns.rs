//! A named network namespace that lives as long as its value.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A network namespace at `/run/netns/<name>`, with `lo` up and IPv6 usable at once (no duplicate address detection).
///
/// Drop kills the processes that are left in it and deletes it, unless it is somebody else's.
pub(crate) struct Netns {
    name: String,
    path: PathBuf,
    ours: bool,
}

impl Netns {
    /// A new one; `label` is part of its name, for people who look at a hanging test.
    pub(crate) fn new(label: &str) -> Self {
        static COUNTER: AtomicU32 = AtomicU32::new(0);
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let name = format!("q{}-{number}-{label}", std::process::id());
        let added = Command::new("ip").args(["netns", "add", &name]).output().unwrap();
        assert!(added.status.success(), "ip netns add {name}: {}", String::from_utf8_lossy(&added.stderr));
        let netns = Self { path: PathBuf::from("/run/netns").join(&name), name, ours: true };
        netns.ip("link set lo up");
        netns.sysctl("net.ipv6.conf.all.accept_dad", "0");
        netns.sysctl("net.ipv6.conf.default.accept_dad", "0");
        netns
    }

    /// One that a runtime made and will remove: it is entered here, and no more.
    pub(crate) fn of_runtime(name: &str, path: PathBuf) -> Self {
        Self { name: name.to_owned(), path, ours: false }
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.path.clone()
    }

    /// Runs `work` on a thread of its own inside the namespace. Sockets made there stay there and may be used outside.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let file = File::open(&self.path).unwrap();
        let outcome = std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(&file, CloneFlags::CLONE_NEWNET).unwrap();
                    drop(file);
                    work()
                })
                .join()
        });
        outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// A command whose process runs inside the namespace; the mounts are those of the test.
    pub(crate) fn command(&self, program: &str) -> Command {
        let file = File::open(&self.path).unwrap();
        let mut command = Command::new(program);
        let enter = move || setns(&file, CloneFlags::CLONE_NEWNET).map_err(std::io::Error::from);
        // SAFETY: between fork and exec the closure makes one system call and does not allocate.
        unsafe { command.pre_exec(enter) };
        command
    }

    /// Runs a shell script inside, stops at its first error, panics if it fails; gives its stdout.
    pub(crate) fn sh(&self, script: &str) -> String {
        self.try_sh(script).unwrap_or_else(|error| panic!("in {}: {script}\n{error}", self.name))
    }

    /// Like [`Netns::sh`], but gives a failure's stderr as the error.
    pub(crate) fn try_sh(&self, script: &str) -> Result<String, String> {
        let output = self.command("sh").args(["-ec", script]).stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(format!("{}: {}{}", output.status, text(&output.stdout), text(&output.stderr)))
        }
    }

    /// Runs `ip` commands inside, one a line, in one process.
    pub(crate) fn ip(&self, commands: &str) {
        self.sh(&format!("ip -batch - <<'END'\n{commands}\nEND"));
    }

    /// Sets a kernel parameter of the namespace. The dots separate; an interface name with a dot in it won't do.
    pub(crate) fn sysctl(&self, key: &str, value: &str) {
        let path = PathBuf::from("/proc/sys").join(key.replace('.', "/"));
        self.run(|| std::fs::write(&path, value)).unwrap_or_else(|error| panic!("{key}: {error}"));
    }

    /// Deletes it before its time: what is bound to it only by the name is gone.
    pub(crate) fn delete(&self) {
        if !self.ours || !self.path.exists() {
            return;
        }
        self.kill_processes();
        let _ = Command::new("ip").args(["netns", "del", &self.name]).output();
    }

    /// Kills what runs inside, but for the test itself.
    pub(crate) fn kill_processes(&self) {
        let Ok(pids) = Command::new("ip").args(["netns", "pids", &self.name]).output() else {
            return;
        };
        for pid in String::from_utf8_lossy(&pids.stdout).split_whitespace() {
            if let Ok(pid) = pid.parse::<i32>()
                && pid != std::process::id().cast_signed()
            {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        self.delete();
    }
}
