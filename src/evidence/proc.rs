//! What `/proc` says of a process, as text that the process had a hand in: its name, its arguments, what it has open.
//!
//! Pure. A line that cannot be read is left out; none makes another one be read wrongly.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::model::escaped::Escaped;

/// What `stat` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stat {
    pub(super) group: u32,
    pub(super) session: u32,
    pub(super) terminal: i32,
    /// In clock ticks since the machine started.
    pub(super) started: u64,
}

/// The name is in parentheses, and may hold any of them and line ends too: what counts is the last one.
pub(super) fn read_stat(text: &[u8]) -> Option<Stat> {
    let closed = text.iter().rposition(|&byte| byte == b')')?;
    let rest = std::str::from_utf8(text.get(closed + 1..)?).ok()?;
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    let number = |field: usize| fields.get(field)?.parse().ok();
    Some(Stat {
        group: number(2)?,
        session: number(3)?,
        terminal: fields.get(4)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

/// What `status` says, which is always said.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Status {
    pub(super) name: Escaped,
    pub(super) state: char,
    pub(super) parent: u32,
    pub(super) threads: u32,
    pub(super) credentials: Credentials,
}

/// Who a process is and what it may.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Credentials {
    /// Real, effective, saved and file-system user.
    pub(super) users: Vec<u32>,
    /// The same of the group.
    pub(super) groups: Vec<u32>,
    pub(super) supplementary_groups: Vec<u32>,
    /// Its number in each of its PID namespaces, the outermost first.
    pub(super) pids_in_namespaces: Vec<u32>,
    /// In hexadecimal, as the kernel writes them.
    pub(super) capabilities: BTreeMap<&'static str, String>,
    pub(super) no_new_privileges: Option<bool>,
    /// 0 none, 1 strict, 2 a filter.
    pub(super) seccomp: Option<u8>,
    /// Who traces it; 0 for nobody.
    pub(super) tracer: Option<u32>,
}

/// The kernel escapes line ends in the name, so that no line of it can be forged.
pub(super) fn read_status(text: &[u8]) -> Status {
    let mut status = Status::default();
    let found = &mut status.credentials;
    for line in text.split(|&byte| byte == b'\n') {
        // Its name alone may be no text.
        if let Some(name) = line.strip_prefix(b"Name:\t") {
            status.name = Escaped(unescape(name));
            continue;
        }
        let Some((key, value)) = std::str::from_utf8(line).ok().and_then(|line| line.split_once(':')) else { continue };
        let numbers = || value.split_ascii_whitespace().filter_map(|number| number.parse().ok()).collect();
        let value = value.trim();
        match key {
            "State" => status.state = value.chars().next().unwrap_or_default(),
            "PPid" => status.parent = value.parse().unwrap_or(0),
            "Threads" => status.threads = value.parse().unwrap_or(0),
            "Uid" => found.users = numbers(),
            "Gid" => found.groups = numbers(),
            "Groups" => found.supplementary_groups = numbers(),
            "NSpid" => found.pids_in_namespaces = numbers(),
            "NoNewPrivs" => found.no_new_privileges = Some(value == "1"),
            "Seccomp" => found.seccomp = value.parse().ok(),
            "TracerPid" => found.tracer = value.parse().ok(),
            _ => {
                let names = [
                    ("CapInh", "inheritable"),
                    ("CapPrm", "permitted"),
                    ("CapEff", "effective"),
                    ("CapBnd", "bounding"),
                    ("CapAmb", "ambient"),
                ];
                if let Some((_, name)) = names.iter().find(|(known, _)| *known == key) {
                    found.capabilities.insert(name, value.to_owned());
                }
            }
        }
    }
    status
}

/// A file that is mapped into a process, however many times.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct MappedFile {
    pub(super) path: Escaped,
    /// Major and minor number of its file system's device.
    pub(super) device: String,
    pub(super) inode: u64,
    /// Whether any of it can be executed.
    pub(super) executable: bool,
    pub(super) kind: FileKind,
}

/// What a path that the kernel names is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum FileKind {
    /// A file that is there.
    File,
    /// One that was deleted.
    Deleted,
    /// One that never had a place: memory.
    Memfd,
}

/// The kernel appends ` (deleted)`; a file may be called so too, which it then says of it all the same: what is looked at
/// for evidence is rather said too often.
pub(super) fn kind_of(path: &[u8]) -> FileKind {
    match path.ends_with(b" (deleted)") {
        true if path.starts_with(b"/memfd:") => FileKind::Memfd,
        true => FileKind::Deleted,
        false => FileKind::File,
    }
}

/// What is mapped into a process.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Maps {
    /// Files, each once.
    pub(super) files: Vec<MappedFile>,
    /// Bytes that can be executed and are of no file: code that was made or unpacked in memory.
    pub(super) anonymous_executable_bytes: u64,
    /// Whether there were more files.
    pub(super) is_cut_short: bool,
}

pub(super) fn read_maps(text: &[u8], most: usize) -> Maps {
    let mut maps = Maps::default();
    let mut seen: BTreeMap<(String, u64, Vec<u8>), usize> = BTreeMap::new();
    for line in text.split(|&byte| byte == b'\n') {
        let Some(line) = read_map(line) else { continue };
        let Map { bytes, executable, device, inode, path } = line;
        let is_file = inode != 0;
        if !is_file {
            let is_kernels_own = path == b"[vdso]" || path == b"[vsyscall]";
            if executable && !is_kernels_own {
                maps.anonymous_executable_bytes = maps.anonymous_executable_bytes.saturating_add(bytes);
            }
            continue;
        }
        match seen.get(&(device.to_owned(), inode, path.to_vec())) {
            Some(&index) => maps.files[index].executable |= executable,
            None if maps.files.len() >= most => maps.is_cut_short = true,
            None => {
                seen.insert((device.to_owned(), inode, path.to_vec()), maps.files.len());
                maps.files.push(MappedFile {
                    path: path.into(),
                    device: device.to_owned(),
                    inode,
                    executable,
                    kind: kind_of(path),
                });
            }
        }
    }
    maps
}

struct Map<'a> {
    bytes: u64,
    executable: bool,
    device: &'a str,
    inode: u64,
    path: &'a [u8],
}

/// `START-END PERMISSIONS OFFSET DEVICE INODE   PATH`; the kernel escapes line ends in the path.
fn read_map(line: &[u8]) -> Option<Map<'_>> {
    let mut rest = line;
    let mut field = || {
        let start = rest.iter().position(|&byte| byte != b' ')?;
        let end = rest[start..].iter().position(|&byte| byte == b' ').map_or(rest.len(), |end| start + end);
        let field = std::str::from_utf8(&rest[start..end]).ok();
        rest = &rest[end..];
        field
    };
    let (start, end) = field()?.split_once('-')?;
    let address = |text| u64::from_str_radix(text, 16).ok();
    let bytes = address(end)?.saturating_sub(address(start)?);
    let executable = field()?.as_bytes().get(2) == Some(&b'x');
    field()?;
    let (device, inode) = (field()?, field()?.parse().ok()?);
    let path = rest.trim_ascii_start();
    Some(Map { bytes, executable, device, inode, path })
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Mount {
    pub(super) id: u64,
    pub(super) parent: u64,
    /// Major and minor number of the file system's device.
    pub(super) device: String,
    /// What of the file system is mounted.
    pub(super) root: Escaped,
    /// Where.
    pub(super) target: Escaped,
    pub(super) options: Escaped,
    pub(super) file_system: Escaped,
    pub(super) source: Escaped,
    pub(super) file_system_options: Escaped,
}

/// The mounts of `mountinfo`, up to `most`, and how many lines there are.
pub(super) fn read_mountinfo(text: &[u8], most: usize) -> (Vec<Mount>, usize) {
    let lines = || text.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    (lines().take(most).filter_map(read_mount).collect(), lines().count())
}

fn read_mount(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
    let number = |field: usize| std::str::from_utf8(fields.get(field)?).ok()?.parse().ok();
    let separator = fields.iter().skip(6).position(|field| *field == b"-")? + 6;
    let unescaped = |field: usize| fields.get(field).map(|bytes| Escaped(unescape(bytes)));
    Some(Mount {
        id: number(0)?,
        parent: number(1)?,
        device: String::from_utf8(fields.get(2)?.to_vec()).ok()?,
        root: unescaped(3)?,
        target: unescaped(4)?,
        options: unescaped(5)?,
        file_system: unescaped(separator + 1)?,
        source: unescaped(separator + 2)?,
        file_system_options: unescaped(separator + 3).unwrap_or_default(),
    })
}

/// The kernel writes blanks, line ends and backslashes as three octal digits; in names of processes also as a letter.
fn unescape(field: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&first, behind)) = rest.split_first() {
        let digits = behind.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let octal = digits.filter(|_| first == b'\\').and_then(|digits| u8::from_str_radix(digits, 8).ok());
        let letter = match behind.first().filter(|_| first == b'\\') {
            Some(b'n') => Some(b'\n'),
            Some(b'\\') => Some(b'\\'),
            _ => None,
        };
        match octal {
            None if letter.is_some() => {
                bytes.extend(letter);
                rest = &behind[1..];
            }
            Some(byte) => {
                bytes.push(byte);
                rest = &behind[3..];
            }
            None => {
                bytes.push(first);
                rest = behind;
            }
        }
    }
    bytes
}

/// The control group that says which pod a process is of: the one of the unified hierarchy, else the longest.
pub(super) fn read_cgroup(text: &[u8]) -> Option<Escaped> {
    let paths = text.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut parts = line.splitn(3, |&byte| byte == b':');
        let (number, _, path) = (parts.next()?, parts.next()?, parts.next()?);
        Some((number == b"0" && path != b"/", path.len(), path))
    });
    paths.max().map(|(_, _, path)| path.into())
}

/// Whether a control group is one of the pod's: runtimes put its UID into the path, systemd's driver with underscores.
pub(super) fn is_cgroup_of(cgroup: &[u8], uid: &str) -> bool {
    let names = [format!("pod{uid}"), format!("pod{}", uid.replace('-', "_"))];
    cgroup.split(|&byte| byte == b'/').any(|part| {
        let part = part.strip_suffix(b".slice").unwrap_or(part);
        names.iter().any(|name| part == name.as_bytes() || part.ends_with(format!("-{name}").as_bytes()))
    })
}

/// The strings of `cmdline` or `environ`, up to `most`, and whether there were more.
pub(super) fn strings(text: &[u8], most: usize) -> (Vec<&[u8]>, bool) {
    let text = text.strip_suffix(b"\0").unwrap_or(text);
    if text.is_empty() {
        return (Vec::new(), false);
    }
    let mut all = text.split(|&byte| byte == 0);
    let first: Vec<_> = all.by_ref().take(most).collect();
    (first, all.next().is_some())
}

/// The inode of a socket that an open file is, by where its link points.
pub(super) fn socket_inode(target: &[u8]) -> Option<u32> {
    let number = target.strip_prefix(b"socket:[")?.strip_suffix(b"]")?;
    std::str::from_utf8(number).ok()?.parse().ok()
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(bytes: &[u8]) {
    const MOST: usize = 3;
    let _ = (read_stat(bytes), socket_inode(bytes), kind_of(bytes), is_cgroup_of(bytes, "u-1"));
    let shown = read_status(bytes).name.to_string();
    assert!(!shown.chars().any(char::is_control));
    let maps = read_maps(bytes, MOST);
    assert!(maps.files.len() <= MOST && (!maps.is_cut_short || maps.files.len() == MOST));
    let (mounts, lines) = read_mountinfo(bytes, MOST);
    assert!(mounts.len() <= MOST.min(lines));
    assert!(read_cgroup(bytes).is_none_or(|path| bytes.ends_with(&path.0) || !path.0.contains(&b'\n')));
    let (found, are_more) = strings(bytes, MOST);
    assert!(found.len() <= MOST && (!are_more || found.len() == MOST));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_the_fields_behind_it() {
        let line = b"7 (x) R 1 1 1 0 (\n) S 3 7 7 34816 -1 4194560 1 2 3 4 5 6 7 8 20 0 2 0 991 1 2";
        let stat = read_stat(line).unwrap();
        assert_eq!((stat.group, stat.session, stat.started, stat.terminal), (7, 7, 991, 34816));
        assert_eq!(read_stat(b"7 (gone"), None);
    }

    #[test]
    fn credentials_are_read() {
        let text =
            b"Name:\tx\\nUid:\t0\\\\\xff\nState:\tS (sleeping)\nPPid:\t3\nThreads:\t2\nUid:\t1000\t0\t1000\t1000\nGid:\t5\t5\t5\t5\nGroups:\t4 24 \nNSpid:\t4711\t1\n\
                     CapEff:\t00000000a80425fb\nNoNewPrivs:\t1\nSeccomp:\t2\nTracerPid:\t0\n";
        let status = read_status(text);
        assert_eq!((status.state, status.parent, status.threads), ('S', 3, 2));
        assert_eq!(status.name.0, b"x\nUid:\t0\\\xff");
        let found = status.credentials;
        assert_eq!((found.users, found.groups), (vec![1000, 0, 1000, 1000], vec![5; 4]));
        assert_eq!((found.supplementary_groups, found.pids_in_namespaces), (vec![4, 24], vec![4711, 1]));
        assert_eq!(found.capabilities["effective"], "00000000a80425fb");
        assert_eq!((found.no_new_privileges, found.seccomp, found.tracer), (Some(true), Some(2), Some(0)));
    }

    #[test]
    fn each_mapped_file_is_said_once_and_code_of_no_file_is_counted() {
        let text = b"00400000-00401000 r--p 00000000 fe:00 42                 /usr/bin/a b\n\
                     00401000-00403000 r-xp 00001000 fe:00 42                 /usr/bin/a b\n\
                     7f0000000000-7f0000002000 rwxp 00000000 00:00 0 \n\
                     7f0000002000-7f0000003000 r-xp 00000000 00:00 0          [vdso]\n\
                     7f0000003000-7f0000004000 r-xp 00000000 00:01 9          /memfd:x\\012y (deleted)\n\
                     7f0000004000-7f0000005000 r--p 00000000 00:20 8          /tmp/gone (deleted)\nbroken\n";
        let maps = read_maps(text, 10);
        let said: Vec<_> = maps.files.iter().map(|file| (file.path.to_string(), file.executable, file.kind)).collect();
        assert_eq!(
            said,
            [
                ("/usr/bin/a b".to_owned(), true, FileKind::File),
                ("/memfd:x\\\\012y (deleted)".to_owned(), true, FileKind::Memfd),
                ("/tmp/gone (deleted)".to_owned(), false, FileKind::Deleted),
            ]
        );
        assert_eq!((maps.anonymous_executable_bytes, maps.is_cut_short), (0x2000, false));
        assert!(read_maps(text, 2).is_cut_short);
    }

    #[test]
    fn mounts_are_read_with_what_their_names_hide() {
        let text = b"36 35 0:98 / /mnt/a\\040b\\134 rw,noatime master:1 - fuse.x - rw,user_id=0\nbroken\n";
        let (mounts, total) = read_mountinfo(text, 10);
        assert_eq!((mounts.len(), total), (1, 2));
        let mount = &mounts[0];
        assert_eq!((mount.id, mount.device.as_str(), &mount.target.0[..]), (36, "0:98", &b"/mnt/a b\\"[..]));
        assert_eq!((mount.file_system.to_string(), mount.source.to_string()), ("fuse.x".to_owned(), "-".to_owned()));
    }

    #[test]
    fn a_pod_is_known_by_its_control_group() {
        let uid = "0f9d6b52-3c1e-4a7b-9d24-6f5e8c0a1b37";
        let text = b"12:cpu:/kubepods/burstable/pod0f9d6b52-3c1e-4a7b-9d24-6f5e8c0a1b37/abc\n0::/\n";
        let cgroup = read_cgroup(text).unwrap();
        assert!(is_cgroup_of(&cgroup.0, uid));
        let systemd = "/kubepods.slice/kubepods-pod0f9d6b52_3c1e_4a7b_9d24_6f5e8c0a1b37.slice/cri-containerd-1.scope";
        assert!(is_cgroup_of(systemd.as_bytes(), uid));
        assert!(!is_cgroup_of(b"/kubepods/pod0f9d6b52-3c1e-4a7b-9d24-6f5e8c0a1b370", uid));
        assert_eq!(read_cgroup(b"0::/x/y\n").unwrap().to_string(), "/x/y");
    }

    #[test]
    fn arguments_and_sockets_are_told() {
        assert_eq!(strings(b"a\0\0b\0", 9), (vec![&b"a"[..], b"", b"b"], false));
        assert_eq!(strings(b"a\0b\0c", 2), (vec![&b"a"[..], b"b"], true));
        assert_eq!(strings(b"", 2), (vec![], false));
        assert_eq!(socket_inode(b"socket:[4711]"), Some(4711));
        assert_eq!(socket_inode(b"/tmp/socket:[4711]"), None);
    }

    proptest::proptest! {
        #[test]
        fn no_file_makes_it_panic(bytes: Vec<u8>, line in "[0-9a-f:/() -]{0,80}") {
            try_any(&bytes);
            try_any(line.as_bytes());
        }
    }
}
