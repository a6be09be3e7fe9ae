//! What the kernel says of BPF programs that hang on interfaces.

use nix::libc;
use serde::Serialize;

const BPF_PROG_QUERY: libc::c_long = 16;
/// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`, `BPF_NETKIT_PRIMARY`, `BPF_NETKIT_PEER`.
const ATTACH_TYPES: [(u32, &str); 4] =
    [(46, "tcx-ingress"), (47, "tcx-egress"), (54, "netkit-primary"), (55, "netkit-peer")];
/// So many programs of each sort are named.
const NAMED: usize = 64;

/// The `query` part of `union bpf_attr`, padded as the kernel allows.
#[repr(C)]
#[derive(Default)]
struct Query {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    program_ids: u64,
    program_count: u32,
    reserved: u32,
    program_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Whether BPF programs hang on an interface by tcx or netkit (Linux 6.6 and 6.7), which no tc filter shows. Asks in
/// the calling thread's netns.
#[must_use]
pub fn has_bpf_links(index: u32) -> bool {
    ATTACH_TYPES.into_iter().any(|(attach_type, _)| {
        let mut query = Query { target: index, attach_type, ..Query::default() };
        // SAFETY: the kernel reads and writes `query` within the size given and follows no pointer in it: all are null.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
        result == 0 && query.program_count > 0
    })
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
    let mut found = Vec::new();
    for (attach_type, attached) in ATTACH_TYPES {
        let mut ids = [0_u32; NAMED];
        let mut query = Query {
            target: interface,
            attach_type,
            program_ids: ids.as_mut_ptr().expose_provenance() as u64,
            program_count: NAMED as u32,
            ..Query::default()
        };
        // SAFETY: the kernel reads and writes `query` within the size given, and writes no more than `program_count`
        // numbers to `program_ids`, which has room for them; the other pointers are null, and not followed.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
        if result == 0 {
            let count = usize::try_from(query.program_count).unwrap_or(0).min(ids.len());
            found.extend(ids[..count].iter().map(|&program| ProgramFound { interface, attached, program }));
        }
    }
    found
}
