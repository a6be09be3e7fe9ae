//! Many cheap sandboxes on one node: for what has to be shown, or measured, of hundreds at once.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::{Call, Netns, StateDir};

/// A node and pods with one veth each. Their namespaces are no [`Netns`] values: they are made and deleted all together,
/// which takes a fraction of the time.
pub(crate) struct Crowd {
    pub(crate) node: Netns,
    state: StateDir,
    names: Vec<String>,
}

impl Crowd {
    /// So many sandboxes, at most 65 thousand, whose ADD has run.
    pub(crate) fn new(count: usize) -> Self {
        let node = Netns::new("crowd");
        let names: Vec<_> = (0..count).map(|number| format!("{}-{number}", node.name())).collect();
        let state = StateDir::new();
        // From here on, so that Drop tidies up after whatever fails below.
        let crowd = Self { node, state, names };
        let lines = |line: &dyn Fn(usize, &str) -> String| {
            crowd.names.iter().enumerate().map(|(number, name)| line(number, name) + "\n").collect::<String>()
        };
        crowd.node.ip(&lines(&|_, name| format!("netns add {name}")));
        crowd.node.ip(&lines(&|number, name| {
            format!(
                "link add h{number} type veth peer name eth0 netns {name}\n\
                 link set h{number} up\n\
                 addr add {}/30 dev h{number}",
                address(number, 1)
            )
        }));
        crowd.on_each(|number| {
            let output = Command::new("ip")
                .args(["-n", &crowd.names[number], "addr", "add", &format!("{}/30", address(number, 2)), "dev", "eth0"])
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            crowd.call("ADD", number).run().ok();
        });
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
        let output = Command::new("ip")
            .args(["netns", "exec", &self.names[number], "nft", "--stateless", "--terse", "list", "ruleset"])
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    /// Deletes a sandbox's namespace without a word to anybody.
    pub(crate) fn delete(&self, number: usize) {
        let output = Command::new("ip").args(["netns", "del", &self.names[number]]).output().unwrap();
        assert!(output.status.success(), "{output:?}");
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
        let commands: String = self.names.iter().map(|name| format!("netns del {name}\n")).collect();
        // Some may be deleted already.
        let _ = self.node.try_sh(&format!("ip -force -batch - <<'END'\n{commands}END"));
    }
}
