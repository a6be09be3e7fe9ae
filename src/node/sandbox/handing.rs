//! That packets which are dropped are handed over to be looked at: where that is wanted and this kernel can, and never at the
//! cost of isolating.

use crate::kernel::netlink::NetlinkError;
use crate::kernel::nflog;
use crate::model::mark::Desired;
use crate::rules::containment::EgressHook;

use super::{Done, Sandbox, SandboxError, Wanted, is_unsupported};

impl Sandbox<'_> {
    /// Isolating does not hang on whether the kernel hands packets over.
    pub(super) fn apply_with_reports_or_without(
        &mut self,
        desired: &Desired,
        egress: EgressHook,
    ) -> Result<(Wanted, Done), SandboxError> {
        match self.apply_with(desired, egress) {
            Err(error @ SandboxError::Kernel(NetlinkError::Refused { .. }))
                if !is_unsupported(&error) && self.reports_drops() =>
            {
                self.refused_reports = true;
                self.apply_with(desired, egress)
            }
            applied => applied,
        }
    }

    /// Whether packets that are dropped are handed over: where that is wanted, and this kernel can. Nothing is loaded for it
    /// here, and nothing that isolates depends on it.
    pub(super) fn reports_drops(&self) -> bool {
        self.records.is_captured() && !self.refused_reports && nflog::is_loaded()
    }
}
