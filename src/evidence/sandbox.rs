//! What is collected of a sandbox: what is in its network namespace, and on the node's end of its interfaces.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use serde_json::{Value, json};

use super::EvidenceError;
use super::collect::{Collection, marks_json};
use super::limits;
use super::network::{self, Sockets, gap};
use super::processes::find_members;
use crate::kernel::conntrack::Flow;
use crate::kernel::netns::Netns;
use crate::model::audit::chain;
use crate::model::names::{ContainerId, Pod};
use crate::model::records::SandboxRecords;
use crate::node::sandbox::{SandboxError, Side};
use crate::node::state::StateDir;

/// A sandbox whose network namespace is the one of its records.
pub(super) struct OfSandbox {
    records: SandboxRecords,
    netns: Netns,
    side: Side,
}

impl OfSandbox {
    pub(super) fn find(state: &StateDir, container_id: &ContainerId) -> Result<Self, EvidenceError> {
        let records = state.records_of(container_id).0;
        let records = records.ok_or_else(|| EvidenceError::Unknown { container_id: container_id.clone() })?;
        let netns = Netns::open(records.netns())?;
        let side = Side::of(&netns).map_err(|error| match error {
            SandboxError::Netns(error) => EvidenceError::from(error),
            SandboxError::Kernel(error) => error.into(),
            _ => EvidenceError::Gone { container_id: container_id.clone() },
        })?;
        if records.netns_cookie() != 0 && records.netns_cookie() != side.links.netns_cookie() {
            return Err(EvidenceError::Gone { container_id: container_id.clone() });
        }
        Ok(Self { records, netns, side })
    }

    pub(super) fn pod(&self) -> &Pod {
        self.records.pod()
    }

    pub(super) fn collect(&mut self, collection: &mut Collection, state: &StateDir) -> io::Result<()> {
        let mut sockets = match self.netns.run(|| Sockets::list(&mut collection.gaps, limits::SOCKETS)) {
            Ok(sockets) => sockets,
            Err(error) => {
                gap(&mut collection.gaps, "sockets", chain(&error));
                Sockets::default()
            }
        };
        let uid = self.records.pod().uid.as_ref();
        let members = find_members(self.netns.id().inode, uid.map(|uid| uid.as_str()), collection.deadline)?;
        if members.processes.is_empty() {
            gap(
                &mut collection.gaps,
                "processes",
                "none was found; in a container this takes the node's own processes in /proc (hostPID)",
            );
        }
        let mut reader = collection.reader(None);
        let process = collection.processes(&members, &mut reader, &mut sockets, |_, _| true)?;
        self.network(collection)?;
        self.rest(collection, state, process)
    }

    fn network(&mut self, collection: &mut Collection) -> io::Result<()> {
        let (files, gaps) = (&mut collection.files, &mut collection.gaps);
        let mut host = match Side::own() {
            Ok(host) => host,
            Err(error) => {
                gap(gaps, "network of the node", chain(&error));
                return Ok(());
            }
        };
        let pinned = self.records.pinned_interfaces();
        let ends: BTreeSet<u32> = pinned.iter().filter_map(|pinned| Some(pinned.host_end.as_ref()?.index)).collect();
        let addresses: Vec<IpAddr> =
            pinned.iter().flat_map(|pinned| pinned.interface.addresses.iter().copied()).collect();
        let pod = &mut self.side;
        let interfaces = network::write_network(files, &mut pod.links, &mut host.links, &ends, gaps)?;
        let is_of_pod = |flow: &Flow| addresses.iter().any(|&address| flow.has_end(address));
        network::write_conntrack(files, Some(&self.netns), is_of_pod, gaps)?;
        network::write_nftables(files, &self.netns, &mut pod.nft, gaps)?;
        network::write_tc(files, &self.netns, (pod, &interfaces), (&mut host, &ends), gaps)
    }

    /// What does not fade, so that the collection can be read without the node.
    fn rest(&self, collection: &mut Collection, state: &StateDir, process: Option<u32>) -> io::Result<()> {
        let records = self.records.iter().filter_map(|record| serde_json::from_str::<Value>(&record.to_json()).ok());
        let records: Vec<_> = records.collect();
        let marks = state.marks_of(self.records.container_id(), self.records.pod()).unwrap_or_default();
        let document = json!({ "records": records, "marks": marks_json(marks), "process": process });
        collection.files.document("sandbox.json", &document, Vec::new())
    }
}
