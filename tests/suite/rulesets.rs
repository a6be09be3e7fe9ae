//! The rules that the unit tests compare with `testdata/rulesets` are what nft reads, and lists again.

use std::fs;
use std::path::Path;

use crate::lab::Netns;

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
