//! A node that container runtimes can be run on: a network namespace with mounts and processes of its own.
//!
//! `/run`, `/var/lib`, `/opt` and `/etc/cni` are fresh there, so that every program finds its files where it looks for
//! them by default and none touches the machine's. Whatever runs there ends with the node. For a pod and its node
//! without a runtime, [`super::Topology`] is simpler.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::{Netns, PATIENCE, eventually};

/// Where the product keeps its state when nothing else is configured.
pub(crate) const STATE: &str = "/var/lib/cni/quarantine";

/// Runs as the node's first process: lays out the mounts, and then holds the node until its stdin is closed.
///
/// The arguments are the product's binary and the peers' directory. Both are opened before anything is mounted, for
/// the checkout may itself be below one of the places.
const FIRST_PROCESS: &str = r#"
exec 3<"$1"
cd "$2"
umount -R -l /run/netns 2>/dev/null || true
for place in /run /opt /var/lib; do mount -t tmpfs node "$place"; done
mkdir -p /run/etc /run/etc-work /opt/cni/bin /opt/cni/peers
mount -t overlay node -o lowerdir=/etc,upperdir=/run/etc,workdir=/run/etc-work /etc
rm -rf /etc/cni
mkdir -p /etc/cni/net.d
mount --bind . /opt/cni/peers
ln -s /opt/cni/peers/bin/* /opt/cni/bin
cat <&3 >/opt/cni/bin/quarantine
chmod 0755 /opt/cni/bin/quarantine
exec 3<&0
echo ready
cat <&3 >/dev/null &
wait $!
"#;

pub(crate) struct RuntimeNode {
    /// Its network.
    pub(crate) netns: Netns,
    /// `unshare`: the parent of the first process.
    holder: Child,
    daemons: Vec<Child>,
}

impl RuntimeNode {
    pub(crate) fn new(label: &str) -> Self {
        let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/peers");
        assert!(peers.join("versions").exists(), "the reference plugins are missing; scripts/get-peers builds them");
        let netns = Netns::new(label);
        // As on a real node: an address that a main plugin gives it is tentative at first.
        netns.sysctl("net.ipv6.conf.default.accept_dad", "1");
        let mut holder = netns
            .command("unshare")
            .args(["--mount", "--propagation", "slave", "--pid", "--fork", "--kill-child", "--mount-proc"])
            .args(["sh", "-ec", FIRST_PROCESS, "sh", crate::lab::program()])
            .arg(peers)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(holder.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n", "the node {label} did not come up");
        Self { netns, holder, daemons: Vec::new() }
    }

    /// A command that runs on the node.
    pub(crate) fn command(&self, program: &str) -> Command {
        let namespaces = format!("/proc/{}/ns", self.holder.id());
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={namespaces}/net"))
            .arg(format!("--mount={namespaces}/mnt"))
            .arg(format!("--pid={namespaces}/pid_for_children"))
            .args(["--", program])
            .stdin(Stdio::null());
        command
    }

    /// Starts a daemon, which runs as long as the node; what it prints goes to a file there.
    pub(crate) fn start(&mut self, command: &str, log: &str) {
        let daemon = self.command("sh").args(["-c", &format!("exec {command} >{log} 2>&1")]).spawn().unwrap();
        self.daemons.push(daemon);
    }

    /// Runs a shell script on the node, stops at its first error, panics if it fails; gives its stdout.
    pub(crate) fn sh(&self, script: &str) -> String {
        output(self.command("sh").args(["-ec", script])).unwrap_or_else(|error| panic!("{script}\n{error}"))
    }

    /// A path of the node, as the test reaches it.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        // An absolute symlink would lead out of the node: /var/run is one.
        let path = path.strip_prefix("/var/run/").map_or_else(|| path.to_owned(), |rest| format!("/run/{rest}"));
        PathBuf::from(format!("/proc/{}/root{path}", self.holder.id()))
    }

    /// A network namespace that is at this path of the node.
    pub(crate) fn netns_at(&self, path: &str) -> Netns {
        Netns::at(path, self.path(path))
    }

    /// Makes a pod's network namespace, at `/run/netns/<name>` of the node.
    pub(crate) fn add_netns(&self, name: &str) -> Netns {
        self.sh(&format!("ip netns add {name}; ip -n {name} link set lo up"));
        let netns = self.netns_at(&format!("/run/netns/{name}"));
        netns.sysctl("net.ipv6.conf.default.accept_dad", "0");
        netns
    }

    /// Puts a conflist where runtimes look for it.
    pub(crate) fn configure(&self, conflist: &Value) {
        fs::write(self.path("/etc/cni/net.d/10-pods.conflist"), conflist.to_string()).unwrap();
    }

    /// Writes the mark `key`; nothing is applied yet.
    pub(crate) fn write_mark(&self, key: &str) {
        self.sh(&format!("mkdir -p -m 0700 {STATE} {STATE}/isolated"));
        fs::write(self.path(STATE).join("isolated").join(key), "").unwrap();
    }

    /// Removes the mark `key`; nothing is applied yet.
    pub(crate) fn remove_mark(&self, key: &str) {
        fs::remove_file(self.path(STATE).join("isolated").join(key)).unwrap();
    }

    /// One of the product's commands; gives its stdout.
    #[track_caller]
    pub(crate) fn quarantine(&self, args: &[&str]) -> String {
        output(self.command("/opt/cni/bin/quarantine").env_remove("CNI_COMMAND").args(args))
            .unwrap_or_else(|error| panic!("quarantine {args:?}: {error}"))
    }

    /// Once every pod is gone, nothing of the product's, the main plugins' and IPAM's is left on the node.
    #[track_caller]
    pub(crate) fn assert_nothing_remains(&self) {
        // The links of a netns that ends go a little later, and no main plugin waits for that.
        let nothing = eventually(PATIENCE, || self.remains().is_empty());
        assert!(nothing, "this is left on the node:\n{}", self.remains());
    }

    fn remains(&self) -> String {
        self.sh(&format!(
            "nft list tables | grep quarantine || true
             ip -o link show type veth
             ip -o link show type macvlan
             ip netns list
             find /run/netns /var/run/netns -type f 2>/dev/null || true
             find {STATE}/attachments -type f -name '*.json' 2>/dev/null || true
             find {STATE}/isolated -type f 2>/dev/null || true
             find /var/lib/cni/networks -type f -name '*[.:]*' -not -name 'last_reserved*' 2>/dev/null || true"
        ))
    }
}

impl Drop for RuntimeNode {
    fn drop(&mut self) {
        // Its stdin closed, the first process ends, and the kernel ends every other one before wait returns.
        drop(self.holder.stdin.take());
        let _ = self.holder.wait();
        for daemon in &mut self.daemons {
            let _ = daemon.wait();
        }
    }
}

/// The stdout of a command that must succeed; else its whole output as the error.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    if output.status.success() {
        Ok(text(&output.stdout))
    } else {
        Err(format!("{}: {}{}", output.status, text(&output.stdout), text(&output.stderr)))
    }
}
