//! What the kernel has of the product's rules, as `nft` prints it.

use super::Netns;

/// The nftables ruleset of a namespace, as `nft` prints it.
pub(crate) fn ruleset(netns: &Netns) -> String {
    netns.sh("nft list ruleset")
}

/// Its rules alone, in no order: without what packets change (counters, elements of dynamic sets).
pub(crate) fn rules(netns: &Netns) -> Vec<String> {
    let mut lines: Vec<_> = netns.sh("nft --stateless --terse list ruleset").lines().map(str::to_owned).collect();
    lines.sort();
    lines
}

/// What the kernel has of our two tables in a pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tables {
    Absent,
    /// Both there, both dormant.
    Released,
    /// Both there, neither dormant.
    Isolated,
}

/// What the kernel has of our two tables in this namespace; panics when the two are not alike.
#[track_caller]
pub(crate) fn tables(netns: &Netns) -> Tables {
    let ruleset = ruleset(netns);
    let table = |family: &str| {
        let (_, rest) = ruleset.split_once(&format!("table {family} quarantine {{\n"))?;
        Some(rest.lines().next().is_some_and(|line| line.trim() == "flags dormant"))
    };
    match (table("netdev"), table("inet")) {
        (None, None) => Tables::Absent,
        (Some(true), Some(true)) => Tables::Released,
        (Some(false), Some(false)) => Tables::Isolated,
        _ => panic!("the two tables are not alike:\n{ruleset}"),
    }
}

/// What our two tables are in a ruleset; nothing where they are not alike, which can be while they are being changed.
pub(crate) fn both_tables(ruleset: &str) -> Option<Tables> {
    let one = |family: &str| match ruleset.split_once(&format!("table {family} quarantine {{\n")) {
        None => Tables::Absent,
        Some((_, rest)) if rest.lines().next().is_some_and(|line| line.trim() == "flags dormant") => Tables::Released,
        Some(_) => Tables::Isolated,
    };
    (one("netdev") == one("inet")).then(|| one("inet"))
}
