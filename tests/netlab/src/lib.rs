//! Network namespaces and what connects them: what the integration suite, the checks inside other kernels and the
//! benchmark build their networks of.
//!
//! A laboratory that cannot be built is a fault of the machine or of the test, and never what a test is about: whatever
//! fails here panics, and says what it was. [`Netns::try_sh`] is for what may fail.

mod links;
mod netns;
mod route;

pub use links::{Links, Mac, Veth, text};
pub use netns::{Netns, add, remove};
pub use route::Route;
