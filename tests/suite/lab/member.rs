//! Processes in cgroups of a test's own, and sockets that are theirs.

use std::fs;
use std::io::{self, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use socket2::{SockAddr, Socket};

use super::{Netns, PATIENCE};

/// Where the sockets of a member are among its open files.
const FIRST_SOCKET: RawFd = 100;

/// What a process may do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Privileges {
    /// What the test itself may.
    All,
    /// Those of root, and no capability within reach.
    Root,
    /// Nothing, nor can it come to.
    None,
}

impl Privileges {
    /// The calling process has no others after its next exec.
    fn drop_others(self) -> io::Result<()> {
        const NOBODY: u32 = 65534;
        match self {
            Self::All => {}
            Self::Root => {
                for capability in 0..64 {
                    // SAFETY: the call takes numbers; it fails of a capability that the kernel does not know.
                    unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) };
                }
            }
            Self::None => {
                // SAFETY: there are no groups to be read.
                checked(unsafe { libc::setgroups(0, std::ptr::null()) })?;
                // SAFETY: the calls take numbers.
                checked(unsafe { libc::setresgid(NOBODY, NOBODY, NOBODY) })?;
                // SAFETY: the same.
                checked(unsafe { libc::setresuid(NOBODY, NOBODY, NOBODY) })?;
                // SAFETY: the same.
                checked(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
            }
        }
        Ok(())
    }
}

fn checked(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// A socket that a process is started with.
#[derive(Clone, Copy)]
pub(crate) enum Sort {
    Tcp,
    Tcp6,
    Udp,
    /// Of a protocol that nobody else uses.
    Raw,
    Packet,
    Xdp,
}

/// So that nothing else answers.
pub(crate) const RAW_PROTOCOL: u8 = 253;

impl Sort {
    fn numbers(self) -> (i32, i32, i32) {
        const AF_XDP: i32 = 44;
        match self {
            Self::Tcp => (libc::AF_INET, libc::SOCK_STREAM, 0),
            Self::Tcp6 => (libc::AF_INET6, libc::SOCK_STREAM, 0),
            Self::Udp => (libc::AF_INET, libc::SOCK_DGRAM, 0),
            Self::Raw => (libc::AF_INET, libc::SOCK_RAW, RAW_PROTOCOL.into()),
            Self::Packet => (libc::AF_PACKET, libc::SOCK_RAW, i32::from((libc::ETH_P_ALL as u16).to_be())),
            Self::Xdp => (AF_XDP, libc::SOCK_RAW, 0),
        }
    }
}

/// A process in a cgroup; killed when dropped. Its sockets were made by it, and are used by the test: whose a socket is, is decided
/// when it is made.
pub(crate) struct Member {
    process: Child,
    pidfd: OwnedFd,
}

impl Member {
    pub(crate) fn start(cgroup: &Path, netns: &Netns, privileges: Privileges, sockets: &[Sort]) -> Self {
        Self::start_as(netns.command("sleep"), cgroup, privileges, sockets)
    }

    /// One that has a socket of the test's own, too, which was made elsewhere.
    pub(crate) fn start_with(cgroup: &Path, netns: &Netns, socket: &impl AsRawFd) -> Self {
        let (mut command, given) = (netns.command("sleep"), socket.as_raw_fd());
        // SAFETY: the closure makes one system call with numbers.
        let keep = move || checked(unsafe { libc::dup2(given, FIRST_SOCKET) }).map(drop);
        // SAFETY: and it does not allocate.
        unsafe { command.pre_exec(keep) };
        Self::start_as(command, cgroup, Privileges::None, &[])
    }

    pub(crate) fn start_as(mut command: Command, cgroup: &Path, privileges: Privileges, sockets: &[Sort]) -> Self {
        let procs = cgroup.join("cgroup.procs");
        let procs = fs::OpenOptions::new()
            .write(true)
            .open(&procs)
            .unwrap_or_else(|error| panic!("{}: {error}", procs.display()));
        let sockets: Vec<_> = sockets.iter().map(|sort| sort.numbers()).collect();
        command.arg("infinity").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let join = move || {
            (&procs).write_all(b"0")?;
            for (number, &(domain, kind, protocol)) in sockets.iter().enumerate() {
                // SAFETY: the call takes numbers.
                let socket = checked(unsafe { libc::socket(domain, kind, protocol) })?;
                // SAFETY: the same.
                checked(unsafe { libc::dup2(socket, FIRST_SOCKET + number as RawFd) })?;
            }
            privileges.drop_others()
        };
        // SAFETY: between fork and exec the closure makes system calls and does not allocate.
        unsafe { command.pre_exec(join) };
        Self::spawn(command)
    }

    fn spawn(mut command: Command) -> Self {
        let process = command.spawn().unwrap();
        // SAFETY: the process is a child that nobody has waited for.
        let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, process.id(), 0) };
        assert!(pidfd >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the kernel made it just now.
        let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd as RawFd) };
        Self { process, pidfd }
    }

    pub(crate) fn id(&self) -> u32 {
        self.process.id()
    }

    /// One of the sockets that it was started with.
    pub(crate) fn socket(&self, number: RawFd) -> Socket {
        // SAFETY: the call takes numbers.
        let socket = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.pidfd.as_raw_fd(), FIRST_SOCKET + number, 0) };
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the kernel made it just now.
        unsafe { Socket::from_raw_fd(socket as RawFd) }
    }

    /// A connection from one of its sockets.
    pub(crate) fn connect(&self, number: RawFd, to: SocketAddr) -> TcpStream {
        let socket = self.socket(number);
        socket.connect_timeout(&SockAddr::from(to), PATIENCE).unwrap();
        socket.into()
    }

    /// One of its sockets, listening there.
    pub(crate) fn listen(&self, number: RawFd, at: SocketAddr) -> TcpListener {
        let socket = self.socket(number);
        socket.bind(&SockAddr::from(at)).unwrap();
        socket.listen(16).unwrap();
        socket.into()
    }

    /// One of its sockets, bound there.
    pub(crate) fn bind(&self, number: RawFd, at: SocketAddr) -> UdpSocket {
        let socket = self.socket(number);
        socket.bind(&SockAddr::from(at)).unwrap();
        socket.into()
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
