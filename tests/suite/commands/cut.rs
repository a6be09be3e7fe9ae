//! Cut first, then open: in which order the kernel was told, as `nft monitor` heard it.

use std::io::Write;
use std::process::Stdio;

use crate::lab::{Crowd, Monitor, PATIENCE, eventually, quarantine};

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

/// A transaction in the node's network namespace goes through all tables that are there, and waits for what the last one deleted.
#[test]
fn many_are_opened_and_released_in_a_few_transactions() {
    let crowd = Crowd::new(40);
    let state_dir = crowd.state_dir().to_str().unwrap();
    for (command, done) in [("isolate", " accept"), ("release", "delete table")] {
        let monitor = Monitor::start(&crowd.node);
        quarantine(&crowd.node, &[command, "--all", "--yes", "--state-dir", state_dir, "--log", "stderr"]).ok();
        let transactions = monitor.transactions(&crowd.node, done);
        assert!((1..crowd.len() / 2).contains(&transactions), "{command}: {transactions} transactions");
    }
}

/// Somebody's process owns the table that would be one pod's guard, and the kernel lets nobody else change it.
#[test]
fn a_guard_that_cannot_be_loaded_takes_none_of_the_others_along() {
    const OWNED: usize = 7;
    let crowd = Crowd::new(24);
    let mut owner = crowd.node.command("nft");
    let mut owner = owner.arg("--interactive").stdin(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let mut words = owner.stdin.take().unwrap();
    writeln!(words, "add table netdev quarantine-{} {{ flags owner; }}", crowd.id(OWNED)).unwrap();
    let owned = format!("table netdev quarantine-{}", crowd.id(OWNED));
    assert!(eventually(PATIENCE, || crowd.node.sh("nft list tables").contains(&owned)));
    let state_dir = crowd.state_dir().to_str().unwrap();
    let run =
        |words: &[&str]| quarantine(&crowd.node, &[words, &["--state-dir", state_dir, "--log", "stderr"]].concat());
    let said = run(&["isolate", "--all", "--yes"]);
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    for number in 0..crowd.len() {
        let wanted = if number == OWNED { "NOT isolated: " } else { "contained, policy " };
        let line = said.stdout.lines().find(|line| line.starts_with(&format!("{} ", crowd.id(number)))).unwrap();
        assert!(line.contains(wanted), "{line}");
    }
    // Nobody's process owns it any more, and the table went with it.
    drop(words);
    owner.wait().unwrap();
    run(&["isolate", crowd.id(OWNED)]).ok();
    run(&["release", "--all", "--yes"]).ok();
    assert!(!crowd.node.sh("nft list tables").contains("quarantine-"));
}
