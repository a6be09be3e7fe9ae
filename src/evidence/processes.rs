//! The processes of a pod, from the node's `/proc`.
//!
//! A process is reached by one opened directory, so that all that is read of it is of the same one, however soon its number
//! is another's. Nothing that a link names is looked at, but for executables on file systems that answer; and whatever
//! waits for the process is guarded: its memory may be made of pages that never come.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};

use nix::unistd::{Pid, gettid};
use serde::Serialize;

use super::executables::{Executable, Executables};
use super::guarded::{Guarded, LOST_MAX, NoResult, WAITS_MAX, runs};
use super::limits::{self, Budget, Deadline};
use super::proc::{
    Credentials, MappedFile, Maps, Mount, Stat, is_cgroup_of, read_cgroup, read_maps, read_mountinfo, read_stat,
    read_status, socket_inode, strings,
};
use crate::model::escaped::Escaped;
use crate::model::names::PodUid;

/// Namespaces that a process is in.
const NAMESPACES: [&str; 8] = ["cgroup", "ipc", "mnt", "net", "pid", "time", "user", "uts"];

/// Why a process is taken for one of the pod's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Belongs {
    /// It is in the pod's network namespace.
    NetworkNamespace,
    /// It is in a control group of the pod's.
    ControlGroup,
    /// It was started by one of these.
    Child,
}

/// The processes of a pod.
#[derive(Debug, Default)]
pub(super) struct Members {
    pub(super) processes: BTreeMap<u32, Belongs>,
    /// Those that keep whoever looks at them waiting.
    pub(super) unanswering: BTreeSet<u32>,
    /// What was left out.
    pub(super) cut_short: Vec<String>,
}

impl Members {
    /// Those of a pod's control group alone, as it lists them.
    pub(super) fn of_cgroup(listed: io::Result<Vec<u32>>) -> Self {
        let mut members = Self::default();
        match listed {
            Ok(listed) => {
                let (seen, unseen): (Vec<u32>, Vec<u32>) = listed.into_iter().partition(|pid| *pid != 0);
                if !unseen.is_empty() {
                    members.cut_short.push("processes of a PID namespace that cannot be seen from here".to_owned());
                }
                if seen.len() > limits::PROCESSES {
                    members.cut_short.push(format!("{} of {} processes", limits::PROCESSES, seen.len()));
                }
                let seen = seen.into_iter().take(limits::PROCESSES);
                members.processes = seen.map(|pid| (pid, Belongs::ControlGroup)).collect();
            }
            Err(error) => members.cut_short.push(format!("the control group does not list its processes: {error}")),
        }
        members
    }
}

/// Finds them: those in the netns, those in the pod's control groups, and the children of both.
pub(super) fn find_members(netns_inode: u64, uid: Option<&str>, deadline: Deadline) -> io::Result<Members> {
    let entries = fs::read_dir("/proc")?.filter_map(Result::ok);
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pids: Arc<[u32]> = pids.take(limits::PROCESSES_OF_NODE).collect();
    let patience = deadline.budget().patience(limits::LINK_PATIENCE);
    let mut members = Members::default();
    let mut next = 0;
    while next < pids.len() && members.processes.len() < limits::PROCESSES && !deadline.is_over() {
        let with_links = members.unanswering.len() < LOST_MAX / 2;
        let Some((found, thread)) = look(&pids, next, netns_inode, uid, with_links) else { break };
        let mut waits = 0;
        loop {
            match found.recv_timeout(patience) {
                Err(RecvTimeoutError::Timeout) if waits < WAITS_MAX && runs(thread) => waits += 1,
                Ok(Look::Belongs(pid, belongs)) => drop(members.processes.insert(pid, belongs)),
                Ok(Look::Done(number)) => (next, waits) = (number + 1, 0),
                Err(RecvTimeoutError::Timeout) => {
                    members.unanswering.extend(pids.get(next));
                    next += 1;
                    break;
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
            if members.processes.len() >= limits::PROCESSES || deadline.is_over() {
                break;
            }
        }
    }
    if next < pids.len() {
        let found = members.processes.len();
        members.cut_short.push(format!("after {found} processes of the pod the others were not looked for"));
    }
    let mut left: Vec<u32> = members.processes.keys().copied().collect();
    while let Some(pid) = left.pop() {
        if members.processes.len() >= limits::PROCESSES || deadline.is_over() {
            break;
        }
        let Ok((text, _)) = read_file(&format!("/proc/{pid}/task/{pid}/children")) else { continue };
        let children = String::from_utf8_lossy(&text);
        for child in children.split_ascii_whitespace().filter_map(|child| child.parse().ok()) {
            if let std::collections::btree_map::Entry::Vacant(entry) = members.processes.entry(child) {
                entry.insert(Belongs::Child);
                left.push(child);
            }
        }
    }
    if !members.unanswering.is_empty() {
        let pids: Vec<_> = members.unanswering.iter().take(64).map(u32::to_string).collect();
        let count = members.unanswering.len();
        members.cut_short.push(format!("{count} processes of the node give no answer: {}", pids.join(", ")));
    }
    Ok(members)
}

/// What a look at the processes of the node found.
enum Look {
    Belongs(u32, Belongs),
    /// The one of this number was looked at.
    Done(usize),
}

/// Looks at them from the one of a number on, on a thread of its own: some may give no answer.
fn look(
    pids: &Arc<[u32]>,
    from: usize,
    netns_inode: u64,
    uid: Option<&str>,
    with_links: bool,
) -> Option<(Receiver<Look>, Pid)> {
    let (found, looks) = channel();
    let (tell, told) = channel();
    let (pids, uid, netns) = (pids.clone(), uid.map(str::to_owned), format!("net:[{netns_inode}]"));
    let work = move || {
        let _ = tell.send(gettid());
        for (number, pid) in pids.iter().copied().enumerate().skip(from) {
            let is_of_pod = |uid: &String| {
                let cgroup = read_file(&format!("/proc/{pid}/cgroup")).ok().and_then(|(text, _)| read_cgroup(&text));
                cgroup.is_some_and(|cgroup| is_cgroup_of(&cgroup.0, uid))
            };
            // The control group first, which is always said.
            if uid.as_ref().is_some_and(is_of_pod) {
                let _ = found.send(Look::Belongs(pid, Belongs::ControlGroup));
            }
            let link = || fs::read_link(format!("/proc/{pid}/ns/net"));
            if with_links && link().is_ok_and(|link| link.as_os_str() == netns.as_str()) {
                let _ = found.send(Look::Belongs(pid, Belongs::NetworkNamespace));
            }
            if found.send(Look::Done(number)).is_err() {
                return;
            }
        }
    };
    std::thread::Builder::new().name("looking".to_owned()).stack_size(128 * 1024).spawn(work).ok()?;
    Some((looks, told.recv().ok()?))
}

/// A process, as it is written down.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Process {
    pid: u32,
    belongs: Belongs,
    name: Escaped,
    state: char,
    parent: u32,
    process_group: Option<u32>,
    session: Option<u32>,
    terminal: Option<i32>,
    threads: u32,
    /// In clock ticks since the node started, and as the node's clock has it.
    started_ticks: Option<u64>,
    started: Option<String>,
    credentials: Credentials,
    executable: Executable,
    arguments: Vec<Escaped>,
    environment_names: Vec<Escaped>,
    working_directory: Option<Escaped>,
    root: Option<Escaped>,
    control_group: Option<Escaped>,
    namespaces: BTreeMap<&'static str, u64>,
    open_files: Vec<OpenFile>,
    mapped_files: Vec<MappedFile>,
    anonymous_executable_bytes: u64,
    /// What of it could not be read, or not whole.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cut_short: Vec<String>,
}

#[derive(Debug, Serialize)]
struct OpenFile {
    number: u32,
    target: Escaped,
}

/// What is learned on the way through all processes.
#[derive(Debug, Default)]
pub(super) struct Reader {
    pub(super) guarded: Guarded,
    /// By the inode of a socket, who has it open and under which number.
    pub(super) owners: BTreeMap<u32, Vec<(u32, u32)>>,
    open_files: usize,
    pub(super) executables: Executables,
    /// Whose control groups processes have to be in when they are read: a number may be another's by then.
    within: Option<PodUid>,
    /// The network namespaces that processes are in, by inode.
    pub(super) networks: BTreeSet<u64>,
    /// By the inode of a mount namespace, the processes in it and its mounts.
    pub(super) mounts: BTreeMap<u64, MountNamespace>,
    /// When the node started, in seconds of its clock.
    booted: u64,
}

/// A mount namespace.
#[derive(Debug, Default)]
pub(super) struct MountNamespace {
    pub(super) processes: Vec<u32>,
    pub(super) mounts: Vec<Mount>,
    pub(super) cut_short: Option<String>,
}

/// What the kernel says of a process without its memory; that of one that hangs in an `execve` it does not say.
#[derive(Debug, Default)]
struct Facts {
    stat: Option<Stat>,
    executable: Option<PathBuf>,
    working_directory: Option<PathBuf>,
    root: Option<PathBuf>,
    namespaces: BTreeMap<&'static str, u64>,
    open_numbers: Vec<u32>,
    open_numbers_left_out: Option<u64>,
}

impl Facts {
    fn read(directory: &File, most: usize) -> Self {
        let link = |name: &str| fs::read_link(place(directory, name)).ok();
        let namespace = |name| {
            let target = link(&format!("ns/{name}"))?;
            Some((name, target.to_str()?.split_once('[')?.1.strip_suffix(']')?.parse().ok()?))
        };
        let mut facts = Self {
            stat: read_file(&place(directory, "stat")).ok().and_then(|(text, _)| read_stat(&text)),
            executable: link("exe"),
            working_directory: link("cwd"),
            root: link("root"),
            namespaces: NAMESPACES.into_iter().filter_map(namespace).collect(),
            ..Self::default()
        };
        let numbers = fs::read_dir(place(directory, "fd")).into_iter().flatten().filter_map(Result::ok);
        let mut numbers = numbers.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        facts.open_numbers = numbers.by_ref().take(most).collect();
        if numbers.next().is_some() {
            // Since Linux 6.2 the directory says how many there are.
            let total = fs::metadata(place(directory, "fd")).map_or(0, |metadata| metadata.size());
            facts.open_numbers_left_out = Some(total.max(most as u64 + 1) - most as u64);
        }
        facts.open_numbers.sort_unstable();
        facts
    }
}

impl Reader {
    pub(super) fn new(executables: Executables, budget: Budget, within: Option<PodUid>) -> Self {
        let booted = read_file("/proc/stat").ok().and_then(|(text, _)| {
            let text = String::from_utf8_lossy(&text).into_owned();
            text.lines().find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
        });
        Self { booted: booted.unwrap_or(0), guarded: Guarded::within(budget), executables, within, ..Self::default() }
    }

    /// Reads one, of which no more is read than what is always said if it gave no answer before; `None` where it has ended,
    /// or is not the one that was meant.
    pub(super) fn read(&mut self, pid: u32, belongs: Belongs, answers: bool) -> Option<Process> {
        let directory = Arc::new(File::open(format!("/proc/{pid}")).ok()?);
        let mut cut_short = Vec::new();
        let status = read_status(&read_file(&place(&directory, "status")).ok()?.0);
        let control_group = read_file(&place(&directory, "cgroup")).ok().and_then(|(text, _)| read_cgroup(&text));
        if let Some(uid) = &self.within
            && !control_group.as_ref().is_some_and(|group| is_cgroup_of(&group.0, uid.as_str()))
        {
            return None;
        }
        let facts = if answers { self.facts(&directory) } else { Err(NoResult::NoAnswer) };
        let memory = match &facts {
            Ok(_) => self.memory(&directory, &mut cut_short),
            Err(why) => {
                cut_short.push(format!("all but its credentials: {}", why.as_str()));
                Memory::default()
            }
        };
        let facts = facts.unwrap_or_default();
        let open_files = self.open_files(&directory, &facts.open_numbers, &mut cut_short);
        if let Some(left_out) = facts.open_numbers_left_out {
            let kept = facts.open_numbers.len() as u64;
            cut_short.push(format!("open files: {kept} of {}", kept + left_out));
        }
        if memory.maps.is_cut_short {
            cut_short.push(format!("mapped files: the first {}", limits::MAPPED_FILES));
        }
        self.open_files += open_files.len();
        for file in &open_files {
            if let Some(inode) = socket_inode(&file.target.0) {
                self.owners.entry(inode).or_default().push((pid, file.number));
            }
        }
        self.networks.extend(facts.namespaces.get("net"));
        if let Some(&namespace) = facts.namespaces.get("mnt") {
            self.mounts(namespace, pid);
        }
        let executable = self.executables.read(&mut self.guarded, &directory, facts.executable, &memory.maps.files);
        let shown = |path: PathBuf| Escaped::from(path.as_os_str().as_bytes());
        let stat = facts.stat;
        let ticks = stat.as_ref().map(|stat| stat.started);
        Some(Process {
            pid,
            belongs,
            name: status.name,
            state: status.state,
            parent: status.parent,
            process_group: stat.as_ref().map(|stat| stat.group),
            session: stat.as_ref().map(|stat| stat.session),
            terminal: stat.as_ref().map(|stat| stat.terminal),
            threads: status.threads,
            started_ticks: ticks,
            // The kernel says clock ticks to programs in hundredths of a second, whatever it counts in.
            started: ticks.map(|ticks| super::timestamp(self.booted + ticks / 100)),
            credentials: status.credentials,
            executable,
            arguments: memory.arguments,
            environment_names: memory.environment_names,
            working_directory: facts.working_directory.map(shown),
            root: facts.root.map(shown),
            control_group,
            namespaces: facts.namespaces,
            open_files,
            mapped_files: memory.maps.files,
            anonymous_executable_bytes: memory.maps.anonymous_executable_bytes,
            cut_short,
        })
    }

    fn facts(&mut self, directory: &Arc<File>) -> Result<Facts, NoResult> {
        let most = limits::OPEN_FILES_OF_ONE.min(limits::OPEN_FILES_OF_ALL.saturating_sub(self.open_files));
        let directory = directory.clone();
        self.guarded.run(limits::MEMORY_PATIENCE, move || Facts::read(&directory, most))
    }

    /// By their links alone: the file behind one may be on a file system that never answers.
    fn open_files(&mut self, directory: &Arc<File>, numbers: &[u32], cut_short: &mut Vec<String>) -> Vec<OpenFile> {
        let mut found = Vec::new();
        for some in numbers.chunks(limits::LINKS_AT_A_TIME) {
            let (directory, some) = (directory.clone(), some.to_vec());
            let read = self.guarded.run(limits::MEMORY_PATIENCE, move || {
                let link =
                    |&number: &u32| Some((number, fs::read_link(place(&directory, &format!("fd/{number}"))).ok()?));
                some.iter().filter_map(link).collect::<Vec<_>>()
            });
            match read {
                Ok(links) => found.extend(
                    links
                        .into_iter()
                        .map(|(number, target)| OpenFile { number, target: target.as_os_str().as_bytes().into() }),
                ),
                Err(why) => {
                    cut_short.push(format!("open files: the first {}: {}", found.len(), why.as_str()));
                    break;
                }
            }
        }
        found
    }

    /// Notes a process of a mount namespace; reads the mounts of one that was not seen before.
    fn mounts(&mut self, namespace: u64, pid: u32) {
        if let Some(known) = self.mounts.get_mut(&namespace) {
            known.processes.push(pid);
            return;
        }
        if self.mounts.len() >= limits::MOUNT_NAMESPACES {
            return;
        }
        let mut found = MountNamespace { processes: vec![pid], ..MountNamespace::default() };
        let text = self.guarded.run(limits::MEMORY_PATIENCE, move || read_file(&format!("/proc/{pid}/mountinfo")));
        match text {
            Ok(Ok((text, _))) => {
                let (mounts, total) = read_mountinfo(&text, limits::MOUNTS);
                found.cut_short = (total > mounts.len()).then(|| format!("{} of {total} mounts", mounts.len()));
                found.mounts = mounts;
            }
            Ok(Err(error)) => found.cut_short = Some(error.to_string()),
            Err(why) => found.cut_short = Some(why.as_str().to_owned()),
        }
        self.executables.learn(&found.mounts);
        self.mounts.insert(namespace, found);
    }

    fn memory(&mut self, directory: &Arc<File>, cut_short: &mut Vec<String>) -> Memory {
        let mut memory = Memory::default();
        let mut guarded = |name: &'static str| -> Option<Vec<u8>> {
            let directory = directory.clone();
            let read = self.guarded.run(limits::MEMORY_PATIENCE, move || read_file(&place(&directory, name)));
            match read {
                Ok(Ok((text, is_whole))) => {
                    if !is_whole {
                        cut_short.push(format!("{name}: the first {} bytes", text.len()));
                    }
                    Some(text)
                }
                Ok(Err(error)) => {
                    cut_short.push(format!("{name}: {error}"));
                    Some(Vec::new())
                }
                Err(why) => {
                    cut_short.push(format!("{name}: {}", why.as_str()));
                    // What comes next is in the same memory.
                    (why == NoResult::NotTried).then(Vec::new)
                }
            }
        };
        let Some(arguments) = guarded("cmdline") else { return memory };
        memory.arguments = shown_strings(&arguments, |argument| argument);
        let Some(environment) = guarded("environ") else { return memory };
        // Names alone: values are secrets more often than they are evidence.
        memory.environment_names =
            shown_strings(&environment, |variable| variable.split(|&byte| byte == b'=').next().unwrap_or_default());
        let Some(maps) = guarded("maps") else { return memory };
        memory.maps = read_maps(&maps, limits::MAPPED_FILES);
        for (what, text) in [("arguments", &arguments), ("environment", &environment)] {
            if strings(text, limits::STRINGS).1 {
                cut_short.push(format!("{what}: the first {}", limits::STRINGS));
            }
        }
        memory
    }
}

#[derive(Default)]
struct Memory {
    arguments: Vec<Escaped>,
    environment_names: Vec<Escaped>,
    maps: Maps,
}

fn shown_strings<'a>(text: &'a [u8], part: impl Fn(&'a [u8]) -> &'a [u8]) -> Vec<Escaped> {
    let (strings, _) = strings(text, limits::STRINGS);
    strings.into_iter().map(|text| part(&text[..text.len().min(limits::STRING_LENGTH)]).into()).collect()
}

/// A file of a process, by its opened directory.
pub(super) fn place(directory: &File, name: &str) -> String {
    use std::os::fd::AsRawFd;
    format!("/proc/self/fd/{}/{name}", directory.as_raw_fd())
}

/// A file of `/proc`, and whether that was all of it.
pub(super) fn read_file(path: &str) -> io::Result<(Vec<u8>, bool)> {
    let mut text = Vec::new();
    File::open(path)?.take(limits::PROC_FILE + 1).read_to_end(&mut text)?;
    let is_whole = text.len() as u64 <= limits::PROC_FILE;
    text.truncate(usize::try_from(limits::PROC_FILE).unwrap_or(usize::MAX));
    Ok((text, is_whole))
}
