//! Pods that were made without the plugin: found, taken in by libcni's cache, and isolated like any other.

mod runtime;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use crate::lab::topology::{PEER4, POD4, POD6};
use crate::lab::traffic::battery::{Attack, Battery};
use crate::lab::traffic::observe::{Witnesses, tag};
use crate::lab::traffic::server::{Server, http_probe};
use crate::lab::traffic::sockets::{address, udp_on};
use crate::lab::{Agent, Kind, PATIENCE, Run, Topology, quarantine};

const ID: &str = "3f2a91c0b7d44e58a1f6e2d90c8b7a6553142f0e9d8c7b6a5948372615f0e1d2";

/// A node whose pod was made before the plugin was in the conflist.
struct Older<'a> {
    topology: &'a Topology,
    state: tempfile::TempDir,
    places: tempfile::TempDir,
}

impl<'a> Older<'a> {
    fn new(topology: &'a Topology) -> Self {
        let state = tempfile::Builder::new().prefix("quarantine-adopt").tempdir().unwrap();
        let places = tempfile::Builder::new().prefix("quarantine-cni").tempdir().unwrap();
        fs::create_dir(places.path().join("results")).unwrap();
        fs::create_dir(places.path().join("net.d")).unwrap();
        let older = Self { topology, state, places };
        older.write_cache(&topology.prev_result());
        older
    }

    /// As containerd's libcni writes it.
    fn write_cache(&self, result: &Value) {
        self.write_cache_of("lab", ID, &self.topology.pod.path(), result);
    }

    fn write_cache_of(&self, network: &str, id: &str, netns: &Path, result: &Value) {
        let cache = json!({
            "kind": "cniCacheV1", "containerId": id, "config": "e30=", "ifName": "eth0", "networkName": network,
            "netns": netns,
            "cniArgs": [["IgnoreUnknown", "1"], ["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "web"], ["K8S_POD_UID", "u1"]],
            "capabilityArgs": {}, "result": result,
        });
        fs::write(self.places.path().join(format!("results/{network}-{id}-eth0")), cache.to_string()).unwrap();
    }

    fn write_conflist(&self) {
        self.write_conflist_of("lab", true);
    }

    fn write_conflist_of(&self, network: &str, adopt: bool) {
        let mut entry =
            json!({ "type": "quarantine", "stateDir": self.state.path(), "policy": { "probes": { "ports": [8080] } } });
        if !adopt {
            entry["adopt"] = json!(false);
        }
        let conflist = json!({ "cniVersion": "1.1.0", "name": network, "plugins": [{ "type": "bridge" }, entry] });
        let temporary = self.places.path().join("net.d/.new");
        fs::write(&temporary, conflist.to_string()).unwrap();
        fs::rename(temporary, self.places.path().join(format!("net.d/10-{network}.conflist"))).unwrap();
    }

    /// Where a runtime would answer.
    fn socket(&self) -> PathBuf {
        self.places.path().join("runtime.sock")
    }

    fn places(&self) -> Vec<String> {
        let places = self.places.path();
        let options = [("--cni-cache", places.into()), ("--cni-conf", places.join("net.d")), ("--cri", self.socket())];
        options.into_iter().flat_map(|(option, path)| [option.to_owned(), path.display().to_string()]).collect()
    }

    fn agent(&self) -> Agent {
        let places = self.places();
        let places: Vec<_> = places.iter().map(String::as_str).collect();
        Agent::start_with(&self.topology.node, self.state.path(), &places)
    }

    fn run(&self, arguments: &[&str]) -> Run {
        let state = self.state.path().to_str().unwrap();
        quarantine(&self.topology.node, &[arguments, &["--state-dir", state, "--log", "stderr"]].concat())
    }

    fn adopt(&self, which: &[&str]) -> Run {
        let places = self.places();
        let places: Vec<_> = places.iter().map(String::as_str).collect();
        self.run(&[&["adopt"], which, &places].concat())
    }

    fn list(&self) -> Value {
        let places = self.places();
        let places: Vec<_> = places.iter().map(String::as_str).collect();
        self.run(&[&["list", "-o", "json"][..], &places].concat()).ok().json()
    }

    fn record(&self) -> Value {
        let path = self.state.path().join("attachments").join(ID).join("eth0.json");
        serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
    }

    fn status(&self) -> Value {
        self.run(&["status", "shop/web", "-o", "json"]).json()
    }
}

fn isolated_like_any_other(kind: Kind) {
    let topology = Topology::new(kind);
    let older = Older::new(&topology);
    let server = Server::start(&topology.pod, 8080);
    let send = |number| drop(udp_on(None, PEER4.into()).send_to(&tag(number), &address(PEER4.into(), 9)));
    let attacks = vec![Attack::new("udp", &topology.pod, send)];
    let mut battery = Battery::new(attacks, Witnesses::outside(&topology));
    battery.assert_all_arrive();

    let run = older.adopt(&["--all"]).ok();
    assert!(run.stdout.contains("adopted, with the default policy") && run.stdout.ends_with("1 adopted\n"), "{run:?}");
    assert_eq!(older.record()["adopted"], true);
    battery.assert_all_arrive();
    let run = older.run(&["isolate", "shop/web"]).ok();
    assert!(run.stdout.contains("contained"), "{run:?}");
    battery.assert_none_arrives();
    for to in [POD4.into(), POD6.into()] {
        assert!(http_probe(&topology.node, to, server.port(), PATIENCE), "the node's probe of {to}");
        assert!(!http_probe(&topology.peer, to, server.port(), Duration::from_millis(300)), "another's probe of {to}");
    }
    let status = older.status();
    assert_eq!(status["verdict"], "contained", "{status:#}");
    let codes: Vec<_> = status["reasonCodes"].as_array().unwrap().iter().map(|reason| &reason["code"]).collect();
    assert_eq!(codes, ["adopted"]);
    let again = older.adopt(&["shop/web"]).ok();
    assert!(again.stdout.contains("has a record already") && again.stdout.ends_with("0 adopted\n"), "{again:?}");
    older.run(&["release", "shop/web"]).ok();
    battery.assert_all_arrive();
}

#[test]
fn an_older_pod_is_isolated_like_any_other_on_a_bridge() {
    isolated_like_any_other(Kind::Bridge);
}

#[test]
fn an_older_pod_is_isolated_like_any_other_on_calico() {
    isolated_like_any_other(Kind::Calico);
}

#[test]
fn what_has_no_record_is_listed_until_it_is_adopted() {
    let topology = Topology::bridge();
    let older = Older::new(&topology);
    let ends = |list: &Value| -> Vec<String> {
        let uncovered = list["uncovered"].as_array().unwrap().iter();
        let mut ends: Vec<_> = uncovered.map(|found| found["hostEnds"].to_string()).collect();
        ends.sort();
        ends
    };
    fs::create_dir(older.state.path().join("attachments")).unwrap();
    let list = older.list();
    assert_eq!(ends(&list), [r#"["veth-peer"]"#, r#"["veth-pod"]"#]);
    let pod = list["uncovered"].as_array().unwrap().iter().find(|found| found["containerID"] == ID).unwrap();
    assert_eq!((&pod["pod"], &pod["netns"]), (&json!("shop/web"), &json!(topology.pod.path())));
    older.adopt(&[&ID[..8]]).ok();
    assert_eq!(ends(&older.list()), [r#"["veth-peer"]"#]);
}

/// Root in the pod has made itself look like another before it was adopted.
#[test]
fn the_holes_are_of_what_the_cache_says_and_not_of_what_the_pod_has_become() {
    let topology = Topology::bridge();
    let older = Older::new(&topology);
    topology.pod.sh("ip addr add 10.77.0.66/24 dev eth0; ip route add 192.0.2.0/24 via 10.77.0.3; ip link add more type veth peer name less");
    older.adopt(&["--all"]).ok();
    let interfaces = older.record()["interfaces"].clone();
    assert_eq!(interfaces.as_array().unwrap().len(), 1, "{interfaces:#}");
    let text = interfaces.to_string();
    assert!(!text.contains("10.77.0.66") && !text.contains("192.0.2.0"), "{text}");
    assert!(text.contains(&POD4.to_string()) && text.contains(&POD6.to_string()), "{text}");
    // What was moved away before is not passed over.
    let topology = Topology::bridge();
    let older = Older::new(&topology);
    let mut result = topology.prev_result();
    result["interfaces"].as_array_mut().unwrap().push(json!({ "name": "net1", "sandbox": topology.pod.path() }));
    older.write_cache(&result);
    older.adopt(&["--all"]).ok();
    let run = older.run(&["isolate", "shop/web"]);
    assert!(!run.stdout.contains("contained"), "{run:?}");
}

#[test]
fn nothing_is_adopted_by_what_others_than_root_can_write_or_of_the_host() {
    let topology = Topology::bridge();
    let older = Older::new(&topology);
    let results = older.places.path().join("results");
    fs::set_permissions(&results, std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    let run = older.adopt(&["--all"]);
    assert!(!run.status.success() && run.stderr.contains("others than root"), "{run:?}");
    fs::set_permissions(&results, std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let name = results.join(format!("lab-{ID}-eth0"));
    let text = fs::read_to_string(&name).unwrap();
    let of_host = text.replace(topology.pod.path().to_str().unwrap(), topology.node.path().to_str().unwrap());
    fs::write(&name, of_host).unwrap();
    let run = older.adopt(&["--all"]);
    assert!(!run.status.success() && run.stdout.contains("the host's own"), "{run:?}");
    assert!(!Path::new(older.state.path()).join("attachments").join(ID).exists());
}

#[test]
fn the_agent_adopts_when_the_conflist_gets_the_entry_and_isolates_what_is_marked() {
    let topology = Topology::bridge();
    let older = Older::new(&topology);
    fs::create_dir(older.state.path().join("isolated")).unwrap();
    fs::write(older.state.path().join("isolated/shop_web"), "").unwrap();
    let agent = older.agent();
    assert!(!older.state.path().join("attachments").join(ID).exists(), "its network has no entry yet");
    older.write_conflist();
    agent.await_line(&["event=adopted", ID, "pod=shop/web", "network=lab"]);
    agent.await_line(&["event=isolated", ID, "verdict=contained", "8080"]);
    assert_eq!(older.status()["policy"]["probes"], json!({ "ports": [8080] }));
    drop(agent);
    // It ends, and its runtime's DEL knows nothing of the plugin; the next agent does not keep it.
    topology.pod.delete();
    let agent = older.agent();
    agent.await_line(&["event=forgotten", ID]);
    assert!(!older.state.path().join("attachments").join(ID).exists());
}

#[test]
fn the_agent_leaves_a_network_alone_whose_entry_says_so() {
    const OTHER: &str = "0a1b2c3d";
    let topology = Topology::bridge();
    let older = Older::new(&topology);
    let result = json!({ "interfaces": [{ "name": "eth0", "sandbox": topology.peer.path() }] });
    older.write_cache_of("other", OTHER, &topology.peer.path(), &result);
    older.write_conflist_of("lab", false);
    let agent = older.agent();
    // By now it has gone by the first one, or would have had to.
    older.write_conflist_of("other", true);
    agent.await_line(&["event=adopted", OTHER, "network=other"]);
    assert!(!older.state.path().join("attachments").join(ID).exists());
    older.adopt(&[ID]).ok();
    assert_eq!(older.record()["policy"]["probes"], json!({ "ports": [8080] }));
}
