//! The third layer: eBPF programs on both ends of an interface, where something takes packets past the host guard.
//!
//! tcx first at the host's end, both ways, and XDP in generic mode at the pod's: each stops what others are passed by with. They are
//! links of the host's, which nobody in the pod can take off, and are pinned, so that they outlive whoever made them. They follow
//! the guard, whose chains they are compiled from: attaching takes the kernel 16 ms, and the cut does not wait.
//!
//! A failure here fails nothing else. What is not in place is said when it is read back, and that is what the verdict goes by.

mod part;
mod ready;

use crate::kernel::bpf::{Hook, Pins};
use crate::kernel::netlink::NetlinkError;
use crate::kernel::rtnetlink::Link;
use crate::model::audit::Line;
use crate::model::names::ContainerId;
use crate::model::record::Ebpf;
use crate::model::verdict::{Bypass, ProgramDoubt, ProgramPlace, Programs};
use crate::rules::bpf::Map;
use crate::rules::branches::inlined;
use crate::rules::containment::guard_table;
use crate::rules::ruleset::{Family, Hook as Netfilter, Set};

pub use ready::{Readiness, are_ready, remove_pins_of_nothing, wants_ready};

use part::{ARMED, FROM_POD, Failure, Loaded, Part, Source, TO_POD, drops_pin, pin, set_pin, without_tcx};

use super::scan::{Scan, jumps_past_guard};
use super::survey::{End, Survey};
use super::{Sandbox, SandboxError, Side, Wanted};

/// What programs are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// Both ends of a pair; the index of the host's, by which it is known wherever the other goes.
    Pair(u32),
    /// An interface of the sandbox that has no end on the host, by its index there.
    Alone(u32),
}

/// What came of attaching programs.
#[derive(Debug, Default)]
pub(super) struct Attached {
    /// What was wrong: where, and what.
    refused: Vec<(Holder, ProgramDoubt)>,
    loaded: Loaded,
}

/// Whether programs of a sandbox stand and let not everything pass, as far as pins say.
pub(super) fn stand(host: &Side, container_id: &ContainerId) -> bool {
    let pins = pins_of(host, container_id);
    let only_wait = || pins.map(ARMED).ok().flatten().and_then(|armed| armed.is_armed()) == Some(false);
    pins.exist() && !only_wait()
}

/// Arms the programs that wait on the ends of a sandbox, where there are some: nothing passes from then on.
pub(super) fn arm(host: &Side, container_id: &ContainerId) {
    if let Ok(Some(armed)) = pins_of(host, container_id).map(ARMED)
        && let Err(error) = armed.arm(true)
    {
        let error = crate::model::audit::chain(&error);
        log::warn!("{}", Line::new("ebpf-not-armed").with("container", container_id).with("error", error));
    }
}

/// Takes the programs of a sandbox off; says whether there were any.
pub(super) fn detach(host: &Side, container_id: &ContainerId) -> bool {
    pins_of(host, container_id).remove_all().unwrap_or_else(|error| {
        let error = crate::model::audit::chain(&error);
        log::warn!("{}", Line::new("ebpf-not-removed").with("container", container_id).with("error", error));
        false
    })
}

/// The same of one that is released: nothing is stopped any more from now on, whenever the kernel comes to taking them off.
fn let_go(host: &Side, container_id: &ContainerId) -> bool {
    let pins = pins_of(host, container_id);
    pins.let_pass(&pins.links());
    detach(host, container_id)
}

fn pins_of(host: &Side, container_id: &ContainerId) -> Pins {
    Pins::of(host.links.netns_cookie(), &container_id.to_string())
}

/// Whether a program of a sandbox that has some came off, or another one was put before it; as far as pins say, and without asking what it does: it
/// takes microseconds, and can be asked again and again. The kernel tells nobody when programs change.
pub fn programs_are_displaced(netns_cookie: u64, container_id: &ContainerId) -> bool {
    let pins = Pins::of(netns_cookie, &container_id.to_string());
    let is_displaced = |name: &str| {
        let link = pins.link(name).ok()??;
        let info = link.info().ok()?;
        let Some(interface) = info.interface else { return Some(true) };
        let hook = match name.split_once('-')?.0 {
            FROM_POD => Hook::TcxIngress,
            TO_POD => Hook::TcxEgress,
            _ => return Some(false),
        };
        Some(!info.is_first(hook, interface).ok()?)
    };
    let links = pins.links();
    links.is_empty() || links.iter().any(|name| is_displaced(name).unwrap_or(true))
}

impl Sandbox<'_> {
    fn pins(&self) -> Pins {
        pins_of(self.host, self.records.container_id())
    }

    /// Attaches the programs where they are wanted, and takes them off where the configuration wants none; says whether anything
    /// was changed.
    pub(super) fn attach_programs(&mut self, wanted: &mut Wanted, scan: Scan<'_>) -> Result<bool, SandboxError> {
        if self.records.ebpf() == Ebpf::Off {
            return Ok(detach(self.host, self.records.container_id()));
        }
        scan.finish(self.host)?;
        // One that was cut off is armed; this is for one of which only a part was isolated.
        arm(self.host, self.records.container_id());
        let pins = self.pins();
        let (mut changed, mut refused, mut loaded) = (false, Vec::new(), Loaded::new());
        let mut holders = Vec::new();
        for end in &wanted.survey.ends {
            let passed_by = self.passed_by(&end.link, scan)?;
            if wanted.guard.is_some() && self.wants_programs(&end.link, &passed_by) {
                holders.push(Holder::Pair(end.link.index));
            }
        }
        holders.extend(alone(&wanted.survey));
        for &holder in &holders {
            if let Err(error) = pins.make() {
                refused.push((holder, Failure::from(error).doubt(holder.places()[0])));
                continue;
            }
            for (number, part) in self.parts(wanted, holder).iter().enumerate() {
                match part.attach(&pins, &mut loaded) {
                    Ok(attached) => changed |= attached,
                    Err(failure) => {
                        refused.push((holder, failure.doubt(part.place)));
                        // Without what opens flows the others would stop the answers to probes, too.
                        if number == 0 {
                            holder.places().iter().for_each(|&place| pins.remove_link(&pin(place, holder)));
                            break;
                        }
                    }
                }
            }
        }
        // The flows of another policy are not open in this one.
        let sets: Vec<_> = wanted.pod.iter().chain(&wanted.guard).flat_map(|table| &table.sets).collect();
        pins.forget_maps(|map| {
            map.strip_prefix("set-").is_some_and(|set| {
                let set = set.strip_prefix("alone-").unwrap_or(set);
                !sets.iter().any(|wanted| wanted.name == set)
            })
        });
        wanted.attached = Attached { refused, loaded };
        Ok(changed)
    }

    /// What takes packets past the host guard of an end, and the programs there.
    pub(super) fn read_programs(
        &mut self,
        wanted: &Wanted,
        end: &End,
        scan: Scan<'_>,
    ) -> Result<(Vec<Bypass>, Programs), SandboxError> {
        let passed_by = self.passed_by(&end.link, scan)?;
        if self.records.ebpf() == Ebpf::Off || !self.wants_programs(&end.link, &passed_by) {
            return Ok((passed_by, Programs::NotWanted));
        }
        let doubts = self.doubts(wanted, Holder::Pair(end.link.index));
        if !doubts.is_empty() {
            return Ok((passed_by, Programs::Doubted(doubts)));
        }
        // Not asked where nothing depends on it: all programs of the node are read.
        let is_by_program =
            |way: &Bypass| matches!(way, Bypass::TcBpf { .. } | Bypass::BpfLink { .. } | Bypass::BpfElsewhere { .. });
        let into_pods = passed_by.iter().any(is_by_program) && scan.may_redirect_to_peers(self.host)?;
        Ok((passed_by, Programs::Hold { into_pods }))
    }

    /// The programs on an interface that has no end on the host.
    pub(super) fn read_programs_alone(&mut self, wanted: &Wanted, index: u32) -> Programs {
        if self.records.ebpf() == Ebpf::Off {
            return Programs::NotWanted;
        }
        let doubts = self.doubts(wanted, Holder::Alone(index));
        if doubts.is_empty() { Programs::Hold { into_pods: false } } else { Programs::Doubted(doubts) }
    }

    /// What is wrong with the programs of an interface.
    fn doubts(&self, wanted: &Wanted, holder: Holder) -> Vec<ProgramDoubt> {
        let refused: Vec<_> =
            wanted.attached.refused.iter().filter(|(on, _)| *on == holder).map(|(_, doubt)| doubt.clone()).collect();
        if !refused.is_empty() {
            return refused;
        }
        let pins = self.pins();
        let is_there = |place: &ProgramPlace| !pins.link(&pin(*place, holder)).is_ok_and(|link| link.is_none());
        if !holder.places().iter().any(is_there) {
            // Nobody attaches what cannot be.
            let obstacle = || self.parts(wanted, holder).first()?.obstacle(&pins);
            let doubt = without_tcx(holder.places()[0]).or_else(obstacle);
            return vec![doubt.unwrap_or(ProgramDoubt::NoneAttached)];
        }
        let loaded = &wanted.attached.loaded;
        let doubt =
            |part: Part<'_>| part.doubt(&pins, loaded).unwrap_or_else(|failure| Some(failure.doubt(part.place)));
        self.parts(wanted, holder).into_iter().filter_map(doubt).collect()
    }

    /// The programs of ours that hang on an interface, by their IDs.
    pub(super) fn programs_of_ours(&self, holder: Holder) -> Vec<u32> {
        let pins = self.pins();
        let program = |&place: &ProgramPlace| Some(pins.link(&pin(place, holder)).ok()??.info().ok()?.program);
        holder.places().iter().filter_map(program).collect()
    }

    /// Whether the XDP program of an interface is one that was attached here.
    pub(super) fn has_xdp_of_ours(&self, holder: Holder) -> bool {
        let pinned = self.pins().link(&pin(ProgramPlace::InPod, holder)).ok().flatten();
        pinned.and_then(|pinned| pinned.info().ok()?.interface).is_some()
    }

    /// What the programs have put into a set of the guard, where they have one: the fields of each key, and how often.
    pub fn program_elements(&mut self, holder: Holder, set: &Set) -> Vec<(Vec<Vec<u8>>, u64)> {
        let map = Map::Set(set.clone());
        let Ok(Some(loaded)) = self.pins().map(&set_pin(holder, set)) else { return Vec::new() };
        loaded.elements(&map).into_iter().map(|(key, count)| (map.fields(&key), count)).collect()
    }

    /// How many packets and bytes the programs of an interface have dropped, by where.
    pub fn program_drops(&mut self, holder: Holder) -> Vec<(ProgramPlace, u64, u64)> {
        let pins = self.pins();
        let drops = |&place: &ProgramPlace| {
            let (packets, bytes) = pins.map(&drops_pin(place, holder)).ok()??.drops();
            Some((place, packets, bytes))
        };
        holder.places().iter().filter_map(drops).collect()
    }

    /// Where programs once were, they stay while the sandbox is isolated: what they were for may come back.
    fn wants_programs(&self, end: &Link, passed_by: &[Bypass]) -> bool {
        let had_programs =
            || self.pins().link(&pin(ProgramPlace::ToPod, Holder::Pair(end.index))).is_ok_and(|link| link.is_some());
        self.records.ebpf() == Ebpf::Always || is_passed_by(passed_by) || had_programs()
    }

    fn passed_by(&mut self, end: &Link, scan: Scan<'_>) -> Result<Vec<Bypass>, NetlinkError> {
        let ours = self.programs_of_ours(Holder::Pair(end.index));
        jumps_past_guard(self.host, &guard_table(self.records.container_id()), end, &ours, scan)
    }

    fn parts<'w>(&'w self, wanted: &'w Wanted, holder: Holder) -> Vec<Part<'w>> {
        let survey = &wanted.survey;
        let (table, device, inside) = match holder {
            Holder::Pair(index) => {
                let end = survey.ends.iter().find(|end| end.link.index == index).map(|end| &end.link.name);
                let inside = survey.interfaces.iter().find(|interface| interface.host_end == Some(index));
                (wanted.guard.as_ref(), end, inside.map(|interface| interface.link.index))
            }
            Holder::Alone(index) => {
                let inside = survey.interfaces.iter().find(|interface| interface.link.index == index);
                let table = wanted.pod.iter().find(|table| table.family == Family::Netdev);
                (table, inside.map(|interface| &interface.link.name), Some(index))
            }
        };
        let (Some(table), Some(device)) = (table, device) else { return Vec::new() };
        let part = |&place: &ProgramPlace| {
            let is_ingress = match (holder, place) {
                (Holder::Pair(_), place) => place == ProgramPlace::FromPod,
                (Holder::Alone(_), place) => place == ProgramPlace::InPod,
            };
            let chain = table.chains.iter().find(|chain| match &chain.hook {
                Netfilter::Ingress(hooked) => is_ingress && hooked == device,
                Netfilter::Egress(hooked) => !is_ingress && hooked == device,
                _ => false,
            })?;
            let chain = inlined(table, chain);
            let (netns, netns_cookie) = (&self.netns, self.host.links.netns_cookie());
            let prober = wanted.senders.as_ref().and_then(|senders| senders.cgroup.as_ref().ok());
            let source = Source::Chain(chain, &table.sets);
            Some(Part { place, source, holder, inside, netns, netns_cookie, prober })
        };
        holder.places().iter().filter_map(part).collect()
    }
}

/// Whether a guard is passed by in a way that programs stop.
fn is_passed_by(ways: &[Bypass]) -> bool {
    ways.iter().any(|way| !matches!(way, Bypass::Xdp { .. }))
}

/// The interfaces that lead out of the sandbox without an end on the host.
fn alone(survey: &Survey) -> Vec<Holder> {
    let alone = survey.unguarded().filter(|interface| !interface.leads_elsewhere());
    alone.map(|interface| Holder::Alone(interface.link.index)).collect()
}
