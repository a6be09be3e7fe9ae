//! The shortest program that drops: what no other drop at the host's end of a veth can be faster than.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;

use crate::Outcome;

/// Where it hangs: `BPF_TCX_INGRESS`, `BPF_TCX_EGRESS`.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Hook {
    Ingress = 46,
    Egress = 47,
}

/// A program on an interface, for as long as this.
#[derive(Debug)]
pub(crate) struct Link {
    _descriptor: OwnedFd,
}

const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const SCHED_CLS: u32 = 3;

impl Link {
    pub(crate) fn dropping_all(hook: Hook, interface: u32) -> Outcome<Self> {
        // r0 = TCX_DROP; exit
        let code: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 2, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
        let mut load = [0_u8; 120];
        load[0..4].copy_from_slice(&SCHED_CLS.to_ne_bytes());
        load[4..8].copy_from_slice(&(code.len() as u32).to_ne_bytes());
        load[8..16].copy_from_slice(&(code.as_ptr().expose_provenance() as u64).to_ne_bytes());
        load[16..24].copy_from_slice(&(c"Apache-2.0".as_ptr().expose_provenance() as u64).to_ne_bytes());
        // SAFETY: the pointers are to as many instructions as is said, and to a text that ends; both outlive the call.
        let program = unsafe { command(PROG_LOAD, &load) }?;
        let mut link = [0_u8; 64];
        link[0..4].copy_from_slice(&program.as_raw_fd().to_ne_bytes());
        link[4..8].copy_from_slice(&interface.to_ne_bytes());
        link[8..12].copy_from_slice(&(hook as u32).to_ne_bytes());
        // SAFETY: the command follows no pointer.
        Ok(Self { _descriptor: unsafe { command(LINK_CREATE, &link) }? })
    }
}

/// Makes a descriptor by bpf(2).
///
/// # Safety
/// What the attributes point to is as they say, and outlives the call.
unsafe fn command(number: libc::c_long, attributes: &[u8]) -> nix::Result<OwnedFd> {
    // SAFETY: the kernel reads the attributes, as many bytes as there are; the rest is the caller's to say.
    let made = unsafe { libc::syscall(libc::SYS_bpf, number, attributes.as_ptr(), attributes.len()) };
    let descriptor = RawFd::try_from(Errno::result(made)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel has just made it, for us alone.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
