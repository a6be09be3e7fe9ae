//! The names that a sandbox asked for, one line of JSON each: so that `status` need not read all packets, and those stay
//! whose packets have been rotated away.

use std::collections::HashSet;
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::libc;
use serde::{Deserialize, Serialize};

use super::dissect::Conversation;
use super::names::Kind;
use crate::model::attempt::AttemptProtocol;

/// So many different ones are kept of a sandbox, the first.
const NAMES_MAX: usize = 1000;
const FILE_MAX: u64 = 4 * 1024 * 1024;
const FILE: &str = "names.jsonl";

/// A name, and where it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptName {
    /// When first.
    pub time: Timestamp,
    /// How.
    pub kind: Kind,
    /// Escaped, as it is shown.
    pub name: String,
    /// The number of the IP protocol.
    pub protocol: u8,
    /// Who was asked.
    pub address: IpAddr,
    /// On which port.
    pub port: Option<u16>,
}

/// The file of a sandbox.
#[derive(Debug)]
pub(super) struct NamesFile {
    path: PathBuf,
    seen: HashSet<(Kind, String, u8, IpAddr, Option<u16>)>,
}

impl NamesFile {
    /// What is in the directory already is not written again.
    pub(super) fn of(directory: &Path) -> Self {
        let path = directory.join(FILE);
        let seen = read_names(directory).into_iter().map(|kept| key(&kept)).collect();
        Self { path, seen }
    }

    /// Writes down a name that is new.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn keep(&mut self, conversation: &Conversation, time: Timestamp) -> io::Result<()> {
        let (Some(name), AttemptProtocol::Ip(protocol)) = (&conversation.name, conversation.protocol) else {
            return Ok(());
        };
        let (address, port) = conversation.destination;
        let kept = KeptName { time, kind: name.kind, name: name.text.clone(), protocol, address, port };
        if self.seen.len() >= NAMES_MAX || !self.seen.insert(key(&kept)) {
            return Ok(());
        }
        let mut options = OpenOptions::new();
        options.append(true).create(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        let mut line = serde_json::to_string(&kept)?;
        line.push('\n');
        options.open(&self.path)?.write_all(line.as_bytes())
    }
}

fn key(kept: &KeptName) -> (Kind, String, u8, IpAddr, Option<u16>) {
    (kept.kind, kept.name.clone(), kept.protocol, kept.address, kept.port)
}

/// The names in a sandbox's directory, the first asked for first. A line that is none is passed over.
#[must_use]
pub fn read_names(directory: &Path) -> Vec<KeptName> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(directory.join(FILE));
    let mut text = Vec::new();
    if file.is_ok_and(|file| file.take(FILE_MAX).read_to_end(&mut text).is_err()) {
        return Vec::new();
    }
    text.split(|&byte| byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).take(NAMES_MAX).collect()
}
