//! The `quarantine-kube` binary: the parts of quarantine that run in a cluster.

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use quarantine_kube::controller::{self, ControllerArguments};
use quarantine_kube::keep::{self, KeepArguments};
use quarantine_kube::node::{self, NodeArguments};
use quarantine_kube::uninstall::{self, UninstallArguments};

/// The chart of `kubernetes/chart`, with its own values, as scripts/chart renders it.
const MANIFESTS: &str = include_str!("../../conf/kubernetes/quarantine.yaml");

/// The parts of quarantine that run in a cluster.
#[derive(Parser, Debug)]
#[command(name = "quarantine-kube", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// On each node: writes the marks of the node's PodQuarantines, and says what the kernel was found to be.
    Node(NodeArguments),
    /// One in the cluster: resolves names, and takes isolated pods out of their Services and from their owners.
    Controller(ControllerArguments),
    /// On each node: keeps the plugin in the network configuration, whoever rewrites it.
    Keep(KeepArguments),
    /// Takes the plugin off every node; refuses while pods are isolated.
    Uninstall(UninstallArguments),
    /// Does nothing until it is told to end: for a pod that has done what it was for.
    Rest,
    /// Prints the definition of PodQuarantine.
    Crd,
    /// Prints all that a cluster needs, for `kubectl apply -f -`.
    Manifests,
}

fn main() -> ExitCode {
    match run(Arguments::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "quarantine-kube: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let text = match arguments.command {
        Command::Crd => Some(quarantine_kube::api::definition_as_yaml()?),
        Command::Manifests => Some(MANIFESTS.to_owned()),
        Command::Node(_) | Command::Controller(_) | Command::Keep(_) | Command::Uninstall(_) | Command::Rest => None,
    };
    if let Some(text) = text {
        std::io::stdout().write_all(text.as_bytes())?;
        return Ok(());
    }
    let log =
        cni_quarantine::logging::LogConfig { target: cni_quarantine::logging::LogTarget::Stderr, ..Default::default() };
    cni_quarantine::logging::start(log);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match arguments.command {
            Command::Node(arguments) => node::run(arguments, kube::Client::try_default().await?).await,
            Command::Controller(arguments) => controller::run(arguments, kube::Client::try_default().await?).await,
            Command::Keep(arguments) => keep::run(arguments).await,
            Command::Uninstall(arguments) => {
                let mut say = |line: &str| drop(writeln!(std::io::stdout(), "{line}"));
                Ok(uninstall::run(&arguments, kube::Client::try_default().await?, &mut say).await?)
            }
            Command::Rest => {
                quarantine_kube::watching::ended().await;
                Ok(())
            }
            Command::Crd | Command::Manifests => Ok(()),
        }
    })
}
