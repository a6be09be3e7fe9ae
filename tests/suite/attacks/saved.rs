//! The node's own nftables: saved with the guards of isolated pods in it and loaded again at boot, or flushed again and again.

use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::lab::topology::{PEER4, POD_MAC, text};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet::{self, BROADCAST};
use crate::lab::traffic::sockets::PacketSocket;
use crate::lab::traffic::stream::Flow;
use crate::lab::{Call, Netns, Sandbox, Topology, not_tried};

const SAVE: &str = "nft list ruleset >/run/FILE; nft flush ruleset";

fn file_of(topology: &Topology) -> String {
    format!("{}.nft", topology.node.name())
}

fn frames<'a>(topology: &'a Topology, inside: &'a Netns) -> Battery<'a> {
    let socket = PacketSocket::open(inside, "eth0");
    let send = move |number| drop(socket.send(&packet::ethernet(BROADCAST, POD_MAC, 0x88b5, &tag(number))));
    Battery::new(vec![Attack::new("frame", inside, send)], Witnesses::outside(topology))
}

/// The pod is gone, as after a boot, and the ruleset that was saved while it was isolated is loaded. From Linux 6.16 on nft
/// takes a chain on a device that is not there, and hooks it where one of that name appears; before, the whole file fails.
fn saved_with_a_guard_in_it(topology: &Topology, sandbox: &Sandbox<'_>) -> bool {
    sandbox.isolate("");
    let file = file_of(topology);
    topology.node.sh(&SAVE.replace("FILE", &file));
    topology.node.ip("link del veth-pod");
    let loaded = topology.node.try_sh(&format!("nft -f /run/{file}"));
    let _ = std::fs::remove_file(Path::new("/run").join(file));
    if let Err(said) = &loaded {
        assert!(said.contains("No such file"), "{said}");
        not_tried("a saved guard that is loaded again: this kernel takes no chain on a device that is not there");
    }
    loaded.is_ok()
}

/// A pod more, whose end on the node has the name that the other's had (Calico makes it of the pod's name).
fn pod_of_the_same_name(topology: &Topology, pod: &Netns) {
    topology.node.ip(&format!(
        "link add veth-pod type veth peer name eth0 address {} netns {}\nlink set veth-pod master br0 up",
        text(POD_MAC),
        pod.name()
    ));
    pod.ip("link set eth0 up\naddr add 10.77.0.2/24 dev eth0");
}

#[test]
fn a_saved_guard_of_a_pod_that_is_gone_cuts_nobody_else() {
    for record_stays in [false, true] {
        let (topology, next) = (Topology::bridge(), Netns::new("next"));
        let sandbox = Sandbox::add(&topology);
        if !saved_with_a_guard_in_it(&topology, &sandbox) {
            return;
        }
        assert!(topology.node.sh("nft list tables").contains(sandbox.id()), "the control: it is loaded");
        if !record_stays {
            std::fs::remove_dir_all(Path::new(sandbox.state_dir()).join("attachments").join(sandbox.id())).unwrap();
        }
        std::fs::remove_file(sandbox.mark()).unwrap();
        // The netns of the first is gone, as far as its path says.
        topology.node.sh(&format!("umount {}; rm {}", topology.pod.path().display(), topology.pod.path().display()));
        pod_of_the_same_name(&topology, &next);
        let mut of_next = frames(&topology, &next);
        of_next.assert_none_arrives();
        let mut config = sandbox.config().clone();
        config["prevResult"]["interfaces"][2]["sandbox"] = next.path().to_str().unwrap().into();
        let added =
            Call::new(&topology.node, "ADD").attachment("next", &next.path(), "eth0").config(&config).run().ok();
        assert!(!topology.node.sh("nft list tables").contains(sandbox.id()), "{added:#?}");
        of_next.assert_all_arrive();
    }
}

/// Loaded while another sandbox that lives has an end that the guard is on: nothing is taken from that one.
#[test]
fn an_add_takes_no_guard_of_a_pod_that_lives() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let mut out = frames(&topology, &topology.pod);
    out.assert_all_arrive();
    sandbox.isolate("");
    // Under another name, the very same pod is added: what hangs on its end is of one that lives.
    Call::new(&topology.node, "ADD")
        .attachment("other", &topology.pod.path(), "eth0")
        .config(sandbox.config())
        .run()
        .ok();
    out.assert_none_arrives();
    assert_eq!(sandbox.verdict(), "contained");
}

/// Every so often somebody flushes the node's ruleset, with an agent on: what gets out is of the moments until it has put the
/// guard back, and never of a pod whose own side holds.
#[test]
fn a_node_that_is_flushed_again_and_again_is_repaired() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let log = std::fs::File::create(Path::new(sandbox.state_dir()).join("agent.log")).unwrap();
    let mut agent = topology.node.command(crate::lab::program());
    agent.env_remove("CNI_COMMAND").args(["agent", "--log", "stderr", "--state-dir", sandbox.state_dir()]).stderr(log);
    let mut agent = Running(agent.spawn().unwrap());
    let stream = [Flow::udp(&topology.pod, &topology.peer, PEER4.into())];
    Flow::assert_all_alive(&stream);
    sandbox.write_mark("");
    assert!(crate::lab::eventually(crate::lab::PATIENCE, || sandbox.verdict() == "contained"));
    Flow::assert_all_dead(&stream);
    let before = stream[0].received();
    let is_guarded = || topology.node.sh("nft list tables").contains(sandbox.id());
    let mut worst = Duration::ZERO;
    for _ in 0..10 {
        topology.node.sh("nft flush ruleset");
        let flushed = Instant::now();
        assert!(crate::lab::eventually(crate::lab::PATIENCE, is_guarded), "it is not repaired");
        worst = worst.max(flushed.elapsed());
    }
    assert_eq!(stream[0].received(), before, "the pod's own side held all the time");
    eprintln!("a flushed guard was back after {worst:?} at most, as seen by nft");
    // Root in the pod flushes its side at the same time, again and again.
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let _ = topology.pod.try_sh("nft flush ruleset");
            }
        });
        for _ in 0..10 {
            topology.node.sh("nft flush ruleset");
            // Whatever is said while it is being repaired: said `contained`, nothing may arrive until the next flush.
            let deadline = Instant::now() + Duration::from_secs(5);
            let mut contained = false;
            while !contained && Instant::now() < deadline {
                contained = sandbox.verdict() == "contained";
            }
            assert!(contained, "it is not repaired: {:#}", sandbox.status());
            std::thread::sleep(Duration::from_millis(50));
            let said = stream[0].received();
            std::thread::sleep(Duration::from_millis(200));
            assert_eq!(stream[0].received(), said, "bytes arrive although it said contained");
        }
        stop.store(true, Ordering::Relaxed);
    });
    eprintln!("{} bytes got out in ten flushes of both sides", stream[0].received() - before);
    agent.0.kill().unwrap();
    let status: Value = sandbox.status();
    assert_eq!(status["state"], "isolated");
}

/// Killed when dropped.
struct Running(std::process::Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
