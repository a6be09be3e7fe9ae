//! The two programs on a pod's cgroup: attached, replaced, read back, taken off.
//!
//! Links, pinned like those on interfaces, by the pod's UID. They are nobody's in the pod, and last as long as their pin or the cgroup.

use std::fs::File;
use std::os::fd::AsFd;

use crate::kernel::bpf::{BpfError, Hook, Link, LoadedProgram, Missing, Pins};
use crate::model::host_pod::{HostPod, Program as Standing, ProgramFault, Way};
use crate::model::names::PodUid;
use crate::model::policy::Policy;
use crate::model::subject::{HOST, Subject};
use crate::rules::bpf::{Inexpressible, Map, Sender, Stand, program};
use crate::rules::containment::{HostPodChains, host_pod_chains};
use crate::rules::ruleset::{Chain, Set};

const WAYS: [Way; 2] = [Way::In, Way::Out];

/// The directory of a pod's pins.
pub(super) fn pins_of(netns_cookie: u64, uid: &PodUid) -> Pins {
    Pins::of(netns_cookie, &Subject::HostPod(uid.clone()).to_string())
}

/// The pods that have one.
pub(super) fn standing(netns_cookie: u64) -> Vec<PodUid> {
    Pins::owners(netns_cookie, HOST).iter().filter_map(|owner| PodUid::new(owner).ok()).collect()
}

/// Whether a program of a pod that has some came off; as far as pins say, and without asking what it does.
pub(super) fn is_displaced(pins: &Pins) -> bool {
    let hangs = |way| pins.link(pin(way)).ok()??.cgroup(hook(way)).ok()?;
    WAYS.into_iter().any(|way| hangs(way).is_none())
}

fn pin(way: Way) -> &'static str {
    match way {
        Way::In => "in",
        Way::Out => "out",
    }
}

fn hook(way: Way) -> Hook {
    match way {
        Way::In => Hook::CgroupIngress,
        Way::Out => Hook::CgroupEgress,
    }
}

fn set_pin(set: &Set) -> String {
    format!("set-{}", set.name)
}

fn drops_pin(way: Way) -> String {
    format!("drops-{}", pin(way))
}

/// Takes the programs of a pod off, and forgets them; says whether there were any.
pub(super) fn take_off(pins: &Pins) -> Result<bool, BpfError> {
    for link in WAYS.into_iter().filter_map(|way| pins.link(pin(way)).ok()?) {
        // Where it cannot be done now the kernel does it when the pin is gone.
        let _ = link.detach();
    }
    pins.remove_all()
}

/// Packets and bytes that were dropped on a way.
pub(super) fn drops(pins: &Pins, way: Way) -> Option<(u64, u64)> {
    Some(pins.map(&drops_pin(way)).ok()??.drops())
}

/// What is in a set: the fields of each key, and how often.
pub(super) fn elements(pins: &Pins, set: &Set) -> Vec<(Vec<Vec<u8>>, u64)> {
    let map = Map::Set(set.clone());
    let Ok(Some(loaded)) = pins.map(&set_pin(set)) else { return Vec::new() };
    loaded.elements(&map).into_iter().map(|(key, count)| (map.fields(&key), count)).collect()
}

/// What belongs on the cgroup of a pod that a policy isolates.
pub(super) struct Programs<'a> {
    pins: Pins,
    pod: &'a HostPod,
    chains: HostPodChains,
    /// How probes are told; `None` where nothing tells them, and none pass.
    prober: Option<Sender>,
}

/// What attaching did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Attached {
    /// Nothing: what is wanted was there.
    AsBefore,
    /// Another program is where one was.
    Replaced,
    /// A program is where none was.
    Anew,
}

enum Failure {
    Kernel(BpfError),
    Program(Inexpressible),
    Cgroup(std::io::Error),
}

impl From<BpfError> for Failure {
    fn from(error: BpfError) -> Self {
        Self::Kernel(error)
    }
}

impl From<Failure> for ProgramFault {
    fn from(failure: Failure) -> Self {
        match failure {
            Failure::Kernel(error @ BpfError::Unsupported { .. }) => Self::Unsupported(error.to_string()),
            Failure::Kernel(error) => Self::Failed(crate::model::audit::chain(&error)),
            Failure::Program(error) => Self::Failed(error.to_string()),
            Failure::Cgroup(error) => Self::Failed(format!("its cgroup cannot be opened: {error}")),
        }
    }
}

impl<'a> Programs<'a> {
    pub(super) fn of(netns_cookie: u64, pod: &'a HostPod, policy: &Policy, prober: Option<Sender>) -> Self {
        let chains = host_pod_chains(policy, prober.is_some());
        Self { pins: pins_of(netns_cookie, &pod.uid), pod, chains, prober }
    }

    /// The sets that the programs use.
    pub(super) fn sets(&self) -> &[Set] {
        &self.chains.sets
    }

    /// Brings both to what is wanted: what was done, and what could not be.
    pub(super) fn attach(&self) -> (Attached, [Option<ProgramFault>; 2]) {
        if let Err(error) = self.pins.make() {
            let fault = || Some(ProgramFault::Failed(crate::model::audit::chain(&error)));
            return (Attached::AsBefore, [fault(), fault()]);
        }
        let mut done = Attached::AsBefore;
        let faults = WAYS.map(|way| match self.attach_one(way) {
            Ok(attached) => {
                done = done.max(attached);
                None
            }
            Err(failure) => Some(ProgramFault::from(failure)),
        });
        // The flows of another policy are not open in this one.
        self.pins.forget_maps(|map| {
            map.strip_prefix("set-").is_some_and(|name| !self.sets().iter().any(|wanted| wanted.name == name))
        });
        (done, faults)
    }

    /// How each of them is found.
    pub(super) fn read(&self) -> [Standing; 2] {
        WAYS.map(|way| match self.fault(way) {
            Ok(None) => Standing::Holds,
            Ok(Some(fault)) => Standing::Faulty(fault),
            Err(failure) => Standing::Faulty(failure.into()),
        })
    }

    fn chain(&self, way: Way) -> (&Chain, Stand) {
        match way {
            Way::In => (&self.chains.inbound, Stand::CgroupIngress),
            Way::Out => (&self.chains.outbound, Stand::CgroupEgress),
        }
    }

    fn load(&self, way: Way, missing: Missing) -> Result<Option<LoadedProgram>, Failure> {
        let (chain, stand) = self.chain(way);
        // Where nothing tells probes, no rule asks.
        let prober = self.prober.unwrap_or(Sender::InNetns(0));
        let program = program(chain, &self.chains.sets, stand, prober).map_err(Failure::Program)?;
        let name = |map: &Map| match map {
            // Nothing waits on a cgroup: attaching there takes microseconds.
            Map::Armed => "armed".to_owned(),
            Map::Drops => drops_pin(way),
            Map::Set(set) => set_pin(set),
        };
        Ok(self.pins.load(&program, name, missing)?)
    }

    /// The link, where it hangs on the pod's cgroup.
    fn standing(&self, way: Way) -> Result<Option<Link>, BpfError> {
        let Some(link) = self.pins.link(pin(way))? else { return Ok(None) };
        let hangs = link.cgroup(hook(way))? == Some(self.pod.cgroup.id);
        Ok(hangs.then_some(link))
    }

    fn attach_one(&self, way: Way) -> Result<Attached, Failure> {
        let Some(wanted) = self.load(way, Missing::Made)? else { return Ok(Attached::AsBefore) };
        if let Some(link) = self.standing(way)? {
            if wanted.identity()? == link.info()?.identity()? {
                return Ok(Attached::AsBefore);
            }
            link.update(&wanted)?;
            return Ok(Attached::Replaced);
        }
        let cgroup = File::open(&self.pod.directory).map_err(Failure::Cgroup)?;
        let link = Link::create_on_cgroup(&wanted, hook(way), cgroup.as_fd())?;
        self.pins.pin_link(pin(way), &link)?;
        Ok(Attached::Anew)
    }

    fn fault(&self, way: Way) -> Result<Option<ProgramFault>, Failure> {
        let Some(link) = self.standing(way)? else { return Ok(Some(ProgramFault::Missing)) };
        let is_it = match self.load(way, Missing::Absent)? {
            Some(wanted) => wanted.identity()? == link.info()?.identity()?,
            None => false,
        };
        Ok((!is_it).then_some(ProgramFault::Altered))
    }
}
