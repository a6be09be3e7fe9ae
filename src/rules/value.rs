//! Values of fields, and ranges of them.

use std::fmt;
use std::ops::Deref;

/// Bytes that a field is compared with: no more than the longest field has, and so none of them is on the heap.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Value {
    bytes: [u8; Self::LONGEST],
    length: usize,
}

impl Value {
    const LONGEST: usize = 24;

    /// These bytes, where they are not too many.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut value = Self { bytes: [0; Self::LONGEST], length: bytes.len() };
        value.bytes.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(value)
    }

    /// These bytes and then the other's, where they are not too many.
    #[must_use]
    pub fn followed_by(mut self, other: Self) -> Option<Self> {
        let end = self.length + other.length;
        self.bytes.get_mut(self.length..end)?.copy_from_slice(&other);
        self.length = end;
        Some(self)
    }

    /// Appends it, with zeros behind it up to a multiple of `unit` bytes.
    pub fn append_to(&self, bytes: &mut Vec<u8>, unit: usize) {
        let end = bytes.len() + self.length.next_multiple_of(unit);
        // As many bytes as are known beforehand are copied without a call. Behind its own are zeros.
        bytes.extend_from_slice(&self.bytes);
        bytes.truncate(end);
    }

    /// The number behind it, where it is not the last of its length.
    fn next(mut self) -> Option<Self> {
        let grows = self.iter().rposition(|&byte| byte != u8::MAX)?;
        self.bytes[grows] += 1;
        self.bytes[grows + 1..self.length].fill(0);
        Some(self)
    }

    /// The number before it, where it is not 0.
    fn previous(mut self) -> Option<Self> {
        let shrinks = self.iter().rposition(|&byte| byte != 0)?;
        self.bytes[shrinks] -= 1;
        self.bytes[shrinks + 1..self.length].fill(u8::MAX);
        Some(self)
    }

    /// The first and the last value of a network; `None` where the mask is no prefix, or the value has bits behind it.
    #[must_use]
    pub fn as_network(mut self, mask: &Self) -> Option<(Self, Self)> {
        let first = self;
        prefix_length(mask)?;
        for (byte, mask) in self.bytes.iter_mut().zip(&**mask) {
            if *byte & !mask != 0 {
                return None;
            }
            *byte |= !mask;
        }
        Some((first, self))
    }
}

/// The length of the prefix that `mask` is, where it is one.
#[must_use]
pub fn prefix_length(mask: &[u8]) -> Option<u32> {
    let length: u32 = mask.iter().map(|byte| byte.leading_ones()).sum();
    let ones: u32 = mask.iter().map(|byte| byte.count_ones()).sum();
    let first_short = mask.iter().position(|&byte| byte != 0xff).unwrap_or(mask.len());
    let rest_is_zero = mask.iter().skip(first_short + 1).all(|&byte| byte == 0);
    (ones == length && rest_is_zero).then_some(length)
}

impl<const LENGTH: usize> From<[u8; LENGTH]> for Value {
    fn from(array: [u8; LENGTH]) -> Self {
        const { assert!(LENGTH <= Self::LONGEST) }
        let mut bytes = [0; Self::LONGEST];
        bytes[..LENGTH].copy_from_slice(&array);
        Self { bytes, length: LENGTH }
    }
}

impl Deref for Value {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl fmt::Debug for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// An element of a set: for each field of the key the first and the last value.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ranges(pub Vec<(Value, Value)>);

impl Ranges {
    /// Whether it is one key alone.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.0.iter().all(|(first, last)| first == last)
    }

    /// Whether a key can be in both.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.0.iter().zip(&other.0).all(|(own, others)| do_overlap(*own, *others))
    }

    /// Whether each key of the other is in it.
    #[must_use]
    pub fn contains(&self, other: &Self) -> bool {
        self.0
            .iter()
            .zip(&other.0)
            .all(|((first, last), (others_first, others_last))| first <= others_first && others_last <= last)
    }

    /// What of it is not in the other, in pieces of which no two overlap.
    #[must_use]
    pub fn without(mut self, other: &Self) -> Vec<Self> {
        if !self.overlaps(other) {
            return vec![self];
        }
        let mut pieces = Vec::new();
        for (place, &(first, last)) in other.0.iter().enumerate() {
            let Some(&(own_first, own_last)) = self.0.get(place) else { break };
            let mut cut = |from, to| {
                let mut piece = self.clone();
                piece.0[place] = (from, to);
                pieces.push(piece);
            };
            if let Some(before) = first.previous().filter(|_| own_first < first) {
                cut(own_first, before);
            }
            if let Some(behind) = last.next().filter(|_| last < own_last) {
                cut(behind, own_last);
            }
            self.0[place] = (own_first.max(first), own_last.min(last));
        }
        pieces
    }

    /// Puts it among elements of which no two overlap, in pieces where it must be.
    pub fn put_among(self, elements: &mut Vec<Self>) {
        elements.retain(|element| !self.contains(element));
        let mut pieces = vec![self.clone()];
        for element in elements.iter().filter(|element| element.overlaps(&self)) {
            pieces = pieces.into_iter().flat_map(|piece| piece.without(element)).collect();
        }
        elements.append(&mut pieces);
    }
}

/// Whether a value can be in both ranges.
#[must_use]
pub fn do_overlap((first, last): (Value, Value), (others_first, others_last): (Value, Value)) -> bool {
    first <= others_last && others_first <= last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_no_longer_than_the_longest_field() {
        let (six, ten) = (Value::from([6; 6]), Value::from([10; 18]));
        let both = six.followed_by(ten).unwrap();
        assert_eq!(*both, [&[6; 6][..], &[10; 18]].concat());
        assert_eq!(Value::new(&both), Some(both));
        assert_eq!(both.followed_by([0].into()), None);
        assert_eq!(Value::new(&[0; 25]), None);
        assert_ne!(Value::from([0; 2]), Value::from([0; 3]));
    }

    #[test]
    fn a_value_is_appended_with_zeros_behind_it() {
        let mut bytes = vec![9];
        for (value, unit) in [(Value::from([1, 2, 3]), 1), (Value::from([4]), 4), (Value::from([5; 24]), 4)] {
            value.append_to(&mut bytes, unit);
        }
        assert_eq!(bytes, [&[9, 1, 2, 3, 4, 0, 0, 0][..], &[5; 24]].concat());
    }

    #[test]
    fn values_are_counted_as_numbers() {
        for (value, next) in [([0, 0], [0, 1]), ([0, 0xff], [1, 0]), ([1, 0xfe], [1, 0xff])] {
            assert_eq!(Value::from(value).next(), Some(next.into()));
            assert_eq!(Value::from(next).previous(), Some(value.into()));
            assert!(Value::from(value) < Value::from(next));
        }
        assert_eq!(Value::from([0xff; 3]).next(), None);
        assert_eq!(Value::from([0; 3]).previous(), None);
    }

    #[test]
    fn prefixes_are_told_from_other_masks() {
        assert_eq!(prefix_length(&[0xff, 0xff, 0, 0]), Some(16));
        assert_eq!(prefix_length(&[0xff, 0xfe, 0, 0]), Some(15));
        assert_eq!(prefix_length(&[0, 0, 0, 0]), Some(0));
        assert_eq!(prefix_length(&[0xff; 4]), Some(32));
        assert_eq!(prefix_length(&[0xff, 0xf1, 0, 0]), None);
        assert_eq!(prefix_length(&[0xff, 0xf0, 0x80, 0]), None);
        assert_eq!(prefix_length(&[1, 0]), None);
    }

    proptest::proptest! {
        #[test]
        fn elements_that_were_put_together_hold_what_each_of_them_held(
            boxes in proptest::collection::vec(proptest::collection::vec((0_u8..8, 0_u8..8), 3), 1..8),
        ) {
            let of = |bounds: &Vec<(u8, u8)>| {
                Ranges(bounds.iter().map(|&(a, b)| ([a.min(b)].into(), [a.max(b)].into())).collect())
            };
            let wanted: Vec<_> = boxes.iter().map(of).collect();
            let mut elements = Vec::new();
            wanted.iter().for_each(|each| each.clone().put_among(&mut elements));
            for key in 0..512_u16 {
                let key = [key & 7, key >> 3 & 7, key >> 6].map(|part| Value::from([part as u8]));
                let key = Ranges(key.map(|part| (part, part)).to_vec());
                let within = elements.iter().filter(|element| element.contains(&key)).count();
                proptest::prop_assert_eq!(within, usize::from(wanted.iter().any(|each| each.contains(&key))));
            }
        }
    }
}
