//! What it costs to bind the probe hole to a cgroup: the isolation, and every packet that the node itself sends meanwhile.

use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;

use crate::node::{Node, Pod};
use crate::report::Section;
use crate::{Effort, Outcome};

const ROOT: &str = "probes of root's processes";
const CGROUP: &str = "probes of a cgroup";
/// Packets that are timed together.
const PACKETS: u32 = 20_000;

/// A cgroup of version 2, which goes with this.
struct Cgroup(PathBuf);

impl Cgroup {
    fn make(path: &str) -> Outcome<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mut mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = mounts.find(|fields| fields.get(2) == Some(&"cgroup2")).ok_or("no cgroups of version 2 here")?;
        let directory = Path::new(mount[1]).join(path);
        fs::create_dir(&directory)?;
        Ok(Self(directory))
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

pub(crate) fn measure(node: &Node, effort: &Effort) -> Outcome<Section> {
    let mut section = Section::new("probers", "The probe hole, bound to a cgroup");
    let name = format!("quarantine-bench-{}", std::process::id());
    let _cgroup = Cgroup::make(&name)?;
    let [root, cgroup]: [Pod; 2] = node.pods(70..72)?.try_into().map_err(|_| "two pods were wanted")?;
    node.plugin("ADD", &root, None).run()?;
    node.plugin("ADD", &cgroup, Some(&json!({ "probes": { "cgroup": name } }))).run()?;
    let subjects = [(ROOT, &root), (CGROUP, &cgroup)];
    for round in 0..effort.runs(40) {
        section.push("a packet of the node's own, to itself", "nothing is isolated", "ns", packet()?);
        for turn in 0..2 {
            // Each is first as often as second.
            let (subject, pod) = subjects[(round + turn) % 2];
            let [isolate, release] = ["isolate", "release"].map(|verb| node.command([verb, &pod.container_id]));
            section.push("isolate, the command to its exit", subject, "ms", isolate.milliseconds()?);
            section.push("a packet of the node's own, to itself", subject, "ns", packet()?);
            section.push("release, the command to its exit", subject, "ms", release.milliseconds()?);
        }
    }
    for pod in [&root, &cgroup] {
        node.plugin("DEL", pod, None).run()?;
    }
    // The reference first, whoever was measured first.
    section.series.sort_by_key(|series| (series.measure.clone(), series.subject == CGROUP, series.subject == ROOT));
    section.notes.push(
        "Bound to a cgroup, a chain on the node's output looks at whose socket each packet is, as long as such a pod is isolated; a packet \
         here is a datagram over `lo`, of a process that is not in the cgroup. Else no packet of the node's is looked at but those to the pod."
            .to_owned(),
    );
    Ok(section)
}

/// Nanoseconds for each of many datagrams that nobody reads.
fn packet() -> Outcome<f64> {
    let receiver = UdpSocket::bind("127.0.0.1:0")?;
    let sender = UdpSocket::bind("127.0.0.1:0")?;
    sender.connect(receiver.local_addr()?)?;
    let bytes = [1; 64];
    let started = Instant::now();
    for _ in 0..PACKETS {
        sender.send(&bytes)?;
    }
    Ok(started.elapsed().as_secs_f64() * 1e9 / f64::from(PACKETS))
}
