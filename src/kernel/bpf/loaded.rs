//! The programs that this kernel has, wherever they hang: by their IDs, and of what type they are.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::object::word;
use super::syscall::{Attributes, Command, info};

pub(super) const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_SCHED_CLS`, `…_SCHED_ACT` and `…_XDP`: no others hang on an interface, by whatever hook.
const OF_INTERFACES: [u32; 3] = [SCHED_CLS, 4, 6];

/// Whether no program that could hang on an interface is loaded but those of these IDs: then none need be asked what hangs
/// on it. `false` also where the kernel does not say.
#[must_use]
pub fn none_for_interfaces_but(ours: &[u32]) -> bool {
    loaded().all(|id| match id {
        Ok(id) if ours.contains(&id) => true,
        Ok(id) => match by_id(id) {
            Ok(program) => read(program.as_fd(), &mut []).is_some_and(|found| !OF_INTERFACES.contains(&found.kind)),
            // It is gone by now.
            Err(errno) => errno == Errno::ENOENT,
        },
        Err(_) => false,
    })
}

/// The IDs of all programs; an error where the kernel does not list them to us.
pub(super) fn loaded() -> impl Iterator<Item = Result<u32, Errno>> {
    let mut last = Some(0);
    std::iter::from_fn(move || {
        let mut attributes = Attributes::new().word(0, last?).put(4, &[0; 8]);
        // SAFETY: the command follows no pointer.
        match unsafe { attributes.call(Command::ProgGetNextId) } {
            Ok(_) => {
                last = Some(attributes.word_at(4));
                last.map(Ok)
            }
            Err(errno) => {
                last = None;
                (errno != Errno::ENOENT).then_some(Err(errno))
            }
        }
    })
}

/// The program of an ID.
pub(super) fn by_id(id: u32) -> Result<OwnedFd, Errno> {
    let mut attributes = Attributes::new().word(0, id).put(8, &[0; 4]);
    // SAFETY: the command follows no pointer, and makes a descriptor.
    unsafe { attributes.open(Command::ProgGetFdById) }
}

/// What the kernel says of a program.
pub(super) struct Found {
    pub(super) kind: u32,
    pub(super) id: u32,
    /// How long its instructions are, in bytes.
    pub(super) length: usize,
}

/// What a program is; of its instructions as many are read as there is room for. `None` also where they are not shown.
pub(super) fn read(program: BorrowedFd<'_>, code: &mut [u8]) -> Option<Found> {
    let mut program_info = [0; 88];
    if !code.is_empty() {
        program_info[20..24].copy_from_slice(&u32::try_from(code.len()).ok()?.to_ne_bytes());
        program_info[32..40].copy_from_slice(&(code.as_mut_ptr().expose_provenance() as u64).to_ne_bytes());
    }
    // SAFETY: the one pointer in it is to as many bytes as is said beside it, or null.
    unsafe { info(program, &mut program_info) }.ok()?;
    let is_shown = code.is_empty() || program_info[32..40] != [0; 8];
    let [kind, id, length] = [0, 4, 20].map(|at: usize| word(&program_info[at..at + 4]));
    is_shown.then_some(Found { kind, id, length: length as usize })
}
