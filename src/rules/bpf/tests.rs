use super::*;
use crate::rules::ruleset::KeyType;

#[test]
fn what_is_read_of_the_stack_is_aligned() {
    for at in -128..0 {
        for length in 1..=16 {
            let chunks = chunks(at, length);
            assert_eq!(chunks.iter().map(|(_, size)| size.bytes()).sum::<usize>(), length);
            assert!(chunks.iter().all(|(offset, size)| (at + *offset as i16).rem_euclid(size.bytes() as i16) == 0));
            for to in -128..0 {
                let pieces: Vec<_> = chunks.iter().flat_map(|&chunk| aligned(to, chunk)).collect();
                assert_eq!(pieces.iter().map(|(_, size)| size.bytes()).sum::<usize>(), length);
                assert!(pieces.iter().all(|(offset, size)| (to + *offset as i16).rem_euclid(size.bytes() as i16) == 0));
            }
        }
    }
}

#[test]
fn a_program_that_waits_is_short() {
    let waiting = waiting();
    assert_eq!(waiting.maps, [Map::Armed, Map::Drops]);
    assert!(!waiting.code.is_empty() && waiting.code.len() < 40, "each packet of a released pod pays for it");
}

fn chain(rules: Vec<Rule>) -> Chain {
    Chain { name: "to-eth0".to_owned(), hook: Hook::Egress(crate::model::names::IfName::new("veth0").unwrap()), rules }
}

#[test]
fn a_rule_that_only_netfilter_knows_makes_no_program() {
    let rule = Rule::new(vec![Statement::Meta(Meta::Nfproto { v6: false }), Statement::Accept]);
    let made = program(&chain(vec![rule]), &[], Stand::Tcx, Sender::InNetns(7));
    assert_eq!(made, Err(Inexpressible::Statement));
    let rule = Rule::new(vec![Statement::Lookup(&[Field::IpSource], "nowhere".to_owned()), Statement::Accept]);
    assert_eq!(program(&chain(vec![rule]), &[], Stand::Tcx, Sender::InNetns(7)), Err(Inexpressible::Statement));
}

#[test]
fn a_set_becomes_a_map_with_keys_as_nftables_has_them() {
    let key = vec![KeyType::Protocol, KeyType::Ipv4, KeyType::Port, KeyType::Port];
    let set = Set::dynamic("flows4".to_owned(), key, 1, 8);
    let key: &'static [Field] = &[Field::IpProtocol, Field::IpSource, Field::SourcePort, Field::DestinationPort];
    let rule = Rule::new(vec![
        Statement::Meta(Meta::Skuid(0)),
        Statement::Update { key, set: set.name.clone(), counted: false },
        Statement::Accept,
    ]);
    let sets = [set.clone()];
    let chain = chain(vec![rule]);
    let made = |stand| program(&chain, &sets, stand, Sender::InNetns(7)).unwrap();
    assert_eq!(made(Stand::Tcx).maps, [Map::Drops, Map::Set(set.clone())]);
    assert_eq!(made(Stand::Tcx).maps[1].key_length(), 16);
    // On the pod's side no socket is known: who opened something is known by the map.
    assert_eq!(made(Stand::Xdp).maps, made(Stand::Tcx).maps);
    let by_cgroup = program(&chain, &sets, Stand::Tcx, Sender::InCgroup { level: 2, id: 7 }).unwrap();
    assert_ne!(by_cgroup.code, made(Stand::Tcx).code);
}

#[test]
fn a_label_is_asked_for_as_the_cgroup_and_only_where_that_is_known() {
    let made = |label: Option<u32>, stand, sender| {
        let rule = label.map(Statement::Labelled).into_iter().chain([Statement::Accept]).collect();
        program(&chain(vec![Rule::new(rule)]), &[], stand, sender).unwrap().code
    };
    let cgroup = Sender::InCgroup { level: 2, id: 7 };
    assert_ne!(made(Some(1), Stand::Tcx, cgroup), made(None, Stand::Tcx, cgroup));
    // The bit itself is netfilter's: which it is makes no difference.
    assert_eq!(made(Some(1), Stand::Tcx, cgroup), made(Some(2), Stand::Tcx, cgroup));
    for (stand, sender) in [(Stand::Tcx, Sender::InNetns(7)), (Stand::Xdp, cgroup)] {
        assert_eq!(made(Some(1), stand, sender), made(None, stand, sender));
    }
    let labels = chain(vec![Rule::new(vec![Statement::Label(1)])]);
    assert_eq!(program(&labels, &[], Stand::Tcx, cgroup), Err(Inexpressible::Statement));
}
