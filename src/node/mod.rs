//! What is on the node: the state directory, each sandbox on its two sides, and the one function that brings the two
//! together. Not here: who asks (`plugin`, `agent`, `cli`).

pub mod enforce;
pub mod files;
pub mod host_pod;
pub mod logging;
pub mod patience;
pub mod sandbox;
pub mod state;
pub mod workers;
