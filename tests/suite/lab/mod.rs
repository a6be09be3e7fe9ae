//! The laboratory: nodes, pods and networks made of network namespaces, and the product run inside them.
//!
//! A test builds a [`Topology`], puts a [`Sandbox`] on its pod, and looks at what passes. Everything made here is
//! torn down by Drop, also when the test panics. Nothing here touches the machine's own network namespace.

pub(crate) mod crowd;
mod netns;
pub(crate) mod node;
mod product;
mod sandbox;
pub(crate) mod scene;
pub(crate) mod topology;
pub(crate) mod traffic;

pub(crate) use crowd::Crowd;
pub(crate) use netns::Netns;
pub(crate) use node::Node;
pub(crate) use product::{Invocation, Run, program, quarantine};
pub(crate) use sandbox::Sandbox;
pub(crate) use topology::{Kind, Mac, Topology};

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
