//! The guest's network: the node (the guest's own root namespace) with a bridge, and on it a pod and a peer.
//!
//! ```text
//!   pod                node                 peer
//!   eth0 ---- vpod -- br0 -- vpeer ---- eth0
//!   .2               .1                     .3      10.9.0.0/24 and fd09::/64
//! ```

use std::error::Error;
use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, setns};

use crate::ensure;

pub(crate) const NODE4: &str = "10.9.0.1";
pub(crate) const POD4: &str = "10.9.0.2";
pub(crate) const PEER4: &str = "10.9.0.3";
pub(crate) const NODE6: &str = "fd09::1";
pub(crate) const POD6: &str = "fd09::2";
pub(crate) const PEER6: &str = "fd09::3";
pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 9, 2];
pub(crate) const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 3];

/// A network namespace, by the path that holds it.
#[derive(Clone)]
pub(crate) struct Netns {
    pub(crate) path: String,
}

impl Netns {
    /// Runs a closure on a thread that has entered the namespace; sockets that it opens stay there.
    pub(crate) fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, Box<dyn Error>> {
        let file = File::open(&self.path)?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(file, CloneFlags::CLONE_NEWNET)?;
                Ok::<T, nix::Error>(work())
            });
            thread.join().map_err(|_| "a thread panicked")?.map_err(Into::into)
        })
    }

    /// Runs a program in the namespace; its output, or its complaint.
    pub(crate) fn command(&self, program: &str, arguments: &[&str], input: &str) -> Result<String, Box<dyn Error>> {
        let output = self.run(|| {
            let mut child = Command::new(program)
                .args(arguments)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            // A program that doesn't read its input is no error here.
            let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
            child.wait_with_output()
        })??;
        let complaint = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(output.status.success(), "{program} {}: {complaint}", arguments.join(" "));
        Ok(String::from_utf8(output.stdout)?)
    }

    pub(crate) fn ip(&self, arguments: &str) -> Result<String, Box<dyn Error>> {
        self.command("ip", &arguments.split_whitespace().collect::<Vec<_>>(), "")
    }

    /// Loads a ruleset as one batch.
    pub(crate) fn nft(&self, ruleset: &str) -> Result<(), Box<dyn Error>> {
        self.command("nft", &["-f", "-"], ruleset).map(drop)
    }

    pub(crate) fn rules(&self) -> Result<String, Box<dyn Error>> {
        self.command("nft", &["list", "ruleset"], "")
    }
}

/// The namespaces of one run of checks; they and the bridge go with it.
pub(crate) struct Lab {
    pub(crate) node: Netns,
    pub(crate) pod: Netns,
    pub(crate) peer: Netns,
}

impl Lab {
    pub(crate) fn new() -> Result<Self, Box<dyn Error>> {
        let lab = Self {
            node: Netns { path: "/proc/1/ns/net".into() },
            pod: Netns { path: "/run/netns/pod".into() },
            peer: Netns { path: "/run/netns/peer".into() },
        };
        lab.node.ip("link add br0 type bridge")?;
        lab.node.ip(&format!("addr add {NODE4}/24 dev br0"))?;
        lab.node.ip(&format!("addr add {NODE6}/64 dev br0 nodad"))?;
        lab.node.ip("link set br0 up")?;
        for (name, netns, mac, v4, v6) in
            [("pod", &lab.pod, POD_MAC, POD4, POD6), ("peer", &lab.peer, PEER_MAC, PEER4, PEER6)]
        {
            let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
            lab.node.ip(&format!("netns add {name}"))?;
            lab.node.ip(&format!("link add v{name} type veth peer name eth0 address {mac} netns {name}"))?;
            lab.node.ip(&format!("link set v{name} master br0 up"))?;
            netns.ip("link set lo up")?;
            netns.ip(&format!("addr add {v4}/24 dev eth0"))?;
            netns.ip(&format!("addr add {v6}/64 dev eth0 nodad"))?;
            netns.ip("link set eth0 up")?;
        }
        Ok(lab)
    }

    /// Neighbour entries that need no ARP, for checks that are not about it.
    pub(crate) fn fix_neighbours(&self) -> Result<(), Box<dyn Error>> {
        self.pod.ip(&format!("neigh replace {PEER4} lladdr 02:00:00:00:09:03 dev eth0 nud permanent"))?;
        self.peer.ip(&format!("neigh replace {POD4} lladdr 02:00:00:00:09:02 dev eth0 nud permanent"))?;
        self.node.ip(&format!("neigh replace {POD4} lladdr 02:00:00:00:09:02 dev br0 nud permanent"))?;
        Ok(())
    }

    /// Renames an interface of the pod, the way an attacker does: down, rename, up.
    pub(crate) fn rename(&self, from: &str, to: &str) -> Result<(), Box<dyn Error>> {
        self.pod.ip(&format!("link set {from} down"))?;
        self.pod.ip(&format!("link set {from} name {to}"))?;
        self.pod.ip(&format!("link set {to} up"))?;
        self.pod.ip(&format!("addr replace {POD6}/64 dev {to} nodad"))?;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What a half-made lab lacks is no error on the way out.
        for leftover in ["netns del pod", "netns del peer", "link del br0"] {
            let _ = self.node.ip(leftover);
        }
        let _ = self.node.nft("flush ruleset");
    }
}
