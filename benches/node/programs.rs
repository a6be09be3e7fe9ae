//! What eBPF programs cost: attached by whoever isolates, or waiting from the birth on.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::node::{Node, Pod};
use crate::packets;
use crate::report::Section;
use crate::{Effort, Outcome};

const NONE: &str = "without programs";
const ATTACHED: &str = "programs, attached at the isolation";
const WAITING: &str = "programs that wait";
const THROUGHPUT: &str = "TCP throughput, released";
const LATENCY: &str = "request and answer, released, p50";
const FIRST: u32 = 5000;

pub(crate) fn measure(node: &Node, effort: &Effort) -> Outcome<Section> {
    let mut section = Section::new("programs", "eBPF programs, attached at the isolation or waiting from the birth on");
    let [none, attached, waiting]: [Pod; 3] = node.pods(60..63)?.try_into().map_err(|_| "three pods were wanted")?;
    add(node, &none, "off")?;
    add(node, &waiting, "always")?;
    // Its agent ends before there is another sandbox that it would attend to.
    drop(node.agent()?);
    if links(&waiting).len() != 2 {
        return Err("no programs wait: this kernel has no tcx".into());
    }
    add(node, &attached, "always")?;
    isolations(node, effort, &[(NONE, &none), (ATTACHED, &attached), (WAITING, &waiting)], &mut section)?;
    let mebibytes = |pod: &Pod| Ok::<_, Box<dyn std::error::Error>>(memory(pod)? as f64 / 1024.0 / 1024.0);
    section.push("memory of programs and maps, each sandbox", WAITING, "MiB", mebibytes(&waiting)?);
    node.command(["isolate", &waiting.container_id]).run()?;
    section.push("memory of programs and maps, each sandbox", "programs, isolated", "MiB", mebibytes(&waiting)?);
    node.command(["release", &waiting.container_id]).run()?;
    released(effort, &none, &waiting, &mut section)?;

    for pod in [&none, &attached, &waiting] {
        node.command(["release", &pod.container_id]).run()?;
        delete(node, pod)?;
    }
    crowd(node, effort, &mut section)?;
    section.notes.push(
        "The cut is before what is measured here: programs that are attached at the isolation follow it, and those that wait are part of \
         it. Attaching is serial in the kernel. What a drop by a program costs beside one by nftables is in the section about floods."
            .to_owned(),
    );
    Ok(section)
}

fn entry(node: &Node, ebpf: &str) -> serde_json::Value {
    json!({ "type": "quarantine", "stateDir": node.state, "ebpf": ebpf })
}

fn add(node: &Node, pod: &Pod, ebpf: &str) -> Outcome<()> {
    node.call(&node.quarantine, "ADD", pod, &entry(node, ebpf)).run().map(drop)
}

fn delete(node: &Node, pod: &Pod) -> Outcome<()> {
    node.call(&node.quarantine, "DEL", pod, &entry(node, "auto")).run().map(drop)
}

fn isolations(node: &Node, effort: &Effort, pods: &[(&str, &Pod)], section: &mut Section) -> Outcome<()> {
    for _ in 0..effort.runs(60) {
        for (verb, measure) in
            [("isolate", "isolate, the command to its exit"), ("release", "release, the command to its exit")]
        {
            for (subject, pod) in pods {
                section.push(measure, subject, "ms", node.command([verb, &pod.container_id]).milliseconds()?);
            }
        }
    }
    Ok(())
}

fn released(effort: &Effort, none: &Pod, waiting: &Pod, section: &mut Section) -> Outcome<()> {
    let subjects = [(NONE, none), (WAITING, waiting)];
    // The reference first, whoever is measured first.
    for (measure, unit) in [(THROUGHPUT, "Gbit/s"), (LATENCY, "µs")] {
        for (subject, _) in &subjects {
            section.series(measure, subject, unit);
        }
    }
    for round in 0..effort.runs(40) {
        for turn in 0..2 {
            let (subject, pod) = subjects[(round + turn) % 2];
            section.push(THROUGHPUT, subject, "Gbit/s", packets::throughput(pod, Duration::from_millis(200))?);
            section.push(LATENCY, subject, "µs", packets::latency(pod, 2000)?.0);
        }
    }
    Ok(())
}

/// As many sandboxes as the largest node has: their births, and an agent that comes back to them.
fn crowd(node: &Node, effort: &Effort, section: &mut Section) -> Outcome<()> {
    let size = effort.crowd().last().copied().unwrap_or(1);
    let pods = node.pods(FIRST..FIRST + size)?;
    for pod in &pods {
        add(node, pod, "always")?;
    }
    let named = format!("{size} sandboxes, none has programs");
    let started = Instant::now();
    let agent = node.agent()?;
    wait_for_all(&pods)?;
    section.push("agent's start until programs wait on all", &named, "s", started.elapsed().as_secs_f64());
    agent.wait_until_idle()?;
    section.push("agent's start, CPU", &named, "ms", agent.cpu()?.as_secs_f64() * 1e3);
    drop(agent);
    let before = ids(&pods)?;
    let named = format!("{size} sandboxes, all have programs");
    let started = Instant::now();
    let agent = node.agent()?;
    section.push("agent's start until it rests", &named, "s", started.elapsed().as_secs_f64());
    section.push("agent's start, CPU", &named, "ms", agent.cpu()?.as_secs_f64() * 1e3);
    drop(agent);
    if ids(&pods)? != before {
        return Err("an agent that came back attached something".into());
    }
    for pod in &pods {
        delete(node, pod)?;
    }
    Ok(())
}

fn wait_for_all(pods: &[Pod]) -> Outcome<()> {
    let deadline = Instant::now() + Duration::from_secs(120);
    // The last is not the last that is attended to.
    for pod in pods {
        while links(pod).len() < 2 {
            if Instant::now() > deadline {
                return Err("programs wait not on all within 120 s".into());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
    Ok(())
}

/// Where the programs of a pod are pinned.
fn pins(pod: &Pod) -> Vec<PathBuf> {
    let nodes = fs::read_dir("/sys/fs/bpf/quarantine").into_iter().flatten().flatten();
    let of_pod = nodes.filter_map(|node| fs::read_dir(node.path().join(&pod.container_id)).ok());
    let mut pins: Vec<_> = of_pod.flatten().flatten().map(|pin| pin.path()).collect();
    pins.sort();
    pins
}

fn is_link(pin: &Path) -> bool {
    pin.file_name().is_some_and(|name| name.as_bytes().starts_with(b"link-"))
}

fn links(pod: &Pod) -> Vec<PathBuf> {
    pins(pod).into_iter().filter(|pin| is_link(pin)).collect()
}

/// The IDs of all links, by their pins.
fn ids(pods: &[Pod]) -> Outcome<BTreeMap<PathBuf, u64>> {
    let of = |pin: PathBuf| {
        let said = said_of(&pinned(&pin)?, "link_id:")?;
        Ok((pin, said))
    };
    pods.iter().flat_map(links).map(of).collect()
}

/// Bytes that the kernel counts for the programs and maps of a pod.
fn memory(pod: &Pod) -> Outcome<u64> {
    let mut sum = 0;
    for pin in pins(pod) {
        let object = pinned(&pin)?;
        let counted = if is_link(&pin) { program(said_of(&object, "prog_id:")?)? } else { object };
        sum += said_of(&counted, "memlock:")?;
    }
    Ok(sum)
}

/// A number that the kernel says of a descriptor.
fn said_of(object: &OwnedFd, key: &str) -> Outcome<u64> {
    let said = fs::read_to_string(format!("/proc/self/fdinfo/{}", object.as_raw_fd()))?;
    let value = said.lines().find_map(|line| line.strip_prefix(key));
    Ok(value.ok_or_else(|| format!("no {key} in {said}"))?.trim().parse()?)
}

fn pinned(pin: &Path) -> Outcome<OwnedFd> {
    const BPF_OBJ_GET: libc::c_long = 7;
    let path = CString::new(pin.as_os_str().as_bytes())?;
    let attributes = [path.as_ptr() as u64, 0];
    open(BPF_OBJ_GET, &attributes).map_err(|error| format!("{}: {error}", pin.display()).into())
}

fn program(id: u64) -> Outcome<OwnedFd> {
    const BPF_PROG_GET_FD_BY_ID: libc::c_long = 13;
    Ok(open(BPF_PROG_GET_FD_BY_ID, &[id, 0])?)
}

/// A command of bpf(2) that makes a descriptor, and whose pointer, where it has one, is to a path.
fn open(command: libc::c_long, attributes: &[u64; 2]) -> std::io::Result<OwnedFd> {
    // SAFETY: the kernel reads the attributes, which are as long as is said; a path in them ends, and lives.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) };
    let descriptor = RawFd::try_from(result).unwrap_or(-1);
    if descriptor < 0 {
        return Err(std::io::Error::last_os_error());
    }
    // SAFETY: the kernel made it just now, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
