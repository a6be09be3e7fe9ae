//! The kubelet's probes of a pod in its own network namespace: told by its cgroup, since they come from where everything does.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use socket2::{SockAddr, Socket};

use super::kubelet::{Kubelet, Member, Privileges, Sort, any_port};
use super::{NODE, World};
use crate::lab::PATIENCE;

/// So long is waited for what must not come.
const SILENCE: Duration = Duration::from_millis(400);

/// Whether a connection comes about, and carries a byte each way.
pub(super) fn answers(client: Socket, server: &TcpListener, limit: Duration) -> bool {
    let at = SockAddr::from(server.local_addr().unwrap());
    if client.connect_timeout(&at, limit).is_err() {
        return false;
    }
    let mut client = TcpStream::from(client);
    let (mut accepted, _) = server.accept().unwrap();
    for stream in [&client, &accepted] {
        stream.set_read_timeout(Some(limit)).unwrap();
    }
    client.write_all(b"?").unwrap();
    accepted.read_exact(&mut [0]).is_ok() && accepted.write_all(b"!").is_ok() && client.read_exact(&mut [0]).is_ok()
}

fn tcp(address: IpAddr) -> Sort {
    if address.is_ipv4() { Sort::Tcp } else { Sort::Tcp6 }
}

/// A pod with one listener on each of these, isolated by these arguments.
fn isolated(world: &World, addresses: &[IpAddr], arguments: &[&str]) -> (String, Member, Vec<TcpListener>) {
    let pod = world.kubelet.pod();
    let sockets: Vec<_> = addresses.iter().map(|&address| tcp(address)).collect();
    let process = pod.process(&sockets);
    let listen = |(number, &address): (usize, &IpAddr)| process.listen(number as i32, any_port(address));
    let listeners = addresses.iter().enumerate().map(listen).collect();
    let arguments: Vec<_> = ["isolate", &pod.uid].into_iter().chain(arguments.iter().copied()).collect();
    let run = world.quarantine(&arguments).ok();
    assert!(run.stdout.contains("contained"), "{run:#?}");
    (pod.uid, process, listeners)
}

/// A client of the kubelet's, or of somebody else's on the node.
fn client(kubelet: &Kubelet, of_kubelet: bool, address: IpAddr, world: &World) -> (Member, Socket) {
    let sockets = [tcp(address)];
    let member = if of_kubelet {
        kubelet.itself(&sockets)
    } else {
        Member::start(&kubelet.service("other.service"), &world.node, Privileges::All, &sockets)
    };
    let socket = member.socket(0);
    (member, socket)
}

#[test]
fn the_kubelet_s_probes_pass_and_nobody_else_s_connections() {
    let world = World::new();
    let addresses = [NODE, Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()];
    let _kubelet = world.kubelet.itself(&[]);
    let (uid, _process, listeners) = isolated(&world, &addresses, &[]);
    for (listener, address) in listeners.iter().zip(addresses) {
        let (_member, socket) = client(&world.kubelet, false, address, &world);
        assert!(!answers(socket, listener, SILENCE), "a connection of the node's own to {address} passes");
        let (_member, socket) = client(&world.kubelet, true, address, &world);
        assert!(answers(socket, listener, PATIENCE), "a probe of {address} fails");
        if address == NODE {
            let from_outside = world.peer.run(|| TcpStream::connect_timeout(&listener.local_addr().unwrap(), SILENCE));
            assert!(from_outside.is_err(), "a connection from outside passes");
        }
    }
    assert_eq!(world.verdict(&uid), "contained");
    let notes = world.status(&uid)["notes"].clone();
    assert_eq!((notes.as_array().unwrap().len(), &notes[0]["code"]), (2, &"local-sockets".into()), "{notes}");
    world.release(&uid);
    for (listener, address) in listeners.iter().zip(addresses) {
        let (_member, socket) = client(&world.kubelet, false, address, &world);
        assert!(answers(socket, listener, PATIENCE), "the control fails");
    }
}

#[test]
fn the_pod_s_own_connections_to_the_kubelet_stop() {
    let world = World::new();
    let kubelet = world.kubelet.itself(&[Sort::Tcp]);
    let api = kubelet.listen(0, any_port(NODE));
    let pod = world.kubelet.pod();
    let process = pod.process(&[Sort::Tcp, Sort::Tcp, Sort::Tcp]);
    let to: SocketAddr = api.local_addr().unwrap();
    let mut before = process.connect(0, to);
    let (mut accepted, _) = api.accept().unwrap();
    before.write_all(b"?").unwrap();
    accepted.read_exact(&mut [0]).unwrap();
    world.isolate(&pod.uid);
    accepted.set_read_timeout(Some(SILENCE)).unwrap();
    before.write_all(b"?").unwrap();
    assert!(accepted.read_exact(&mut [0]).is_err(), "an established connection to the kubelet goes on");
    let socket = process.socket(1);
    assert!(socket.connect_timeout(&SockAddr::from(to), SILENCE).is_err(), "the pod opens a connection to the kubelet");
    world.release(&pod.uid);
    process.socket(2).connect_timeout(&SockAddr::from(to), PATIENCE).unwrap();
}

#[test]
fn only_the_ports_that_are_probed_are_open_and_none_where_nothing_is_let_through() {
    let world = World::new();
    let _kubelet = world.kubelet.itself(&[]);
    let listening = world.kubelet.pod();
    let process = listening.process(&[Sort::Tcp, Sort::Tcp]);
    let [probed, other] = [0, 1].map(|number| process.listen(number, any_port(NODE)));
    let port = probed.local_addr().unwrap().port().to_string();
    world.quarantine(&["isolate", &listening.uid, "--probe-port", &port]).ok();
    for (listener, passes) in [(&probed, true), (&other, false)] {
        let (_member, socket) = client(&world.kubelet, true, NODE, &world);
        assert_eq!(answers(socket, listener, if passes { PATIENCE } else { SILENCE }), passes);
    }
    world.quarantine(&["isolate", &listening.uid, "--sealed"]).ok();
    let (_member, socket) = client(&world.kubelet, true, NODE, &world);
    assert!(!answers(socket, &probed, SILENCE));
    assert_eq!(world.verdict(&listening.uid), "contained");
}

#[test]
fn where_no_kubelet_is_found_no_probe_passes_and_that_is_said() {
    let world = World::new();
    let (uid, _process, listeners) = isolated(&world, &[NODE], &[]);
    let notes = world.status(&uid)["notes"].clone();
    assert_eq!(notes[0]["code"], "no-prober", "{notes}");
    let (_member, socket) = client(&world.kubelet, true, NODE, &world);
    assert!(!answers(socket, &listeners[0], SILENCE));
    // Found later, it is told from others once the pod is looked at again.
    let (_member, socket) = client(&world.kubelet, true, NODE, &world);
    world.quarantine(&["sync"]).ok();
    assert!(answers(socket, &listeners[0], PATIENCE));
}
