//! Network namespaces: opened, proved to be one, told from the host's own, and entered for a moment.
//!
//! A thread that enters one comes back whatever happens in there, or the process ends: one that was left in the wrong netns
//! would act on the wrong pod. It is the calling thread, since to start another one takes longer than all that is done inside.
//! What is opened there (a netlink socket) stays bound to it and is used from outside.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::process;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CloneFlags, setns};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use thiserror::Error;

use crate::model::names::NetnsPath;

/// `NS_GET_NSTYPE` of `linux/nsfs.h`.
const NS_GET_NSTYPE: u8 = 0x3;
nix::ioctl_none_bad!(
    /// The kind of a namespace, as its `CLONE_NEW…` flag.
    ns_get_nstype,
    nix::request_code_none!(0xb7, NS_GET_NSTYPE)
);

/// `SIOCGSKNS` of `linux/sockios.h` (Linux 4.9).
const SIOCGSKNS: libc::c_int = 0x894c;
nix::ioctl_none_bad!(
    /// A descriptor of the netns that a socket is in.
    siocgskns,
    SIOCGSKNS
);

/// The calling thread's own netns.
const OWN: &str = "/proc/thread-self/ns/net";

/// Why a netns cannot be used.
#[derive(Debug, Error)]
pub enum NetnsError {
    /// There is nothing at the path, or nothing that can be opened; [`NetnsError::is_gone`] tells.
    #[error("cannot open the network namespace {path}; if its pod is gone, so is it")]
    Open {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There is something else at the path.
    #[error("{path} is no network namespace")]
    NotOne {
        /// The path.
        path: String,
    },
    /// It could not be entered.
    #[error("cannot enter the network namespace {path}; it takes CAP_SYS_ADMIN")]
    Enter {
        /// The path.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl NetnsError {
    /// Whether there is no network namespace at the path. That it cannot be opened for another reason (no descriptor is left,
    /// say) says nothing of it.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::NotOne { .. } => true,
            Self::Open { .. } => matches!(
                self.errno(),
                // What else can be at the path of a pod that has ended: a socket, a link to itself.
                Some(
                    Errno::ENOENT | Errno::ENOTDIR | Errno::ENXIO | Errno::ENODEV | Errno::ELOOP | Errno::ENAMETOOLONG
                )
            ),
            Self::Enter { .. } => false,
        }
    }

    /// The error number of the kernel, where there was one.
    #[must_use]
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Open { source, .. } | Self::Enter { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::NotOne { .. } => None,
        }
    }
}

/// What tells one netns from every other that lives at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct NetnsId {
    /// The device of the nsfs.
    pub device: u64,
    /// The inode in it.
    pub inode: u64,
}

/// An open network namespace. It lives at least as long as this does.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: String,
    id: NetnsId,
}

impl Netns {
    /// Opens the netns at `path` and proves that it is one.
    ///
    /// # Errors
    /// [`NetnsError::Open`], [`NetnsError::NotOne`].
    pub fn open(path: &NetnsPath) -> Result<Self, NetnsError> {
        Self::open_path(path.as_path())
    }

    /// The netns that the calling thread is in: the host's.
    ///
    /// # Errors
    /// [`NetnsError::Open`].
    pub fn own() -> Result<Self, NetnsError> {
        Self::of_file(open_own(), OWN.to_owned())
    }

    fn open_path(path: &Path) -> Result<Self, NetnsError> {
        let name = path.display().to_string();
        // Not blocking: a runtime's left-over at the path may be anything, a FIFO too.
        let opened = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path);
        Self::of_file(opened, name)
    }

    fn of_file(opened: io::Result<File>, name: String) -> Result<Self, NetnsError> {
        let metadata = opened.and_then(|file| Ok((file.metadata()?, file)));
        let (metadata, file) = metadata.map_err(|source| NetnsError::Open { path: name.clone(), source })?;
        // SAFETY: the request takes no argument and changes nothing; on what is no namespace it fails with ENOTTY.
        let kind = unsafe { ns_get_nstype(file.as_raw_fd()) };
        if kind != Ok(libc::CLONE_NEWNET) {
            return Err(NetnsError::NotOne { path: name });
        }
        Ok(Self { file, path: name, id: NetnsId { device: metadata.dev(), inode: metadata.ino() } })
    }

    /// What tells it from others.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `work` inside, on the calling thread, and returns what it returned. A thread that `work` starts stays inside.
    ///
    /// # Errors
    /// [`NetnsError::Enter`]; `work` has not run then.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> Result<T, NetnsError> {
        let enter = |source| NetnsError::Enter { path: self.path.clone(), source };
        let own = open_own().map_err(enter)?;
        setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| enter(errno.into()))?;
        let way_back = WayBack(own);
        let result = work();
        drop(way_back);
        Ok(result)
    }
}

/// The netns that the calling thread is in, by a socket in it: what `/proc` would have to make for a process that lives a
/// millisecond takes longer. Whoever may not ask a socket is told by `/proc`.
fn open_own() -> io::Result<File> {
    let by_socket = || {
        let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        // SAFETY: the request takes no argument, and makes a descriptor.
        let made = unsafe { siocgskns(socket.as_raw_fd()) }?;
        // SAFETY: it was made just now, and is nobody else's.
        Ok(File::from(unsafe { OwnedFd::from_raw_fd(made) }))
    };
    by_socket().or_else(|_: Errno| File::open(OWN))
}

/// The netns that a thread came from; it is there again when this is dropped, by a panic too.
struct WayBack(File);

impl Drop for WayBack {
    fn drop(&mut self) {
        if setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).is_err() {
            process::abort();
        }
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_entered_one_is_back_whatever_happened_inside() {
        let own = || Netns::own().unwrap().id();
        let here = own();
        let other = std::thread::spawn(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).unwrap();
            Netns::own().unwrap()
        });
        let other = other.join().unwrap();
        assert_eq!(other.run(own).unwrap(), other.id());
        assert_ne!(other.id(), here);
        assert_eq!(own(), here);
        let nested = other.run(|| (other.run(own).unwrap(), own())).unwrap();
        assert_eq!(nested, (other.id(), other.id()));
        assert_eq!(own(), here);
        assert!(std::panic::catch_unwind(|| other.run(|| panic!("inside"))).is_err());
        assert_eq!(own(), here);
        assert_eq!(Netns::open_path(Path::new(OWN)).unwrap().id(), here, "as /proc says it");
    }

    #[test]
    fn what_cannot_be_opened_for_want_of_something_is_not_gone() {
        let open = |errno: Errno| NetnsError::Open { path: "/run/netns/a".to_owned(), source: errno.into() };
        for errno in [Errno::ENOENT, Errno::ENOTDIR, Errno::ENXIO, Errno::ELOOP] {
            assert!(open(errno).is_gone(), "{errno}");
        }
        for errno in [Errno::EMFILE, Errno::ENFILE, Errno::ENOMEM, Errno::EACCES, Errno::EPERM, Errno::EINTR] {
            assert!(!open(errno).is_gone(), "{errno}");
        }
    }
}
