//! Who is meant: container IDs and their beginnings, UIDs, names, and pods that are yet to come.

use super::{Lab, Place, exits, pod, says};
use crate::lab::Topology;
use serde_json::json;

const UID: &str = "0f9d6b52-6f0a-4a43-9d1c-0123456789ab";
const OTHER_UID: &str = "1f9d6b52-6f0a-4a43-9d1c-0123456789ab";

#[test]
fn every_name_of_a_sandbox_isolates_it_and_the_mark_is_its_uid() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("abc123", &pod("web", UID));
    for word in ["abc123", "abc", UID, "shop/web"] {
        let run = exits(lab.run(&["isolate", word]), 0);
        says(&run.stdout, &["abc123", "shop/web", "contained"]);
        assert_eq!(lab.marks(), [UID], "{word}");
        assert_eq!(lab.status(word)["verdict"], "contained", "{word}");
        says(&exits(lab.run(&["release", word]), 0).stdout, &[UID, "released"]);
        assert_eq!(lab.marks(), [""; 0], "{word}");
    }
}

#[test]
fn a_sandbox_without_a_uid_is_marked_by_its_container_id() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("abc123", "");
    exits(lab.run(&["isolate", "abc"]), 0);
    assert_eq!(lab.marks(), ["abc123"]);
}

/// The index is for speed: neither a lie in it, nor a gap, nor that it is gone, has the wrong pod isolated, or none.
#[test]
fn an_index_that_lies_or_is_lost_misleads_nobody() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("abc123", &pod("web", UID));
    lab.invoke("ADD", Place::Peer, "abc456", &pod("db", OTHER_UID), &json!({})).ok();
    let index = lab.state.path().join(".index");
    let put = |lines: &[String]| std::fs::write(&index, lines.concat()).unwrap();
    let lines = || std::fs::read_to_string(&index).unwrap_or_default();
    let line = |id: &str, name: &str, uid: &str| format!("{id} shop {name} {uid}\n");
    let (web, db) = (line("abc123", "web", UID), line("abc456", "db", OTHER_UID));
    assert_eq!(lines(), format!("{web}{db}"), "as their ADDs wrote it");
    let only_web_is_isolated_by = |word: &str, what: &str| {
        says(&exits(lab.run(&["isolate", word]), 0).stdout, &["abc123", "shop/web", "contained"]);
        assert_eq!(lab.marks(), [UID], "{what}");
        assert_eq!(lab.status("abc456")["state"], "released", "{what}");
        exits(lab.run(&["release", word]), 0);
        assert_eq!(lab.status("abc123")["state"], "released", "{what}");
    };
    for word in [UID, "shop/web", "abc1"] {
        only_web_is_isolated_by(word, "a true index");
        put(&[line("abc123", "db", OTHER_UID), line("abc456", "web", UID)]);
        only_web_is_isolated_by(word, "an index that names each for the other");
        put(&[web.clone(), line("abc123", "db", OTHER_UID), db.clone()]);
        only_web_is_isolated_by(word, "one that disagrees with itself");
        put(&["abc123 shop web\n".to_owned(), "\0\0".to_owned(), db.clone()]);
        only_web_is_isolated_by(word, "one that is damaged");
        put(&[line("gone", "web", UID), db.clone()]);
        only_web_is_isolated_by(word, "one without it");
        assert!(lines().ends_with(&web), "whoever read the record has put it back");
        std::fs::remove_file(&index).unwrap();
        only_web_is_isolated_by(word, "none");
        assert_eq!(lines(), format!("{web}{db}"));
        std::fs::remove_file(&index).unwrap();
        std::fs::create_dir(&index).unwrap();
        only_web_is_isolated_by(word, "something else in its place");
        std::fs::remove_dir(&index).unwrap();
    }
    exits(lab.run(&["status"]), 0);
    assert_eq!(lines(), format!("{web}{db}"), "whoever reads all records writes it");
    exits(lab.run(&["status"]), 0);
    assert_eq!(lines(), format!("{web}{db}"), "once");
}

#[test]
fn an_ambiguous_beginning_lists_the_candidates_and_changes_nothing() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("abc123", &pod("web", UID));
    lab.invoke("ADD", Place::Peer, "abc1234", &pod("db", OTHER_UID), &json!({})).ok();
    for verb in ["isolate", "release", "status"] {
        let run = exits(lab.run(&[verb, "abc"]), 2);
        says(&run.stderr, &["2 container IDs", "abc123  shop/web", "abc1234  shop/db"]);
    }
    assert_eq!(lab.marks(), [""; 0]);
    // Exactly one's ID is that one's, although another begins with it.
    exits(lab.run(&["isolate", "abc123"]), 0);
    assert_eq!(lab.status("abc123")["state"], "isolated");
    assert_eq!(lab.status("abc1234")["state"], "released");
}

#[test]
fn a_word_that_means_nothing_is_refused_with_what_to_do() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("abc123", &pod("web", UID));
    for verb in ["isolate", "release", "status"] {
        says(
            &exits(lab.run(&[verb, "xyz"]), 2).stderr,
            &["\"xyz\"", "quarantine list", "hostNetwork", "namespace/name"],
        );
        says(&exits(lab.run(&[verb, "web"]), 2).stderr, &["namespace", "shop/web"]);
        for malformed in ["../x", "a b", "", "shop/"] {
            says(&exits(lab.run(&[verb, malformed]), 2).stderr, &["names no sandbox"]);
        }
    }
    assert_eq!(lab.marks(), [""; 0]);
}

#[test]
fn a_pod_that_is_yet_to_come_is_isolated_before_its_first_packet() {
    for (word, key) in [(UID, UID), ("shop/web", "shop_web")] {
        let topology = Topology::bridge();
        let lab = Lab::new(&topology);
        lab.add("other", "");
        // Not 0, which a script would take for isolated.
        let run = exits(lab.run(&["isolate", word, "--sealed"]), 4);
        exits(lab.run(&["isolate", word, "--sealed", "--wait-for-pod"]), 0);
        says(
            &run.stdout,
            &["marked, and waits", key, "nothing on this node answers to it yet", "hostNetwork", "NOT reached"],
        );
        assert_eq!(lab.marks(), [key]);
        says(&exits(lab.run(&["status", word]), 0).stdout, &["nothing on this node answers", key, "sealed"]);
        let node = lab.run(&["list", "-o", "json"]).json();
        assert_eq!(node["unanswered"][0]["key"], key);
        lab.invoke("ADD", Place::Peer, "new1", &pod("web", UID), &json!({})).ok();
        let status = lab.status(word);
        assert_eq!((&status["containerID"], &status["verdict"]), (&json!("new1"), &json!("contained")));
    }
}

/// Nobody can say that a pod is not here while there are records that cannot be read.
#[test]
fn a_pod_that_a_damaged_record_may_hide_is_not_said_to_be_isolated() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("abc123", &pod("web", UID));
    std::fs::write(lab.state.path().join("attachments/abc123/eth0.json"), "{").unwrap();
    for word in [UID, "shop/web"] {
        let run = exits(lab.run(&["isolate", word]), 1);
        says(&run.stdout, &["It may be here", "abc123", "NOT isolated", "quarantine list"]);
    }
    // The mark stands for when the record is mended.
    assert_eq!(lab.marks(), [UID, "shop_web"]);
}

#[test]
fn any_word_is_a_uid_when_it_is_said_to_be() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("abc123", &pod("web", "uid-1"));
    exits(lab.run(&["isolate", "abc", "--uid"]), 4);
    assert_eq!(lab.marks(), ["abc"]);
    assert_eq!(lab.status("abc123")["state"], "released");
    // The mark stands, so that its name is known from now on.
    says(&exits(lab.run(&["release", "abc", "--uid"]), 0).stdout, &["removed the mark abc"]);
    exits(lab.run(&["isolate", "uid-1", "--uid"]), 0);
    assert_eq!(lab.status("abc123")["verdict"], "contained");
}

/// A pod and its successor of the same name, as a StatefulSet makes them.
#[test]
fn a_name_of_two_pods_means_both_and_they_are_named() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("old", &pod("web", UID));
    lab.invoke("ADD", Place::Peer, "new", &pod("web", OTHER_UID), &json!({})).ok();
    let run = exits(lab.run(&["isolate", "shop/web"]), 0);
    says(&run.stdout, &["2 pods", &format!("{UID} (old)"), &format!("{OTHER_UID} (new)"), "old (shop/web): contained"]);
    assert_eq!(lab.marks(), [UID, OTHER_UID]);
    exits(lab.run(&["release", UID]), 0);
    assert_eq!((&lab.status("old")["state"], &lab.status("new")["state"]), (&json!("released"), &json!("isolated")));
}

#[test]
fn all_sandboxes_of_a_pod_are_isolated_and_released_together() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    lab.add("old", &pod("web", UID));
    lab.invoke("ADD", Place::Peer, "new", &pod("web", UID), &json!({})).ok();
    let run = exits(lab.run(&["isolate", "old"]), 0);
    says(&run.stdout, &["old (shop/web): contained", "new (shop/web): contained"]);
    let both = lab.run(&["status", UID, "-o", "json"]).json();
    assert_eq!(both["sandboxes"].as_array().unwrap().len(), 2);
    let run = exits(lab.run(&["release", "new"]), 0);
    says(&run.stdout, &["old (shop/web), which answered to the same mark: released", "new (shop/web): released"]);
}
