//! AF_XDP transmit in copy mode: frames that leave by the driver without passing any netfilter hook of their own side.
//!
//! No XDP program is loaded; the socket only needs a queue of the interface. One frame at a time, which is enough to
//! show that a door is open.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::ptr;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::net::if_::if_nametoindex;

use super::sockets::at_an_address_used_before;
use crate::lab::Netns;

const FRAME: usize = 2048;
const FRAMES: u32 = 64;
/// As many as will ever be sent on one socket: nobody empties the completion ring.
const RING: u32 = 4096;

/// A transmit-only AF_XDP socket.
pub(crate) struct XdpSocket {
    fd: OwnedFd,
    memory: Mapping,
    ring: Mapping,
    offsets: libc::xdp_ring_offset,
    sent: u32,
}

impl XdpSocket {
    /// Opens one on queue 0 of an interface.
    pub(crate) fn open(netns: &Netns, ifname: &str) -> io::Result<Self> {
        at_an_address_used_before(|| netns.run(|| Self::open_here(ifname)))
    }

    fn open_here(ifname: &str) -> io::Result<Self> {
        // SAFETY: socket takes three numbers.
        let raw = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        check(raw)?;
        // SAFETY: the descriptor was opened just now and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(raw) };
        let memory = Mapping::anonymous(FRAME * FRAMES as usize)?;
        // SAFETY: all-zero is a valid value of this C structure.
        let mut registration: libc::xdp_umem_reg = unsafe { std::mem::zeroed() };
        registration.addr = memory.address as u64;
        registration.len = memory.length as u64;
        registration.chunk_size = FRAME as u32;
        set(&fd, libc::XDP_UMEM_REG, &registration)?;
        for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_TX_RING] {
            set(&fd, ring, &RING)?;
        }
        let offsets = offsets(&fd)?.tx;
        let length = usize::try_from(offsets.desc).unwrap() + RING as usize * size_of::<libc::xdp_desc>();
        let ring = Mapping::of(&fd, length, libc::XDP_PGOFF_TX_RING)?;
        // SAFETY: all-zero is a valid value of this C structure.
        let mut address: libc::sockaddr_xdp = unsafe { std::mem::zeroed() };
        address.sxdp_family = libc::AF_XDP as u16;
        address.sxdp_flags = libc::XDP_COPY;
        address.sxdp_ifindex = if_nametoindex(ifname)?;
        let length = size_of::<libc::sockaddr_xdp>() as u32;
        // SAFETY: pointer and length describe one live sockaddr_xdp.
        check(unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) })?;
        Ok(Self { fd, memory, ring, offsets, sent: 0 })
    }

    /// Puts a frame into the ring and has the kernel send it.
    pub(crate) fn send(&mut self, frame: &[u8]) -> io::Result<()> {
        assert!(frame.len() <= FRAME);
        let slot = self.sent % RING;
        let offset = (self.sent % FRAMES) as usize * FRAME;
        // SAFETY: the number is below FRAMES, so the frame lies within the memory that was mapped for FRAMES of them.
        let target = unsafe { self.memory.address.add(offset) };
        // SAFETY: the target has room for FRAME bytes, and the frame is another object.
        unsafe { ptr::copy_nonoverlapping(frame.as_ptr(), target, frame.len()) };
        let descriptor = libc::xdp_desc { addr: offset as u64, len: u32::try_from(frame.len()).unwrap(), options: 0 };
        let at = usize::try_from(self.offsets.desc).unwrap() + slot as usize * size_of::<libc::xdp_desc>();
        // SAFETY: the ring was mapped with room for RING descriptors behind `desc`.
        let place = unsafe { self.ring.address.add(at) }.cast::<libc::xdp_desc>();
        // SAFETY: the kernel lays the descriptors out aligned, and reads this one only once the producer moved on.
        unsafe { place.write(descriptor) };
        self.sent = self.sent.wrapping_add(1);
        // SAFETY: the offset that the kernel gave is within the mapping.
        let producer = unsafe { self.ring.address.add(usize::try_from(self.offsets.producer).unwrap()) };
        // SAFETY: the kernel aligns the producer's counter, and it lives as long as the mapping.
        let producer = unsafe { AtomicU32::from_ptr(producer.cast()) };
        producer.store(self.sent, Ordering::Release);
        // SAFETY: an empty message: no pointer is followed.
        let status = unsafe { libc::sendto(self.fd.as_raw_fd(), ptr::null(), 0, libc::MSG_DONTWAIT, ptr::null(), 0) };
        if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

struct Mapping {
    address: *mut u8,
    length: usize,
}

// SAFETY: the mapping is owned by this value alone; only the kernel shares it.
unsafe impl Send for Mapping {}

impl Mapping {
    fn anonymous(length: usize) -> io::Result<Self> {
        Self::map(length, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
    }

    fn of(fd: &OwnedFd, length: usize, offset: i64) -> io::Result<Self> {
        Self::map(length, libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), offset)
    }

    fn map(length: usize, flags: i32, fd: i32, offset: i64) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let address = unsafe { libc::mmap(ptr::null_mut(), length, access, flags, fd, offset) };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        Ok(Self { address: address.cast(), length })
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the value owns the mapping and nothing points into it any more.
        unsafe { libc::munmap(self.address.cast(), self.length) };
    }
}

fn offsets(fd: &OwnedFd) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: all-zero is a valid value of this C structure.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    let mut length = size_of::<libc::xdp_mmap_offsets>() as u32;
    let value = (&raw mut offsets).cast();
    // SAFETY: pointer and length describe one live xdp_mmap_offsets.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, value, &raw mut length) })?;
    Ok(offsets)
}

fn set<T>(fd: &OwnedFd, option: i32, value: &T) -> io::Result<()> {
    let length = u32::try_from(size_of::<T>()).unwrap();
    let value = ptr::from_ref(value).cast();
    // SAFETY: pointer and length describe one live value of the type that the option takes.
    check(unsafe { libc::setsockopt(fd.as_raw_fd(), libc::SOL_XDP, option, value, length) })
}

fn check(status: i32) -> io::Result<()> {
    if status < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
