//! What hangs on an interface by tcx or netkit, whoever put it there: no tc filter shows it.

use nix::errno::Errno;
use serde::Serialize;

use super::syscall::{Attributes, Command};

/// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS` (Linux 6.6).
const TCX: [(u32, &str); 2] = [(46, "tcx-ingress"), (47, "tcx-egress")];
/// `BPF_NETKIT_PRIMARY`, `BPF_NETKIT_PEER` (6.7).
const NETKIT: [(u32, &str); 2] = [(54, "netkit-primary"), (55, "netkit-peer")];
/// The kernel lets no more programs hang on one hook.
const MOST: usize = 64;

/// A program that hangs on a hook: its ID, and its link's, which is 0 where it has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Attached {
    pub(super) program: u32,
    pub(super) link: u32,
}

/// What hangs on a hook of an interface, in the order in which packets meet it. Asks in the calling thread's netns.
pub(super) fn attached(interface: u32, attach_type: u32) -> Result<Vec<Attached>, Errno> {
    let (mut programs, mut links) = ([0; 4 * MOST], [0; 4 * MOST]);
    let mut query = Attributes::new()
        .word(0, interface)
        .word(4, attach_type)
        .writes(16, &mut programs)
        .word(24, MOST as u32)
        .writes(40, &mut links)
        .put(56, &[0; 8]);
    // SAFETY: both arrays have room for as many numbers as is said.
    unsafe { query.call(Command::ProgQuery) }?;
    let count = query.word_at(24) as usize;
    let numbers = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_ne_bytes);
    let both = programs.chunks_exact(4).zip(links.chunks_exact(4)).take(count);
    Ok(both.map(|(program, link)| Attached { program: numbers(program), link: numbers(link) }).collect())
}

/// Why the kernel lets no program hang on an interface by tcx, where it does not (before 6.6).
#[must_use]
pub fn refuses_tcx() -> Option<Errno> {
    /// Every netns has it from its beginning.
    const LOOPBACK: u32 = 1;
    attached(LOOPBACK, TCX[0].0).err()
}

/// A BPF program that hangs on an interface by tcx or netkit.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramFound {
    /// The interface.
    pub interface: u32,
    /// How.
    pub attached: &'static str,
    /// Its ID.
    pub program: u32,
}

/// The programs that hang on an interface so. Asks in the calling thread's netns.
#[must_use]
pub fn programs_on(interface: u32) -> Vec<ProgramFound> {
    let mut found = programs_by_tcx_on(interface);
    found.append(&mut programs_at(interface, NETKIT));
    found
}

/// The same of one that is known not to be a netkit.
#[must_use]
pub fn programs_by_tcx_on(interface: u32) -> Vec<ProgramFound> {
    programs_at(interface, TCX)
}

fn programs_at(interface: u32, hooks: [(u32, &'static str); 2]) -> Vec<ProgramFound> {
    let mut found = Vec::new();
    for (attach_type, attached_by) in hooks {
        let here = attached(interface, attach_type).unwrap_or_default().into_iter();
        found.extend(here.map(|here| ProgramFound { interface, attached: attached_by, program: here.program }));
    }
    found
}
