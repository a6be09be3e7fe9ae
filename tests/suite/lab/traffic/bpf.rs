//! BPF programs that send every frame of one interface out of another, as a network's datapath does it, by links that
//! no tc filter shows. Assembled by hand: few instructions of them say something.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::net::if_::if_nametoindex;

use crate::lab::{Mac, Netns, not_tried};

const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_DETACH: libc::c_long = 9;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;
const BPF_FUNC_REDIRECT: i32 = 23;
const BPF_FUNC_SKB_LOAD_BYTES: i32 = 26;
const BPF_FUNC_REDIRECT_NEIGH: i32 = 152;
const BPF_FUNC_REDIRECT_PEER: i32 = 155;
/// Before all others, where it names none.
const BPF_F_BEFORE: u32 = 1 << 3;

/// Where a program stands.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Stand {
    /// Before everything else that comes in, for skbs.
    Xdp,
    /// The same, in the driver.
    XdpNative,
    /// In front of the ingress hook of netfilter (Linux 6.6).
    TcxIngress,
    /// In front of the egress hook of netfilter.
    TcxEgress,
}

impl Stand {
    /// Type of program, type of attachment, flags.
    fn numbers(self) -> (u32, u32, u32) {
        const XDP_FLAGS_SKB_MODE: u32 = 2;
        const XDP_FLAGS_DRV_MODE: u32 = 4;
        match self {
            Self::Xdp => (6, 37, XDP_FLAGS_SKB_MODE),
            Self::XdpNative => (6, 37, XDP_FLAGS_DRV_MODE),
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
        Err(error)
            if error.kind() == io::ErrorKind::InvalidInput && !matches!(stand, Stand::Xdp | Stand::XdpNative) =>
        {
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
    let (program_type, attach_type, flags) = stand.numbers();
    let to = if_nametoindex(to)?.cast_signed();
    // r1 = to; r2 = 0; r0 = bpf_redirect(r1, r2); exit
    let program = [(0xb7, 1, 0, to), (0xb7, 2, 0, 0), (0x85, 0, 0, BPF_FUNC_REDIRECT), (0x95, 0, 0, 0)];
    link(&load(program_type, &program)?, from, attach_type, flags)
}

/// A program of a datapath that hangs in a classic tc filter (clsact, direct action), which is anybody's to replace.
pub(crate) fn classic(netns: &Netns, from: &str, to: &str, mac: Mac, way: Way) {
    let pin = Path::new("/sys/fs/bpf").join(format!("{}-{from}", netns.name()));
    let program = netns.run(|| takes(to, mac, way)).unwrap();
    let path = CString::new(pin.as_os_str().as_bytes()).unwrap();
    let [low, high] = [path.as_ptr() as u64, u64::from(program.as_raw_fd().cast_unsigned())];
    let attributes = [low, high];
    // SAFETY: the command reads the path, which ends, and a descriptor, which is open.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_PIN, attributes.as_ptr(), size_of_val(&attributes)) };
    assert_eq!(result, 0, "{}: {}", pin.display(), io::Error::last_os_error());
    let hung = netns.try_sh(&format!(
        "tc qdisc replace dev {from} clsact
         tc filter replace dev {from} ingress protocol all prio 1 handle 1 bpf da object-pinned {}",
        pin.display()
    ));
    std::fs::remove_file(pin).unwrap();
    hung.unwrap();
}

/// What is pinned there; it lasts as long as this.
pub(crate) fn pinned(pin: &Path) -> OwnedFd {
    let path = CString::new(pin.as_os_str().as_bytes()).unwrap();
    let get = [path.as_ptr() as u64, 0];
    // SAFETY: the command reads the path, which ends, and a descriptor that it does not use.
    unsafe { bpf(BPF_OBJ_GET, &get) }.unwrap()
}

/// The IDs of a link that is pinned and of its program.
pub(crate) fn link_and_program(pin: &Path) -> [u32; 2] {
    let link = pinned(pin);
    let mut info = [0_u32; 8];
    let [descriptor, length] = [link.as_raw_fd().cast_unsigned(), size_of_val(&info) as u32];
    let attributes = [u64::from(length) << 32 | u64::from(descriptor), info.as_mut_ptr() as u64];
    // SAFETY: the command writes to the array, which is as long as is said.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_OBJ_GET_INFO_BY_FD, attributes.as_ptr(), size_of_val(&attributes)) };
    assert_eq!(result, 0, "{}: {}", pin.display(), io::Error::last_os_error());
    [info[1], info[2]]
}

/// Sets the first half of the one element of a map of 16 bytes each that is pinned, as `bpftool map update` does.
pub(crate) fn set_element(pin: &Path, number: u64) {
    let map = pinned(pin);
    let (key, value) = ([0_u8; 4], [number, 0]);
    let attributes = [u64::from(map.as_raw_fd().cast_unsigned()), key.as_ptr() as u64, value.as_ptr() as u64, 0];
    // SAFETY: the command reads a key of four bytes and a value of sixteen.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, BPF_MAP_UPDATE_ELEM, attributes.as_ptr(), size_of_val(&attributes)) };
    assert_eq!(result, 0, "{}: {}", pin.display(), io::Error::last_os_error());
}

/// Detaches a link that is pinned, as `bpftool link detach` does.
pub(crate) fn detach(pin: &Path) {
    let link = pinned(pin);
    let link = [link.as_raw_fd().cast_unsigned()];
    // SAFETY: the command reads one descriptor.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_DETACH, link.as_ptr(), size_of_val(&link)) };
    assert_eq!(result, 0, "{}: {}", pin.display(), io::Error::last_os_error());
}

/// Where a program of a datapath puts the frames that it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// Out of an interface of the node.
    Out,
    /// The same, with the Ethernet header that the node has for its destination.
    ToNeighbour,
    /// In by the other end of one, past that.
    IntoPeer,
}

/// A program of a datapath at tcx ingress of an interface of the node: it takes the frames for one Ethernet address and lets all
/// others by. As long as it lives.
pub(crate) struct Datapath<'a> {
    netns: &'a Netns,
    link: OwnedFd,
}

impl<'a> Datapath<'a> {
    /// Put before all that hangs there, or behind it. `None` where the kernel is too old; that is said.
    pub(crate) fn attach(netns: &'a Netns, from: &str, to: &str, mac: Mac, way: Way, first: bool) -> Option<Self> {
        Self::attach_at(netns, Stand::TcxIngress, from, to, mac, way, first)
    }

    /// The same at this stand, one of tcx.
    pub(crate) fn attach_at(
        netns: &'a Netns,
        stand: Stand,
        from: &str,
        to: &str,
        mac: Mac,
        way: Way,
        first: bool,
    ) -> Option<Self> {
        let (_, attach_type, _) = stand.numbers();
        let flags = if first { BPF_F_BEFORE } else { 0 };
        let made = netns.run(|| link(&takes(to, mac, way)?, from, attach_type, flags));
        match made {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                not_tried("this kernel has no tcx");
                None
            }
            made => Some(Self { netns, link: made.unwrap() }),
        }
    }

    /// Replaces it in place, as an agent does that is updated.
    pub(crate) fn replace(&self, to: &str, mac: Mac, way: Way) {
        let program = self.netns.run(|| takes(to, mac, way)).unwrap();
        let update = Create {
            program: self.link.as_raw_fd().cast_unsigned(),
            target: program.as_raw_fd().cast_unsigned(),
            ..Create::default()
        };
        // SAFETY: the command reads two descriptors and a word of flags.
        let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_LINK_UPDATE, &raw const update, size_of::<Create>()) };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }
}

/// Hangs a program before all others on the way out of an interface, which lets everything pass and those behind it see nothing. As long as
/// the descriptor is open; `None` where the kernel is too old.
pub(crate) fn pass_first(netns: &Netns, on: &str) -> Option<OwnedFd> {
    let (program_type, attach_type, _) = Stand::TcxEgress.numbers();
    // r0 = TCX_PASS; exit
    let passes = || load(program_type, &[(0xb7, 0, 0, 0), (0x95, 0, 0, 0)]);
    match netns.run(|| link(&passes()?, on, attach_type, BPF_F_BEFORE)) {
        Err(error) if error.kind() == io::ErrorKind::InvalidInput => None,
        made => Some(made.unwrap()),
    }
}

/// Takes whatever program is first at this stand off an interface, as `bpftool net detach` does and an older `bpf(2)` could.
pub(crate) fn detach_from(netns: &Netns, stand: Stand, on: &str) -> io::Result<()> {
    let (_, attach_type, _) = stand.numbers();
    netns.run(|| {
        let attributes = [if_nametoindex(on)?, 0, attach_type, 0, 0, 0, 0, 0];
        // SAFETY: the command reads numbers.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_DETACH, attributes.as_ptr(), size_of_val(&attributes)) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    })
}

/// Has an interface put received frames together, as drivers' do: a veth receives what XDP redirects to its other end only so.
pub(crate) fn receive_offload(netns: &Netns, on: &str) {
    const ETHTOOL_SGRO: u32 = 0x2c;
    netns.run(|| {
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        let mut value = [ETHTOOL_SGRO, 1];
        // SAFETY: all-zero is a valid value of this C structure.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(on.bytes()) {
            *to = from.cast_signed();
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        // SAFETY: the request is a live ifreq that points to an ethtool_value, as SIOCETHTOOL takes it.
        let status = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
        assert_eq!(status, 0, "{}", io::Error::last_os_error());
    });
}

/// Loads a program that takes the frames for one Ethernet address.
fn takes(to: &str, [a, b, c, d, e, f]: Mac, way: Way) -> io::Result<OwnedFd> {
    let to = if_nametoindex(to)?.cast_signed();
    let helper = match way {
        Way::Out => BPF_FUNC_REDIRECT,
        Way::ToNeighbour => BPF_FUNC_REDIRECT_NEIGH,
        Way::IntoPeer => BPF_FUNC_REDIRECT_PEER,
    };
    load(
        3,
        &[
            // bpf_skb_load_bytes(skb, 0, r10 - 8, 6)
            (0xb7, 2, 0, 0),
            (0xbf, 0xa3, 0, 0),
            (0x07, 3, 0, -8),
            (0xb7, 4, 0, 6),
            (0x85, 0, 0, BPF_FUNC_SKB_LOAD_BYTES),
            (0x61, 0xa1, -8, 0),
            (0x56, 1, 8, i32::from_ne_bytes([a, b, c, d])),
            (0x69, 0xa1, -4, 0),
            (0x56, 1, 6, u16::from_ne_bytes([e, f]).into()),
            (0xb7, 1, 0, to),
            (0xb7, 2, 0, 0),
            (0xb7, 3, 0, 0),
            (0xb7, 4, 0, 0),
            (0x85, 0, 0, helper),
            (0x95, 0, 0, 0),
            // TCX_NEXT
            (0xb7, 0, 0, -1),
            (0x95, 0, 0, 0),
        ],
    )
}

fn load(program_type: u32, program: &[(u8, u8, i16, i32)]) -> io::Result<OwnedFd> {
    let instruction = |&(code, registers, offset, immediate)| Instruction { code, registers, offset, immediate };
    let program: Vec<_> = program.iter().map(instruction).collect();
    let load = Load {
        program_type,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    // SAFETY: `Load` is the start of what the command reads, and the program and the text that it points to live.
    unsafe { bpf(BPF_PROG_LOAD, &load) }
}

fn link(program: &OwnedFd, from: &str, attach_type: u32, flags: u32) -> io::Result<OwnedFd> {
    let target = if_nametoindex(from)?;
    let create =
        Create { program: program.as_raw_fd().cast_unsigned(), target, attach_type, flags, ..Create::default() };
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
