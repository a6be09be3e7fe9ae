//! What a program on a cgroup does not see is said, and shown to pass.

use std::time::Duration;

use netlab::Veth;

use super::kubelet::{Privileges, Sort, any_port};
use super::{PEER, World, codes};
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
    let inside = process.bind(1, any_port(super::NODE));
    let outside = world.peer.run(|| std::net::UdpSocket::bind(any_port(PEER)).unwrap());
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
        world.peer.run(|| std::net::UdpSocket::bind("10.79.0.2:0").unwrap())
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
