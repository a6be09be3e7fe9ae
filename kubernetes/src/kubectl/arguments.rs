//! The command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use clap_complete::Shell;

use cni_quarantine::policy::{Allow, parse_range};

use crate::api::{AllowSpec, PolicySpec, Port};

/// Cut a pod off the network, and keep it as it is; from wherever kubectl works.
#[derive(Parser, Debug)]
#[command(name = "kubectl-quarantine", bin_name = "kubectl quarantine", version, propagate_version = true)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) cluster: Cluster,
    #[command(subcommand)]
    pub(super) command: Command,
}

/// Which cluster, and as whom.
#[derive(Args, Debug)]
pub(super) struct Cluster {
    /// The kubeconfig file
    #[arg(long, global = true, value_name = "FILE", env = "KUBECONFIG")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig
    #[arg(long, global = true)]
    pub(super) context: Option<String>,
    /// The pods' namespace [default: the context's]
    #[arg(short, long, global = true)]
    pub(super) namespace: Option<String>,
}

#[derive(Subcommand, Debug)]
pub(super) enum Command {
    /// Isolate a pod: at once, and until it is released
    Isolate(Isolate),
    /// Release a pod
    Release(Release),
    /// Say what the kernel of the pod's node was found to say
    Status(Status),
    /// List all pods that are, or were, isolated
    List(List),
    /// Take the plugin off every node; refuses while pods are isolated
    Uninstall(crate::uninstall::UninstallArguments),
    /// Print a completion script
    Completion {
        /// For which shell
        shell: Shell,
    },
}

/// `isolate`.
#[derive(Args, Debug)]
pub(super) struct Isolate {
    #[command(flatten)]
    pub(super) target: Target,
    /// Why
    #[arg(long)]
    pub(super) reason: Option<String>,
    /// The case that it belongs to
    #[arg(long)]
    pub(super) case: Option<String>,
    /// Let nothing through, not even probes and the pod's own loopback
    #[arg(long, conflicts_with_all = ["allow", "probe_port"])]
    sealed: bool,
    /// Let these flows through, as egress:10.20.0.5/32:tcp:443 (can be given again)
    #[arg(long, value_name = "FLOW")]
    allow: Vec<Allow>,
    /// Let the node's probes through to these ports only, as 8080 or 9000-9010 (can be given again)
    #[arg(long, value_name = "PORT", value_parser = port)]
    probe_port: Vec<Port>,
    /// Leave the pod in its Services and with its owner
    #[arg(long)]
    pub(super) no_detach: bool,
    /// Ask for attention after this time, as 90m, 12h or 7d
    #[arg(long, value_name = "TIME", value_parser = duration)]
    pub(super) expires_in: Option<Duration>,
    /// Release it then
    #[arg(long, requires = "expires_in")]
    pub(super) release_at_expiry: bool,
    #[command(flatten)]
    pub(super) waiting: Waiting,
    /// Have the API server check it, and change nothing
    #[arg(long, value_enum, value_name = "BY", conflicts_with = "wait")]
    pub(super) dry_run: Option<DryRun>,
}

/// Which pods.
#[derive(Args, Debug)]
pub(super) struct Target {
    /// The pod, as NAME or pod/NAME
    #[arg(required_unless_present = "selector", conflicts_with = "selector", value_parser = pod_name)]
    pub(super) pod: Option<String>,
    /// Every pod of the namespace that has these labels
    #[arg(short = 'l', long)]
    pub(super) selector: Option<String>,
    /// Do it to all that the selector finds
    #[arg(long, requires = "selector")]
    pub(super) yes: bool,
}

/// Whether to wait for the node.
#[derive(Args, Debug)]
pub(super) struct Waiting {
    /// Wait until the node has read it back from its kernel
    #[arg(long)]
    pub(super) wait: bool,
    /// The longest that is waited
    #[arg(long, value_name = "TIME", default_value = "60s", value_parser = duration)]
    pub(super) timeout: Duration,
}

/// Who checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum DryRun {
    /// The API server.
    Server,
}

/// `release`.
#[derive(Args, Debug)]
pub(super) struct Release {
    #[command(flatten)]
    pub(super) target: Target,
    /// Why
    #[arg(long)]
    pub(super) reason: Option<String>,
    #[command(flatten)]
    pub(super) waiting: Waiting,
    /// Have the API server check it, and change nothing
    #[arg(long, value_enum, value_name = "BY", conflicts_with = "wait")]
    pub(super) dry_run: Option<DryRun>,
}

/// `status`.
#[derive(Args, Debug)]
pub(super) struct Status {
    /// The pod, as NAME or pod/NAME
    #[arg(value_parser = pod_name)]
    pub(super) pod: String,
    /// Go on until interrupted
    #[arg(short, long)]
    pub(super) watch: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: Output,
}

/// `list`.
#[derive(Args, Debug)]
pub(super) struct List {
    /// Those of every namespace
    #[arg(short = 'A', long)]
    pub(super) all_namespaces: bool,
    /// How to print it
    #[arg(short, long, value_enum, default_value_t)]
    pub(super) output: Output,
}

/// How to print.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    #[default]
    Table,
    /// For scripts.
    Json,
}

impl Isolate {
    /// What is let through; none where the node's configuration is to hold.
    pub(super) fn policy(&self) -> Option<PolicySpec> {
        if self.sealed {
            return Some(PolicySpec::sealed());
        }
        if self.allow.is_empty() && self.probe_port.is_empty() {
            return None;
        }
        Some(PolicySpec {
            allow: self.allow.iter().map(AllowSpec::from).collect(),
            probe_ports: (!self.probe_port.is_empty()).then(|| self.probe_port.clone()),
            ..PolicySpec::default()
        })
    }
}

fn pod_name(text: &str) -> Result<String, String> {
    let name = match text.split_once('/') {
        None => text,
        Some(("pod" | "pods" | "po", name)) => name,
        Some((kind, _)) => return Err(format!("{kind} is no pod; only pods can be isolated, as pod/NAME")),
    };
    if name.is_empty() { Err("the name is empty".to_owned()) } else { Ok(name.to_owned()) }
}

fn port(text: &str) -> Result<Port, String> {
    match parse_range(text) {
        Some((first, last)) if first != 0 && first == last => Ok(Port::One(first)),
        Some((first, last)) if first != 0 && first < last => Ok(Port::Text(format!("{first}-{last}"))),
        _ => Err("a port from 1 to 65535 is needed, or a range of them as 8000-8100".to_owned()),
    }
}

fn duration(text: &str) -> Result<Duration, String> {
    const FORM: &str = "a number and a unit are needed, as 30s, 90m, 12h or 7d";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let number: u32 = digits.parse().map_err(|_| FORM.to_owned())?;
    let seconds = match &text[digits.len()..] {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return Err(FORM.to_owned()),
    };
    Ok(Duration::from_secs(u64::from(number) * seconds))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn words_are_read() {
        assert_eq!(pod_name("pod/web"), Ok("web".to_owned()));
        assert_eq!(pod_name("web"), Ok("web".to_owned()));
        assert!(pod_name("deployment/web").is_err() && pod_name("pod/").is_err());
        assert_eq!(duration("90m"), Ok(Duration::from_secs(5400)));
        assert_eq!(duration("2d"), Ok(Duration::from_secs(172_800)));
        for bad in ["", "m", "5", "-1s", "1w", "4294967296s"] {
            assert!(duration(bad).is_err(), "{bad}");
        }
        assert_eq!(port("80"), Ok(Port::One(80)));
        assert_eq!(port("80-90"), Ok(Port::Text("80-90".to_owned())));
        assert!(port("0").is_err() && port("90-80").is_err() && port("x").is_err());
    }

    #[test]
    fn a_policy_is_what_the_flags_say() {
        let policy = |flags: &[&str]| {
            let words = ["kubectl-quarantine", "isolate", "web"].iter().chain(flags);
            let Command::Isolate(isolate) = Arguments::try_parse_from(words).unwrap().command else { panic!() };
            isolate.policy().map(|policy| policy.understood().unwrap().to_string())
        };
        assert_eq!(policy(&[]), None);
        assert_eq!(policy(&["--sealed"]).as_deref(), Some("sealed"));
        assert_eq!(
            policy(&["--allow", "egress:10.20.0.5:tcp:443,80-90", "--probe-port", "8080"]).as_deref(),
            Some("loopback+probes:8080+egress:10.20.0.5/32:tcp:80-90,443")
        );
    }
}
