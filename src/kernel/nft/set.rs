//! Sets as the kernel has them: the numbers and bytes of a key, and the set that a rule has for itself.

use crate::rules::ruleset::{Content, Field, KeyType, Ranges, Set};

use super::kernel;

/// No key of ours has many more bytes: a station, an address of IPv6, a protocol and a port.
const KEY_EXPECTED: usize = 32;

/// A set that belongs to one rule, without its name, which the kernel has given it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OwnSet {
    pub(super) flags: u32,
    pub(super) key_type: u32,
    pub(super) key_length: u32,
    /// First and last key of each, sorted.
    pub(super) elements: Vec<[Vec<u8>; 2]>,
}

impl OwnSet {
    pub(super) fn of(key: &[Field], elements: &[Ranges]) -> Self {
        let types = types(key);
        Self {
            flags: own_set_flags(elements),
            key_type: key_type(&types),
            key_length: key_length(&types),
            elements: sorted_keys(elements),
        }
    }
}

/// The types of the fields of a key. None of ours has a field that has no place in one.
pub(super) fn types(key: &[Field]) -> Vec<KeyType> {
    key.iter().filter_map(|field| field.key_type()).collect()
}

pub(super) fn own_set_flags(elements: &[Ranges]) -> u32 {
    let ranges = if elements.iter().all(Ranges::is_single) { 0 } else { kernel::SET_RANGES };
    kernel::SET_OF_A_RULE | ranges
}

/// nft's number for the type of a key: six bits a field. The kernel only keeps it; `nft list` needs it.
pub(super) fn key_type(key: &[KeyType]) -> u32 {
    key.iter().fold(0, |number, field| {
        number << 6
            | match field {
                KeyType::Raw(_) => 4,
                KeyType::Ipv4 => 7,
                KeyType::Ipv6 => 8,
                KeyType::Ether => 9,
                KeyType::Operation => 11,
                KeyType::Protocol => 12,
                KeyType::Port => 13,
            }
    })
}

pub(super) fn key_length(key: &[KeyType]) -> u32 {
    let length: usize = match key {
        [only] => only.length(),
        fields => fields.iter().map(|field| field.padded_length()).sum(),
    };
    u32::try_from(length).unwrap_or(u32::MAX)
}

pub(super) fn milliseconds(set: &Set) -> u64 {
    match set.content {
        Content::Dynamic { timeout, .. } => u64::from(timeout) * 1000,
        Content::Fixed { .. } => 0,
    }
}

pub(super) fn set_flags(set: &Set) -> u32 {
    match set.content {
        Content::Dynamic { .. } => kernel::SET_TIMEOUT_AND_EVAL,
        // To put an element among ranges takes the kernel 3 µs.
        Content::Fixed { .. } if set.has_ranges() => kernel::SET_RANGES,
        Content::Fixed { .. } => 0,
    }
}

/// Bytes of the first key of an element, or of the last; of several fields each is padded as it is in registers.
pub(super) fn put_key_bytes(bytes: &mut Vec<u8>, Ranges(fields): &Ranges, which: Which) {
    let unit = if fields.len() > 1 { 4 } else { 1 };
    for (first, last) in fields {
        let value = match which {
            Which::First => first,
            Which::Last => last,
        };
        value.append_to(bytes, unit);
    }
}

/// Which key of an element.
#[derive(Debug, Clone, Copy)]
pub(super) enum Which {
    First,
    Last,
}

/// Whether what was read of a set, first and last key of each element and sorted, is these elements.
pub(super) fn are_keys_of(read: &[[Vec<u8>; 2]], elements: &[Ranges]) -> bool {
    if read.len() != elements.len() {
        return false;
    }
    // One behind the other: of sets of hundreds two vectors for each element would be most of the work.
    let mut bytes = Vec::with_capacity(2 * KEY_EXPECTED * elements.len());
    let mut places = Vec::with_capacity(elements.len());
    for element in elements {
        let start = bytes.len();
        put_key_bytes(&mut bytes, element, Which::First);
        let middle = bytes.len();
        put_key_bytes(&mut bytes, element, Which::Last);
        places.push((start..middle, middle..bytes.len()));
    }
    let mut keys: Vec<_> = places.into_iter().map(|(first, last)| [&bytes[first], &bytes[last]]).collect();
    keys.sort_unstable();
    read.iter().map(|[first, last]| [&first[..], &last[..]]).eq(keys)
}

fn sorted_keys(elements: &[Ranges]) -> Vec<[Vec<u8>; 2]> {
    let key = |element, which| {
        let mut bytes = Vec::with_capacity(KEY_EXPECTED);
        put_key_bytes(&mut bytes, element, which);
        bytes
    };
    let mut keys: Vec<_> =
        elements.iter().map(|element| [Which::First, Which::Last].map(|which| key(element, which))).collect();
    keys.sort_unstable();
    keys
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::rules::ruleset::Value;

    /// Some elements of keys of one or two fields, few enough to meet.
    fn some() -> impl Strategy<Value = Vec<Ranges>> {
        let value = || prop::array::uniform2(0_u8..3).prop_map(Value::from);
        let element = prop::collection::vec((value(), value()), 1..3).prop_map(Ranges);
        prop::collection::vec(element, 0..5)
    }

    proptest! {
        #[test]
        fn elements_are_known_by_their_keys_and_no_others(elements in some(), others in some()) {
            prop_assert!(are_keys_of(&sorted_keys(&elements), &elements));
            prop_assert_eq!(are_keys_of(&sorted_keys(&others), &elements), sorted_keys(&others) == sorted_keys(&elements));
        }
    }
}
