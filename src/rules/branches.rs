//! Rules of a chain that ask the same of the frame first, moved to a branch: what they have in common is asked once.
//!
//! What passes stays the same, and so does the order in which rules that one packet can meet are gone through. A frame that
//! is dropped, and under a flood that is each of them, is asked from whom it is and of which family, and no more of the rules of
//! another family.
//!
//! Pure. The rules themselves are `containment`'s.

use std::collections::BTreeMap;

use crate::model::policy::Protocol;

use super::alike::are_disjoint;
use super::ruleset::{Branch, Chain, Family, Field, Meta, Rule, Statement, Table, Test};

/// Fewer rules are not worth a jump and a chain. Two are, where that is asked of the Ethernet header: it takes the kernel ten times
/// as long as a field of the packet.
const FEWEST: usize = 2;
const ICMP6: u8 = 58;

/// Moves the rules of a netdev table that begin alike, up to the type of the frame, to branches.
pub fn branch_off(table: &mut Table) {
    // What nft lists of the family inet it can name by the family that each rule begins with.
    if table.family != Family::Netdev {
        return;
    }
    let mut named = BTreeMap::new();
    for chain in &mut table.chains {
        for Group { prefix, mut rules } in groups(std::mem::take(&mut chain.rules)) {
            let Some(ether_type) = ether_type(&prefix).filter(|_| rules.len() >= FEWEST) else {
                chain.rules.append(&mut rules);
                continue;
            };
            for (protocol, mut rules) in runs(rules) {
                let begins = format!("{}/{}", chain.name, name(ether_type, protocol.as_ref()));
                let alike = named.entry(begins.clone()).and_modify(|count| *count += 1).or_insert(1);
                let name = if *alike == 1 { begins } else { format!("{begins}-{alike}") };
                for rule in &mut rules {
                    rule.statements.splice(..prefix.len(), [Statement::Meta(Meta::Protocol(ether_type))]);
                }
                // What each of its rules asks too: without it nft could not name the fields of its header.
                let jump = protocol.into_iter().chain([Statement::Jump(name.clone())]);
                chain.rules.push(Rule::new(prefix.iter().cloned().chain(jump).collect()));
                table.branches.push(Branch { name, rules });
            }
        }
    }
}

/// Whether a chain of this name is a branch.
#[must_use]
pub fn is_branch(name: &str) -> bool {
    let protocol = name.rsplit_once('/').map(|(_, protocol)| protocol.split('-').next().unwrap_or_default());
    protocol.is_some_and(|protocol| PROTOCOLS.iter().any(|(_, name)| *name == protocol))
}

/// A base chain of the table with the rules of its branches where they were before, and each asking for the type that stands in
/// the frame.
#[must_use]
pub fn inlined(table: &Table, chain: &Chain) -> Chain {
    let mut rules = Vec::with_capacity(chain.rules.len());
    for rule in &chain.rules {
        let Some((Statement::Jump(name), prefix)) = rule.statements.split_last() else {
            rules.push(Rule { statements: by_ether_type(&rule.statements), comment: rule.comment });
            continue;
        };
        let branch = table.branches.iter().find(|branch| branch.name == *name);
        for behind in branch.iter().flat_map(|branch| &branch.rules) {
            let statements = by_ether_type(&[prefix, &behind.statements].concat());
            rules.push(Rule { statements, comment: behind.comment });
        }
    }
    Chain { name: chain.name.clone(), hook: chain.hook.clone(), rules }
}

/// The statements without what is asked twice, and without what the kernel takes a frame for, which the type in the frame says
/// as well.
fn by_ether_type(statements: &[Statement]) -> Vec<Statement> {
    let asks = statements.iter().any(|statement| matches!(statement, Statement::Match(Field::EtherType, Test::Is(_))));
    let mut once: Vec<Statement> = Vec::with_capacity(statements.len());
    for statement in statements {
        let statement = match statement {
            Statement::Meta(Meta::Protocol(_)) if asks => continue,
            Statement::Meta(Meta::Protocol(ether_type)) => {
                Statement::Match(Field::EtherType, Test::Is((*ether_type).into()))
            }
            statement => statement.clone(),
        };
        if !statement.is_condition() || !once.contains(&statement) {
            once.push(statement);
        }
    }
    once
}

/// Rules that begin alike. Where they do not ask for the type of the frame, nothing is said of how they begin.
struct Group {
    prefix: Vec<Statement>,
    rules: Vec<Rule>,
}

/// The rules in groups. One joins those that begin as it does, past groups that no frame meets which it meets.
fn groups(rules: Vec<Rule>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for rule in rules {
        let prefix = prefix(&rule).to_vec();
        let reached = groups.iter().rposition(|group| group.prefix == prefix || !are_disjoint(&group.prefix, &prefix));
        match reached.and_then(|place| groups.get_mut(place)).filter(|group| group.prefix == prefix) {
            Some(group) => group.rules.push(rule),
            None => groups.push(Group { prefix, rules: vec![rule] }),
        }
    }
    groups
}

/// The rules of a group in runs that ask for the same protocol, each with what asks for it; what is in no run that is long enough
/// is with its neighbours.
fn runs(rules: Vec<Rule>) -> Vec<(Option<Statement>, Vec<Rule>)> {
    let mut runs: Vec<(Option<Statement>, Vec<Rule>)> = Vec::new();
    for run in rules.chunk_by(|one, next| protocol(one) == protocol(next)) {
        let protocol = run.first().and_then(protocol).filter(|_| run.len() >= FEWEST).cloned();
        match runs.last_mut() {
            Some((None, rules)) if protocol.is_none() => rules.extend_from_slice(run),
            _ => runs.push((protocol, run.to_vec())),
        }
    }
    runs
}

/// What a rule asks for the protocol by.
fn protocol(rule: &Rule) -> Option<&Statement> {
    const PROTOCOL: [Field; 2] = [Field::IpProtocol, Field::Ip6NextHeader];
    let asks =
        |statement: &&Statement| matches!(statement, Statement::Match(field, Test::Is(_)) if PROTOCOL.contains(field));
    // What comes behind an update is not asked before it.
    let matches =
        rule.statements.iter().take_while(|statement| matches!(statement, Statement::Match(..) | Statement::Meta(_)));
    matches.into_iter().find(asks)
}

/// What a rule begins with, up to the type of the frame; nothing where it does not ask for that.
fn prefix(rule: &Rule) -> &[Statement] {
    let asks = |statement: &Statement| matches!(statement, Statement::Match(Field::EtherType, Test::Is(_)));
    let end = rule.statements.iter().position(asks).map_or(0, |at| at + 1);
    let only_asks = rule.statements[..end].iter().all(|statement| match statement {
        // In front of all else in each rule, since it is the least work.
        Statement::Meta(Meta::Length(_)) => false,
        statement => matches!(statement, Statement::Match(..) | Statement::Meta(_)),
    });
    if only_asks { &rule.statements[..end] } else { &[] }
}

fn ether_type(prefix: &[Statement]) -> Option<[u8; 2]> {
    match prefix.last()? {
        Statement::Match(Field::EtherType, Test::Is(value)) => (**value).try_into().ok(),
        _ => None,
    }
}

/// The types of frames that rules ask for, and what nft calls them.
const PROTOCOLS: [([u8; 2], &str); 3] = [([0x08, 0x00], "ip"), ([0x08, 0x06], "arp"), ([0x86, 0xdd], "ip6")];

/// What a branch is called behind the name of its chain.
fn name(ether_type: [u8; 2], protocol: Option<&Statement>) -> String {
    let family = protocol_name(ether_type);
    match protocol {
        Some(Statement::Match(_, Test::Is(number))) if **number == [Protocol::Tcp.number()] => format!("{family}-tcp"),
        Some(Statement::Match(_, Test::Is(number))) if **number == [Protocol::Udp.number()] => format!("{family}-udp"),
        Some(Statement::Match(_, Test::Is(number))) if **number == [ICMP6] => format!("{family}-icmp"),
        _ => family.to_owned(),
    }
}

/// What nft calls the type of a frame.
pub(super) fn protocol_name(ether_type: [u8; 2]) -> &'static str {
    PROTOCOLS.iter().find(|(number, _)| *number == ether_type).map_or("other", |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::names::IfName;
    use crate::rules::ruleset::Hook;

    fn is(field: Field, value: &[u8]) -> Statement {
        Statement::Match(field, Test::Is(crate::rules::ruleset::Value::new(value).unwrap()))
    }

    fn rule(station: Option<u8>, ether_type: [u8; 2], protocol: u8) -> Rule {
        let station = station.map(|last| is(Field::EtherSource, &[2, 0, 0, 0, 0, last]));
        let rest = [is(Field::EtherType, &ether_type), is(Field::IpProtocol, &[protocol]), Statement::Accept];
        Rule::new(station.into_iter().chain(rest).collect())
    }

    const IP: [u8; 2] = [8, 0];
    const IP6: [u8; 2] = [0x86, 0xdd];

    fn table(rules: Vec<Rule>) -> Table {
        let hook = Hook::Ingress(IfName::new("veth1").unwrap());
        let chains = vec![Chain { name: "from-eth0".to_owned(), hook, rules }];
        Table {
            family: Family::Netdev,
            name: "t".to_owned(),
            dormant: false,
            sets: Vec::new(),
            branches: Vec::new(),
            chains,
        }
    }

    #[test]
    fn those_that_begin_alike_are_asked_once_and_in_their_order() {
        let rules: Vec<_> =
            (0..6).map(|number| rule(Some(1), if number % 2 == 0 { IP } else { IP6 }, number)).collect();
        let before = table(rules);
        let mut after = before.clone();
        branch_off(&mut after);
        let text: Vec<_> = after.chains[0].rules.iter().map(ToString::to_string).collect();
        assert_eq!(
            text,
            [
                "ether saddr 02:00:00:00:00:01 ether type ip jump from-eth0/ip",
                "ether saddr 02:00:00:00:00:01 ether type ip6 jump from-eth0/ip6",
            ]
        );
        let branch: Vec<_> = after.branches[0].rules.iter().map(ToString::to_string).collect();
        assert_eq!(branch, [0, 2, 4].map(|number| format!("meta protocol ip ip protocol 0x{number:02x} accept")));
        // The same rules, the one family behind the other.
        let order = [0, 2, 4, 1, 3, 5].map(|number: usize| before.chains[0].rules[number].clone());
        assert_eq!(inlined(&after, &after.chains[0]).rules, order);
    }

    #[test]
    fn a_protocol_that_all_ask_for_is_asked_first() {
        let rules = [6, 6, 6, 1, 17, 17, 17, 17].map(|protocol| rule(Some(1), IP, protocol)).to_vec();
        let before = table(rules);
        let mut after = before.clone();
        branch_off(&mut after);
        let text: Vec<_> = after.chains[0].rules.iter().map(ToString::to_string).collect();
        let from = "ether saddr 02:00:00:00:00:01 ether type ip";
        assert_eq!(
            text,
            [
                format!("{from} ip protocol tcp jump from-eth0/ip-tcp"),
                format!("{from} jump from-eth0/ip"),
                format!("{from} ip protocol udp jump from-eth0/ip-udp"),
            ]
        );
        assert_eq!(after.branches[0].rules[0].to_string(), "meta protocol ip ip protocol tcp accept");
        assert_eq!(inlined(&after, &after.chains[0]), before.chains[0]);
    }

    #[test]
    fn none_goes_past_a_rule_that_its_packets_can_meet() {
        let open_to_all = Rule::new(vec![Statement::Counter, Statement::Drop]);
        // Whoever sent it: the frames of station 1 are among those.
        let of_anybody = rule(None, IP, 9);
        let own = |number| rule(Some(1), IP, number);
        for barrier in [open_to_all, of_anybody] {
            let before = table(vec![own(1), barrier.clone(), own(3)]);
            let mut after = before.clone();
            branch_off(&mut after);
            assert_eq!(after, before, "{barrier}");
            let before = table(vec![own(1), own(2), own(3), barrier, own(4), own(5), own(6)]);
            let mut after = before.clone();
            branch_off(&mut after);
            let names: Vec<_> = after.branches.iter().map(|branch| branch.name.as_str()).collect();
            assert_eq!(names, ["from-eth0/ip", "from-eth0/ip-2"]);
            assert_eq!(inlined(&after, &after.chains[0]), before.chains[0]);
        }
    }

    #[test]
    fn a_branch_is_told_from_a_base_chain_by_its_name() {
        for (name, so) in [
            ("to-eth0/ip", true),
            ("to-eth0/7/ip6-icmp-2", true),
            ("ingress-eth0/arp", true),
            ("to-eth0/7", false),
            ("to-eth0", false),
            ("from-ip", false),
        ] {
            assert_eq!(is_branch(name), so, "{name}");
        }
    }
}
