//! Where a program meets packets, and what it answers there.

pub(super) const ETHERNET_HEADER: i32 = 14;

/// Where a program meets packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stand {
    /// In a tcx hook, where there is a socket buffer.
    Tcx,
    /// In an XDP hook.
    Xdp,
    /// On a cgroup, for packets that one of its sockets would receive.
    CgroupIngress,
    /// On a cgroup, for packets that one of its sockets sends.
    CgroupEgress,
}

impl Stand {
    /// How many bytes there are before the network header.
    pub(super) fn link_header(self) -> i32 {
        match self {
            Self::Tcx | Self::Xdp => ETHERNET_HEADER,
            Self::CgroupIngress | Self::CgroupEgress => 0,
        }
    }

    /// What lets a packet pass.
    pub(super) fn accept(self) -> i32 {
        match self {
            // TCX_NEXT, XDP_PASS.
            Self::Tcx => -1,
            Self::Xdp => 2,
            Self::CgroupIngress | Self::CgroupEgress => 1,
        }
    }

    /// What ends a packet.
    pub(super) fn drop(self) -> i32 {
        match self {
            // TCX_DROP, XDP_DROP.
            Self::Tcx => 2,
            Self::Xdp => 1,
            Self::CgroupIngress => 0,
            // As if a queue were full (NET_XMIT_DROP, Linux 5.3): 0 would be told to the sender as EPERM.
            Self::CgroupEgress => 2,
        }
    }
}
