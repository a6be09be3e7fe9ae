//! What is collected of a pod with hostNetwork: what is in its cgroup, and of the node's network what its own sockets are.
//!
//! Interfaces, routes and rules are the node's, and other pods' processes and sockets are theirs: nothing of that is taken.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use nix::libc;
use serde_json::json;

use super::EvidenceError;
use super::collect::{Collection, marks_json};
use super::limits;
use super::network::{self, Sockets, gap};
use super::processes::{Members, Reader};
use crate::kernel::cgroup::{ids_within, on_the_node, processes_of};
use crate::kernel::conntrack::{Direction, Flow};
use crate::kernel::sock_diag::{Details, DiagSocket, Kind};
use crate::model::audit::chain;
use crate::model::host_pod::HostPod;
use crate::model::names::{Pod, PodUid};
use crate::node::host_pod::{HostNode, desired};
use crate::node::state::StateDir;
use crate::status::HostPodStatus;

/// Such a pod, as it was found.
pub(super) struct OfHostPod {
    node: HostNode,
    host_pod: HostPod,
    pod: Pod,
}

/// A flow as a socket has it: protocol, own address and port, the other's.
type Ends = (u8, IpAddr, u16, IpAddr, u16);

impl OfHostPod {
    pub(super) fn find(uid: &PodUid) -> Result<Self, EvidenceError> {
        let node = HostNode::look()?;
        let host_pod = node.find(uid)?.ok_or_else(|| EvidenceError::NoHostPod { uid: uid.clone() })?;
        let pod = node.pod(uid);
        Ok(Self { node, host_pod, pod })
    }

    pub(super) fn pod(&self) -> &Pod {
        &self.pod
    }

    pub(super) fn collect(&self, collection: &mut Collection, state: &StateDir) -> io::Result<()> {
        let mut sockets = Sockets::list(&mut collection.gaps, limits::SOCKETS_OF_NODE);
        let members = Members::of_cgroup(processes_of(&self.host_pod.directory));
        let cgroups = ids_within(&self.host_pod.directory);
        let mut reader = collection.reader(Some(&self.host_pod.uid));
        let is_own = |socket: &DiagSocket, reader: &Reader| {
            let was_made_here =
                matches!(socket.details, Details::Inet { cgroup: Some(cgroup), .. } if cgroups.contains(&cgroup));
            was_made_here || reader.owners.contains_key(&socket.inode)
        };
        let process = collection.processes(&members, &mut reader, &mut sockets, is_own)?;
        let elsewhere = reader.networks.iter().filter(|&&inode| inode != self.node.netns_inode()).count();
        if elsewhere > 0 {
            let why = format!("{elsewhere} network namespaces besides the node's, which processes of the pod are in");
            gap(&mut collection.gaps, "sockets of other network namespaces", why);
        }
        let flows: BTreeSet<Ends> = sockets.found.iter().filter_map(ends_of).collect();
        let is_own = |flow: &Flow| [&flow.original, &flow.reply].iter().any(|way| flows.contains(&ends(flow, way)));
        network::write_conntrack(&mut collection.files, None, is_own, &mut collection.gaps)?;
        for what in ["network.json", "nftables.json", "tc.json"] {
            gap(&mut collection.gaps, what, "interfaces, routes and rules are the node's: the pod has none of its own");
        }
        self.rest(collection, state, process)
    }

    /// What holds for it, what the programs on its cgroup have dropped, and what it tried.
    fn rest(&self, collection: &mut Collection, state: &StateDir, process: Option<u32>) -> io::Result<()> {
        let status = HostPodStatus::read(state, &self.node, &self.host_pod.uid).unwrap_or_else(|error| {
            gap(&mut collection.gaps, "status", chain(&error));
            None
        });
        let keys = desired(state, &self.pod).map(|(keys, _)| keys).unwrap_or_default();
        let marks = keys.into_iter().filter_map(|key| Some((key.clone(), state.read_mark(&key)?)));
        let document = json!({
            "cgroup": on_the_node(&self.host_pod.directory).display().to_string(),
            "marks": marks_json(marks),
            "process": process,
            "status": status,
        });
        collection.files.document("host-pod.json", &document, Vec::new())
    }
}

/// The ends of a socket that is connected: of one that is not, nothing tells its flows from others of the same port.
fn ends_of(socket: &DiagSocket) -> Option<Ends> {
    let protocol = match socket.kind {
        Kind::Tcp => libc::IPPROTO_TCP,
        Kind::Udp => libc::IPPROTO_UDP,
        _ => return None,
    };
    let Details::Inet { local_address, local_port, remote_address, remote_port, .. } = socket.details else {
        return None;
    };
    let own = (local_address.to_canonical(), local_port);
    let other = (remote_address.to_canonical(), remote_port);
    (remote_port != 0).then_some((u8::try_from(protocol).ok()?, own.0, own.1, other.0, other.1))
}

fn ends(flow: &Flow, way: &Direction) -> Ends {
    let port = |port: Option<u16>| port.unwrap_or_default();
    (flow.protocol, way.source, port(way.source_port), way.destination, port(way.destination_port))
}
