//! That the first bytes of what is dropped are handed over, so that somebody can look at what an isolated pod tries.
//!
//! Pure. It only adds to tables that are made already: what passes and what is dropped is decided without it, in
//! `containment`, and stays decided so.

use crate::model::names::ContainerId;

use super::containment::TABLE;
use super::ruleset::{Chain, Family, Hook, Report, Rule, Statement, Table};

/// The number that packets are handed over to (NFLOG); "QC", and none that others take: those begin at 0.
pub const GROUP: u16 = 0x5143;
/// Bytes of each packet: enough for the names in what opens most conversations. Fewer of them are kept.
pub const LENGTH: u32 = 512;
/// Packets a second that one chain hands over.
const PER_SECOND: u32 = 20;
/// Packets at once.
const BURST: u32 = 100;
/// No kernel takes a longer prefix (`NF_LOG_PREFIXLEN` less the NUL).
const PREFIX_MAX: usize = 127;

/// Has each chain hand over packets before it drops them, and where they are counted as attempts before their neighbour is
/// resolved: what is for a neighbour that nobody may ask for comes to no drop.
pub fn report_drops(table: &mut Table, container_id: &ContainerId) {
    let report = report(prefix(container_id).to_owned());
    for chain in &mut table.chains {
        let counts = |rule: &&mut Rule| matches!(rule.statements.last(), Some(Statement::Update { counted: true, .. }));
        if chain.hook == Hook::Output {
            chain.rules.iter_mut().filter(counts).for_each(|rule| rule.statements.push(report.clone()));
        }
        let last = chain.rules.len().saturating_sub(1);
        chain.rules.insert(last, Rule::new(vec![report.clone()]));
    }
}

/// A table that does nothing, with a rule that hands packets over: where the kernel takes it, it takes the others.
#[must_use]
pub fn trial_table() -> Table {
    let rules = vec![Rule::new(vec![report(String::new())])];
    let chain = Chain { name: "trial".to_owned(), hook: Hook::Forward, rules };
    let name = format!("{TABLE}-trial");
    Table { family: Family::Inet, name, dormant: true, sets: Vec::new(), branches: Vec::new(), chains: vec![chain] }
}

fn report(prefix: String) -> Statement {
    Statement::Report(Report { group: GROUP, length: LENGTH, per_second: PER_SECOND, burst: BURST, prefix })
}

/// By what the packets of a sandbox are told from those of others: its container ID, or as much of it as there is room for.
#[must_use]
pub fn prefix(container_id: &ContainerId) -> &str {
    let id = container_id.as_str();
    // Container IDs are ASCII.
    id.get(..PREFIX_MAX).unwrap_or(id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::containment::{EgressHook, pod_tables};

    #[test]
    fn each_chain_hands_over_what_it_drops_and_nothing_else() {
        let id = ContainerId::new("c1").unwrap();
        let eth0 = crate::model::names::IfName::new("eth0").unwrap();
        let interface = crate::rules::containment::GuardedInterface { name: eth0, known: None };
        for table in &mut pod_tables(&Default::default(), &[interface], EgressHook::Netdev, false) {
            let before = table.clone();
            report_drops(table, &id);
            for (chain, before) in table.chains.iter().zip(&before.chains) {
                let (last, others) = chain.rules.split_last().unwrap();
                let (report, others) = others.split_last().unwrap();
                assert_eq!(last.statements, [Statement::Counter, Statement::Drop]);
                assert!(matches!(&report.statements[..], [Statement::Report(_)]), "{report}");
                let reported =
                    others.iter().filter(|rule| matches!(rule.statements.last(), Some(Statement::Report(_))));
                assert_eq!(reported.count() > 0, chain.hook == Hook::Output && table.family == Family::Inet);
                assert_eq!(others.len(), before.rules.len() - 1);
            }
        }
    }
}
