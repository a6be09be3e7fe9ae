//! A node with a state directory, and pods on it with one veth each: for tests whose point is what the product is told
//! and what it writes down. For what passes on a network, see [`super::Topology`] and [`super::Sandbox`].

use std::net::{Ipv4Addr, UdpSocket};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use netlab::Veth;
use serde_json::{Value, json};

use super::{Call, Netns, Run, StateDir, Tables, eventually, quarantine, ruleset, tables};

/// A network namespace that stands for the machine, with a state directory.
pub(crate) struct Node {
    pub(crate) netns: Netns,
    state: StateDir,
    pods: AtomicU8,
}

impl Node {
    pub(crate) fn new() -> Self {
        Self { netns: Netns::new("node"), state: StateDir::new(), pods: AtomicU8::new(0) }
    }

    /// A pod with `eth0`, a veth to the node.
    pub(crate) fn pod(&self) -> Pod {
        self.pod_with_interface("eth0")
    }

    pub(crate) fn pod_with_interface(&self, ifname: &str) -> Pod {
        let number = self.pods.fetch_add(1, Ordering::Relaxed);
        let netns = Netns::new("pod");
        let (host_end, links) = (format!("h{number}"), self.netns.links());
        links.add_veth(Veth { name: &host_end, mac: None, peer: ifname, peer_mac: None, netns: &netns });
        links.up(&host_end);
        links.add_address(&host_end, format!("10.77.{number}.1/24"));
        let inside = netns.links();
        inside.up(ifname);
        inside.add_address(ifname, format!("10.77.{number}.2/24"));
        Pod { id: format!("sandbox-{}", netns.name()), netns, ifname: ifname.to_owned(), number }
    }

    pub(crate) fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// The least conflist entry that there is, in the newest version, with this node's state directory.
    pub(crate) fn config(&self) -> Value {
        json!({ "cniVersion": "1.1.0", "name": "testnet", "type": "quarantine", "stateDir": self.state_dir() })
    }

    /// A call of the plugin that has this command, nothing else in its environment, and the least config.
    pub(crate) fn call(&self, command: &str) -> Call<'_> {
        Call::bare(&self.netns).env("CNI_COMMAND", command).config(self.config())
    }

    /// A call with an empty environment and an empty stdin.
    pub(crate) fn bare_call(&self) -> Call<'_> {
        Call::bare(&self.netns)
    }

    /// Calls `command` for the pod's attachment, with a full config.
    #[track_caller]
    pub(crate) fn plugin(&self, command: &str, pod: &Pod) -> Run {
        self.call(command).sandbox(pod).config(pod.chained_config(self)).run()
    }

    /// The same for the pod `shop/web` with this UID.
    #[track_caller]
    pub(crate) fn plugin_as(&self, command: &str, pod: &Pod, uid: &str) -> Run {
        self.call(command).sandbox(pod).pod_uid(uid).config(pod.chained_config(self)).run()
    }

    pub(crate) fn mark_path(&self, key: &str) -> PathBuf {
        self.state.mark_path(key)
    }

    pub(crate) fn mark(&self, key: &str, text: impl AsRef<[u8]>) {
        self.state.mark(key, text);
    }

    /// One that is there whole, or not at all.
    pub(crate) fn move_mark(&self, key: &str, text: impl AsRef<[u8]>) {
        self.state.move_mark(key, text);
    }

    pub(crate) fn remove_mark(&self, key: &str) {
        self.state.remove_mark(key);
    }

    pub(crate) fn marks(&self) -> Vec<String> {
        self.state.marks()
    }

    pub(crate) fn records(&self) -> Vec<String> {
        self.state.records()
    }

    /// Where ADD writes the record of the pod's attachment.
    pub(crate) fn record_path(&self, pod: &Pod) -> PathBuf {
        self.state.record_path(&pod.id, &pod.ifname)
    }

    /// No table in the node's namespace, no mark, no record.
    #[track_caller]
    pub(crate) fn is_untouched(&self) {
        assert_eq!(ruleset(&self.netns), "", "the node has tables");
        assert_eq!(self.records(), [""; 0], "records were left");
        assert_eq!(self.marks(), [""; 0], "marks were left");
    }

    /// `quarantine sync`, which applies the marks to every sandbox; it must succeed.
    #[track_caller]
    pub(crate) fn sync(&self) {
        self.try_sync().ok();
    }

    #[track_caller]
    pub(crate) fn try_sync(&self) -> Run {
        quarantine(&self.netns, &["sync", "--state-dir", self.state.text()])
    }
}

/// Adds an interface that has no other end anywhere. (A bridge: not every kernel has the dummy driver.)
pub(crate) fn lone_interface(netns: &Netns, name: &str) {
    let links = netns.links();
    links.add_bridge(name, None);
    links.up(name);
}

/// A sandbox: a network namespace with one interface, and the container ID that it goes by.
pub(crate) struct Pod {
    pub(crate) id: String,
    pub(crate) netns: Netns,
    pub(crate) ifname: String,
    pub(crate) number: u8,
}

impl Pod {
    pub(crate) fn path(&self) -> PathBuf {
        self.netns.path()
    }

    /// The node's end of its veth.
    pub(crate) fn host_end(&self) -> String {
        format!("h{}", self.number)
    }

    /// The node's address on that end.
    pub(crate) fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 77, self.number, 1)
    }

    /// What a main plugin would have given for this pod, in the newest version.
    pub(crate) fn prev_result(&self) -> Value {
        let number = self.number;
        json!({
            "cniVersion": "1.1.0",
            "interfaces": [
                { "name": format!("h{number}") },
                { "name": self.ifname, "sandbox": self.path() },
            ],
            "ips": [{ "address": format!("10.77.{number}.2/24"), "gateway": format!("10.77.{number}.1"), "interface": 1 }],
            "dns": {},
        })
    }

    /// The least config for this pod: with `prevResult`.
    pub(crate) fn chained_config(&self, node: &Node) -> Value {
        let mut config = node.config();
        config["prevResult"] = self.prev_result();
        config
    }

    #[track_caller]
    pub(crate) fn tables(&self) -> Tables {
        tables(&self.netns)
    }

    #[track_caller]
    pub(crate) fn is_untouched(&self) {
        assert_eq!(ruleset(&self.netns), "", "the pod has tables");
    }

    /// A datagram from the pod arrives on the node, given time: a carrier takes a moment to come up.
    pub(crate) fn reaches_node(&self, node: &Node) -> bool {
        self.datagram_arrives(&self.socket_on(node), Duration::from_secs(10))
    }

    /// None of many datagrams from the pod arrives on the node. (Its control is [`Pod::reaches_node`] before.)
    pub(crate) fn is_cut_off_from(&self, node: &Node) -> bool {
        !self.datagram_arrives(&self.socket_on(node), Duration::from_millis(500))
    }

    /// A datagram from the pod to itself, on `lo`, arrives.
    pub(crate) fn loopback_passes(&self) -> bool {
        let receiver = self.netns.run(|| UdpSocket::bind("127.0.0.1:0")).unwrap();
        self.datagram_arrives(&receiver, Duration::from_millis(500))
    }

    fn socket_on(&self, node: &Node) -> UdpSocket {
        node.netns.run(|| UdpSocket::bind((format!("10.77.{}.1", self.number), 0))).unwrap()
    }

    fn datagram_arrives(&self, receiver: &UdpSocket, limit: Duration) -> bool {
        receiver.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let target = receiver.local_addr().unwrap();
        let sender = self.netns.run(|| UdpSocket::bind("0.0.0.0:0")).unwrap();
        eventually(limit, || {
            // That nothing arrives is what is asked; how the sender learns of it is not.
            let _ = sender.send_to(b"x", target);
            receiver.recv(&mut [0; 8]).is_ok()
        })
    }
}
