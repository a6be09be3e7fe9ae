//! The `log` facade to syslog (facility daemon), to standard error where there is no syslog socket. Never to standard
//! output: that belongs to the protocol.

use std::io::Write;
use std::sync::Mutex;

use log::{LevelFilter, Log, Metadata, Record};
use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

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

type SyslogConnection = Logger<LoggerBackend, Formatter3164>;

/// Has all log lines of this process go where `config` says. Called once, by whoever is the process's face.
pub fn start(config: LogConfig) {
    let syslog = match config.target {
        // Most calls of the plugin have nothing to say: connected with the first line.
        LogTarget::Syslog => Syslog::Wanted(None),
        LogTarget::Stderr => Syslog::Unwanted,
    };
    log::set_max_level(config.level);
    if config.level != LevelFilter::Off {
        // Fails only where a logger is set already; that one goes on.
        let _ = log::set_boxed_logger(Box::new(ProcessLog { syslog: Mutex::new(syslog) }));
    }
}

enum Syslog {
    Unwanted,
    Wanted(Option<SyslogConnection>),
}

struct ProcessLog {
    syslog: Mutex<Syslog>,
}

fn connect() -> Option<SyslogConnection> {
    let formatter = Formatter3164 {
        facility: Facility::LOG_DAEMON,
        hostname: None,
        process: "quarantine".to_owned(),
        pid: std::process::id(),
    };
    syslog::unix(formatter).ok()
}

fn send(connection: &mut Option<SyslogConnection>, record: &Record<'_>) -> bool {
    let Some(logger) = connection else { return false };
    let line = record.args().to_string();
    let sent = match record.level() {
        log::Level::Error => logger.err(line),
        log::Level::Warn => logger.warning(line),
        log::Level::Info => logger.info(line),
        log::Level::Debug | log::Level::Trace => logger.debug(line),
    };
    sent.is_ok()
}

impl Log for ProcessLog {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        if let Ok(mut syslog) = self.syslog.lock()
            && let Syslog::Wanted(connection) = &mut *syslog
        {
            if send(connection, record) {
                return;
            }
            // Not connected yet, or the syslog daemon was restarted.
            *connection = connect();
            if send(connection, record) {
                return;
            }
        }
        let _ =
            writeln!(std::io::stderr(), "quarantine[{}]: {}: {}", std::process::id(), record.level(), record.args());
    }

    fn flush(&self) {}
}
