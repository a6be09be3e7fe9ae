//! The state directory, which is a public contract (docs/reference.md, docs/operations.md): who may own it, which mark decides, what a mark that
//! cannot be read does, and that no name leaves it. Whether a sandbox is isolated is read from the kernel.

mod invalid;
mod marks;
mod names;
mod ownership;
mod records;
mod sticky;

use std::path::Path;

const OPEN_LO: &str = r#"{"policy": {"loopback": true, "probes": false}}"#;
const CLOSED_LO: &str = r#"{"policy": {"loopback": false, "probes": true}}"#;

/// Puts something under the name of a mark.
type MakeMark = fn(&Path);
