//! `watch`: the packets that were dropped of a sandbox, as they come.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::json;

use crate::capture::{self, Packet, dissect, packet_files, packets, read_packets};
use crate::evidence::Store;
use crate::model::names::ContainerId;
use crate::node::state::StateDir;
use crate::status::read::read_entry;

use super::arguments::{Output, Watch};
use super::evidence::chosen_sandbox;
use super::watch::signals;
use super::{Exit, Failure, print, say_error};

/// Of what is there already, so much is shown.
const SHOWN_BEFORE: usize = 20;
/// How often is looked for more. The agent itself hears of packets ten times a second.
const INTERVAL_MILLISECONDS: u16 = 100;

/// `quarantine watch`.
pub(super) fn watch(state_dir: &Path, arguments: &Watch) -> Result<Exit, Failure> {
    let state = StateDir::open(state_dir)?;
    let (kept, _) = Store::of(&state).collections()?;
    let container_id = &chosen_sandbox(&state, &kept, &arguments.sandbox, "watch")?;
    let before = read_packets(state.path(), container_id)
        .map_err(|error| Failure::new(Exit::NotDone, format!("cannot read what is kept of {container_id}: {error}")))?;
    if arguments.kept {
        show(&before, arguments.output);
        return Ok(Exit::Done);
    }
    warn_where_nothing_comes(&state, container_id)?;
    let mut follower = Follower::behind(capture::directory(state.path(), container_id));
    show(&before[before.len().saturating_sub(SHOWN_BEFORE)..], arguments.output);
    let interrupted =
        signals().map_err(|errno| Failure::new(Exit::NotDone, format!("cannot wait for signals: {errno}")))?;
    loop {
        if !show(&follower.next(), arguments.output) {
            return Ok(Exit::Done);
        }
        let mut waiting = [PollFd::new(interrupted.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, PollTimeout::from(INTERVAL_MILLISECONDS)).unwrap_or(0) > 0 {
            return Ok(Exit::Done);
        }
    }
}

/// A person who waits is told where there is nothing to wait for.
fn warn_where_nothing_comes(state: &StateDir, container_id: &ContainerId) -> Result<(), Failure> {
    let Some((records, entry)) = read_entry(state, container_id)? else { return Ok(()) };
    if entry.marking.is_none() {
        say_error("it is not isolated: nothing of it is dropped, and so nothing is kept");
    } else if !records.is_some_and(|records| records.is_captured()) {
        say_error("its network configuration says \"capture\": false: nothing is kept");
    } else if !state.has_agent() {
        say_error("no agent runs on this node, and only the agent keeps packets");
    }
    Ok(())
}

/// Reads on where it has read before.
struct Follower {
    directory: PathBuf,
    file: Option<PathBuf>,
    at: u64,
}

impl Follower {
    /// One that begins behind all that is there.
    fn behind(directory: PathBuf) -> Self {
        let file = packet_files(&directory).ok().and_then(|files| files.into_iter().next_back());
        let mut follower = Self { directory, file, at: 0 };
        if let Some(path) = follower.file.clone() {
            follower.read(&path);
        }
        follower
    }

    /// What has come since, of all files since.
    fn next(&mut self) -> Vec<Packet> {
        let Ok(files) = packet_files(&self.directory) else { return Vec::new() };
        let mut found = Vec::new();
        for path in files {
            // Their names are of one length, and grow.
            if self.file.as_ref().is_some_and(|file| path < *file) {
                continue;
            }
            if self.file.as_ref() != Some(&path) {
                (self.file, self.at) = (Some(path.clone()), 0);
            }
            found.extend(self.read(&path));
        }
        found
    }

    fn read(&mut self, path: &Path) -> Vec<Packet> {
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|mut file| {
            file.seek(SeekFrom::Start(self.at))?;
            file.read_to_end(&mut bytes)
        });
        let (found, length) = read.map(|_| packets(&bytes)).unwrap_or_default();
        self.at += length as u64;
        found
    }
}

/// Shows packets; false where nobody reads it any more.
fn show(packets: &[Packet], output: Output) -> bool {
    let mut text = String::new();
    for packet in packets {
        match output {
            Output::Table => line(&mut text, packet),
            Output::Json => drop(writeln!(text, "{}", to_json(packet))),
        }
    }
    text.is_empty() || print(&text)
}

fn time_of(packet: &Packet) -> Timestamp {
    Timestamp::try_from(packet.time).unwrap_or_default()
}

/// A comment is of names that are escaped, and numbers; but root may have put another file there.
fn printable(comment: &str) -> String {
    comment.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

fn line(text: &mut String, packet: &Packet) {
    let who = dissect(&packet.frame).map_or_else(|| "no IP packet".to_owned(), |found| found.to_string());
    let comment = packet.comment.as_deref().map(|comment| format!("  {}", printable(comment))).unwrap_or_default();
    let _ = writeln!(
        text,
        "{:.6}  {:<3}  {who}  {} bytes{comment}",
        time_of(packet),
        packet.direction.as_str(),
        packet.length
    );
}

fn to_json(packet: &Packet) -> serde_json::Value {
    let found = dissect(&packet.frame);
    let found = found.as_ref();
    json!({
        "time": time_of(packet).to_string(),
        "direction": packet.direction,
        "protocol": found.map(|found| found.protocol.to_string()),
        "source": found.map(|found| found.source.0),
        "sourcePort": found.and_then(|found| found.source.1),
        "destination": found.map(|found| found.destination.0),
        "destinationPort": found.and_then(|found| found.destination.1),
        "bytes": packet.length,
        "comment": packet.comment.as_deref().map(printable),
    })
}
