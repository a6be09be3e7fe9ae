//! A sandbox that is made anew for an isolated pod: isolated before its first packet, however the old one ended.

use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Agent, PATIENCE, added_as, call};
use crate::lab::{Node, Pod, Tables, eventually, lone_interface};

const UID: &str = "uid-1";

/// Sends numbered datagrams from a pod to the node without a pause, from before its ADD.
struct Sender {
    next: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    receiver: UdpSocket,
}

impl Sender {
    fn start(node: &Node, pod: &Pod) -> Self {
        assert!(pod.reaches_node(node), "the carrier is up");
        let receiver = node.netns.run(|| UdpSocket::bind((pod.gateway(), 0))).unwrap();
        let socket = pod.netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        socket.connect(receiver.local_addr().unwrap()).unwrap();
        receiver.set_nonblocking(true).unwrap();
        let (next, stop) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (number, stopped) = (next.clone(), stop.clone());
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let this = number.fetch_add(1, Ordering::SeqCst);
                let _ = socket.send(&this.to_be_bytes());
                std::thread::sleep(Duration::from_micros(200));
            }
        });
        Self { next, stop, thread: Some(thread), receiver }
    }

    /// The number of the first datagram that is sent from now on.
    fn mark(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// The numbers that arrived since the last call.
    fn arrived(&self) -> Vec<u64> {
        let mut numbers = Vec::new();
        let mut buffer = [0; 8];
        while self.receiver.recv(&mut buffer).is_ok() {
            numbers.push(u64::from_be_bytes(buffer));
        }
        numbers
    }

    fn assert_arriving(&self) {
        self.arrived();
        assert!(eventually(PATIENCE, || !self.arrived().is_empty()), "the control: nothing arrives before ADD");
    }

    /// Nothing arrives that was sent from `first` on, though many were.
    #[track_caller]
    fn assert_none_since(&self, first: u64) {
        assert!(eventually(PATIENCE, || self.mark() > first + 300), "the sender stands still");
        let late: Vec<u64> = self.arrived().into_iter().filter(|number| *number >= first).collect();
        assert!(late.is_empty(), "{} of {} arrived: {late:?}", late.len(), self.mark() - first);
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// How the mark is named and the old sandbox ends.
#[derive(Clone, Copy, Debug)]
enum End {
    /// Marked by UID; the old sandbox gets its DEL.
    ByUid,
    /// Marked by container ID, as all below; DEL carries the mark over.
    Del,
    /// As after a power loss: the netns is gone, the record is not.
    NoDel,
    /// The new ADD comes first, as the kubelet does it.
    AddBeforeDel,
}

fn the_new_one_is_isolated_at_once(end: End, with_agent: bool) {
    let node = Node::new();
    let old = added_as(&node, UID);
    let agent = with_agent.then(|| Agent::on(&node));
    let key = if matches!(end, End::ByUid) { UID } else { &old.id };
    node.mark(key, "");
    match &agent {
        Some(_) => super::await_tables(&old, Tables::Isolated, "the old one"),
        None => node.sync(),
    }
    assert_eq!(old.tables(), Tables::Isolated);
    match end {
        End::ByUid | End::Del => {
            call(&node, "DEL", &old, UID);
            old.netns.delete();
        }
        End::NoDel => old.netns.delete(),
        End::AddBeforeDel => {}
    }
    let new = node.pod();
    let sender = Sender::start(&node, &new);
    sender.assert_arriving();
    call(&node, "ADD", &new, UID);
    let first = sender.mark();
    assert_eq!(new.tables(), Tables::Isolated, "{end:?}");
    if matches!(end, End::AddBeforeDel) {
        call(&node, "DEL", &old, UID);
        old.netns.delete();
        assert_eq!(node.marks(), [UID], "{end:?}");
    }
    sender.assert_none_since(first);
    // It stays so, whoever looks at it next. (`sync` fails where it cannot reach the marked old one.)
    match &agent {
        Some(agent) => agent.signal(nix::sys::signal::Signal::SIGHUP),
        None => drop(node.try_sync()),
    }
    sender.assert_none_since(first);
    assert_eq!(new.tables(), Tables::Isolated, "{end:?}");
    // And its release is one.
    for key in node.marks() {
        std::fs::remove_file(node.mark_path(&key)).unwrap();
    }
    match &agent {
        Some(_) => super::await_tables(&new, Tables::Released, "the new one"),
        None => drop(node.try_sync()),
    }
    sender.assert_arriving();
}

#[test]
fn marked_by_uid() {
    the_new_one_is_isolated_at_once(End::ByUid, true);
}

#[test]
fn marked_by_uid_without_an_agent() {
    the_new_one_is_isolated_at_once(End::ByUid, false);
}

#[test]
fn marked_by_container_id_with_del() {
    the_new_one_is_isolated_at_once(End::Del, true);
}

#[test]
fn marked_by_container_id_with_del_without_an_agent() {
    the_new_one_is_isolated_at_once(End::Del, false);
}

#[test]
fn marked_by_container_id_with_no_del() {
    the_new_one_is_isolated_at_once(End::NoDel, true);
}

#[test]
fn marked_by_container_id_with_no_del_without_an_agent() {
    the_new_one_is_isolated_at_once(End::NoDel, false);
}

#[test]
fn added_before_the_old_one_is_deleted() {
    the_new_one_is_isolated_at_once(End::AddBeforeDel, true);
}

#[test]
fn added_before_the_old_one_is_deleted_without_an_agent() {
    the_new_one_is_isolated_at_once(End::AddBeforeDel, false);
}

/// A mark that came for a pod that was not there yet: by UID and by name.
#[test]
fn marked_before_it_exists() {
    for key in [UID, "shop_web"] {
        let node = Node::new();
        // The plugin makes the directories; so does the agent.
        let _agent = Agent::on(&node);
        node.mark(key, "");
        let pod = node.pod();
        let sender = Sender::start(&node, &pod);
        sender.assert_arriving();
        call(&node, "ADD", &pod, UID);
        let first = sender.mark();
        sender.assert_none_since(first);
        assert_eq!(pod.tables(), Tables::Isolated, "{key}");
    }
}

/// Another pod's netns at the path of one that is gone, whose record and mark are left: it is not the marked one.
#[test]
fn a_path_that_is_used_again_is_another_sandbox() {
    let node = Node::new();
    let old = added_as(&node, UID);
    let agent = Agent::on(&node);
    node.mark(&old.id, "");
    super::await_tables(&old, Tables::Isolated, "the old one");
    old.netns.delete();
    node.netns.sh(&format!("ip netns add {}", old.netns.name()));
    lone_interface(&old.netns, "eth0");
    agent.signal(nix::sys::signal::Signal::SIGHUP);
    let other = added_as(&node, "uid-2");
    node.mark(&other.id, "");
    super::await_tables(&other, Tables::Isolated, "what came after");
    assert_eq!(old.tables(), Tables::Absent);
}
