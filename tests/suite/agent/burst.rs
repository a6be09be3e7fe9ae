//! Many marks at once, some of them for sandboxes that cannot be helped: those delay nobody.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, fcntl};
use serde_json::json;

use super::{Agent, PATIENCE, both_tables};
use crate::lab::{Crowd, Sandbox, Topology, eventually, quarantine};
use crate::protocol::Tables;

const COUNT: usize = 200;
/// Its netns is gone.
const GONE: usize = 17;
/// Somebody else has its lock and does not give it back.
const HELD: usize = 18;

/// What is so in the kernel, of all but these.
fn all_are(crowd: &Crowd, wanted: Tables, but: &[usize]) -> Vec<usize> {
    let wrong = std::sync::Mutex::new(Vec::new());
    crowd.on_each(|number| {
        let found = || crowd.ruleset(number).ok().and_then(|ruleset| both_tables(&ruleset));
        if !but.contains(&number) && !super::await_kernel(|| found() == Some(wanted)) {
            wrong.lock().unwrap().push(number);
        }
    });
    wrong.into_inner().unwrap()
}

fn guards(crowd: &Crowd) -> usize {
    crowd.node.sh("nft list tables").lines().filter(|line| line.starts_with("table netdev quarantine-")).count()
}

fn verdict(crowd: &Crowd, number: usize) -> String {
    let state_dir = crowd.state_dir().to_str().unwrap();
    let run = quarantine(&crowd.node, &["status", crowd.id(number), "-o", "json", "--state-dir", state_dir]);
    run.json()["verdict"].as_str().unwrap_or_default().to_owned()
}

/// Which sandbox's lock is which byte is the product's business: the kernel says at which one its CHECK waits.
fn hold_lock(crowd: &Crowd, number: usize) -> File {
    let file = File::options().read(true).write(true).open(crowd.state_dir().join(".lock")).unwrap();
    let range = |kind: i32, start: i64, length: i64| {
        let range = libc::flock {
            l_type: kind as libc::c_short,
            l_whence: libc::SEEK_SET as libc::c_short,
            l_start: start,
            l_len: length,
            l_pid: 0,
        };
        fcntl(&file, FcntlArg::F_OFD_SETLK(&range)).unwrap();
    };
    range(libc::F_WRLCK, 0, 0);
    let inode = format!(":{} ", file.metadata().unwrap().ino());
    std::thread::scope(|scope| {
        let check = scope.spawn(|| crowd.call("CHECK", number).run().ok());
        let mut waits_at = None;
        let waits = eventually(PATIENCE, || {
            let locks = fs::read_to_string("/proc/locks").unwrap();
            let waiting = locks.lines().find(|line| line.contains("->") && line.contains(&inode));
            waits_at = waiting.and_then(|line| line.split_whitespace().rev().nth(1)?.parse().ok());
            waits_at.is_some()
        });
        let locks = fs::read_to_string("/proc/locks").unwrap();
        range(libc::F_UNLCK, 0, 0);
        assert!(waits, "CHECK did not wait for the lock: {locks}");
        check.join().unwrap();
        range(libc::F_WRLCK, waits_at.unwrap(), 1);
    });
    file
}

#[test]
fn two_hundred_at_once_and_two_that_cannot() {
    let crowd = Crowd::new(COUNT);
    crowd.delete(GONE);
    let held = hold_lock(&crowd, HELD);
    let agent = Agent::start(&crowd.node, crowd.state_dir());
    for number in 0..crowd.len() {
        fs::write(crowd.mark(number), "").unwrap();
    }
    let wrong = all_are(&crowd, Tables::Isolated, &[GONE, HELD]);
    assert!(wrong.is_empty(), "{wrong:?}: {:#?}", agent.lines());
    assert_eq!(guards(&crowd), COUNT - 2);
    // What could not be done is said, also while it hangs.
    assert_eq!(verdict(&crowd, GONE), "gone");
    assert_eq!(verdict(&crowd, 0), "contained");
    assert_eq!(verdict(&crowd, HELD), "open");
    assert_eq!(both_tables(&crowd.ruleset(HELD).unwrap()), Some(Tables::Released), "the control: it is held");
    // And is done as soon as it can be.
    drop(held);
    let wrong = all_are(&crowd, Tables::Isolated, &[GONE]);
    assert!(wrong.is_empty(), "{wrong:?}: {:#?}", agent.lines());
    for number in 0..crowd.len() {
        fs::remove_file(crowd.mark(number)).unwrap();
    }
    let wrong = all_are(&crowd, Tables::Released, &[GONE]);
    assert!(wrong.is_empty(), "{wrong:?}: {:#?}", agent.lines());
    assert!(super::await_kernel(|| guards(&crowd) == 0));
}

/// One that fails again and again is tried at growing intervals, and `status` says that it is open.
#[test]
fn what_fails_is_tried_again_ever_more_seldom() {
    let topology = Topology::macvlan();
    // There is no peer on the host, so it cannot be.
    let sandbox = Sandbox::add_with(&topology, &json!({ "hostGuard": "require" }));
    let agent = Agent::start(&topology.node, std::path::Path::new(sandbox.state_dir()));
    let started = Instant::now();
    sandbox.write_mark("");
    let tries = ["event=not-isolated", sandbox.id()];
    agent.await_lines(&tries, 5);
    // 100, 200, 400 and 800 ms lie between five tries: no less, however slow the machine. (The mark may have come while
    // the agent looked at it for the first time; then it looks again at once, and the first pause falls away.)
    assert!(started.elapsed() >= Duration::from_millis(1400), "{:?}", started.elapsed());
    let status = sandbox.status();
    assert_eq!(status["verdict"], "open", "{status:#}");
    assert!(status["reasons"].to_string().contains("no peer") || !status["error"].is_null(), "{status:#}");
}
