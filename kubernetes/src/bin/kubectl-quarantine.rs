//! The `kubectl-quarantine` binary: `kubectl` runs it for `kubectl quarantine`.

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(quarantine_kube::kubectl::run(std::env::args_os()))
}
