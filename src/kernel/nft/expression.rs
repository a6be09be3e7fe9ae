//! Rules as the kernel has them: expressions over registers, and their attributes on the wire, both ways.

use nix::libc;

use crate::kernel::netlink::{attribute, be32, nest, put, put_text, text};
use crate::rules::ruleset::{Base, Field, Meta, Report, Rule, Statement, Test, Value};

use super::kernel;
use crate::model::names::IfName;

/// Where single values are loaded to.
const REGISTER: u32 = libc::NFT_REG_1 as u32;
const EQUAL: u32 = libc::NFT_CMP_EQ as u32;
const NOT_EQUAL: u32 = libc::NFT_CMP_NEQ as u32;
const AT_MOST: u32 = libc::NFT_CMP_LTE as u32;
const AT_LEAST: u32 = libc::NFT_CMP_GTE as u32;
const UPDATE: u32 = libc::NFT_DYNSET_OP_UPDATE as u32;
const INVERTED: u32 = libc::NFT_DYNSET_F_INV as u32;
const VERDICT_REGISTER: u32 = libc::NFT_REG_VERDICT as u32;
pub(super) const DROP: u32 = libc::NF_DROP as u32;
const ACCEPT: u32 = libc::NF_ACCEPT as u32;
/// A limit's unit, in seconds.
const ONE_SECOND: u64 = 1;
const LIMIT_PACKETS: u32 = 0;

/// One expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Expression {
    Meta {
        key: u32,
        register: u32,
    },
    Payload {
        base: u32,
        offset: u32,
        length: u32,
        register: u32,
    },
    Compare {
        operation: u32,
        register: u32,
        value: Value,
    },
    Mask {
        register: u32,
        mask: Value,
    },
    Lookup {
        set: Vec<u8>,
        register: u32,
    },
    Update {
        set: Vec<u8>,
        register: u32,
        counted: bool,
    },
    Counter,
    Limit {
        per_second: u64,
        burst: u32,
    },
    Log {
        group: u16,
        length: u32,
        prefix: Vec<u8>,
    },
    Verdict {
        code: u32,
    },
    /// One that no rule of ours has.
    Foreign,
}

/// Packets and bytes that a counter has seen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Packets.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
}

/// The expressions of a rule.
pub(super) fn compile(rule: &Rule) -> Vec<Expression> {
    let mut expressions = Vec::with_capacity(3 * rule.statements.len());
    // The length of the whole packet first: what asks for the least work turns most packets away.
    for statement in rule.statements.iter().filter(|statement| reads_length(statement)) {
        if let Statement::Meta(meta) = statement {
            expressions.extend(compile_meta(meta));
        }
    }
    if rule.statements.iter().any(reads_link_header) {
        // What nft itself puts before a link-layer field; without it `nft list` cannot name any field of the rule.
        expressions.extend(meta_is(libc::NFT_META_IIFTYPE, libc::ARPHRD_ETHER.to_ne_bytes().into()));
    }
    let mut parts = Vec::with_capacity(rule.statements.len());
    let mut statements = rule.statements.iter().filter(|statement| !reads_length(statement)).peekable();
    while let Some(statement) = statements.next() {
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
            Statement::Lookup(key, set) => {
                load_key(key, &mut expressions);
                expressions.push(Expression::Lookup { set: set.clone().into_bytes(), register: REGISTER });
            }
            Statement::Update { key, set, counted } => {
                load_key(key, &mut expressions);
                let set = set.clone().into_bytes();
                expressions.push(Expression::Update { set, register: REGISTER, counted: *counted });
            }
            Statement::Report(report) => expressions.extend(compile_report(report)),
            Statement::Counter => expressions.push(Expression::Counter),
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
    matches!(statement, Statement::Match(field, _) if field.place().0 == Base::Link)
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
            && let Some(both) = value.followed_by(more)
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

/// Appends an expression as an element of a rule's list.
pub(super) fn encode(bytes: &mut Vec<u8>, expression: &Expression) {
    let number = |bytes: &mut Vec<u8>, kind, value: u32| put(bytes, kind, &value.to_be_bytes());
    let value =
        |bytes: &mut Vec<u8>, kind, value: &[u8]| nest(bytes, kind, |bytes| put(bytes, kernel::DATA_VALUE, value));
    let mut element = |name: &[u8], write: &dyn Fn(&mut Vec<u8>)| {
        nest(bytes, kernel::LIST_ELEM, |bytes| {
            put_text(bytes, kernel::EXPR_NAME, name);
            nest(bytes, kernel::EXPR_DATA, write);
        });
    };
    match expression {
        Expression::Meta { key, register } => element(b"meta", &|bytes| {
            number(bytes, kernel::META_DREG, *register);
            number(bytes, kernel::META_KEY, *key);
        }),
        Expression::Payload { base, offset, length, register } => element(b"payload", &|bytes| {
            number(bytes, kernel::PAYLOAD_DREG, *register);
            number(bytes, kernel::PAYLOAD_BASE, *base);
            number(bytes, kernel::PAYLOAD_OFFSET, *offset);
            number(bytes, kernel::PAYLOAD_LEN, *length);
        }),
        Expression::Compare { operation, register, value: data } => element(b"cmp", &|bytes| {
            number(bytes, kernel::CMP_SREG, *register);
            number(bytes, kernel::CMP_OP, *operation);
            value(bytes, kernel::CMP_DATA, data);
        }),
        Expression::Mask { register, mask } => element(b"bitwise", &|bytes| {
            number(bytes, kernel::BITWISE_SREG, *register);
            number(bytes, kernel::BITWISE_DREG, *register);
            number(bytes, kernel::BITWISE_LEN, u32::try_from(mask.len()).unwrap_or_default());
            value(bytes, kernel::BITWISE_MASK, mask);
            value(bytes, kernel::BITWISE_XOR, &vec![0; mask.len()]);
        }),
        Expression::Lookup { set, register } => element(b"lookup", &|bytes| {
            put_text(bytes, kernel::LOOKUP_SET, set);
            number(bytes, kernel::LOOKUP_SREG, *register);
        }),
        Expression::Update { set, register, counted } => element(b"dynset", &|bytes| {
            put_text(bytes, kernel::DYNSET_SET_NAME, set);
            number(bytes, kernel::DYNSET_OP, UPDATE);
            number(bytes, kernel::DYNSET_SREG_KEY, *register);
            if *counted {
                // Without NFT_DYNSET_F_EXPR, which 5.10 does not know and one expression does not need.
                nest(bytes, kernel::DYNSET_EXPR, |bytes| {
                    put_text(bytes, kernel::EXPR_NAME, b"counter");
                    nest(bytes, kernel::EXPR_DATA, |_| {});
                });
            }
        }),
        Expression::Counter => element(b"counter", &|_| {}),
        Expression::Limit { per_second, burst } => element(b"limit", &|bytes| {
            put(bytes, kernel::LIMIT_RATE, &per_second.to_be_bytes());
            put(bytes, kernel::LIMIT_UNIT, &ONE_SECOND.to_be_bytes());
            number(bytes, kernel::LIMIT_BURST, *burst);
            number(bytes, kernel::LIMIT_TYPE, LIMIT_PACKETS);
        }),
        Expression::Log { group, length, prefix } => element(b"log", &|bytes| {
            put(bytes, kernel::LOG_GROUP, &group.to_be_bytes());
            put_text(bytes, kernel::LOG_PREFIX, prefix);
            number(bytes, kernel::LOG_SNAPLEN, *length);
        }),
        Expression::Verdict { code } => element(b"immediate", &|bytes| {
            number(bytes, kernel::IMMEDIATE_DREG, VERDICT_REGISTER);
            nest(bytes, kernel::IMMEDIATE_DATA, |bytes| {
                nest(bytes, kernel::DATA_VERDICT, |bytes| number(bytes, kernel::VERDICT_CODE, *code))
            });
        }),
        // Nothing compiles to it.
        Expression::Foreign => {}
    }
}

/// Reads one element of a rule's list, and what its counter has seen.
pub(super) fn decode(element: &[u8]) -> (Expression, Option<Count>) {
    let name = attribute(element, kernel::EXPR_NAME).map(text).unwrap_or_default();
    let data = attribute(element, kernel::EXPR_DATA).unwrap_or_default();
    if name == b"counter" {
        return (Expression::Counter, Some(count(data)));
    }
    (decode_stateless(name, data).unwrap_or(Expression::Foreign), None)
}

fn decode_stateless(name: &[u8], data: &[u8]) -> Option<Expression> {
    let number = |kind| attribute(data, kind).and_then(be32);
    let value = |kind| attribute(data, kind).and_then(|value| attribute(value, kernel::DATA_VALUE));
    let set = |kind| attribute(data, kind).map(|name| text(name).to_vec());
    match name {
        b"meta" => Some(Expression::Meta { register: number(kernel::META_DREG)?, key: number(kernel::META_KEY)? }),
        b"payload" => Some(Expression::Payload {
            register: number(kernel::PAYLOAD_DREG)?,
            base: number(kernel::PAYLOAD_BASE)?,
            offset: number(kernel::PAYLOAD_OFFSET)?,
            length: number(kernel::PAYLOAD_LEN)?,
        }),
        b"cmp" => Some(Expression::Compare {
            register: number(kernel::CMP_SREG)?,
            operation: number(kernel::CMP_OP)?,
            value: Value::new(value(kernel::CMP_DATA)?)?,
        }),
        b"bitwise" => {
            // One register in and out, nothing flipped, and no other operation than mask-and-flip.
            let register = number(kernel::BITWISE_SREG)?;
            let plain = number(kernel::BITWISE_DREG)? == register
                && value(kernel::BITWISE_XOR)?.iter().all(|&byte| byte == 0)
                && number(kernel::BITWISE_OP).unwrap_or(0) == 0;
            plain.then_some(Expression::Mask { register, mask: Value::new(value(kernel::BITWISE_MASK)?)? })
        }
        b"lookup" => {
            let inverted = number(kernel::LOOKUP_FLAGS).unwrap_or(0) != 0;
            let set = set(kernel::LOOKUP_SET)?;
            (!inverted).then_some(Expression::Lookup { set, register: number(kernel::LOOKUP_SREG)? })
        }
        b"dynset" => {
            let timeout_of_its_own =
                attribute(data, kernel::DYNSET_TIMEOUT).is_some_and(|timeout| timeout.iter().any(|&byte| byte != 0));
            let counted = attribute(data, kernel::DYNSET_EXPR)
                .map(|expression| attribute(expression, kernel::EXPR_NAME).map(text) == Some(b"counter"));
            // Inverted, it ends the rule where it should go on; several expressions are named elsewhere than one.
            let plain = number(kernel::DYNSET_OP)? == UPDATE
                && number(kernel::DYNSET_FLAGS).unwrap_or(0) & INVERTED == 0
                && attribute(data, kernel::DYNSET_EXPRESSIONS).is_none()
                && !timeout_of_its_own
                && counted != Some(false)
                && attribute(data, kernel::DYNSET_SREG_DATA).is_none();
            let (set, register) = (set(kernel::DYNSET_SET_NAME)?, number(kernel::DYNSET_SREG_KEY)?);
            plain.then_some(Expression::Update { set, register, counted: counted.is_some() })
        }
        b"limit" => {
            let wide = |kind| attribute(data, kind).and_then(|value| value.try_into().ok()).map(u64::from_be_bytes);
            let plain = wide(kernel::LIMIT_UNIT)? == ONE_SECOND
                && number(kernel::LIMIT_TYPE)? == LIMIT_PACKETS
                && number(kernel::LIMIT_FLAGS).unwrap_or(0) == 0;
            let (per_second, burst) = (wide(kernel::LIMIT_RATE)?, number(kernel::LIMIT_BURST)?);
            plain.then_some(Expression::Limit { per_second, burst })
        }
        b"log" => Some(Expression::Log {
            group: attribute(data, kernel::LOG_GROUP)?.try_into().ok().map(u16::from_be_bytes)?,
            length: number(kernel::LOG_SNAPLEN)?,
            prefix: text(attribute(data, kernel::LOG_PREFIX)?).to_vec(),
        }),
        b"immediate" => {
            let verdict =
                attribute(data, kernel::IMMEDIATE_DATA).and_then(|data| attribute(data, kernel::DATA_VERDICT))?;
            let code = attribute(verdict, kernel::VERDICT_CODE).and_then(be32)?;
            (number(kernel::IMMEDIATE_DREG)? == VERDICT_REGISTER).then_some(Expression::Verdict { code })
        }
        _ => None,
    }
}

/// Reads a counter's data.
pub(super) fn count(data: &[u8]) -> Count {
    let number = |kind| attribute(data, kind).and_then(|value| value.try_into().ok()).map_or(0, u64::from_be_bytes);
    Count { bytes: number(kernel::COUNTER_BYTES), packets: number(kernel::COUNTER_PACKETS) }
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(element: &[u8]) {
    let (expression, _) = decode(element);
    let mut bytes = Vec::new();
    encode(&mut bytes, &expression);
    // What cannot be compared to the byte is none of ours.
    let again = attribute(&bytes, kernel::LIST_ELEM).map(|element| decode(element).0);
    assert_eq!(again.unwrap_or(Expression::Foreign), expression);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::netlink::attributes;

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
