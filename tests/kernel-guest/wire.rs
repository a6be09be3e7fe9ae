//! Traffic, sent on one side and counted where it arrives on the other: raw frames, datagrams, TCP.
//!
//! A check that something arrives waits long (a loaded machine that emulates another is slow), one that nothing does
//! waits briefly: veth delivers within the sender's system call, so what is not there then was dropped.

use std::error::Error;
use std::ffi::c_int;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;

use crate::lab::Netns;
use crate::{Outcome, ensure};

pub(crate) const LONG: Duration = Duration::from_secs(8);
pub(crate) const SHORT: Duration = Duration::from_millis(250);

/// Which frames `Wire::frames` sends.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Frame {
    /// Of an ethertype that no stack knows.
    Unknown,
    /// The same, past the queueing discipline (PACKET_QDISC_BYPASS).
    Bypass,
    /// The same, inside of a VLAN tag.
    Tagged,
    /// To all stations.
    Broadcast,
}

/// How many frames a check sends.
pub(crate) const FRAMES: usize = 10;

/// A packet socket on one interface of a namespace.
pub(crate) struct PacketSocket {
    socket: OwnedFd,
}

impl PacketSocket {
    pub(crate) fn open(netns: &Netns, interface: &str, bypass: bool) -> Result<Self, Box<dyn Error>> {
        netns.run(|| Self::open_here(interface, bypass)).map_err(Into::into)
    }

    fn open_here(interface: &str, bypass: bool) -> nix::Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: no memory is handed over.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, c_int::from(protocol)) };
        Errno::result(raw)?;
        // SAFETY: the descriptor is new and nobody else's.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: protocol,
            sll_ifindex: nix::net::if_::if_nametoindex(interface)? as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        // SAFETY: the address lives across the call and its length is its own.
        let bound = unsafe { libc::bind(raw, (&raw const address).cast(), size_of_val(&address) as u32) };
        Errno::result(bound)?;
        if bypass {
            let on: c_int = 1;
            // SAFETY: the value lives across the call and its length is its own.
            let set = unsafe {
                libc::setsockopt(
                    raw,
                    libc::SOL_PACKET,
                    libc::PACKET_QDISC_BYPASS,
                    (&raw const on).cast(),
                    size_of_val(&on) as u32,
                )
            };
            Errno::result(set)?;
        }
        Ok(Self { socket })
    }

    fn send(&self, frame: &[u8]) {
        // A hook that drops tells a bypassing sender ENOBUFS: what arrives is what counts.
        let _ = nix::sys::socket::send(self.socket.as_raw_fd(), frame, nix::sys::socket::MsgFlags::empty());
    }

    /// Counts frames that carry the mark, until all have arrived or the time is up.
    fn count(&self, mark: &[u8], expected: usize, patience: Duration) -> usize {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd;
        let end = Instant::now() + patience;
        let mut buffer = [0; 2048];
        let mut arrived = 0;
        while arrived < expected {
            let left =
                PollTimeout::try_from(end.saturating_duration_since(Instant::now())).unwrap_or(PollTimeout::ZERO);
            if !matches!(poll(&mut [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)], left), Ok(1..)) {
                break;
            }
            let flags = nix::sys::socket::MsgFlags::MSG_DONTWAIT;
            let length = nix::sys::socket::recv(self.socket.as_raw_fd(), &mut buffer, flags).unwrap_or(0);
            if buffer[..length].windows(mark.len()).any(|window| window == mark) {
                arrived += 1;
            }
        }
        arrived
    }
}

/// Sends raw frames from one interface and counts those that a packet socket on another one sees.
pub(crate) fn frames(
    kind: Frame,
    from: (&Netns, &str),
    to: (&Netns, &str, [u8; 6]),
    patience: Duration,
) -> Result<usize, Box<dyn Error>> {
    static SERIAL: AtomicU32 = AtomicU32::new(0);
    let mark = format!("frame-{:08}.", SERIAL.fetch_add(1, Ordering::Relaxed)).into_bytes();
    let receiver = PacketSocket::open(to.0, to.1, false)?;
    let sender = PacketSocket::open(from.0, from.1, kind == Frame::Bypass)?;
    let mut frame = if kind == Frame::Broadcast { vec![0xff; 6] } else { to.2.to_vec() };
    frame.extend([2, 0, 0, 0, 9, 0xee]);
    if kind == Frame::Tagged {
        frame.extend([0x81, 0x00, 0x00, 0x05]);
    }
    // 0x88b5 is set aside for local experiments.
    frame.extend([0x88, 0xb5]);
    frame.extend(&mark);
    frame.resize(64, 0);
    for _ in 0..FRAMES {
        sender.send(&frame);
    }
    Ok(receiver.count(&mark, FRAMES, patience))
}

/// Sends UDP datagrams to an address of another namespace and counts those that its socket there gets.
pub(crate) fn datagrams(from: &Netns, to: (&Netns, &str), patience: Duration) -> Result<usize, Box<dyn Error>> {
    let address: IpAddr = to.1.parse()?;
    let receiver = to.0.run(|| UdpSocket::bind((address, 0)))?;
    let target = receiver.local_addr()?;
    let sender = from.run(|| UdpSocket::bind((if address.is_ipv4() { "0.0.0.0" } else { "::" }, 0)))?;
    for _ in 0..FRAMES {
        // An unreachable neighbour shows up as an error on a later send: what arrives is what counts.
        let _ = sender.send_to(b"datagram", target);
    }
    let end = Instant::now() + patience;
    let mut arrived = 0;
    while arrived < FRAMES {
        let left = end.saturating_duration_since(Instant::now());
        receiver.set_read_timeout(Some(left.max(Duration::from_millis(1))))?;
        match receiver.recv(&mut [0; 64]) {
            Ok(_) => arrived += 1,
            Err(_) => break,
        }
    }
    Ok(arrived)
}

/// A TCP connection of which both ends are held here.
pub(crate) struct Flow {
    client: TcpStream,
    server: TcpStream,
}

impl Flow {
    /// Connects from one namespace to an address of another.
    pub(crate) fn establish(from: &Netns, to: (&Netns, &str), patience: Duration) -> Result<Self, Box<dyn Error>> {
        let address: IpAddr = to.1.parse()?;
        let listener = to.0.run(|| TcpListener::bind((address, 0)))?;
        let target = listener.local_addr()?;
        let client = from.run(|| TcpStream::connect_timeout(&target, patience))?;
        let (server, _) = listener.accept()?;
        Ok(Self { client, server })
    }

    /// Whether bytes written on the client's end come out on the server's, and the other way round.
    pub(crate) fn carries(&mut self, patience: Duration) -> Result<(bool, bool), Box<dyn Error>> {
        let there = carry(&mut self.client, &mut self.server, patience)?;
        let back = carry(&mut self.server, &mut self.client, patience)?;
        Ok((there, back))
    }
}

fn carry(from: &mut TcpStream, to: &mut TcpStream, patience: Duration) -> Result<bool, Box<dyn Error>> {
    from.write_all(b"x")?;
    to.set_read_timeout(Some(patience))?;
    match to.read(&mut [0; 256]) {
        Ok(length) => Ok(length > 0),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The port that `serve` answers on, as a pod's health endpoint does.
pub(crate) const HEALTH_PORT: u16 = 8080;

/// Answers every connection to the health port in a namespace, on both families, until the program ends.
pub(crate) fn serve(netns: &Netns) -> Result<(), Box<dyn Error>> {
    let listener = netns.run(|| TcpListener::bind(("::", HEALTH_PORT)))?;
    thread::spawn(move || {
        for mut connection in listener.incoming().flatten() {
            let _ = connection.write_all(b"ok");
        }
    });
    Ok(())
}

/// Whether a connection to the health port is answered, as the kubelet asks; as another user where one is given.
pub(crate) fn probe(
    from: &Netns,
    address: &str,
    user: Option<u32>,
    patience: Duration,
) -> Result<bool, Box<dyn Error>> {
    let target = SocketAddr::new(address.parse()?, HEALTH_PORT);
    from.run(|| {
        if let Some(user) = user {
            // SAFETY: no memory is handed over. The bare system call, unlike libc's function, changes this thread alone.
            let done = unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) };
            Errno::result(done)?;
        }
        let Ok(mut connection) = TcpStream::connect_timeout(&target, patience) else {
            return Ok(false);
        };
        connection.set_read_timeout(Some(patience))?;
        let mut answer = String::new();
        let _ = connection.read_to_string(&mut answer);
        Ok::<bool, std::io::Error>(answer == "ok")
    })
    .map_err(Into::into)
}

/// Polls until a condition holds. The guest gets no event for what the agent does.
pub(crate) fn eventually(what: &str, so: impl Fn() -> Result<bool, Box<dyn Error>>) -> Outcome {
    // Each look is a process or two, which an emulated machine on a busy one takes seconds for.
    let limit = 8 * LONG;
    let end = Instant::now() + limit;
    while !so()? {
        ensure!(Instant::now() < end, "not within {limit:?}: {what}");
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
