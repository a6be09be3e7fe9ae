//! What the processes of a pod speak against the programs on its cgroup with.
//!
//! Thread by thread: each may have privileges, open files and a network namespace of its own.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::patient::ask_each;
use crate::kernel::cgroup::{ids_within, is_gone, processes_of};
use crate::kernel::sock_diag::{Details, DiagSocket, Kind, SockDiag, protocol_name};
use crate::model::audit::chain;
use crate::model::host_pod::{Capability, HostDoubt, Privileges, Socket};
use crate::model::mounts::mounts;

/// So many sockets of one sort are looked at, of all that the node has.
const SOCKETS_MAX: usize = 1 << 20;
/// So many processes are named for one reason; what is said of one is true of the others.
const NAMED_MAX: usize = 8;

/// What tells a network namespace: device and inode.
pub(super) type NetnsId = (u64, u64);

/// That of the calling thread: the node's.
pub(super) fn own_netns() -> io::Result<NetnsId> {
    netns_at(Path::new("/proc/thread-self"))
}

fn netns_at(task: &Path) -> io::Result<NetnsId> {
    fs::metadata(task.join("ns/net")).map(|found| (found.dev(), found.ino()))
}

/// Whether any thread of a cgroup is in this network namespace.
pub(super) fn has_thread_in(cgroup: &Path, netns: NetnsId) -> bool {
    let tasks = processes_of(cgroup).unwrap_or_default().into_iter().flat_map(tasks_of).collect();
    let is_here = |found: &Option<NetnsId>| *found == Some(netns);
    ask_each(tasks, |task| netns_at(task).ok(), is_here).iter().any(|(_, found)| found.as_ref().is_some_and(is_here))
}

fn tasks_of(process: u32) -> Vec<PathBuf> {
    let entries = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).collect()
}

/// What speaks against the programs on this cgroup, whose pod is one of the network namespace.
pub(super) fn doubts(cgroup: &Path, netns: NetnsId) -> Vec<HostDoubt> {
    let processes = match processes_of(cgroup) {
        Ok(processes) => processes,
        Err(error) if is_gone(&error) => Vec::new(),
        Err(error) => return vec![HostDoubt::Unseen { process: 0, why: error.to_string() }],
    };
    let mut found = Found::default();
    if processes.contains(&0) {
        let why = "it is in a PID namespace that cannot be seen from here".to_owned();
        found.unseen.push(HostDoubt::Unseen { process: 0, why });
    }
    let of_tasks = processes.into_iter().filter(|process| *process != 0).flat_map(tasks_of).collect();
    for (task, seen) in ask_each(of_tasks, |task| look_at(task), |_| false) {
        found.add(process_of(&task), seen, netns);
    }
    found.ask_for_owners(cgroup);
    found.doubts()
}

/// The process that a directory of one of its threads is in.
fn process_of(task: &Path) -> u32 {
    let process = task.parent().and_then(Path::parent).and_then(Path::file_name);
    process.and_then(|process| process.to_str()?.parse().ok()).unwrap_or_default()
}

/// What was seen of a thread.
struct Seen {
    name: String,
    netns: NetnsId,
    capabilities: Vec<Capability>,
    /// A file system by which it could get out.
    writes: Option<PathBuf>,
    /// All of its sockets, by their inodes.
    sockets: BTreeSet<u32>,
    for_frames: Vec<Socket>,
}

fn look_at(task: &Path) -> io::Result<Seen> {
    let status = fs::read_to_string(task.join("status"))?;
    let privileges = Privileges::read(&status)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its status says nothing of its privileges"))?;
    let name = status.lines().find_map(|line| line.strip_prefix("Name:\t")).unwrap_or_default();
    let (sockets, for_frames) = sockets_of(task)?;
    Ok(Seen {
        name: name.escape_debug().to_string(),
        netns: netns_at(task)?,
        capabilities: privileges.within_reach().dangerous().collect(),
        writes: if privileges.may_be_root() { way_out(task)? } else { None },
        sockets,
        for_frames,
    })
}

/// A mount that a thread could leave its cgroup by, or take programs off.
fn way_out(task: &Path) -> io::Result<Option<PathBuf>> {
    let text = match fs::read_to_string(task.join("mountinfo")) {
        // A dead one.
        Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => return Ok(None),
        text => text?,
    };
    let leads_out = |kind: &str| matches!(kind, "cgroup2" | "bpf");
    Ok(mounts(&text).find(|mount| mount.is_writable && leads_out(&mount.kind)).map(|mount| mount.point))
}

/// Its sockets, and which there are for frames among them.
fn sockets_of(task: &Path) -> io::Result<(BTreeSet<u32>, Vec<Socket>)> {
    let (mut inodes, mut for_frames) = (BTreeSet::new(), Vec::new());
    for file in fs::read_dir(task.join("fd"))? {
        let link = file?.path();
        let Some(inode) = socket_at(&link) else { continue };
        inodes.insert(inode);
        if let Some(socket) = sort_of(&link)?
            && !for_frames.contains(&socket)
        {
            for_frames.push(socket);
        }
    }
    Ok((inodes, for_frames))
}

/// The socket that a link leads to, by its inode.
fn socket_at(link: &Path) -> Option<u32> {
    fs::read_link(link).ok()?.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok()
}

/// Whether the socket that a link leads to is one for frames.
///
/// The list of sockets (`NETLINK_SOCK_DIAG`) would say so too, of one network namespace, and of `AF_XDP` only where the kernel was built
/// for that. So each is asked what it is called.
fn sort_of(link: &Path) -> Result<Option<Socket>, Errno> {
    // What a process has open may be another file by now, of a file system that never answers: nothing is asked of it before it is held.
    let held = match open(link, OFlag::O_PATH | OFlag::O_CLOEXEC, Mode::empty()) {
        Err(Errno::ENOENT | Errno::ESRCH) => return Ok(None),
        held => held?,
    };
    let path = Path::new("/proc/thread-self/fd").join(held.as_raw_fd().to_string());
    if socket_at(&path).is_none() {
        return Ok(None);
    }
    Ok(match protocol_name(&path)?.as_slice() {
        b"PACKET" => Some(Socket::Packet),
        b"XDP" => Some(Socket::Xdp),
        _ => None,
    })
}

/// What was found of all of them.
#[derive(Default)]
struct Found {
    frames: Vec<HostDoubt>,
    /// One for each set of capabilities.
    capable: BTreeMap<Vec<Capability>, HostDoubt>,
    writes: BTreeMap<PathBuf, HostDoubt>,
    elsewhere: Vec<u32>,
    unseen: Vec<HostDoubt>,
    /// Whose each socket is.
    holders: BTreeMap<u32, (u32, String)>,
    foreign: Vec<HostDoubt>,
}

impl Found {
    fn add(&mut self, process: u32, seen: Option<io::Result<Seen>>, netns: NetnsId) {
        let unseen = |why: String| HostDoubt::Unseen { process, why };
        let seen = match seen {
            Some(Ok(seen)) => seen,
            // It has ended.
            Some(Err(error)) if is_gone(&error) => return,
            Some(Err(error)) => return self.unseen.push(unseen(error.to_string())),
            None => return self.unseen.push(unseen("the kernel does not answer".to_owned())),
        };
        if seen.netns != netns && !self.elsewhere.contains(&process) {
            self.elsewhere.push(process);
        }
        let name = || seen.name.clone();
        for inode in seen.sockets {
            self.holders.entry(inode).or_insert_with(|| (process, name()));
        }
        for socket in seen.for_frames {
            let doubt = HostDoubt::Frames { process, name: name(), socket };
            if !self.frames.contains(&doubt) {
                self.frames.push(doubt);
            }
        }
        if let Some(mount) = seen.writes {
            let point = mount.to_string_lossy().escape_debug().to_string();
            let doubt = HostDoubt::Writes { process, name: name(), mount: point };
            self.writes.entry(mount).or_insert(doubt);
        }
        if !seen.capabilities.is_empty() {
            let doubt = HostDoubt::Capable { process, name: name(), capabilities: seen.capabilities.clone() };
            self.capable.entry(seen.capabilities).or_insert(doubt);
        }
    }

    /// Where their sockets were made: by that, and by nothing that became of them since, programs are found. One that is neither bound nor
    /// connected is in no list.
    fn ask_for_owners(&mut self, cgroup: &Path) {
        const SORTS: [(Kind, bool); 4] =
            [(Kind::Tcp, true), (Kind::Udp, true), (Kind::UdpLite, false), (Kind::Raw, false)];
        if self.holders.is_empty() {
            return;
        }
        let own = ids_within(cgroup);
        for (kind, is_everywhere) in SORTS {
            let listed = SockDiag::open().and_then(|mut lists| lists.list(kind, SOCKETS_MAX));
            let sockets = match listed {
                Ok(listed) => listed.sockets,
                Err(error) if is_everywhere => {
                    return self.foreign.push(HostDoubt::NoLists { why: chain(&error) });
                }
                Err(_) => continue,
            };
            for DiagSocket { inode, details, .. } in sockets {
                let Details::Inet { cgroup: Some(cgroup), .. } = details else { continue };
                let Some((process, name)) = self.holders.get(&inode).filter(|_| !own.contains(&cgroup)) else {
                    continue;
                };
                let doubt = HostDoubt::Foreign { process: *process, name: name.clone() };
                if !self.foreign.contains(&doubt) {
                    self.foreign.push(doubt);
                }
            }
        }
    }

    fn doubts(self) -> Vec<HostDoubt> {
        let elsewhere = self.elsewhere.len();
        let frames = self.frames.into_iter().take(NAMED_MAX);
        let capable = self.capable.into_values().take(NAMED_MAX);
        let writes = self.writes.into_values().take(NAMED_MAX);
        let elsewhere = (elsewhere > 0).then_some(HostDoubt::OtherNetns { processes: elsewhere });
        let unseen = self.unseen.into_iter().take(NAMED_MAX);
        frames
            .chain(self.foreign.into_iter().take(NAMED_MAX))
            .chain(capable)
            .chain(writes)
            .chain(elsewhere)
            .chain(unseen)
            .collect()
    }
}
