//! Whom something is about that is isolated, of either kind.

use std::fmt;

use super::names::{ContainerId, PodUid};

/// What stands before the UID of a pod in the node's network namespace, where names of both kinds meet; no container ID has a colon.
pub const HOST: &str = "host:";

/// A sandbox, or a pod that has none.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// A sandbox.
    Sandbox(ContainerId),
    /// A pod in the node's network namespace.
    HostPod(PodUid),
}

impl Subject {
    /// The pod that is called so: `host:<UID>`. Nothing else is written like that.
    #[must_use]
    pub fn host_pod(word: &str) -> Option<Self> {
        PodUid::new(word.strip_prefix(HOST)?).ok().map(Self::HostPod)
    }

    /// The sandbox; `None` where it is a pod that has none.
    #[must_use]
    pub fn sandbox(&self) -> Option<&ContainerId> {
        match self {
            Self::Sandbox(container_id) => Some(container_id),
            Self::HostPod(_) => None,
        }
    }
}

impl From<ContainerId> for Subject {
    fn from(container_id: ContainerId) -> Self {
        Self::Sandbox(container_id)
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sandbox(container_id) => container_id.fmt(f),
            Self::HostPod(uid) => write!(f, "{HOST}{uid}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_pod_s_name_is_read_as_it_is_written_and_is_nobody_else_s() {
        let pod = Subject::HostPod(PodUid::new("uid-1").unwrap());
        assert_eq!(Subject::host_pod(&pod.to_string()), Some(pod.clone()));
        assert_eq!(Subject::host_pod("uid-1"), None);
        assert_eq!(Subject::host_pod("host:../x"), None);
        assert!(ContainerId::new(&pod.to_string()).is_err());
    }
}
