//! The `quarantine` binary: picks the face it was called by, and is the only place that exits.

fn main() {}
