//! One collection, the most fleeting first.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read, Seek, SeekFrom};
use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::{Value, json};

use super::EvidenceError;
use super::executables::Executables;
use super::limits::{self, Budget, Deadline};
use super::manifest::{Clock, FORMAT, Manifest, ManifestPod};
use super::network::{self, Gaps, gap};
use super::proc::{Mount, read_mountinfo};
use super::processes::{Members, MountNamespace, Reader, find_members, read_file};
use super::start::budget;
use super::store::{Kept, Store};
use super::writer::Files;
use super::{dns, timestamp};
use crate::kernel::netns::Netns;
use crate::kernel::sock_diag::DiagSocket;
use crate::model::audit::{Line, chain};
use crate::model::names::{ContainerId, PodName, PodUid};
use crate::model::records::SandboxRecords;
use crate::node::sandbox::{SandboxError, Side};
use crate::node::state::StateDir;

/// Collects what can be had of a sandbox, and says so in the log. Holds this process to its limits for the rest of its life.
///
/// # Errors
/// [`EvidenceError`]; what is missing of a collection is no error, and is said in its manifest.
pub fn collect(state: &StateDir, container_id: &ContainerId, with_executables: bool) -> Result<Kept, EvidenceError> {
    let budget = budget();
    limits::hold_this_process(budget);
    let kept = collect_unlogged(state, container_id, with_executables, budget);
    let line = |event| Line::new(event).with("container", container_id);
    match &kept {
        Ok(kept) => log::info!(
            "{}",
            line("evidence")
                .with("path", &kept.path)
                .with("sequence", kept.manifest.sequence)
                // Whoever has the log can tell whether all that is on the node was written anew.
                .with("manifest", &kept.sha256)
                .with("files", kept.manifest.files.len())
                .with("missing", kept.manifest.missing.len())
                .with("ms", kept.manifest.milliseconds)
        ),
        Err(error) => log::error!("{}", line("no-evidence").with("error", chain(error))),
    }
    kept
}

fn collect_unlogged(
    state: &StateDir,
    container_id: &ContainerId,
    with_executables: bool,
    budget: Budget,
) -> Result<Kept, EvidenceError> {
    let deadline = Deadline::start(budget);
    let clock = clock();
    let records = state.records_of(container_id).0;
    let records = records.ok_or_else(|| EvidenceError::Unknown { container_id: container_id.clone() })?;
    let netns = Netns::open(records.netns())?;
    let of_sandbox = |error| match error {
        SandboxError::Netns(error) => EvidenceError::from(error),
        SandboxError::Kernel(error) => error.into(),
        _ => EvidenceError::Gone { container_id: container_id.clone() },
    };
    let mut pod = Side::of(&netns).map_err(of_sandbox)?;
    if records.netns_cookie() != 0 && records.netns_cookie() != pod.links.netns_cookie() {
        return Err(EvidenceError::Gone { container_id: container_id.clone() });
    }
    let store = Store::of(state);
    let name: String = clock.time.chars().filter(|c| !matches!(c, '-' | ':')).collect();
    let partial = store.prepare(container_id)?.join(format!(".{name}.{}", std::process::id()));
    let mut files = Files::create(partial.clone()).map_err(EvidenceError::io("create", &partial))?;
    let mut gaps = Gaps::new();
    let mut collection = Collection { records: &records, netns: &netns, deadline, gaps: &mut gaps, files: &mut files };
    let pid_and_mounts = collection.processes_and_sockets(with_executables)?;
    collection.network(&mut pod).map_err(EvidenceError::io("write in", &partial))?;
    collection.rest(state, pid_and_mounts).map_err(EvidenceError::io("write in", &partial))?;
    let (partial, written) = files.finish();
    let pod = records.pod();
    let manifest = Manifest {
        format: FORMAT,
        program: format!("quarantine {}", env!("CARGO_PKG_VERSION")),
        container_id: container_id.to_string(),
        pod: ManifestPod {
            namespace: pod.namespace.as_ref().map(PodName::to_string),
            name: pod.name.as_ref().map(PodName::to_string),
            uid: pod.uid.as_ref().map(PodUid::to_string),
        },
        clock,
        milliseconds: u64::try_from(deadline.elapsed().as_millis()).unwrap_or(u64::MAX),
        files: written,
        missing: gaps,
        sequence: 0,
        predecessor: None,
    };
    store.seal(&partial, container_id, &name, manifest)
}

struct Collection<'a> {
    records: &'a SandboxRecords,
    netns: &'a Netns,
    deadline: Deadline,
    gaps: &'a mut Gaps,
    files: &'a mut Files,
}

/// A process of the pod and the mounts that it sees.
type OfProcess = Option<(u32, Vec<Mount>)>;

impl Collection<'_> {
    fn processes_and_sockets(&mut self, with_executables: bool) -> Result<OfProcess, EvidenceError> {
        let directory = self.files.directory().to_owned();
        let failed = |error| EvidenceError::io("write in", &directory)(error);
        let (sockets, sockets_cut) = network::sockets(self.netns, self.gaps)?;
        let uid = self.records.pod().uid.as_ref().map(PodUid::as_str);
        let deadline = self.deadline;
        let members = find_members(self.netns.id().inode, uid, deadline).map_err(failed)?;
        if members.processes.is_empty() {
            gap(
                self.gaps,
                "processes",
                "none was found; in a container this takes the node's own processes in /proc (hostPID)",
            );
        }
        let mut reader = Reader::new(Executables::on(&own_mounts(), with_executables), deadline.budget());
        self.write_processes(&members, &mut reader).map_err(failed)?;
        self.write_sockets(&sockets, sockets_cut, &reader).map_err(failed)?;
        self.write_mounts(&reader).map_err(failed)?;
        for (sha256, mut file) in reader.executables.take_wanted() {
            // It was read to its end for the hash.
            let copied = file
                .seek(SeekFrom::Start(0))
                .and_then(|_| self.files.copy(&format!("executables/{sha256}"), &mut file, limits::COPIED));
            if let Err(error) = copied {
                gap(self.gaps, format!("executables/{sha256}"), error);
            }
        }
        // Of the mount namespace that most processes are in: their files, not the pause container's.
        let most = reader.mounts.into_values().max_by_key(|namespace| namespace.processes.len());
        let of_process = most.and_then(|MountNamespace { processes, mounts, .. }| Some((*processes.first()?, mounts)));
        match &of_process {
            Some((pid, mounts)) => {
                let found = dns::read(&mut reader.guarded, *pid, mounts, self.gaps);
                self.files.document("dns.json", &json!({ "files": found }), Vec::new()).map_err(failed)?;
            }
            None => gap(self.gaps, "dns.json", "no process of the pod was found"),
        }
        Ok(of_process)
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

    fn write_sockets(&mut self, sockets: &[DiagSocket], cut_short: Vec<String>, reader: &Reader) -> io::Result<()> {
        #[derive(Serialize)]
        struct Owned<'a> {
            #[serde(flatten)]
            socket: &'a DiagSocket,
            owners: Vec<Value>,
        }
        let mut list = self.files.list("sockets.json")?;
        for socket in sockets {
            let owners = reader.owners.get(&socket.inode).into_iter().flatten();
            let owners = owners.map(|(pid, file)| json!({ "pid": pid, "file": file })).collect();
            list.push(&Owned { socket, owners })?;
        }
        list.finish(cut_short)
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

    fn network(&mut self, pod: &mut Side) -> io::Result<()> {
        let mut host = match Side::own() {
            Ok(host) => host,
            Err(error) => {
                gap(self.gaps, "network of the node", chain(&error));
                return Ok(());
            }
        };
        let pinned = self.records.pinned_interfaces();
        let ends: BTreeSet<u32> = pinned.iter().filter_map(|pinned| Some(pinned.host_end.as_ref()?.index)).collect();
        let addresses: Vec<IpAddr> =
            pinned.iter().flat_map(|pinned| pinned.interface.addresses.iter().copied()).collect();
        let (files, gaps) = (&mut *self.files, &mut *self.gaps);
        let interfaces = network::write_network(files, &mut pod.links, &mut host.links, &ends, gaps)?;
        network::write_conntrack(files, self.netns, &addresses, gaps)?;
        network::write_nftables(files, self.netns, &mut pod.nft, gaps)?;
        network::write_tc(files, self.netns, (pod, &interfaces), (&mut host, &ends), gaps)
    }

    /// What does not fade, so that the collection can be read without the node.
    fn rest(&mut self, state: &StateDir, of_process: OfProcess) -> io::Result<()> {
        let records = self.records.iter().filter_map(|record| serde_json::from_str::<Value>(&record.to_json()).ok());
        let records: Vec<_> = records.collect();
        let marks = state.marks_of(self.records.container_id(), self.records.pod()).unwrap_or_default();
        let marks: Vec<_> = marks
            .into_iter()
            .map(|(key, mark)| match mark {
                Ok(mark) => json!({ "key": key.as_str(), "mark": mark.to_json() }),
                Err(fault) => json!({ "key": key.as_str(), "fault": fault }),
            })
            .collect();
        let process = of_process.map(|(pid, _)| pid);
        let document = json!({ "records": records, "marks": marks, "process": process });
        self.files.document("sandbox.json", &document, Vec::new())
    }
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
