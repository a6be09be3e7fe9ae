//! A pod with very much to be kept: all of it is. What that takes is measured by `scripts/bench --only evidence`.

use std::os::unix::process::CommandExt;
use std::process::Stdio;

use super::hostile::raise_limit;
use super::{Collection, Process, await_collections, with_evidence};
use crate::lab::{PATIENCE, Sandbox, Topology, eventually};

const SOCKETS: usize = 10_000;
const PROCESSES: usize = 1_000;

#[test]
fn ten_thousand_sockets_and_a_thousand_processes_are_kept() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    raise_limit();
    let mut command = topology.pod.command("sleep");
    let connect_many = || {
        for _ in 0..SOCKETS {
            // SAFETY: it takes numbers alone.
            let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM, 0) };
            // SAFETY: all zeros are a valid address structure.
            let mut address: libc::sockaddr_in = unsafe { std::mem::zeroed() };
            address.sin_family = libc::AF_INET as u16;
            address.sin_port = 53_u16.to_be();
            address.sin_addr.s_addr = u32::from_ne_bytes([10, 77, 0, 3]);
            // SAFETY: the address lives longer than the call, and its length is given.
            let connected = unsafe { libc::connect(socket, (&raw const address).cast(), 16) };
            if connected != 0 {
                return Err(std::io::Error::last_os_error());
            }
        }
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls alone.
    unsafe { command.pre_exec(connect_many) };
    let holder = Process(command.arg("1000").stdin(Stdio::null()).spawn().unwrap());
    let script = format!("i=0; while [ $i -lt {PROCESSES} ]; do sleep 1000 & i=$((i+1)); done; wait");
    let parent = Process::start(&topology.pod, "sh", &["-c", &script]);
    let children = format!("/proc/{0}/task/{0}/children", parent.pid());
    let count = || std::fs::read_to_string(&children).unwrap_or_default().split_whitespace().count();
    assert!(eventually(PATIENCE, || count() == PROCESSES));

    with_evidence(&sandbox, &["isolate", sandbox.id()]).ok();
    let collection = Collection(await_collections(&sandbox, 1).remove(0));
    let sockets = collection.items("sockets.json");
    let owned = sockets.iter().filter(|socket| {
        socket["kind"] == "udp" && socket["remotePort"] == 53 && socket["owners"][0]["pid"] == holder.pid()
    });
    assert_eq!(owned.count(), SOCKETS);
    let processes = collection.items("processes.json");
    let sleeping = processes
        .iter()
        .filter(|process| process["parent"] == parent.pid() && !process["executable"]["sha256"].is_null());
    assert_eq!(sleeping.count(), PROCESSES);
    // What another test has hang on this machine is said here too.
    let cut_short = collection.document("processes.json")["cutShort"].as_array().unwrap().clone();
    let of_pod = cut_short.iter().filter(|cut| !cut.as_str().unwrap().contains("of the node give no answer"));
    assert_eq!(of_pod.count(), 0, "{cut_short:?}");
}
