//! A file system that answers until it is told not to: what root in a pod can put under a process of its own.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::poll::{PollFd, PollFlags, poll};

const HEADER: usize = 40;

/// A directory with one file, `program`; dropped, whatever waits for it ends.
pub(crate) struct Fuse {
    directory: tempfile::TempDir,
    is_silent: Arc<AtomicBool>,
    has_ended: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Fuse {
    pub(crate) fn with_program(content: Vec<u8>) -> Self {
        let directory = tempfile::Builder::new().prefix("quarantine-fuse").tempdir().unwrap();
        let device = OpenOptions::new().read(true).write(true).open("/dev/fuse").unwrap();
        let options = format!("fd={},rootmode=40000,user_id=0,group_id=0", device.as_raw_fd());
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("quarantine-test"), directory.path(), Some("fuse"), flags, Some(options.as_str())).unwrap();
        let (is_silent, has_ended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let (silent, ended) = (is_silent.clone(), has_ended.clone());
        let server = std::thread::spawn(move || serve(device, &content, &silent, &ended));
        Self { directory, is_silent, has_ended, server: Some(server) }
    }

    pub(crate) fn path(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn program(&self) -> PathBuf {
        self.path().join("program")
    }

    /// From now on nothing is answered.
    pub(crate) fn fall_silent(&self) {
        self.is_silent.store(true, Ordering::SeqCst);
    }
}

impl Drop for Fuse {
    fn drop(&mut self) {
        // By force: whatever waits for an answer gets an error.
        let _ = umount2(self.directory.path(), MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
        self.has_ended.store(true, Ordering::SeqCst);
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

fn serve(mut device: File, content: &[u8], silent: &AtomicBool, ended: &AtomicBool) {
    let mut buffer = vec![0; 256 * 1024];
    while !ended.load(Ordering::SeqCst) {
        let mut waiting = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
        if poll(&mut waiting, 50_u16) != Ok(1) {
            continue;
        }
        let Ok(length) = device.read(&mut buffer) else { continue };
        let request = &buffer[..length];
        if silent.load(Ordering::SeqCst) {
            continue;
        }
        let word = |at: usize| u32::from_ne_bytes(request[at..at + 4].try_into().unwrap());
        let long = |at: usize| u64::from_ne_bytes(request[at..at + 8].try_into().unwrap());
        let (opcode, unique, node) = (word(4), long(8), long(16));
        let answer: Result<Vec<u8>, i32> = match opcode {
            2 | 36 | 42 => continue,
            1 if request[HEADER..].starts_with(b"program\0") => {
                let mut entry: Vec<u8> = [2_u64, 0, 3600, 3600, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
                entry.extend(attributes(2, content.len()));
                Ok(entry)
            }
            1 => Err(nix::libc::ENOENT),
            3 => {
                let mut answer: Vec<u8> = [3600_u64, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
                answer.extend(attributes(node, content.len()));
                Ok(answer)
            }
            14 | 27 => Ok(vec![0; 16]),
            15 => {
                let offset = usize::try_from(long(HEADER + 8)).unwrap().min(content.len());
                let end = (offset + word(HEADER + 16) as usize).min(content.len());
                Ok(content[offset..end].to_vec())
            }
            18 | 25 | 29 => Ok(Vec::new()),
            26 => {
                let mut answer: Vec<u8> = [7_u32, 31, 65_536, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
                answer.extend([16_u16, 12].iter().flat_map(|word| word.to_ne_bytes()));
                answer.extend(131_072_u32.to_ne_bytes());
                answer.resize(64, 0);
                Ok(answer)
            }
            _ => Err(nix::libc::ENOSYS),
        };
        let (error, body) = match answer {
            Ok(body) => (0, body),
            Err(error) => (-error, Vec::new()),
        };
        let mut out = u32::try_from(16 + body.len()).unwrap().to_ne_bytes().to_vec();
        out.extend(error.to_ne_bytes());
        out.extend(unique.to_ne_bytes());
        out.extend(body);
        let _ = device.write(&out);
    }
}

/// `struct fuse_attr` of the directory, 1, or the program, 2.
fn attributes(node: u64, length: usize) -> Vec<u8> {
    let (mode, length) = if node == 1 { (0o040_755, 0) } else { (0o100_755, length as u64) };
    let mut bytes: Vec<u8> =
        [node, length, length.div_ceil(512), 0, 0, 0].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let words = [0, 0, 0, mode, 1, 0, 0, 0, 4096, 0_u32];
    bytes.extend(words.iter().flat_map(|word| word.to_ne_bytes()));
    bytes
}
