//! Cgroups as a kubelet makes them, and processes in them: each test has a tree of its own in the machine's hierarchy of version 2.

use std::fs;
use std::io::{self, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Protocol, SockAddr, Socket, Type};

use crate::lab::{Netns, PATIENCE, eventually};

/// Where the sockets of a member are among its open files.
const FIRST_SOCKET: RawFd = 100;

/// The kubelet's part of the cgroups.
pub(super) struct Kubelet {
    /// What is this test's own of the hierarchy.
    directory: PathBuf,
    node: Netns,
}

/// The machine's hierarchy of version 2.
pub(super) fn hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let fields = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let found = fields.filter(|fields| fields[2] == "cgroup2").map(|fields| PathBuf::from(fields[1])).next();
    found.expect("no cgroups of version 2 are mounted")
}

impl Kubelet {
    pub(super) fn of(node: &Netns) -> Self {
        let directory = hierarchy().join(node.name());
        fs::create_dir_all(directory.join("kubepods/burstable")).unwrap();
        Self { directory, node: Netns::named(node.name()) }
    }

    /// The cgroup of a pod, and of a container in it.
    pub(super) fn pod(&self) -> Pod {
        self.pod_of(&uid())
    }

    pub(super) fn pod_of(&self, uid: &str) -> Pod {
        let cgroup = self.directory.join(format!("kubepods/burstable/pod{uid}"));
        fs::create_dir_all(cgroup.join("container")).unwrap();
        Pod { uid: uid.to_owned(), cgroup, node: Netns::named(self.node.name()) }
    }

    /// A process that is called as a kubelet is, in a cgroup of its own.
    pub(super) fn itself(&self, sockets: &[Sort]) -> Member {
        let directory = tempfile::tempdir().unwrap();
        let program = directory.path().join("kubelet");
        let sleep = ["/bin/sleep", "/usr/bin/sleep"].into_iter().find(|path| Path::new(path).exists()).unwrap();
        std::os::unix::fs::symlink(sleep, &program).unwrap();
        let command = self.node.command(program.to_str().unwrap());
        Member::start_as(command, &self.service("kubelet.service"), Privileges::All, sockets)
    }

    /// Another cgroup of the node's.
    pub(super) fn service(&self, name: &str) -> PathBuf {
        let cgroup = self.directory.join(name);
        fs::create_dir_all(&cgroup).unwrap();
        cgroup
    }
}

impl Drop for Kubelet {
    fn drop(&mut self) {
        remove(&self.directory);
    }
}

/// Ends what is in a cgroup, and removes it with those below it.
pub(super) fn remove(cgroup: &Path) {
    let _ = fs::write(cgroup.join("cgroup.kill"), "1");
    let removed = eventually(PATIENCE, || {
        remove_tree(cgroup);
        !cgroup.exists()
    });
    assert!(removed || std::thread::panicking(), "{} is left", cgroup.display());
}

fn remove_tree(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path());
        }
    }
    let _ = fs::remove_dir(cgroup);
}

/// A UID that no other pod has.
fn uid() -> String {
    static COUNTER: AtomicU32 = AtomicU32::new(0);
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    format!("0f9d6b52-6f0a-4a43-{:04x}-{:012x}", number & 0xffff, std::process::id())
}

/// A pod's cgroup.
pub(super) struct Pod {
    pub(super) uid: String,
    pub(super) cgroup: PathBuf,
    node: Netns,
}

impl Pod {
    /// A process of a container of it, in the node's network namespace, without privileges.
    pub(super) fn process(&self, sockets: &[Sort]) -> Member {
        Member::start(&self.cgroup.join("container"), &self.node, Privileges::None, sockets)
    }

    /// One with these privileges.
    pub(super) fn process_with(&self, privileges: Privileges, sockets: &[Sort]) -> Member {
        Member::start(&self.cgroup.join("container"), &self.node, privileges, sockets)
    }

    /// One in another network namespace.
    pub(super) fn process_in(&self, netns: &Netns, sockets: &[Sort]) -> Member {
        Member::start(&self.cgroup.join("container"), netns, Privileges::None, sockets)
    }

    /// The pod ends.
    pub(super) fn end(&self) {
        remove(&self.cgroup);
    }
}

/// What a process may do.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Privileges {
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
pub(super) enum Sort {
    Tcp,
    Tcp6,
    Udp,
    /// Of a protocol that nobody else uses.
    Raw,
    Packet,
    Xdp,
}

/// So that nothing else answers.
pub(super) const RAW_PROTOCOL: u8 = 253;

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
pub(super) struct Member {
    process: Child,
    pidfd: OwnedFd,
}

impl Member {
    pub(super) fn start(cgroup: &Path, netns: &Netns, privileges: Privileges, sockets: &[Sort]) -> Self {
        Self::start_as(netns.command("sleep"), cgroup, privileges, sockets)
    }

    /// One that has a socket of the test's own, too, which was made elsewhere.
    pub(super) fn start_with(cgroup: &Path, netns: &Netns, socket: &impl AsRawFd) -> Self {
        let (mut command, given) = (netns.command("sleep"), socket.as_raw_fd());
        // SAFETY: the closure makes one system call with numbers.
        let keep = move || checked(unsafe { libc::dup2(given, FIRST_SOCKET) }).map(drop);
        // SAFETY: and it does not allocate.
        unsafe { command.pre_exec(keep) };
        Self::start_as(command, cgroup, Privileges::None, &[])
    }

    fn start_as(mut command: Command, cgroup: &Path, privileges: Privileges, sockets: &[Sort]) -> Self {
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

    pub(super) fn id(&self) -> u32 {
        self.process.id()
    }

    /// One of the sockets that it was started with.
    pub(super) fn socket(&self, number: RawFd) -> Socket {
        // SAFETY: the call takes numbers.
        let socket = unsafe { libc::syscall(libc::SYS_pidfd_getfd, self.pidfd.as_raw_fd(), FIRST_SOCKET + number, 0) };
        assert!(socket >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the kernel made it just now.
        unsafe { Socket::from_raw_fd(socket as RawFd) }
    }

    /// A connection from one of its sockets.
    pub(super) fn connect(&self, number: RawFd, to: SocketAddr) -> TcpStream {
        let socket = self.socket(number);
        socket.connect_timeout(&SockAddr::from(to), PATIENCE).unwrap();
        socket.into()
    }

    /// One of its sockets, listening there.
    pub(super) fn listen(&self, number: RawFd, at: SocketAddr) -> TcpListener {
        let socket = self.socket(number);
        socket.bind(&SockAddr::from(at)).unwrap();
        socket.listen(16).unwrap();
        socket.into()
    }

    /// One of its sockets, bound there.
    pub(super) fn bind(&self, number: RawFd, at: SocketAddr) -> UdpSocket {
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

/// A raw socket of the test's own, of the protocol that [`Sort::Raw`] has.
pub(super) fn raw_in(netns: &Netns) -> Socket {
    let protocol = Protocol::from(i32::from(RAW_PROTOCOL));
    netns.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(protocol)).unwrap())
}

/// An address without a port that matters.
pub(super) fn any_port(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 0)
}
