//! Whether any program of this kernel may put frames straight into another netns: by `bpf_redirect_peer`, past all that hangs on the
//! host's end of a pair.
//!
//! What a program calls is in its instructions, which the kernel shows as it runs them: a helper is an address there. The address of the
//! one that is looked for is read from a program that does nothing but call it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::loaded::{SCHED_CLS, by_id, loaded, read};
use super::object::word;
use super::syscall::{Attributes, Command};

const REDIRECT_PEER: i32 = 155;
/// A tail call is shown as a call of this.
const TAIL_CALL: u32 = 12;
const CALL: u8 = 0x85;
/// `BPF_PROG_TYPE_SCHED_CLS`, `…_SCHED_ACT` and `…_EXT`: those that may call it, and those that stand in for a part of one.
const TYPES: [u32; 3] = [SCHED_CLS, 4, 28];
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
            .filter_map(|id| by_id(*id).ok())
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
    let ours = read(ours.as_fd(), &mut []).map_or(0, |found| found.id);
    loaded()
        .map_while(Result::ok)
        .filter(move |id| *id != ours)
        .filter_map(|id| by_id(id).ok())
        .filter(|program| read(program.as_fd(), &mut []).is_none_or(|found| TYPES.contains(&found.kind)))
}

/// The instructions of a program, where the kernel shows them.
fn instructions(program: BorrowedFd<'_>) -> Option<Vec<u8>> {
    let length = read(program, &mut [])?.length;
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
