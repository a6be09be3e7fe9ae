//! BPF programs that send every frame of one interface out of another, as a network's datapath does it, by links that
//! no tc filter shows. Assembled by hand: two instructions of them say something.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::net::if_::if_nametoindex;

use crate::lab::{Netns, not_tried};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_FUNC_REDIRECT: i32 = 23;

/// Where a program stands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stand {
    /// Before everything else that comes in, for skbs.
    Xdp,
    /// In front of the ingress hook of netfilter (Linux 6.6).
    TcxIngress,
    /// In front of the egress hook of netfilter.
    TcxEgress,
}

impl Stand {
    /// Type of program, type of attachment, flags.
    fn numbers(self) -> (u32, u32, u32) {
        const XDP_FLAGS_SKB_MODE: u32 = 2;
        match self {
            Self::Xdp => (6, 37, XDP_FLAGS_SKB_MODE),
            Self::TcxIngress => (3, 46, 0),
            Self::TcxEgress => (3, 47, 0),
        }
    }
}

#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

#[repr(C)]
#[derive(Default)]
struct Load {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    rest: [u64; 12],
}

#[repr(C)]
#[derive(Default)]
struct Create {
    program: u32,
    target: u32,
    attach_type: u32,
    flags: u32,
    rest: [u64; 4],
}

/// Redirects what passes `stand` on interface `from` to interface `to`, both in `netns`, as long as the descriptor is
/// open. `None` where the kernel is too old for that stand, or takes no program from a user namespace; that is said.
pub(crate) fn redirect(netns: &Netns, stand: Stand, from: &str, to: &str) -> Option<OwnedFd> {
    match netns.run(|| redirect_here(stand, from, to)) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput && !matches!(stand, Stand::Xdp) => {
            not_tried(&format!("this kernel has no {stand:?}"));
            None
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !is_root_of_the_machine() => {
            not_tried(&format!("no BPF program at {stand:?} in a user namespace"));
            None
        }
        made => Some(made.unwrap()),
    }
}

/// Whether the user namespace is the machine's own, which maps all users to themselves.
fn is_root_of_the_machine() -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap();
    map.split_whitespace().eq(["0", "0", "4294967295"])
}

fn redirect_here(stand: Stand, from: &str, to: &str) -> io::Result<OwnedFd> {
    let (from, to) = (if_nametoindex(from)?, if_nametoindex(to)?);
    let (program_type, attach_type, flags) = stand.numbers();
    let instruction = |code, registers, immediate| Instruction { code, registers, offset: 0, immediate };
    let program = [
        // r1 = to; r2 = 0; r0 = bpf_redirect(r1, r2); exit
        instruction(0xb7, 1, to.cast_signed()),
        instruction(0xb7, 2, 0),
        instruction(0x85, 0, BPF_FUNC_REDIRECT),
        instruction(0x95, 0, 0),
    ];
    let load = Load {
        program_type,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: `Load` is the start of what the command reads, and the program and the text that it points to live.
    let program = unsafe { bpf(BPF_PROG_LOAD, &load) }?;
    let create =
        Create { program: program.as_raw_fd().cast_unsigned(), target: from, attach_type, flags, ..Create::default() };
    // SAFETY: `Create` is the start of what the command reads, and holds no pointer.
    unsafe { bpf(BPF_LINK_CREATE, &create) }
}

/// # Safety
/// `attributes` is what the command reads, and its pointers are to what lives.
unsafe fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: pointer and length are those of `attributes`, which the kernel only reads; the caller answers for the rest.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attributes, size_of::<T>()) };
    let fd = RawFd::try_from(result).unwrap_or(-1);
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor was made just now and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}
