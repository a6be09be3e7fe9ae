//! What stops, and what goes on.

use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use socket2::SockAddr;

use super::kubelet::{Member, Privileges, Sort, any_port, raw_in};
use super::{NODE, PEER, World, codes};
use crate::lab::traffic::sockets::receive;
use crate::lab::traffic::stream::Flow;
use crate::lab::{PATIENCE, eventually};

/// Established connections of a process both ways, and datagrams both ways.
fn flows_of(world: &World, member: &Member, name: &str) -> Vec<Flow> {
    let peer = &world.peer;
    let listener = peer.run(|| TcpListener::bind(any_port(PEER)).unwrap());
    let near = member.connect(0, listener.local_addr().unwrap());
    let (far, _) = listener.accept().unwrap();
    let own = member.listen(1, any_port(NODE));
    let to_own = own.local_addr().unwrap();
    let from_outside = peer.run(|| TcpStream::connect_timeout(&to_own, PATIENCE).unwrap());
    let (accepted, _) = own.accept().unwrap();
    let outside = peer.run(|| UdpSocket::bind(any_port(PEER)).unwrap());
    let inside = member.bind(2, any_port(NODE));
    let (to_outside, to_inside) = (outside.local_addr().unwrap(), inside.local_addr().unwrap());
    vec![
        Flow::over_tcp(format!("{name}: tcp out, up"), near.try_clone().unwrap(), far.try_clone().unwrap()),
        Flow::over_tcp(format!("{name}: tcp out, down"), far, near),
        Flow::over_tcp(format!("{name}: tcp in, up"), from_outside, accepted),
        Flow::over_udp(
            format!("{name}: udp out"),
            inside.try_clone().unwrap(),
            outside.try_clone().unwrap(),
            to_outside,
        ),
        Flow::over_udp(format!("{name}: udp in"), outside, inside, to_inside),
    ]
}

/// So long is waited for what must not come.
const A_WHILE: Duration = Duration::from_millis(300);

const SOCKETS: [Sort; 3] = [Sort::Tcp, Sort::Tcp, Sort::Udp];

#[test]
fn established_flows_stop_and_go_on_and_a_neighbour_s_never_stop() {
    let world = World::new();
    let (pod, neighbour) = (world.kubelet.pod(), world.kubelet.pod());
    let process = pod.process(&SOCKETS);
    let beside = neighbour.process(&SOCKETS);
    let on_node = Member::start(&world.kubelet.service("kubelet.service"), &world.node, Privileges::None, &SOCKETS);
    let flows = flows_of(&world, &process, "pod");
    // Not all of them: two cores are shared by all tests.
    let mut others = flows_of(&world, &beside, "neighbour");
    others.truncate(2);
    others.extend(flows_of(&world, &on_node, "node").pop());
    Flow::assert_all_alive(&flows);
    Flow::assert_all_alive(&others);

    let said = world.isolate(&pod.uid).stdout;
    assert!(said.contains(&format!("{} (-, hostNetwork): contained", pod.uid)), "{said}");
    Flow::await_all_dead(&flows);
    Flow::assert_all_alive(&others);
    let status = world.status(&pod.uid);
    assert_eq!(status["kind"], "host-network");
    assert_eq!(status["verdict"], "contained", "{status:#}");
    assert_eq!(status["layers"]["cgroup"], true);
    assert_eq!(status["cgroup"], pod.cgroup.to_str().unwrap());
    for direction in ["in", "out"] {
        let drops = status["drops"].as_array().unwrap();
        let dropped = drops.iter().find(|drops| drops["direction"] == direction).unwrap();
        assert!(dropped["packets"].as_u64().unwrap() > 0, "{status:#}");
    }
    assert!(status["attempts"].as_array().unwrap().iter().any(|attempt| attempt["protocol"] == "udp"), "{status:#}");
    assert!(codes(&status).is_empty());

    world.release(&pod.uid);
    Flow::assert_all_alive(&flows);
    Flow::assert_all_alive(&others);
    assert_eq!(world.quarantine(&["status", &pod.uid]).status.code(), Some(1));
}

#[test]
fn raw_packets_stop_both_ways() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let process = pod.process(&[Sort::Raw]);
    let (inside, outside) = (process.socket(0), raw_in(&world.peer));
    for socket in [&inside, &outside] {
        socket.set_nonblocking(true).unwrap();
    }
    let arrives = |from: &socket2::Socket, to: std::net::IpAddr, at: &socket2::Socket, limit| {
        let mut buffer = [0; 256];
        while receive(at, &mut buffer).is_some() {}
        eventually(limit, || {
            let _ = from.send_to(b"raw", &SockAddr::from(any_port(to)));
            receive(at, &mut buffer).is_some()
        })
    };
    let out = |limit| arrives(&inside, PEER, &outside, limit);
    let into = |limit| arrives(&outside, NODE, &inside, limit);
    assert!(out(PATIENCE) && into(PATIENCE), "the control fails");
    world.isolate(&pod.uid);
    assert!(!out(A_WHILE), "a raw packet leaves");
    assert!(!into(A_WHILE), "a raw packet arrives");
    assert_eq!(world.verdict(&pod.uid), "contained");
    world.release(&pod.uid);
    assert!(out(PATIENCE) && into(PATIENCE));
}

#[test]
fn a_local_process_sees_silence() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let process = pod.process(&[Sort::Udp, Sort::Tcp, Sort::Raw]);
    world.isolate(&pod.uid);
    let datagram = process.bind(0, any_port(NODE));
    for _ in 0..100 {
        datagram.send_to(b"x", (PEER, 9)).unwrap();
    }
    process.socket(2).send_to(b"x", &SockAddr::from(any_port(PEER))).unwrap();
    let connecting = process.socket(1).connect_timeout(&SockAddr::from(std::net::SocketAddr::new(PEER, 9)), A_WHILE);
    assert_eq!(connecting.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}
