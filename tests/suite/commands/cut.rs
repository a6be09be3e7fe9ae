//! Cut first, then open: in which order the kernel was told, as `nft monitor` heard it.

use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;

use crate::lab::{Crowd, Netns, quarantine};

/// What changes about nf_tables in a namespace, a line each.
struct Monitor {
    child: Child,
    /// Read as they come: events are lost where nobody does.
    lines: Receiver<String>,
}

impl Monitor {
    fn start(node: &Netns) -> Self {
        let mut command = node.command("stdbuf");
        command.args(["--output=L", "nft", "monitor"]).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let (sender, lines) = mpsc::channel();
        thread::spawn(move || output.lines().map_while(Result::ok).try_for_each(|line| sender.send(line)));
        // It says nothing when it begins to listen: something is changed until it is heard.
        while lines.try_recv().is_err() {
            node.sh("nft add table inet begin; nft delete table inet begin");
        }
        Self { child, lines }
    }

    /// What it heard until now.
    fn heard(&self, node: &Netns) -> Vec<String> {
        node.sh("nft add table inet end");
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

#[test]
fn all_are_cut_off_before_the_first_is_opened() {
    let crowd = Crowd::new(20);
    let monitor = Monitor::start(&crowd.node);
    let state_dir = crowd.state_dir().to_str().unwrap();
    quarantine(&crowd.node, &["isolate", "--all", "--yes", "--state-dir", state_dir, "--log", "stderr"]).ok();
    let heard = monitor.heard(&crowd.node);
    let is_cut = |line: &str| line.starts_with("add table netdev quarantine-");
    let opens = |line: &str| line.contains("rule netdev quarantine-") && line.contains(" accept");
    let cuts = heard.iter().filter(|line| is_cut(line)).count();
    assert_eq!(cuts, crowd.len(), "{heard:#?}");
    let last_cut = heard.iter().rposition(|line| is_cut(line)).unwrap();
    let first_hole = heard.iter().position(|line| opens(line)).unwrap_or_else(|| panic!("{:#?}", &heard[last_cut..]));
    assert!(last_cut < first_hole, "{:#?}", &heard[first_hole..=last_cut]);
    // In a few transactions, not in one each.
    let transactions = heard[..last_cut].iter().filter(|line| line.starts_with("# new generation")).count();
    assert!(transactions < crowd.len() / 4, "{transactions} transactions");
}

#[test]
fn one_is_sealed_in_a_transaction_of_its_own() {
    let crowd = Crowd::new(1);
    let monitor = Monitor::start(&crowd.node);
    let state_dir = crowd.state_dir().to_str().unwrap();
    quarantine(&crowd.node, &["isolate", crowd.id(0), "--state-dir", state_dir, "--log", "stderr"]).ok();
    let heard = monitor.heard(&crowd.node);
    let mut transactions = heard.split(|line| line.starts_with("# new generation")).filter(|lines| !lines.is_empty());
    let seal = transactions.next().unwrap();
    assert_eq!(seal.iter().filter(|line| line.starts_with("add chain netdev")).count(), 2, "{seal:#?}");
    let rules: Vec<_> = seal.iter().filter(|line| line.starts_with("add rule")).collect();
    assert!(rules.len() == 2 && rules.iter().all(|rule| rule.ends_with(" drop")), "{seal:#?}");
    assert!(transactions.any(|lines| lines.iter().any(|line| line.contains(" accept"))), "{heard:#?}");
}
