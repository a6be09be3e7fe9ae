//! The laboratory: nodes, pods and networks made of network namespaces, and the product run inside them.
//!
//! Three kinds of node, from the small to the large:
//!
//! - a [`Node`] has a state directory and [`Pod`]s with one veth each: for what the product is told and writes down;
//! - a [`Topology`] is a node, a pod and a peer as a main plugin would connect them, with a [`Sandbox`] on the pod: for
//!   what passes;
//! - a [`RuntimeNode`] has mounts and processes of its own: for real container runtimes.
//!
//! The plugin is called by [`Call`], the commands by [`quarantine`], and both give back a [`Run`]. Everything made here
//! is torn down by Drop, also when the test panics. Nothing here touches the machine's own network namespace.

mod agent;
mod call;
mod cgroup;
pub(crate) mod crowd;
pub(crate) mod member;
mod monitor;
mod node;
mod run;
pub(crate) mod runtime_node;
mod sandbox;
pub(crate) mod scene;
mod state;
mod tables;
pub(crate) mod topology;
pub(crate) mod traffic;

pub(crate) use agent::Agent;
pub(crate) use call::{Call, Stdin, program, quarantine, quarantine_on_a_bad_disk};
pub(crate) use cgroup::Cgroup;
pub(crate) use crowd::Crowd;
pub(crate) use monitor::Monitor;
pub(crate) use netlab::{Mac, Netns};
pub(crate) use node::{Node, Pod, lone_interface};
pub(crate) use run::{Run, Running};
pub(crate) use runtime_node::RuntimeNode;
pub(crate) use sandbox::Sandbox;
pub(crate) use state::{StateDir, tree};
pub(crate) use tables::{Tables, both_tables, rules, ruleset, tables};
pub(crate) use topology::{Kind, Topology};

use std::io::Write;
use std::time::{Duration, Instant};

/// Long enough for anything that happens at all, on a machine that is busy with other tests.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Says what this machine cannot show, whether the test passes or not: past the test runner, which keeps what it prints.
pub(crate) fn not_tried(what: &str) {
    let _ = writeln!(std::io::stderr(), "not tried: {what}");
}

/// Waits until `condition` holds; false when it does not within `limit`.
pub(crate) fn eventually(limit: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        if condition() {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(2));
    }
}
