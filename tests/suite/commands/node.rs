//! The node as a whole: `list`, damaged records, marks that nothing answers to.

use std::os::unix::fs::PermissionsExt;

use serde_json::json;

use super::{Lab, exits, pod, says};
use crate::lab::Topology;

#[test]
fn list_shows_sandboxes_marks_that_nothing_answers_to_and_damaged_records() {
    let topology = Topology::bridge();
    let lab = Lab::new(&topology);
    says(&exits(lab.run(&["list"]), 0).stdout, &["no sandbox has a record"]);
    lab.add("c0123456789abcdef", &pod("web", "uid-1"));
    exits(lab.run(&["isolate", "c01", "--actor", "alice"]), 0);
    lab.write_mark("nobody-yet", r#"{"reason": "told by threat intelligence"}"#);
    let damaged = lab.state.path().join("attachments/broken");
    std::fs::create_dir(&damaged).unwrap();
    std::fs::set_permissions(&damaged, std::fs::Permissions::from_mode(0o700)).unwrap();
    std::fs::write(damaged.join("eth0.json"), "{").unwrap();
    let run = exits(lab.run(&["list"]), 0);
    says(
        &run.stdout,
        &[
            "c0123456789a ",
            "shop/web",
            "uid-1",
            "isolated",
            "alice",
            "nobody-yet",
            "threat intelligence",
            "broken/eth0.json",
        ],
    );
    let node = lab.run(&["list", "-o", "json"]).json();
    assert_eq!(node["unanswered"][0]["key"], "nobody-yet");
    assert_eq!(node["damaged"][0]["path"], json!(damaged.join("eth0.json")));
    // What it is of cannot be reached, so nothing is claimed of the node.
    exits(lab.run(&["status"]), 1);
    assert_eq!(lab.run(&["status", "broken", "-o", "json"]).json()["verdict"], "unknown");
    exits(lab.run(&["status", "c01"]), 0);
}
