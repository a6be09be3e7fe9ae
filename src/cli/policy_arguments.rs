//! What is still let through, as `isolate` is told it.

#![allow(rustdoc::broken_intra_doc_links, reason = "clap prints these comments as help")]

use clap::Args;

use crate::model::policy::{Allow, Policy, Ports, Prober, Probes};

#[derive(Debug, Args)]
#[command(next_help_heading = "What is still let through (without any of these, what the conflist says)")]
pub(super) struct PolicyArguments {
    /// Let nothing through, not even lo and the node's probes
    #[arg(long, conflicts_with_all = ["allow", "probe_port", "probe_cgroup", "no_probes"])]
    sealed: bool,
    /// Let these flows through: DIRECTION:PEER:PROTOCOL[:PORTS]; may be repeated
    #[arg(long, value_name = "FLOW")]
    allow: Vec<Allow>,
    /// Let the node's own probes through to this port only; may be repeated
    #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    probe_port: Vec<u16>,
    /// Let probes through from this cgroup of the node only: `kubelet`, or a path as `system.slice/kubelet.service`
    #[arg(long, value_name = "CGROUP", value_parser = prober)]
    probe_cgroup: Option<Prober>,
    /// Let the node's own probes not through; the kubelet will restart what it probes
    #[arg(long, conflicts_with_all = ["probe_port", "probe_cgroup"])]
    no_probes: bool,
}

impl PolicyArguments {
    /// The policy that was asked for; none where the conflist's is to hold.
    pub(super) fn policy(&self) -> Option<Policy> {
        if self.sealed {
            return Some(Policy::sealed());
        }
        if self.allow.is_empty() && self.probe_port.is_empty() && self.probe_cgroup.is_none() && !self.no_probes {
            return None;
        }
        let probes = match self.no_probes {
            true => Probes::Off,
            false => Probes::On {
                ports: Ports::new(self.probe_port.iter().map(|&port| (port, port))),
                prober: self.probe_cgroup.clone().unwrap_or(Prober::Root),
            },
        };
        Some(Policy { probes, allow: self.allow.clone(), ..Policy::default() })
    }
}

fn prober(text: &str) -> Result<Prober, String> {
    Prober::parse(text).ok_or_else(|| "it is no path of a cgroup below the root".to_owned())
}
