//! A root process of the node that opens thousands of short connections through the hole for the probes: they find room all
//! the same, or do again in seconds.

use std::net::{IpAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::SockRef;

use crate::lab::topology::{POD4, POD6};
use crate::lab::traffic::server::{Server, http_probe};
use crate::lab::{PATIENCE, Sandbox, Topology, eventually};

/// What the kubelet gives a probe.
const PROBE: Duration = Duration::from_secs(1);

/// Opens so many connections, one after the other, and gives those that could be opened.
fn connect(topology: &Topology, server: &Server, to: IpAddr, count: usize) -> usize {
    topology.node.run(|| {
        let opened = (0..count).filter(|_| {
            let stream = TcpStream::connect_timeout(&(to, server.port()).into(), Duration::from_millis(20));
            // Gone at once on both sides, like one that was reset.
            stream.map(|stream| SockRef::from(&stream).set_linger(Some(Duration::ZERO))).is_ok()
        });
        opened.count()
    })
}

/// The set holds 3072, for two minutes each: no probe got in any more for as long.
#[test]
fn probes_pass_beside_four_thousand_short_connections() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let server = Server::start(&topology.pod, 8080);
    sandbox.isolate("");
    for to in [IpAddr::from(POD4), POD6.into()] {
        let opened = connect(&topology, &server, to, 4000);
        assert!(opened > 3900, "the control: {opened} of 4000 were opened");
        for _ in 0..3 {
            assert!(http_probe(&topology.node, to, server.port(), PROBE), "{to}");
        }
    }
    assert_eq!(sandbox.verdict(), "contained");
}

/// More than there is room for at all: it is free again before a kubelet has lost its patience (30 s by default).
#[test]
fn probes_pass_again_seconds_after_any_burst() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let server = Server::start(&topology.pod, 8080);
    sandbox.isolate("");
    let started = Instant::now();
    let opened = connect(&topology, &server, POD4.into(), 12_000);
    eprintln!("{opened} of 12000 connections in {:?}", started.elapsed());
    assert!(opened < 12_000, "the control: there is no room for all of them, and {opened} were opened");
    let ended = Instant::now();
    assert!(eventually(PATIENCE, || http_probe(&topology.node, POD4.into(), server.port(), PROBE)));
    eprintln!("a probe passed {:?} later", ended.elapsed());
    assert!(ended.elapsed() < Duration::from_secs(30), "{:?}", ended.elapsed());
}
