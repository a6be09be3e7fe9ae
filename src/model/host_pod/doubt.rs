//! Why a pod in the node's network namespace cannot be called `contained`, or what else is to be known of it.

use std::fmt;

use super::capabilities::Capability;

/// Which way packets go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Way {
    /// To the pod's sockets.
    In,
    /// From them.
    Out,
}

/// What is wrong with a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramFault {
    /// It is not attached.
    Missing,
    /// It is another one.
    Altered,
    /// The kernel does not have what it takes.
    Unsupported(String),
    /// It could not be attached, or be read.
    Failed(String),
}

/// A socket whose packets no program on a cgroup sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Socket {
    /// `AF_PACKET`.
    Packet,
    /// `AF_XDP`.
    Xdp,
}

/// What speaks against the programs, or is to be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostDoubt {
    /// One of the programs is not as it should be.
    Program(Way, ProgramFault),
    /// A process has a socket for frames.
    Frames {
        /// Its number on the node.
        process: u32,
        /// What it calls itself; escaped.
        name: String,
        /// The socket.
        socket: Socket,
    },
    /// A process has a socket that was made in another cgroup.
    Foreign {
        /// Its number.
        process: u32,
        /// What it calls itself; escaped.
        name: String,
    },
    /// The kernel's lists of sockets could not be read, which say where they were made.
    NoLists {
        /// Why.
        why: String,
    },
    /// A process may open such sockets, leave the cgroup or take the programs off.
    Capable {
        /// A process that may, by its number.
        process: u32,
        /// What it calls itself; escaped.
        name: String,
        /// By what.
        capabilities: Vec<Capability>,
    },
    /// A process can write to a file system by which it could leave the cgroup or take the programs off.
    Writes {
        /// Its number.
        process: u32,
        /// What it calls itself; escaped.
        name: String,
        /// Where that is, as the process sees it; escaped.
        mount: String,
    },
    /// Processes of the pod are in other network namespaces.
    OtherNetns {
        /// How many.
        processes: usize,
    },
    /// A process could not be looked at.
    Unseen {
        /// Its number.
        process: u32,
        /// Why.
        why: String,
    },
    /// The node has sockets that belong to no cgroup of version 2.
    OldCgroups,
}

impl fmt::Display for Socket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Packet => "a packet socket",
            Self::Xdp => "an AF_XDP socket",
        })
    }
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "for what the pod's sockets receive",
            Self::Out => "for what the pod's sockets send",
        })
    }
}

impl HostDoubt {
    /// A word for it that does not change: what runbooks and alerts go by.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Program(_, ProgramFault::Missing) => "ebpf-missing",
            Self::Program(_, ProgramFault::Altered) => "ebpf-altered",
            Self::Program(_, ProgramFault::Unsupported(_)) => "ebpf-unsupported",
            Self::Program(_, ProgramFault::Failed(_)) => "ebpf-failed",
            Self::Frames { socket: Socket::Packet, .. } => "packet-socket",
            Self::Frames { socket: Socket::Xdp, .. } => "xdp-socket",
            Self::Foreign { .. } => "foreign-socket",
            Self::NoLists { .. } => "sockets-unseen",
            Self::Capable { .. } => "capabilities",
            Self::Writes { .. } => "writable-mount",
            Self::OtherNetns { .. } => "other-netns",
            Self::Unseen { .. } => "process-unseen",
            Self::OldCgroups => "cgroup-v1",
        }
    }
}

impl fmt::Display for HostDoubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program(way, ProgramFault::Missing) => {
                write!(f, "the eBPF program {way} is not attached; `quarantine sync` attaches it")
            }
            Self::Program(way, ProgramFault::Altered) => {
                write!(f, "the eBPF program {way} is not the one that belongs there")
            }
            Self::Program(way, ProgramFault::Unsupported(why)) => {
                write!(f, "the eBPF program {way} cannot be attached on this kernel: {why}")
            }
            Self::Program(way, ProgramFault::Failed(why)) => {
                write!(f, "the eBPF program {way} could not be attached or read: {why}")
            }
            Self::Frames { process, name, socket } => write!(
                f,
                "process {process} ({name}) has {socket}, whose frames no program on a cgroup sees, out or in; ending the process closes it"
            ),
            Self::Foreign { process, name } => write!(
                f,
                "process {process} ({name}) has a socket of another cgroup, which somebody handed to it, and whose packets pass; ending the process closes it there"
            ),
            Self::NoLists { why } => write!(
                f,
                "whether a process of it has a socket of another cgroup cannot be told: {why}"
            ),
            Self::Capable { process, name, capabilities } => {
                let capabilities: Vec<_> = capabilities.iter().map(ToString::to_string).collect();
                write!(
                    f,
                    "process {process} ({name}) may have or get {}: with these a process can send and receive frames by a packet socket, leave its cgroup, or take the programs off",
                    capabilities.join(", ")
                )
            }
            Self::Writes { process, name, mount } => write!(
                f,
                "process {process} ({name}) has a file system at {mount} that it could leave its cgroup by, or take the programs off"
            ),
            Self::OtherNetns { processes } => write!(
                f,
                "{processes} of its processes are in other network namespaces; what their sockets send and receive is stopped, and not what is forwarded there"
            ),
            Self::Unseen { process, why } => write!(f, "process {process} of it could not be looked at: {why}"),
            Self::OldCgroups => f.write_str(
                "cgroups of version 1 that sort packets (net_cls, net_prio) are in use on this kernel, which then leaves sockets outside the cgroups of version 2",
            ),
        }
    }
}
