//! Cgroups as a kubelet makes them, and processes in them: each test has a tree of its own in the machine's hierarchy of version 2.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use socket2::{Domain, Protocol, Socket, Type};

pub(super) use crate::lab::member::{Member, Privileges, RAW_PROTOCOL, Sort};
use crate::lab::{Netns, PATIENCE, eventually};

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

/// A raw socket of the test's own, of the protocol that [`Sort::Raw`] has.
pub(super) fn raw_in(netns: &Netns) -> Socket {
    let protocol = Protocol::from(i32::from(RAW_PROTOCOL));
    netns.run(|| Socket::new(Domain::IPV4, Type::RAW, Some(protocol)).unwrap())
}

/// An address without a port that matters.
pub(super) fn any_port(address: IpAddr) -> SocketAddr {
    SocketAddr::new(address, 0)
}
