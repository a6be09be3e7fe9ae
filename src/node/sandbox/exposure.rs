//! How each interface that leads out of a sandbox was found: what the verdict is computed from.

use crate::kernel::rtnetlink::Link;
use crate::model::difference::Difference;
use crate::model::names::IfName;
use crate::model::record::HostGuard;
use crate::model::verdict::{Exposure, Guard, NoGuard, PodSide, Programs};
use crate::rules::containment::EgressHook;

use super::bpf::Holder;
use super::report::ProgramsOn;
use super::scan::{Scan, jumps_past_pod_side};
use super::survey::{End, Strayed, Survey, Surveyed};
use super::{Sandbox, SandboxError, Wanted};

impl Sandbox<'_> {
    pub(super) fn exposures(
        &mut self,
        wanted: &Wanted,
        guard_differences: &[Difference],
        scan: Scan<'_>,
    ) -> Result<Vec<Exposure>, SandboxError> {
        let mut exposures = Vec::new();
        let off = || Guard::Missing(NoGuard::Off);
        let is_off = self.host_guard() == HostGuard::Off;
        for end @ End { link, guarded } in &wanted.survey.ends {
            let (guard, programs) = if is_off {
                (off(), Programs::NotWanted)
            } else if !guard_differences.is_empty() {
                let differences = guard_differences.to_vec();
                (Guard::Missing(NoGuard::NotInPlace { differences }), Programs::NotWanted)
            } else {
                let (passed_by, programs) = self.read_programs(wanted, end, scan)?;
                (Guard::Holds { passed_by, both_ways: wanted.egress == EgressHook::Netdev }, programs)
            };
            let inside = wanted.survey.interfaces.iter().find(|interface| interface.host_end == Some(link.index));
            let exposure = self.exposure(
                &guarded.name,
                guard,
                inside.map(|interface| &interface.link),
                Some(Holder::Pair(link.index)),
            )?;
            exposures.push(Exposure { programs, ..exposure });
        }
        for interface in wanted.survey.unguarded() {
            let guard = match interface {
                interface if interface.leads_elsewhere() => Guard::Elsewhere,
                _ if is_off => off(),
                interface if wanted.survey.lost.iter().any(|(name, _)| *name == interface.link.name) => {
                    Guard::Missing(NoGuard::EndGone)
                }
                interface => {
                    Guard::Missing(NoGuard::NoPeer { kind: String::from_utf8_lossy(&interface.link.kind).into_owned() })
                }
            };
            let programs = match guard {
                Guard::Elsewhere => Programs::NotWanted,
                _ => self.read_programs_alone(wanted, interface.link.index),
            };
            let holder = Some(Holder::Alone(interface.link.index));
            let exposure = self.exposure(&interface.link.name, guard, Some(&interface.link), holder)?;
            exposures.push(Exposure { programs, ..exposure });
        }
        for name in &wanted.survey.missing {
            exposures.push(self.exposure(name, Guard::Missing(NoGuard::LeftWithoutPeer), None, None)?);
        }
        for Strayed { interface, now, .. } in &wanted.survey.strayed {
            exposures.push(self.exposure(interface, Guard::IndexTaken { device: now.to_string() }, None, None)?);
        }
        // One of that name in the sandbox speaks for it where it leads out and was said above to have no guard, or has one and
        // the recorded end is no more. By any other nothing leaves: root in the pod may have given it the name.
        let is_said = |(name, instead): &&(IfName, Option<IfName>)| {
            let speaks = |inside: &Surveyed| {
                inside.link.name == *name
                    && inside.link.leads_outside()
                    && (inside.host_end.is_none() || instead.is_none())
            };
            wanted.survey.interfaces.iter().any(speaks)
        };
        for (name, instead) in wanted.survey.lost.iter().filter(|lost| !is_said(lost)) {
            let guard = match instead {
                None => Guard::PairGone,
                Some(device) => Guard::IndexTaken { device: device.to_string() },
            };
            exposures.push(self.exposure(name, guard, None, None)?);
        }
        Ok(exposures)
    }

    /// `inside` is the sandbox's end, where it is still there; `holder` what its programs are on.
    fn exposure(
        &mut self,
        interface: &IfName,
        guard: Guard,
        inside: Option<&Link>,
        holder: Option<Holder>,
    ) -> Result<Exposure, SandboxError> {
        let pod_side = match (&guard, inside) {
            (_, None) => PodSide::Left,
            // Not asked where nothing depends on it.
            (Guard::Holds { passed_by, both_ways: true }, _) if passed_by.is_empty() => PodSide::InTheWay,
            (_, Some(link)) => {
                let xdp_is_ours = holder.is_some_and(|holder| self.has_xdp_of_ours(holder));
                let ours = holder.map(|holder| self.programs_of_ours(holder)).unwrap_or_default();
                match jumps_past_pod_side(&mut self.pod.links, &self.netns, link, xdp_is_ours, &ours)? {
                    true => PodSide::PassedBy,
                    false => PodSide::InTheWay,
                }
            }
        };
        Ok(Exposure { interface: interface.to_string(), guard, pod_side, programs: Programs::NotWanted })
    }
}

/// Where programs are wanted; the exposures of the ends come first, and then those of interfaces without one, in their order.
pub(super) fn programs_on(survey: &Survey, exposures: &[Exposure]) -> Vec<ProgramsOn> {
    let pairs = survey.ends.iter().map(|end| Holder::Pair(end.link.index));
    let holders = pairs.chain(survey.unguarded().map(|interface| Holder::Alone(interface.link.index)));
    let wanted = holders.zip(exposures).filter(|(_, exposure)| exposure.programs != Programs::NotWanted);
    wanted
        .map(|(holder, exposure)| ProgramsOn {
            interface: exposure.interface.clone(),
            holder,
            hold: matches!(exposure.programs, Programs::Hold { .. }),
        })
        .collect()
}
