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
    /// Both there, neither dormant, and nothing of a policy in them yet.
    Cut,
    /// Both there, neither dormant, with all that the policy wants.
    Isolated,
}

/// What one of our tables is; `None` where it is not there.
fn table(ruleset: &str, family: &str) -> Option<Tables> {
    let (_, rest) = ruleset.split_once(&format!("table {family} quarantine {{\n"))?;
    let table = rest.split_once("\n}").map_or(rest, |(table, _)| table);
    Some(match table.lines().next() {
        Some(line) if line.trim() == "flags dormant" => Tables::Released,
        // On a kernel without egress hook the netdev table has no sets at all.
        _ if family == "inet" && !table.contains("\tset ") => Tables::Cut,
        _ => Tables::Isolated,
    })
}

/// What the kernel has of our two tables in this namespace; panics when the two are not alike.
#[track_caller]
pub(crate) fn tables(netns: &Netns) -> Tables {
    let ruleset = ruleset(netns);
    match (table(&ruleset, "netdev"), table(&ruleset, "inet")) {
        (None, None) => Tables::Absent,
        (Some(Tables::Released), Some(Tables::Released)) => Tables::Released,
        (Some(Tables::Cut | Tables::Isolated), Some(inet @ (Tables::Cut | Tables::Isolated))) => inet,
        _ => panic!("the two tables are not alike:\n{ruleset}"),
    }
}

/// What our two tables are in a ruleset; nothing where they are not alike, which can be while they are being changed.
pub(crate) fn both_tables(ruleset: &str) -> Option<Tables> {
    let is_awake = |tables| matches!(tables, Tables::Cut | Tables::Isolated);
    let (netdev, inet) = (table(ruleset, "netdev"), table(ruleset, "inet"));
    match (netdev.unwrap_or(Tables::Absent), inet.unwrap_or(Tables::Absent)) {
        (netdev, inet) if netdev == inet || is_awake(netdev) && is_awake(inet) => Some(inet),
        _ => None,
    }
}
