//! Mounts, as `/proc/<process>/mountinfo` lists them.

use std::path::PathBuf;

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Where it is.
    pub point: PathBuf,
    /// The kind of file system.
    pub kind: String,
    /// Whether the whole of that file system is there, and not a directory of it. Of cgroups, as much as a cgroup namespace lets be
    /// seen: what is above that of whoever reads the list is written as `..`.
    pub is_whole: bool,
    /// Whether it can be written to.
    pub is_writable: bool,
}

/// The mounts that the file lists; lines that cannot be understood are left out.
pub fn mounts(mountinfo: &str) -> impl Iterator<Item = Mount> {
    mountinfo.lines().filter_map(mount)
}

fn mount(line: &str) -> Option<Mount> {
    let (of_mount, of_file_system) = line.split_once(" - ")?;
    let mut fields = of_mount.split(' ').skip(3);
    let (root, point, options) = (fields.next()?, fields.next()?, fields.next()?);
    let mut fields = of_file_system.split(' ');
    let (kind, super_options) = (fields.next()?, fields.nth(1)?);
    let is_read_only = |options: &str| options.split(',').any(|option| option == "ro");
    Some(Mount {
        point: PathBuf::from(unescaped(point)),
        kind: kind.to_owned(),
        is_whole: root.split('/').all(|name| matches!(name, "" | "..")),
        is_writable: !is_read_only(options) && !is_read_only(super_options),
    })
}

/// White space and backslashes are written as three octal digits. What is no text then is no place where anything is looked for.
fn unescaped(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = match (first, after) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..]) => {
                Some((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'))
            }
            _ => None,
        };
        bytes.push(escaped.unwrap_or(*first));
        rest = if escaped.is_some() { &after[3..] } else { after };
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Of any text: no more mounts than lines, and none without a place.
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(text: &str) {
    let found: Vec<_> = mounts(text).collect();
    assert!(found.len() <= text.lines().count());
    for mount in found {
        assert!(mount.point.as_os_str().len() <= 3 * text.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_read_with_their_escapes() {
        let text = "35 25 0:31 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n\
                    36 25 0:31 /pod /a\\040b ro - cgroup2 cgroup rw\n\
                    37 25 0:32 / /c rw - bpf bpf ro\nnonsense\n\
                    38 25 0:31 /../.. /d rw - cgroup2 cgroup rw\n";
        let found: Vec<_> = mounts(text).collect();
        let said: Vec<_> = found
            .iter()
            .map(|mount| (mount.point.to_str().unwrap(), mount.kind.as_str(), mount.is_whole, mount.is_writable))
            .collect();
        let expected = [
            ("/sys/fs/cgroup", "cgroup2", true, true),
            ("/a b", "cgroup2", false, false),
            ("/c", "bpf", true, false),
            ("/d", "cgroup2", true, true),
        ];
        assert_eq!(said, expected);
    }
}
