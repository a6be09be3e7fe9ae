//! Host guards as the node has them, whether a record speaks of them or not.
//!
//! A guard whose record was lost goes on guarding: it is shown, and stays until its interfaces are gone or somebody
//! releases it by its container ID.

use std::collections::BTreeSet;

use crate::kernel::netlink::NetlinkError;
use crate::kernel::nft::LoadedTable;
use crate::kernel::rtnetlink::Link;
use crate::model::audit::Line;
use crate::model::names::{ContainerId, IfName};
use crate::model::policy::Policy;
use crate::model::record::HostGuard;
use crate::model::records::SandboxRecords;
use crate::rules::arrange;
use crate::rules::containment::{
    EgressHook, GuardedEnd, GuardedInterface, TABLE, guard, guard_table, guarded_by, strayed_by, strayed_set,
};
use crate::rules::reports::report_drops;
use crate::rules::ruleset::{Family, Table};

use super::senders::{self, Senders};
use super::survey::{End, Strayed, Survey};
use super::{Sandbox, SandboxError, Side, Wanted, bpf};

/// The sandboxes for which a guard stands, by the names of the tables.
pub fn standing_guards(host: &mut Side) -> Result<Vec<ContainerId>, NetlinkError> {
    let prefix = format!("{TABLE}-");
    let tables = host.nft.tables(Family::Netdev)?;
    Ok(tables.iter().filter_map(|name| ContainerId::new(name.strip_prefix(&prefix)?).ok()).collect())
}

impl Sandbox<'_> {
    /// The guard of the ends that were found.
    pub(super) fn guard_of(
        &self,
        survey: &Survey,
        policy: &Policy,
        egress: EgressHook,
        label: Option<u32>,
    ) -> Option<Table> {
        let end = |End { link, guarded }: &End| GuardedEnd {
            device: link.name.clone(),
            index: link.index,
            interface: guarded.clone(),
        };
        let ends: Vec<_> = survey.ends.iter().map(end).collect();
        let mut table = guard(self.records.container_id(), policy, &ends, egress, label);
        table.sets.extend(
            survey.strayed.iter().map(|strayed| strayed_set(&strayed.interface, strayed.index, &strayed.device)),
        );
        if self.reports_drops() {
            report_drops(&mut table, self.records.container_id());
        }
        arrange(&mut table);
        (!ends.is_empty() || !survey.strayed.is_empty()).then_some(table)
    }

    pub(super) fn host_guard(&self) -> HostGuard {
        self.records.host_guard()
    }

    /// Whether its configuration asks for a host guard without which it is not isolated at all.
    #[must_use]
    pub fn requires_host_guard(&self) -> bool {
        self.host_guard() == HostGuard::Require
    }

    pub(super) fn require_peers(&self, wanted: &Wanted) -> Result<(), SandboxError> {
        if self.host_guard() != HostGuard::Require {
            return Ok(());
        }
        // Of those that a runtime attached, and as ADD found them: what root in the pod has made or renamed since must not
        // keep it from being isolated. Of that the verdict speaks.
        let survey = &wanted.survey;
        let leads_outside = |name: &IfName| survey.unguarded().any(|interface| interface.link.name == *name);
        let pinned = self.records.pinned_interfaces().into_iter().filter(|pinned| pinned.host_end.is_none());
        let mut attached = pinned.map(|pinned| &pinned.interface.name).filter(|&name| self.records.is_attachment(name));
        match attached.find(|&name| survey.missing.contains(name) || leads_outside(name)) {
            None => Ok(()),
            Some(interface) => Err(SandboxError::NoHostPeer { interface: interface.to_string() }),
        }
    }

    /// Applying takes the guard from no end that still exists, whatever the survey found.
    pub(super) fn keep_standing(&mut self, wanted: &mut Wanted, policy: &Policy) -> Result<(), SandboxError> {
        let label = wanted.senders.as_ref().and_then(Senders::label);
        let of_nothing;
        let table = match &wanted.guard {
            Some(guard) => guard,
            None => {
                of_nothing = guard(self.records.container_id(), policy, &[], wanted.egress, label);
                &of_nothing
            }
        };
        let compared = self.host.nft.compare(table)?;
        let (standing, strayed) = match &compared.1 {
            Some(loaded) => standing_ends(self.host, self.records, loaded, &wanted.survey)?,
            None => Default::default(),
        };
        if standing.is_empty() && strayed.is_empty() {
            wanted.compared = Some(compared);
            return Ok(());
        }
        wanted.survey.lost.retain(|(name, _)| !standing.iter().any(|end| end.guarded.name == *name));
        wanted.survey.ends.extend(standing);
        wanted.survey.strayed = strayed;
        wanted.guard = self.guard_of(&wanted.survey, policy, wanted.egress, label);
        Ok(())
    }
}

/// Ends that the guard of a sandbox stands on and that its survey did not find, as long as they are there: those of
/// interfaces that no ADD found, or whose attachment is being deleted, and that root in the pod has moved away since. Only
/// what the chain is hooked at *and* has the index that it was made for is the same interface. What has the index alone may be
/// the same, renamed, or another pod's: it is not guarded, and not forgotten.
fn standing_ends(
    host: &mut Side,
    records: &SandboxRecords,
    loaded: &LoadedTable,
    survey: &Survey,
) -> Result<(Vec<End>, Vec<Strayed>), NetlinkError> {
    let table = guard_table(records.container_id());
    let (mut ends, mut strayed): (Vec<End>, Vec<Strayed>) = (Vec::new(), Vec::new());
    let mut candidates = Vec::new();
    for chain in loaded.other_chains() {
        let Some((interface, tagged)) = guarded_by(chain) else { continue };
        let recorded = || {
            let pinned = records.pinned_interfaces().into_iter().chain(records.leaving());
            let mut of_name = pinned.filter(|pinned| pinned.interface.name.to_string() == interface);
            of_name.find_map(|pinned| Some(pinned.host_end.as_ref()?.index))
        };
        let Some(index) = tagged.or_else(recorded) else { continue };
        let devices = host.nft.devices_of(&table, chain)?;
        let devices: Vec<_> = devices.iter().filter_map(|device| IfName::new(device).ok()).collect();
        candidates.push((interface.to_owned(), index, devices, tagged.is_some()));
    }
    candidates.extend(
        loaded
            .set_names()
            .filter_map(strayed_by)
            .map(|(interface, index, device)| (interface.to_owned(), index, vec![device], true)),
    );
    for (interface, index, devices, is_remembered) in candidates {
        let is_known = survey.ends.iter().chain(&ends).any(|end| end.link.index == index);
        if is_known || strayed.iter().any(|strayed| strayed.index == index) {
            continue;
        }
        let Some(link) = host.links.by_index(index)?.filter(Link::is_pair) else { continue };
        // A name that is not plain is not said whole by the chain's.
        let name = IfName::new(&interface).unwrap_or_else(|_| link.name.clone());
        if devices.contains(&link.name) {
            ends.push(End { link, guarded: GuardedInterface { name, known: None } });
        } else if let (true, Some(device)) = (is_remembered, devices.first()) {
            strayed.push(Strayed { interface: name, index, device: device.clone(), now: link.name });
        }
    }
    Ok((ends, strayed))
}

/// Removes the host guard of a sandbox that may be gone, and the eBPF programs with it; says whether there was one.
pub fn remove_guard(host: &mut Side, container_id: &ContainerId) -> Result<bool, NetlinkError> {
    let had_programs = bpf::detach(host, container_id);
    Ok(remove_table(host, container_id)? || had_programs)
}

fn remove_table(host: &mut Side, container_id: &ContainerId) -> Result<bool, NetlinkError> {
    let had_guard = host.nft.delete(&guard_table(container_id), &[Family::Netdev])?;
    if had_guard {
        senders::remove_unused(host)?;
    }
    Ok(had_guard)
}

impl Sandbox<'_> {
    /// Removes the host guard at the release; programs that were attached before the isolation wait again, and all others come off.
    pub(super) fn lift_guard(&mut self) -> Result<bool, SandboxError> {
        let had_programs = self.disarm();
        Ok(remove_table(self.host, self.records.container_id())? || had_programs)
    }
}

/// Removes the guards that no record speaks of and that have no interface left to guard: a pod that ended without a DEL
/// that found its record. Says whose they were.
pub fn remove_guards_of_nothing(
    host: &mut Side,
    has_record: impl Fn(&ContainerId) -> bool,
) -> Result<Vec<ContainerId>, NetlinkError> {
    senders::remove_unused(host)?;
    bpf::remove_pins_of_nothing(host, &has_record);
    let mut orphans = standing_guards(host)?;
    orphans.retain(|container_id| !has_record(container_id));
    if orphans.is_empty() {
        return Ok(orphans);
    }
    let chains = host.nft.chains_in_front()?;
    let devices: BTreeSet<_> = host.links.all()?.into_iter().map(|link| link.name).collect();
    orphans.retain(|container_id| {
        let table = guard_table(container_id);
        !chains.iter().filter(|chain| chain.table == table).any(|chain| devices.iter().any(|name| chain.is_on(name)))
    });
    for container_id in &orphans {
        remove_guard(host, container_id)?;
        log::info!(
            "{}",
            Line::new("guard-removed").with("container", container_id).with("because", "nothing is left of it")
        );
    }
    Ok(orphans)
}

/// Removes the guards of sandboxes that are gone (their records say so, or there is none) from the ends of a sandbox that is
/// just added: a ruleset that was saved while they were isolated, and loaded again since, hangs them on whatever has the name now.
pub fn remove_stale_guards(
    host: &mut Side,
    added: &ContainerId,
    ends: &[&IfName],
    mut is_gone: impl FnMut(&mut Side, &ContainerId) -> bool,
) -> Result<(), NetlinkError> {
    let mut others = standing_guards(host)?;
    others.retain(|container_id| container_id != added);
    if others.is_empty() {
        return Ok(());
    }
    let chains = host.nft.chains_in_front()?;
    let is_on = |container_id: &ContainerId, end: &IfName| {
        let table = guard_table(container_id);
        chains.iter().any(|chain| chain.table == table && chain.is_on(end))
    };
    others.retain(|container_id| ends.iter().any(|end| is_on(container_id, end)));
    // Almost always none is: all links of a node with 1000 pods take 15 ms to list, and each pod's start would wait for it.
    if others.is_empty() {
        return Ok(());
    }
    let devices: BTreeSet<_> = host.links.all()?.into_iter().map(|link| link.name).collect();
    for container_id in &others {
        // One that guards anything else that is there stays whole.
        let is_all = devices.iter().all(|device| ends.contains(&device) || !is_on(container_id, device));
        if is_all && is_gone(host, container_id) {
            remove_guard(host, container_id)?;
            let because = format!("it is gone, and its end is {added}'s");
            log::info!("{}", Line::new("guard-removed").with("container", container_id).with("because", because));
        }
    }
    Ok(())
}
