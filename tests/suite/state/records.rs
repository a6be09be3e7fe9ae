//! Attachment records that are damaged, foreign, or gone.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::stat::Mode;
use serde_json::{Value, json};

use crate::lab::{Node, Tables};

/// What can befall the file of a record.
type Damage = (&'static str, fn(&Path));

fn damages() -> [Damage; 6] {
    [
        ("junk", |path| std::fs::write(path, "junk").unwrap()),
        ("empty", |path| std::fs::write(path, "").unwrap()),
        ("another shape", |path| std::fs::write(path, "[7]").unwrap()),
        ("cut off", |path| {
            let text = std::fs::read(path).unwrap();
            std::fs::write(path, &text[..text.len() / 2]).unwrap();
        }),
        ("a directory", |path| {
            std::fs::remove_file(path).unwrap();
            std::fs::create_dir(path).unwrap();
        }),
        ("a FIFO", |path| {
            std::fs::remove_file(path).unwrap();
            nix::unistd::mkfifo(path, Mode::S_IRWXU).unwrap();
        }),
    ]
}

/// A record that cannot be read hangs nobody and does not keep the others from being served; DEL gets rid of it.
#[test]
fn a_damaged_record_hurts_nobody_else() {
    for (what, damage) in damages() {
        let node = Node::new();
        let (hurt, other) = (node.pod(), node.pod());
        node.plugin_as("ADD", &hurt, "uid-1").result();
        node.plugin_as("ADD", &other, "uid-2").result();
        damage(&node.record_path(&hurt));
        node.mark("uid-2", "");
        // Whether it says that all is well is `sync`'s own business; it does what it can.
        let sync = node.try_sync();
        assert!(!sync.stderr.contains("panicked"), "{what}: {sync:?}");
        assert_eq!(other.tables(), Tables::Isolated, "{what}: {sync:?}");
        node.plugin_as("CHECK", &other, "uid-2").succeeded_silently();
        node.call("STATUS").run();
        let third = node.pod();
        node.plugin_as("ADD", &third, "uid-3").result();
        let del = node.plugin_as("DEL", &hurt, "uid-1");
        if what == "a directory" {
            // No crash leaves one: whoever made it has to be told.
            assert!(del.status.success() || del.error().code == 5, "{del:?}");
        } else {
            del.succeeded_silently();
            assert!(!node.record_path(&hurt).exists(), "{what}");
        }
        // Without its record nobody knows whose tables those are; dormant, they go with the netns.
        assert_ne!(hurt.tables(), Tables::Isolated, "{what}");
    }
}

/// A new ADD writes a damaged record anew.
#[test]
fn add_mends_a_damaged_record() {
    for (what, damage) in damages() {
        if what == "a directory" {
            continue; // nobody's crash leaves one
        }
        let node = Node::new();
        let pod = node.pod();
        node.plugin_as("ADD", &pod, "uid-1").result();
        damage(&node.record_path(&pod));
        node.plugin_as("ADD", &pod, "uid-1").result();
        node.plugin_as("CHECK", &pod, "uid-1").succeeded_silently();
        let record: Value = serde_json::from_slice(&std::fs::read(node.record_path(&pod)).unwrap()).unwrap();
        assert!(record.is_object(), "{what}");
    }
}

/// Strange things among the records: hidden files, files where directories should be, names that are no IDs.
#[test]
fn strangers_among_the_records_hurt_nobody() {
    let node = Node::new();
    let pod = node.pod();
    node.plugin_as("ADD", &pod, "uid-1").result();
    let records = node.state_dir().join("attachments");
    std::fs::write(records.join("file"), "").unwrap();
    std::fs::write(records.join(".hidden"), "").unwrap();
    std::fs::create_dir(records.join("empty")).unwrap();
    std::fs::create_dir_all(records.join("no id/eth0.json")).unwrap();
    std::fs::write(records.join(&pod.id).join("README"), "x").unwrap();
    std::fs::write(records.join(&pod.id).join(".eth0.json.tmp"), "x").unwrap();
    symlink("/nowhere", records.join("link")).unwrap();
    node.mark("uid-1", "");
    node.plugin_as("CHECK", &pod, "uid-1").succeeded_silently();
    assert_eq!(pod.tables(), Tables::Isolated);
    node.remove_mark("uid-1");
    let mut config = node.config();
    config["cni.dev/valid-attachments"] = json!([{ "containerID": pod.id, "ifname": "eth0" }]);
    node.call("GC").config(config).run().succeeded_silently();
    assert!(node.record_path(&pod).exists());
    node.plugin_as("DEL", &pod, "uid-1").succeeded_silently();
    assert_eq!(pod.tables(), Tables::Absent);
}

/// Also when an assertion fails, or the scope would wait for its other thread for ever.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Records and marks come and go while every verb runs: each call ends, with success or one clean error, and once it
/// is quiet everything works.
#[test]
fn files_vanish_while_it_runs() {
    let node = Node::new();
    let pods = [node.pod(), node.pod()];
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (node, pods, done) = (&node, &pods, &done);
        scope.spawn(move || {
            while !done.load(Ordering::Relaxed) {
                for pod in pods {
                    let _ = std::fs::write(node.mark_path(&pod.id), "");
                    let _ = std::fs::remove_file(node.record_path(pod));
                    let _ = std::fs::remove_dir(node.record_path(pod).parent().unwrap());
                    let _ = std::fs::remove_file(node.mark_path(&pod.id));
                    std::thread::yield_now();
                }
            }
        });
        let _ends_it = SetOnDrop(done);
        for _ in 0..15 {
            for verb in ["ADD", "CHECK", "GC", "DEL"] {
                let pod = &pods[0];
                let mut config = pod.chained_config(node);
                config["cni.dev/valid-attachments"] = json!([{ "containerID": pod.id, "ifname": "eth0" }]);
                let outcome = node.call(verb).sandbox(pod).pod_uid("uid-1").config(config).run();
                assert!(!outcome.stderr.contains("panicked"), "{verb}: {outcome:?}");
                if verb == "DEL" || verb == "GC" {
                    outcome.succeeded_silently();
                } else if !outcome.status.success() {
                    assert!(outcome.error().code >= 100, "{verb}: {outcome:?}");
                }
            }
        }
    });
    for pod in &pods {
        let _ = std::fs::remove_file(node.mark_path(&pod.id));
        node.plugin_as("ADD", pod, "uid-9").result();
        node.plugin_as("CHECK", pod, "uid-9").succeeded_silently();
        node.plugin_as("DEL", pod, "uid-9").succeeded_silently();
        assert_eq!(pod.tables(), Tables::Absent);
    }
}
