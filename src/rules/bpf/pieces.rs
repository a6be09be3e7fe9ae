//! The pieces in which fields are read, compared and put elsewhere.

use super::assembler::Size;
use crate::rules::ruleset::Value;

/// So much of a value as one comparison takes, as the processor reads it.
pub(super) fn native(value: &Value, offset: usize, size: Size) -> u32 {
    let mut bytes = [0; 4];
    let length = size.bytes();
    bytes[..length].copy_from_slice(&value[offset..offset + length]);
    match size {
        Size::Byte => bytes[0].into(),
        Size::Half => u16::from_ne_bytes([bytes[0], bytes[1]]).into(),
        Size::Word | Size::Double => u32::from_ne_bytes(bytes),
    }
}

/// The pieces in which bytes on the stack are read: what is read there is to be aligned.
pub(super) fn chunks(at: i16, length: usize) -> Vec<(usize, Size)> {
    let mut chunks = Vec::new();
    let mut offset = 0;
    while offset < length {
        let size = [Size::Word, Size::Half, Size::Byte].into_iter().find(|size| {
            let bytes = size.bytes();
            offset + bytes <= length && (at + offset as i16).rem_euclid(bytes as i16) == 0
        });
        let size = size.unwrap_or(Size::Byte);
        chunks.push((offset, size));
        offset += size.bytes();
    }
    chunks
}

/// A piece, cut smaller where it would not be aligned at the place that it goes to.
pub(super) fn aligned(to: i16, (offset, size): (usize, Size)) -> Vec<(usize, Size)> {
    if (to + offset as i16).rem_euclid(size.bytes() as i16) == 0 {
        return vec![(offset, size)];
    }
    let half = if size == Size::Word { Size::Half } else { Size::Byte };
    let second = offset + half.bytes();
    [(offset, half), (second, half)].into_iter().flat_map(|chunk| aligned(to, chunk)).collect()
}
