//! A whole process, measured from outside: from before it is started until it has been waited for.
//!
//! Its standard input is filled beforehand and its output is read afterwards, so that no pipe makes it wait. It runs in
//! the netns of the thread that starts it.

use std::ffi::OsStr;
use std::io::{Read, Write, pipe};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::Outcome;

/// What is to be run, again and again.
#[derive(Debug, Clone, Default)]
pub(crate) struct Program {
    words: Vec<String>,
    environment: Vec<(String, String)>,
    input: String,
}

impl Program {
    pub(crate) fn new(words: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self { words: words.into_iter().map(Into::into).collect(), ..Self::default() }
    }

    pub(crate) fn with_environment(mut self, variables: impl IntoIterator<Item = (&'static str, String)>) -> Self {
        self.environment.extend(variables.into_iter().map(|(name, value)| (name.to_owned(), value)));
        self
    }

    pub(crate) fn with_input(mut self, input: impl Into<String>) -> Self {
        self.input = input.into();
        self
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.words[0]);
        command.args(self.words[1..].iter().map(OsStr::new));
        command.envs(self.environment.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs it, and fails where it fails.
    pub(crate) fn run(&self) -> Outcome<Finished> {
        let (stdin, mut filled) = pipe()?;
        filled.write_all(self.input.as_bytes())?;
        drop(filled);
        let (mut output, stdout) = pipe()?;
        let (mut errors, stderr) = pipe()?;
        let mut command = self.command();
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let started = Instant::now();
        let mut child = command.spawn().map_err(|error| format!("{}: {error}", self.words.join(" ")))?;
        let status = child.wait()?;
        let wall = started.elapsed();
        drop(command);
        let mut finished = Finished { wall, output: String::new() };
        output.read_to_string(&mut finished.output)?;
        if status.success() {
            return Ok(finished);
        }
        let mut said = String::new();
        errors.read_to_string(&mut said)?;
        Err(format!("{}: {status}: {}{said}", self.words.join(" "), finished.output).into())
    }

    /// Its output, however long.
    pub(crate) fn output(&self) -> Outcome<String> {
        let output = self.command().stdin(Stdio::null()).stderr(Stdio::null()).output()?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// Its wall time in milliseconds.
    pub(crate) fn milliseconds(&self) -> Outcome<f64> {
        Ok(self.run()?.wall.as_secs_f64() * 1e3)
    }

    /// Its peak resident memory in MiB, read from /proc when it is about to exit: `wait4` would report ours where ours is
    /// larger, because the child was a copy of us until it executed the program.
    pub(crate) fn peak_memory(&self) -> Outcome<f64> {
        let (stdin, mut filled) = pipe()?;
        filled.write_all(self.input.as_bytes())?;
        drop(filled);
        let (_output, stdout) = pipe()?;
        let (_errors, stderr) = pipe()?;
        let mut command = self.command();
        command.stdin(stdin).stdout(stdout).stderr(stderr);
        let trace_me = || {
            // SAFETY: takes no memory of ours.
            let result = unsafe { libc::ptrace(libc::PTRACE_TRACEME, 0, 0, 0) };
            if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
        };
        // SAFETY: `trace_me` makes one system call and allocates nothing.
        unsafe { command.pre_exec(trace_me) };
        let mut child = command.spawn()?;
        let pid = libc::pid_t::try_from(child.id())?;
        let ask = |request, data: libc::c_long| {
            // SAFETY: the requests made here take a number in `data` and no memory of ours.
            unsafe { libc::ptrace(request, pid, 0, data) }
        };
        let mut peak = None;
        let mut is_new = true;
        loop {
            let mut status = 0;
            // SAFETY: the kernel writes `status`, which is ours; the child is.
            if unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) } < 0 {
                break;
            }
            if libc::WIFEXITED(status) && libc::WEXITSTATUS(status) != 0 {
                return Err(format!("{}: exit status {}", self.words.join(" "), libc::WEXITSTATUS(status)).into());
            }
            if !libc::WIFSTOPPED(status) {
                break;
            }
            let mut signal = libc::WSTOPSIG(status);
            if is_new {
                ask(libc::PTRACE_SETOPTIONS, libc::PTRACE_O_TRACEEXIT.into());
                is_new = false;
                signal = 0;
            } else if status >> 8 == libc::SIGTRAP | (libc::PTRACE_EVENT_EXIT << 8) {
                peak = Some(std::fs::read_to_string(format!("/proc/{pid}/status"))?);
                signal = 0;
            }
            ask(libc::PTRACE_CONT, signal.into());
        }
        // The child is reaped already; this only tells `child`.
        let _ = child.wait();
        let kibibytes = peak
            .as_deref()
            .and_then(|status| status.lines().find_map(|line| line.strip_prefix("VmHWM:")))
            .and_then(|value| value.trim().strip_suffix(" kB")?.parse::<f64>().ok());
        Ok(kibibytes.ok_or_else(|| format!("{}: no peak memory", self.words.join(" ")))? / 1024.0)
    }
}

/// A process that succeeded.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) wall: Duration,
    pub(crate) output: String,
}

/// Runs a shell script in the calling thread's netns.
pub(crate) fn sh(script: &str) -> Outcome<String> {
    Ok(Program::new(["sh", "-ec", script]).run()?.output)
}
