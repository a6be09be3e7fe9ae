//! The `log` facade to syslog (facility daemon), to standard error where there is no syslog socket. Never to standard
//! output: that belongs to the protocol.
//!
//! Logging never waits. A stalled syslog daemon leaves its socket full, and whoever waits for it isolates nobody: a line
//! that cannot be sent at once goes to standard error, and where that is full too it is counted and lost. The next line
//! that can be sent says how many were.

use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixDatagram;
use std::sync::{Mutex, PoisonError};

use log::{Level, LevelFilter, Log, Metadata, Record};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use syslog::{Facility, Formatter3164, LogFormat, Severity};

/// Where log lines go, and from which level on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogConfig {
    /// Where they go.
    pub target: LogTarget,
    /// The least important level that is written.
    pub level: LevelFilter,
}

/// Where log lines go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogTarget {
    /// The local syslog socket, standard error where there is none.
    Syslog,
    /// Standard error.
    Stderr,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { target: LogTarget::Syslog, level: LevelFilter::Info }
    }
}

/// Where the syslog daemon listens, by system.
const SYSLOG_SOCKETS: [&str; 3] = ["/dev/log", "/var/run/syslog", "/var/run/log"];

/// A pipe that is said to be writable takes so much without waiting (`PIPE_BUF`); longer lines are cut.
const LINE_MAX: usize = 4096;

/// Has all log lines of this process go where `config` says. Called once, by whoever is the process's face.
pub fn start(config: LogConfig) {
    log::set_max_level(config.level);
    if config.level != LevelFilter::Off {
        let outlet = Outlet { wants_syslog: config.target == LogTarget::Syslog, connection: None, lost: 0 };
        // Fails only where a logger is set already; that one goes on.
        let _ = log::set_boxed_logger(Box::new(ProcessLog(Mutex::new(outlet))));
    }
}

struct ProcessLog(Mutex<Outlet>);

/// Where the lines of this process go out.
struct Outlet {
    wants_syslog: bool,
    /// Most calls of the plugin have nothing to say: connected with the first line.
    connection: Option<UnixDatagram>,
    /// Lines that could be sent nowhere.
    lost: u64,
}

impl Outlet {
    fn write(&mut self, level: Level, line: &str) {
        if self.lost > 0 && self.send(Level::Warn, &format!("event=log-lines-lost count={}", self.lost)) {
            self.lost = 0;
        }
        if !self.send(level, line) {
            self.lost += 1;
        }
    }

    fn send(&mut self, level: Level, line: &str) -> bool {
        self.send_to_syslog(level, line) || write_to_stderr(level, line)
    }

    fn send_to_syslog(&mut self, level: Level, line: &str) -> bool {
        if !self.wants_syslog {
            return false;
        }
        let mut datagram = Vec::new();
        if formatter().format(&mut datagram, severity(level), line).is_err() {
            return false;
        }
        // A second time where the daemon was restarted: its old socket refuses. One that is full stays full.
        for _ in 0..2 {
            if self.connection.is_none() {
                self.connection = connect();
            }
            let Some(socket) = &self.connection else { return false };
            match socket.send(&datagram) {
                Ok(_) => return true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return false,
                Err(_) => self.connection = None,
            }
        }
        false
    }
}

fn connect() -> Option<UnixDatagram> {
    SYSLOG_SOCKETS.into_iter().find_map(|path| {
        let socket = UnixDatagram::unbound().ok()?;
        socket.set_nonblocking(true).ok()?;
        socket.connect(path).ok().map(|()| socket)
    })
}

fn formatter() -> Formatter3164 {
    Formatter3164 {
        facility: Facility::LOG_DAEMON,
        hostname: None,
        process: "quarantine".to_owned(),
        pid: std::process::id(),
    }
}

fn severity(level: Level) -> Severity {
    match level {
        Level::Error => Severity::LOG_ERR,
        Level::Warn => Severity::LOG_WARNING,
        Level::Info => Severity::LOG_INFO,
        Level::Debug | Level::Trace => Severity::LOG_DEBUG,
    }
}

fn write_to_stderr(level: Level, line: &str) -> bool {
    let mut stderr = io::stderr().lock();
    let is_ready = {
        let mut ready = [PollFd::new(stderr.as_fd(), PollFlags::POLLOUT)];
        poll(&mut ready, PollTimeout::ZERO).is_ok()
            && ready[0].revents().is_some_and(|events| events.contains(PollFlags::POLLOUT))
    };
    let mut text = format!("quarantine[{}]: {level}: {line}", std::process::id()).into_bytes();
    text.truncate(LINE_MAX - 1);
    text.push(b'\n');
    is_ready && stderr.write_all(&text).is_ok()
}

impl Log for ProcessLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if self.enabled(record.metadata()) {
            let mut outlet = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            outlet.write(record.level(), &record.args().to_string());
        }
    }

    fn flush(&self) {}
}
