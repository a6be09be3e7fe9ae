//! ADD, CHECK and DEL as whole processes, beside those of the reference plugins and of `nft`.

use serde_json::json;

use crate::node::{Node, Pod};
use crate::process::Program;
use crate::report::Section;
use crate::{Effort, Outcome};

const VERBS: [&str; 3] = ["ADD", "CHECK", "DEL"];

/// A subject that carries out the three verbs, in a pod of its own.
struct Subject {
    name: &'static str,
    pod: Pod,
    verbs: [Program; 3],
    /// Whether its processes are started in the pod's netns: those that do not enter it themselves.
    is_inside: bool,
}

impl Subject {
    fn measure(&self, verb: usize, how: impl Fn(&Program) -> Outcome<f64> + Send + Sync) -> Outcome<f64> {
        let measured = || how(&self.verbs[verb]).map_err(|error| error.to_string());
        Ok(if self.is_inside { self.pod.inside(measured)? } else { measured() }?)
    }
}

pub(crate) fn measure(node: &Node, effort: &Effort) -> Outcome<Section> {
    let mut section = Section::new("plugins", "ADD, CHECK and DEL as whole processes");
    let subjects = subjects(node)?;
    let runs = effort.runs(60);
    for _ in 0..runs {
        for (verb, name) in VERBS.into_iter().enumerate() {
            for subject in &subjects {
                section.push(name, subject.name, "ms", subject.measure(verb, Program::milliseconds)?);
            }
        }
    }
    for _ in 0..effort.runs(30) {
        for subject in &subjects {
            let mut peak = 0.0_f64;
            for verb in 0..VERBS.len() {
                peak = peak.max(subject.measure(verb, Program::peak_memory)?);
            }
            section.push("peak memory", subject.name, "MiB", peak);
        }
    }
    // What the starting of a process costs, whatever it does.
    let nothing = node.command([]).with_environment([("CNI_COMMAND", "VERSION".to_owned())]);
    for _ in 0..runs {
        section.push("an answer without any work", "quarantine VERSION", "ms", nothing.milliseconds()?);
    }
    Ok(section)
}

fn subjects(node: &Node) -> Outcome<Vec<Subject>> {
    let [own, tuning, firewall, portmap, nft]: [Pod; 5] =
        node.pods(0..5)?.try_into().map_err(|_| "five pods were wanted")?;
    let peer = |name: &'static str, pod: Pod, entry: serde_json::Value| {
        let path = node.peers.join(name);
        let verbs = VERBS.map(|verb| node.call(&path, verb, &pod, &entry));
        (pod, verbs)
    };
    let mut subjects = Vec::new();
    let verbs = VERBS.map(|verb| node.plugin(verb, &own, None));
    verbs[0].run()?;
    let ruleset = node.rules_for(&own)?.0.replace(" quarantine {\n", " quarantine {\n\tflags dormant\n");
    verbs[2].run()?;
    subjects.push(Subject { name: "quarantine", pod: own, verbs, is_inside: false });

    let entry = json!({ "type": "tuning", "sysctl": { "net.core.somaxconn": "500" } });
    let (pod, verbs) = peer("tuning", tuning, entry);
    subjects.push(Subject { name: "tuning", pod, verbs, is_inside: false });
    let entry = json!({ "type": "firewall", "backend": "iptables" });
    let (pod, verbs) = peer("firewall", firewall, entry);
    subjects.push(Subject { name: "firewall (iptables)", pod, verbs, is_inside: false });
    let entry = json!({
        "type": "portmap",
        "backend": "nftables",
        "capabilities": { "portMappings": true },
        "runtimeConfig": { "portMappings": [{ "hostPort": 8080, "containerPort": 80, "protocol": "tcp" }] },
    });
    let (pod, verbs) = peer("portmap", portmap, entry);
    subjects.push(Subject { name: "portmap (nftables)", pod, verbs, is_inside: false });

    let verbs = [
        Program::new(["nft", "-f", "-"]).with_input(ruleset),
        Program::new(["nft", "list", "ruleset"]),
        Program::new(["nft", "-f", "-"]).with_input("delete table netdev quarantine\ndelete table inet quarantine\n"),
    ];
    subjects.push(Subject { name: "nft, the same rules", pod: nft, verbs, is_inside: true });
    Ok(subjects)
}
