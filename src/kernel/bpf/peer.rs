//! Whether any program of this kernel may put frames straight into another netns: by `bpf_redirect_peer`, past all that hangs on the
//! host's end of a pair.
//!
//! What a program calls is in its instructions, which the kernel shows as it runs them: a helper is an address there. The address of the
//! one that is looked for is read from a program that does nothing but call it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::object::word;
use super::syscall::{Attributes, Command, info};

const REDIRECT_PEER: i32 = 155;
/// A tail call is shown as a call of this.
const TAIL_CALL: u32 = 12;
const CALL: u8 = 0x85;
/// `BPF_PROG_TYPE_SCHED_CLS`, `…_SCHED_ACT` and `…_EXT`: those that may call it, and those that stand in for a part of one.
const TYPES: [u32; 3] = [SCHED_CLS, 4, 28];
const SCHED_CLS: u32 = 3;
/// No program is longer.
const LONGEST: usize = 8_000_000;

/// Whether there is such a program among those of these IDs and those that they may call, or none can be ruled out. `None` are all
/// that the kernel has.
#[must_use]
pub fn may_redirect_to_peers(attached: Option<&[u32]>) -> bool {
    let ours = match calling_one() {
        Ok(program) => program,
        // A kernel that does not have the helper runs no program that calls it.
        Err(Errno::EINVAL) => return false,
        Err(_) => return true,
    };
    // An address of 0 is one that is not shown to us.
    let helper = instructions(ours.as_fd()).and_then(|code| calls(&code).next()).filter(|helper| *helper != 0);
    let Some(helper) = helper else { return true };
    let does = |program: &OwnedFd, helpers: &[u32]| match instructions(program.as_fd()) {
        Some(code) => calls(&code).any(|called| helpers.contains(&called)),
        None => true,
    };
    let any_does = || others(&ours).any(|other| does(&other, &[helper]));
    match attached {
        None => any_does(),
        // Which programs a tail call leads to is in a map, and anybody's to change.
        Some(attached) => attached
            .iter()
            .filter_map(|id| by_id(*id))
            .any(|program| does(&program, &[helper]) || (does(&program, &[TAIL_CALL]) && any_does())),
    }
}

/// Loads a program that calls it.
fn calling_one() -> Result<OwnedFd, Errno> {
    let call = REDIRECT_PEER.to_ne_bytes();
    #[rustfmt::skip]
    let code = [
        // r1 = 1; r2 = 0; call; exit
        [0xb7, 1, 0, 0, 1, 0, 0, 0],
        [0xb7, 2, 0, 0, 0, 0, 0, 0],
        [CALL, 0, 0, 0, call[0], call[1], call[2], call[3]],
        [0x95, 0, 0, 0, 0, 0, 0, 0],
    ];
    let mut attributes = Attributes::new()
        .word(0, SCHED_CLS)
        .word(4, code.len() as u32)
        .reads(8, code.as_flattened())
        .reads(16, c"Apache-2.0".to_bytes_with_nul())
        .put(48, b"quarantine_look");
    // SAFETY: there are as many instructions as is said, and the text ends; the command makes a descriptor.
    unsafe { attributes.open(Command::ProgLoad) }
}

/// The other programs that might call it.
fn others(ours: &OwnedFd) -> impl Iterator<Item = OwnedFd> {
    let id_of = |program: BorrowedFd<'_>| read(program, &mut []).map_or(0, |(_, id, _)| id);
    let ours = id_of(ours.as_fd());
    let mut last = 0;
    std::iter::from_fn(move || {
        let mut attributes = Attributes::new().word(0, last).put(4, &[0; 8]);
        // SAFETY: the command follows no pointer.
        unsafe { attributes.call(Command::ProgGetNextId) }.ok()?;
        last = attributes.word_at(4);
        Some(last)
    })
    .filter(move |id| *id != ours)
    .filter_map(by_id)
    .filter(|program| read(program.as_fd(), &mut []).is_none_or(|(kind, ..)| TYPES.contains(&kind)))
}

/// The program of an ID. One that is gone by now calls nothing.
fn by_id(id: u32) -> Option<OwnedFd> {
    let mut attributes = Attributes::new().word(0, id).put(8, &[0; 4]);
    // SAFETY: the command follows no pointer, and makes a descriptor.
    unsafe { attributes.open(Command::ProgGetFdById) }.ok()
}

/// Type and ID of a program, and how long its instructions are, of which as many are read as there is room for.
fn read(program: BorrowedFd<'_>, code: &mut [u8]) -> Option<(u32, u32, usize)> {
    let mut program_info = [0; 88];
    if !code.is_empty() {
        program_info[20..24].copy_from_slice(&u32::try_from(code.len()).ok()?.to_ne_bytes());
        program_info[32..40].copy_from_slice(&(code.as_mut_ptr().expose_provenance() as u64).to_ne_bytes());
    }
    // SAFETY: the one pointer in it is to as many bytes as is said beside it, or null.
    unsafe { info(program, &mut program_info) }.ok()?;
    let is_shown = code.is_empty() || program_info[32..40] != [0; 8];
    is_shown.then(|| (word(&program_info[0..4]), word(&program_info[4..8]), word(&program_info[20..24]) as usize))
}

/// The instructions of a program, where the kernel shows them.
fn instructions(program: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let (_, _, length) = read(program, &mut [])?;
    if length == 0 || length > LONGEST {
        return None;
    }
    let mut code = vec![0; length];
    read(program, &mut code)?;
    Some(code)
}

/// The helpers that are called in it.
fn calls(code: &[u8]) -> impl Iterator<Item = u32> {
    // The source register says what sort of call it is: 0 is one of a helper.
    code.chunks_exact(8)
        .filter(|instruction| instruction[0] == CALL && instruction[1] >> 4 == 0)
        .map(|call| word(&call[4..]))
}
