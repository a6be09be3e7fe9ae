//! One collection, the most fleeting first. What is the same of a sandbox and of a pod with hostNetwork is here, what is not in
//! `sandbox` and `host_pod`.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::{Value, json};

use super::executables::Executables;
use super::host_pod::OfHostPod;
use super::limits::{self, Budget, Deadline};
use super::manifest::{Clock, FORMAT, Manifest, ManifestPod};
use super::network::{Gaps, Sockets, gap};
use super::proc::{Mount, read_mountinfo};
use super::processes::{Members, MountNamespace, Reader, read_file};
use super::sandbox::OfSandbox;
use super::start::{budget, line_about};
use super::store::{Kept, Store};
use super::writer::Files;
use super::{EvidenceError, dns, timestamp};
use crate::kernel::sock_diag::DiagSocket;
use crate::model::audit::chain;
use crate::model::fault::Fault;
use crate::model::mark::Mark;
use crate::model::names::{Key, Pod, PodName, PodUid};
use crate::model::subject::Subject;
use crate::node::state::StateDir;

/// Collects what can be had of a sandbox or pod, and says so in the log. Holds this process to its limits for the rest of its life.
///
/// # Errors
/// [`EvidenceError`]; what is missing of a collection is no error, and is said in its manifest.
pub fn collect(state: &StateDir, subject: &Subject, with_executables: bool) -> Result<Kept, EvidenceError> {
    let budget = budget();
    limits::hold_this_process(budget);
    let kept = collect_unlogged(state, subject, with_executables, budget);
    match &kept {
        Ok(kept) => log::info!(
            "{}",
            line_about("evidence", subject)
                .with("path", &kept.path)
                .with("sequence", kept.manifest.sequence)
                // Whoever has the log can tell whether all that is on the node was written anew.
                .with("manifest", &kept.sha256)
                .with("files", kept.manifest.files.len())
                .with("missing", kept.manifest.missing.len())
                .with("ms", kept.manifest.milliseconds)
        ),
        Err(error) => log::error!("{}", line_about("no-evidence", subject).with("error", chain(error))),
    }
    kept
}

fn collect_unlogged(
    state: &StateDir,
    subject: &Subject,
    with_executables: bool,
    budget: Budget,
) -> Result<Kept, EvidenceError> {
    let deadline = Deadline::start(budget);
    let clock = clock();
    let mut source = Source::find(state, subject)?;
    let store = Store::of(state);
    let name: String = clock.time.chars().filter(|c| !matches!(c, '-' | ':')).collect();
    let partial = store.prepare(subject)?.join(format!(".{name}.{}", std::process::id()));
    let files = Files::create(partial.clone()).map_err(EvidenceError::io("create", &partial))?;
    let mut collection = Collection { deadline, with_executables, gaps: Gaps::new(), files };
    match &mut source {
        Source::Sandbox(sandbox) => sandbox.collect(&mut collection, state),
        Source::HostPod(pod) => pod.collect(&mut collection, state),
    }
    .map_err(EvidenceError::io("write in", &partial))?;
    let (partial, written) = collection.files.finish();
    let pod = source.pod();
    let manifest = Manifest {
        format: FORMAT,
        program: format!("quarantine {}", env!("CARGO_PKG_VERSION")),
        container_id: subject.sandbox().map(ToString::to_string),
        pod: ManifestPod {
            namespace: pod.namespace.as_ref().map(PodName::to_string),
            name: pod.name.as_ref().map(PodName::to_string),
            uid: pod.uid.as_ref().map(PodUid::to_string),
        },
        clock,
        milliseconds: u64::try_from(deadline.elapsed().as_millis()).unwrap_or(u64::MAX),
        files: written,
        missing: collection.gaps,
        sequence: 0,
        predecessor: None,
    };
    store.seal(&partial, subject, &name, manifest)
}

/// What is collected from.
enum Source {
    Sandbox(OfSandbox),
    HostPod(OfHostPod),
}

impl Source {
    fn find(state: &StateDir, subject: &Subject) -> Result<Self, EvidenceError> {
        match subject {
            Subject::Sandbox(container_id) => OfSandbox::find(state, container_id).map(Self::Sandbox),
            Subject::HostPod(uid) => OfHostPod::find(uid).map(Self::HostPod),
        }
    }

    fn pod(&self) -> &Pod {
        match self {
            Self::Sandbox(sandbox) => sandbox.pod(),
            Self::HostPod(pod) => pod.pod(),
        }
    }
}

/// One that is being made.
pub(super) struct Collection {
    pub(super) deadline: Deadline,
    with_executables: bool,
    pub(super) gaps: Gaps,
    pub(super) files: Files,
}

/// A process of the pod and the mounts that it sees.
type OfProcess = Option<(u32, Vec<Mount>)>;

impl Collection {
    /// A reader for processes; where a UID is given, only of those that are in that pod's control groups when they are read.
    pub(super) fn reader(&self, within: Option<&PodUid>) -> Reader {
        let executables = Executables::on(&own_mounts(), self.with_executables);
        Reader::new(executables, self.deadline.budget(), within.cloned())
    }

    /// Writes what is of processes: themselves, sockets with their owners, mounts, programs, and who they ask for names. Sockets that
    /// are not meant are left out from there on. Gives the process that what was said of names is of.
    pub(super) fn processes(
        &mut self,
        members: &Members,
        reader: &mut Reader,
        sockets: &mut Sockets,
        is_meant: impl Fn(&DiagSocket, &Reader) -> bool,
    ) -> io::Result<Option<u32>> {
        self.write_processes(members, reader)?;
        sockets.found.retain(|socket| is_meant(socket, reader));
        self.write_sockets(sockets, reader)?;
        self.write_mounts(reader)?;
        for (sha256, mut file) in reader.executables.take_wanted() {
            // It was read to its end for the hash.
            let copied = file
                .seek(SeekFrom::Start(0))
                .and_then(|_| self.files.copy(&format!("executables/{sha256}"), &mut file, limits::COPIED));
            if let Err(error) = copied {
                gap(&mut self.gaps, format!("executables/{sha256}"), error);
            }
        }
        // Of the mount namespace that most processes are in: their files, not the pause container's.
        let most = std::mem::take(&mut reader.mounts).into_values().max_by_key(|namespace| namespace.processes.len());
        let of_process: OfProcess =
            most.and_then(|MountNamespace { processes, mounts, .. }| Some((*processes.first()?, mounts)));
        match &of_process {
            Some((pid, mounts)) => {
                let found = dns::read(&mut reader.guarded, *pid, mounts, &mut self.gaps);
                self.files.document("dns.json", &json!({ "files": found }), Vec::new())?;
            }
            None => gap(&mut self.gaps, "dns.json", "no process of the pod was found"),
        }
        Ok(of_process.map(|(pid, _)| pid))
    }

    fn write_processes(&mut self, members: &Members, reader: &mut Reader) -> io::Result<()> {
        let mut list = self.files.list("processes.json")?;
        let mut cut_short = members.cut_short.clone();
        let mut ended = 0;
        for (&pid, &belongs) in &members.processes {
            if list.is_full() || self.deadline.is_over() {
                let said = if list.is_full() { "the file is full".to_owned() } else { self.deadline.said() };
                cut_short.push(format!("{} of {} processes: {said}", list.count(), members.processes.len()));
                break;
            }
            match reader.read(pid, belongs, !members.unanswering.contains(&pid)) {
                Some(process) => list.push(&process)?,
                None => ended += 1,
            }
        }
        if ended > 0 {
            cut_short.push(format!("{ended} processes ended while they were read"));
        }
        list.finish(cut_short)
    }

    fn write_sockets(&mut self, sockets: &Sockets, reader: &Reader) -> io::Result<()> {
        #[derive(Serialize)]
        struct Owned<'a> {
            #[serde(flatten)]
            socket: &'a DiagSocket,
            owners: Vec<Value>,
        }
        let mut list = self.files.list("sockets.json")?;
        for socket in &sockets.found {
            let owners = reader.owners.get(&socket.inode).into_iter().flatten();
            let owners = owners.map(|(pid, file)| json!({ "pid": pid, "file": file })).collect();
            list.push(&Owned { socket, owners })?;
        }
        list.finish(sockets.cut_short.clone())
    }

    fn write_mounts(&mut self, reader: &Reader) -> io::Result<()> {
        let mut list = self.files.list("mounts.json")?;
        let mut cut_short = Vec::new();
        for (inode, namespace) in &reader.mounts {
            let processes = &namespace.processes[..namespace.processes.len().min(64)];
            list.push(&json!({ "namespace": inode, "processes": processes, "mounts": namespace.mounts }))?;
            cut_short.extend(namespace.cut_short.as_ref().map(|cut| format!("namespace {inode}: {cut}")));
        }
        if reader.mounts.len() >= limits::MOUNT_NAMESPACES {
            cut_short.push(format!("the first {} mount namespaces", limits::MOUNT_NAMESPACES));
        }
        list.finish(cut_short)
    }
}

/// Marks, as they are written down.
pub(super) fn marks_json(marks: impl IntoIterator<Item = (Key, Result<Mark, Fault>)>) -> Vec<Value> {
    let written = |(key, mark): (Key, Result<Mark, Fault>)| match mark {
        Ok(mark) => json!({ "key": key.as_str(), "mark": mark.to_json() }),
        Err(fault) => json!({ "key": key.as_str(), "fault": fault }),
    };
    marks.into_iter().map(written).collect()
}

/// The mounts that this process sees.
fn own_mounts() -> Vec<Mount> {
    let text = read_file("/proc/self/mountinfo").map(|(text, _)| text).unwrap_or_default();
    read_mountinfo(&text, usize::MAX).0
}

fn clock() -> Clock {
    let since_boot = clock_gettime(ClockId::CLOCK_BOOTTIME).ok();
    let line = |path: &str| {
        let mut text = String::new();
        let read = fs::File::open(path).and_then(|file| file.take(256).read_to_string(&mut text));
        read.map(|_| text.trim().to_owned()).unwrap_or_default()
    };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Clock {
        time: timestamp(now.as_secs()),
        since_boot_milliseconds: since_boot
            .and_then(|time| u64::try_from(time.tv_sec() * 1000 + time.tv_nsec() / 1_000_000).ok())
            .unwrap_or(0),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        host: line("/proc/sys/kernel/hostname"),
        kernel: line("/proc/sys/kernel/osrelease"),
    }
}
