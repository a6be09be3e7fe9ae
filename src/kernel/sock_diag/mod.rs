//! The sockets of one netns as the kernel lists them (`NETLINK_SOCK_DIAG`), whoever holds them.
//!
//! Read by hand on the socket of `netlink`: seven families answer in seven forms, of each of which a few fields are wanted.
//! What a socket is called may come from root in a pod.

mod read;

use std::cell::RefCell;
use std::ffi::CString;
use std::net::IpAddr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::SockProtocol;
use serde::Serialize;

use crate::kernel::netlink::{NetlinkError, Socket};
use crate::model::escaped::Escaped;

pub use read::read_socket;
#[cfg(any(test, fuzzing))]
pub use read::try_any;

const SOCK_DIAG_BY_FAMILY: u16 = 20;
/// The older question, for TCP of both families at once: for each the kernel looks through all that the machine has, in every netns.
const TCPDIAG_GETSOCK: u16 = 18;

/// What sort of sockets to ask for, by the kernel's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// TCP, with MPTCP's subflows.
    Tcp,
    /// UDP.
    Udp,
    /// UDP-Lite.
    UdpLite,
    /// Raw IP.
    Raw,
    /// Ping.
    Icmp,
    /// Local.
    Unix,
    /// Frames.
    Packet,
    /// The kernel's own.
    Netlink,
    /// `AF_XDP`.
    Xdp,
}

impl Kind {
    /// All of them, those that fade first in front.
    pub const ALL: [Self; 9] = [
        Self::Tcp,
        Self::Udp,
        Self::Raw,
        Self::Packet,
        Self::Xdp,
        Self::Icmp,
        Self::UdpLite,
        Self::Unix,
        Self::Netlink,
    ];

    fn protocol(self) -> Option<u8> {
        let number = match self {
            Self::Tcp => libc::IPPROTO_TCP,
            Self::Udp => libc::IPPROTO_UDP,
            Self::UdpLite => libc::IPPROTO_UDPLITE,
            Self::Raw => libc::IPPROTO_RAW,
            Self::Icmp => libc::IPPROTO_ICMP,
            Self::Unix | Self::Packet | Self::Netlink | Self::Xdp => return None,
        };
        u8::try_from(number).ok()
    }

    fn question(self) -> u16 {
        if self == Self::Tcp { TCPDIAG_GETSOCK } else { SOCK_DIAG_BY_FAMILY }
    }

    /// One question for each family, or for all.
    fn requests(self) -> Vec<Vec<u8>> {
        const INFO_AND_MEMORY: u8 = 0b11;
        const AF_XDP: u8 = 44;
        const ALL_PROTOCOLS: u8 = 255;
        const UNIX_NAME_PEER_QUEUE_UID: u32 = 0x01 | 0x04 | 0x10 | 0x40;
        const PACKET_INFO: u32 = 1;
        const NETLINK_GROUPS: u32 = 2;
        const XDP_INFO: u32 = 1;
        let by_inode = |family: u8, protocol: u8, show: u32| {
            let mut request = vec![family, protocol, 0, 0];
            request.extend_from_slice(&0_u32.to_ne_bytes());
            request.extend_from_slice(&show.to_ne_bytes());
            request.extend_from_slice(&[0xff; 8]);
            vec![request]
        };
        match self {
            Self::Unix => {
                let mut request = vec![libc::AF_UNIX as u8, 0, 0, 0];
                for word in [u32::MAX, 0, UNIX_NAME_PEER_QUEUE_UID, u32::MAX, u32::MAX] {
                    request.extend_from_slice(&word.to_ne_bytes());
                }
                vec![request]
            }
            Self::Packet => by_inode(libc::AF_PACKET as u8, 0, PACKET_INFO),
            Self::Netlink => by_inode(libc::AF_NETLINK as u8, ALL_PROTOCOLS, NETLINK_GROUPS),
            Self::Xdp => by_inode(AF_XDP, 0, XDP_INFO),
            Self::Tcp => {
                // `struct inet_diag_req`: the socket that is wanted (any) before the states.
                let mut request = vec![0, 0, 0, INFO_AND_MEMORY];
                request.extend_from_slice(&[0; 48]);
                request.extend_from_slice(&u32::MAX.to_ne_bytes());
                request.extend_from_slice(&[0; 4]);
                vec![request]
            }
            Self::Udp | Self::UdpLite | Self::Raw | Self::Icmp => [libc::AF_INET, libc::AF_INET6]
                .map(|family| {
                    let mut request = vec![family as u8, self.protocol().unwrap_or(0), INFO_AND_MEMORY, 0];
                    request.extend_from_slice(&u32::MAX.to_ne_bytes());
                    // `struct inet_diag_sockid`: any.
                    request.extend_from_slice(&[0; 48]);
                    request
                })
                .to_vec(),
        }
    }
}

/// A socket.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DiagSocket {
    /// What sort.
    pub kind: Kind,
    /// Its inode, by which the open files of processes name it; 0 where no process has it any more.
    pub inode: u32,
    /// Who made it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// How it stands, in TCP's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<&'static str>,
    /// What only its sort has.
    #[serde(flatten)]
    pub details: Details,
}

/// What only some sockets have.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged, rename_all_fields = "camelCase")]
pub enum Details {
    /// TCP, UDP and other protocols over IP.
    Inet {
        /// Its own address.
        local_address: IpAddr,
        /// Its own port; of a raw socket the protocol.
        local_port: u16,
        /// The other's address.
        remote_address: IpAddr,
        /// The other's port.
        remote_port: u16,
        /// The interface that it is bound to; 0 for none.
        interface: u32,
        /// Bytes that nobody has read; of a listener connections that nobody has taken.
        receive_queue: u32,
        /// Bytes that the other has not acknowledged; of a listener how many connections may wait.
        send_queue: u32,
        /// What it waits for.
        #[serde(skip_serializing_if = "Option::is_none")]
        timer: Option<&'static str>,
        /// In how many milliseconds that runs out.
        timer_milliseconds: u32,
        /// How often the first unacknowledged segment was sent anew.
        retransmits: u8,
        /// The cgroup that it was made in, by its ID (Linux 5.9).
        #[serde(skip)]
        cgroup: Option<u64>,
        /// What TCP knows of the connection.
        #[serde(skip_serializing_if = "Option::is_none")]
        tcp: Option<TcpInfo>,
    },
    /// A local one.
    Unix {
        /// Stream, datagram or sequenced packets, by number.
        socket_type: u8,
        /// Its name; an abstract one begins with a NUL.
        #[serde(skip_serializing_if = "Option::is_none")]
        name: Option<Escaped>,
        /// The inode of its other end.
        #[serde(skip_serializing_if = "Option::is_none")]
        peer: Option<u32>,
    },
    /// One for frames.
    Packet {
        /// Raw or cooked, by number.
        socket_type: u8,
        /// The Ethernet protocol that it receives; 3 for all.
        ethernet_protocol: u16,
        /// The interface; 0 for all.
        interface: u32,
    },
    /// One to the kernel.
    Netlink {
        /// Which of its protocols.
        protocol: u8,
        /// Its port.
        port: u32,
        /// The multicast groups that it hears, a bit each.
        groups: u64,
    },
    /// One of `AF_XDP`.
    Xdp {
        /// The interface.
        interface: u32,
        /// Its queue.
        queue: u32,
    },
}

/// Of `struct tcp_info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TcpInfo {
    /// The time-out after which it sends anew, in microseconds.
    pub retransmission_timeout_us: u32,
    /// Segments under way.
    pub unacknowledged: u32,
    /// Milliseconds since it sent data last.
    pub last_data_sent_ms: u32,
    /// Milliseconds since data came last.
    pub last_data_received_ms: u32,
    /// Milliseconds since an acknowledgement came last.
    pub last_acknowledged_ms: u32,
    /// The round trip in microseconds.
    pub round_trip_us: u32,
    /// All segments that it has sent anew.
    pub total_retransmits: u32,
    /// Bytes that the other has acknowledged.
    pub bytes_acknowledged: u64,
    /// Bytes that came.
    pub bytes_received: u64,
}

/// What the kernel calls the protocol of the socket that is at this path (`PACKET`, `TCP`): the one thing that it says of a socket of any
/// sort, whosever it is.
///
/// # Errors
/// As `getxattr` gives it.
pub fn protocol_name(socket: &Path) -> Result<Vec<u8>, Errno> {
    let path = CString::new(socket.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)?;
    let mut name = [0; 64];
    // SAFETY: both texts end, and the kernel writes no more than there is room for.
    let read = unsafe {
        libc::getxattr(path.as_ptr(), c"system.sockprotoname".as_ptr(), name.as_mut_ptr().cast(), name.len())
    };
    let length = Errno::result(read)?.unsigned_abs();
    Ok(name[..length.min(name.len())].split(|byte| *byte == 0).next().unwrap_or_default().to_vec())
}

/// Sockets of one sort, as many as were wanted, and how many there are.
#[derive(Debug, Default)]
pub struct Listed {
    /// The first of them.
    pub sockets: Vec<DiagSocket>,
    /// How many the kernel named.
    pub total: usize,
}

/// The lists of the calling thread's netns.
#[derive(Debug)]
pub struct SockDiag(Socket);

impl SockDiag {
    /// Opens them.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Self(Socket::open(SockProtocol::NetlinkSockDiag)?))
    }

    /// The sockets of one sort; those beyond `most` are only counted.
    ///
    /// # Errors
    /// See [`NetlinkError`]; `Refused` where the kernel has no list of this sort.
    pub fn list(&mut self, kind: Kind, most: usize) -> Result<Listed, NetlinkError> {
        let listed = RefCell::new(Listed::default());
        for request in kind.requests() {
            self.0.dump_all_seen("list sockets", kind.question(), &request, |payload| {
                let mut listed = listed.borrow_mut();
                listed.total += 1;
                if listed.sockets.len() < most {
                    listed.sockets.extend(read_socket(kind, payload));
                }
                None::<()>
            })?;
        }
        Ok(listed.into_inner())
    }
}
