//! What a process may do that takes it past programs on its cgroup.

use std::fmt;

/// A set of capabilities, a bit each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities(u64);

/// A capability that matters here, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Capability {
    /// Addresses, links, and (with `CAP_BPF`) programs of its own.
    NetAdmin = 12,
    /// Packet sockets, which no program on a cgroup sees.
    NetRaw = 13,
    /// A module of its own in the kernel.
    SysModule = 16,
    /// The memory of the kernel.
    SysRawio = 17,
    /// The memory of processes of other cgroups.
    SysPtrace = 19,
    /// Other cgroups, and programs taken off.
    SysAdmin = 21,
    /// Programs taken off.
    Bpf = 39,
}

impl Capability {
    const ALL: [Self; 7] =
        [Self::NetAdmin, Self::NetRaw, Self::SysModule, Self::SysRawio, Self::SysPtrace, Self::SysAdmin, Self::Bpf];
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NetAdmin => "CAP_NET_ADMIN",
            Self::NetRaw => "CAP_NET_RAW",
            Self::SysModule => "CAP_SYS_MODULE",
            Self::SysRawio => "CAP_SYS_RAWIO",
            Self::SysPtrace => "CAP_SYS_PTRACE",
            Self::SysAdmin => "CAP_SYS_ADMIN",
            Self::Bpf => "CAP_BPF",
        })
    }
}

impl Capabilities {
    /// Those of the set that take a process past the programs.
    pub fn dangerous(self) -> impl Iterator<Item = Capability> {
        Capability::ALL.into_iter().filter(move |capability| self.0 & (1 << *capability as u64) != 0)
    }

    fn read(text: &str) -> Option<Self> {
        u64::from_str_radix(text, 16).ok().map(Self)
    }
}

/// What a process may do, and what it may come to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Privileges {
    is_root: bool,
    permitted: Capabilities,
    bounding: Capabilities,
    no_new: bool,
}

impl Privileges {
    /// Reads `/proc/<process>/status`.
    #[must_use]
    pub fn read(status: &str) -> Option<Self> {
        let field = |name: &str| {
            let lines = status.lines().filter_map(|line| line.split_once(':'));
            lines.filter(|(key, _)| *key == name).map(|(_, value)| value.trim()).next()
        };
        Some(Self {
            is_root: field("Uid")?.split_ascii_whitespace().any(|uid| uid == "0"),
            permitted: Capabilities::read(field("CapPrm")?)?,
            bounding: Capabilities::read(field("CapBnd")?)?,
            no_new: field("NoNewPrivs") == Some("1"),
        })
    }

    /// Whether it is root, or may come to be.
    #[must_use]
    pub fn may_be_root(self) -> bool {
        self.is_root || !self.no_new || self.permitted != Capabilities::default()
    }

    /// What it may come to do: by a program with privileges of its own all that its bounding set has, unless it gave that up.
    #[must_use]
    pub fn within_reach(self) -> Capabilities {
        if self.no_new { self.permitted } else { Capabilities(self.permitted.0 | self.bounding.0) }
    }
}

/// Of any text: what is within reach is at least what is permitted.
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(text: &str) {
    if let Some(privileges) = Privileges::read(text) {
        assert_eq!(privileges.within_reach().0 & privileges.permitted.0, privileges.permitted.0);
    }
}
