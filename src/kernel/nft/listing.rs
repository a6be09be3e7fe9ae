//! What nft is told of the key of a set, which the kernel keeps for it and does not read: without it `nft list` (1.0.6) ends in a
//! failed assertion over a field that it has no name for. What it could do with is told by the type of the key already.
//!
//! Its own form: a type, a length and a value, nested; numbers as the machine has them. The numbers are those of nft's
//! `enum proto_desc_id` and of the fields of its protocols.

use crate::rules::ruleset::{Base, Field, KeyType};

const KEY_BYTE_ORDER: u8 = 0;
const KEY_TYPE_OF: u8 = 3;
const EXPRESSION: u8 = 0;
const DATA: u8 = 1;
const PAYLOAD: u32 = 7;
const CONCATENATION: u32 = 13;
/// Of a payload: protocol, field, and where it is, in bits.
const PROTOCOL: u8 = 0;
const FIELD: u8 = 1;
const BASE: u8 = 2;
const OFFSET: u8 = 3;
const LENGTH: u8 = 4;
const INVALID: u32 = 0;
const BIG_ENDIAN: u32 = 2;

/// What nft is told of a key with a field that it has no name for; `None` of another one.
pub(super) fn key_for_nft(key: &[Field]) -> Option<Vec<u8>> {
    if !key.iter().any(is_raw) {
        return None;
    }
    let mut userdata = Vec::new();
    let mut described: Vec<_> = key.iter().map(|&field| payload(field)).collect();
    // Of several fields together there is no byte order.
    let (order, description) = match described.len() {
        1 => (BIG_ENDIAN, described.remove(0)),
        _ => (INVALID, concatenation(&described)),
    };
    put(&mut userdata, KEY_BYTE_ORDER, &order.to_ne_bytes());
    put(&mut userdata, KEY_TYPE_OF, &description);
    Some(userdata)
}

fn is_raw(field: &Field) -> bool {
    matches!(field.key_type(), Some(KeyType::Raw(_)))
}

fn expression(kind: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, EXPRESSION, &kind.to_ne_bytes());
    put(&mut bytes, DATA, data);
    bytes
}

fn concatenation(fields: &[Vec<u8>]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (number, field) in (0..).zip(fields) {
        put(&mut bytes, number, field);
    }
    expression(CONCATENATION, &bytes)
}

fn payload(field: Field) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut number = |kind, number: u32| put(&mut bytes, kind, &number.to_ne_bytes());
    match known(field) {
        Some([protocol, field]) => {
            number(PROTOCOL, protocol);
            number(FIELD, field);
        }
        None => {
            let (base, offset, length) = field.place();
            let base = match base {
                Base::Link => 1,
                Base::Network => 2,
                Base::Transport => 3,
            };
            let raw = [(PROTOCOL, 0), (FIELD, 0), (BASE, base), (OFFSET, 8 * offset), (LENGTH, 8 * length)];
            raw.into_iter().for_each(|(kind, value)| number(kind, value));
        }
    }
    expression(PAYLOAD, &bytes)
}

/// The protocol and the field of a name that nft has.
fn known(field: Field) -> Option<[u32; 2]> {
    const IP6: u32 = 13;
    const ETHER: u32 = 17;
    match field {
        Field::EtherDestination => Some([ETHER, 1]),
        Field::EtherSource => Some([ETHER, 2]),
        Field::Ip6Source => Some([IP6, 8]),
        Field::Ip6Destination => Some([IP6, 9]),
        _ => None,
    }
}

fn put(bytes: &mut Vec<u8>, kind: u8, value: &[u8]) {
    bytes.extend([kind, u8::try_from(value.len()).unwrap_or_default()]);
    bytes.extend_from_slice(value);
}
