//! What is in a collection, and when there is one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::json;

use super::{
    BUDGET_SECONDS, Collection, await_collections, collections, process_with_connection, sha256_of, with_evidence,
};
use crate::lab::topology::PEER4;
use crate::lab::{Agent, Sandbox, Topology};

#[test]
fn the_process_that_holds_a_connection_is_named_after_the_cut() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    topology.pod.sh("nft add table inet attackers; nft add chain inet attackers hidden; \
                     nft add rule inet attackers hidden counter drop");
    let (process, port, _peer) = process_with_connection(&topology);
    let run = with_evidence(&sandbox, &["isolate", sandbox.id()]).ok();
    assert!(run.stdout.contains("contained"), "{run:?}");
    let collection = Collection(await_collections(&sandbox, 1).remove(0));

    let sockets = collection.items("sockets.json");
    let remote = |socket: &&serde_json::Value| {
        socket["kind"] == "tcp" && socket["remoteAddress"] == json!(PEER4) && socket["remotePort"] == port
    };
    let socket = sockets.iter().find(remote).unwrap_or_else(|| panic!("{sockets:#?}"));
    assert_eq!(socket["state"], "established");
    assert_eq!(socket["owners"], json!([{ "pid": process.pid(), "file": 0 }]));

    let found = collection.process(process.pid());
    let sleep = fs::read_link(format!("/proc/{}/exe", process.pid())).unwrap();
    assert_eq!(found["belongs"], "network-namespace");
    assert_eq!((&found["name"], &found["arguments"]), (&json!("sleep"), &json!(["sleep", "1000"])));
    assert_eq!(found["executable"]["sha256"], json!(sha256_of(&sleep)));
    assert_eq!(found["executable"]["kind"], "file");
    assert_eq!(found["credentials"]["users"], json!([0, 0, 0, 0]));
    let names = found["environmentNames"].as_array().unwrap();
    assert!(names.contains(&json!("PASSWORD")), "{names:?}");
    assert!(!fs::read_to_string(collection.0.join("processes.json")).unwrap().contains("hunter2"), "a secret was kept");

    let network = collection.document("network.json");
    assert!(network["links"].as_array().unwrap().iter().any(|link| link["name"] == "eth0"), "{network:#}");
    assert_eq!(network["hostEnds"].as_array().unwrap().len(), 1);
    let neighbours = network["neighbours"].as_array().unwrap();
    assert!(neighbours.iter().any(|neighbour| neighbour["address"] == json!(PEER4)), "{neighbours:?}");
    let rules = collection.document("nftables.json");
    let hidden =
        |rule: &serde_json::Value| rule["table"] == "attackers" && rule["expressions"].as_array().unwrap().len() == 2;
    assert!(rules["rules"].as_array().unwrap().iter().any(hidden), "{rules:#}");
    assert_eq!(collection.document("sandbox.json")["records"][0]["containerID"], sandbox.id());
    let dns = collection.document("dns.json");
    let paths: Vec<_> = dns["files"].as_array().unwrap().iter().map(|file| file["path"].as_str().unwrap()).collect();
    assert!(paths.contains(&"/etc/hosts"), "{dns:#}");

    let manifest = collection.document("manifest.json");
    assert_eq!((&manifest["sequence"], &manifest["predecessor"]), (&json!(1), &json!(null)));
    let boot_id = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    assert_eq!(manifest["clock"]["bootID"], boot_id.trim());
    for directory in [&collection.0, collection.0.parent().unwrap(), &Path::new(sandbox.state_dir()).join("evidence")] {
        assert_eq!(fs::metadata(directory).unwrap().permissions().mode() & 0o7777, 0o700, "{}", directory.display());
    }
}

#[test]
fn a_cut_is_kept_once_whoever_makes_it() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let state_dir = sandbox.state_dir();
    let agent =
        Agent::spawn(&topology.node, Path::new(state_dir), &[("QUARANTINE_EVIDENCE", &BUDGET_SECONDS.to_string())])
            .ready();
    sandbox.write_mark("");
    let line = agent.await_line(&["event=evidence", sandbox.id(), "sequence=1", "manifest="]);
    assert!(line.contains("missing="), "{line}");
    // Another policy is no other cut, nor is what the command finds done.
    sandbox.write_mark(r#"{"policy": {"probes": false}}"#);
    agent.await_line(&["event=updated"]);
    with_evidence(&sandbox, &["isolate", sandbox.id()]);
    with_evidence(&sandbox, &["release", sandbox.id()]).ok();
    drop(agent);
    // Without an agent, by the one that a timer starts, which does not leave before it is done.
    sandbox.write_mark("");
    with_evidence(&sandbox, &["sync"]).ok();
    assert_eq!(collections(state_dir, sandbox.id()).len(), 2);
    with_evidence(&sandbox, &["sync"]).ok();
    assert_eq!(collections(state_dir, sandbox.id()).len(), 2);
}

#[test]
fn nothing_is_collected_where_it_is_not_wanted() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    assert!(!Path::new(sandbox.state_dir()).join("evidence").exists());
    let run = sandbox.quarantine(&["evidence"]).ok();
    assert_eq!(run.stdout, "nothing was collected\n");
}

#[test]
fn a_pod_that_has_ended_leaves_its_evidence() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    Collection::collect(&sandbox, &[]);
    sandbox.release();
    sandbox.del();
    for name in [sandbox.id(), "lab/web"] {
        let run = sandbox.quarantine(&["evidence", name]).ok();
        assert!(run.stdout.contains("lab/web") && run.stdout.contains(sandbox.id()), "{run:?}");
    }
    let run = sandbox.quarantine(&["evidence", sandbox.id(), "--collect"]);
    assert!(!run.status.success() && run.stderr.contains("record"), "{run:?}");
}
