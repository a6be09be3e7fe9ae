//! Which way a packet goes: of what was dropped, whether it was counted or kept.

use serde::Serialize;

/// Which way a packet goes, seen from the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// To the pod.
    In,
    /// From the pod.
    Out,
    /// From one interface of the pod to another.
    Forward,
}

impl Direction {
    /// As JSON has it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::In => "in",
            Self::Out => "out",
            Self::Forward => "forward",
        }
    }
}
