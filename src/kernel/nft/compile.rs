//! Rules as the expressions over registers that the kernel runs.

use nix::libc;

use crate::model::names::IfName;
use crate::rules::ruleset::{Base, Field, Meta, Report, Rule, Statement, Test, Value};

use super::expression::*;
use super::set::OwnSet;

/// Bytes that the kernel compares at once.
const LONGEST_COMPARED: usize = 16;
const SECMARK: u32 = libc::NFT_META_SECMARK as u32;

/// The expressions of a rule.
pub(super) fn compile(rule: &Rule) -> Vec<Expression> {
    let mut expressions = Vec::with_capacity(3 * rule.statements.len());
    // The length of the whole packet first: what asks for the least work turns most packets away.
    for statement in rule.statements.iter().filter(|statement| reads_length(statement)) {
        if let Statement::Meta(meta) = statement {
            expressions.extend(compile_meta(meta));
        }
    }
    let mut has_asked_kind = false;
    let mut parts = Vec::with_capacity(rule.statements.len());
    let mut statements = rule.statements.iter().filter(|statement| !reads_length(statement)).peekable();
    while let Some(statement) = statements.next() {
        if reads_link_header(statement) && !std::mem::replace(&mut has_asked_kind, true) {
            // What nft itself puts before a link-layer field; without it `nft list` cannot name any field of the rule.
            expressions.extend(meta_is(libc::NFT_META_IIFTYPE, libc::ARPHRD_ETHER.to_ne_bytes().into()));
        }
        match statement {
            Statement::Match(field, Test::Is(value)) => {
                parts.clear();
                parts.push((*field, *value));
                while let Some(Statement::Match(next, Test::Is(value))) = statements.peek()
                    && is_in_same_header(*field, *next)
                {
                    parts.push((*next, *value));
                    statements.next();
                }
                compile_parts(&mut parts, &mut expressions);
            }
            Statement::Match(field, test) => compile_match(*field, *test, &mut expressions),
            Statement::Meta(meta) => expressions.extend(compile_meta(meta)),
            Statement::OneOf { key, elements } => {
                load_key(key, &mut expressions);
                expressions.push(Expression::LookupOwn { set: OwnSet::of(key, elements), register: REGISTER });
            }
            Statement::Lookup(key, set) => {
                load_key(key, &mut expressions);
                expressions.push(Expression::Lookup { set: set.clone().into_bytes(), register: REGISTER });
            }
            Statement::Update { key, set, counted } => {
                load_key(key, &mut expressions);
                let set = set.clone().into_bytes();
                expressions.push(Expression::Update { set, register: REGISTER, counted: *counted });
            }
            Statement::Label(bit) => expressions.extend([
                Expression::Meta { key: SECMARK, register: REGISTER },
                Expression::Raise { register: REGISTER, bits: bit.to_ne_bytes().into() },
                Expression::SetMeta { key: SECMARK, register: REGISTER },
            ]),
            Statement::Labelled(bit) => expressions.extend([
                Expression::Meta { key: SECMARK, register: REGISTER },
                Expression::Mask { register: REGISTER, mask: bit.to_ne_bytes().into() },
                Expression::Compare { operation: EQUAL, register: REGISTER, value: bit.to_ne_bytes().into() },
            ]),
            Statement::Report(report) => expressions.extend(compile_report(report)),
            Statement::Counter => expressions.push(Expression::Counter),
            Statement::Jump(branch) => expressions.push(Expression::Jump { chain: branch.clone().into_bytes() }),
            Statement::Accept => expressions.push(Expression::Verdict { code: ACCEPT }),
            Statement::Drop => expressions.push(Expression::Verdict { code: DROP }),
        }
    }
    expressions
}

fn compile_report(report: &Report) -> [Expression; 2] {
    let Report { group, length, per_second, burst, prefix } = report;
    [
        Expression::Limit { per_second: u64::from(*per_second), burst: *burst },
        Expression::Log { group: *group, length: *length, prefix: prefix.clone().into_bytes() },
    ]
}

fn reads_length(statement: &Statement) -> bool {
    matches!(statement, Statement::Meta(Meta::Length(_)))
}

fn reads_link_header(statement: &Statement) -> bool {
    let is_in_it = |field: &Field| field.place().0 == Base::Link;
    match statement {
        Statement::Match(field, _) => is_in_it(field),
        Statement::OneOf { key, .. } => key.iter().any(is_in_it),
        _ => false,
    }
}

fn is_in_same_header(field: Field, other: Field) -> bool {
    field.place().0 == other.place().0
}

/// Fields of one header that must each have a value: those that touch are loaded and compared as one, as `nft` does it.
/// Each expression costs twice for every rule that is loaded or read back, and again for every packet.
fn compile_parts(parts: &mut [(Field, Value)], expressions: &mut Vec<Expression>) {
    parts.sort_by_key(|&(field, _)| field.place().1);
    let mut parts = parts.iter().peekable();
    while let Some(&(field, mut value)) = parts.next() {
        let (base, offset, mut length) = field.place();
        while let Some(&&(next, more)) = parts.peek()
            && next.place().1 == offset + length
            && let Some(both) = value.followed_by(more).filter(|both| both.len() <= LONGEST_COMPARED)
        {
            length += next.place().2;
            value = both;
            parts.next();
        }
        expressions.push(load_payload(base, offset, length, REGISTER));
        expressions.push(Expression::Compare { operation: EQUAL, register: REGISTER, value });
    }
}

fn compile_match(field: Field, test: Test, expressions: &mut Vec<Expression>) {
    let compare = |operation, value| Expression::Compare { operation, register: REGISTER, value };
    expressions.push(load(field, REGISTER));
    match test {
        Test::Is(value) => expressions.push(compare(EQUAL, value)),
        Test::Not(value) => expressions.push(compare(NOT_EQUAL, value)),
        Test::Range(first, last) => {
            expressions.extend([compare(AT_LEAST, first), compare(AT_MOST, last)]);
        }
        Test::Masked(mask, value) | Test::NotMasked(mask, value) => {
            let operation = if matches!(test, Test::Masked(..)) { EQUAL } else { NOT_EQUAL };
            expressions.push(Expression::Mask { register: REGISTER, mask });
            expressions.push(compare(operation, value));
        }
    }
}

/// In the kernel's own byte order, and names as long as it has them.
fn compile_meta(meta: &Meta) -> [Expression; 2] {
    match meta {
        Meta::Length(length) => meta_is(libc::NFT_META_LEN, length.to_ne_bytes().into()),
        Meta::Iifname(name) => meta_is(libc::NFT_META_IIFNAME, interface_name(name)),
        Meta::Oifname(name) => meta_is(libc::NFT_META_OIFNAME, interface_name(name)),
        Meta::Skuid(user) => meta_is(libc::NFT_META_SKUID, user.to_ne_bytes().into()),
        Meta::Protocol(ether_type) => meta_is(libc::NFT_META_PROTOCOL, (*ether_type).into()),
        // No user has this number, so it is so wherever there is one.
        Meta::HasUser => [
            Expression::Meta { key: libc::NFT_META_SKUID.unsigned_abs(), register: REGISTER },
            Expression::Compare { operation: NOT_EQUAL, register: REGISTER, value: u32::MAX.to_ne_bytes().into() },
        ],
        Meta::Cgroup(cgroup) => [
            Expression::Cgroup { level: cgroup.path.level(), register: REGISTER },
            Expression::Compare { operation: EQUAL, register: REGISTER, value: cgroup.id.to_ne_bytes().into() },
        ],
        Meta::ForThisHost => meta_is(libc::NFT_META_PKTTYPE, [libc::PACKET_HOST].into()),
        Meta::Nfproto { v6 } => {
            let family = if *v6 { libc::NFPROTO_IPV6 } else { libc::NFPROTO_IPV4 };
            meta_is(libc::NFT_META_NFPROTO, [family as u8].into())
        }
    }
}

fn meta_is(key: libc::c_int, value: Value) -> [Expression; 2] {
    [
        Expression::Meta { key: key.unsigned_abs(), register: REGISTER },
        Expression::Compare { operation: EQUAL, register: REGISTER, value },
    ]
}

/// Padded with zeros to `IFNAMSIZ`, which no name is longer than.
fn interface_name(name: &IfName) -> Value {
    let mut value = [0; libc::IFNAMSIZ];
    value.iter_mut().zip(name.as_bytes()).for_each(|(to, from)| *to = *from);
    value.into()
}

fn load(field: Field, register: u32) -> Expression {
    let (base, offset, length) = field.place();
    load_payload(base, offset, length, register)
}

fn load_payload(base: Base, offset: u32, length: u32, register: u32) -> Expression {
    let base = match base {
        Base::Link => libc::NFT_PAYLOAD_LL_HEADER,
        Base::Network => libc::NFT_PAYLOAD_NETWORK_HEADER,
        Base::Transport => libc::NFT_PAYLOAD_TRANSPORT_HEADER,
    };
    let base = base.unsigned_abs();
    Expression::Payload { base, offset, length, register }
}

/// Loads the fields of a key into registers that follow each other; each takes a multiple of four bytes.
fn load_key(key: &[Field], expressions: &mut Vec<Expression>) {
    let mut slot = 0;
    for &field in key {
        // The first of each four slots has the number of a 16-byte register, as the kernel itself says it.
        let register = if slot % 4 == 0 { REGISTER + slot / 4 } else { libc::NFT_REG32_00.unsigned_abs() + slot };
        expressions.push(load(field, register));
        slot += field.place().2.div_ceil(4);
    }
}

#[cfg(test)]
mod tests {
    use super::super::kernel;
    use super::*;
    use crate::kernel::netlink::{attributes, nest, put, put_text};
    use crate::model::cgroup::{Cgroup, CgroupPath};

    #[test]
    fn expressions_are_read_as_they_are_written() {
        let rule = Rule::new(vec![
            Statement::Meta(Meta::Length(28)),
            Statement::Match(Field::DestinationPort, Test::Range([0, 1].into(), [0xff, 0xff].into())),
            Statement::Match(Field::IpSource, Test::Masked([255, 0, 0, 0].into(), [10, 0, 0, 0].into())),
            Statement::Match(Field::IpProtocol, Test::Not([6].into())),
            Statement::Lookup(&[Field::Ip6NextHeader, Field::Ip6Source, Field::SourcePort], "flows6".to_owned()),
            Statement::Update { key: &[Field::IpProtocol], set: "attempts4".to_owned(), counted: true },
            Statement::Update { key: &[Field::IpProtocol], set: "flows4".to_owned(), counted: false },
            Statement::Report(Report {
                group: 20_803,
                length: 128,
                per_second: 20,
                burst: 100,
                prefix: "c1".to_owned(),
            }),
            Statement::Label(4),
            Statement::Labelled(4),
            Statement::Meta(Meta::HasUser),
            Statement::Meta(Meta::Cgroup(Cgroup { path: CgroupPath::new("a.slice/b.service").unwrap(), id: 77 })),
            Statement::Counter,
            Statement::Accept,
            Statement::Drop,
        ]);
        let compiled = compile(&rule);
        let mut bytes = Vec::new();
        for expression in &compiled {
            encode(&mut bytes, expression);
        }
        let decoded: Vec<_> = attributes(&bytes).map(|(_, element)| decode(element).0).collect();
        assert_eq!(decoded, compiled);
    }

    #[test]
    fn an_update_that_was_changed_is_none_of_ours() {
        let read_with = |kind, value: &[u8]| {
            let mut element = Vec::new();
            put_text(&mut element, kernel::EXPR_NAME, b"dynset");
            nest(&mut element, kernel::EXPR_DATA, |bytes| {
                put_text(bytes, kernel::DYNSET_SET_NAME, b"flows4");
                put(bytes, kernel::DYNSET_OP, &UPDATE.to_be_bytes());
                put(bytes, kernel::DYNSET_SREG_KEY, &REGISTER.to_be_bytes());
                put(bytes, kind, value);
            });
            decode(&element).0
        };
        let plain = Expression::Update { set: b"flows4".to_vec(), register: REGISTER, counted: false };
        assert_eq!(read_with(kernel::DYNSET_FLAGS, &[0; 4]), plain, "as the kernel says it of every one");
        for (kind, value) in [
            (kernel::DYNSET_FLAGS, &INVERTED.to_be_bytes()[..]),
            (kernel::DYNSET_EXPRESSIONS, &[]),
            (kernel::DYNSET_TIMEOUT, &[1]),
            (kernel::DYNSET_SREG_DATA, &[0, 0, 0, 1]),
        ] {
            assert_eq!(read_with(kind, value), Expression::Foreign, "{kind}");
        }
    }

    #[test]
    fn fields_that_touch_are_compared_as_one() {
        let is = |field: Field, byte: u8| {
            let length = field.place().2;
            Statement::Match(field, Test::Is(Value::new(&vec![byte; usize::try_from(length).unwrap()]).unwrap()))
        };
        let rule = Rule::new(vec![
            is(Field::ArpTargetIp, 5),
            is(Field::ArpFormat, 1),
            is(Field::ArpSenderEther, 3),
            is(Field::ArpOperation, 2),
            is(Field::ArpSenderIp, 4),
            is(Field::Icmp6Type, 9),
        ]);
        let compared: Vec<_> = compile(&rule)
            .chunks(2)
            .map(|pair| match pair {
                [Expression::Payload { offset, length, .. }, Expression::Compare { value, .. }] => {
                    assert_eq!(value.len(), usize::try_from(*length).unwrap());
                    (*offset, value.to_vec())
                }
                other => panic!("{other:?}"),
            })
            .collect();
        let first = [&[1; 6][..], &[2; 2], &[3; 6]].concat();
        assert_eq!(compared, [(0, first), (14, vec![4; 4]), (24, vec![5; 4]), (0, vec![9])]);
    }

    #[test]
    fn keys_take_registers_as_the_kernel_numbers_them() {
        let mut expressions = Vec::new();
        load_key(
            &[Field::Ip6NextHeader, Field::Ip6Source, Field::SourcePort, Field::DestinationPort],
            &mut expressions,
        );
        let registers: Vec<_> = expressions
            .iter()
            .map(|expression| match expression {
                Expression::Payload { register, .. } => *register,
                _ => 0,
            })
            .collect();
        assert_eq!(registers, [1, 9, 13, 14]);
    }
}
