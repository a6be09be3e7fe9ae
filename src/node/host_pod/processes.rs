//! What the processes of a pod speak against the programs on its cgroup with.
//!
//! Thread by thread: each may have privileges, open files and a network namespace of its own.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use super::cgroups::{is_gone, processes_of};
use super::patient::ask_each;
use crate::kernel::sock_diag::protocol_name;
use crate::model::host_pod::{Capability, Cgroup, HostDoubt, Privileges, Socket, mounts};

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
pub(super) fn doubts(cgroup: &Cgroup, netns: NetnsId) -> Vec<HostDoubt> {
    let processes = match processes_of(&cgroup.path) {
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
    sockets: Vec<Socket>,
}

fn look_at(task: &Path) -> io::Result<Seen> {
    let status = fs::read_to_string(task.join("status"))?;
    let privileges = Privileges::read(&status)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "its status says nothing of its privileges"))?;
    let name = status.lines().find_map(|line| line.strip_prefix("Name:\t")).unwrap_or_default();
    Ok(Seen {
        name: name.escape_debug().to_string(),
        netns: netns_at(task)?,
        capabilities: privileges.within_reach().dangerous().collect(),
        writes: if privileges.may_be_root() { way_out(task)? } else { None },
        sockets: sockets_for_frames(task)?,
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

fn sockets_for_frames(task: &Path) -> io::Result<Vec<Socket>> {
    let mut found = Vec::new();
    for file in fs::read_dir(task.join("fd"))? {
        let link = file?.path();
        if is_socket(&link)
            && let Some(socket) = sort_of(&link)?
            && !found.contains(&socket)
        {
            found.push(socket);
        }
    }
    Ok(found)
}

fn is_socket(link: &Path) -> bool {
    fs::read_link(link).is_ok_and(|target| target.to_str().is_some_and(|target| target.starts_with("socket:[")))
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
    if !is_socket(&path) {
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
        for socket in seen.sockets {
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

    fn doubts(self) -> Vec<HostDoubt> {
        let elsewhere = self.elsewhere.len();
        let frames = self.frames.into_iter().take(NAMED_MAX);
        let capable = self.capable.into_values().take(NAMED_MAX);
        let writes = self.writes.into_values().take(NAMED_MAX);
        let elsewhere = (elsewhere > 0).then_some(HostDoubt::OtherNetns { processes: elsewhere });
        let unseen = self.unseen.into_iter().take(NAMED_MAX);
        frames.chain(capable).chain(writes).chain(elsewhere).chain(unseen).collect()
    }
}
