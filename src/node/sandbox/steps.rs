//! The steps in which a sandbox comes to what is wanted: its guard among the node's rules, its own rules, then all of it read back.
//!
//! The node's rules are all in one netns. Each transaction there goes through every table that the netns has, and waits until
//! what an earlier one deleted is freed, a grace period of RCU. So what many sandboxes want there is made in one: each is
//! [`Begun`], the [`Joint`] changes are made, and each is finished. Where the kernel refuses them, nothing of them was done,
//! and each sandbox is applied by itself, so that one whose guard cannot be loaded takes none of the others along.

use nix::errno::Errno;

use crate::kernel::netlink::NetlinkError;
use crate::kernel::netns::Netns;
use crate::model::audit::{Line, chain};
use crate::model::mark::Desired;
use crate::model::policy::Policy;
use crate::model::record::HostGuard;
use crate::model::records::SandboxRecords;
use crate::rules::containment::{EgressHook, guard_table};
use crate::rules::ruleset::Family;

use super::node_look::NodeLook;
use super::transition::{Changes, Transition, plan, reconcile};
use super::{Applied, Before, Sandbox, SandboxError, Scan, Side, Wanted, senders};

/// What was done on either side.
#[derive(Debug, Default)]
pub(super) struct Done {
    pub(super) pod: Transition,
    pub(super) guard: Transition,
}

/// What is to be changed of the node's rules for many sandboxes.
#[derive(Debug, Default)]
pub struct Joint {
    changes: Changes,
    /// One for all of them.
    look: NodeLook,
    lifts_guards: bool,
}

impl Joint {
    /// Has the kernel change them.
    ///
    /// # Errors
    /// [`NetlinkError`]; then each sandbox is to be applied by itself.
    pub fn make(&self, host: &mut Side) -> Result<(), NetlinkError> {
        self.changes.make(&mut host.nft)?;
        if self.lifts_guards
            && let Err(error) = senders::remove_unused(host)
        {
            // They only say whose a packet is, and nobody asks any more.
            log::warn!("{}", Line::new("senders-left").with("error", chain(&error)));
        }
        Ok(())
    }
}

/// A sandbox for which the node's rules are yet to be changed, with those of others.
#[derive(Debug)]
pub struct Begun {
    netns: Netns,
    pod: Side,
    rest: Rest,
}

/// What is left to be done of it.
#[derive(Debug)]
pub struct Rest {
    before: Before,
    was_isolated: bool,
    wanted: Wanted,
    done: Done,
}

impl Begun {
    /// Goes on with it; `records` are its own.
    #[must_use]
    pub fn resume<'a>(self, host: &'a mut Side, records: &'a SandboxRecords) -> (Sandbox<'a>, Rest) {
        (Sandbox::of_sides(host, self.pod, self.netns, records), self.rest)
    }
}

impl Sandbox<'_> {
    /// Does what comes before the node's rules are changed, and adds to `joint` what is to be changed of them. `None` where it has
    /// to be cut off first.
    ///
    /// # Errors
    /// [`SandboxError`]: what is wrong, and whether it can be helped, is found by [`Sandbox::apply`].
    pub fn begin(
        mut self,
        desired: &Desired,
        before: Before,
        joint: &mut Joint,
    ) -> Result<Option<Begun>, SandboxError> {
        let was_isolated = match before {
            Before::Cut => false,
            Before::Unknown => self.is_isolated_in_part()?,
        };
        let (wanted, done) = match desired {
            Desired::Isolated { .. } if before == Before::Unknown && !was_isolated => return Ok(None),
            Desired::Isolated { policy, .. } => {
                self.look = std::mem::take(&mut joint.look);
                let begun = self.begin_isolated(desired, policy, EgressHook::Netdev, &mut joint.changes);
                joint.look = std::mem::take(&mut self.look);
                begun?
            }
            Desired::Released => {
                let wanted = self.wanted_released(EgressHook::Netdev)?;
                let mut done = Done { pod: reconcile(&mut self.pod.nft, &wanted.pod)?, guard: Transition::default() };
                done.guard.changed = self.disarm();
                let guard = guard_table(self.records.container_id());
                if was_isolated && self.host.nft.has_table(Family::Netdev, &guard)? {
                    joint.changes.delete_table(Family::Netdev, &guard);
                    (joint.lifts_guards, done.guard.changed) = (true, true);
                }
                (wanted, done)
            }
        };
        let rest = Rest { before, was_isolated, wanted, done };
        Ok(Some(Begun { netns: self.netns, pod: self.pod, rest }))
    }

    /// Does what comes after that, and reads all of it back.
    ///
    /// # Errors
    /// [`SandboxError`].
    pub fn finish(&mut self, rest: Rest, desired: &Desired, scan: Scan<'_>) -> Result<Applied, SandboxError> {
        let Rest { before, was_isolated, wanted, mut done } = rest;
        if desired.is_isolated() {
            self.finish_isolated(&wanted, &mut done)?;
        }
        self.applied(desired, wanted, done, before, was_isolated, scan)
    }

    /// All of it for one sandbox alone, but for reading it back.
    pub(super) fn apply_with(&mut self, desired: &Desired, egress: EgressHook) -> Result<(Wanted, Done), SandboxError> {
        let Desired::Isolated { policy, .. } = desired else {
            let wanted = self.wanted_released(egress)?;
            let mut done = Done { pod: reconcile(&mut self.pod.nft, &wanted.pod)?, guard: Transition::default() };
            done.guard.changed = self.lift_guard()?;
            return Ok((wanted, done));
        };
        let mut changes = Changes::default();
        let (wanted, mut done) = self.begin_isolated(desired, policy, egress, &mut changes)?;
        changes.make(&mut self.host.nft)?;
        self.finish_isolated(&wanted, &mut done)?;
        Ok((wanted, done))
    }

    fn begin_isolated(
        &mut self,
        desired: &Desired,
        policy: &Policy,
        egress: EgressHook,
        changes: &mut Changes,
    ) -> Result<(Wanted, Done), SandboxError> {
        if self.host_guard() != HostGuard::Off && egress == EgressHook::Netdev {
            senders::load(self.host, policy);
        }
        let mut wanted = self.wanted(desired, egress)?;
        self.require_peers(&wanted)?;
        let mut done = Done::default();
        if let Some(guard) = &wanted.guard {
            let compared = match wanted.compared.take() {
                Some(compared) => compared,
                None => self.host.nft.compare(guard)?,
            };
            done.guard = plan(changes, &mut self.host.nft, std::slice::from_ref(guard), vec![compared])?;
        }
        Ok((wanted, done))
    }

    fn finish_isolated(&mut self, wanted: &Wanted, done: &mut Done) -> Result<(), SandboxError> {
        match reconcile(&mut self.pod.nft, &wanted.pod) {
            Ok(transition) => done.pod = transition,
            // Perhaps for what only reports need.
            Err(error)
                if wanted.guard.is_none()
                    || error.errno() == Some(Errno::EOPNOTSUPP)
                    || (self.reports_drops() && matches!(error, NetlinkError::Refused { .. })) =>
            {
                return Err(error.into());
            }
            // Root in the pod can make any change of its rules fail. The guard stands, and the verdict says so.
            Err(error) => log::warn!(
                "{}",
                Line::new("pod-side-failed").with("container", self.container_id()).with("error", error)
            ),
        }
        // Where no end was found a guard that stands stays: it may be on one that the survey does not see.
        if self.host_guard() == HostGuard::Off {
            done.guard.changed = self.remove_guard()?;
        }
        Ok(())
    }
}
