//! All records of one sandbox, taken together: the answers to what several of them could answer differently.
//!
//! Pure. Where records are kept is the business of `node::state`.

use crate::model::mark::{Desired, MarkContent};
use crate::model::names::{AttachmentId, ContainerId, IfName, NetnsPath, Pod};
use crate::model::policy::Policy;
use crate::model::record::{Ebpf, HostGuard, PinnedInterface, Record};

/// The records of one sandbox: at least one, all of the same container ID, in the order of their interface names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxRecords {
    first: Record,
    others: Vec<Record>,
    leaving: Vec<PinnedInterface>,
}

impl SandboxRecords {
    /// The records of a sandbox; `None` where there is none, or where they are not of one sandbox.
    #[must_use]
    pub fn new(mut records: Vec<Record>) -> Option<Self> {
        records.sort_by(|a, b| a.id.cmp(&b.id));
        let is_one = records.windows(2).all(|pair| pair[0].container_id() == pair[1].container_id());
        let mut records = records.into_iter();
        let first = records.next().filter(|_| is_one)?;
        Some(Self { first, others: records.collect(), leaving: Vec::new() })
    }

    /// A record, and those of the sandbox's other attachments.
    #[must_use]
    pub fn with(record: Record, others: Option<Self>) -> Self {
        let mut records = Self { first: record, others: Vec::new(), leaving: Vec::new() };
        for mut other in others.into_iter().flat_map(Self::into_iter) {
            if other.container_id() == records.container_id() {
                if other.id < records.first.id {
                    std::mem::swap(&mut other, &mut records.first);
                }
                records.others.push(other);
            }
        }
        records.others.sort_by(|a, b| a.id.cmp(&b.id));
        records
    }

    /// Those of the attachments to the netns of this cookie.
    #[must_use]
    pub fn of_netns(self, cookie: u64) -> Option<Self> {
        Self::new(self.into_iter().filter(|record| record.netns_cookie == cookie).collect())
    }

    fn into_iter(self) -> impl Iterator<Item = Record> {
        std::iter::once(self.first).chain(self.others)
    }

    /// Each of them.
    pub fn iter(&self) -> impl Iterator<Item = &Record> {
        std::iter::once(&self.first).chain(&self.others)
    }

    /// The one of this attachment.
    #[must_use]
    pub fn of(&self, attachment: &AttachmentId) -> Option<&Record> {
        self.iter().find(|record| record.id == *attachment)
    }

    /// Whether one of its attachments is by this interface.
    #[must_use]
    pub fn is_attachment(&self, interface: &IfName) -> bool {
        self.iter().any(|record| record.id.ifname == *interface)
    }

    /// The record of an attachment, and those of the others.
    #[must_use]
    pub fn split(self, attachment: &AttachmentId) -> (Option<Record>, Option<Self>) {
        let (own, others): (Vec<_>, Vec<_>) = self.into_iter().partition(|record| record.id == *attachment);
        (own.into_iter().next(), Self::new(others))
    }

    /// The sandbox.
    #[must_use]
    pub fn container_id(&self) -> &ContainerId {
        self.first.container_id()
    }

    /// Where its netns was.
    #[must_use]
    pub fn netns(&self) -> &NetnsPath {
        &self.first.netns
    }

    /// What that netns is; 0 where the kernel had no cookies (before 5.14).
    #[must_use]
    pub fn netns_cookie(&self) -> u64 {
        self.first.netns_cookie
    }

    /// Its pod: as the first record says that knows the UID, for a runtime may say it with one attachment only.
    #[must_use]
    pub fn pod(&self) -> &Pod {
        self.iter().map(|record| &record.pod).find(|pod| pod.uid.is_some()).unwrap_or(&self.first.pod)
    }

    /// Whether one of its records was made after its pod had run.
    #[must_use]
    pub fn is_adopted(&self) -> bool {
        self.iter().any(|record| record.adopted)
    }

    /// Whether the first packets of what it is kept from sending and receiving are kept: not where one of its records says no.
    #[must_use]
    pub fn is_captured(&self) -> bool {
        self.iter().all(|record| record.capture)
    }

    /// The policy of its conflist, which holds where a mark gives none.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        &self.first.policy
    }

    /// What is asked of its host guard: the most that one of its attachments asks.
    #[must_use]
    pub fn host_guard(&self) -> HostGuard {
        let asked = |guard| self.iter().any(|record| record.host_guard == guard);
        if asked(HostGuard::Require) {
            HostGuard::Require
        } else if asked(HostGuard::Auto) {
            HostGuard::Auto
        } else {
            HostGuard::Off
        }
    }

    /// What is asked of its eBPF layer: the most that one of its attachments asks.
    #[must_use]
    pub fn ebpf(&self) -> Ebpf {
        let asked = |ebpf| self.iter().any(|record| record.ebpf == ebpf);
        [Ebpf::Always, Ebpf::Auto].into_iter().find(|ebpf| asked(*ebpf)).unwrap_or(Ebpf::Off)
    }

    /// The interfaces that its ADDs found, each once.
    #[must_use]
    pub fn pinned_interfaces(&self) -> Vec<&PinnedInterface> {
        let mut pinned: Vec<&PinnedInterface> = Vec::new();
        for interface in self.iter().flat_map(|record| &record.interfaces) {
            if !pinned.iter().any(|earlier| earlier.interface.name == interface.interface.name) {
                pinned.push(interface);
            }
        }
        pinned
    }

    /// With the interfaces of an attachment that is being deleted: its record goes, and its interface is there until the
    /// main plugin's turn comes.
    #[must_use]
    pub fn with_leaving(self, leaving: Vec<PinnedInterface>) -> Self {
        Self { leaving, ..self }
    }

    /// The interfaces of an attachment that is being deleted.
    #[must_use]
    pub fn leaving(&self) -> &[PinnedInterface] {
        &self.leaving
    }

    /// What these marks want of it.
    #[must_use]
    pub fn desired(&self, marks: &[MarkContent]) -> Desired {
        Desired::by_marks(marks, self.policy())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(container: &str, ifname: &str, pod: &str, guard: &str) -> Record {
        let text = format!(
            r#"{{"network": "n", "containerID": "{container}", "ifname": "{ifname}", "netns": "/x", "netnsCookie": 1,
                 "pod": {pod}, "policy": {{}}, "hostGuard": "{guard}", "interfaces": []}}"#
        );
        Record::read(text.as_bytes()).unwrap()
    }

    #[test]
    fn there_is_one_sandbox_and_at_least_one_record() {
        assert_eq!(SandboxRecords::new(Vec::new()), None);
        assert_eq!(
            SandboxRecords::new(vec![record("a", "eth0", "{}", "auto"), record("b", "eth0", "{}", "auto")]),
            None
        );
    }

    #[test]
    fn the_records_answer_together() {
        let records = SandboxRecords::new(vec![
            record("a", "net1", r#"{"uid": "u", "name": "p", "namespace": "n"}"#, "require"),
            record("a", "eth0", r#"{"name": "p"}"#, "off"),
        ])
        .unwrap();
        assert_eq!(records.pod().uid.as_ref().map(ToString::to_string).as_deref(), Some("u"));
        assert_eq!(records.host_guard(), HostGuard::Require);
        let eth0 = records.iter().next().unwrap().id.clone();
        assert_eq!(eth0.ifname.to_string(), "eth0", "in the order of their names");
        let (own, others) = records.split(&eth0);
        assert_eq!(own.map(|record| record.id), Some(eth0));
        assert_eq!(others.map(|others| others.iter().count()), Some(1));
    }

    #[test]
    fn one_joins_the_others_of_its_sandbox_in_their_order() {
        let of_a = |ifname| record("a", ifname, "{}", "auto");
        let others = || SandboxRecords::new(vec![of_a("net1"), of_a("eth1")]);
        for (joins, expected) in [("eth0", ["eth0", "eth1", "net1"]), ("net0", ["eth1", "net0", "net1"])] {
            let names: Vec<_> =
                SandboxRecords::with(of_a(joins), others()).iter().map(|record| record.id.ifname.to_string()).collect();
            assert_eq!(names, expected);
        }
        let alone = SandboxRecords::with(record("b", "eth0", "{}", "auto"), others());
        assert_eq!(
            alone,
            SandboxRecords::with(record("b", "eth0", "{}", "auto"), None),
            "those of another are none of it"
        );
    }
}
