use std::collections::BTreeMap;

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::rules::ruleset::Test;

/// A packet, as far as rules look at it here: each field has one of four values, or is not there.
type Packet = BTreeMap<u8, u8>;
/// What sets remember: how often a key was put in.
type Memory = BTreeMap<String, BTreeMap<Vec<u8>, u32>>;

/// A set that is full ends a rule.
const ROOM: usize = 2;
const FIELDS: [Field; 7] = [
    Field::EtherSource,
    Field::IpProtocol,
    Field::IpSource,
    Field::IpDestination,
    Field::SourcePort,
    Field::DestinationPort,
    Field::NeighbourTarget,
];

fn value(field: Field, last: u8) -> Value {
    let mut bytes = vec![0; field.place().2 as usize];
    *bytes.last_mut().unwrap() = last;
    Value::new(&bytes).unwrap()
}

fn read(packet: &Packet, field: Field) -> Option<Value> {
    let place = FIELDS.iter().position(|known| *known == field)?;
    Some(value(field, *packet.get(&u8::try_from(place).unwrap())?))
}

fn holds(test: Test, value: Value) -> bool {
    let masked = |mask: Value| -> Vec<u8> { value.iter().zip(&*mask).map(|(byte, mask)| byte & mask).collect() };
    match test {
        Test::Is(wanted) => value == wanted,
        Test::Not(other) => value != other,
        Test::Range(first, last) => first <= value && value <= last,
        Test::Masked(mask, wanted) => masked(mask) == *wanted,
        Test::NotMasked(mask, other) => masked(mask) != *other,
    }
}

fn key(packet: &Packet, fields: &[Field]) -> Option<Vec<Value>> {
    fields.iter().map(|&field| read(packet, field)).collect()
}

/// Goes through the rules as the kernel does; says how the packet ends.
fn run(rules: &[Rule], packet: &Packet, memory: &mut Memory) -> Option<Statement> {
    'rules: for rule in rules {
        for statement in &rule.statements {
            let goes_on = match statement {
                Statement::Match(field, test) => read(packet, *field).is_some_and(|value| holds(*test, value)),
                Statement::OneOf { key: fields, elements } => key(packet, fields).is_some_and(|key| {
                    let key = Ranges(key.into_iter().map(|value| (value, value)).collect());
                    elements.iter().filter(|element| element.contains(&key)).count() == 1
                }),
                Statement::Lookup(fields, set) => key(packet, fields).is_some_and(|key| {
                    let key: Vec<u8> = key.iter().flat_map(|value| value.to_vec()).collect();
                    memory.get(set).is_some_and(|set| set.contains_key(&key))
                }),
                Statement::Update { key: fields, set, .. } => key(packet, fields).is_some_and(|key| {
                    let key: Vec<u8> = key.iter().flat_map(|value| value.to_vec()).collect();
                    let set = memory.entry(set.clone()).or_default();
                    let has_room = set.contains_key(&key) || set.len() < ROOM;
                    if has_room {
                        *set.entry(key).or_default() += 1;
                    }
                    has_room
                }),
                Statement::Accept | Statement::Drop => return Some(statement.clone()),
                other => panic!("{other}"),
            };
            if !goes_on {
                continue 'rules;
            }
        }
    }
    None
}

fn any_test(field: Field) -> impl Strategy<Value = Test> {
    let one = move |last| value(field, last);
    let all = Value::new(&vec![0xff; field.place().2 as usize]).unwrap();
    let masked = move |bits: u8| {
        let mut mask = all.to_vec();
        *mask.last_mut().unwrap() = bits;
        Value::new(&mask).unwrap()
    };
    prop_oneof![
        6 => (0_u8..4).prop_map(move |last| Test::Is(one(last))),
        2 => (0_u8..4, 0_u8..4).prop_map(move |(a, b)| Test::Range(one(a.min(b)), one(a.max(b)))),
        2 => (0_u8..2).prop_map(move |last| Test::Masked(masked(0xfe), one(2 * last))),
        1 => (0_u8..2).prop_map(move |last| Test::Masked(masked(0xfd), one(last))),
        1 => (0_u8..4).prop_map(move |last| Test::Not(one(last))),
        1 => (0_u8..2).prop_map(move |last| Test::NotMasked(masked(0xfe), one(2 * last))),
    ]
}

/// Some shapes, so that rules are alike often.
fn any_rule() -> impl Strategy<Value = Rule> {
    const SHAPES: [&[usize]; 5] = [&[2], &[1, 2], &[0, 2, 3], &[1, 2, 5], &[0, 6]];
    const KEY: &[Field] = &[Field::IpSource, Field::DestinationPort];
    let set = || prop::sample::select(vec!["a", "b"]).prop_map(str::to_owned);
    let update = || set().prop_map(|set| Statement::Update { key: KEY, set, counted: true });
    let effect = prop_oneof![
        5 => Just(vec![Statement::Accept]),
        1 => Just(vec![Statement::Drop]),
        2 => update().prop_map(|update| vec![update]),
        3 => update().prop_map(|update| vec![update, Statement::Accept]),
    ];
    let asks = prop::sample::select(SHAPES.to_vec()).prop_flat_map(|shape| {
        let test = |&place: &usize| any_test(FIELDS[place]).prop_map(move |test| Statement::Match(FIELDS[place], test));
        shape.iter().map(test).collect::<Vec<_>>()
    });
    let looks_up = prop::option::weighted(0.2, set().prop_map(|set| Statement::Lookup(KEY, set)));
    (asks, looks_up, effect)
        .prop_map(|(asks, looks_up, effect)| Rule::new(asks.into_iter().chain(looks_up).chain(effect).collect()))
}

fn any_packet() -> impl Strategy<Value = Packet> {
    vec(prop::option::weighted(0.95, 0_u8..4), FIELDS.len())
        .prop_map(|values| (0..).zip(values).filter_map(|(place, value)| Some((place, value?))).collect())
}

fn together(rules: Vec<Rule>) -> Vec<Rule> {
    groups(rules).into_iter().flat_map(Group::into_rules).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_packet_fares_as_before_and_is_remembered_as_before(
        rules in vec(any_rule(), 1..24),
        packets in vec(any_packet(), 1..60),
    ) {
        let after = together(rules.clone());
        let (mut memory, mut memory_after) = (Memory::new(), Memory::new());
        for packet in packets {
            let verdict = run(&rules, &packet, &mut memory);
            prop_assert_eq!(run(&after, &packet, &mut memory_after), verdict, "{:?}", packet);
            prop_assert_eq!(&memory, &memory_after, "{:?}", packet);
        }
    }
}

fn is(field: Field, last: u8) -> Statement {
    Statement::Match(field, Test::Is(value(field, last)))
}

fn texts(rules: &[Rule]) -> Vec<String> {
    rules.iter().map(ToString::to_string).collect()
}

#[test]
fn only_what_each_of_them_asked_for_is_in_the_set() {
    let rule = |source, destination| {
        let (source, destination) = (is(Field::IpSource, source), is(Field::IpDestination, destination));
        Rule::new(vec![is(Field::IpProtocol, 6), source, destination, Statement::Accept])
    };
    let after = together(vec![rule(1, 2), rule(3, 4), rule(1, 2)]);
    let expected = "ip protocol tcp ip saddr . ip daddr { 0.0.0.1 . 0.0.0.2, 0.0.0.3 . 0.0.0.4 } accept";
    assert_eq!(texts(&after), [expected]);
}

#[test]
fn the_same_rule_again_says_nothing_more() {
    let rule = Rule::new(vec![is(Field::IpSource, 1), Statement::Accept]);
    assert_eq!(together(vec![rule.clone(), rule.clone()]), [rule]);
}

#[test]
fn a_range_alone_takes_another_field_along() {
    let rule = |first, last| {
        let test = Test::Range(value(Field::DestinationPort, first), value(Field::DestinationPort, last));
        let ports = Statement::Match(Field::DestinationPort, test);
        Rule::new(vec![is(Field::IpProtocol, 6), is(Field::IpSource, 9), ports, Statement::Accept])
    };
    // Those that overlap are put in without what is in already.
    let after = together(vec![rule(1, 5), rule(8, 9), rule(4, 6)]);
    assert_eq!(
        texts(&after),
        ["ip protocol tcp ip saddr . th dport { 0.0.0.9 . 1-5, 0.0.0.9 . 6, 0.0.0.9 . 8-9 } accept"]
    );
    let alone = |first| Rule::new(rule(first, first + 1).statements[2..].to_vec());
    assert_eq!(together(vec![alone(1), alone(7)]), [alone(1), alone(7)]);
}

#[test]
fn what_counts_for_itself_stays_by_itself() {
    let rule = |source| Rule::new(vec![is(Field::IpSource, source), Statement::Counter, Statement::Accept]);
    assert_eq!(together(vec![rule(1), rule(2)]), [rule(1), rule(2)]);
    // So does what is for one packet together.
    let update = || Statement::Update { key: &[Field::IpSource], set: "a".to_owned(), counted: true };
    let within = |bits| {
        let mask = [0xff, 0xff, 0xff, bits];
        let test = Test::Masked(mask.into(), value(Field::IpSource, 0));
        Rule::new(vec![is(Field::IpProtocol, 6), Statement::Match(Field::IpSource, test), update()])
    };
    assert_eq!(together(vec![within(0xf0), within(0xe0)]), [within(0xf0), within(0xe0)]);
}

#[test]
fn a_key_is_no_wider_than_the_registers_nor_than_what_nft_lists() {
    let of = |fields: &[Field]| fits(fields);
    assert!(of(&[Field::EtherDestination, Field::Ip6Source, Field::Ip6Destination, Field::Solicitation]));
    assert!(!of(&[Field::IpSource, Field::Ip6Source, Field::Ip6Destination, Field::Ip6Source, Field::Ip6Destination]));
    let arp =
        [Field::EtherDestination, Field::ArpOperation, Field::ArpSenderIp, Field::ArpTargetEther, Field::ArpTargetIp];
    assert!(of(&arp));
    assert!(!of(&[&arp[..], &[Field::ArpSenderEther]].concat()));
    assert!(!of(&[&arp[..4], &[Field::NeighbourOption]].concat()), "five, of which one has no name");
    assert!(!of(&[Field::EtherType]));
}
