//! pcapng, as far as it is written here: a section, one interface, packets with a direction and a comment; and the same read
//! again. Pure.
//!
//! Written by hand: three kinds of block of a format that does not change (draft-ietf-opsawg-pcapng) are fewer lines than it
//! takes to have a crate write them. What is read is what is written here, from a file that is being written.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::KEPT_MAX;
use super::frame::Direction;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const ETHERNET: u16 = 1;

const END: u16 = 0;
const COMMENT: u16 = 1;
const INTERFACE_DESCRIPTION: u16 = 3;
const SECTION_PROGRAM: u16 = 4;
const PACKET_FLAGS: u16 = 2;
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// A packet of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Packet {
    /// When it was dropped, to the microsecond.
    pub time: SystemTime,
    /// Which way it went.
    pub direction: Direction,
    /// The first bytes of its frame.
    pub frame: Vec<u8>,
    /// How long the frame was.
    pub length: u32,
    /// What is said of it.
    pub comment: Option<String>,
}

/// What each file begins with; `description` names the sandbox.
#[must_use]
pub(super) fn beginning(description: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    block(&mut bytes, SECTION, |body| {
        body.extend(BYTE_ORDER.to_le_bytes());
        // Version 1.0, a section of unknown length.
        body.extend([1, 0, 0, 0]);
        body.extend(u64::MAX.to_le_bytes());
        option(body, SECTION_PROGRAM, concat!("quarantine ", env!("CARGO_PKG_VERSION")).as_bytes());
        option(body, END, &[]);
    });
    block(&mut bytes, INTERFACE, |body| {
        body.extend(ETHERNET.to_le_bytes());
        body.extend([0, 0]);
        body.extend(u32::try_from(KEPT_MAX).unwrap_or(u32::MAX).to_le_bytes());
        option(body, INTERFACE_DESCRIPTION, description.as_bytes());
        option(body, END, &[]);
    });
    bytes
}

/// A packet as a block.
#[must_use]
pub(super) fn packet(packet: &Packet) -> Vec<u8> {
    let since = packet.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let microseconds = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    let frame = &packet.frame[..packet.frame.len().min(KEPT_MAX)];
    let mut bytes = Vec::with_capacity(KEPT_MAX + 64);
    block(&mut bytes, PACKET, |body| {
        body.extend([0; 4]);
        body.extend(((microseconds >> 32) as u32).to_le_bytes());
        body.extend((microseconds as u32).to_le_bytes());
        body.extend((frame.len() as u32).to_le_bytes());
        body.extend(packet.length.max(frame.len() as u32).to_le_bytes());
        body.extend(frame);
        body.resize(body.len().next_multiple_of(4), 0);
        let flags = match packet.direction {
            Direction::In => INBOUND,
            Direction::Out => OUTBOUND,
            Direction::Forward => 0,
        };
        option(body, PACKET_FLAGS, &flags.to_le_bytes());
        if let Some(comment) = &packet.comment {
            option(body, COMMENT, comment.as_bytes());
        }
        option(body, END, &[]);
    });
    bytes
}

fn block(bytes: &mut Vec<u8>, kind: u32, write: impl FnOnce(&mut Vec<u8>)) {
    let mut body = Vec::new();
    write(&mut body);
    body.resize(body.len().next_multiple_of(4), 0);
    // Kind, and the length before and behind.
    let length = (body.len() + 12) as u32;
    bytes.extend(kind.to_le_bytes());
    bytes.extend(length.to_le_bytes());
    bytes.extend(body);
    bytes.extend(length.to_le_bytes());
}

fn option(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let value = &value[..value.len().min(usize::from(u16::MAX))];
    bytes.extend(kind.to_le_bytes());
    bytes.extend((value.len() as u16).to_le_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// The packets of a file or of a part of one that begins with a block, and how many bytes of it are whole blocks: whoever follows
/// a file that is being written goes on from there. What is no block of these kinds is passed over.
#[must_use]
pub fn packets(bytes: &[u8]) -> (Vec<Packet>, usize) {
    let (mut found, mut at) = (Vec::new(), 0);
    while let Some((kind, body, length)) = next_block(&bytes[at..]) {
        if kind == PACKET {
            found.extend(read_packet(body));
        }
        at += length;
    }
    (found, at)
}

/// Kind and body of the first block, and its length with all that is around it.
fn next_block(bytes: &[u8]) -> Option<(u32, &[u8], usize)> {
    let (kind, length) = (word(bytes, 0)?, usize::try_from(word(bytes, 4)?).ok()?);
    let is_sound = length >= 12 && length % 4 == 0;
    let body = bytes.get(8..length.checked_sub(4)?).filter(|_| is_sound && bytes.len() >= length)?;
    Some((kind, body, length))
}

fn read_packet(body: &[u8]) -> Option<Packet> {
    let microseconds = u64::from(word(body, 4)?) << 32 | u64::from(word(body, 8)?);
    let (kept, length) = (usize::try_from(word(body, 12)?).ok()?, word(body, 16)?);
    let frame = body.get(20..20_usize.checked_add(kept)?)?.to_vec();
    let mut options = body.get(20 + kept.next_multiple_of(4)..).unwrap_or_default();
    let (mut direction, mut comment) = (Direction::Forward, None);
    while let (Some(kind), Some(size)) = (half(options, 0), half(options, 2)) {
        let size = usize::from(size);
        let Some(value) = options.get(4..4 + size) else { break };
        match kind {
            END => break,
            PACKET_FLAGS => {
                direction = match word(value, 0).unwrap_or(0) & 3 {
                    INBOUND => Direction::In,
                    OUTBOUND => Direction::Out,
                    _ => Direction::Forward,
                };
            }
            COMMENT => comment = Some(String::from_utf8_lossy(value).into_owned()),
            _ => {}
        }
        options = options.get(4 + size.next_multiple_of(4)..).unwrap_or_default();
    }
    let time = UNIX_EPOCH.checked_add(Duration::from_micros(microseconds))?;
    Some(Packet { time, direction, frame, length, comment })
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn some_packet(frame: Vec<u8>, comment: Option<&str>) -> Packet {
        Packet {
            time: UNIX_EPOCH + Duration::from_micros(1_790_000_000_123_456),
            direction: Direction::Out,
            length: 1500,
            frame,
            comment: comment.map(str::to_owned),
        }
    }

    #[test]
    fn what_is_written_is_read_also_where_the_end_is_not_there_yet() {
        let written = [some_packet(vec![7; 61], Some("dns c2.example")), some_packet(vec![], None)];
        let mut file = beginning("c1");
        for each in &written {
            file.extend(packet(each));
        }
        assert_eq!(packets(&file), (written.to_vec(), file.len()));
        let (found, at) = packets(&file[..file.len() - 1]);
        assert_eq!(found, written[..1]);
        assert_eq!(packets(&file[at..]).0, written[1..]);
    }

    #[test]
    fn no_more_of_a_packet_is_kept_than_may_be() {
        let (found, _) = packets(&packet(&some_packet(vec![1; 512], None)));
        assert_eq!((found[0].frame.len(), found[0].length), (KEPT_MAX, 1500));
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_it_panic(bytes: Vec<u8>, at: usize, byte: u8) {
            let _ = packets(&bytes);
            let mut file = [beginning("c1"), packet(&some_packet(bytes, Some("x")))].concat();
            let at = at % file.len();
            file[at] = byte;
            let _ = packets(&file);
        }
    }
}
