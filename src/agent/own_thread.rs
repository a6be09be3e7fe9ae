//! By which thread IDs the kernel names this process when it says who changed rules.
//!
//! It says them as the first PID namespace has them, whoever listens. An agent in a container that has PIDs of its own would take all
//! that it does itself for a stranger's work, look at each sandbox a second time, and name its own workers as those who tampered. The
//! kernel tells no process what it is called outside; but each can make a change where nobody else is, and hear who that was.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;

use crate::kernel::nft::{Batch, Nft, NftChange, NftEvents};
use crate::rules::containment::TABLE;
use crate::rules::ruleset::{Family, Table};

/// `PROC_PID_INIT_INO`: which of its namespaces a machine has from the start on is told by their inodes.
const FIRST_PID_NAMESPACE: u64 = 0xefff_fffc;
/// The one change and who made it fill no more.
const ROOM: usize = 8192;

/// This thread's ID, as the kernel will say it of its changes.
pub(super) fn own_thread() -> i32 {
    let is_first = fs::metadata("/proc/thread-self/ns/pid").is_ok_and(|file| file.ino() == FIRST_PID_NAMESPACE);
    let told = if is_first { None } else { told_by_kernel() };
    told.unwrap_or_else(|| gettid().as_raw())
}

/// Makes a table in a network namespace that was made for it and ends with it.
fn told_by_kernel() -> Option<i32> {
    let open = || -> Option<(Nft, NftEvents)> {
        unshare(CloneFlags::CLONE_NEWNET).ok()?;
        Some((Nft::open().ok()?, NftEvents::subscribe().ok()?))
    };
    let (mut nft, events) = thread::scope(|scope| scope.spawn(open).join().ok()?)?;
    let mut batch = Batch::default();
    batch.add_table(&Table {
        family: Family::Netdev,
        name: TABLE.to_owned(),
        dormant: true,
        sets: Vec::new(),
        branches: Vec::new(),
        chains: Vec::new(),
    });
    nft.apply(&batch).ok()?;
    let mut told = None;
    events.drain(&mut [0; ROOM], |change| {
        if let NftChange::Committed(committer) = change {
            told = Some(committer.thread);
        }
    });
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_says_the_id_that_the_first_namespace_has() {
        // Without the right to make a network namespace nothing is told; with it, and in the first one, both are the same.
        let is_first = fs::metadata("/proc/self/ns/pid").is_ok_and(|file| file.ino() == FIRST_PID_NAMESPACE);
        if let (true, Some(told)) = (is_first, told_by_kernel()) {
            assert_eq!(told, gettid().as_raw());
        }
        assert!(own_thread() > 0);
    }
}
