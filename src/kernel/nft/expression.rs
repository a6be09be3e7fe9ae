//! Rules as the kernel has them: expressions over registers, and their attributes on the wire, both ways.

use nix::libc;

use crate::kernel::netlink::{attribute, be32, nest, put, put_text, text};
use crate::rules::ruleset::Value;

use super::kernel;
use super::set::OwnSet;

/// Where single values are loaded to.
pub(super) const REGISTER: u32 = libc::NFT_REG_1 as u32;
pub(super) const EQUAL: u32 = libc::NFT_CMP_EQ as u32;
pub(super) const NOT_EQUAL: u32 = libc::NFT_CMP_NEQ as u32;
pub(super) const AT_MOST: u32 = libc::NFT_CMP_LTE as u32;
pub(super) const AT_LEAST: u32 = libc::NFT_CMP_GTE as u32;
pub(super) const UPDATE: u32 = libc::NFT_DYNSET_OP_UPDATE as u32;
pub(super) const INVERTED: u32 = libc::NFT_DYNSET_F_INV as u32;
const VERDICT_REGISTER: u32 = libc::NFT_REG_VERDICT as u32;
pub(super) const DROP: u32 = libc::NF_DROP as u32;
pub(super) const ACCEPT: u32 = libc::NF_ACCEPT as u32;
const JUMP: u32 = libc::NFT_JUMP as u32;
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
    SetMeta {
        key: u32,
        register: u32,
    },
    /// The ID of the cgroup that the packet's socket is in, at this level of the tree.
    Cgroup {
        level: u32,
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
    /// Sets these bits.
    Raise {
        register: u32,
        bits: Value,
    },
    Lookup {
        set: Vec<u8>,
        register: u32,
    },
    /// In a set that the rule has for itself.
    LookupOwn {
        set: OwnSet,
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
    Jump {
        chain: Vec<u8>,
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

/// What is masked, and then flipped.
fn bitwise(bytes: &mut Vec<u8>, register: u32, mask: &[u8], flip: &[u8]) {
    for kind in [kernel::BITWISE_SREG, kernel::BITWISE_DREG] {
        put(bytes, kind, &register.to_be_bytes());
    }
    put(bytes, kernel::BITWISE_LEN, &u32::try_from(mask.len()).unwrap_or_default().to_be_bytes());
    for (kind, value) in [(kernel::BITWISE_MASK, mask), (kernel::BITWISE_XOR, flip)] {
        nest(bytes, kind, |bytes| put(bytes, kernel::DATA_VALUE, value));
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
    let verdict = |bytes: &mut Vec<u8>, code, chain: Option<&Vec<u8>>| {
        number(bytes, kernel::IMMEDIATE_DREG, VERDICT_REGISTER);
        nest(bytes, kernel::IMMEDIATE_DATA, |bytes| {
            nest(bytes, kernel::DATA_VERDICT, |bytes| {
                number(bytes, kernel::VERDICT_CODE, code);
                if let Some(chain) = chain {
                    put_text(bytes, kernel::VERDICT_CHAIN, chain);
                }
            });
        });
    };
    match expression {
        Expression::Meta { key, register } => element(b"meta", &|bytes| {
            number(bytes, kernel::META_DREG, *register);
            number(bytes, kernel::META_KEY, *key);
        }),
        Expression::SetMeta { key, register } => element(b"meta", &|bytes| {
            number(bytes, kernel::META_KEY, *key);
            number(bytes, kernel::META_SREG, *register);
        }),
        Expression::Cgroup { level, register } => element(b"socket", &|bytes| {
            number(bytes, kernel::SOCKET_KEY, kernel::SOCKET_CGROUP);
            number(bytes, kernel::SOCKET_DREG, *register);
            number(bytes, kernel::SOCKET_LEVEL, *level);
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
        Expression::Mask { register, mask } => {
            element(b"bitwise", &|bytes| bitwise(bytes, *register, mask, &vec![0; mask.len()]));
        }
        Expression::Raise { register, bits } => {
            let others: Vec<u8> = bits.iter().map(|bits| !bits).collect();
            element(b"bitwise", &|bytes| bitwise(bytes, *register, &others, bits));
        }
        Expression::Lookup { set, register } => encode_lookup(bytes, set, *register, None),
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
        Expression::Verdict { code } => element(b"immediate", &|bytes| verdict(bytes, *code, None)),
        Expression::Jump { chain } => element(b"immediate", &|bytes| verdict(bytes, JUMP, Some(chain))),
        // Nothing compiles to the first; the second is told by the number of its set, which is the batch's.
        Expression::Foreign | Expression::LookupOwn { .. } => {}
    }
}

/// Appends a lookup in a set; one of the same batch that has no name yet is told by its number.
pub(super) fn encode_lookup(bytes: &mut Vec<u8>, set: &[u8], register: u32, id: Option<u32>) {
    nest(bytes, kernel::LIST_ELEM, |bytes| {
        put_text(bytes, kernel::EXPR_NAME, b"lookup");
        nest(bytes, kernel::EXPR_DATA, |bytes| {
            put_text(bytes, kernel::LOOKUP_SET, set);
            put(bytes, kernel::LOOKUP_SREG, &register.to_be_bytes());
            if let Some(id) = id {
                put(bytes, kernel::LOOKUP_SET_ID, &id.to_be_bytes());
            }
        });
    });
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
        b"meta" => {
            let key = number(kernel::META_KEY)?;
            Some(match number(kernel::META_SREG) {
                Some(register) => Expression::SetMeta { key, register },
                None => Expression::Meta { key, register: number(kernel::META_DREG)? },
            })
        }
        b"socket" => {
            let (level, register) = (number(kernel::SOCKET_LEVEL)?, number(kernel::SOCKET_DREG)?);
            let is_cgroup = number(kernel::SOCKET_KEY)? == kernel::SOCKET_CGROUP;
            is_cgroup.then_some(Expression::Cgroup { level, register })
        }
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
            // One register in and out, nothing flipped but what the mask has cleared, and no other operation than mask-and-flip.
            let register = number(kernel::BITWISE_SREG)?;
            let plain = number(kernel::BITWISE_DREG)? == register && number(kernel::BITWISE_OP).unwrap_or(0) == 0;
            let (mask, flip) = (value(kernel::BITWISE_MASK)?, value(kernel::BITWISE_XOR)?);
            let raises = mask.len() == flip.len() && mask.iter().zip(flip).all(|(mask, flip)| *mask == !flip);
            match flip.iter().all(|&byte| byte == 0) {
                _ if !plain => None,
                true => Some(Expression::Mask { register, mask: Value::new(mask)? }),
                false if raises => Some(Expression::Raise { register, bits: Value::new(flip)? }),
                false => None,
            }
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
            let chain = attribute(verdict, kernel::VERDICT_CHAIN).map(|chain| text(chain).to_vec());
            let expression = match (code, chain) {
                (JUMP, Some(chain)) => Expression::Jump { chain },
                (code, None) => Expression::Verdict { code },
                (_, Some(_)) => Expression::Foreign,
            };
            (number(kernel::IMMEDIATE_DREG)? == VERDICT_REGISTER).then_some(expression)
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
