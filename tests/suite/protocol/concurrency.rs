//! docs/protocol.md, part I: many calls at once, and calls that are killed.

use std::time::{Duration, Instant};

use crate::lab::{Node, Pod, Tables, ruleset};

/// I37: twenty sandboxes at once: ADD, CHECK, DEL.
#[test]
fn twenty_sandboxes_at_once() {
    let node = Node::new();
    let pods: Vec<Pod> = (0..20).map(|_| node.pod()).collect();
    for (index, pod) in pods.iter().enumerate() {
        if index % 3 == 0 {
            node.mark(&pod.id, "");
        }
    }
    for verb in ["ADD", "CHECK", "DEL"] {
        let calls: Vec<_> = pods
            .iter()
            .map(|pod| {
                (
                    pod,
                    node.call(verb)
                        .sandbox(pod)
                        .pod_uid(&format!("uid-{}", pod.id))
                        .config(pod.chained_config(&node))
                        .spawn(),
                )
            })
            .collect();
        for (index, (pod, call)) in calls.into_iter().enumerate() {
            let outcome = call.wait();
            assert!(outcome.status.success(), "{verb} {}: {outcome:?}", pod.id);
            let expected = match (index % 3, verb) {
                (0, _) => Tables::Isolated,
                (_, "DEL") => Tables::Absent,
                _ => Tables::Released,
            };
            assert_eq!(pod.tables(), expected, "{verb} {}", pod.id);
        }
    }
    assert_eq!(node.records(), [""; 0]);
    assert_eq!(ruleset(&node.netns), "");
}

/// I37: twenty sandboxes, each going through its life on its own, GC, STATUS and sync among them.
#[test]
fn twenty_lives_at_once() {
    let node = Node::new();
    let pods: Vec<Pod> = (0..20).map(|_| node.pod()).collect();
    std::thread::scope(|scope| {
        for pod in &pods {
            let node = &node;
            scope.spawn(move || {
                for _ in 0..2 {
                    node.plugin("ADD", pod).result();
                    node.plugin("CHECK", pod).succeeded_silently();
                    node.call("STATUS").run().succeeded_silently();
                    let mut config = node.config();
                    config["name"] = "othernet".into();
                    config["cni.dev/valid-attachments"] = serde_json::json!([]);
                    node.call("GC").config(config).run().succeeded_silently();
                    node.plugin("DEL", pod).succeeded_silently();
                }
            });
        }
    });
    node.is_untouched();
    pods.iter().for_each(Pod::is_untouched);
}

/// The same attachment from many sides at once: no call hangs or breaks another; what stands at the end is whole.
#[test]
fn one_sandbox_from_many_sides() {
    let node = Node::new();
    let pod = node.pod();
    for _ in 0..3 {
        let calls: Vec<_> = ["ADD", "CHECK", "ADD", "DEL", "ADD", "CHECK", "DEL", "ADD"]
            .iter()
            .map(|verb| (*verb, node.call(verb).sandbox(&pod).config(pod.chained_config(&node)).spawn()))
            .collect();
        for (verb, call) in calls {
            let outcome = call.wait();
            // CHECK may run between a DEL and an ADD.
            assert!(
                outcome.status.success() || (verb == "CHECK" && outcome.error().code >= 100),
                "{verb}: {outcome:?}"
            );
        }
        node.plugin("ADD", &pod).result();
        node.plugin("CHECK", &pod).succeeded_silently();
        node.plugin("DEL", &pod).succeeded_silently();
        node.is_untouched();
        pod.is_untouched();
    }
}

/// Kills `verb` at `steps` points that lie evenly over the time that it takes here, and a little beyond; `after` each.
fn kill_at_every_point(node: &Node, pod: &Pod, verb: &str, steps: u32, prepare: impl Fn(), after: impl Fn(u32)) -> u32 {
    let spawn = || node.call(verb).sandbox(pod).pod_uid("uid-1").config(pod.chained_config(node)).spawn();
    prepare();
    let started = Instant::now();
    spawn().wait();
    let duration = started.elapsed().max(Duration::from_millis(2));
    after(0);
    let mut killed = 0;
    for step in 0..steps {
        prepare();
        let started = Instant::now();
        let mut call = spawn();
        // The point in time is what is varied here; there is no event to wait for.
        std::thread::sleep((duration * step * 5 / 4 / steps).saturating_sub(started.elapsed()));
        call.kill();
        killed += u32::from(call.wait().status.code().is_none());
        after(step);
    }
    killed
}

/// I37: ADD killed at 200 points. DEL then leaves nothing, and a new ADD works and passes CHECK.
#[test]
fn a_killed_add_leaves_nothing_after_del() {
    let node = Node::new();
    let pod = node.pod();
    let call = |verb: &str| node.call(verb).sandbox(&pod).pod_uid("uid-1").config(pod.chained_config(&node)).run();
    let killed = kill_at_every_point(
        &node,
        &pod,
        "ADD",
        200,
        || (),
        |step| {
            call("DEL").succeeded_silently();
            node.is_untouched();
            pod.is_untouched();
            if step % 4 == 0 {
                call("ADD").result();
                call("CHECK").succeeded_silently();
                call("DEL").succeeded_silently();
                node.is_untouched();
                pod.is_untouched();
            }
        },
    );
    assert!(killed >= 50, "only {killed} of 200 were killed before they had ended");
}

/// I37: the same for ADD of a marked sandbox. Tried again at once, without a DEL between, it is closed; after DEL there
/// is no record and no host guard.
#[test]
fn a_killed_add_of_a_marked_sandbox() {
    let node = Node::new();
    let pod = node.pod();
    node.mark("uid-1", "");
    let call = |verb: &str| node.call(verb).sandbox(&pod).pod_uid("uid-1").config(pod.chained_config(&node)).run();
    kill_at_every_point(
        &node,
        &pod,
        "ADD",
        80,
        || (),
        |step| {
            if step % 2 == 0 {
                call("ADD").result();
                assert_eq!(pod.tables(), Tables::Isolated, "step {step}");
                call("CHECK").succeeded_silently();
            }
            call("DEL").succeeded_silently();
            assert_eq!(node.records(), [""; 0], "step {step}");
            assert_eq!(ruleset(&node.netns), "", "step {step}");
            assert_eq!(node.marks(), ["uid-1"], "step {step}");
            pod.netns.sh("nft flush ruleset");
        },
    );
}

/// I37: DEL killed; the next DEL cleans up. The mark of an isolated sandbox survives, in one form or the other.
#[test]
fn a_killed_del_can_be_repeated() {
    let node = Node::new();
    let pod = node.pod();
    let call = |verb: &str| node.call(verb).sandbox(&pod).pod_uid("uid-1").config(pod.chained_config(&node)).run();
    let clear = || {
        for mark in node.marks() {
            std::fs::remove_file(node.mark_path(&mark)).unwrap();
        }
    };
    for marked in [false, true] {
        let prepare = || {
            if marked {
                node.mark(&pod.id, "");
            }
            call("ADD").result();
        };
        kill_at_every_point(&node, &pod, "DEL", 60, prepare, |step| {
            assert_eq!(!node.marks().is_empty(), marked, "step {step}");
            call("DEL").succeeded_silently();
            assert_eq!(node.records(), [""; 0], "step {step}");
            assert_eq!(ruleset(&node.netns), "");
            if marked {
                assert_eq!(node.marks(), ["uid-1"], "step {step}");
                assert_eq!(pod.tables(), Tables::Isolated);
                clear();
                pod.netns.sh("nft flush ruleset");
            } else {
                pod.is_untouched();
            }
        });
    }
}

/// I37: CHECK killed while it wakes the sandbox; the next CHECK finishes it.
#[test]
fn a_killed_check_can_be_repeated() {
    let node = Node::new();
    let pod = node.pod();
    let call = |verb: &str| node.call(verb).sandbox(&pod).pod_uid("uid-1").config(pod.chained_config(&node)).run();
    call("ADD").result();
    let prepare = || {
        let _ = std::fs::remove_file(node.mark_path("uid-1"));
        call("CHECK").succeeded_silently();
        node.mark("uid-1", "");
    };
    kill_at_every_point(&node, &pod, "CHECK", 60, prepare, |step| {
        call("CHECK").succeeded_silently();
        assert_eq!(pod.tables(), Tables::Isolated, "step {step}");
    });
}
