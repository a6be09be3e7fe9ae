//! The rules that the unit tests compare with `testdata/rulesets` are what nft reads, and lists again.

use std::fs;
use std::path::Path;

use serde_json::json;

use crate::lab::{Netns, Sandbox, Topology};

#[test]
fn nft_loads_every_ruleset_and_lists_what_it_says() {
    let node = Netns::new("rulesets");
    for device in ["eth0", "net1", "veth1"] {
        node.sh(&format!("ip link add {device} type bridge"));
    }
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/rulesets");
    let mut seen = 0;
    for entry in fs::read_dir(&directory).unwrap() {
        let path = entry.unwrap().path();
        let text = fs::read_to_string(&path).unwrap();
        let nft = |arguments: &[&str]| {
            let output = node.command("nft").args(arguments).output().unwrap();
            assert!(output.status.success(), "{} {arguments:?}: {output:?}", path.display());
            String::from_utf8(output.stdout).unwrap()
        };
        nft(&["-f", path.to_str().unwrap()]);
        let listed = nft(&["-s", "list", "ruleset"]);
        for what in ["chain", "set", "comment", "policy drop", "dormant", " drop\n"] {
            assert_eq!(
                listed.matches(what).count(),
                text.matches(what).count(),
                "{what} in {}:\n{listed}",
                path.display()
            );
        }
        nft(&["flush", "ruleset"]);
        // What is saved on a node has to be read again at its next boot, or all of the node's rules are missing.
        let saved = tempfile::NamedTempFile::new().unwrap();
        fs::write(saved.path(), &listed).unwrap();
        nft(&["-f", saved.path().to_str().unwrap()]);
        // It may put the parts of a rule into another order.
        let again = nft(&["-s", "list", "ruleset"]);
        assert_eq!(again.lines().count(), listed.lines().count(), "{}:\n{again}", path.display());
        nft(&["flush", "ruleset"]);
        seen += 1;
    }
    assert!(seen >= 9, "{seen} rulesets");
}

/// As [`nft`] lists it, without what packets have put into sets and counters.
fn listed(netns: &Netns) -> String {
    netns.sh("nft -s list ruleset")
}

/// What rules have sets of their own for is listed as it was loaded: nft 1.0 lists none of it, and says nothing, where it is
/// told too little of fields that it has no name for.
#[test]
fn what_is_loaded_is_listed_whole_and_read_again() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    let allow =
        |peer: &str, ports: &[u16]| json!({ "direction": "egress", "peer": peer, "protocol": "tcp", "ports": ports });
    sandbox.isolate_with(&json!({ "allow": [
        allow("10.77.0.3/32", &[443, 80]), allow("10.77.0.0/24", &[80]), allow("fd77::3/128", &[80]), allow("fd77::/64", &[81]),
    ] }));
    assert_eq!(sandbox.verdict(), "contained");
    for netns in [&topology.pod, &topology.node] {
        let before = listed(netns);
        assert!(before.contains("@th,64,128 { "), "{before}");
        assert!(before.contains("@th,0,192 { "), "{before}");
        for line in before.lines().filter(|line| line.contains("@th,64,128 {") || line.contains("@th,0,192 {")) {
            let (_, elements) = line.split_once('{').unwrap();
            let raw = elements.split_once('}').unwrap().0.matches("0x").count();
            assert!(raw > elements.matches(',').count(), "{line}");
        }
        let saved = tempfile::NamedTempFile::new().unwrap();
        fs::write(saved.path(), &before).unwrap();
        netns.sh(&format!("nft flush ruleset; nft -f {}", saved.path().display()));
        let again = listed(netns);
        // It may put the parts of a rule into another order.
        let parts = |line: &str| {
            let mut parts: Vec<_> = line.split_whitespace().map(str::to_owned).collect();
            parts.sort();
            parts
        };
        let lines = before.lines().zip(again.lines());
        let differing: Vec<_> = lines.filter(|(before, again)| parts(before) != parts(again)).collect();
        assert!(differing.is_empty() && before.lines().count() == again.lines().count(), "{differing:#?}");
    }
    sandbox.sync();
    assert_eq!(sandbox.verdict(), "contained");
}

/// A rule that is exchanged for one whose own set has an element more is another rule.
#[test]
fn an_element_more_is_found() {
    let topology = Topology::bridge();
    let sandbox = Sandbox::add(&topology);
    sandbox.isolate("");
    // One that nft writes as it was: without a comment, which is not compared, and what it puts before it by itself.
    let replace = |element: &str| {
        let table = format!("quarantine-{}", sandbox.id());
        topology.node.sh(&format!(
            "chain=from-eth0/ip6-icmp
             rule=$(nft -a list chain netdev {table} $chain | grep 'meta length 64 .*solicit.*{{ ')
             nft replace rule netdev {table} $chain handle ${{rule##*handle }} \"$(
                 echo \"${{rule%% comment*}}\" | sed 's/{{ /{{ {element}/')\""
        ));
    };
    replace("");
    assert_eq!(sandbox.verdict(), "contained", "the control");
    replace("fe80::77 . 0xfe800000000000000000000000000077, ");
    assert_eq!(sandbox.verdict(), "partial");
    sandbox.sync();
    assert_eq!(sandbox.verdict(), "contained");
}
