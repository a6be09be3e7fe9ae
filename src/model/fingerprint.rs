//! A number for a text, the same in every build. Nobody gains by a collision where it is used.

/// FNV-1a, of 64 bits.
#[must_use]
pub fn fingerprint(text: &str) -> u64 {
    text.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}
