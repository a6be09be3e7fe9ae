//! Established connections of an isolated sandbox are kept from being given up, so that they are there to be looked at and go on
//! after a false alarm. Where the kernel lets the host do so: what a program has set on its own sockets stays as it is.
//!
//! ```text
//! patience/<container ID>.json    what was found, from before it is changed until it is put back or the sandbox has gone
//! ```

use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::errno::Errno;
use thiserror::Error;

use crate::kernel::netlink::NetlinkError;
use crate::kernel::netns::{Netns, NetnsError};
use crate::kernel::nft::Batch;
use crate::kernel::sock_diag::{Details, DiagSocket, Kind, SockDiag};
use crate::model::names::ContainerId;
use crate::model::patience::{Found, Setting};
use crate::model::policy::Policy;
use crate::node::files::{Durability, read_regular, replace};
use crate::node::sandbox::Sandbox;
use crate::node::state::StateDir;
use crate::rules::containment::TABLE;
use crate::rules::held::{Flow, HELD_MAX, held_set};
use crate::rules::ruleset::Family;

const FILE_MAX: u64 = 4096;
/// Says where `/proc/sys/net` is: a container has it read-only there, and takes another mount of it to write to.
const ELSEWHERE: &str = "QUARANTINE_PROC_SYS_NET";
/// Sockets that are looked at before it is put back.
const SOCKETS: usize = 20_000;
/// A connection retransmits once in this time at least (`TCP_RTO_MAX` is 120 s), and goes on or will not any more.
const GOES_ON_WITHIN: Duration = Duration::from_secs(180);

/// Why connections are not kept, or not left to themselves again.
#[derive(Debug, Error)]
pub enum PatienceError {
    /// The settings, or what was found of them, could not be read or written.
    #[error("cannot {what} {name}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To which.
        name: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The netns could not be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// Its sockets could not be listed.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
}

fn failed(what: &'static str, name: impl ToString) -> impl FnOnce(io::Error) -> PatienceError {
    let name = name.to_string();
    move |source| PatienceError::Io { what, name, source }
}

fn file_of(state: &StateDir, container_id: &ContainerId) -> PathBuf {
    state.patience().join(format!("{container_id}.json"))
}

/// What was found in this netns, where anything was changed in it.
fn read_found(state: &StateDir, container_id: &ContainerId, netns_cookie: u64) -> Option<Found> {
    let text = read_regular(&file_of(state, container_id), FILE_MAX).ok()?;
    Found::read(&text).filter(|found| found.netns_cookie == netns_cookie)
}

fn write_found(state: &StateDir, container_id: &ContainerId, found: &Found) -> Result<(), PatienceError> {
    let path = file_of(state, container_id);
    let write = || {
        let text = serde_json::to_vec(found)?;
        state.create_patience()?;
        replace(&path, &path.with_extension("new"), &text, Durability::UntilReboot, |_| Ok(()))
    };
    write().map_err(failed("write", path.display()))
}

/// Where the settings are of the netns that the asking thread is in.
fn place(setting: Setting) -> PathBuf {
    let root = std::env::var_os(ELSEWHERE).map_or_else(|| PathBuf::from("/proc/sys/net"), PathBuf::from);
    root.join("ipv4").join(setting.name())
}

/// A setting of one netns, held open: the kernel looks through those of this name of all netns each time that one is opened.
struct OpenSetting {
    setting: Setting,
    file: File,
    /// Why it can only be read.
    refusal: Option<io::Error>,
}

impl OpenSetting {
    /// In the calling thread's netns, of which it stays wherever it is used.
    fn open(setting: Setting) -> Result<Self, PatienceError> {
        let path = place(setting);
        let (file, refusal) = match File::options().read(true).write(true).open(&path) {
            Ok(file) => (file, None),
            Err(refusal) => (File::open(&path).map_err(failed("read", setting.name()))?, Some(refusal)),
        };
        Ok(Self { setting, file, refusal })
    }

    fn value(&self) -> Result<u32, PatienceError> {
        let text = io::read_to_string(&self.file).map_err(failed("read", self.setting.name()))?;
        let value = Setting::read(&text).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData));
        value.map_err(failed("understand", self.setting.name()))
    }

    fn set(self, value: u32) -> Result<(), PatienceError> {
        let written = match self.refusal {
            Some(refusal) => Err(refusal),
            None => self.file.write_all_at(value.to_string().as_bytes(), 0),
        };
        written.map_err(failed("set", self.setting.name()))
    }
}

/// Has the rules of a sandbox that was cut off just now drop its established connections where TCP waits longest. None that the
/// policy could let through again, nor the node's own: another one may have the same ports later.
///
/// # Errors
/// [`PatienceError`].
pub fn hold_flows(sandbox: &mut Sandbox<'_>, policy: &Policy) -> Result<(), PatienceError> {
    let pinned = sandbox.records().pinned_interfaces();
    let node: Vec<IpAddr> = pinned.iter().flat_map(|pinned| pinned.node.addresses.iter().copied()).collect();
    let is_held = |flow: &Flow| {
        let remote = flow.remote;
        !remote.is_loopback()
            && !node.contains(&remote)
            && !policy.allow.iter().any(|allow| allow.peer.contains(remote))
    };
    let mut flows = sandbox.netns().0.run(established)??;
    flows.retain(is_held);
    let mut batch = Batch::default();
    for v6 in [false, true] {
        let of_family = flows.iter().filter(|flow| flow.remote.is_ipv6() == v6);
        let keys: Vec<_> = of_family.take(HELD_MAX as usize).map(Flow::key).collect();
        batch.put_into_set(Family::Inet, TABLE, &held_set(v6).name, &keys);
    }
    match sandbox.pod_nft().apply(&batch) {
        // Before 5.16 there is no hook of a device on the way out, and no such set.
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(()),
        applied => Ok(applied?),
    }
}

/// The connections of the calling thread's netns.
fn established() -> Result<Vec<Flow>, NetlinkError> {
    let sockets = SockDiag::open()?.list(Kind::Tcp, SOCKETS)?.sockets;
    let flow = |socket: DiagSocket| match (socket.state, socket.details) {
        (
            Some("established" | "close-wait" | "fin-wait-1" | "closing" | "last-ack"),
            Details::Inet { remote_address, remote_port, local_port, .. },
        ) => Some(Flow { remote: remote_address.to_canonical(), remote_port, local_port }),
        _ => None,
    };
    Ok(sockets.into_iter().filter_map(flow).collect())
}

/// Has the kernel wait longer in this netns, whose sandbox is isolated. What was there is written down before.
///
/// # Errors
/// [`PatienceError`]; `EROFS` in it where `/proc/sys` cannot be written.
pub fn hold(
    state: &StateDir,
    container_id: &ContainerId,
    netns: &Netns,
    netns_cookie: u64,
) -> Result<(), PatienceError> {
    let before = read_found(state, container_id, netns_cookie);
    let mut found = before.clone().unwrap_or(Found { netns_cookie, ..Found::default() });
    let settings: Vec<OpenSetting> =
        netns.run(|| Setting::ALL.into_iter().map(OpenSetting::open).collect::<Result<_, _>>())??;
    let values: Vec<_> =
        settings.iter().map(|open| Ok((open.setting, open.value()?))).collect::<Result<_, PatienceError>>()?;
    let due = found.raise(&values);
    found.waits_since = None;
    if before.as_ref() != Some(&found) && !found.values.is_empty() {
        write_found(state, container_id, &found)?;
    }
    for open in settings.into_iter().filter(|open| due.contains(&open.setting)) {
        let value = open.setting.patient();
        open.set(value)?;
    }
    Ok(())
}

/// What became of putting it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PutBack {
    /// There is nothing (any more) to be put back.
    Done,
    /// A connection has not gone on yet, and would be given up at its next retransmission: try again later.
    Later,
}

/// Puts back what was found, of a sandbox that is released.
///
/// # Errors
/// [`PatienceError`].
pub fn put_back(
    state: &StateDir,
    container_id: &ContainerId,
    netns: &Netns,
    netns_cookie: u64,
) -> Result<PutBack, PatienceError> {
    let Some(mut found) = read_found(state, container_id, netns_cookie) else { return Ok(PutBack::Done) };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let since = found.waits_since.map_or(now, Duration::from_secs);
    if now.saturating_sub(since) < GOES_ON_WITHIN && netns.run(is_retransmitting)?? {
        if found.waits_since.is_none() {
            found.waits_since = Some(now.as_secs());
            write_found(state, container_id, &found)?;
        }
        return Ok(PutBack::Later);
    }
    netns.run(|| found.values.iter().try_for_each(|(&setting, &value)| OpenSetting::open(setting)?.set(value)))??;
    forget(state, container_id);
    Ok(PutBack::Done)
}

/// Lets go of what was found: it has been put back, or its netns ends.
pub fn forget(state: &StateDir, container_id: &ContainerId) {
    let _ = std::fs::remove_file(file_of(state, container_id));
}

/// Whether a connection waits for an acknowledgement that it has asked for again; in the calling thread's netns.
fn is_retransmitting() -> Result<bool, NetlinkError> {
    let sockets = SockDiag::open()?.list(Kind::Tcp, SOCKETS)?.sockets;
    Ok(sockets.iter().any(|socket| match socket.details {
        Details::Inet { timer: Some("retransmit" | "zero-window-probe"), retransmits, .. } => {
            retransmits > 0 && socket.state != Some("syn-sent") && socket.state != Some("syn-received")
        }
        _ => false,
    }))
}
