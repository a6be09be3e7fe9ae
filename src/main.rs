//! The `quarantine` binary: picks the face that it was called by, and is the only place that exits.

use std::io::{self, Write};
use std::process::ExitCode;

use cni_quarantine::faces::{about, run, serve, write_answer};

/// musl's own allocator maps and unmaps a page for every few small values: 400 system calls of the 600 of an ADD.
#[global_allocator]
static ALLOCATOR: dlmalloc::GlobalDlmalloc = dlmalloc::GlobalDlmalloc;

fn main() -> ExitCode {
    let is_called_by_runtime = std::env::var_os("CNI_COMMAND").is_some_and(|command| !command.is_empty());
    if is_called_by_runtime {
        let answer = serve(|name| std::env::var_os(name), &mut io::stdin().lock());
        let written = write_answer(&answer, &mut io::stdout().lock());
        return if answer.succeeded && written.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    if std::env::args_os().len() <= 1 {
        let _ = writeln!(io::stderr(), "{}", about());
        return ExitCode::SUCCESS;
    }
    ExitCode::from(run(std::env::args_os()))
}
