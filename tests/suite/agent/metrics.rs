//! What a scraper is told, and what the real Prometheus makes of it: the alerts and the queries of the dashboard that are in
//! `conf/`.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use super::{Agent, PATIENCE, added, await_tables};
use crate::lab::{Netns, Node, Tables, eventually, not_tried};

pub(crate) const AGENT: &str = "127.0.0.1:9468";
const PROMETHEUS: &str = "127.0.0.1:9090";

/// The body of what is served there; none where nobody answers.
pub(crate) fn fetched(netns: &Netns, address: &str, path: &str) -> Option<String> {
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    let answer = netns.run(|| {
        let mut stream = TcpStream::connect(address).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).ok()?;
        stream.write_all(request.as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    head.contains(" 200 ").then(|| body.to_owned())
}

pub(crate) fn value(text: &str, metric: &str) -> Option<f64> {
    text.lines().find_map(|line| line.strip_prefix(metric)?.strip_prefix(' ')?.parse().ok())
}

fn conf(file: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("conf").join(file)).unwrap()
}

/// The queries of the dashboard, with what Grafana puts in for its variables.
fn dashboard() -> Vec<String> {
    let dashboard: Value = serde_json::from_str(&conf("grafana/dashboard.json")).unwrap();
    let targets = dashboard["panels"].as_array().unwrap().iter().flat_map(|panel| panel["targets"].as_array().unwrap());
    let queries = targets.map(|target| target["expr"].as_str().unwrap().to_owned());
    let filled = queries
        .map(|query| query.replace("$instance", ".*").replace("$__rate_interval", "1m").replace("$__range", "5m"));
    filled.collect()
}

/// The names of this project's metrics in a text.
fn names(text: &str) -> Vec<&str> {
    let words = text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
    words.filter(|word| word.starts_with("quarantine_")).collect()
}

struct Prometheus<'a> {
    process: Child,
    netns: &'a Netns,
    _directory: tempfile::TempDir,
}

impl<'a> Prometheus<'a> {
    /// With the files of `conf/prometheus`, in a hurry.
    fn start(netns: &'a Netns) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let hurry = "global: {scrape_interval: 1s, evaluation_interval: 1s}\n";
        fs::write(directory.path().join("prometheus.yaml"), format!("{hurry}{}", conf("prometheus/scrape.yaml")))
            .unwrap();
        fs::write(directory.path().join("alerts.yaml"), conf("prometheus/alerts.yaml")).unwrap();
        let flag = |name: &str, file: &str| format!("--{name}={}", directory.path().join(file).display());
        let process = netns
            .command("prometheus")
            .args([flag("config.file", "prometheus.yaml"), flag("storage.tsdb.path", "data")])
            .arg(format!("--web.listen-address={PROMETHEUS}"))
            .stdout(Stdio::null())
            .stderr(fs::File::create(directory.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        Self { process, netns, _directory: directory }
    }

    fn asked(&self, path: &str) -> Option<Value> {
        let answer: Value =
            serde_json::from_str(&fetched(self.netns, PROMETHEUS, &format!("/api/v1/{path}"))?).unwrap();
        (answer["status"] == "success").then(|| answer["data"].clone())
    }

    /// What a query gives; none where it is none, or Prometheus is not there yet.
    fn query(&self, query: &str) -> Option<Vec<Value>> {
        let encoded: String = query.bytes().map(|byte| format!("%{byte:02X}")).collect();
        Some(self.asked(&format!("query?query={encoded}"))?["result"].as_array().unwrap().clone())
    }

    /// The value of the one sample that it gives.
    fn number(&self, query: &str) -> Option<f64> {
        self.query(query)?.first()?["value"][1].as_str()?.parse().ok()
    }
}

impl Drop for Prometheus<'_> {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn what_is_scraped_is_what_the_kernel_says() {
    let node = Node::new();
    node.netns.sh("ip link set lo up");
    let (pod, _older) = (added(&node), node.pod());
    let cache = tempfile::tempdir().unwrap();
    let _agent = Agent::start_with(
        &node.netns,
        node.state_dir(),
        &["--metrics", AGENT, "--cni-cache", cache.path().to_str().unwrap()],
    );
    let scraped = || fetched(&node.netns, AGENT, "/metrics").unwrap();
    assert!(eventually(PATIENCE, || fetched(&node.netns, AGENT, "/metrics").is_some()));
    let before = scraped();
    for (metric, expected) in [
        ("quarantine_active", 0.0),
        ("quarantine_orphan_marks", 0.0),
        ("quarantine_uncovered_pods", 1.0),
        ("quarantine_dropped_packets_total{direction=\"in\"}", 0.0),
        ("quarantine_contain_seconds_count{stage=\"agent\"}", 0.0),
        ("quarantine_failures_total", 0.0),
    ] {
        assert_eq!(value(&before, metric), Some(expected), "{metric}:\n{before}");
    }
    node.mark(&pod.id, "");
    node.mark("somebody-who-is-not-here", "");
    await_tables(&pod, Tables::Isolated, "by the agent");
    assert!(pod.is_cut_off_from(&node));
    let is_so = |text: &str| {
        value(text, "quarantine_active") == Some(1.0)
            && value(text, "quarantine_orphan_marks") == Some(1.0)
            && value(text, "quarantine_contain_seconds_count{stage=\"agent\"}") == Some(1.0)
            && value(text, "quarantine_dropped_packets_total{direction=\"in\"}") > Some(0.0)
    };
    assert!(eventually(PATIENCE, || is_so(&scraped())), "{}", scraped());
    let dropped = value(&scraped(), "quarantine_dropped_packets_total{direction=\"in\"}");

    if Command::new("prometheus").arg("--version").output().is_ok() {
        taken_in_by_prometheus(&node, &scraped());
    } else {
        not_tried("the alerts and the dashboard's queries in a real Prometheus: it is not installed");
    }

    node.remove_mark(&pod.id);
    await_tables(&pod, Tables::Released, "by the agent");
    let text = scraped();
    assert_eq!(value(&text, "quarantine_active"), Some(0.0), "{text}");
    assert!(value(&text, "quarantine_dropped_packets_total{direction=\"in\"}") >= dropped, "{text}");
}

fn taken_in_by_prometheus(node: &Node, text: &str) {
    let prometheus = Prometheus::start(&node.netns);
    let agent = |metric: &str| format!("{metric}{{job=\"quarantine-agent\"}}");
    let is_scraped = || prometheus.number(&agent("quarantine_active")) == Some(1.0);
    assert!(eventually(PATIENCE, is_scraped), "{:?}", prometheus.query("up"));
    assert_eq!(prometheus.number(&agent("up")), Some(1.0));
    assert_eq!(prometheus.number(&agent("quarantine_uncovered_pods")), Some(1.0));
    assert_eq!(prometheus.number("quarantine_contain_seconds_count{stage=\"agent\"}"), Some(1.0));

    let rules = || prometheus.asked("rules").unwrap()["groups"][0]["rules"].as_array().unwrap().clone();
    let are_evaluated = || rules().iter().all(|rule| rule["health"] == "ok");
    assert!(eventually(PATIENCE, are_evaluated), "{:?}", rules());
    assert!(rules().len() >= 8);
    let fires = || rules().iter().any(|rule| rule["name"] == "QuarantineIsolated" && rule["state"] == "firing");
    assert!(eventually(PATIENCE, fires), "{:?}", rules());

    for query in dashboard() {
        assert!(prometheus.query(&query).is_some(), "the dashboard asks what cannot be answered: {query}");
    }
    let known = names(text);
    let (alerts, queries) = (conf("prometheus/alerts.yaml"), dashboard().join(" "));
    for name in names(&alerts).into_iter().chain(names(&queries)) {
        // By reason, and there is none of these here.
        let is_there = known.contains(&name) || name == "quarantine_partial";
        assert!(is_there, "{name} is asked for, and nobody serves it");
    }
    assert!(text.contains("# TYPE quarantine_partial gauge"));
}
