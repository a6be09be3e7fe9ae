//! A pod in the node's own network namespace: what this kernel does of the programs on its cgroup.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::DirBuilderExt;
use std::process::{Child, Stdio};

use crate::lab::{Lab, NODE4, PEER4};
use crate::wire::{LONG, SHORT};
use crate::{Outcome, check, ensure, note};

const UID: &str = "7f0e9a52-3c1b-4a86-9d10-5e2f4c8b6a02";
const CGROUPS: &str = "/sys/fs/cgroup";
const KUBELET: &str = "/sys/fs/cgroup/node/kubelet";
const HEALTH: u16 = 8080;

pub(crate) fn check_all() -> Outcome {
    let lab = Lab::new();
    // There is no ADD that would make it.
    fs::DirBuilder::new().recursive(true).mode(0o700).create("/var/lib/cni/quarantine")?;
    lab.node.links().up("lo");
    check("host-network", "a pod in the node's netns is cut off by its cgroup, and nobody else", || {
        let mut processes = vec![process(&cgroup(), "sleep")?, process(KUBELET, "kubelet")?];
        let outcome = cut_off(&lab);
        for process in &mut processes {
            process.kill()?;
            process.wait()?;
        }
        outcome
    });
    Ok(())
}

fn cgroup() -> String {
    format!("{CGROUPS}/kubepods/burstable/pod{UID}")
}

/// A process of this name, once it is in this cgroup.
fn process(cgroup: &str, name: &str) -> Result<Child, Box<dyn Error>> {
    let script = format!(
        "mkdir -p {CGROUPS} && mount -t cgroup2 cgroup2 {CGROUPS}; mkdir -p {cgroup} && echo $$ >{cgroup}/cgroup.procs
        printf {name} >/proc/$$/comm; echo ready
        while :; do sleep 1000; done"
    );
    let mut process = std::process::Command::new("sh").args(["-c", &script]).stdout(Stdio::piped()).spawn()?;
    BufReader::new(process.stdout.take().ok_or("no output")?).read_line(&mut String::new())?;
    Ok(process)
}

fn cut_off(lab: &Lab) -> Outcome {
    let join = |cgroup: &str| fs::write(format!("{cgroup}/cgroup.procs"), std::process::id().to_string());
    // Whose a socket is, is decided when it is made.
    join(&cgroup())?;
    let of_pod = UdpSocket::bind((NODE4, 0));
    let health = TcpListener::bind((NODE4, HEALTH));
    join(CGROUPS)?;
    let health = health?;
    let probe = |limit| TcpStream::connect_timeout(&health.local_addr()?, limit);
    let (of_pod, of_node) = (of_pod?, UdpSocket::bind((NODE4, 0))?);
    let outside = lab.peer.run(|| UdpSocket::bind((PEER4, 4321)))?;
    let passes = |from: &UdpSocket, to: &UdpSocket, limit| -> Result<bool, Box<dyn Error>> {
        to.set_read_timeout(Some(limit))?;
        let _ = from.send_to(b"x", to.local_addr()?);
        Ok(to.recv(&mut [0; 8]).is_ok())
    };
    let both = |socket: &UdpSocket, limit| -> Result<[bool; 2], Box<dyn Error>> {
        Ok([passes(socket, &outside, limit)?, passes(&outside, socket, limit)?])
    };
    ensure!(both(&of_pod, LONG)? == [true; 2], "the control fails");
    ensure!(probe(LONG).is_ok(), "the control of the probe fails");
    let said = lab.node.command("quarantine", &["isolate", UID], "")?;
    note(&format!("isolating a pod with hostNetwork says: {}", said.trim()));
    ensure!(said.contains("partial") && said.contains("CAP_NET_RAW"), "{said}");
    ensure!(!said.contains("eBPF program"), "{said}");
    ensure!(both(&of_pod, SHORT)? == [false; 2], "datagrams of the pod pass");
    ensure!(both(&of_node, LONG)? == [true; 2], "the node is cut off with it");
    ensure!(probe(SHORT).is_err(), "a connection of the node's own passes");
    join(KUBELET)?;
    let probed = probe(LONG);
    join(CGROUPS)?;
    ensure!(probed.is_ok(), "the kubelet's probe fails: {probed:?}");
    let said = lab.node.command("quarantine", &["release", UID], "")?;
    ensure!(both(&of_pod, LONG)? == [true; 2], "it is not free again: {said}");
    Ok(())
}
