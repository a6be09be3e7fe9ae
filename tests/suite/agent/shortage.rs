//! File descriptors run out: isolating comes before listening.

use std::fs;
use std::process::Command;

use super::{Agent, await_kernel};
use crate::lab::{Crowd, Tables, both_tables};

/// More than can be listened to with [`LIMIT`], at two descriptors each.
const SANDBOXES: usize = 60;
const LIMIT: &str = "--nofile=128:128";
/// There are as many workers as processors ask for, with descriptors of their own.
const ONE_PROCESSOR: &[&str] = &["taskset", "--cpu-list", "0"];

fn is_isolated(crowd: &Crowd, number: usize) -> bool {
    both_tables(&crowd.ruleset(number).unwrap()) == Some(Tables::Isolated)
}

/// All are isolated, also those whose events nobody can listen to; these are looked at every second instead, and that is said.
#[test]
fn isolating_needs_no_descriptors_to_listen_with() {
    let crowd = Crowd::new(SANDBOXES);
    let agent = Agent::start_below(&crowd.node, crowd.state_dir(), &[ONE_PROCESSOR, &["prlimit", LIMIT]].concat());
    // With some of the workers at work, perhaps.
    let before = agent.descriptors_at_rest();
    for number in 0..SANDBOXES {
        fs::write(crowd.mark(number), "").unwrap();
    }
    for number in 0..SANDBOXES {
        agent.await_line(&["event=isolated", &format!("container={} ", crowd.id(number))]);
        assert!(is_isolated(&crowd, number), "{}", crowd.id(number));
    }
    assert_eq!(agent.count(&["event=failed"]), 0, "{:#?}", agent.lines());
    let polled = agent.await_line(&["event=polling", "LimitNOFILE="]);
    let unheard = (0..SANDBOXES).find(|&number| polled.contains(&format!("container={} ", crowd.id(number)))).unwrap();
    let heard = (0..SANDBOXES)
        .find(|&number| agent.count(&["event=polling", &format!("container={} ", crowd.id(number))]) == 0)
        .expect("the control: some are listened to");
    for number in [unheard, heard] {
        let flushed = Command::new("ip").args(["netns", "exec", crowd.id(number), "nft", "flush", "ruleset"]).status();
        assert!(flushed.unwrap().success());
        assert!(await_kernel(|| is_isolated(&crowd, number)), "{number} is not repaired: {:#?}", agent.lines());
    }
    for number in 0..SANDBOXES {
        fs::remove_file(crowd.mark(number)).unwrap();
    }
    agent.await_lines(&["event=released"], SANDBOXES);
    assert!(await_kernel(|| agent.descriptors() <= before), "{} instead of {before}", agent.descriptors());
}

/// Too few to listen to anybody.
#[test]
fn isolating_needs_few_descriptors() {
    let crowd = Crowd::new(8);
    let agent =
        Agent::start_below(&crowd.node, crowd.state_dir(), &[ONE_PROCESSOR, &["prlimit", "--nofile=64:64"]].concat());
    for number in 0..crowd.len() {
        fs::write(crowd.mark(number), "").unwrap();
    }
    for number in 0..crowd.len() {
        agent.await_line(&["event=isolated", &format!("container={} ", crowd.id(number))]);
        assert!(is_isolated(&crowd, number), "{}", crowd.id(number));
    }
    assert_eq!(agent.count(&["event=failed"]), 0, "{:#?}", agent.lines());
}
