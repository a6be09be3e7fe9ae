//! What costs the kernel least is asked first, so that a frame which a rule is not for, and under a flood that is each of them for
//! almost each rule, is done with sooner.
//!
//! A field of the Ethernet header takes 60 ns, one of the packet, or what the kernel knows of it, some 5 (Linux 6.18). So a rule that
//! asks for the type in the Ethernet header asks first for what the kernel takes the frame for. That alone would not do: of a frame
//! with a VLAN tag it is the type behind the tag.
//!
//! Pure. The order in which a packet is asked makes no difference to what a rule lets through.

use super::ruleset::{Base, Family, Field, Meta, Rule, Statement, Table, Test};

/// Puts the conditions of the rules of a netdev table into the order of what they cost.
pub fn cheapest_first(table: &mut Table) {
    if table.family != Family::Netdev {
        return;
    }
    let branches = table.branches.iter_mut().flat_map(|branch| &mut branch.rules);
    for rule in branches.chain(table.chains.iter_mut().flat_map(|chain| &mut chain.rules)) {
        put_in_order(rule);
    }
}

fn put_in_order(rule: &mut Rule) {
    let (conditions, does) = rule.conditions();
    let protocol = conditions.iter().find_map(|condition| match condition {
        Statement::Match(Field::EtherType, Test::Is(value)) => (**value).try_into().ok().map(Meta::Protocol),
        _ => None,
    });
    let protocol = protocol.map(Statement::Meta).filter(|protocol| !conditions.contains(protocol));
    let mut ordered: Vec<_> = protocol.into_iter().chain(conditions.iter().cloned()).collect();
    ordered.sort_by_key(cost);
    ordered.extend_from_slice(does);
    rule.statements = ordered;
}

/// Of two with the same cost the first stays the first: by what nft knows of a header it names the fields of the next.
fn cost(condition: &Statement) -> u8 {
    match condition {
        Statement::Meta(Meta::Protocol(_) | Meta::Length(_)) => 0,
        Statement::Match(field, _) if field.place().0 == Base::Link => 3,
        // Together, since those that touch are read at once.
        Statement::Match(..) => 1,
        Statement::Meta(_) | Statement::Labelled(_) => 2,
        // Sets of packets come behind those of rules: what is in them has mostly passed those.
        _ => 4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rules::ruleset::Value;

    fn is(field: Field, value: impl Into<Value>) -> Statement {
        Statement::Match(field, Test::Is(value.into()))
    }

    fn ordered(statements: Vec<Statement>) -> String {
        let mut rule = Rule::new(statements);
        put_in_order(&mut rule);
        rule.to_string()
    }

    #[test]
    fn the_ethernet_header_is_asked_behind_the_packet_and_sets_behind_all() {
        let flow = || Statement::Lookup(&[Field::IpSource, Field::SourcePort], "flows4".to_owned());
        let update = || Statement::Update { key: &[Field::IpSource], set: "a".to_owned(), counted: true };
        let rule = vec![
            is(Field::EtherSource, [2, 0, 0, 0, 0, 1]),
            is(Field::EtherType, [8, 0]),
            flow(),
            Statement::Meta(Meta::ForThisHost),
            is(Field::IpProtocol, [6]),
            update(),
            Statement::Accept,
        ];
        let expected = "meta protocol ip ip protocol tcp meta pkttype host ether saddr 02:00:00:00:00:01 ether type ip \
                        ip saddr . th sport @flows4 update @a { ip saddr counter } accept";
        assert_eq!(ordered(rule), expected);
        // What comes behind what a rule does stays behind it.
        let late = vec![update(), is(Field::IpProtocol, [6]), Statement::Accept];
        assert_eq!(ordered(late.clone()), Rule::new(late).to_string());
    }

    #[test]
    fn what_the_kernel_takes_a_frame_for_is_asked_once() {
        let rule = vec![Statement::Meta(Meta::Protocol([8, 0])), is(Field::IpProtocol, [6]), Statement::Accept];
        assert_eq!(ordered(rule.clone()), Rule::new(rule).to_string());
    }
}
