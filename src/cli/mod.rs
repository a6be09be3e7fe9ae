//! The commands that a person or a script uses.
//!
//! Each is a module below; here they are told apart, and their ends turned into exit codes. What is decided, enforced
//! and read back is the business of `policy`, `enforce` and `sandbox`: a command only asks and says.

mod adopt;
mod arguments;
mod evidence;
mod host_pods;
mod install;
mod inventory;
mod isolate;
mod live;
mod manual;
mod policy_arguments;
mod report;
mod selector;
mod status;
mod sync;
mod watch;

use std::ffi::OsString;
use std::io::{self, Write};

use clap::Parser;
use nix::errno::Errno;
use nix::unistd::{User, geteuid};

use crate::agent::{self, AgentError};
use crate::evidence::{Collectors, EvidenceError, THIS_PROGRAM, is_wanted};
use crate::install::InstallError;
use crate::kernel::netlink::NetlinkError;
use crate::model::audit::chain;
use crate::node::logging;
use crate::node::state::StateError;

use arguments::{Arguments, Command, Global};
use selector::SelectError;

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exit {
    /// What was asked for is done, and was read back.
    Done = 0,
    /// It is not done, or not whole.
    NotDone = 1,
    /// The command line means nothing, or too much.
    Usage = 2,
    /// Not permitted, or the state directory is missing or unsound.
    NotPermitted = 3,
    /// The pod is marked, and is not on this node yet.
    Waiting = 4,
}

/// Why a command could not do what it is for.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    message: String,
}

impl Failure {
    fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

impl From<StateError> for Failure {
    fn from(error: StateError) -> Self {
        Self::new(Exit::NotPermitted, chain(&error))
    }
}

impl From<NetlinkError> for Failure {
    fn from(error: NetlinkError) -> Self {
        let denied = matches!(error.errno(), Some(Errno::EPERM | Errno::EACCES));
        Self::new(if denied { Exit::NotPermitted } else { Exit::NotDone }, chain(&error))
    }
}

impl From<AgentError> for Failure {
    fn from(error: AgentError) -> Self {
        match error {
            AgentError::State(error) => error.into(),
            AgentError::Kernel(error) => error.into(),
            AgentError::System { .. } => Self::new(Exit::NotDone, chain(&error)),
        }
    }
}

impl From<EvidenceError> for Failure {
    fn from(error: EvidenceError) -> Self {
        Self::new(Exit::NotDone, chain(&error))
    }
}

impl From<InstallError> for Failure {
    fn from(error: InstallError) -> Self {
        Self::new(Exit::NotDone, error.to_string())
    }
}

impl From<SelectError> for Failure {
    fn from(error: SelectError) -> Self {
        Self::new(Exit::Usage, error.to_string())
    }
}

/// Runs the command of these arguments and returns the exit code.
pub fn run(arguments: impl Iterator<Item = OsString>) -> u8 {
    let arguments = match Arguments::try_parse_from(arguments) {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            return if error.use_stderr() { Exit::Usage } else { Exit::Done } as u8;
        }
    };
    let exit = match dispatch(&arguments) {
        Ok(exit) => exit,
        Err(failure) => {
            say_error(&failure.message);
            failure.exit
        }
    };
    exit as u8
}

fn dispatch(arguments: &Arguments) -> Result<Exit, Failure> {
    let state_dir = &arguments.global.state_dir;
    match &arguments.command {
        Command::Completions { shell } => return Ok(manual::completions(*shell)),
        Command::Man { out } => return manual::man(out.as_deref()),
        // Whose files these are they find out themselves, and a dry run needs no root.
        Command::Install(arguments) if !arguments.adopts_now() => return install::install(state_dir, arguments),
        Command::Uninstall(arguments) => {
            return Ok(arguments.run(state_dir, &mut io::stdout()).map(|()| Exit::Done)?);
        }
        _ => {}
    }
    logging::start(arguments.global.log_config());
    if !geteuid().is_root() {
        let message = format!(
            "must be run as root, not as user {}: it enters network namespaces and changes their rules",
            geteuid()
        );
        return Err(Failure::new(Exit::NotPermitted, message));
    }
    match &arguments.command {
        Command::Isolate(isolate) => isolate::isolate(state_dir, isolate, &arguments.global.log_arguments()),
        Command::Release(arguments) => isolate::release(state_dir, arguments),
        Command::Status(arguments) => status::status(state_dir, arguments),
        Command::List(arguments) => status::list(state_dir, arguments),
        Command::Evidence(arguments) => evidence::evidence(state_dir, arguments),
        Command::Report(arguments) => report::report(state_dir, arguments),
        Command::Watch(arguments) => live::watch(state_dir, arguments),
        Command::Sync => sync::sync(state_dir, collectors(&arguments.global)?),
        Command::Adopt(arguments) => adopt::run(state_dir, arguments),
        Command::Agent { release_after, no_adopt, no_capture, places, metrics } => {
            let options = agent::Options {
                release_after: *release_after,
                collectors: collectors(&arguments.global)?,
                adopts: !no_adopt,
                places: places.places(),
                captures: !no_capture,
                metrics: *metrics,
            };
            agent::run(state_dir, options).map(|()| Exit::Done).map_err(Failure::from)
        }
        Command::Install(arguments) => install::install(state_dir, arguments),
        Command::Completions { .. } | Command::Man { .. } | Command::Uninstall(_) => Ok(Exit::Done),
    }
}

/// Who collects evidence after the cut; nobody where it is not wanted.
fn collectors(global: &Global) -> Result<Option<Collectors>, Failure> {
    let start = || Collectors::new(THIS_PROGRAM.into(), global.state_dir.clone(), global.log_arguments());
    is_wanted().then(start).transpose().map_err(|error| Failure::new(Exit::NotDone, error.to_string()))
}

/// Who asks: as said, else the name that somebody logged in with.
fn actor(said: Option<&str>) -> String {
    let variable = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    said.map(str::to_owned)
        .or_else(|| ["SUDO_USER", "LOGNAME", "USER"].into_iter().find_map(variable))
        .or_else(|| User::from_uid(nix::unistd::getuid()).ok().flatten().map(|user| user.name))
        .unwrap_or_else(|| nix::unistd::getuid().to_string())
}

/// Says to the person what went wrong.
fn say_error(message: &str) {
    let _ = writeln!(io::stderr(), "quarantine: {message}");
}

/// Writes to standard output; false where nobody reads it any more.
fn print(text: &str) -> bool {
    print_bytes(text.as_bytes())
}

fn print_bytes(bytes: &[u8]) -> bool {
    let mut output = io::stdout().lock();
    output.write_all(bytes).and_then(|()| output.flush()).is_ok()
}
