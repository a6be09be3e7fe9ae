//! Established connections of an isolated pod: there to be looked at, and going on after a false alarm.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use crate::lab::topology::PEER4;
use crate::lab::{Agent, Netns, PATIENCE, Sandbox, Topology, eventually};

/// What a pod finds in its netns, for the test's sake: with these a connection is given up within seconds.
const FEW: [(&str, &str); 3] = [("tcp_retries2", "3"), ("tcp_keepalive_time", "300"), ("tcp_keepalive_probes", "4")];
const PATIENT: [(&str, &str); 3] =
    [("tcp_retries2", "255"), ("tcp_keepalive_time", "32767"), ("tcp_keepalive_probes", "255")];

fn set(netns: &Netns, values: &[(&str, &str)]) {
    values.iter().for_each(|(name, value)| netns.sysctl(&format!("net.ipv4.{name}"), value));
}

fn has(netns: &Netns, values: &[(&str, &str)]) -> bool {
    values.iter().all(|(name, value)| netns.sh(&format!("cat /proc/sys/net/ipv4/{name}")).trim() == *value)
}

/// A connection of the pod's to the peer, both ends.
fn connection(topology: &Topology) -> (TcpStream, TcpStream) {
    let listener = topology.peer.run(|| TcpListener::bind((PEER4, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let stream = topology.pod.run(|| TcpStream::connect((PEER4, port)).unwrap());
    (stream, listener.accept().unwrap().0)
}

/// Waits until the kernel gives a connection up; `None` where it has not within this time.
fn given_up(mut stream: &TcpStream, within: Duration) -> Option<ErrorKind> {
    stream.set_read_timeout(Some(within)).unwrap();
    let error = nothing_read(&mut stream);
    (error != ErrorKind::WouldBlock).then_some(error)
}

/// Why nothing can be read. A read that has a timeout is broken off where its process was stopped and goes on, whoever did that.
fn nothing_read(stream: &mut impl Read) -> ErrorKind {
    loop {
        match stream.read(&mut [0]).unwrap_err().kind() {
            ErrorKind::Interrupted => {}
            why => return why,
        }
    }
}

/// Shortened by `tcp_retries2`: with 3 a connection is given up after three seconds where nothing holds it, as it is after
/// a quarter of an hour with 15. The control is a pod of the same settings in which root puts them back after the cut.
#[test]
fn a_connection_outlives_its_isolation_and_goes_on() {
    let (topology, control) = (Topology::bridge(), Topology::bridge());
    let (sandbox, other) = (Sandbox::add(&topology), Sandbox::add(&control));
    set(&topology.pod, &FEW);
    set(&control.pod, &FEW);
    let ((mut stream, mut peer), (mut lost, _lost_peer)) = (connection(&topology), connection(&control));
    sandbox.isolate("");
    other.isolate("");
    assert!(has(&topology.pod, &PATIENT) && has(&control.pod, &PATIENT));
    set(&control.pod, &FEW);
    stream.write_all(b"said while isolated").unwrap();
    lost.write_all(b"said while isolated").unwrap();
    assert_eq!(given_up(&lost, PATIENCE), Some(ErrorKind::TimedOut), "the control");
    // As long again, and more.
    assert_eq!(given_up(&stream, Duration::from_secs(5)), None);
    let sockets = topology.pod.sh("ss -tnH state established");
    assert!(sockets.contains(&PEER4.to_string()), "{sockets}");
    peer.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
    assert_eq!(nothing_read(&mut peer), ErrorKind::WouldBlock, "nothing left the pod");
    assert_eq!(sandbox.verdict(), "contained");
    let attempts = sandbox.status()["attempts"].to_string();
    assert!(attempts.contains(&PEER4.to_string()), "what is held is counted: {attempts}");

    sandbox.release();
    assert!(has(&topology.pod, &PATIENT), "what is retransmitted later than before would be given up at once");
    let mut said = [0; 19];
    peer.set_read_timeout(Some(PATIENCE)).unwrap();
    peer.read_exact(&mut said).unwrap();
    assert_eq!(&said, b"said while isolated");
    peer.write_all(b"an answer").unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.read_exact(&mut said[..9]).unwrap();
    let put_back = eventually(PATIENCE, || {
        sandbox.sync();
        has(&topology.pod, &FEW)
    });
    assert!(
        put_back,
        "{}",
        topology.pod.sh("grep . /proc/sys/net/ipv4/tcp_retries2 /proc/sys/net/ipv4/tcp_keepalive_*")
    );
    assert_eq!(fs::read_dir(Path::new(sandbox.state_dir()).join("patience")).unwrap().count(), 0);
}

#[test]
fn what_was_found_is_put_back_whoever_was_there_meanwhile() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let state_dir = Path::new(sandbox.state_dir());
    set(&topology.pod, &FEW);
    // More than is asked for stays.
    topology.pod.sysctl("net.ipv4.tcp_keepalive_time", "40000");
    let found = [FEW[0], ("tcp_keepalive_time", "40000"), FEW[2]];
    let held = [PATIENT[0], ("tcp_keepalive_time", "40000"), PATIENT[2]];
    let agent = Agent::start(&topology.node, state_dir);
    sandbox.write_mark("");
    assert!(eventually(PATIENCE, || has(&topology.pod, &held)));
    agent.kill();
    // Root in the pod makes them worse; whoever looks next raises them again, and remembers what was found first.
    set(&topology.pod, &[("tcp_retries2", "1")]);
    let agent = Agent::start(&topology.node, state_dir);
    assert!(eventually(PATIENCE, || has(&topology.pod, &held)));
    fs::remove_file(sandbox.mark()).unwrap();
    assert!(eventually(PATIENCE, || has(&topology.pod, &found)));
    drop(agent);

    // What nobody here has written is not put anywhere, nor what was found in another netns.
    sandbox.isolate("");
    let file = state_dir.join("patience").join(format!("{}.json", sandbox.id()));
    fs::write(&file, r#"{"netnsCookie": 1, "values": {"tcp_retries2": 7}}"#).unwrap();
    sandbox.release();
    assert!(has(&topology.pod, &held));
    sandbox.isolate("");
    sandbox.del();
    assert!(!file.exists());
}

/// As in a container whose `/proc/sys` is for reading alone: that is said, and the pod is isolated all the same.
#[test]
fn a_kernel_that_cannot_be_told_to_wait_isolates_all_the_same() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.write_mark("");
    let script = r#"mount -t proc proc /proc && mount -o remount,bind,ro /proc/sys 2>/dev/null || mount --bind -o ro /proc/sys /proc/sys
        mount -o remount,bind,ro /proc/sys; exec "$0" "$@""#;
    let mut command = topology.node.command("unshare");
    command.args(["--mount", "sh", "-c", script, crate::lab::program(), "sync", "--log", "stderr", "--state-dir"]);
    let output = command.arg(sandbox.state_dir()).env("QUARANTINE_EVIDENCE", "off").output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("event=not-held") && said.contains("tcp_retries2"), "{said}");
    assert_eq!(sandbox.verdict(), "contained");
}
