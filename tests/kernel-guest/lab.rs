//! The guest's network: the node (the guest's own root namespace) with a bridge, and on it a pod and a peer.
//!
//! ```text
//!   pod                node                 peer
//!   eth0 ---- vpod -- br0 -- vpeer ---- eth0
//!   .2               .1                     .3      10.9.0.0/24 and fd09::/64
//! ```

use std::error::Error;
use std::io::Write;
use std::ops::Deref;
use std::process::Stdio;

use netlab::Veth;

use crate::ensure;

pub(crate) const NODE4: &str = "10.9.0.1";
pub(crate) const POD4: &str = "10.9.0.2";
pub(crate) const PEER4: &str = "10.9.0.3";
pub(crate) const NODE6: &str = "fd09::1";
pub(crate) const POD6: &str = "fd09::2";
pub(crate) const PEER6: &str = "fd09::3";
pub(crate) const POD_MAC: [u8; 6] = [2, 0, 0, 0, 9, 2];
pub(crate) const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 9, 3];

/// A network namespace, and the programs that are run in it.
pub(crate) struct Netns(netlab::Netns);

impl Deref for Netns {
    type Target = netlab::Netns;

    fn deref(&self) -> &netlab::Netns {
        &self.0
    }
}

impl Netns {
    /// Runs a program in the namespace; its output, or its complaint.
    pub(crate) fn command(&self, program: &str, arguments: &[&str], input: &str) -> Result<String, Box<dyn Error>> {
        let mut command = self.0.command(program);
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        // A program that doesn't read its input is no error here.
        let _ = child.stdin.take().map(|mut stdin| stdin.write_all(input.as_bytes()));
        let output = child.wait_with_output()?;
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
    pub(crate) fn new() -> Self {
        for name in ["pod", "peer"] {
            netlab::add(name);
        }
        let lab = Self {
            node: Netns(netlab::Netns::at("node", "/proc/1/ns/net")),
            pod: Netns(netlab::Netns::named("pod")),
            peer: Netns(netlab::Netns::named("peer")),
        };
        let node = lab.node.links();
        node.add_bridge("br0", None);
        node.add_address("br0", format!("{NODE4}/24"));
        node.add_address("br0", format!("{NODE6}/64"));
        node.up("br0");
        for (host_end, netns, mac, v4, v6) in
            [("vpod", &lab.pod, POD_MAC, POD4, POD6), ("vpeer", &lab.peer, PEER_MAC, PEER4, PEER6)]
        {
            node.add_veth(Veth { name: host_end, mac: None, peer: "eth0", peer_mac: Some(mac), netns });
            node.set_master(host_end, "br0");
            node.up(host_end);
            let inside = netns.links();
            inside.add_address("eth0", format!("{v4}/24"));
            inside.add_address("eth0", format!("{v6}/64"));
            inside.up("eth0");
        }
        lab
    }

    /// Neighbour entries that need no ARP, for checks that are not about it.
    pub(crate) fn fix_neighbours(&self) {
        self.pod.links().set_neighbour("eth0", PEER4, PEER_MAC);
        self.peer.links().set_neighbour("eth0", POD4, POD_MAC);
        self.node.links().set_neighbour("br0", POD4, POD_MAC);
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
        // What a half-made lab lacks is no error on the way out. The pairs go before the namespaces that their other ends are in: those
        // end when the kernel comes to it, and the next lab has the same names.
        for name in ["vpod", "vpeer", "br0"] {
            let _ = self.node.ip(&format!("link del {name}"));
        }
        for name in ["pod", "peer"] {
            let _ = netlab::remove(name);
        }
        let _ = self.node.nft("flush ruleset");
    }
}
