//! Evidence: what a pod was doing when it was cut off, before that fades.
//!
//! A process of its own ([`start()`]) collects it right after the cut, which waits for nothing of it. Bounded in time, memory
//! and length, whatever the pod does ([`limits`]): what was left out is said. What is kept is a directory of JSON files with
//! a manifest, chained on the node, so that what is changed, removed or added later is found ([`store`]).

mod archive;
mod collect;
mod dns;
mod executables;
mod guarded;
mod host_pod;
mod limits;
mod manifest;
mod network;
mod proc;
mod processes;
mod sandbox;
mod start;
mod store;
mod writer;

#[cfg(any(test, fuzzing))]
pub mod fuzzing {
    //! What holds of any bytes.

    pub fn proc(bytes: &[u8]) {
        super::proc::try_any(bytes);
    }

    pub fn manifest(bytes: &[u8]) {
        super::manifest::try_any(bytes);
    }
}

use std::io;
use std::path::Path;
use std::time::{Duration, UNIX_EPOCH};

use thiserror::Error;

pub use archive::archive;
pub use collect::collect;
pub use manifest::Fault;
pub use start::{Collectors, Says, THIS_PROGRAM, is_wanted, start};
pub use store::{Kept, Store};

use crate::kernel::netlink::NetlinkError;
use crate::kernel::netns::NetnsError;
use crate::model::names::{ContainerId, PodUid};
use crate::node::host_pod::HostPodError;

/// Why there is no evidence, or why it cannot be read.
#[derive(Debug, Error)]
pub enum EvidenceError {
    /// A file or directory could not be used.
    #[error("cannot {what} {path}")]
    Io {
        /// What was being done.
        what: &'static str,
        /// To what.
        path: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The file system is nearly full.
    #[error("nothing is collected: {path} has {free} bytes left, and {least} must be; make room and collect again")]
    NoRoom {
        /// Where.
        path: String,
        /// What there is.
        free: u64,
        /// What there must be.
        least: u64,
    },
    /// Others than root can write where evidence is kept.
    #[error("{path} is no directory that root alone can write; chown it to root and chmod it to 0700")]
    Unsound {
        /// The directory.
        path: String,
    },
    /// There is nothing to collect from.
    #[error("sandbox {container_id} has no readable attachment record, so nothing can be collected")]
    Unknown {
        /// The sandbox.
        container_id: ContainerId,
    },
    /// The pod has ended.
    #[error("the network namespace of {container_id} is another one by now: the pod has ended")]
    Gone {
        /// The sandbox.
        container_id: ContainerId,
    },
    /// There is nothing to collect from.
    #[error("pod {uid} has no process in the node's network namespace")]
    NoHostPod {
        /// The pod.
        uid: PodUid,
    },
    /// Which pod is meant cannot be told, or it is on cgroups that nothing can be told by.
    #[error(transparent)]
    HostPod(#[from] HostPodError),
    /// Its netns cannot be entered.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The kernel could not be asked.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
}

impl EvidenceError {
    fn io(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.display().to_string();
        move |source| Self::Io { what, path, source }
    }
}

/// Seconds of the node's clock as RFC 3339 has them.
fn timestamp(seconds: u64) -> String {
    crate::status::timestamp(UNIX_EPOCH + Duration::from_secs(seconds))
}
