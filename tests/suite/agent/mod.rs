//! `quarantine agent` as an operator meets it: the real process, inside a node's netns, driven by files alone.
//!
//! What it did is read from the kernel; its log is asked only for what the log itself promises. How fast it is, is the
//! bench's business.

mod audit;
mod burst;
mod directory;
mod grace;
mod life;
mod links;
mod marks;
pub(crate) mod metrics;
mod node;
mod recreated;
mod repair;
mod restart;
mod shortage;
mod subscription;

use std::time::{Duration, Instant};

use crate::lab::{Agent, Node, PATIENCE, Pod, Tables, both_tables, ruleset};

/// Waits for something that the kernel is asked about by `nft` or `ip`.
fn await_kernel(mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        // Each look is a process or two, and the cores are shared by all tests.
        std::thread::sleep(Duration::from_millis(15));
    }
    true
}

/// Waits until the pod's tables are in this state; fails with what they are otherwise.
#[track_caller]
fn await_tables(pod: &Pod, wanted: Tables, why: &str) {
    let so = await_kernel(|| both_tables(&ruleset(&pod.netns)) == Some(wanted));
    assert!(so, "{why}: {} is not {wanted:?}:\n{}", pod.id, ruleset(&pod.netns));
}

/// A pod whose ADD has run.
fn added(node: &Node) -> Pod {
    let pod = node.pod();
    node.plugin("ADD", &pod).result();
    pod
}

/// A pod whose ADD has run for the pod `shop/web` with this UID.
fn added_as(node: &Node, uid: &str) -> Pod {
    let pod = node.pod();
    call(node, "ADD", &pod, uid);
    pod
}

/// Calls the plugin for the pod `shop/web` with this UID; it must succeed.
#[track_caller]
fn call(node: &Node, verb: &str, pod: &Pod, uid: &str) {
    node.plugin_as(verb, pod, uid).ok();
}
