//! Packets that rules hand over (NFLOG), as the kernel's `nfnetlink_log` gives them to whoever is bound to their group.
//!
//! Each netns has groups of its own: what the hooks of a netns hand over is heard by a socket that was opened in it, and by
//! no other one (`net.netfilter.nf_log_all_netns` is about the kernel's log alone). What is in the packets was made by
//! whoever is looked at, and so may the message be: root in a netns can have rules of its own hand over to any group.

mod read;

use std::os::fd::{AsFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::SockProtocol;

#[cfg(any(test, fuzzing))]
pub use read::try_any;
pub use read::{Handed, Hook, read};

use super::netlink::{Events, NetlinkError, Socket, put};

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_ULOG as u16) << 8;
const MSG_PACKET: u16 = 0;
const MSG_CONFIG: u16 = 1;

const CONFIG_COMMAND: u16 = 1;
const CONFIG_MODE: u16 = 2;
const CONFIG_TIMEOUT: u16 = 4;
const COMMAND_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;

/// Hundredths of a second for which the kernel gathers packets before it sends them.
const GATHERED_FOR: u32 = 10;
/// Bytes of packets that may wait; what comes beyond is lost.
const QUEUE: usize = 512 * 1024;

/// Whether this kernel hands packets over now. Where it could and the module is not loaded, binding loads it; rules that hand
/// packets over are refused meanwhile.
#[must_use]
pub fn is_loaded() -> bool {
    std::fs::read_to_string("/proc/net/netfilter/nf_log").is_ok_and(|text| text.contains("nfnetlink_log"))
}

/// A group of a netns, bound: no other socket gets its packets.
#[derive(Debug)]
pub struct Nflog {
    events: Events,
}

impl Nflog {
    /// Binds to a group of the calling thread's netns. `length` is the most bytes of a packet.
    ///
    /// # Errors
    /// `NetlinkError::Refused` with `EPERM` where another socket is bound to it, or without the subsystem
    /// ([`NetlinkError::is_without_subsystem`]).
    pub fn bind(group: u16, length: u32) -> Result<Self, NetlinkError> {
        let mut socket = Socket::open(SockProtocol::NetlinkNetFilter)?;
        let mut configure = |kind: u16, value: &[u8]| {
            // `nfgenmsg`: any family, version 0, the group.
            let mut body = vec![0, 0];
            body.extend_from_slice(&group.to_be_bytes());
            put(&mut body, kind, value);
            let what = format!("bind to group {group} of NFLOG, which another process may have");
            socket.change(&what, SUBSYSTEM | MSG_CONFIG, 0, &body)
        };
        configure(CONFIG_COMMAND, &[COMMAND_BIND])?;
        let [a, b, c, d] = length.to_be_bytes();
        configure(CONFIG_MODE, &[a, b, c, d, COPY_PACKET, 0])?;
        configure(CONFIG_TIMEOUT, &GATHERED_FOR.to_be_bytes())?;
        let events = socket.into_events();
        events.queue_up_to(QUEUE);
        Ok(Self { events })
    }

    /// Takes what waits, up to so many datagrams. Says whether packets were lost, and whether more may wait.
    pub fn drain(&self, buffer: &mut [u8], datagrams: usize, mut each: impl FnMut(Handed<'_>)) -> Drained {
        let mut drained = Drained::default();
        for _ in 0..datagrams {
            let received = self.events.receive(buffer, |kind, payload| {
                if kind == SUBSYSTEM | MSG_PACKET
                    && let Some(handed) = read(payload)
                {
                    each(handed);
                }
            });
            match received {
                Ok(()) => {}
                Err(Errno::EAGAIN) => return drained,
                Err(_) => drained.lost = true,
            }
        }
        drained.more = true;
        drained
    }
}

/// How it went.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Whether packets were lost.
    pub lost: bool,
    /// Whether more may wait.
    pub more: bool,
}

impl AsFd for Nflog {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}
