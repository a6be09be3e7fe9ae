//! The third layer: eBPF programs on both ends of an interface, where something takes packets past the host guard.
//!
//! tcx first at the host's end, both ways, and XDP in generic mode at the pod's: each stops what others are passed by with. They are
//! links of the host's, which nobody in the pod can take off, and are pinned, so that they outlive whoever made them. They follow
//! the guard, whose chains they are compiled from: attaching takes the kernel 16 ms, and the cut does not wait.
//!
//! A failure here fails nothing else. What is not in place is said when it is read back, and that is what the verdict goes by.

use crate::kernel::bpf::{BpfError, Hook, Link as BpfLink, LoadedProgram, Pins, refuses_tcx};
use crate::kernel::netlink::NetlinkError;
use crate::kernel::netns::Netns;
use crate::model::audit::Line;
use crate::model::names::ContainerId;
use crate::model::probes::Cgroup;
use crate::model::record::Ebpf;
use crate::model::verdict::{Bypass, ProgramDoubt, ProgramPlace, Programs};
use crate::rules::bpf::{Inexpressible, Map, Sender, Stand, program};
use crate::rules::branches::inlined;
use crate::rules::containment::guard_table;
use crate::rules::ruleset::{Chain, Family, Hook as Netfilter, Set};

use super::scan::{Scan, jumps_past_guard};
use super::survey::{End, Survey};
use super::{Sandbox, SandboxError, Side, Wanted, kubelet};

/// What the names of pins begin with, for each place.
const FROM_POD: &str = "from";
const TO_POD: &str = "to";
const IN_POD: &str = "in";
const OUT_OF_POD: &str = "out";

/// What programs are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Holder {
    /// Both ends of a pair; the index of the host's, by which it is known wherever the other goes.
    Pair(u32),
    /// An interface of the sandbox that has no end on the host, by its index there.
    Alone(u32),
}

/// What was wrong when programs were attached: where, and what.
#[derive(Debug, Default)]
pub(super) struct Refused(Vec<(Holder, ProgramDoubt)>);

/// Whether programs of a sandbox stand, as far as pins say.
pub(super) fn stand(host: &Side, container_id: &ContainerId) -> bool {
    pins_of(host, container_id).exist()
}

/// Takes the programs of a sandbox off; says whether there were any.
pub(super) fn detach(host: &Side, container_id: &ContainerId) -> bool {
    pins_of(host, container_id).remove_all().unwrap_or_else(|error| {
        let error = crate::model::audit::chain(&error);
        log::warn!("{}", Line::new("ebpf-not-removed").with("container", container_id).with("error", error));
        false
    })
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
        let Some(interface) = link.info().ok()?.interface else { return Some(true) };
        let hook = match name.split_once('-')?.0 {
            FROM_POD => Hook::TcxIngress,
            TO_POD => Hook::TcxEgress,
            _ => return Some(false),
        };
        Some(!link.is_first(hook, interface).ok()?)
    };
    let links = pins.links();
    links.is_empty() || links.iter().any(|name| is_displaced(name).unwrap_or(true))
}

/// One of the programs of an interface.
struct Part<'a> {
    place: ProgramPlace,
    /// The chain that it is compiled from.
    chain: Chain,
    sets: &'a [Set],
    /// What it is on.
    holder: Holder,
    /// The index of the pod's end, where that is in the sandbox.
    inside: Option<u32>,
    netns: &'a Netns,
    netns_cookie: u64,
    /// The cgroup that the policy's probes come from, where it names one that is known.
    prober: Option<&'a Cgroup>,
}

/// Why a part could not be brought to what is wanted.
enum Failure {
    Program(Inexpressible),
    Kernel(BpfError),
    /// The pod's end is not in the sandbox.
    Left,
    /// Nothing tells the node's own sockets.
    NoSender,
}

impl From<BpfError> for Failure {
    fn from(error: BpfError) -> Self {
        Self::Kernel(error)
    }
}

impl Failure {
    fn doubt(&self, place: ProgramPlace) -> ProgramDoubt {
        match self {
            Self::Kernel(error @ BpfError::Unsupported { .. }) => ProgramDoubt::Unsupported(place, error.to_string()),
            Self::Kernel(error) => ProgramDoubt::Failed(place, crate::model::audit::chain(error)),
            Self::Program(error) => ProgramDoubt::Failed(place, error.to_string()),
            Self::NoSender => ProgramDoubt::Unsupported(
                place,
                "it cannot say of which network namespace a socket is (Linux 6.15 can), and no kubelet is found whose cgroup would tell probes".to_owned(),
            ),
            Self::Left => ProgramDoubt::Failed(place, "the pod's end of it has left the sandbox".to_owned()),
        }
    }
}

impl Part<'_> {
    fn hook(&self) -> Hook {
        match self.place {
            ProgramPlace::FromPod => Hook::TcxIngress,
            ProgramPlace::ToPod | ProgramPlace::OutOfPod => Hook::TcxEgress,
            ProgramPlace::InPod => Hook::Xdp,
        }
    }

    fn pin(&self) -> String {
        pin(self.place, self.holder)
    }

    fn pin_of_map(&self, map: &Map) -> String {
        match map {
            Map::Drops => drops_pin(self.place, self.holder),
            Map::Set(set) => set_pin(self.holder, set),
        }
    }

    /// Loads what belongs there. The maps are those that are pinned; `makes_maps` says whether those that are not are made.
    fn load(&self, pins: &Pins, makes_maps: bool) -> Result<Option<LoadedProgram>, Failure> {
        if let Some(prober) = self.prober {
            return self.load_for(kubelet::in_cgroup(prober), pins, makes_maps);
        }
        match self.load_for(Sender::InNetns(self.netns_cookie), pins, makes_maps) {
            // By which helper that is told was added late.
            Err(Failure::Kernel(BpfError::Unsupported { .. })) if self.place == ProgramPlace::ToPod => {
                let sender = kubelet::sender().ok_or(Failure::NoSender)?;
                self.load_for(sender, pins, makes_maps)
            }
            loaded => loaded,
        }
    }

    fn load_for(&self, sender: Sender, pins: &Pins, makes_maps: bool) -> Result<Option<LoadedProgram>, Failure> {
        let stand = if self.place == ProgramPlace::InPod { Stand::Xdp } else { Stand::Tcx };
        let program = program(&self.chain, self.sets, stand, sender).map_err(Failure::Program)?;
        Ok(pins.load(&program, |map| self.pin_of_map(map), makes_maps)?)
    }

    /// The link, where it still hangs where it was put. One that was put on the pod's end stays with it wherever it goes.
    fn standing(&self, pins: &Pins) -> Result<Option<BpfLink>, BpfError> {
        let Some(link) = pins.link(&self.pin())? else { return Ok(None) };
        let hangs = match (self.place, self.holder, link.info()?.interface) {
            (_, _, None) => false,
            (ProgramPlace::InPod, Holder::Pair(_), Some(_)) => true,
            (_, Holder::Pair(index) | Holder::Alone(index), Some(on)) => on == index,
        };
        Ok(hangs.then_some(link))
    }

    /// Whether no other program takes packets before it. There is only one at XDP.
    fn is_first(&self, link: &BpfLink) -> Result<bool, Failure> {
        let asked = match (self.place, self.holder) {
            (ProgramPlace::InPod, _) => return Ok(true),
            (_, Holder::Pair(index)) => link.is_first(self.hook(), index),
            (_, Holder::Alone(index)) => {
                self.netns.run(|| link.is_first(self.hook(), index)).map_err(|_| Failure::Left)?
            }
        };
        Ok(asked?)
    }

    /// What is wrong with it.
    fn doubt(&self, pins: &Pins) -> Result<Option<ProgramDoubt>, Failure> {
        let Some(link) = self.standing(pins)? else {
            let without_tcx = if self.hook() == Hook::Xdp { None } else { without_tcx(self.place) };
            return Ok(Some(without_tcx.unwrap_or(ProgramDoubt::Missing(self.place))));
        };
        let is_it = match self.load(pins, false)? {
            Some(wanted) => wanted.identity()? == link.identity()?,
            None => false,
        };
        if !is_it {
            return Ok(Some(ProgramDoubt::Altered(self.place)));
        }
        Ok((!self.is_first(&link)?).then_some(ProgramDoubt::NotFirst(self.place)))
    }

    /// Brings it to what is wanted; says whether anything was changed.
    fn attach(&self, pins: &Pins) -> Result<bool, Failure> {
        let Some(wanted) = self.load(pins, true)? else { return Ok(false) };
        if let Some(link) = self.standing(pins)?
            && self.is_first(&link)?
        {
            let differs = wanted.identity()? != link.identity()?;
            if differs {
                link.update(&wanted)?;
            }
            return Ok(differs);
        }
        let link = match (self.place, self.holder) {
            (ProgramPlace::FromPod | ProgramPlace::ToPod, Holder::Pair(index)) => {
                BpfLink::create(&wanted, self.hook(), index)?
            }
            _ => {
                let index = self.inside.ok_or(Failure::Left)?;
                let made = self.netns.run(|| BpfLink::create(&wanted, self.hook(), index));
                made.map_err(|_| Failure::Left)??
            }
        };
        pins.pin_link(&self.pin(), &link)?;
        Ok(true)
    }
}

/// That this kernel lets no program hang there, where it does not.
fn without_tcx(place: ProgramPlace) -> Option<ProgramDoubt> {
    let why = |errno| format!("it lets no program hang on an interface by tcx (Linux 6.6 does): {errno}");
    refuses_tcx().map(|errno| ProgramDoubt::Unsupported(place, why(errno)))
}

fn pin(place: ProgramPlace, holder: Holder) -> String {
    let place = match place {
        ProgramPlace::FromPod => FROM_POD,
        ProgramPlace::ToPod => TO_POD,
        ProgramPlace::InPod => IN_POD,
        ProgramPlace::OutOfPod => OUT_OF_POD,
    };
    match holder {
        Holder::Pair(end) => format!("{place}-{end}"),
        Holder::Alone(index) => format!("{place}-alone-{index}"),
    }
}

fn drops_pin(place: ProgramPlace, holder: Holder) -> String {
    format!("drops-{}", pin(place, holder))
}

/// The tables that programs are compiled from have sets of the same names, the guard's and those of the pod's side.
fn set_pin(holder: Holder, set: &Set) -> String {
    match holder {
        Holder::Pair(_) => format!("set-{}", set.name),
        Holder::Alone(_) => format!("set-alone-{}", set.name),
    }
}

impl Holder {
    /// Where its programs are, in the order in which they are attached: what opens flows comes first.
    fn places(self) -> &'static [ProgramPlace] {
        match self {
            Self::Pair(_) => &[ProgramPlace::ToPod, ProgramPlace::FromPod, ProgramPlace::InPod],
            Self::Alone(_) => &[ProgramPlace::InPod, ProgramPlace::OutOfPod],
        }
    }
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
        let pins = self.pins();
        let (mut changed, mut refused) = (false, Vec::new());
        let mut holders = Vec::new();
        for end in &wanted.survey.ends {
            let passed_by = self.passed_by(end, scan)?;
            if wanted.guard.is_some() && self.wants_programs(end, &passed_by) {
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
                match part.attach(&pins) {
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
        wanted.refused = Refused(refused);
        Ok(changed)
    }

    /// What takes packets past the host guard of an end, and the programs there.
    pub(super) fn read_programs(
        &mut self,
        wanted: &Wanted,
        end: &End,
        scan: Scan<'_>,
    ) -> Result<(Vec<Bypass>, Programs), SandboxError> {
        let passed_by = self.passed_by(end, scan)?;
        if self.records.ebpf() == Ebpf::Off || !self.wants_programs(end, &passed_by) {
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
            wanted.refused.0.iter().filter(|(on, _)| *on == holder).map(|(_, doubt)| doubt.clone()).collect();
        if !refused.is_empty() {
            return refused;
        }
        let pins = self.pins();
        let is_there = |place: &ProgramPlace| !pins.link(&pin(*place, holder)).is_ok_and(|link| link.is_none());
        if !holder.places().iter().any(is_there) {
            return vec![without_tcx(holder.places()[0]).unwrap_or(ProgramDoubt::NoneAttached)];
        }
        let doubt = |part: Part<'_>| part.doubt(&pins).unwrap_or_else(|failure| Some(failure.doubt(part.place)));
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
    fn wants_programs(&self, end: &End, passed_by: &[Bypass]) -> bool {
        let is_passed_by = passed_by.iter().any(|way| !matches!(way, Bypass::Xdp { .. }));
        let had_programs = || {
            self.pins().link(&pin(ProgramPlace::ToPod, Holder::Pair(end.link.index))).is_ok_and(|link| link.is_some())
        };
        self.records.ebpf() == Ebpf::Always || is_passed_by || had_programs()
    }

    fn passed_by(&mut self, end: &End, scan: Scan<'_>) -> Result<Vec<Bypass>, NetlinkError> {
        let ours = self.programs_of_ours(Holder::Pair(end.link.index));
        jumps_past_guard(self.host, &guard_table(self.records.container_id()), &end.link, &ours, scan)
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
            Some(Part { place, chain, sets: &table.sets, holder, inside, netns, netns_cookie, prober })
        };
        holder.places().iter().filter_map(part).collect()
    }
}

/// The interfaces that lead out of the sandbox without an end on the host.
fn alone(survey: &Survey) -> Vec<Holder> {
    let alone = survey.unguarded().filter(|interface| !interface.leads_elsewhere());
    alone.map(|interface| Holder::Alone(interface.link.index)).collect()
}
