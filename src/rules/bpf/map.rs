//! What a program remembers: maps, as the sets of the ruleset say.

use crate::rules::ruleset::{Content, KeyType, Set};

/// A map of a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Map {
    /// Whether a program that waits lets nothing pass any more: an array of one.
    Armed,
    /// Packets and bytes that the program has dropped: an array of one.
    Drops,
    /// A set of the ruleset: a hash that forgets what was used least recently. A key is as nftables has it in registers; a value is
    /// [`VALUE`].
    Set(Set),
}

/// Bytes of a map's value: of a set when it was last used, in nanoseconds since the boot, and how often; of drops packets and bytes; of
/// what is armed 1 or 0, and nothing.
pub const VALUE: u32 = 16;

impl Map {
    /// The most elements that it holds.
    #[must_use]
    pub fn size(&self) -> u32 {
        match self {
            Self::Armed | Self::Drops | Self::Set(Set { content: Content::Fixed { .. }, .. }) => 1,
            Self::Set(Set { content: Content::Dynamic { size, .. }, .. }) => *size,
        }
    }

    /// The fields of a key.
    #[must_use]
    pub fn fields(&self, key: &[u8]) -> Vec<Vec<u8>> {
        let Self::Set(set) = self else { return Vec::new() };
        let mut rest = key;
        let field = |kind: &KeyType| {
            let (field, after) = rest.split_at_checked(padded(kind.length()))?;
            rest = after;
            Some(field[..kind.length()].to_vec())
        };
        set.key.iter().filter_map(field).collect()
    }

    /// Bytes of a key.
    #[must_use]
    pub fn key_length(&self) -> u32 {
        match self {
            Self::Armed | Self::Drops => 4,
            Self::Set(set) => set.key.iter().map(|field| padded(field.length()) as u32).sum(),
        }
    }
}

/// How many bytes a field takes in a key.
pub(super) fn padded(length: usize) -> usize {
    length.next_multiple_of(4)
}
