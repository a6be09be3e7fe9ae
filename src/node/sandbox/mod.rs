//! One sandbox: brought to what its marks want, on both sides, and read back.
//!
//! Everything that isolates or releases comes together here, whoever asked: ADD, CHECK, the agent, a command. The
//! caller holds the sandbox's lock. The host guard comes before the pod-side rules when a sandbox is isolated, and goes
//! after them when it is released: each stops everything by itself, so there is no half state in between.

mod bpf;
mod cut;
mod exposure;
mod guards;
mod handing;
pub(super) mod kubelet;
mod node_look;
mod report;
mod scan;
mod senders;
mod side;
mod steps;
mod survey;
mod transition;

use nix::errno::Errno;
use thiserror::Error;

pub use bpf::{Holder, Readiness, are_ready, programs_are_displaced, wants_ready};
pub use cut::{Before, load_guards};
pub use guards::{remove_guard, remove_guards_of_nothing, remove_stale_guards, standing_guards};
pub use kubelet::cgroup_of;
pub use report::{Applied, Dependence, Deviation, Layer, ProberSeen, ProgramsOn, Report};
pub use scan::{NodeScan, Scan};
pub use side::Side;
pub use steps::{Begun, Joint};
pub use survey::{pin_interfaces, pin_said};

use crate::kernel::netlink::NetlinkError;
use crate::kernel::netns::{Netns, NetnsError};
use crate::kernel::nft::Nft;
use crate::model::difference::Difference;
use crate::model::mark::Desired;
use crate::model::names::{ContainerId, IfName, SandboxInterface};
use crate::model::record::{HostGuard, NodeOnLink};
use crate::model::records::SandboxRecords;
use crate::model::verdict::{Guard, Reason, Verdict, judge};
use crate::rules::arrange;
use crate::rules::containment::{EgressHook, GuardedInterface, TABLE, frame, guard_table, pod_tables};
use crate::rules::held::hold_flows;
use crate::rules::reports::report_drops;
use crate::rules::ruleset::{Family, Table};

use exposure::programs_on;
use node_look::NodeLook;
use senders::Senders;
use steps::Done;
use survey::{Survey, survey};
use transition::{Compared, reconcile};

const POD_FAMILIES: [Family; 2] = [Family::Netdev, Family::Inet];

/// Why a sandbox could not be brought to what is wanted.
#[derive(Debug, Error)]
pub enum SandboxError {
    /// Its netns cannot be entered; mostly because the pod is gone.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The netns at its path is another one by now: the pod is gone.
    #[error("{path} is another pod's network namespace by now; the sandbox is gone")]
    Replaced {
        /// The path.
        path: String,
    },
    /// The kernel refused, or could not be asked.
    #[error(transparent)]
    Kernel(#[from] NetlinkError),
    /// The configuration requires a host guard.
    #[error(
        "{interface} has no peer on the host, and hostGuard is \"require\": nothing was changed; set hostGuard to \"auto\" to isolate it by the pod-side rules alone"
    )]
    NoHostPeer {
        /// The interface.
        interface: String,
    },
    /// No attachment of it is known.
    #[error("sandbox {container_id} has no readable attachment record; it can't be found without one")]
    Unknown {
        /// The sandbox.
        container_id: ContainerId,
    },
}

impl SandboxError {
    /// Whether the sandbox does not exist any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Netns(error) => error.is_gone(),
            error => matches!(error, Self::Replaced { .. }),
        }
    }

    /// Whether this process or the machine has nothing left to do it with: descriptors or memory.
    #[must_use]
    pub fn is_shortage(&self) -> bool {
        let errno = match self {
            Self::Netns(error) => error.errno(),
            Self::Kernel(error) => error.errno(),
            _ => None,
        };
        matches!(errno, Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::ENOBUFS))
    }
}

/// A sandbox with both its sides open.
#[derive(Debug)]
pub struct Sandbox<'a> {
    records: &'a SandboxRecords,
    netns: Netns,
    pod: Side,
    host: &'a mut Side,
    /// What was seen of the node, for whatever is wanted of this one.
    look: NodeLook,
    /// Whether the kernel has refused rules that hand packets over.
    refused_reports: bool,
}

/// What is wanted on both sides.
#[derive(Debug)]
struct Wanted {
    survey: Survey,
    pod: Vec<Table>,
    guard: Option<Table>,
    /// How the guard was found, where it was read already and nothing was changed since.
    compared: Option<Compared>,
    egress: EgressHook,
    /// How the prober that the policy names is told.
    senders: Option<Senders>,
    /// What came of attaching the programs of the eBPF layer.
    attached: bpf::Attached,
}

impl Wanted {
    fn released(pod: Vec<Table>, egress: EgressHook) -> Self {
        let attached = bpf::Attached::default();
        Self { survey: Survey::default(), pod, guard: None, compared: None, egress, senders: None, attached }
    }
}

impl<'a> Sandbox<'a> {
    /// Opens a sandbox by the records of its attachments.
    ///
    /// # Errors
    /// [`SandboxError`]; [`SandboxError::is_gone`] tells a pod that has ended from a failure.
    pub fn open(host: &'a mut Side, records: &'a SandboxRecords) -> Result<Self, SandboxError> {
        let netns = Netns::open(records.netns())?;
        let pod = Side::of(&netns)?;
        if records.netns_cookie() != 0 && records.netns_cookie() != pod.links.netns_cookie() {
            return Err(SandboxError::Replaced { path: records.netns().to_string() });
        }
        Ok(Self::of_sides(host, pod, netns, records))
    }

    /// A sandbox whose sides are open already; `records` are those of this netns.
    #[must_use]
    pub fn of_sides(host: &'a mut Side, pod: Side, netns: Netns, records: &'a SandboxRecords) -> Self {
        Self { records, netns, pod, host, look: NodeLook::default(), refused_reports: false }
    }

    /// Its name.
    #[must_use]
    pub fn container_id(&self) -> &'a ContainerId {
        self.records.container_id()
    }

    /// The records of its attachments.
    #[must_use]
    pub fn records(&self) -> &'a SandboxRecords {
        self.records
    }

    /// Brings it to what is wanted and reads it back. One that is to be isolated, and was not, is cut off first; then what
    /// its policy lets through is computed and loaded.
    ///
    /// # Errors
    /// [`SandboxError`]. Where a host guard is required and impossible, nothing was changed.
    pub fn apply(&mut self, desired: &Desired, before: Before, scan: Scan<'_>) -> Result<Applied, SandboxError> {
        let was_isolated = match before {
            Before::Cut => false,
            Before::Unknown => self.is_isolated_in_part()?,
        };
        if before == Before::Unknown && desired.is_isolated() && !was_isolated {
            let guard = self.cut();
            load_guards(self.host, guard.as_slice());
        }
        let done = match self.apply_with_reports_or_without(desired, EgressHook::Netdev) {
            // No netdev egress hook (before 5.16): the kernel says so when the chain is added, and takes nothing.
            Err(error) if is_unsupported(&error) => self.apply_with_reports_or_without(desired, EgressHook::Missing),
            result => result,
        };
        let (wanted, done) = done?;
        self.applied(desired, wanted, done, before, was_isolated, scan)
    }

    /// Puts the sleeping rules into a sandbox of which nothing is isolated. They are not read back: they do nothing
    /// before the sandbox is isolated, and then everything is read. What is `just_pinned` is not listed once more.
    pub fn install(&mut self, just_pinned: bool) -> Result<(), SandboxError> {
        let interfaces: Vec<IfName> = if just_pinned {
            self.records.pinned_interfaces().into_iter().map(|pinned| pinned.interface.name.clone()).collect()
        } else {
            self.present_interfaces()?.into_iter().map(|interface| interface.name).collect()
        };
        match reconcile(&mut self.pod.nft, &frame(&interfaces, EgressHook::Netdev)) {
            Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => {
                reconcile(&mut self.pod.nft, &frame(&interfaces, EgressHook::Missing))?;
            }
            result => drop(result?),
        }
        Ok(())
    }

    fn applied(
        &mut self,
        desired: &Desired,
        mut wanted: Wanted,
        done: Done,
        before: Before,
        was_isolated: bool,
        scan: Scan<'_>,
    ) -> Result<Applied, SandboxError> {
        let mut altered = Vec::new();
        // Others may have come in between and opened the holes: it was cut off for this all the same.
        let mut changed = done.pod.changed || done.guard.changed || before == Before::Cut;
        if desired.is_isolated() {
            changed |= self.attach_programs(&mut wanted, scan)?;
        }
        for (layer, transition) in [(Layer::Pod, done.pod), (Layer::Host, done.guard)] {
            let differences = transition.differences.into_iter();
            altered.extend(differences.map(|(family, difference)| Deviation { layer, family, difference }));
        }
        let report = self.report(desired, wanted, scan)?;
        Ok(Applied { changed, was_isolated, altered, is_to_be_put_back: false, report })
    }

    /// Reads it back and compares with what is wanted, changing nothing.
    pub fn verify(&mut self, desired: &Desired, scan: Scan<'_>) -> Result<Report, SandboxError> {
        let wanted = self.wanted(desired, EgressHook::Netdev)?;
        let report = self.report(desired, wanted, scan)?;
        if report.differences.is_empty() {
            return Ok(report);
        }
        // Where the kernel has no egress hook, the other form of the rules is what was loaded.
        let without = self.wanted(desired, EgressHook::Missing)?;
        let fallback = self.report(desired, without, scan)?;
        if fallback.differences.is_empty() {
            return Ok(fallback);
        }
        if !desired.is_isolated() {
            for egress in [EgressHook::Netdev, EgressHook::Missing] {
                let older = self.wanted_released_with_policy(egress)?;
                let older = self.report(desired, older, scan)?;
                if older.differences.is_empty() {
                    return Ok(older);
                }
            }
        }
        Ok(report)
    }

    /// The rules that would be in place for `desired`.
    pub fn tables(&mut self, desired: &Desired) -> Result<Vec<Table>, SandboxError> {
        let senders = desired.policy().and_then(Senders::wanted);
        let wanted = self.wanted_with(desired, EgressHook::Netdev, senders)?;
        let senders = wanted.senders.filter(|_| wanted.guard.is_some()).map(|senders| senders.table);
        Ok(wanted.pod.into_iter().chain(senders).chain(wanted.guard).collect())
    }

    /// Reads the elements of a set on the side where its table is.
    pub fn side_of(&mut self, table: &Table) -> &mut Side {
        if table.name == TABLE { &mut self.pod } else { self.host }
    }

    /// Its netns, and the cookie of that.
    #[must_use]
    pub fn netns(&self) -> (&Netns, u64) {
        (&self.netns, self.pod.links.netns_cookie())
    }

    /// Rules and sets on its own side.
    pub fn pod_nft(&mut self) -> &mut Nft {
        &mut self.pod.nft
    }

    /// Takes the pod-side tables out of it, and the host guard.
    pub fn clear(&mut self) -> Result<(), SandboxError> {
        self.pod.nft.delete(TABLE, &POD_FAMILIES)?;
        self.remove_guard()?;
        Ok(())
    }

    fn remove_guard(&mut self) -> Result<bool, NetlinkError> {
        remove_guard(self.host, self.records.container_id())
    }

    /// Whether anything of an isolation is in place: the pod-side rules awake, or a host guard.
    pub fn is_isolated_in_part(&mut self) -> Result<bool, NetlinkError> {
        let (pod_side, host_guard) = self.layers_in_place()?;
        Ok(pod_side || host_guard)
    }

    /// Of an isolation, whatever it was: whether pod-side rules are awake, and whether there is a host guard.
    pub fn layers_in_place(&mut self) -> Result<(bool, bool), NetlinkError> {
        let has_guard = self.host.nft.has_table(Family::Netdev, &guard_table(self.records.container_id()))?;
        Ok((self.pod_side_is_awake()?, has_guard || bpf::stand(self.host, self.records.container_id())))
    }

    fn pod_side_is_awake(&mut self) -> Result<bool, NetlinkError> {
        for family in POD_FAMILIES {
            if self.pod.nft.is_awake(family, TABLE)? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    fn wanted(&mut self, desired: &Desired, egress: EgressHook) -> Result<Wanted, SandboxError> {
        let senders = match desired.policy() {
            Some(policy) => Senders::find(&mut self.host.nft, policy, egress)?,
            None => None,
        };
        self.wanted_with(desired, egress, senders)
    }

    fn wanted_with(
        &mut self,
        desired: &Desired,
        egress: EgressHook,
        senders: Option<Senders>,
    ) -> Result<Wanted, SandboxError> {
        let Desired::Isolated { policy, .. } = desired else { return self.wanted_released(egress) };
        let survey = survey(self.host, &mut self.look, &mut self.pod, &self.netns, self.records, policy)?;
        let guarded: Vec<_> = survey.interfaces.iter().map(|interface| interface.guarded.clone()).collect();
        let mut pod = pod_tables(policy, &guarded, egress, false);
        if egress == EgressHook::Netdev {
            pod.iter_mut().for_each(hold_flows);
        }
        if self.reports_drops() {
            pod.iter_mut().for_each(|table| report_drops(table, self.records.container_id()));
        }
        pod.iter_mut().for_each(arrange);
        let attached = bpf::Attached::default();
        let mut wanted = Wanted { survey, pod, guard: None, compared: None, egress, senders, attached };
        if self.host_guard() != HostGuard::Off {
            let label = wanted.senders.as_ref().and_then(Senders::label);
            wanted.guard = self.guard_of(&wanted.survey, policy, egress, label);
            self.keep_standing(&mut wanted, policy)?;
        }
        Ok(wanted)
    }

    /// What ADD left: nothing is looked up, so that what differs was changed by somebody.
    fn wanted_released(&mut self, egress: EgressHook) -> Result<Wanted, SandboxError> {
        let interfaces: Vec<IfName> = self.present_interfaces()?.into_iter().map(|interface| interface.name).collect();
        Ok(Wanted::released(frame(&interfaces, egress), egress))
    }

    /// What ADD of version 0.1 left: the rules of the policy, asleep too.
    fn wanted_released_with_policy(&mut self, egress: EgressHook) -> Result<Wanted, SandboxError> {
        let pod = pod_tables(self.records.policy(), &self.present_interfaces()?, egress, true);
        Ok(Wanted::released(pod, egress))
    }

    /// The interfaces that ADD found and that are still there.
    fn present_interfaces(&mut self) -> Result<Vec<GuardedInterface>, SandboxError> {
        let present: Vec<IfName> = self.pod.links.all()?.into_iter().map(|link| link.name).collect();
        let pinned = self.records.pinned_interfaces().into_iter();
        Ok(pinned
            .filter(|pinned| present.contains(&pinned.interface.name))
            .map(|pinned| GuardedInterface {
                name: pinned.interface.name.clone(),
                known: Some((pinned.interface.clone(), pinned.node.clone())),
            })
            .collect())
    }

    fn report(&mut self, desired: &Desired, wanted: Wanted, scan: Scan<'_>) -> Result<Report, SandboxError> {
        let mut differences = Vec::new();
        for table in &wanted.pod {
            let found = differences_of(&mut self.pod, table)?;
            let at = |difference| Deviation { layer: Layer::Pod, family: table.family, difference };
            differences.extend(found.into_iter().map(at));
        }
        let pod_side = differences.is_empty();
        let guard_differences = match (&wanted.guard, &wanted.compared) {
            (Some(_), Some((differences, _))) => differences.iter().filter(|each| each.decides()).cloned().collect(),
            (Some(guard), None) => differences_of(self.host, guard)?,
            (None, _) => Vec::new(),
        };
        let (mut verdict, mut reasons, mut host_guard) = (Verdict::Open, Vec::new(), false);
        let mut programs = Vec::new();
        if desired.is_isolated() {
            let exposures = self.exposures(&wanted, &guard_differences, scan)?;
            host_guard =
                !exposures.is_empty() && exposures.iter().all(|exposure| matches!(exposure.guard, Guard::Holds { .. }));
            programs = programs_on(&wanted.survey, &exposures);
            (verdict, reasons) = judge(pod_side, &exposures);
            reasons.extend(self.records.is_adopted().then_some(Reason::Adopted));
        }
        let at = |difference| Deviation { layer: Layer::Host, family: Family::Netdev, difference };
        differences.extend(guard_differences.into_iter().map(at));
        let interfaces = wanted.survey.interfaces.len();
        let seen = |(_, node): &(SandboxInterface, NodeOnLink)| node.clone();
        let depends = Dependence {
            seen: wanted.survey.ends.iter().filter_map(|end| end.guarded.known.as_ref().map(seen)).collect(),
            links: wanted.survey.links,
            prober: wanted.senders.as_ref().map(|senders| Box::new(senders.seen())),
            addresses: self
                .records
                .pinned_interfaces()
                .into_iter()
                .flat_map(|pinned| pinned.interface.addresses.iter().copied())
                .collect(),
        };
        let note = wanted.senders.as_ref().and_then(|senders| senders.note(wanted.guard.is_some()));
        let tables = wanted.pod.into_iter().chain(wanted.guard).collect();
        Ok(Report {
            notes: note.into_iter().collect(),
            depends,
            verdict,
            reasons,
            interfaces,
            pod_side,
            host_guard,
            programs,
            differences,
            tables,
        })
    }
}

/// Those by which a packet may fare otherwise: of a claim, nothing else counts.
fn differences_of(side: &mut Side, table: &Table) -> Result<Vec<Difference>, NetlinkError> {
    let mut differences = side.nft.compare(table)?.0;
    differences.retain(Difference::decides);
    Ok(differences)
}

fn is_unsupported(error: &SandboxError) -> bool {
    matches!(error, SandboxError::Kernel(error) if error.errno() == Some(Errno::EOPNOTSUPP))
}
