//! What an isolated pod tries, and who tries to reach it: the first bytes of what is dropped, as rules hand them over.
//!
//! Bounded in all that it keeps, whatever the pod sends: bytes of a packet, packets a second, length and number of files, names.
//! Everything here that eats what others made ([`frame`], [`mod@dissect`], [`names`], [`pcapng`]) is a pure function over bytes. Who
//! listens is the agent; this keeps what it heard, and reads it again.

mod dissect;
mod files;
mod frame;
mod kept_names;
mod names;
mod pcapng;
mod recorder;

use std::io;
use std::path::{Path, PathBuf};

pub use dissect::{Conversation, dissect};
pub use files::packet_files;
pub use frame::{Direction, Side};
pub use kept_names::{KeptName, read_names};
pub use names::Kind;
pub use pcapng::{Packet, packets};
pub use recorder::Recorder;

use crate::model::names::ContainerId;

/// Bytes of a packet that are kept: its headers, and who was asked for. What a pod sends can be anybody's secret.
pub const KEPT_MAX: usize = 128;

/// Where what was captured of a sandbox is, in the state directory.
#[must_use]
pub fn directory(state_dir: &Path, container_id: &ContainerId) -> PathBuf {
    state_dir.join("captures").join(container_id.as_str())
}

/// All packets that are kept of a sandbox, the oldest first; none where nothing was captured.
///
/// # Errors
/// When the directory or a file cannot be read.
pub fn read_packets(state_dir: &Path, container_id: &ContainerId) -> io::Result<Vec<Packet>> {
    let mut found = Vec::new();
    for path in packet_files(&directory(state_dir, container_id))? {
        found.extend(packets(&files::read(&path)?).0);
    }
    Ok(found)
}

/// What holds of any bytes (`fuzzing`), taken as a frame, as the first words of a connection, and as a file.
#[cfg(any(test, fuzzing))]
pub fn try_any(bytes: &[u8]) {
    dissect::try_any(bytes);
    names::try_any(bytes);
    let (found, read) = packets(bytes);
    assert!(read <= bytes.len());
    found.iter().for_each(|packet| dissect::try_any(&packet.frame));
}
