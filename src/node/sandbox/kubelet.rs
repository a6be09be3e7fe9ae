//! The cgroup that probes come from: the kubelet's, or what a policy names.

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Mutex;

use thiserror::Error;

use crate::kernel::cgroup::{CgroupTree, cgroup_of_process, see_whole_tree};
use crate::model::cgroup::{Cgroup, CgroupPath};
use crate::model::probes::Prober;
use crate::node::workers::hold;
use crate::rules::bpf::Sender;

/// The processes that are a kubelet, or have one in them (k3s, MicroK8s), as the kernel cuts their names.
const NAMES: [&str; 4] = ["kubelet", "k3s-server", "k3s-agent", "kubelite"];

/// Why a prober cannot be told from root's other processes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Untold {
    /// The tree of cgroups cannot be seen.
    #[error("the node's cgroups of version 2 cannot be seen from here")]
    NoTree,
    /// It is not there.
    #[error("there is no cgroup {0}")]
    Absent(CgroupPath),
    /// No process is one.
    #[error("no kubelet is found among the node's processes")]
    NoKubelet,
    /// It is no cgroup of the node's own alone.
    #[error("the cgroups of pods are below {0}")]
    HasPods(CgroupPath),
    /// The rules that tell are not in place.
    #[error(
        "the rules that tell it are not as they should be (they take Linux 5.16 with nft_socket and CONFIG_NETWORK_SECMARK)"
    )]
    NotInPlace,
    /// There is nothing that would ask.
    #[error("no host guard sees what goes to the pod")]
    NoGuard,
}

/// The cgroup of a prober as it is now.
pub fn cgroup_of(prober: &Prober) -> Result<Cgroup, Untold> {
    see_whole_tree().map_err(|_| Untold::NoTree)?;
    let tree = CgroupTree::find().filter(CgroupTree::is_whole).ok_or(Untold::NoTree)?;
    let path = match prober {
        Prober::Cgroup(path) => path.clone(),
        Prober::Kubelet | Prober::Root => find_kubelet().ok_or(Untold::NoKubelet)?,
    };
    let Some(id) = tree.id_of(&path) else { return Err(Untold::Absent(path)) };
    match path.holds_pods(&tree.children_of(&path)) {
        true => Err(Untold::HasPods(path)),
        false => Ok(Cgroup { path, id }),
    }
}

/// How an eBPF program tells the kubelet.
pub(super) fn sender() -> Option<Sender> {
    cgroup_of(&Prober::Kubelet).ok().as_ref().map(in_cgroup)
}

pub(in crate::node) fn in_cgroup(cgroup: &Cgroup) -> Sender {
    Sender::InCgroup { level: cgroup.path.level(), id: cgroup.id }
}

/// Looks for it among the node's processes; first at the one that it was last, since looking through all takes milliseconds.
fn find_kubelet() -> Option<CgroupPath> {
    static LAST: Mutex<String> = Mutex::new(String::new());
    let own = namespaces("self")?;
    let mut last = hold(&LAST);
    if let Some(path) = cgroup_of_kubelet(&last, &own) {
        return Some(path);
    }
    let processes = fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut processes = processes.filter(|name| name.bytes().all(|byte| byte.is_ascii_digit()));
    let (process, path) = processes.find_map(|process| Some((process.clone(), cgroup_of_kubelet(&process, &own)?)))?;
    *last = process;
    Some(path)
}

/// The cgroup of a process that is a kubelet in this one's own namespaces and not a pod's: what a container calls itself is its own
/// affair.
fn cgroup_of_kubelet(process: &str, own: &[OsString; 2]) -> Option<CgroupPath> {
    let directory = Path::new("/proc").join(process);
    let name = fs::read_to_string(directory.join("comm")).ok()?;
    let is_it = NAMES.contains(&name.trim_end())
        && fs::metadata(&directory).ok()?.uid() == 0
        && namespaces(process).as_ref() == Some(own);
    is_it.then(|| cgroup_of_process(process)).flatten().filter(|path| !path.is_of_pods())
}

/// What tells whether two processes are in the same place.
fn namespaces(process: &str) -> Option<[OsString; 2]> {
    let of = |kind: &str| Some(fs::read_link(format!("/proc/{process}/ns/{kind}")).ok()?.into_os_string());
    Some([of("pid")?, of("net")?])
}
