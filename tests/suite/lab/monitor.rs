//! What the kernel says of changes of nf_tables, in the order in which they were made.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use super::Netns;

/// What changes about nf_tables in a namespace, a line each.
pub(crate) struct Monitor {
    child: Child,
    /// Read as they come: events are lost where nobody does.
    lines: Receiver<String>,
}

impl Monitor {
    pub(crate) fn start(node: &Netns) -> Self {
        let mut command = node.command("stdbuf");
        command.args(["--output=L", "nft", "monitor"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        // It says nothing when it begins to listen: something is changed until it is heard. Ever more seldom, since it reads all
        // rules first, and anew where they change meanwhile.
        let mut pause = Duration::from_millis(20);
        loop {
            node.sh("nft add table inet begin; nft delete table inet begin");
            if lines.recv_timeout(pause).is_ok() {
                break;
            }
            pause *= 2;
        }
        Self { child, lines }
    }

    /// How many transactions it heard until now that did this to a host guard.
    pub(crate) fn transactions(&self, node: &Netns, done: &str) -> usize {
        let heard = self.heard(node);
        let transactions = heard.split(|line| line.starts_with("# new generation"));
        let is_it = |line: &String| line.contains(" netdev quarantine-") && line.contains(done);
        transactions.filter(|lines| lines.iter().any(is_it)).count()
    }

    /// What it heard until now.
    pub(crate) fn heard(&self, node: &Netns) -> Vec<String> {
        node.sh("nft add table inet end; nft delete table inet end");
        let lines = self.lines.iter().take_while(|line| line != "add table inet end");
        lines.filter(|line| !line.contains("table inet begin")).collect()
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
