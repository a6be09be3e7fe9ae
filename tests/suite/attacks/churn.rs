//! Changes under fire: while floods run in both directions the policy changes and the rules are repaired, and not one
//! packet passes that neither the old nor the new policy allows.

use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::topology::{PEER_MAC, PEER4, PEER6, POD_MAC, POD4, POD6};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::flood::Flood;
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::packet::{self, BROADCAST, Segment};
use crate::lab::traffic::server::{Server, http_probe};
use crate::lab::traffic::sockets::PacketSocket;
use crate::lab::{Kind, Mac, Netns, PATIENCE, Sandbox, Topology};

/// Attack numbers: out of the pod, into it.
const OUT: u16 = 1;
const IN: u16 = 2;

/// Frames that no policy of these tests allows: other ports, other protocols, no protocol at all.
fn forbidden(from: Mac, to: Mac, number: u16, pods: bool) -> Vec<Vec<u8>> {
    let (v4, v6) = if pods { ((POD4, PEER4), (POD6, PEER6)) } else { ((PEER4, POD4), (PEER6, POD6)) };
    let mut frames = Vec::new();
    for (source, target) in [(v4.0.into(), v4.1.into()), (v6.0.into(), v6.1.into())] {
        let macs = (to, from);
        let udp = packet::udp(source, target, (9, 9), &tag(number));
        frames.push(packet::ip_frame(macs, (target, source), packet::UDP, &udp));
        for flags in [packet::SYN, packet::PSH_ACK] {
            let segment = Segment { flags, sequence: 1, acknowledgement: 1 };
            let tcp = packet::tcp(source, target, (9, 9), segment, &tag(number));
            frames.push(packet::ip_frame(macs, (target, source), packet::TCP, &tcp));
        }
    }
    frames.push(packet::ethernet(BROADCAST, from, 0x88b5, &tag(number)));
    frames
}

/// The floods, and the witnesses of both sides.
struct Fire {
    out: Flood,
    into: Flood,
    outside: Witnesses,
    inside: Witnesses,
}

impl Fire {
    fn open(topology: &Topology) -> Self {
        let flood = |netns: &Netns, frames| Flood::start(netns, "eth0", frames);
        let outside = Witnesses::default().frames(&topology.peer, "eth0");
        Self {
            outside,
            inside: Witnesses::inside(topology),
            out: flood(&topology.pod, forbidden(POD_MAC, topology.peer_hop_mac, OUT, true)),
            into: flood(&topology.peer, forbidden(PEER_MAC, topology.pod_hop_mac, IN, false)),
        }
    }

    /// Both floods arrive: the control.
    fn assert_burning(&mut self) {
        self.forget();
        assert!(self.outside.await_seen(OUT, 100) >= 100, "the control fails: nothing comes out");
        assert!(self.inside.await_seen(IN, 100) >= 100, "the control fails: nothing comes in");
    }

    /// What was under way when the pod was cut off is over.
    fn forget(&mut self) {
        std::thread::sleep(Duration::from_millis(50));
        self.outside.forget();
        self.inside.forget();
    }

    /// Nothing arrived since.
    #[track_caller]
    fn assert_out(&mut self, doing: &str) {
        let (out, into) = (self.outside.seen(OUT), self.inside.seen(IN));
        let sent = (self.out.sent(), self.into.sent());
        assert!((out, into) == (0, 0), "{doing}: {out} came out and {into} in, of {sent:?} sent");
    }
}

fn rule(direction: &str, port: u16) -> Value {
    let peer = if port.is_multiple_of(2) { "10.77.0.3/32" } else { "fd77::3/128" };
    json!({ "direction": direction, "peer": peer, "protocol": "tcp", "ports": [port] })
}

/// The policies that the changes go through: a rule more, a rule less, sealed, and back.
fn policies() -> Vec<Value> {
    let some = vec![rule("egress", 443), rule("ingress", 7000)];
    let more = [some.clone(), vec![rule("egress", 8443), rule("ingress", 7001)]].concat();
    vec![
        json!({ "allow": some }),
        json!({ "allow": more }),
        json!({ "allow": some, "probes": { "ports": [8080] } }),
        json!({ "loopback": false, "probes": false }),
        json!({}),
    ]
}

fn changes_leak_nothing(kind: Kind, rounds: usize) {
    let topology = Topology::new(kind);
    let sandbox = Sandbox::add(&topology);
    let mut fire = Fire::open(&topology);
    fire.assert_burning();
    sandbox.isolate("");
    fire.forget();
    for (round, policy) in policies().iter().cycle().take(rounds).enumerate() {
        sandbox.isolate_with(policy);
        fire.assert_out(&format!("change {round} to {policy}"));
    }
    sandbox.release();
    fire.assert_burning();
}

#[test]
fn two_hundred_changes_leak_nothing_on_a_bridge() {
    changes_leak_nothing(Kind::Bridge, 200);
}

#[test]
fn changes_leak_nothing_on_calico() {
    changes_leak_nothing(Kind::Calico, 50);
}

/// No host guard here: what holds is the pod side alone.
#[test]
fn changes_leak_nothing_on_macvlan() {
    changes_leak_nothing(Kind::Macvlan, 50);
}

#[test]
fn repairs_leak_nothing() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let mut fire = Fire::open(&topology);
    fire.assert_burning();
    sandbox.isolate("");
    fire.forget();
    for round in 0..40 {
        match round % 4 {
            0 => drop(topology.pod.sh("nft flush ruleset")),
            1 => drop(topology.pod.sh("nft add table netdev quarantine; nft add table inet quarantine")),
            2 => drop(topology.pod.try_sh("nft add table netdev quarantine '{ flags dormant; }'")),
            _ => {}
        }
        sandbox.sync();
        fire.assert_out(&format!("repair {round}"));
        sandbox.invoke("CHECK").ok();
        fire.assert_out(&format!("check {round}"));
    }
    assert_eq!(sandbox.verdict(), "contained");
}

/// Whoever applies a change may be killed at any moment of it (a runtime's time-out is a SIGKILL).
#[test]
fn killed_changes_leak_nothing() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let mut fire = Fire::open(&topology);
    fire.assert_burning();
    sandbox.isolate("");
    fire.forget();
    for (round, policy) in policies().iter().cycle().take(60).enumerate() {
        sandbox.write_mark(&json!({ "policy": policy }).to_string());
        let mut command = topology.node.command(crate::lab::program());
        let mut sync = command.args(["sync", "--state-dir", sandbox.state_dir()]).spawn().unwrap();
        std::thread::sleep(Duration::from_micros(500 * (round as u64 % 20)));
        sync.kill().unwrap();
        sync.wait().unwrap();
        fire.assert_out(&format!("killed change {round} to {policy}"));
    }
    sandbox.sync();
    assert_eq!(sandbox.verdict(), "contained");
}

/// Agent, runtime and operator may all come at once.
#[test]
fn changes_side_by_side_leak_nothing() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let mut fire = Fire::open(&topology);
    fire.assert_burning();
    sandbox.isolate("");
    fire.forget();
    for policy in &policies() {
        sandbox.write_mark(&json!({ "policy": policy }).to_string());
        std::thread::scope(|scope| {
            for number in 0..8 {
                let sandbox = &sandbox;
                scope.spawn(move || match number % 2 {
                    0 => sandbox.sync(),
                    _ => drop(sandbox.invoke("CHECK").ok()),
                });
            }
        });
        fire.assert_out(&format!("to {policy}"));
        assert_eq!(sandbox.verdict(), "contained", "{policy}");
    }
}

/// A repair of the host guard, by the one side while the other holds.
#[test]
fn repairs_of_the_host_guard_leak_nothing_out() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let mut fire = Fire::open(&topology);
    fire.assert_burning();
    sandbox.isolate("");
    fire.forget();
    for round in 0..20 {
        topology.node.sh("nft flush ruleset");
        sandbox.sync();
        // Packet sockets in the pod did see the frames while the guard was away; that is what `partial` means.
        assert_eq!(fire.outside.seen(OUT), 0, "repair {round}");
    }
    fire.forget();
    sandbox.sync();
    fire.assert_out("after the repairs");
}

/// Probes go on through all that: each that begins after a change which keeps them is answered.
#[test]
fn probes_survive_changes_that_keep_them() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let server = Server::start(&topology.pod, 8080);
    let keep = policies().into_iter().filter(|policy| policy["probes"] != false).collect::<Vec<_>>();
    for policy in keep.iter().cycle().take(40) {
        sandbox.isolate_with(policy);
        assert!(http_probe(&topology.node, POD4.into(), server.port(), PATIENCE), "after {policy}");
    }
}

/// A mark that stands before the sandbox does: from the moment ADD returns nothing passes.
#[test]
fn a_sandbox_that_is_born_isolated_leaks_nothing() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::prepare(&topology, &json!({}));
    let mut fire = Fire::open(&topology);
    fire.assert_burning();
    sandbox.write_mark("");
    sandbox.invoke("ADD").ok();
    fire.forget();
    std::thread::sleep(Duration::from_millis(200));
    fire.assert_out("born isolated");
    assert_eq!(sandbox.verdict(), "contained");
}

/// DEL comes while the veth still stands, for the chain is torn down in reverse.
#[test]
fn del_of_an_isolated_sandbox_opens_nothing() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let mut fire = Fire::open(&topology);
    fire.assert_burning();
    sandbox.isolate("");
    fire.forget();
    sandbox.del();
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(fire.outside.seen(OUT), 0, "after DEL");
}

/// Somebody who changes things in a namespace without a pause: every dump that is read there meanwhile is interrupted.
struct Restless<'a>(&'a Netns, std::process::Child);

impl<'a> Restless<'a> {
    /// With nftables.
    fn rules(netns: &'a Netns) -> Self {
        Self::start(netns, "echo 'add table ip busy; add chain ip busy c; delete table ip busy'", "nft -i")
    }

    /// With links, so many that no dump of them fits into one message.
    fn links(netns: &'a Netns) -> Self {
        netns.sh("seq 1 150 | sed 's/.*/link add c& type veth peer name d&/' | ip -batch -");
        Self::start(netns, "echo link add busy type bridge; echo link del busy", "ip -force -batch -")
    }

    fn start(netns: &'a Netns, commands: &str, tool: &str) -> Self {
        let null = std::process::Stdio::null;
        let mut command = netns.command("sh");
        command.args(["-c", &format!("while :; do {commands}; done | {tool}")]);
        Self(netns, command.stdin(null()).stdout(null()).stderr(null()).spawn().unwrap())
    }
}

impl Drop for Restless<'_> {
    fn drop(&mut self) {
        self.0.kill_processes();
        let _ = self.1.wait();
    }
}

/// A node's other tools (kube-proxy, a firewall) change their rules all the time. What could not be read back whole for
/// that may be doubted; it is in place, as is seen once they rest.
#[test]
fn isolation_works_beside_a_restless_node() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    for round in 0..4 {
        let restless = Restless::rules(&topology.node);
        sandbox.isolate("");
        assert_ne!(sandbox.verdict(), "open", "round {round}");
        sandbox.isolate_with(&policies()[1]);
        assert_ne!(sandbox.verdict(), "open", "round {round}");
        drop(restless);
        let status = sandbox.status();
        assert_eq!(status["verdict"], "contained", "round {round}: {status:#}");
        let restless = Restless::rules(&topology.node);
        sandbox.release();
        drop(restless);
        assert_eq!(sandbox.verdict(), "open", "round {round}");
    }
}

/// Root in the pod may spoil every look into it; the guard is the node's and does not wait for one.
fn isolation_works_against_restless<'a>(topology: &'a Topology, start: impl Fn(&'a Netns) -> Restless<'a>) {
    let sandbox = Sandbox::add(topology);
    let socket = PacketSocket::open(&topology.pod, "eth0");
    let frame = move |number| drop(socket.send(&packet::ethernet(BROADCAST, POD_MAC, 0x88b5, &tag(number))));
    let attacks = vec![Attack::new("frame", &topology.pod, frame)];
    let mut battery = Battery::new(attacks, Witnesses::outside(topology));
    battery.assert_all_arrive();
    let unrest = start(&topology.pod);
    for round in 0..4 {
        sandbox.write_mark("");
        let sync = sandbox.quarantine(&["sync"]);
        let leaks = battery.leaks();
        assert!(leaks.is_empty(), "round {round}: {leaks:?}, {sync:?}");
        let _ = std::fs::remove_file(sandbox.mark());
        let _ = sandbox.quarantine(&["sync"]);
    }
    drop(unrest);
    sandbox.isolate("");
    assert_eq!(sandbox.verdict(), "contained");
    battery.assert_none_arrives();
}

#[test]
fn isolation_works_against_restless_rules() {
    isolation_works_against_restless(&Topology::bridge(), Restless::rules);
}

#[test]
fn isolation_works_against_restless_links() {
    isolation_works_against_restless(&Topology::bridge(), Restless::links);
}
