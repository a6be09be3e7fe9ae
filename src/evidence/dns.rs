//! How a pod finds names: its `resolv.conf`, `hosts` and `nsswitch.conf`, by the root of one of its processes.
//!
//! They are files of the pod: no link in them is followed, they are opened on file systems alone that answer by themselves,
//! and guarded all the same.

use std::fs::File;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::libc;
use serde::Serialize;

use super::guarded::Guarded;
use super::limits;
use super::network::{Gaps, gap};
use super::proc::Mount;
use crate::model::escaped::Escaped;

const FILES: [&str; 3] = ["etc/resolv.conf", "etc/hosts", "etc/nsswitch.conf"];
const LENGTH_MAX: u64 = 64 * 1024;

/// One of the files.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct DnsFile {
    path: String,
    text: Escaped,
}

/// Reads them in the mount namespace of a process, whose mounts these are.
pub(super) fn read(guarded: &mut Guarded, pid: u32, mounts: &[Mount], gaps: &mut Gaps) -> Vec<DnsFile> {
    let mut found = Vec::new();
    for name in FILES {
        let path = format!("/{name}");
        match on(mounts, path.as_bytes()) {
            Some(mount) if super::executables::answers(mount) => {}
            Some(mount) => {
                gap(gaps, path, format!("{} is served by another process or machine", mount.file_system));
                continue;
            }
            None => {
                gap(gaps, path, "no mount of the pod's is known to have it");
                continue;
            }
        }
        match guarded.run(limits::FILE_PATIENCE, move || read_below_root(pid, name)) {
            Ok(Ok(text)) => found.push(DnsFile { path, text: Escaped(text) }),
            Ok(Err(error)) => gap(gaps, path, error),
            Err(why) => gap(gaps, path, why.as_str()),
        }
    }
    found
}

/// The mount that a path is on: of those with the longest target the last one, which lies over the others.
fn on<'a>(mounts: &'a [Mount], path: &[u8]) -> Option<&'a Mount> {
    let holds = |mount: &&Mount| {
        let target = mount.target.0.strip_suffix(b"/").unwrap_or(&mount.target.0);
        path.strip_prefix(target).is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    };
    mounts.iter().filter(holds).max_by_key(|mount| mount.target.0.len())
}

fn read_below_root(pid: u32, name: &str) -> std::io::Result<Vec<u8>> {
    let root = File::options().read(true).custom_flags(libc::O_PATH).open(format!("/proc/{pid}/root"))?;
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_SYMLINKS);
    let file: OwnedFd = openat2(&root, name, how)?;
    let file = File::from(file);
    if !file.metadata()?.is_file() {
        return Err(std::io::Error::other("it is not a regular file"));
    }
    let mut text = Vec::new();
    file.take(LENGTH_MAX).read_to_end(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::super::proc::read_mountinfo;
    use super::*;

    #[test]
    fn the_mount_that_lies_over_the_others_is_found() {
        let text =
            b"1 0 0:50 / / rw - overlay o rw\n2 1 0:60 / /etc rw - fuse.x f rw\n3 2 8:1 /h /etc/hosts rw - ext4 d rw\n\
                     4 1 0:61 / /etcetera rw - nfs n rw\n5 3 0:62 / /etc/hosts rw - fuse.y y rw\n";
        let mounts = read_mountinfo(text, 9).0;
        let found = |path: &[u8]| on(&mounts, path).map(|mount| mount.file_system.to_string());
        assert_eq!(found(b"/etc/resolv.conf").as_deref(), Some("fuse.x"));
        assert_eq!(found(b"/etc/hosts").as_deref(), Some("fuse.y"));
        assert_eq!(found(b"/usr").as_deref(), Some("overlay"));
        assert!(found(b"etc").is_none());
    }
}
