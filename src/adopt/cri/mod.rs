//! What a runtime itself says of its sandboxes, by the CRI (`runtime.v1`), where libcni left no cache.
//!
//! Two questions are asked: which sandboxes are ready, and what is said of each when it is said at length. The addresses are in
//! what a runtime says beyond the protocol's own fields, which has its own form in each runtime: containerd's and CRI-O's are
//! known here. Not a client of gRPC for anything else: one question for each connection, and answers that fit into memory.

mod grpc;
mod protobuf;
mod sandbox;

use std::io;
use std::path::{Path, PathBuf};

use thiserror::Error;

use super::Cached;
use crate::model::names::{ContainerId, NetworkName};

#[cfg(any(test, fuzzing))]
pub use sandbox::try_any;

/// Why a runtime's answer cannot be had.
#[derive(Debug, Error)]
pub enum CriError {
    /// It could not be asked.
    #[error("cannot ask the runtime at {socket}")]
    Io {
        /// Its socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another than root serves there.
    #[error("the socket {socket} is served by user {user}, not by root, who could say of pods what they like")]
    Unsound {
        /// The socket.
        socket: PathBuf,
        /// Whose process serves there.
        user: u32,
    },
    /// There was an answer without a message.
    #[error(
        "the runtime at {socket} refused {method}: it may have its CRI turned off, or speak another version of it than v1"
    )]
    Refused {
        /// The socket.
        socket: PathBuf,
        /// What was asked.
        method: &'static str,
    },
    /// What came is no answer.
    #[error("cannot read the answer of the runtime at {socket} to {method}: {why}")]
    Unreadable {
        /// The socket.
        socket: PathBuf,
        /// What was asked.
        method: &'static str,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// What a runtime says.
#[derive(Debug, Default)]
pub struct Said {
    /// Sandboxes of which enough is said.
    pub attachments: Vec<Cached>,
    /// Those of which it is not, and why.
    pub unusable: Vec<(ContainerId, String)>,
}

/// Asks the runtime at `socket` for its sandboxes but those that are known: the CRI does not say of which network one is, which
/// is `network`. Nothing is said where there is no socket. Pods of the host's network have none of their own, and are left out.
///
/// # Errors
/// [`CriError`].
pub fn sandboxes(
    socket: &Path,
    network: &NetworkName,
    is_known: impl Fn(&ContainerId) -> bool,
) -> Result<Said, CriError> {
    let mut said = Said::default();
    if !socket.exists() {
        return Ok(said);
    }
    let listed = grpc::ask(socket, "ListPodSandbox", &sandbox::list_request())?;
    let unreadable = |method| move |why| CriError::Unreadable { socket: socket.to_owned(), method, why };
    for id in sandbox::read_list(&listed).map_err(unreadable("ListPodSandbox"))? {
        let Ok(container_id) = ContainerId::new(id) else { continue };
        if is_known(&container_id) {
            continue;
        }
        // One that has ended meanwhile is refused.
        let status = match grpc::ask(socket, "PodSandboxStatus", &sandbox::status_request(&container_id)) {
            Err(CriError::Refused { .. }) => continue,
            status => status?,
        };
        match sandbox::read_status(&status, network) {
            Ok(Some(cached)) if cached.id.container_id == container_id => said.attachments.push(cached),
            Ok(None) => {}
            Ok(Some(_)) => said.unusable.push((container_id, "the runtime answered of another sandbox".to_owned())),
            Err(why) => said.unusable.push((container_id, why)),
        }
    }
    Ok(said)
}
