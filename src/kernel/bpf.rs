//! What the kernel says of BPF programs that hang on interfaces.

use nix::libc;

/// Whether BPF programs hang on an interface by tcx or netkit (Linux 6.6 and 6.7), which no tc filter shows. Asks in
/// the calling thread's netns.
#[must_use]
pub fn has_bpf_links(index: u32) -> bool {
    const BPF_PROG_QUERY: libc::c_long = 16;
    /// `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`, `BPF_NETKIT_PRIMARY`, `BPF_NETKIT_PEER`.
    const ATTACH_TYPES: [u32; 4] = [46, 47, 54, 55];
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
    ATTACH_TYPES.into_iter().any(|attach_type| {
        let mut query = Query { target: index, attach_type, ..Query::default() };
        // SAFETY: the kernel reads and writes `query` within the size given and follows no pointer in it: all are null.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_QUERY, &raw mut query, size_of::<Query>()) };
        result == 0 && query.program_count > 0
    })
}
