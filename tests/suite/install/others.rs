//! What others change in between, or at the same time.

use super::*;

#[test]
fn changes_that_others_made_in_between_stay() {
    let node = Node::with("10-a.conflist", plain());
    node.install();
    let theirs = |text: &str| {
        text.replace("\"name\": \"n\"", "\"name\": \"other\"")
            .replace("\n  ]", ",\n    { \"type\": \"istio-cni\" }\n  ]")
    };
    node.write("net.d/10-a.conflist", theirs(&node.read("net.d/10-a.conflist")));
    let again = node.install();
    assert!(again.is_empty());
    assert!(again.notes().iter().any(|note| note.contains("istio-cni runs after")), "{:?}", again.notes());
    drop(again);
    let plan = node.uninstall();
    assert!(plan.notes().iter().any(|note| note.contains("only the entry is taken out")), "{:?}", plan.notes());
    assert_eq!(node.read("net.d/10-a.conflist"), theirs(plain()));
    assert!(!node.path("net.d/10-a.conflist.before-quarantine").exists());
}

#[test]
fn a_converted_file_that_others_changed_stays_a_chain() {
    let node = Node::with("10-a.conf", SINGLE);
    node.install();
    let list = node.read("net.d/10-a.conflist");
    node.write("net.d/10-a.conflist", list.replace("bridge", "ptp"));
    node.uninstall();
    let left: Value = serde_json::from_str(&node.read("net.d/10-a.conflist")).unwrap();
    assert_eq!(left["plugins"].as_array().unwrap().len(), 1);
    assert_eq!(left["plugins"][0]["type"], "ptp");
    assert!(!node.path("net.d/10-a.conf").exists());
}

#[test]
fn a_file_that_was_written_anew_is_edited_again_and_stays_when_uninstalled() {
    let node = Node::with("10-a.conflist", plain());
    node.install();
    let anew = plain().replace("bridge", "ptp");
    node.write("net.d/10-a.conflist", &anew);
    assert!(!node.install().is_empty());
    node.uninstall();
    assert_eq!(node.read("net.d/10-a.conflist"), anew, "the newer one is what is restored");

    node.install();
    node.write("net.d/10-a.conflist", plain());
    let plan = node.uninstall();
    assert!(plan.notes().iter().any(|note| note.contains("written anew")), "{:?}", plan.notes());
    drop(plan);
    assert_eq!(node.read("net.d/10-a.conflist"), plain());
    assert!(!node.path("net.d/10-a.conflist.before-quarantine").exists());

    // The same where a single plugin had become a chain.
    let node = Node::with("10-a.conf", SINGLE);
    node.install();
    node.write("net.d/10-a.conf", SINGLE.replace("bridge", "ptp"));
    node.uninstall();
    assert_eq!(node.read("net.d/10-a.conf"), SINGLE.replace("bridge", "ptp"));
    assert!(!node.path("net.d/10-a.conflist").exists());
}

#[test]
fn a_file_that_is_written_anew_while_it_is_edited_is_not_overwritten() {
    let node = Node::with("10-a.conflist", plain());
    let plan = plan_install(&node.installing()).unwrap();
    let anew = plain().replace("bridge", "ptp");
    node.write("net.d/10-a.conflist", &anew);
    let error = plan.apply().unwrap_err().to_string();
    assert!(error.contains("changed meanwhile") && error.contains("run the same command again"), "{error}");
    drop(plan);
    assert_eq!(node.read("net.d/10-a.conflist"), anew);
    node.install();
    node.uninstall();
    assert_eq!(node.read("net.d/10-a.conflist"), anew);
    assert!(!node.tree().keys().any(|path| path.to_string_lossy().contains("quarantine-new")));
}

#[test]
fn two_at_once_do_not_mix() {
    let node = Node::with("10-a.conflist", plain());
    let first = plan_install(&node.installing()).unwrap();
    node.refuses(&node.installing(), "another installation");
    first.apply().unwrap();
    drop(first);
    assert!(node.install().is_empty());
}
