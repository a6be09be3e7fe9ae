//! What takes packets past the host guard, and what the eBPF layer leaves of that.

use std::fmt;

/// What takes packets past the host guard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Bypass {
    /// An XDP program on the device.
    Xdp {
        /// The host's end.
        device: String,
    },
    /// A tc action that redirects or copies.
    TcRedirect {
        /// The interface that the filter is on, where it is another one.
        from: Option<String>,
        /// The host's end.
        device: String,
    },
    /// A BPF program in a tc filter.
    TcBpf {
        /// The host's end.
        device: String,
    },
    /// A BPF program that no tc filter shows.
    BpfLink {
        /// The host's end.
        device: String,
    },
    /// BPF programs on another interface, which may redirect to this one.
    BpfElsewhere {
        /// That interface.
        from: String,
        /// The host's end.
        device: String,
    },
    /// Another table that sees frames first.
    TableInFront {
        /// The table.
        table: String,
        /// The host's end.
        device: String,
    },
}

impl fmt::Display for Bypass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Xdp { device } => write!(f, "an XDP program on {device}"),
            Self::TcRedirect { from: None, device } => write!(f, "a tc redirect on {device}"),
            Self::TcRedirect { from: Some(from), device } => write!(f, "a tc redirect from {from} to {device}"),
            Self::TcBpf { device } => write!(f, "a BPF program in tc on {device}"),
            Self::BpfLink { device } => write!(f, "a BPF program in tcx or netkit on {device}"),
            Self::BpfElsewhere { from, device } => write!(f, "a BPF program on {from} that may redirect to {device}"),
            Self::TableInFront { table, device } => {
                write!(f, "nftables table netdev {table} in front of the guard on {device}")
            }
        }
    }
}

impl Bypass {
    /// What the programs of the eBPF layer leave of it, where they are in place.
    pub(super) fn behind_programs(&self, into_pods: bool) -> Leak {
        match self {
            // It comes before tcx on the way out of the pod, and can send frames off itself.
            Self::Xdp { .. } => Leak::Open,
            // It ends at the egress of a host's end, or begins behind tcx.
            Self::TcRedirect { .. } | Self::TableInFront { .. } => Leak::Closed,
            // Where it puts frames straight into the pod, generic XDP lets those by that were redirected before.
            Self::TcBpf { .. } | Self::BpfLink { .. } | Self::BpfElsewhere { .. } if into_pods => Leak::OfNeighbours,
            Self::TcBpf { .. } | Self::BpfLink { .. } | Self::BpfElsewhere { .. } => Leak::Closed,
        }
    }

    pub(super) fn code(&self) -> &'static str {
        match self {
            Self::Xdp { .. } => "xdp-program",
            Self::TcRedirect { .. } => "tc-redirect",
            Self::TcBpf { .. } | Self::BpfLink { .. } | Self::BpfElsewhere { .. } => "bpf-program",
            Self::TableInFront { .. } => "table-in-front",
        }
    }
}

/// What is left of a way past the host guard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Leak {
    /// Nothing.
    Closed,
    /// What a neighbour redirects.
    OfNeighbours,
    /// All of it.
    Open,
}
