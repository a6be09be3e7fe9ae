//! Evidence of a pod with very much to be kept: what it takes, and whether the cut comes later for it.

use std::fs;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use cni_quarantine::internals::Events;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::SockProtocol;
use serde_json::Value;

use crate::isolation::{NFNLGRP_NFTABLES, until_awake};
use crate::node::{EVIDENCE, Node, Pod, wait_for};
use crate::report::Section;
use crate::{Effort, Outcome};

const SOCKETS: usize = 10_000;
const PROCESSES: usize = 1_000;

pub(crate) fn measure(node: &Node, effort: &Effort) -> Outcome<Section> {
    let mut section = Section::new("evidence", "Evidence of a pod with 10,000 sockets and 1,000 processes");
    let pod = node.pods(800..801)?.remove(0);
    node.plugin("ADD", &pod, None).run()?;
    let _crowd = Crowd::start(&pod)?;
    let mut rules = pod.rules()?;
    let events = pod.inside(|| Events::subscribe(SockProtocol::NetlinkNetFilter, NFNLGRP_NFTABLES))??;
    let isolate = node.command(["isolate", &pod.container_id]);
    let release = node.command(["release", &pod.container_id]);
    let kept = node.state.join("evidence").join(&pod.container_id);
    for _ in 0..effort.runs(20) {
        for (subject, evidence) in [("without evidence", "off"), ("with evidence", "on")] {
            let isolate = isolate.clone().with_environment([(EVIDENCE, evidence.to_owned())]);
            events.drain(&mut vec![0; 65536], |_, _| {})?;
            let started = Instant::now();
            let command = std::thread::spawn(move || isolate.milliseconds().map_err(|error| error.to_string()));
            let awake = until_awake(&events, &mut rules, started, true)?;
            let taken = command.join().map_err(|_| "the command's thread panicked")??;
            section.push("from the command's start to the cut", subject, "ms", awake.as_secs_f64() * 1e3);
            section.push("from its start to its exit", subject, "ms", taken);
            if evidence == "on" {
                let manifest = await_manifest(&kept)?;
                let milliseconds = manifest["milliseconds"].as_f64().ok_or("no milliseconds")?;
                let files = manifest["files"].as_array().ok_or("no files")?;
                let bytes: f64 = files.iter().filter_map(|file| file["bytes"].as_f64()).sum();
                section.push("collected in the background", "with evidence", "s", milliseconds / 1e3);
                section.push("its length", "with evidence", "MB", bytes / 1e6);
                fs::remove_dir_all(node.state.join("evidence"))?;
            }
            release.run()?;
        }
    }
    section.notes.push(
        "All other sections are measured with `QUARANTINE_EVIDENCE=off`: a collection in the background would \
         take processor time from what comes after it."
            .to_owned(),
    );
    Ok(section)
}

/// Waits for the only collection that there is.
fn await_manifest(directory: &PathBuf) -> Outcome<Value> {
    let mut found = None;
    wait_for("a collection", || {
        let entries = fs::read_dir(directory).into_iter().flatten().filter_map(Result::ok);
        let mut finished = entries.filter(|entry| !entry.file_name().to_string_lossy().starts_with('.'));
        found = finished.next().map(|entry| entry.path().join("manifest.json"));
        Ok(found.is_some())
    })?;
    Ok(serde_json::from_slice(&fs::read(found.unwrap_or_default())?)?)
}

/// The processes of the pod; ended with this.
struct Crowd(Vec<Child>);

impl Crowd {
    fn start(pod: &Pod) -> Outcome<Self> {
        let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        let open_many = || {
            for _ in 0..SOCKETS {
                // SAFETY: it takes numbers alone.
                if unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) } < 0 {
                    return Err(std::io::Error::last_os_error());
                }
            }
            Ok(())
        };
        let mut crowd = Self(Vec::new());
        for number in 0..PROCESSES {
            let mut command = Command::new("sleep");
            command.arg("10000").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            if number == 0 {
                // SAFETY: between fork and exec the closure makes system calls alone.
                unsafe { command.pre_exec(open_many) };
            }
            crowd.0.push(pod.inside(move || command.spawn())??);
        }
        Ok(crowd)
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
        }
        for child in &mut self.0 {
            let _ = child.wait();
        }
    }
}
