//! What was heard of one sandbox, kept: each packet once, no more of them than may be.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use super::dissect::dissect;
use super::files::Files;
use super::frame::{Side, behind_header, direction, frame};
use super::kept_names::NamesFile;
use super::pcapng::{Packet, packet};
use super::{KEPT_MAX, directory};
use crate::kernel::nflog::Handed;
use crate::model::names::ContainerId;

/// Packets a second that are kept in the long run, and at once. Rules of ours hand over fewer; root in the pod can have rules
/// of its own hand over as many as it likes.
const PER_SECOND: f64 = 100.0;
const BURST: f64 = 1000.0;
/// A packet that is counted on its way out meets the hook of its device within this time: its neighbour has to be found before.
const MET_AGAIN_WITHIN: Duration = Duration::from_secs(4);
const REMEMBERED: usize = 256;
/// Bytes behind the Ethernet header by which a packet is known again.
const KNOWN_BY: usize = KEPT_MAX - 14;
/// A time of the kernel's that is farther from ours is none: packets that are paced carry another clock's.
const PLAUSIBLE: Duration = Duration::from_secs(10);

/// What is kept of a sandbox, as it comes.
#[derive(Debug)]
pub struct Recorder {
    files: Files,
    names: Option<NamesFile>,
    met: VecDeque<(u64, SystemTime)>,
    tokens: f64,
    refilled: SystemTime,
    missed: u64,
}

impl Recorder {
    /// One for this sandbox.
    #[must_use]
    pub fn new(state_dir: &Path, container_id: &ContainerId, now: SystemTime) -> Self {
        Self {
            files: Files::new(directory(state_dir, container_id), container_id.to_string()),
            names: None,
            met: VecDeque::new(),
            tokens: BURST,
            refilled: now,
            missed: 0,
        }
    }

    /// Packets were lost on the way here; how many is not known.
    pub fn lost(&mut self) {
        self.missed += 1;
    }

    /// Keeps a packet.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn take(&mut self, side: Side, handed: &Handed<'_>, now: SystemTime) -> io::Result<()> {
        let frame = frame(handed);
        if self.was_met(&frame, now) {
            return Ok(());
        }
        if !self.has_token(now) {
            self.missed += 1;
            return Ok(());
        }
        let time = handed.time.filter(|&time| apart(time, now) < PLAUSIBLE).unwrap_or(now);
        let conversation = dissect(&frame);
        let said = conversation.as_ref().map_or(0, |conversation| conversation.length + 14);
        let name = conversation.as_ref().and_then(|conversation| conversation.name.as_ref()).map(ToString::to_string);
        let missed = (self.missed > 0).then(|| format!("packets before this one were not kept ({})", self.missed));
        let comment: Vec<_> = name.into_iter().chain(missed).collect();
        let block = packet(&Packet {
            time,
            direction: direction(side, handed.hook),
            length: u32::try_from(frame.len().max(said)).unwrap_or(u32::MAX),
            frame,
            comment: (!comment.is_empty()).then(|| comment.join("; ")),
        });
        self.files.write(&block)?;
        self.missed = 0;
        if let Some(conversation) = conversation.filter(|conversation| conversation.name.is_some()) {
            let directory = self.files.directory();
            let names = self.names.get_or_insert_with(|| NamesFile::of(directory));
            names.keep(&conversation, Timestamp::try_from(time).unwrap_or_default())?;
        }
        Ok(())
    }

    /// Whether the same packet was met at another hook just now.
    fn was_met(&mut self, frame: &[u8], now: SystemTime) -> bool {
        let behind = behind_header(frame);
        let mut hasher = DefaultHasher::new();
        behind[..behind.len().min(KNOWN_BY)].hash(&mut hasher);
        let hash = hasher.finish();
        self.met.retain(|&(_, when)| apart(when, now) < MET_AGAIN_WITHIN);
        if let Some(at) = self.met.iter().position(|&(met, _)| met == hash) {
            // The next one like it is another one, sent again.
            self.met.remove(at);
            return true;
        }
        if self.met.len() == REMEMBERED {
            self.met.pop_front();
        }
        self.met.push_back((hash, now));
        false
    }

    fn has_token(&mut self, now: SystemTime) -> bool {
        let since = now.duration_since(self.refilled).unwrap_or_default();
        self.tokens = (self.tokens + since.as_secs_f64() * PER_SECOND).min(BURST);
        self.refilled = now;
        let has = self.tokens >= 1.0;
        if has {
            self.tokens -= 1.0;
        }
        has
    }
}

fn apart(one: SystemTime, other: SystemTime) -> Duration {
    one.duration_since(other).unwrap_or_else(|error| error.duration())
}

#[cfg(test)]
mod tests {
    use super::super::dissect::tests::udp;
    use super::super::frame::Direction;
    use super::super::{read_names, read_packets};
    use super::*;
    use crate::kernel::nflog::Hook;

    fn recorder(state_dir: &Path, now: SystemTime) -> (Recorder, ContainerId) {
        std::fs::create_dir_all(state_dir.join("captures")).unwrap();
        let container_id = ContainerId::new("c1").unwrap();
        (Recorder::new(state_dir, &container_id, now), container_id)
    }

    #[test]
    fn a_packet_is_kept_once_with_the_name_that_it_asks_for() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let (mut recorder, container_id) = recorder(directory.path(), now);
        let question = udp(53, b"\x12\x34\x01\x00\0\x01\0\0\0\0\0\0\x04evil\x07example\0\0\x01\0\x01");
        let handed = |hook, payload| Handed { prefix: b"c1", hook, time: None, link_header: b"", payload };
        recorder.take(Side::Pod, &handed(Hook::Output, &question[14..]), now).unwrap();
        recorder.take(Side::Pod, &handed(Hook::Egress, &question), now).unwrap();
        let kept = read_packets(directory.path(), &container_id).unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!((kept[0].direction, kept[0].comment.as_deref()), (Direction::Out, Some("dns evil.example")));
        // Sent again, it is another packet; the name is known.
        recorder.take(Side::Pod, &handed(Hook::Egress, &question), now).unwrap();
        assert_eq!(read_packets(directory.path(), &container_id).unwrap().len(), 2);
        let names = read_names(&super::directory(directory.path(), &container_id));
        assert_eq!(names.len(), 1);
        assert_eq!((names[0].name.as_str(), names[0].port), ("evil.example", Some(53)));
    }

    #[test]
    fn a_flood_is_bounded_and_said() {
        let directory = tempfile::tempdir().unwrap();
        let now = SystemTime::now();
        let (mut recorder, container_id) = recorder(directory.path(), now);
        let mut take = |number: u32, now| {
            let payload = udp(9, &number.to_be_bytes());
            let handed = Handed { prefix: b"", hook: Hook::Egress, time: None, link_header: b"", payload: &payload };
            recorder.take(Side::Pod, &handed, now).unwrap();
        };
        (0..5000).for_each(|number| take(number, now));
        take(5000, now + Duration::from_secs(1));
        let kept = read_packets(directory.path(), &container_id).unwrap();
        assert_eq!(kept.len(), 1001);
        assert_eq!(kept[1000].comment.as_deref(), Some("packets before this one were not kept (4000)"));
    }
}
