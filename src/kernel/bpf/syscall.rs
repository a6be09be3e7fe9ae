//! bpf(2): one attribute union for all commands, and what it points to.

use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::libc;

/// A command of bpf(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "they are named as in linux/bpf.h")]
pub(super) enum Command {
    MapCreate = 0,
    MapLookupElem = 1,
    MapUpdateElem = 2,
    MapGetNextKey = 4,
    ProgLoad = 5,
    ObjPin = 6,
    ObjGet = 7,
    ProgGetNextId = 11,
    ProgGetFdById = 13,
    ObjGetInfoByFd = 15,
    ProgQuery = 16,
    LinkCreate = 28,
    LinkUpdate = 29,
    LinkDetach = 34,
}

/// Bytes of the union that any of the commands reads.
const LENGTH: usize = 128;

/// `union bpf_attr`, filled by offset. What it points to is borrowed for as long as it lives.
#[derive(Debug)]
pub(super) struct Attributes<'a> {
    bytes: [u8; LENGTH],
    used: usize,
    borrowed: PhantomData<&'a mut [u8]>,
}

impl<'a> Attributes<'a> {
    pub(super) fn new() -> Self {
        Self { bytes: [0; LENGTH], used: 0, borrowed: PhantomData }
    }

    pub(super) fn put(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.bytes[offset..offset + bytes.len()].copy_from_slice(bytes);
        self.used = self.used.max((offset + bytes.len()).next_multiple_of(8));
        self
    }

    pub(super) fn word(self, offset: usize, word: u32) -> Self {
        self.put(offset, &word.to_ne_bytes())
    }

    pub(super) fn descriptor(self, offset: usize, descriptor: BorrowedFd<'a>) -> Self {
        self.put(offset, &descriptor.as_raw_fd().to_ne_bytes())
    }

    /// The address of what the kernel reads.
    pub(super) fn reads(self, offset: usize, from: &'a [u8]) -> Self {
        self.put(offset, &(from.as_ptr().expose_provenance() as u64).to_ne_bytes())
    }

    /// The address of what the kernel writes to.
    pub(super) fn writes(self, offset: usize, to: &'a mut [u8]) -> Self {
        self.put(offset, &(to.as_mut_ptr().expose_provenance() as u64).to_ne_bytes())
    }

    /// What is in the union now: the kernel answers in it too.
    pub(super) fn word_at(&self, offset: usize) -> u32 {
        let bytes = self.bytes[offset..offset + 4].try_into();
        bytes.map_or(0, u32::from_ne_bytes)
    }

    /// # Safety
    /// What the attributes point to is as long as the command takes it to be, by the lengths in the attributes or by those
    /// that the kernel has of the object.
    pub(super) unsafe fn call(&mut self, command: Command) -> Result<RawFd, Errno> {
        // SAFETY: the kernel reads and writes the union within the length given; what it points to is borrowed, and as long as
        // the caller says.
        let result =
            unsafe { libc::syscall(libc::SYS_bpf, command as libc::c_long, self.bytes.as_mut_ptr(), self.used) };
        Errno::result(result).map(|result| result as RawFd)
    }

    /// Like [`Attributes::call`], of a command that makes a descriptor.
    ///
    /// # Safety
    /// The same, and the command is one that answers with a new descriptor.
    pub(super) unsafe fn open(&mut self, command: Command) -> Result<OwnedFd, Errno> {
        // SAFETY: the caller answers for it.
        let descriptor = unsafe { self.call(command) }?;
        // SAFETY: the kernel made it just now, and nobody else has it.
        Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
    }
}

/// Reads the information that the kernel has of a descriptor into `info`; what that points to is the caller's to say.
///
/// # Safety
/// Pointers in `info` are null, or to as much as the numbers beside them say.
pub(super) unsafe fn info(object: BorrowedFd<'_>, info: &mut [u8]) -> Result<(), Errno> {
    let length = info.len() as u32;
    let mut attributes = Attributes::new().descriptor(0, object).word(4, length).writes(8, info);
    // SAFETY: `info` is as long as the attributes say; the caller answers for what is in it.
    unsafe { attributes.call(Command::ObjGetInfoByFd) }.map(drop)
}
