//! Programs that come off, pods that end, and pods that come later.

use std::fs;
use std::path::PathBuf;

use super::kubelet::Sort;
use super::{World, codes};
use crate::lab::traffic::bpf::detach;

/// Where the programs of a pod are pinned.
pub(super) fn pins(uid: &str) -> Option<PathBuf> {
    let nodes = fs::read_dir("/sys/fs/bpf/quarantine").into_iter().flatten().flatten();
    nodes.map(|node| node.path().join(format!("host:{uid}"))).find(|pins| pins.is_dir())
}

#[test]
fn a_program_that_came_off_is_noticed_and_put_back() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let _process = pod.process(&[Sort::Udp]);
    world.isolate(&pod.uid);
    let pins = pins(&pod.uid).unwrap();
    for (what, both) in [("in", false), ("out", false), ("in", true)] {
        let names: &[&str] = if both { &["in", "out"] } else { &[what] };
        for name in names {
            if both {
                detach(&pins.join(format!("link-{name}")));
            } else {
                fs::remove_file(pins.join(format!("link-{name}"))).unwrap();
            }
        }
        let status = world.status(&pod.uid);
        assert_eq!(status["verdict"], if both { "open" } else { "partial" });
        assert_eq!(codes(&status), vec!["ebpf-missing"; names.len()]);
        assert_eq!(status["layers"]["cgroup"], false);
        world.quarantine(&["sync"]).ok();
        assert_eq!(world.verdict(&pod.uid), "contained");
    }
    // All that is known of it is gone, but for the mark.
    for pin in fs::read_dir(&pins).unwrap() {
        fs::remove_file(pin.unwrap().path()).unwrap();
    }
    fs::remove_dir(&pins).unwrap();
    assert_eq!(world.verdict(&pod.uid), "open");
    world.quarantine(&["sync"]).ok();
    assert_eq!(world.verdict(&pod.uid), "contained");
}

#[test]
fn a_pod_that_has_ended_leaves_nothing_and_one_that_comes_again_is_isolated() {
    let world = World::new();
    let pod = world.kubelet.pod();
    let process = pod.process(&[]);
    world.isolate(&pod.uid);
    assert!(pins(&pod.uid).is_some());
    drop(process);
    world.quarantine(&["sync"]).ok();
    assert!(pins(&pod.uid).is_some(), "its cgroup is there, and its containers may start again");
    assert_eq!(world.verdict(&pod.uid), "contained");
    pod.end();
    world.quarantine(&["sync"]).ok();
    assert_eq!(pins(&pod.uid), None);
    let listed = world.quarantine(&["list", "-o", "json"]).json();
    assert_eq!(listed["unanswered"][0]["key"], pod.uid.as_str(), "{listed:#}");

    let again = world.kubelet.pod_of(&pod.uid);
    let _process = again.process(&[]);
    world.quarantine(&["sync"]).ok();
    assert_eq!(world.verdict(&pod.uid), "contained");
    let listed = world.quarantine(&["list", "-o", "json"]).json();
    assert_eq!(listed["unanswered"].as_array().unwrap().len(), 0);
    assert_eq!(listed["hostPods"][0]["kind"], "host-network");
    world.state.remove_mark(&pod.uid);
    assert_eq!(world.quarantine(&["status"]).status.code(), Some(1), "programs stand that no mark asks for");
    world.quarantine(&["sync"]).ok();
    assert_eq!(pins(&pod.uid), None);
    world.quarantine(&["status"]).ok();
}
