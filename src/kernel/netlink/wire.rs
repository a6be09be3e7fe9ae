//! Messages and their attributes, as bytes. Pure.

use netlink_packet_core::{NetlinkBuffer, NlaBuffer, NlasIterator};
use nix::errno::Errno;

const HEADER: usize = 16;

/// The error number in an NLMSG_ERROR or NLMSG_DONE, `None` inside for success.
#[must_use]
pub fn error_of(payload: &[u8]) -> Option<Option<Errno>> {
    let code = i32::from_ne_bytes(payload.get(..4)?.try_into().ok()?);
    Some((code != 0).then(|| Errno::from_raw(code.saturating_neg())))
}

/// Whole messages, one after the other.
#[derive(Debug)]
pub struct Messages<'a>(pub(super) &'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = NetlinkBuffer<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        let message = NetlinkBuffer::new_checked(self.0).ok()?;
        let length = usize::try_from(message.length()).ok()?.next_multiple_of(4);
        self.0 = self.0.get(length..).unwrap_or_default();
        Some(message)
    }
}

/// One message: header and body.
#[must_use]
pub fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    append_message(&mut bytes, kind, flags, sequence, |bytes| bytes.extend_from_slice(body));
    bytes
}

/// Appends one message whose body `write` appends.
pub fn append_message(bytes: &mut Vec<u8>, kind: u16, flags: u16, sequence: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(&flags.to_ne_bytes());
    bytes.extend_from_slice(&sequence.to_ne_bytes());
    // Port 0: the kernel knows the socket.
    bytes.extend_from_slice(&[0; 4]);
    write(bytes);
    let length = u32::try_from(bytes.len() - start).unwrap_or(u32::MAX);
    bytes[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Appends an attribute.
pub fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    put_written(bytes, kind, |bytes| bytes.extend_from_slice(value));
}

/// Appends an attribute that holds text, with its NUL.
pub fn put_text(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    put_written(bytes, kind, |bytes| {
        bytes.extend_from_slice(value);
        bytes.push(0);
    });
}

/// Appends an attribute that holds the attributes that `write` appends.
pub fn nest(bytes: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    const NLA_F_NESTED: u16 = 0x8000;
    put_written(bytes, kind | NLA_F_NESTED, write);
}

/// Appends an attribute whose value `write` appends.
pub fn put_written(bytes: &mut Vec<u8>, kind: u16, write: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0; 2]);
    bytes.extend_from_slice(&kind.to_ne_bytes());
    write(bytes);
    // No attribute of ours comes near 64 KiB but a rule's list of expressions, and that stays below a few.
    let length = u16::try_from(bytes.len() - start).unwrap_or(u16::MAX);
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The attributes in `bytes`, up to the first that is not one.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(Result::ok).map(|attribute: NlaBuffer<&[u8]>| {
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        (kind, &attribute.into_inner()[4..length])
    })
}

/// The value of the first attribute of this kind.
#[must_use]
pub fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find(|&(found, _)| found == kind).map(|(_, value)| value)
}

/// A number in network order, as nf_tables has them.
#[must_use]
pub fn be32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_be_bytes)
}

/// A number in host order, as rtnetlink has them.
#[must_use]
pub fn ne32(value: &[u8]) -> Option<u32> {
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// Text up to its NUL.
#[must_use]
pub fn text(value: &[u8]) -> &[u8] {
    value.split(|&byte| byte == 0).next().unwrap_or_default()
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    let attributes_end = |bytes: &[u8]| {
        assert!(attributes(bytes).map(|(_, value)| value.len() + 4).sum::<usize>() <= bytes.len());
    };
    attributes_end(bytes);
    for message in Messages(bytes) {
        let payload = message.payload();
        let _ = error_of(payload);
        attributes_end(payload);
        for (_, value) in attributes(payload) {
            let _ = (be32(value), ne32(value));
            assert!(!text(value).contains(&0));
            attributes_end(value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_are_written() {
        let mut bytes = Vec::new();
        put(&mut bytes, 1, &[9]);
        nest(&mut bytes, 2, |inner| put_text(inner, 7, b"eth0"));
        assert_eq!(attribute(&bytes, 1), Some(&[9][..]));
        assert_eq!(attribute(&bytes, 2).and_then(|inner| attribute(inner, 7)).map(text), Some(&b"eth0"[..]));
        assert_eq!(attribute(&bytes, 3), None);
    }

    proptest::proptest! {
        #[test]
        fn no_answer_of_the_kernel_makes_it_panic(bytes: Vec<u8>) {
            try_any(&bytes);
        }
    }
}
