//! The sockets that attackers and witnesses use: packet sockets and raw IP sockets, made inside a namespace.

use std::io::{self, ErrorKind};
use std::mem::{MaybeUninit, size_of};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use nix::net::if_::if_nametoindex;
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::lab::{Netns, PATIENCE, eventually};

/// Makes a socket at an address, or on a queue, that another socket of the same test has just had. That one is closed, but a program that
/// some other test is just starting has a copy of it until it runs.
pub(crate) fn at_an_address_used_before<T>(mut make: impl FnMut() -> io::Result<T>) -> io::Result<T> {
    let mut result = make();
    eventually(PATIENCE, || {
        let is_taken = |error: &io::Error| {
            matches!(error.kind(), ErrorKind::AddrInUse | ErrorKind::AddrNotAvailable | ErrorKind::ResourceBusy)
        };
        if result.as_ref().is_err_and(is_taken) {
            result = make();
        }
        !result.as_ref().is_err_and(is_taken)
    });
    result
}

/// A packet socket bound to one interface, for every protocol.
pub(crate) struct PacketSocket(Socket);

impl PacketSocket {
    pub(crate) fn open(netns: &Netns, ifname: &str) -> Self {
        netns.run(|| Self::open_here(ifname))
    }

    /// In the namespace of the calling thread.
    pub(crate) fn open_here(ifname: &str) -> Self {
        let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0))).unwrap();
        let index = if_nametoindex(ifname).unwrap();
        // Asked for before binding, so that no burst is lost to the default buffer.
        socket.set_recv_buffer_size(4 << 20).unwrap();
        socket.bind(&link_address(index, libc::ETH_P_ALL)).unwrap();
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    /// On every interface that a namespace has, or will have.
    pub(crate) fn everywhere(netns: &Netns) -> Self {
        netns.run(|| {
            let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0))).unwrap();
            socket.set_recv_buffer_size(4 << 20).unwrap();
            socket.bind(&link_address(0, libc::ETH_P_ALL)).unwrap();
            socket.set_nonblocking(true).unwrap();
            Self(socket)
        })
    }

    /// One that somebody else has made.
    pub(crate) fn of(socket: Socket) -> Self {
        socket.set_nonblocking(true).unwrap();
        Self(socket)
    }

    /// Sends out of the interface of this index, whichever the socket is bound to.
    pub(crate) fn send_on(&self, index: u32, frame: &[u8]) -> io::Result<usize> {
        self.0.send_to(frame, &link_address(index, libc::ETH_P_ALL))
    }

    /// Frames go straight to the driver, past the queueing discipline.
    pub(crate) fn bypass_qdisc(&self) {
        self.set(libc::PACKET_QDISC_BYPASS, &1_i32);
    }

    /// Frames for other stations are seen too.
    pub(crate) fn promiscuous(&self, ifname: &str, netns: &Netns) {
        let index = netns.run(|| if_nametoindex(ifname).unwrap());
        let request = libc::packet_mreq {
            mr_ifindex: index.cast_signed(),
            mr_type: libc::PACKET_MR_PROMISC as u16,
            mr_alen: 0,
            mr_address: [0; 8],
        };
        self.set(libc::PACKET_ADD_MEMBERSHIP, &request);
    }

    pub(crate) fn send(&self, frame: &[u8]) -> io::Result<usize> {
        self.0.send(frame)
    }

    /// One frame that came *in*; None when there is none now. What this host sends itself is passed over.
    pub(crate) fn receive<'b>(&self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        loop {
            let (length, from) = receive_from(&self.0, buffer)?;
            // SAFETY: the kernel fills in a sockaddr_ll on a packet socket, and the storage is larger than that.
            let from = unsafe { *from.as_ptr().cast::<libc::sockaddr_ll>() };
            if from.sll_pkttype != libc::PACKET_OUTGOING {
                return Some(&buffer[..length]);
            }
        }
    }

    fn set<T>(&self, option: i32, value: &T) {
        let length = u32::try_from(size_of::<T>()).unwrap();
        let value = std::ptr::from_ref(value).cast();
        // SAFETY: the pointer and the length describe one live value of the type that the option takes.
        let status = unsafe { libc::setsockopt(self.0.as_raw_fd(), libc::SOL_PACKET, option, value, length) };
        assert_eq!(status, 0, "{}", io::Error::last_os_error());
    }
}

/// A raw IP socket of the calling thread's namespace, for one protocol.
pub(crate) fn raw_ip(family: IpAddr, protocol: u8) -> Socket {
    let domain = if family.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::RAW, Some(Protocol::from(i32::from(protocol)))).unwrap();
    socket.set_recv_buffer_size(4 << 20).unwrap();
    socket.set_nonblocking(true).unwrap();
    socket
}

/// A UDP socket of the calling thread's namespace for `to`'s family, on a device where one is named; may broadcast.
pub(crate) fn udp_on(device: Option<&str>, to: IpAddr) -> Socket {
    let domain = if to.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, None).unwrap();
    socket.set_broadcast(true).unwrap();
    if let Some(device) = device {
        socket.bind_device(Some(device.as_bytes())).unwrap();
    }
    socket.set_nonblocking(true).unwrap();
    socket
}

/// One read of whatever is there now.
pub(crate) fn receive(socket: &Socket, buffer: &mut [u8]) -> Option<usize> {
    receive_from(socket, buffer).map(|(length, _)| length)
}

fn receive_from(socket: &Socket, buffer: &mut [u8]) -> Option<(usize, SockAddr)> {
    // SAFETY: u8 and MaybeUninit<u8> have one layout, and recv_from only writes initialised bytes to it.
    let uninit = unsafe { &mut *(std::ptr::from_mut(buffer) as *mut [MaybeUninit<u8>]) };
    match socket.recv_from(uninit) {
        Ok(read) => Some(read),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        // An interface that goes down is told once to every packet socket on it.
        Err(error) if error.raw_os_error() == Some(libc::ENETDOWN) => None,
        Err(error) => panic!("receive: {error}"),
    }
}

/// The address of a socket2 call.
pub(crate) fn address(ip: IpAddr, port: u16) -> SockAddr {
    SocketAddr::from((ip, port)).into()
}

fn link_address(index: u32, protocol: i32) -> SockAddr {
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the storage is zeroed, aligned for every address type and larger than a sockaddr_ll.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = libc::AF_PACKET as u16;
    link.sll_protocol = u16::try_from(protocol).unwrap().to_be();
    link.sll_ifindex = index.cast_signed();
    // SAFETY: a whole sockaddr_ll was written above.
    unsafe { SockAddr::new(storage, size_of::<libc::sockaddr_ll>() as u32) }
}

/// From here on the calling thread makes files and sockets as this user: what `meta skuid` sees of them.
pub(crate) fn become_owner(uid: u32) {
    // SAFETY: setfsuid takes a number and changes only the calling thread.
    unsafe { libc::setfsuid(uid) };
}
