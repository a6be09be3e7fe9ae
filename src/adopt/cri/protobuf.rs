//! Messages of protocol buffers, as far as the few fields need that are read and written here. Pure.

/// A value on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Value<'a> {
    Number(u64),
    Bytes(&'a [u8]),
    /// Four or eight bytes that nothing here asks for.
    Fixed,
}

/// A message: its fields in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Message<'a>(Vec<(u64, Value<'a>)>);

impl<'a> Message<'a> {
    /// Reads a whole one; `None` where any of it is not one.
    pub(super) fn read(mut bytes: &'a [u8]) -> Option<Self> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes)?;
            let value = match key & 7 {
                0 => Value::Number(varint(&mut bytes)?),
                1 => take(&mut bytes, 8).map(|_| Value::Fixed)?,
                2 => {
                    let length = usize::try_from(varint(&mut bytes)?).ok()?;
                    Value::Bytes(take(&mut bytes, length)?)
                }
                5 => take(&mut bytes, 4).map(|_| Value::Fixed)?,
                _ => return None,
            };
            fields.push((key >> 3, value));
        }
        Some(Self(fields))
    }

    /// All values of a field that has bytes.
    pub(super) fn all(&self, field: u64) -> impl Iterator<Item = &'a [u8]> {
        self.0.iter().filter_map(move |(number, value)| match value {
            Value::Bytes(bytes) if *number == field => Some(*bytes),
            _ => None,
        })
    }

    /// The text of a field, empty where there is none.
    pub(super) fn text(&self, field: u64) -> Option<&'a str> {
        std::str::from_utf8(self.all(field).last().unwrap_or_default()).ok()
    }

    /// The message in a field, empty where there is none.
    pub(super) fn message(&self, field: u64) -> Option<Message<'a>> {
        Message::read(self.all(field).last().unwrap_or_default())
    }

    /// The number of a field, 0 where there is none.
    pub(super) fn number(&self, field: u64) -> u64 {
        let mut numbers = self.0.iter().rev().filter_map(|(number, value)| match value {
            Value::Number(value) if *number == field => Some(*value),
            _ => None,
        });
        numbers.next().unwrap_or(0)
    }
}

fn take<'a>(bytes: &mut &'a [u8], length: usize) -> Option<&'a [u8]> {
    let (taken, rest) = bytes.split_at_checked(length)?;
    *bytes = rest;
    Some(taken)
}

fn varint(bytes: &mut &[u8]) -> Option<u64> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(number);
        }
    }
    None
}

/// Appends a field of bytes: text, or a message.
pub(super) fn put_bytes(message: &mut Vec<u8>, field: u8, bytes: &[u8]) {
    message.push(field << 3 | 2);
    put_varint(message, bytes.len() as u64);
    message.extend_from_slice(bytes);
}

/// Appends a field of a number.
pub(super) fn put_number(message: &mut Vec<u8>, field: u8, number: u64) {
    message.push(field << 3);
    put_varint(message, number);
}

fn put_varint(message: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        message.push(number.to_le_bytes()[0] | 0x80);
        number >>= 7;
    }
    message.push(number.to_le_bytes()[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let mut bytes = Vec::new();
        put_bytes(&mut bytes, 1, &[b'x'; 300]);
        put_number(&mut bytes, 2, u64::MAX);
        put_number(&mut bytes, 2, 7);
        bytes.extend([3 << 3 | 1, 0, 0, 0, 0, 0, 0, 0, 0, 4 << 3 | 5, 0, 0, 0, 0]);
        let message = Message::read(&bytes).unwrap();
        assert_eq!(
            (message.text(1), message.number(2), message.text(9)),
            (Some("x".repeat(300).as_str()), 7, Some(""))
        );
        for cut in 1..bytes.len() {
            let read = Message::read(&bytes[..cut]);
            assert!(read.is_none_or(|read| read.0.len() < 5), "{cut}");
        }
        assert_eq!(Message::read(&[1 << 3 | 3]), None, "groups are in no message that is asked for");
        assert_eq!(Message::read(&[0xff; 11]), None);
    }
}
