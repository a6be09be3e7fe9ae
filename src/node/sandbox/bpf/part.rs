//! One of the programs of an interface: what belongs there, and how it is found.

use std::collections::BTreeMap;

use crate::kernel::bpf::{
    BpfError, Hook, Identity, Link as BpfLink, LinkInfo, LoadedProgram, Missing, Pins, refuses_tcx,
};
use crate::kernel::netns::Netns;
use crate::model::cgroup::Cgroup;
use crate::model::verdict::{ProgramDoubt, ProgramPlace};
use crate::rules::bpf::{Inexpressible, Map, Sender, Stand, program, waiting};
use crate::rules::ruleset::{Chain, Set};

use super::super::kubelet;
use super::Holder;

/// What the names of pins begin with, for each place.
pub(super) const FROM_POD: &str = "from";
pub(super) const TO_POD: &str = "to";
const IN_POD: &str = "in";
/// The map by which the programs that wait on the ends of a sandbox are armed.
pub(super) const ARMED: &str = "armed";
const OUT_OF_POD: &str = "out";

/// What the kernel has made of programs in this run, by where they belong: a look at what hangs there need not load them again.
pub(super) type Loaded = BTreeMap<(ProgramPlace, Holder), Identity>;

/// One of the programs of an interface.
pub(super) struct Part<'a> {
    pub(super) place: ProgramPlace,
    pub(super) source: Source<'a>,
    /// What it is on.
    pub(super) holder: Holder,
    /// The index of the pod's end, where that is in the sandbox.
    pub(super) inside: Option<u32>,
    pub(super) netns: &'a Netns,
    pub(super) netns_cookie: u64,
    /// The cgroup that the policy's probes come from, where it names one that is known.
    pub(super) prober: Option<&'a Cgroup>,
}

/// What a program is made of.
#[derive(Debug, Clone)]
pub(super) enum Source<'a> {
    /// A chain, and the sets of its table.
    Chain(Chain, &'a [Set]),
    /// Nothing: it waits to be armed.
    Waiting,
}

/// Why a part could not be brought to what is wanted.
pub(super) enum Failure {
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
    pub(super) fn doubt(&self, place: ProgramPlace) -> ProgramDoubt {
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

    fn key(&self) -> (ProgramPlace, Holder) {
        (self.place, self.holder)
    }

    pub(super) fn pin(&self) -> String {
        pin(self.place, self.holder)
    }

    fn pin_of_map(&self, map: &Map) -> String {
        match map {
            Map::Armed => ARMED.to_owned(),
            Map::Drops => drops_pin(self.place, self.holder),
            Map::Set(set) => set_pin(self.holder, set),
        }
    }

    /// Loads what belongs there. The maps are those that are pinned; `None` where one is missing that is not to be made.
    fn load(&self, pins: &Pins, missing: Missing) -> Result<Option<LoadedProgram>, Failure> {
        if let Some(prober) = self.prober {
            return self.load_for(kubelet::in_cgroup(prober), pins, missing);
        }
        match self.load_for(Sender::InNetns(self.netns_cookie), pins, missing) {
            // By which helper that is told was added late.
            Err(Failure::Kernel(BpfError::Unsupported { .. })) if self.place == ProgramPlace::ToPod => {
                let sender = kubelet::sender().ok_or(Failure::NoSender)?;
                self.load_for(sender, pins, missing)
            }
            loaded => loaded,
        }
    }

    fn load_for(&self, sender: Sender, pins: &Pins, missing: Missing) -> Result<Option<LoadedProgram>, Failure> {
        let stand = if self.place == ProgramPlace::InPod { Stand::Xdp } else { Stand::Tcx };
        let program = match &self.source {
            Source::Chain(chain, sets) => program(chain, sets, stand, sender).map_err(Failure::Program)?,
            Source::Waiting => waiting(),
        };
        Ok(pins.load(&program, |map| self.pin_of_map(map), missing)?)
    }

    /// The link, where it still hangs where it was put. One that was put on the pod's end stays with it wherever it goes.
    pub(super) fn standing(&self, pins: &Pins) -> Result<Option<(BpfLink, LinkInfo)>, BpfError> {
        let Some(link) = pins.link(&self.pin())? else { return Ok(None) };
        let info = link.info()?;
        let hangs = match (self.place, self.holder, info.interface) {
            (_, _, None) => false,
            (ProgramPlace::InPod, Holder::Pair(_), Some(_)) => true,
            (_, Holder::Pair(index) | Holder::Alone(index), Some(on)) => on == index,
        };
        Ok(hangs.then_some((link, info)))
    }

    /// Whether no other program takes packets before it. There is only one at XDP.
    fn is_first(&self, link: &LinkInfo) -> Result<bool, Failure> {
        let asked = match (self.place, self.holder) {
            (ProgramPlace::InPod, _) => return Ok(true),
            (_, Holder::Pair(index)) => link.is_first(self.hook(), index),
            (_, Holder::Alone(index)) => {
                self.netns.run(|| link.is_first(self.hook(), index)).map_err(|_| Failure::Left)?
            }
        };
        Ok(asked?)
    }

    /// Why it could not be attached, where it could not.
    pub(super) fn obstacle(&self, pins: &Pins) -> Option<ProgramDoubt> {
        self.load(pins, Missing::Tried).err().map(|failure| failure.doubt(self.place))
    }

    /// What is wrong with it. What hangs there is read from the kernel, now; what should is known where it was just loaded.
    pub(super) fn doubt(&self, pins: &Pins, loaded: &Loaded) -> Result<Option<ProgramDoubt>, Failure> {
        let Some((_, link)) = self.standing(pins)? else {
            let without_tcx = if self.hook() == Hook::Xdp { None } else { without_tcx(self.place) };
            return Ok(Some(without_tcx.unwrap_or(ProgramDoubt::Missing(self.place))));
        };
        let is_it = match loaded.get(&self.key()) {
            Some(wanted) => *wanted == link.identity()?,
            None => match self.load(pins, Missing::Absent)? {
                Some(wanted) => wanted.identity()? == link.identity()?,
                None => false,
            },
        };
        if !is_it {
            return Ok(Some(ProgramDoubt::Altered(self.place)));
        }
        Ok((!self.is_first(&link)?).then_some(ProgramDoubt::NotFirst(self.place)))
    }

    /// Brings it to what is wanted; says whether anything was changed.
    pub(super) fn attach(&self, pins: &Pins, loaded: &mut Loaded) -> Result<bool, Failure> {
        let Some(wanted) = self.load(pins, Missing::Made)? else { return Ok(false) };
        let identity = wanted.identity()?;
        loaded.insert(self.key(), identity.clone());
        if let Some((link, info)) = self.standing(pins)?
            && self.is_first(&info)?
        {
            let differs = identity != info.identity()?;
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
pub(super) fn without_tcx(place: ProgramPlace) -> Option<ProgramDoubt> {
    let why = |errno| format!("it lets no program hang on an interface by tcx (Linux 6.6 does): {errno}");
    refuses_tcx().map(|errno| ProgramDoubt::Unsupported(place, why(errno)))
}

pub(super) fn pin(place: ProgramPlace, holder: Holder) -> String {
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

pub(super) fn drops_pin(place: ProgramPlace, holder: Holder) -> String {
    format!("drops-{}", pin(place, holder))
}

/// The tables that programs are compiled from have sets of the same names, the guard's and those of the pod's side.
pub(super) fn set_pin(holder: Holder, set: &Set) -> String {
    match holder {
        Holder::Pair(_) => format!("set-{}", set.name),
        Holder::Alone(_) => format!("set-alone-{}", set.name),
    }
}

impl Holder {
    /// Where its programs are, in the order in which they are attached: what opens flows comes first.
    pub(super) fn places(self) -> &'static [ProgramPlace] {
        match self {
            Self::Pair(_) => &[ProgramPlace::ToPod, ProgramPlace::FromPod, ProgramPlace::InPod],
            Self::Alone(_) => &[ProgramPlace::InPod, ProgramPlace::OutOfPod],
        }
    }
}
