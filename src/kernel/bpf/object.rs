//! Programs, maps and links: made, and read back.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit, setrlimit};

use super::BpfError;
use super::query::attached;
use super::syscall::{Attributes, Command, info};
use crate::rules::bpf::{Map, Program, Stand, VALUE, passing};

/// `BPF_MAP_TYPE_ARRAY`, `BPF_MAP_TYPE_LRU_HASH`.
const ARRAY: u32 = 2;
const LRU_HASH: u32 = 9;
/// `BPF_PROG_TYPE_SCHED_CLS`, `BPF_PROG_TYPE_XDP`, `BPF_PROG_TYPE_CGROUP_SKB`.
const SCHED_CLS: u32 = 3;
const XDP: u32 = 6;
const CGROUP_SKB: u32 = 8;
/// `BPF_F_BEFORE`: before all others, where it is said without one of them.
const BEFORE: u32 = 1 << 3;
/// `XDP_FLAGS_SKB_MODE`.
const SKB_MODE: u32 = 1 << 1;

/// Where a link hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hook {
    /// `BPF_TCX_INGRESS`.
    TcxIngress,
    /// `BPF_TCX_EGRESS`.
    TcxEgress,
    /// `BPF_XDP`.
    Xdp,
    /// `BPF_CGROUP_INET_INGRESS`.
    CgroupIngress,
    /// `BPF_CGROUP_INET_EGRESS`.
    CgroupEgress,
}

impl Hook {
    fn attach_type(self) -> u32 {
        match self {
            Self::CgroupIngress => 0,
            Self::CgroupEgress => 1,
            Self::Xdp => 37,
            Self::TcxIngress => 46,
            Self::TcxEgress => 47,
        }
    }
}

pub(super) fn word(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

/// Lets this process lock as much memory as it may at all.
fn lock_more_memory() -> bool {
    let lock = |most| setrlimit(Resource::RLIMIT_MEMLOCK, most, most).is_ok();
    lock(RLIM_INFINITY) || getrlimit(Resource::RLIMIT_MEMLOCK).is_ok_and(|(now, most)| now < most && lock(most))
}

/// A map in the kernel.
#[derive(Debug)]
pub struct LoadedMap(pub(super) OwnedFd);

impl LoadedMap {
    /// Makes one.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn create(map: &Map) -> Result<Self, BpfError> {
        let (kind, entries, name) = match map {
            Map::Armed => (ARRAY, map.size(), "q_armed"),
            Map::Drops => (ARRAY, map.size(), "q_drops"),
            Map::Set(_) => (LRU_HASH, map.size(), "q_set"),
        };
        let mut attributes = Attributes::new()
            .word(0, kind)
            .word(4, map.key_length())
            .word(8, VALUE)
            .word(12, entries)
            .put(28, name.as_bytes())
            .put(40, &[0; 4]);
        // SAFETY: the command follows no pointer, and makes a descriptor.
        let mut make = || unsafe { attributes.open(Command::MapCreate) };
        let made = match make() {
            // Before Linux 5.11 maps count as locked memory.
            Err(Errno::EPERM) if lock_more_memory() => make(),
            made => made,
        };
        Ok(Self(made.map_err(|errno| BpfError::of("make a map", errno))?))
    }

    /// The value of a key; `None` where there is none. `map` is what it was made as.
    fn value(&self, map: &Map, key: &[u8]) -> Option<[u8; VALUE as usize]> {
        if key.len() != map.key_length() as usize {
            return None;
        }
        let mut value = [0; VALUE as usize];
        let mut attributes = Attributes::new().descriptor(0, self.0.as_fd()).reads(8, key).writes(16, &mut value);
        // SAFETY: key and value are as long as the map's, which was made so and found by its name in a directory that is root's.
        unsafe { attributes.call(Command::MapLookupElem) }.ok()?;
        Some(value)
    }

    /// Has programs that wait let nothing pass any more, or everything again; of a map that says so.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn arm(&self, is_armed: bool) -> Result<(), BpfError> {
        let mut value = [0; VALUE as usize];
        value[..8].copy_from_slice(&u64::from(is_armed).to_ne_bytes());
        let key = [0; 4];
        let mut attributes =
            Attributes::new().descriptor(0, self.0.as_fd()).reads(8, &key).reads(16, &value).put(24, &[0; 8]);
        // SAFETY: key and value are as long as the map's, which was made so and found by its name in a directory that is root's.
        let done = unsafe { attributes.call(Command::MapUpdateElem) };
        done.map(drop).map_err(|errno| BpfError::of("change an element of a map", errno))
    }

    /// Whether they let nothing pass; not known where it cannot be read.
    #[must_use]
    pub fn is_armed(&self) -> Option<bool> {
        self.value(&Map::Armed, &[0; 4]).map(|value| halves(value).0 != 0)
    }

    /// Packets and bytes that were dropped, of a map of drops.
    #[must_use]
    pub fn drops(&self) -> (u64, u64) {
        self.value(&Map::Drops, &[0; 4]).map_or((0, 0), halves)
    }

    /// The keys of a set, and how often each was used.
    #[must_use]
    pub fn elements(&self, map: &Map) -> Vec<(Vec<u8>, u64)> {
        let length = map.key_length() as usize;
        let mut elements = Vec::new();
        let mut key: Option<Vec<u8>> = None;
        // What is forgotten while it is read makes the kernel begin anew: it ends all the same.
        for _ in 0..2 * map.size() {
            let mut next = vec![0; length];
            let mut attributes = Attributes::new().descriptor(0, self.0.as_fd()).put(8, &[0; 8]);
            if let Some(key) = &key {
                attributes = attributes.reads(8, key);
            }
            let mut attributes = attributes.writes(16, &mut next);
            // SAFETY: both keys are as long as the map's; the first is none at the beginning.
            if unsafe { attributes.call(Command::MapGetNextKey) }.is_err() {
                break;
            }
            if let Some(value) = self.value(map, &next) {
                elements.push((next.clone(), halves(value).1));
            }
            key = Some(next);
        }
        elements.sort();
        elements.dedup_by(|later, first| later.0 == first.0);
        elements
    }
}

fn halves(value: [u8; VALUE as usize]) -> (u64, u64) {
    let half = |bytes: &[u8]| bytes.try_into().map_or(0, u64::from_ne_bytes);
    (half(&value[..8]), half(&value[8..]))
}

/// What makes two programs the same: their instructions, and their maps.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    tag: [u8; 8],
    maps: Vec<u32>,
}

/// A program in the kernel.
#[derive(Debug)]
pub struct LoadedProgram(OwnedFd);

impl LoadedProgram {
    /// Loads one; `maps` are those that it names, in order.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn load(program: &Program, maps: &[LoadedMap]) -> Result<Self, BpfError> {
        let mut code = Vec::with_capacity(8 * program.code.len());
        for instruction in &program.code {
            let map = instruction.map().and_then(|map| maps.get(map));
            let instruction = map.map_or(*instruction, |map| instruction.with_descriptor(map.0.as_raw_fd()));
            code.extend_from_slice(&instruction.bytes());
        }
        // What it is for is told beforehand where what it may answer depends on it.
        let (kind, name, hook): (_, &[u8], _) = match program.stand {
            Stand::Tcx => (SCHED_CLS, b"quarantine_tcx", None),
            Stand::Xdp => (XDP, b"quarantine_xdp", None),
            Stand::CgroupIngress => (CGROUP_SKB, b"quarantine_in", Some(Hook::CgroupIngress)),
            Stand::CgroupEgress => (CGROUP_SKB, b"quarantine_out", Some(Hook::CgroupEgress)),
        };
        let mut attributes = Attributes::new()
            .word(0, kind)
            .word(4, program.code.len() as u32)
            .reads(8, &code)
            .reads(16, c"Apache-2.0".to_bytes_with_nul())
            .put(48, name)
            .word(68, hook.map_or(0, Hook::attach_type));
        // SAFETY: there are as many instructions as is said, and the text ends; the command makes a descriptor.
        let loaded = unsafe { attributes.open(Command::ProgLoad) };
        Ok(Self(loaded.map_err(|errno| BpfError::of("load a program", errno))?))
    }

    /// What tells it from others.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn identity(&self) -> Result<Identity, BpfError> {
        const MAPS: usize = 16;
        let mut maps = [0; 4 * MAPS];
        let mut program_info = [0; 88];
        program_info[52..56].copy_from_slice(&(MAPS as u32).to_ne_bytes());
        program_info[56..64].copy_from_slice(&(maps.as_mut_ptr().expose_provenance() as u64).to_ne_bytes());
        // SAFETY: the one pointer in it is to room for as many numbers as is said beside it.
        let read = unsafe { info(self.0.as_fd(), &mut program_info) };
        read.map_err(|errno| BpfError::of("read a program", errno))?;
        let count = word(&program_info[52..56]) as usize;
        let mut maps: Vec<u32> = maps.chunks_exact(4).take(count).map(word).collect();
        maps.sort_unstable();
        Ok(Identity { tag: program_info[8..16].try_into().unwrap_or_default(), maps })
    }

    /// The program of this ID.
    fn by_id(id: u32) -> Result<Self, BpfError> {
        let mut attributes = Attributes::new().word(0, id).put(8, &[0; 4]);
        // SAFETY: the command follows no pointer, and makes a descriptor.
        let found = unsafe { attributes.open(Command::ProgGetFdById) };
        Ok(Self(found.map_err(|errno| BpfError::of("find a program", errno))?))
    }
}

/// A link: a program that hangs on an interface for as long as the link is held or pinned.
#[derive(Debug)]
pub struct Link(pub(super) OwnedFd);

/// What the kernel says of a link.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LinkInfo {
    /// Its ID.
    pub id: u32,
    /// Its program's.
    pub program: u32,
    /// The interface that it hangs on, by its index; `None` where it hangs nowhere any more.
    pub interface: Option<u32>,
}

impl Link {
    /// Hangs a program on an interface of the calling thread's netns: before all others where it is a tcx hook, and in generic mode
    /// where it is XDP.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn create(program: &LoadedProgram, hook: Hook, interface: u32) -> Result<Self, BpfError> {
        let flags = if hook == Hook::Xdp { SKB_MODE } else { BEFORE };
        let mut attributes = Attributes::new()
            .descriptor(0, program.0.as_fd())
            .word(4, interface)
            .word(8, hook.attach_type())
            .word(12, flags)
            .put(24, &[0; 8]);
        // SAFETY: the command follows no pointer here, and makes a descriptor.
        let made = unsafe { attributes.open(Command::LinkCreate) };
        Ok(Self(made.map_err(|errno| BpfError::of("attach a program", errno))?))
    }

    /// Hangs a program on a cgroup, beside those of others: each of them can end a packet, and none can let pass what another has ended.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn create_on_cgroup(program: &LoadedProgram, hook: Hook, cgroup: BorrowedFd<'_>) -> Result<Self, BpfError> {
        let mut attributes = Attributes::new()
            .descriptor(0, program.0.as_fd())
            .descriptor(4, cgroup)
            .word(8, hook.attach_type())
            .word(12, 0);
        // SAFETY: the command follows no pointer here, and makes a descriptor.
        let made = unsafe { attributes.open(Command::LinkCreate) };
        Ok(Self(made.map_err(|errno| BpfError::of("attach a program to a cgroup", errno))?))
    }

    /// The cgroup that it hangs on, by its ID, and how; `None` where it hangs nowhere any more, or on something else.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn cgroup(&self, hook: Hook) -> Result<Option<u64>, BpfError> {
        /// `BPF_LINK_TYPE_CGROUP`.
        const CGROUP: u32 = 3;
        let mut link_info = [0; 32];
        // SAFETY: it is all zero, and so has no pointer.
        unsafe { info(self.0.as_fd(), &mut link_info) }.map_err(|errno| BpfError::of("read a link", errno))?;
        let is_it = word(&link_info[..4]) == CGROUP && word(&link_info[24..28]) == hook.attach_type();
        let cgroup = link_info[16..24].try_into().map_or(0, u64::from_ne_bytes);
        Ok((is_it && cgroup != 0).then_some(cgroup))
    }

    /// Puts another program in the place of its own, without a packet in between.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn update(&self, program: &LoadedProgram) -> Result<(), BpfError> {
        let mut attributes =
            Attributes::new().descriptor(0, self.0.as_fd()).descriptor(4, program.0.as_fd()).word(8, 0);
        // SAFETY: the command follows no pointer.
        let done = unsafe { attributes.call(Command::LinkUpdate) };
        done.map(drop).map_err(|errno| BpfError::of("replace a program", errno))
    }

    /// Has one on an interface let everything pass from now on: another program takes the place of its own, for which the kernel waits
    /// for nothing. What comes off is waited for, by the kernel or by whoever asks ([`Self::detach`]).
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn let_pass(&self) -> Result<(), BpfError> {
        const XDP: u32 = 6;
        const TCX: u32 = 11;
        let mut link_info = [0; 32];
        // SAFETY: it is all zero, and so has no pointer.
        unsafe { info(self.0.as_fd(), &mut link_info) }.map_err(|errno| BpfError::of("read a link", errno))?;
        let stand = match word(&link_info[..4]) {
            XDP => Stand::Xdp,
            TCX => Stand::Tcx,
            _ => return Ok(()),
        };
        self.update(&LoadedProgram::load(&passing(stand), &[])?)
    }

    /// Takes it off now (Linux 5.9). Without it the kernel does when nobody has it any more, behind all else that waits for an RCU
    /// grace period: on a node that is busy with network namespaces that can be seconds.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn detach(&self) -> Result<(), BpfError> {
        let mut attributes = Attributes::new().descriptor(0, self.0.as_fd());
        // SAFETY: the command follows no pointer.
        let done = unsafe { attributes.call(Command::LinkDetach) };
        done.map(drop).map_err(|errno| BpfError::of("take a program off", errno))
    }

    /// What the kernel says of it.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn info(&self) -> Result<LinkInfo, BpfError> {
        let mut link_info = [0; 32];
        // SAFETY: it is all zero, and so has no pointer.
        unsafe { info(self.0.as_fd(), &mut link_info) }.map_err(|errno| BpfError::of("read a link", errno))?;
        let interface = word(&link_info[16..20]);
        Ok(LinkInfo {
            id: word(&link_info[4..8]),
            program: word(&link_info[8..12]),
            interface: (interface != 0).then_some(interface),
        })
    }
}

/// What was said of a link is asked for once: the kernel takes the lock of all of its interfaces to say it.
impl LinkInfo {
    /// What tells its program from others.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn identity(&self) -> Result<Identity, BpfError> {
        LoadedProgram::by_id(self.program)?.identity()
    }

    /// Whether it is what packets meet first at this hook. Asks in the calling thread's netns.
    ///
    /// # Errors
    /// [`BpfError`].
    pub fn is_first(&self, hook: Hook, interface: u32) -> Result<bool, BpfError> {
        let order = attached(interface, hook.attach_type());
        let order = order.map_err(|errno| BpfError::of("list what is attached", errno))?;
        Ok(order.first().is_some_and(|first| first.link == self.id))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsFd for LoadedMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
