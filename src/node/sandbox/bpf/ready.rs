//! Programs that are attached while a sandbox is released, and wait: then isolating it is one element of a map, where attaching takes
//! the kernel tens of milliseconds.
//!
//! They let everything pass until they are armed, and then nothing; the programs of the policy take their places by the same links. This is
//! for who has the time, which is the agent. At the pod's end nothing waits: generic XDP costs each packet more than all of the rest.

use crate::kernel::bpf::{LoadedMap, Pins, refuses_tcx};
use crate::kernel::netlink::NetlinkError;
use crate::kernel::rtnetlink::Link;
use crate::model::audit::Line;
use crate::model::names::{ContainerId, IfName};
use crate::model::record::{Ebpf, HostGuard};
use crate::model::records::SandboxRecords;
use crate::model::verdict::ProgramPlace;
use crate::rules::bpf::Map;
use crate::rules::containment::guard_table;

use super::super::cut::ends_as_recorded;
use super::super::scan::{Scan, jumps_past_guard};
use super::super::{Sandbox, SandboxError, Side};
use super::part::{ARMED, FROM_POD, Failure, Loaded, Part, Source, TO_POD};
use super::{Holder, detach, is_passed_by, let_go, pins_of};

/// The places where programs wait.
const PLACES: [ProgramPlace; 2] = [ProgramPlace::ToPod, ProgramPlace::FromPod];

/// What came of having programs wait on the ends of a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Readiness {
    /// They waited before.
    Stood,
    /// They were attached, and wait.
    Attached,
    /// They could not be attached; why.
    Failed(String),
}

/// Whether programs hang on ends of a sandbox, armed or not, as far as pins say: it takes microseconds.
#[must_use]
pub fn are_ready(netns_cookie: u64, container_id: &ContainerId) -> bool {
    let pins = Pins::of(netns_cookie, &container_id.to_string());
    let hangs = |name: &String| {
        pins.link(name)
            .is_ok_and(|link| link.and_then(|link| link.info().ok()).is_some_and(|info| info.interface.is_some()))
    };
    let links = pins.links();
    let has = |place: &str| links.iter().any(|name| name.split_once('-').is_some_and(|(first, _)| first == place));
    has(FROM_POD) && has(TO_POD) && links.iter().all(hangs) && matches!(pins.map(ARMED), Ok(Some(_)))
}

/// Whether programs are to wait on the ends of a sandbox as long as it is released: where they would be wanted if it were isolated. Nothing
/// in it is asked.
///
/// # Errors
/// Where the node's interfaces could not be looked at.
pub fn wants_ready(host: &mut Side, records: &SandboxRecords, scan: Scan<'_>) -> Result<bool, NetlinkError> {
    if records.ebpf() == Ebpf::Off || records.host_guard() == HostGuard::Off || refuses_tcx().is_some() {
        return Ok(false);
    }
    let guard = guard_table(records.container_id());
    for (end, _) in ends_as_recorded(host, records)? {
        if records.ebpf() == Ebpf::Always || is_passed_by(&jumps_past_guard(host, &guard, &end, &[], scan)?) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Removes the pins of sandboxes that have no record and whose programs hang nowhere any more.
pub fn remove_pins_of_nothing(host: &Side, has_record: impl Fn(&ContainerId) -> bool) {
    let cookie = host.links.netns_cookie();
    let owners = Pins::owners(cookie, "").into_iter().filter_map(|owner| ContainerId::new(&owner).ok());
    for container_id in owners.filter(|owner| !has_record(owner)) {
        let pins = pins_of(host, &container_id);
        let hangs = |name: &String| match pins.link(name) {
            Ok(Some(link)) => link.info().map_or(true, |info| info.interface.is_some()),
            Ok(None) => false,
            Err(_) => true,
        };
        if !pins.links().iter().any(hangs) {
            detach(host, &container_id);
        }
    }
}

impl Sandbox<'_> {
    /// Has programs wait on the ends of a released sandbox, and leaves those alone that do.
    ///
    /// # Errors
    /// Where its ends could not be looked up.
    pub fn make_ready(&mut self) -> Result<Readiness, SandboxError> {
        let ends = self.ends_as_recorded()?;
        let pins = self.pins();
        let waits = |part: Part<'_>| part.standing(&pins).is_ok_and(|link| link.is_some());
        if self.waiting_parts(&ends).into_iter().all(waits) {
            return Ok(Readiness::Stood);
        }
        Ok(match self.attach_waiting(&ends) {
            Ok(_) => Readiness::Attached,
            Err((place, failure)) => {
                detach(self.host, self.records.container_id());
                Readiness::Failed(failure.doubt(place).to_string())
            }
        })
    }

    /// At the release: what waited before the isolation waits again; all others come off. Says whether anything was changed.
    pub(in super::super) fn disarm(&mut self) -> bool {
        let container_id = self.records.container_id();
        let armed = self.pins().map(ARMED).ok().flatten();
        let Some(armed) = armed.filter(|_| self.records.ebpf() != Ebpf::Off) else {
            return let_go(self.host, container_id);
        };
        let Ok(ends) = self.ends_as_recorded() else { return let_go(self.host, container_id) };
        self.wait_again(&armed, &ends).unwrap_or_else(|(place, failure)| {
            let error = failure.doubt(place);
            log::warn!("{}", Line::new("ebpf-not-ready").with("container", container_id).with("error", error));
            let_go(self.host, container_id)
        })
    }

    fn wait_again(&self, armed: &LoadedMap, ends: &[(Link, IfName)]) -> Result<bool, (ProgramPlace, Failure)> {
        let pins = self.pins();
        let was_armed = armed.is_armed() != Some(false);
        if was_armed {
            // What was open, and what was counted, was so in that isolation.
            pins.forget_maps(|map| map != ARMED);
        }
        let waiting: Vec<_> = self.waiting_parts(ends).iter().map(Part::pin).collect();
        let others: Vec<_> = pins.links().into_iter().filter(|link| !waiting.contains(link)).collect();
        pins.let_pass(&others);
        others.iter().for_each(|link| pins.remove_link(link));
        let changed = self.attach_waiting(ends)?;
        armed.arm(false).map_err(|error| (PLACES[0], error.into()))?;
        Ok(changed || was_armed || !others.is_empty())
    }

    /// Whether programs wait on all ends of a released sandbox, read back: that they are those, where they hang, that they come first,
    /// and that they let everything pass.
    #[must_use]
    pub fn is_ready(&mut self) -> bool {
        let pins = self.pins();
        if pins.map(ARMED).ok().flatten().and_then(|armed| armed.is_armed()) != Some(false) {
            return false;
        }
        let Ok(ends) = self.ends_as_recorded() else { return false };
        let waits = |part: Part<'_>| matches!(part.doubt(&pins, &Loaded::new()), Ok(None));
        !ends.is_empty() && self.waiting_parts(&ends).into_iter().all(waits)
    }

    fn attach_waiting(&self, ends: &[(Link, IfName)]) -> Result<bool, (ProgramPlace, Failure)> {
        let pins = self.pins();
        let failed = |error| (PLACES[0], Failure::Kernel(error));
        pins.make().map_err(failed)?;
        // Before any program: by it whoever isolates knows that there are some.
        if pins.map(ARMED).map_err(failed)?.is_none() {
            let armed = LoadedMap::create(&Map::Armed).map_err(failed)?;
            pins.pin_map(ARMED, &armed).map_err(failed)?;
        }
        let mut changed = false;
        for part in self.waiting_parts(ends) {
            changed |= part.attach(&pins, &mut Loaded::new()).map_err(|failure| (part.place, failure))?;
        }
        Ok(changed)
    }

    fn waiting_parts(&self, ends: &[(Link, IfName)]) -> Vec<Part<'_>> {
        let (netns, netns_cookie) = (&self.netns, self.host.links.netns_cookie());
        let part = |(link, _): &(Link, IfName)| {
            let holder = Holder::Pair(link.index);
            PLACES.map(|place| Part {
                place,
                source: Source::Waiting,
                holder,
                inside: None,
                netns,
                netns_cookie,
                prober: None,
            })
        };
        ends.iter().flat_map(part).collect()
    }
}
