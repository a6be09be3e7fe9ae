//! Closing nf_tables sockets after something was deleted, without waiting for it.
//!
//! The kernel frees what a transaction deleted after an RCU grace period, and the last close of any nf_tables socket in
//! that netns waits for that: 10 to 20 ms, several times what a whole DEL takes. A child process holds the sockets until
//! this process has ended, and does the waiting. It has nothing else open, runs nothing else, and ends by itself.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use nix::libc;
use nix::unistd::{ForkResult, fork, pipe};

/// Descriptors that this process can have open at most; it opens a dozen.
const DESCRIPTORS_MAX: libc::c_int = 64;

/// Has a child hold these sockets too, so that closing them here is not the last close.
///
/// Only for a process that ends soon and has no other thread.
///
/// # Errors
/// When there can be no child; closing waits then, and is right all the same.
pub fn leave_to_child(sockets: &[BorrowedFd<'_>]) -> io::Result<()> {
    let (ours_to_end, ours) = pipe()?;
    let mut kept: Vec<libc::c_int> = sockets.iter().map(AsRawFd::as_raw_fd).collect();
    let end = ours_to_end.as_raw_fd();
    kept.push(end);
    // SAFETY: there is no other thread, and the child makes only system calls until it ends.
    match unsafe { fork() }? {
        ForkResult::Parent { .. } => {
            // Its close, at our end, is what the child waits for.
            std::mem::forget(ours);
            Ok(())
        }
        ForkResult::Child => {
            for descriptor in 0..DESCRIPTORS_MAX {
                if !kept.contains(&descriptor) {
                    // SAFETY: the child uses none of them; the runtime waits for the end of our standard output, and
                    // the sandbox's lock must go with its owner.
                    unsafe { libc::close(descriptor) };
                }
            }
            let mut byte = 0_u8;
            // SAFETY: one byte is read into one byte; nobody writes, so it returns when our parent has ended.
            unsafe { libc::read(end, (&raw mut byte).cast(), 1) };
            // SAFETY: ends the child without running what belongs to its parent.
            unsafe { libc::_exit(0) }
        }
    }
}
