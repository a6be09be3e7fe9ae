//! The cgroup of this node's kubelet: by it an eBPF program can tell who sent a packet, where the kernel does not tell of which netns a
//! socket is.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::rules::bpf::Sender;

/// The processes that are a kubelet, or have one in them (k3s, MicroK8s), as the kernel cuts their names.
const NAMES: [&str; 4] = ["kubelet", "k3s-server", "k3s-agent", "kubelite"];

/// Looks for it among the processes of this one's own namespaces: what a container calls itself is its own affair.
pub(super) fn sender() -> Option<Sender> {
    let root = mount_point()?;
    let own = namespaces("self")?;
    let processes = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let cgroup = processes.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit())).find_map(|process| {
        let directory = Path::new("/proc").join(&process);
        let name = fs::read_to_string(directory.join("comm")).ok()?;
        let is_it = NAMES.contains(&name.trim_end())
            && fs::metadata(&directory).ok()?.uid() == 0
            && namespaces(&process).as_ref() == Some(&own);
        is_it.then(|| fs::read_to_string(directory.join("cgroup")).ok()).flatten()
    })?;
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let level = path.split('/').filter(|part| !part.is_empty()).count();
    // The root has every process below it, and tells nobody.
    let id = fs::metadata(Path::new(&root).join(path)).ok()?.ino();
    (level > 0).then_some(Sender::InCgroup { level: level as u32, id })
}

/// What tells whether two processes are in the same place.
fn namespaces(process: &str) -> Option<[OsString; 2]> {
    let of = |kind: &str| Some(fs::read_link(format!("/proc/{process}/ns/{kind}")).ok()?.into_os_string());
    Some([of("pid")?, of("net")?])
}

/// Where the cgroups of version 2 are.
fn mount_point() -> Option<String> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let mut fields = mounts.lines().map(|line| line.split(' '));
    fields.find_map(|mut fields| {
        let (path, kind) = (fields.nth(1)?, fields.next()?);
        (kind == "cgroup2").then(|| path.to_owned())
    })
}
