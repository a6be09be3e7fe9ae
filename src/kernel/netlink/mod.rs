//! A blocking netlink socket, and the attributes that its messages are made of.
//!
//! One socket type serves rtnetlink (`link`) and nf_tables (`nft`). It is opened inside a netns and belongs to that netns
//! for as long as it lives, whoever uses it (`netns`). Blocking, because each caller asks one question after the other:
//! an asynchronous runtime would cost more than all of the questions of an ADD together.
//!
//! No message of the kernel is trusted to be well-formed beyond its length fields, and none is parsed further than what
//! is asked for: names in it may come from whoever is root in a pod.

mod wire;

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NLMSG_OVERRUN,
};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendmsg,
    setsockopt, socket, socketpair, sockopt,
};
use nix::sys::time::TimeVal;
use thiserror::Error;

pub use wire::{
    Messages, append_message, attribute, attributes, be32, error_of, message, ne32, nest, put, put_text, put_written,
    text,
};

#[cfg(any(test, fuzzing))]
pub use wire::try_any;

/// How long an answer may take: the kernel answers within the system call, so this only ends what can't happen.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
/// The kernel puts no more than this into one datagram of a dump, however much there is room for.
const RECEIVE_BUFFER: usize = 32 * 1024;
/// A dump that changed under our hands is asked for again, so many times.
const DUMP_ATTEMPTS: usize = 8;

/// What can go wrong between this process and the kernel.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The kernel refused the request.
    #[error("the kernel refused to {what}: {errno}")]
    Refused {
        /// What was asked for.
        what: String,
        /// Its answer.
        errno: Errno,
    },
    /// The socket failed.
    #[error("cannot {what} over netlink")]
    Socket {
        /// What was being done.
        what: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// An answer was cut off or is not what was asked for.
    #[error("cannot read the kernel's answer to {what}")]
    Unreadable {
        /// What was asked for.
        what: String,
    },
    /// What was dumped kept changing.
    #[error("cannot {what}: it changed each time while it was read")]
    Changing {
        /// What was asked for.
        what: String,
    },
}

impl NetlinkError {
    /// The kernel's own error number, where it gave one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            Self::Socket { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Unreadable { .. } | Self::Changing { .. } => None,
        }
    }

    /// Whether there is nobody in this kernel to answer: the protocol is missing, or the subsystem behind it, and no
    /// module could be loaded for it.
    #[must_use]
    pub fn is_without_subsystem(&self) -> bool {
        matches!(self.errno(), Some(Errno::EPROTONOSUPPORT | Errno::EAFNOSUPPORT | Errno::EOPNOTSUPP | Errno::EINVAL))
    }
}

/// A socket of one netlink protocol, in the netns in which it was opened.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
    /// What was received last. Its room is never cleared: most answers fill a page of it, and the others are not touched.
    buffer: Vec<u8>,
}

impl Socket {
    /// A socket in the calling thread's netns.
    ///
    /// # Errors
    /// `NetlinkError::Socket`.
    pub fn open(protocol: SockProtocol) -> Result<Self, NetlinkError> {
        let fd = open_socket(protocol)?;
        let timeout = TimeVal::new(ANSWER_TIMEOUT.as_secs().cast_signed(), 0);
        setsockopt(&fd, sockopt::ReceiveTimeout, &timeout).map_err(socket_error("set a time-out"))?;
        Ok(Self { fd, sequence: 0, buffer: Vec::with_capacity(RECEIVE_BUFFER) })
    }

    /// Sends one request and returns the payload of the answer, where the request has one.
    pub fn ask(&mut self, what: &str, kind: u16, body: &[u8]) -> Result<Option<Vec<u8>>, NetlinkError> {
        self.request(what, kind, 0, body)
    }

    /// Sends one change and waits until it is done.
    pub fn change(&mut self, what: &str, kind: u16, flags: u16, body: &[u8]) -> Result<(), NetlinkError> {
        self.request(what, kind, NLM_F_ACK | flags, body).map(drop)
    }

    /// The first message that comes back is the whole answer, or the error in its place.
    fn request(&mut self, what: &str, kind: u16, flags: u16, body: &[u8]) -> Result<Option<Vec<u8>>, NetlinkError> {
        let sequence = self.next_sequence();
        self.send(&[IoSlice::new(&message(kind, NLM_F_REQUEST | flags, sequence, body))])?;
        loop {
            for message in self.receive_datagram()? {
                if message.sequence_number() != sequence {
                    continue;
                }
                if message.message_type() != NLMSG_ERROR {
                    return Ok(Some(message.payload().to_vec()));
                }
                return match error_of(message.payload()) {
                    None => Err(NetlinkError::Unreadable { what: what.to_owned() }),
                    Some(None) => Ok(None),
                    Some(Some(errno)) => Err(NetlinkError::Refused { what: what.to_owned(), errno }),
                };
            }
        }
    }

    /// Asks for all objects of a kind and hands the payload of each to `each`.
    ///
    /// # Errors
    /// See [`NetlinkError`]; `Changing` where there was no getting them all from one moment.
    pub fn dump<T>(
        &mut self,
        what: &str,
        kind: u16,
        body: &[u8],
        each: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        self.dump_attempts(what, kind, body, each)?.map_err(|_| NetlinkError::Changing { what: what.to_owned() })
    }

    /// Like [`Socket::dump`], but where things keep changing everything that was seen, some of it more than once:
    /// whoever changes them in a loop can delay us, and hide nothing that stays.
    ///
    /// # Errors
    /// See [`NetlinkError`], but for `Changing`.
    pub fn dump_all_seen<T>(
        &mut self,
        what: &str,
        kind: u16,
        body: &[u8],
        each: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        Ok(self.dump_attempts(what, kind, body, each)?.unwrap_or_else(|seen| seen))
    }

    /// A dump during which nothing changed, or all that the attempts have seen.
    fn dump_attempts<T>(
        &mut self,
        what: &str,
        kind: u16,
        body: &[u8],
        each: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Result<Vec<T>, Vec<T>>, NetlinkError> {
        let mut seen = Vec::new();
        for _ in 0..DUMP_ATTEMPTS {
            let (found, is_whole) = self.dump_once(what, kind, body, &each)?;
            if is_whole {
                return Ok(Ok(found));
            }
            seen.extend(found);
        }
        Ok(Err(seen))
    }

    fn dump_once<T>(
        &mut self,
        what: &str,
        kind: u16,
        body: &[u8],
        each: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<(Vec<T>, bool), NetlinkError> {
        let sequence = self.next_sequence();
        self.send(&[IoSlice::new(&message(kind, NLM_F_REQUEST | NLM_F_DUMP, sequence, body))])?;
        let mut found = Vec::new();
        let is_whole = self.receive(what, sequence, |_, payload| found.extend(each(payload)))?;
        Ok((found, is_whole))
    }

    /// Has the kernel (4.20) filter dumps by what the request's header says, instead of sending everything.
    pub fn check_strictly(&self) {
        let _ = setsockopt(&self.fd, NetlinkOption(nix::libc::NETLINK_GET_STRICT_CHK), &1);
    }

    /// The cookie of the netns that the socket is in (5.14): no other netns has ever had it since boot. 0 before.
    #[must_use]
    pub fn netns_cookie(&self) -> u64 {
        const SO_NETNS_COOKIE: nix::libc::c_int = 71;
        let mut cookie = 0_u64;
        let mut length: nix::libc::socklen_t = 8;
        // SAFETY: pointer and length are those of `cookie`, which the kernel writes; the descriptor is our own.
        let result = unsafe {
            nix::libc::getsockopt(
                self.fd.as_raw_fd(),
                nix::libc::SOL_SOCKET,
                SO_NETNS_COOKIE,
                (&raw mut cookie).cast(),
                &raw mut length,
            )
        };
        if result == 0 { cookie } else { 0 }
    }

    /// The same socket, from now on listened to.
    #[must_use]
    pub fn into_events(self) -> Events {
        Events { fd: self.fd }
    }

    /// The next sequence number; `count` messages may follow from it.
    pub fn sequences(&mut self, count: u32) -> u32 {
        let first = self.sequence.wrapping_add(1);
        self.sequence = self.sequence.wrapping_add(count);
        first
    }

    fn next_sequence(&mut self) -> u32 {
        self.sequences(1)
    }

    /// Sends `bytes` (whole messages) in one system call.
    ///
    /// # Errors
    /// `NetlinkError::Socket`.
    pub fn send(&self, bytes: &[IoSlice<'_>]) -> Result<(), NetlinkError> {
        let length: usize = bytes.iter().map(|slice| slice.len()).sum();
        if length > 128 * 1024 {
            // Over the default send buffer a batch is EMSGSIZE; the kernel doubles what is asked for.
            let _ = setsockopt(&self.fd, sockopt::SndBufForce, &(length * 2));
        }
        loop {
            match sendmsg::<NetlinkAddr>(self.fd.as_raw_fd(), bytes, &[], MsgFlags::empty(), None) {
                Ok(_) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(socket_error("send a request")(errno)),
            }
        }
    }

    /// Receives one datagram's messages.
    ///
    /// # Errors
    /// `NetlinkError::Socket`.
    pub fn receive_datagram(&mut self) -> Result<Messages<'_>, NetlinkError> {
        self.buffer.clear();
        let room = self.buffer.spare_capacity_mut();
        loop {
            // MSG_TRUNC: the length is the datagram's own, so that one that was cut off is seen.
            // SAFETY: pointer and length are those of `room`, which is ours and which the kernel only writes.
            let received = unsafe {
                nix::libc::recv(self.fd.as_raw_fd(), room.as_mut_ptr().cast(), room.len(), nix::libc::MSG_TRUNC)
            };
            match Errno::result(received).map(isize::unsigned_abs) {
                Ok(length) if length > room.len() => {
                    return Err(NetlinkError::Unreadable { what: format!("a request: it has {length} bytes") });
                }
                Ok(length) => {
                    // SAFETY: it is no more than there is room for, and the kernel has written it.
                    unsafe { self.buffer.set_len(length) };
                    return Ok(Messages(&self.buffer));
                }
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(NetlinkError::Socket { what: "receive an answer", source: errno.into() }),
            }
        }
    }

    /// Receives until the request with this number is answered. Says whether what was read belongs together.
    fn receive(&mut self, what: &str, sequence: u32, mut each: impl FnMut(u16, &[u8])) -> Result<bool, NetlinkError> {
        let mut whole = true;
        loop {
            for message in self.receive_datagram()? {
                if message.sequence_number() != sequence {
                    continue;
                }
                whole &= message.flags() & NLM_F_DUMP_INTR == 0;
                match message.message_type() {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return match error_of(message.payload()) {
                            None => Err(NetlinkError::Unreadable { what: what.to_owned() }),
                            Some(None) => Ok(whole),
                            Some(Some(errno)) => Err(NetlinkError::Refused { what: what.to_owned(), errno }),
                        };
                    }
                    NLMSG_OVERRUN => return Err(NetlinkError::Unreadable { what: what.to_owned() }),
                    kind => each(kind, message.payload()),
                }
            }
        }
    }
}

/// A second reference to a socket where only the kernel can find it: in a message that waits at one end of a pair, and which
/// holds that end itself. When both ends are closed here, nobody can receive the message any more, and the kernel's garbage
/// collector (a work queue since 6.9; before, the closing itself) closes all that is in it.
///
/// It has to outlive the socket: a collector that comes first leaves the last reference, and the waiting, to whoever
/// closes that.
#[derive(Debug)]
#[must_use = "it is dropped after the socket"]
pub struct LeftToKernel {
    // In this order: it is the end of the sender that has the collector look.
    _holder: OwnedFd,
    _sender: OwnedFd,
}

impl LeftToKernel {
    /// Leaves the closing of a socket to the kernel.
    ///
    /// # Errors
    /// When it cannot be left to it; closing it here is right all the same.
    pub fn of(socket: BorrowedFd<'_>) -> nix::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let (sender, holder) = socketpair(AddressFamily::Unix, SockType::Datagram, None, flags)?;
        let held = [socket.as_raw_fd(), holder.as_raw_fd()];
        let carry = [ControlMessage::ScmRights(&held)];
        sendmsg::<()>(sender.as_raw_fd(), &[IoSlice::new(&[0])], &carry, MsgFlags::empty(), None)?;
        Ok(Self { _holder: holder, _sender: sender })
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

fn socket_error(what: &'static str) -> impl FnOnce(Errno) -> NetlinkError {
    move |errno| NetlinkError::Socket { what, source: errno.into() }
}

fn open_socket(protocol: SockProtocol) -> Result<OwnedFd, NetlinkError> {
    let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol);
    let fd = fd.map_err(socket_error("open a socket"))?;
    bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(socket_error("bind a socket"))?;
    Ok(fd)
}

/// A subscription to the events of multicast groups. Whoever reads brings the buffer: there may be thousands.
#[derive(Debug)]
pub struct Events {
    fd: OwnedFd,
}

impl Events {
    /// Subscribes in the calling thread's netns.
    ///
    /// # Errors
    /// `NetlinkError::Socket`.
    pub fn subscribe(protocol: SockProtocol, group: u32) -> Result<Self, NetlinkError> {
        let fd = open_socket(protocol)?;
        let events = Self { fd };
        events.join(group)?;
        Ok(events)
    }

    /// Subscribes to one more group.
    ///
    /// # Errors
    /// `NetlinkError::Socket`.
    pub fn join(&self, group: u32) -> Result<(), NetlinkError> {
        setsockopt(&self.fd, NetlinkOption(nix::libc::NETLINK_ADD_MEMBERSHIP), &group)
            .map_err(socket_error("subscribe to events"))
    }

    /// Has the kernel queue up to `bytes` of events.
    pub fn queue_up_to(&self, bytes: usize) {
        let _ = setsockopt(&self.fd, sockopt::RcvBufForce, &bytes);
    }

    /// Takes all events that wait, without blocking, and hands message type and payload to `each`. Returns whether
    /// some were lost (the queue was full).
    ///
    /// # Errors
    /// `NetlinkError::Socket`.
    pub fn drain(&self, buffer: &mut [u8], mut each: impl FnMut(u16, &[u8])) -> Result<bool, NetlinkError> {
        let mut lost = false;
        loop {
            match self.receive(buffer, &mut each) {
                Ok(()) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(lost),
                Err(Errno::ENOBUFS) => lost = true,
                Err(errno) => return Err(socket_error("read events")(errno)),
            }
        }
    }

    /// Takes one datagram, without blocking.
    ///
    /// # Errors
    /// `EAGAIN` where none waits, `ENOBUFS` where some were lost.
    pub fn receive(&self, buffer: &mut [u8], mut each: impl FnMut(u16, &[u8])) -> Result<(), Errno> {
        let length = recv(self.fd.as_raw_fd(), buffer, MsgFlags::MSG_DONTWAIT)?;
        Messages(&buffer[..length]).for_each(|message| each(message.message_type(), message.payload()));
        Ok(())
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// An option of netlink sockets, none of which nix has.
#[derive(Debug, Clone, Copy)]
struct NetlinkOption(nix::libc::c_int);

impl nix::sys::socket::SetSockOpt for NetlinkOption {
    type Val = u32;

    fn set<F: AsFd>(&self, fd: &F, value: &u32) -> nix::Result<()> {
        // SAFETY: the options take an int, of which pointer and length are given; the descriptor is borrowed.
        let result = unsafe {
            nix::libc::setsockopt(
                fd.as_fd().as_raw_fd(),
                nix::libc::SOL_NETLINK,
                self.0,
                std::ptr::from_ref(value).cast(),
                4,
            )
        };
        Errno::result(result).map(drop)
    }
}
