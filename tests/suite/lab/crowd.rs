//! Many cheap sandboxes on one node, for tests that need hundreds at once.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use netlab::Veth;
use serde_json::json;

use super::{Call, Netns, StateDir};

/// A node and pods with one veth each. Their namespaces are not [`Netns`] values: no processes have
/// to be looked for in them when they are deleted.
pub(crate) struct Crowd {
    pub(crate) node: Netns,
    state: StateDir,
    names: Vec<String>,
}

impl Crowd {
    /// This many sandboxes, at most 65 thousand, whose ADD has run.
    pub(crate) fn new(count: usize) -> Self {
        let node = Netns::new("crowd");
        let names: Vec<_> = (0..count).map(|number| format!("{}-{number}", node.name())).collect();
        let state = StateDir::new();
        // From here on, so that Drop tidies up after whatever fails below.
        let crowd = Self { node, state, names };
        let node = crowd.node.links();
        for (number, name) in crowd.names.iter().enumerate() {
            netlab::add(name);
            let (host_end, pod) = (format!("h{number}"), Netns::named(name));
            node.add_veth(Veth { name: &host_end, mac: None, peer: "eth0", peer_mac: None, netns: &pod });
            node.up(&host_end);
            node.add_address(&host_end, format!("{}/30", address(number, 1)));
            pod.links().add_address("eth0", format!("{}/30", address(number, 2)));
        }
        crowd.on_each(|number| drop(crowd.call("ADD", number).run().ok()));
        crowd
    }

    pub(crate) fn len(&self) -> usize {
        self.names.len()
    }

    /// The container ID of a sandbox.
    pub(crate) fn id(&self, number: usize) -> &str {
        &self.names[number]
    }

    pub(crate) fn state_dir(&self) -> &Path {
        self.state.path()
    }

    /// Where the mark of a sandbox by its container ID is.
    pub(crate) fn mark(&self, number: usize) -> PathBuf {
        self.state.mark_path(&self.names[number])
    }

    /// A call of the plugin for a sandbox.
    pub(crate) fn call(&self, verb: &str, number: usize) -> Call<'_> {
        let path = Path::new("/run/netns").join(&self.names[number]);
        let config = json!({
            "cniVersion": "1.1.0", "name": "crowd", "type": "quarantine", "stateDir": self.state.path(),
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [{ "name": format!("h{number}") }, { "name": "eth0", "sandbox": path }],
                "ips": [{ "address": format!("{}/30", address(number, 2)), "interface": 1 }],
            },
        });
        Call::new(&self.node, verb).attachment(&self.names[number], &path, "eth0").config(&config)
    }

    /// What `nft` prints of a sandbox's namespace; an error where that is gone.
    pub(crate) fn ruleset(&self, number: usize) -> Result<String, String> {
        if !Path::new("/run/netns").join(&self.names[number]).exists() {
            return Err("it is gone".to_owned());
        }
        Netns::named(&self.names[number]).try_sh("nft --stateless --terse list ruleset")
    }

    /// Deletes a sandbox's namespace, without a DEL.
    pub(crate) fn delete(&self, number: usize) {
        netlab::remove(&self.names[number]).unwrap();
    }

    /// Does something for every sandbox, some at a time.
    pub(crate) fn on_each(&self, work: impl Fn(usize) + Sync) {
        let next = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    loop {
                        let number = next.fetch_add(1, Ordering::Relaxed);
                        if number >= self.len() {
                            break;
                        }
                        work(number);
                    }
                });
            }
        });
    }
}

/// In a network of four addresses for each sandbox: the node's end is 1, the pod's 2.
fn address(number: usize, end: usize) -> std::net::Ipv4Addr {
    let base = u32::from(std::net::Ipv4Addr::new(10, 128, 0, 0));
    std::net::Ipv4Addr::from(base + u32::try_from(4 * number + end).unwrap())
}

impl Drop for Crowd {
    fn drop(&mut self) {
        for name in &self.names {
            // Some may be deleted already.
            let _ = netlab::remove(name);
        }
    }
}
