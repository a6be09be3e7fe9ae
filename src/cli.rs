//! The commands that a person or a script uses.

use std::ffi::OsString;
use std::io::Write;
use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::config::DEFAULT_STATE_DIR;
use crate::enforce;
use crate::plugin::chain;
use crate::sandbox::{Scan, Side};
use crate::state::StateDir;

#[derive(Debug, Parser)]
#[command(name = "quarantine", version, about)]
struct Arguments {
    /// The state directory
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    state_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Bring every sandbox of the node to what its marks want
    Sync,
    /// Watch the state directory and apply each change at once
    Agent {
        /// Where log lines go
        #[arg(long, default_value = "syslog", value_parser = ["syslog", "stderr"])]
        log: String,
        /// The least important level that is written
        #[arg(long, default_value = "info", value_parser = ["off", "error", "warn", "info", "debug", "trace"])]
        log_level: String,
    },
}

/// Runs the command of these arguments and returns the exit code.
pub fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { 2 } else { 0 };
        }
    };
    match arguments.command {
        Command::Sync => sync(&arguments.state_dir),
        Command::Agent { log, log_level } => {
            let target = crate::config::LogTarget::parse(&log).unwrap_or(crate::config::LogTarget::Syslog);
            let level = crate::config::parse_level(&log_level).unwrap_or(log::LevelFilter::Info);
            crate::logging::start(crate::config::LogConfig { target, level });
            match crate::agent::run(&arguments.state_dir) {
                Ok(()) => 0,
                Err(error) => {
                    let _ = writeln!(std::io::stderr(), "quarantine: {}", chain(&error));
                    3
                }
            }
        }
    }
}

fn sync(state_dir: &std::path::Path) -> u8 {
    let mut error = std::io::stderr();
    let state = match StateDir::open(state_dir) {
        Ok(state) => state,
        Err(fault) => {
            let _ = writeln!(error, "quarantine: {}", chain(&fault));
            return 3;
        }
    };
    let mut code = 0;
    let Ok(mut host) = Side::own() else { return 3 };
    for container_id in state.sandboxes().unwrap_or_default() {
        let result = state.lock(&container_id).map_err(Into::into).and_then(|_lock| {
            let (records, _) = state.records_of(&container_id);
            enforce::apply(&state, &mut host, &container_id, &records, Scan::Sandbox)
        });
        if let Err(fault) = result {
            let _ = writeln!(error, "quarantine: {container_id}: {}", chain(&fault));
            code = 1;
        }
    }
    code
}
