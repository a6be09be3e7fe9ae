//! The commands and their arguments, as `clap` reads them. Help, completions and man pages are made from this.

#![allow(rustdoc::broken_intra_doc_links, rustdoc::invalid_html_tags, reason = "clap prints these comments as help")]

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;
use log::LevelFilter;

use crate::install::command::{InstallArgs, UninstallArgs};
use crate::model::policy::Policy;
use crate::node::logging::{LogConfig, LogTarget};
use crate::node::state::DEFAULT_STATE_DIR;
use crate::plugin::config::parse_level;

use super::policy_arguments::PolicyArguments;

const EXIT_CODES: &str = "\
Exit codes:
  0  what was asked for is done, and was read back from the kernel
  1  it is not done, or not whole; what is said tells why
  2  the command line cannot be understood, or names no sandbox or several
  3  not permitted, or the state directory is missing or unsound
  4  marked, and waits: no such pod is on this node yet; it will be isolated before its first packet";

const SANDBOXES: &str = "\
What <SANDBOX> may be:
  the container ID of the pod's sandbox, or a prefix that no other one has; the pod's UID; namespace/name.
  Pods with hostNetwork are named by their UID, and by namespace/name where /var/log/pods has it; pods that started
  before the plugin was in the conflist can be reached once they are adopted.";

/// `quarantine …`.
#[derive(Debug, Parser)]
#[command(
    name = "quarantine",
    version,
    about = "Cuts compromised pods off the network at once, and says truly whether they are",
    after_help = EXIT_CODES,
    max_term_width = 110
)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) global: Global,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// What every command takes.
#[derive(Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub(super) struct Global {
    /// The state directory
    #[arg(long, global = true, value_name = "DIR", default_value = DEFAULT_STATE_DIR)]
    pub(super) state_dir: PathBuf,
    /// Where audit lines go; standard error where there is no syslog socket
    #[arg(long, global = true, value_name = "TARGET", default_value = "syslog", value_parser = log_target())]
    log: LogTarget,
    /// The least important level that is logged
    #[arg(long, global = true, value_name = "LEVEL", default_value = "info", value_parser = log_level())]
    log_level: LevelFilter,
}

impl Global {
    pub(super) fn log_config(&self) -> LogConfig {
        LogConfig { target: self.log, level: self.log_level }
    }

    /// The same as arguments, for a process of this program.
    pub(super) fn log_arguments(&self) -> Vec<String> {
        let target = match self.log {
            LogTarget::Syslog => "syslog",
            LogTarget::Stderr => "stderr",
        };
        ["--log", target, "--log-level", &self.log_level.as_str().to_ascii_lowercase()].map(str::to_owned).to_vec()
    }
}

fn log_target() -> impl TypedValueParser<Value = LogTarget> {
    PossibleValuesParser::new(["syslog", "stderr"])
        .map(|text| LogTarget::parse(&text).unwrap_or(LogConfig::default().target))
}

fn log_level() -> impl TypedValueParser<Value = LevelFilter> {
    PossibleValuesParser::new(["off", "error", "warn", "info", "debug", "trace"])
        .map(|text| parse_level(&text).unwrap_or(LogConfig::default().level))
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Cut a pod off the network
    ///
    /// Writes a mark, enforces it and reads the kernel back: when the command returns 0, it is so, with or without a
    /// running agent. Everything that is not allowed stops, established connections included, until `release`. A
    /// pod that is not on the node yet can be marked by UID or namespace/name: it is isolated before its first packet
    /// (one with hostNetwork once it runs).
    Isolate(Isolate),
    /// Let a pod's traffic flow again
    ///
    /// Removes every mark that holds for the pod (by container ID, by UID, by name), and says which.
    Release(Release),
    /// Say what is isolated, read back from the kernel
    Status(Status),
    /// List the sandboxes and marks of the node, and network namespaces that have no record, without asking what is enforced
    List(List),
    /// Bring every sandbox of the node to what its marks want
    ///
    /// What the agent does all the time, once.
    #[command(after_help = EXIT_CODES)]
    Sync,
    /// Watch the state directory and apply each change at once
    ///
    /// One on each node, mostly started by systemd. It also puts back what somebody changes in the rules of an isolated
    /// pod. SIGHUP has it look at everything again, SIGTERM ends it; what is isolated stays isolated.
    #[command(after_help = EXIT_CODES)]
    Agent {
        /// A mark that is gone for less than this releases nobody: editors and configuration management replace files
        /// by removing and making them; as 200ms or 1s, 0 for no such wait. `quarantine release` never waits
        #[arg(long, value_name = "TIME", default_value = "200ms", value_parser = parse_time)]
        release_after: Duration,
        /// Leave pods that were made without the plugin alone
        #[arg(long)]
        no_adopt: bool,
        /// Keep no packets of what isolated pods try, whatever the network configuration says
        #[arg(long)]
        no_capture: bool,
        #[command(flatten)]
        places: CniPlaces,
        /// Serve what is counted there, for Prometheus, as 127.0.0.1:9468
        #[arg(long, value_name = "ADDRESS")]
        metrics: Option<SocketAddr>,
    },
    Evidence(Evidence),
    Watch(Watch),
    Report(Report),
    Adopt(Adopt),
    Install(InstallArgs),
    Uninstall(UninstallArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  quarantine completions bash >/etc/bash_completion.d/quarantine")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Print the manual page, or write one for each command
    #[command(after_help = "Example:\n  quarantine man --out /usr/local/share/man/man8")]
    Man {
        /// Write the pages into this directory, one for each command
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
}

#[derive(Debug, Args)]
#[command(after_help = format!("\
{SANDBOXES}

Examples:
  quarantine isolate shop/web-6c9f --reason beacon --case IR-2041
  quarantine isolate 3f2a91 --sealed
  quarantine isolate 0f9d6b52-… --allow egress:10.20.0.5/32:tcp:443 --allow ingress:[fd00:20::7]/128:tcp:22
  quarantine isolate 3f2a91 --probe-port 8080 --dry-run

{EXIT_CODES}
  `contained` is 0, and so is `partial`, with its reasons said, unless hostGuard is \"require\"; `open` is 1."))]
pub(super) struct Isolate {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    policy: PolicyArguments,
    #[command(flatten)]
    pub(super) by: Attribution,
    /// Print the rules that would be loaded, as nft text, and change nothing
    #[arg(long)]
    pub(super) dry_run: bool,
    /// The pod may be yet to come: exit with 0, not 4, where no such pod is on this node
    #[arg(long)]
    pub(super) wait_for_pod: bool,
}

impl Isolate {
    /// The policy that was asked for; none where the conflist's is to hold.
    pub(super) fn policy(&self) -> Option<Policy> {
        self.policy.policy()
    }
}

#[derive(Debug, Args)]
#[command(after_help = format!("\
{SANDBOXES}

Examples:
  quarantine release shop/web-6c9f
  quarantine release --all --yes

{EXIT_CODES}"))]
pub(super) struct Release {
    #[command(flatten)]
    pub(super) target: Target,
    #[command(flatten)]
    pub(super) by: Attribution,
}

/// Which sandboxes.
#[derive(Debug, Args)]
pub(super) struct Target {
    /// Container ID or a unique prefix of one, pod UID, or namespace/name
    #[arg(required_unless_present = "all")]
    pub(super) sandbox: Option<String>,
    /// Take <SANDBOX> as a pod UID that may not be on the node yet, whatever it looks like
    #[arg(long, conflicts_with = "all")]
    pub(super) uid: bool,
    /// All of the node
    #[arg(long, conflicts_with = "sandbox")]
    pub(super) all: bool,
    /// Mean it (with --all)
    #[arg(long, requires = "all", conflicts_with = "sandbox")]
    pub(super) yes: bool,
}

/// Who asks, and why.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "For the record")]
pub(super) struct Attribution {
    /// Why
    #[arg(long)]
    pub(super) reason: Option<String>,
    /// The case that it belongs to
    #[arg(long)]
    pub(super) case: Option<String>,
    /// Who [default: the login name]
    #[arg(long)]
    pub(super) actor: Option<String>,
}

#[derive(Debug, Args)]
#[command(after_help = format!("\
{SANDBOXES}

Verdicts:
  contained  nothing passes but what the policy lets through
  partial    something is stopped, and something is not; the reasons say what
  open       traffic flows
  gone       the sandbox's network namespace does not exist any more
  unknown    the kernel could not be asked

JSON (-o json), stable: for one sandbox an object with containerID, pod {{namespace, name, uid}}, netns,
  state (isolated or released: what the marks want), verdict, reasons, layers {{pod, host}}, policy, mark {{keys,
  reason, case, actor, since, fault}}, drops [{{layer, interface, direction, packets, bytes}}], attempts
  [{{protocol, address, port, packets}}], error. For all, or where not exactly one sandbox answers, an object
  with the lists sandboxes (of these objects), unanswered (marks: key, reason, case, actor, since, fault) and
  damaged (records: path, fault). What is not known is null. With --watch, one document on each line.

Examples:
  quarantine status
  quarantine status shop/web-6c9f -o json | jq -r .verdict
  quarantine status --watch

{EXIT_CODES}
  0 where all that is marked is contained or partial (contained, if hostGuard is \"require\"), and all else released."))]
pub(super) struct Status {
    /// Container ID or a unique prefix of one, pod UID, or namespace/name [default: all of the node]
    pub(super) sandbox: Option<String>,
    /// The form of the answer
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub(super) output: Output,
    /// Go on, and say what changes, until interrupted
    #[arg(long)]
    pub(super) watch: bool,
}

/// Where the runtime and libcni keep what is needed to adopt.
#[derive(Debug, Clone, Args)]
pub(super) struct CniPlaces {
    /// libcni's cache
    #[arg(long, value_name = "DIR", default_value = "/var/lib/cni")]
    pub(super) cni_cache: PathBuf,
    /// The network configurations
    #[arg(long, value_name = "DIR", default_value = "/etc/cni/net.d")]
    pub(super) cni_conf: PathBuf,
    /// The CRI socket of a runtime, which is asked for pods that are not in the cache; may be given again
    #[arg(long, value_name = "SOCKET", default_values = ["/run/containerd/containerd.sock", "/run/crio/crio.sock"])]
    pub(super) cri: Vec<PathBuf>,
}

/// Take pods in that were made without the plugin
///
/// They get records of what libcni's cache says of them, or their runtime, checked against the kernel, and can be isolated from
/// then on. The agent does that for every network that has the plugin's entry, when it starts and when the configurations change.
#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct Adopt {
    /// Container ID or a unique prefix of one, pod UID, or namespace/name
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    pub(super) sandboxes: Vec<String>,
    /// All of the node
    #[arg(long)]
    pub(super) all: bool,
    #[command(flatten)]
    pub(super) places: CniPlaces,
}

/// What a pod was doing when it was cut off: list it, verify it, hand it on, collect it again
///
/// It is collected right after each isolation, by a process of its own, into evidence/ in the state directory. Without
/// options the collections are listed.
#[derive(Debug, Args)]
#[command(after_help = format!("\
{SANDBOXES}
  Also one that has ended, as long as its evidence is kept.

Examples:
  quarantine evidence
  quarantine evidence shop/web-6c9f --verify
  quarantine evidence shop/web-6c9f --collect --with-executables
  quarantine evidence shop/web-6c9f --out IR-2041.tar.zst

{EXIT_CODES}
  --verify exits with 1 where anything was changed, removed or added."))]
pub(super) struct Evidence {
    /// Container ID or a unique prefix of one, pod UID, or namespace/name [default: all of the node]
    #[arg(required_if_eq_any = [("collect", "true")])]
    pub(super) sandbox: Option<String>,
    /// Collect now, and wait for it
    #[arg(long)]
    pub(super) collect: bool,
    /// Copy executables that were deleted or never were files, too
    #[arg(long, requires = "collect")]
    pub(super) with_executables: bool,
    /// Compare files and chain with the manifests
    #[arg(long)]
    pub(super) verify: bool,
    /// Write the collections to a new file
    #[arg(long, value_name = "FILE.tar.zst")]
    pub(super) out: Option<PathBuf>,
    /// The form of the list
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub(super) output: Output,
}

/// What an isolated pod tries, and who tries to reach it, as it comes
///
/// Shows the packets that were dropped and that the agent keeps of them, in captures/ in the state directory, and goes on until
/// interrupted. Any tool reads the files too: tcpdump -r, Wireshark.
#[derive(Debug, Args)]
#[command(after_help = format!("\
{SANDBOXES}

Examples:
  quarantine watch shop/web-6c9f
  quarantine watch shop/web-6c9f --kept -o json | jq -r .comment

{EXIT_CODES}"))]
pub(super) struct Watch {
    /// Container ID or a unique prefix of one, pod UID, or namespace/name
    pub(super) sandbox: String,
    /// Show what is kept, from the first packet on, and end
    #[arg(long)]
    pub(super) kept: bool,
    /// The form of each packet
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub(super) output: Output,
}

/// One page for people: who was isolated, by whom and why, what was cut, what it tried, what ran in it
///
/// Put together of the status, the log, the evidence and the packets that are kept. The page stands by itself: it loads nothing and
/// runs nothing.
#[derive(Debug, Args)]
#[command(after_help = format!("\
{SANDBOXES}
  Also one that has ended, as long as its evidence is kept.

Examples:
  quarantine report shop/web-6c9f --out IR-2041.html
  journalctl -t quarantine | quarantine report shop/web-6c9f --history - -o md

{EXIT_CODES}"))]
pub(super) struct Report {
    /// Container ID or a unique prefix of one, pod UID, or namespace/name
    pub(super) sandbox: String,
    /// The form of the page
    #[arg(short, long, value_name = "FORM", default_value = "html")]
    pub(super) output: Page,
    /// Write it to a new file, not to standard output
    #[arg(long, value_name = "FILE")]
    pub(super) out: Option<PathBuf>,
    /// The log to take its history from, - for standard input [default: the node's syslog files]
    #[arg(long, value_name = "FILE")]
    pub(super) history: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Page {
    /// A page for a browser
    Html,
    /// Markdown, for a ticket
    Md,
}

#[derive(Debug, Args)]
#[command(after_help = EXIT_CODES)]
pub(super) struct List {
    #[command(flatten)]
    pub(super) places: CniPlaces,
    /// The form of the answer
    #[arg(short, long, value_name = "FORM", default_value = "table")]
    pub(super) output: Output,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people
    Table,
    /// For scripts
    Json,
}

/// Reads `200ms`, `1s` or `0`.
fn parse_time(text: &str) -> Result<Duration, String> {
    let number = |digits: &str| digits.parse::<u32>().ok().map(u64::from);
    let time = match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(digits), _) => number(digits).map(Duration::from_millis),
        (None, Some(digits)) => number(digits).map(Duration::from_secs),
        (None, None) => (text == "0").then_some(Duration::ZERO),
    };
    time.ok_or_else(|| format!("{text:?} is not a time: write it as 200ms, 1s or 0"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn isolate(arguments: &[&str]) -> Result<Isolate, String> {
        let arguments = ["quarantine", "isolate"].iter().chain(arguments);
        match Arguments::try_parse_from(arguments).map_err(|error| error.to_string())?.command {
            Command::Isolate(isolate) => Ok(isolate),
            other => Err(format!("{other:?}")),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn flags_make_a_whole_policy_and_no_flag_makes_none() {
        let policy = |arguments: &[&str]| isolate(arguments).unwrap().policy().map(|policy| policy.to_string());
        assert_eq!(policy(&["c1"]), None);
        assert_eq!(policy(&["c1", "--sealed"]).unwrap(), "sealed");
        assert_eq!(policy(&["c1", "--no-probes"]).unwrap(), "loopback");
        assert_eq!(
            policy(&["c1", "--probe-port", "9", "--probe-port", "8", "--allow", "egress:[fd00::1]:tcp:443"]).unwrap(),
            "loopback+probes:8-9+egress:fd00::1/128:tcp:443"
        );
        for bad in [
            &["c1", "--sealed", "--no-probes"][..],
            &["c1", "--no-probes", "--probe-port", "1"],
            &["c1", "--probe-port", "0"],
            &["c1", "--allow", "egress"],
            &[],
            &["c1", "--all"],
            &["c1", "--yes"],
        ] {
            assert!(isolate(bad).is_err(), "{bad:?}");
        }
    }
}
