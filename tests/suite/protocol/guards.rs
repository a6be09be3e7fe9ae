//! Guards that nobody has a record of, at GC and `sync`: removed where nothing is left of what they guarded, and only then; what
//! cannot be listed is not nothing.

use std::fs;
use std::os::unix::fs::symlink;

use serde_json::json;

use crate::lab::{Node, Pod, Run};

fn gc(node: &Node) -> Run {
    let mut config = node.config();
    config["cni.dev/valid-attachments"] = json!([]);
    node.call("GC").config(config).run()
}

fn isolated(node: &Node) -> Pod {
    let pod = node.pod();
    node.plugin("ADD", &pod).result();
    node.mark(&pod.id, "");
    node.sync();
    assert!(is_guarded(node, &pod), "the lab");
    pod
}

fn is_guarded(node: &Node, pod: &Pod) -> bool {
    node.netns.sh("nft list tables netdev").contains(&format!("quarantine-{}", pod.id))
}

/// A GC that could not list the records took every guard for one that nobody has a record of, and removed those whose device was not
/// there: of a pod whose end had been moved away, say.
#[test]
fn records_that_cannot_be_listed_are_not_none() {
    for is_sync in [false, true] {
        let node = Node::new();
        let pod = isolated(&node);
        node.netns.ip(&format!("link set {} netns {}", pod.host_end(), pod.netns.name()));
        let (attachments, away) = (node.state_dir().join("attachments"), node.state_dir().join(".away"));
        fs::rename(&attachments, &away).unwrap();
        symlink("attachments", &attachments).unwrap();
        let outcome = if is_sync { node.try_sync() } else { gc(&node) };
        assert!(!outcome.status.success(), "it says nothing of it: {outcome:#?}");
        assert!(is_guarded(&node, &pod), "sync: {is_sync}");
        fs::remove_file(&attachments).unwrap();
        fs::rename(&away, &attachments).unwrap();
        let _ = node.try_sync();
        assert!(is_guarded(&node, &pod), "its record is there again");
    }
}

/// One of a pod that ended without a DEL, with its record lost, goes; one whose interface is there stays.
#[test]
fn guards_of_nothing_go_and_no_others() {
    for is_sync in [false, true] {
        let node = Node::new();
        let (gone, here) = (isolated(&node), isolated(&node));
        for pod in [&gone, &here] {
            fs::remove_file(node.mark_path(&pod.id)).unwrap();
            fs::remove_dir_all(node.state_dir().join("attachments").join(&pod.id)).unwrap();
        }
        node.netns.ip(&format!("link del {}", gone.host_end()));
        if is_sync {
            node.sync();
        } else {
            gc(&node).succeeded_silently();
        }
        assert!(!is_guarded(&node, &gone), "sync: {is_sync}");
        assert!(is_guarded(&node, &here), "sync: {is_sync}");
    }
}
