//! What a program on a cgroup does not see is said, and shown to pass.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::UdpSocket;
use std::os::unix::process::CommandExt;
use std::process::Stdio;
use std::time::Duration;

use netlab::Veth;

use super::kubelet::{Member, Privileges, Sort, any_port};
use super::{NODE, PEER, World, codes};
use crate::evidence::fuse::Fuse;
use crate::lab::traffic::sockets::PacketSocket;
use crate::lab::{Netns, PATIENCE, eventually};

/// A frame that nobody else sends.
fn frame() -> Vec<u8> {
    let mut frame = vec![0xff; 6];
    frame.extend_from_slice(&[2, 0, 0, 0, 0, 9, 0x88, 0xb5]);
    frame.extend_from_slice(b"by a packet socket of an isolated pod, which no program on its cgroup sees");
    frame
}

#[test]
fn a_packet_socket_makes_it_partial_and_its_process_is_named() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let process = pod.process(&[Sort::Packet, Sort::Udp]);
    world.isolate(&pod.uid);
    let status = world.status(&pod.uid);
    assert_eq!(status["verdict"], "partial");
    assert_eq!(codes(&status), ["packet-socket"]);
    let reason = status["reasons"][0].as_str().unwrap();
    assert!(reason.contains(&format!("process {} (sleep)", process.id())), "{reason}");

    // That it is no exaggeration.
    let (socket, witness) = (process.socket(0), PacketSocket::open(&world.peer, "peer0"));
    let index = world.node.run(|| nix::net::if_::if_nametoindex("up0").unwrap());
    let sender = PacketSocket::of(socket);
    let mut buffer = [0; 2048];
    let passes = eventually(PATIENCE, || {
        let _ = sender.send_on(index, &frame());
        while let Some(seen) = witness.receive(&mut buffer) {
            if seen == frame() {
                return true;
            }
        }
        false
    });
    assert!(passes, "the frame does not leave: the verdict could be better");
    // And its datagrams stop.
    let inside = process.bind(1, any_port(NODE));
    let outside = world.peer.run(|| UdpSocket::bind(any_port(PEER)).unwrap());
    outside.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let _ = inside.send_to(b"x", outside.local_addr().unwrap());
    assert!(outside.recv(&mut buffer).is_err());

    // The socket goes with its process.
    drop(sender);
    drop(process);
    let _other = pod.process(&[]);
    assert_eq!(world.verdict(&pod.uid), "contained");
}

#[test]
fn a_socket_of_af_xdp_makes_it_partial() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let _process = pod.process(&[Sort::Xdp]);
    world.isolate(&pod.uid);
    assert_eq!(codes(&world.status(&pod.uid)), ["xdp-socket"]);
}

#[test]
fn what_a_process_may_come_to_do_makes_it_partial() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let process = pod.process_with(Privileges::All, &[]);
    world.isolate(&pod.uid);
    let status = world.status(&pod.uid);
    assert_eq!(status["verdict"], "partial");
    assert!(codes(&status).contains(&"capabilities"), "{status:#}");
    assert!(status["reasons"][0].as_str().unwrap().contains("CAP_NET_RAW"), "{status:#}");
    drop(process);
    // Root without a capability sees the machine's cgroups here, and could move itself.
    let root = pod.process_with(Privileges::Root, &[]);
    let status = world.status(&pod.uid);
    assert_eq!(codes(&status), ["writable-mount"], "{status:#}");
    drop(root);
    let _nobody = pod.process(&[]);
    assert_eq!(world.verdict(&pod.uid), "contained");
}

#[test]
fn a_pod_of_another_network_namespace_is_not_touched() {
    let world = World::new();
    let elsewhere = Netns::new("hostelse");
    let links = elsewhere.links();
    links.add_veth(Veth { name: "e0", mac: None, peer: "p1", peer_mac: None, netns: &world.peer });
    links.up("e0");
    links.add_address("e0", "10.79.0.1/24");
    let outside = world.peer.links();
    outside.up("p1");
    outside.add_address("p1", "10.79.0.2/24");
    let pod = world.kubelet.pod();
    let process = pod.process_in(&elsewhere, &[Sort::Udp]);
    let isolated = world.quarantine(&["isolate", &pod.uid]);
    assert_eq!(isolated.status.code(), Some(4), "{isolated:#?}");
    let (inside, receiver) = (process.bind(0, "10.79.0.1:0".parse().unwrap()), {
        world.peer.run(|| UdpSocket::bind("10.79.0.2:0").unwrap())
    });
    receiver.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let to = receiver.local_addr().unwrap();
    let passes = || eventually(PATIENCE, || inside.send_to(b"x", to).is_ok() && receiver.recv(&mut [0; 8]).is_ok());
    assert!(passes());
    assert_eq!(world.quarantine(&["status", "-o", "json"]).json().get("hostPods"), None);

    // With a process in the node's, it is the pod that is meant; what it has elsewhere is cut off with it, and said.
    let _here = pod.process(&[]);
    world.isolate(&pod.uid);
    assert_eq!(codes(&world.status(&pod.uid)), ["other-netns"]);
    while receiver.recv(&mut [0; 8]).is_ok() {}
    let _ = inside.send_to(b"x", to);
    assert!(!eventually(Duration::from_millis(300), || receiver.recv(&mut [0; 8]).is_ok()));
}

#[test]
fn a_socket_that_was_made_elsewhere_makes_it_partial() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let given = world.node.run(|| UdpSocket::bind(any_port(NODE)).unwrap());
    let process = Member::start_with(&pod.cgroup.join("container"), &world.node, &given);
    world.isolate(&pod.uid);
    let status = world.status(&pod.uid);
    assert_eq!((&status["verdict"], codes(&status)), (&"partial".into(), vec!["foreign-socket"]), "{status:#}");
    // As it says, its packets pass.
    let outside = world.peer.run(|| UdpSocket::bind(any_port(PEER)).unwrap());
    outside.set_read_timeout(Some(Duration::from_millis(20))).unwrap();
    let (inside, to) = (process.socket(0), outside.local_addr().unwrap().into());
    assert!(eventually(PATIENCE, || inside.send_to(b"x", &to).is_ok() && outside.recv(&mut [0; 8]).is_ok()));
}

/// What root in a pod can do to whoever looks at its processes.
#[test]
fn a_process_that_does_not_answer_holds_up_nothing() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let fuse = Fuse::with_program(fs::read(fs::canonicalize("/bin/sleep").unwrap()).unwrap());
    let program = std::ffi::CString::new(fuse.program().to_str().unwrap()).unwrap();
    let procs = fs::OpenOptions::new().write(true).open(pod.cgroup.join("container/cgroup.procs")).unwrap();
    let (mut told, tell) = nix::unistd::pipe().map(|(told, tell)| (File::from(told), File::from(tell))).unwrap();
    let (opened, mut has_opened) = nix::unistd::pipe().map(|(out, into)| (into, File::from(out))).unwrap();
    let close_in_exec = move || {
        (&procs).write_all(b"0")?;
        // SAFETY: the path ends with a NUL and lives as long as the closure.
        let file = unsafe { libc::open(program.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
        nix::unistd::write(&opened, &[0])?;
        told.read_exact(&mut [0])?;
        if file < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
    };
    let mut command = world.node.command("sleep");
    command.arg("infinity").stdin(Stdio::null());
    // SAFETY: between fork and exec the closure makes system calls alone.
    unsafe { command.pre_exec(close_in_exec) };
    // It returns when the program runs, which is when the file system is gone.
    let spawning = std::thread::spawn(move || command.spawn().unwrap());
    has_opened.read_exact(&mut [0]).unwrap();
    fuse.fall_silent();
    (&tell).write_all(&[0]).unwrap();
    std::thread::sleep(Duration::from_millis(300));

    let process = pod.process(&[Sort::Udp]);
    let isolated = world.quarantine(&["isolate", &pod.uid]).ok();
    assert!(isolated.stdout.contains("partial") && isolated.stdout.contains("does not answer"), "{isolated:#?}");
    let status = world.status(&pod.uid);
    assert_eq!(codes(&status), ["process-unseen"], "{status:#}");
    let (inside, outside) =
        (process.bind(0, any_port(NODE)), world.peer.run(|| UdpSocket::bind(any_port(PEER)).unwrap()));
    outside.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
    let _ = inside.send_to(b"x", outside.local_addr().unwrap());
    assert!(outside.recv(&mut [0; 8]).is_err());
    drop(fuse);
    let mut hung = spawning.join().unwrap();
    hung.kill().unwrap();
    hung.wait().unwrap();
}
