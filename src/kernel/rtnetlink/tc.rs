//! What tc has on an interface that takes packets elsewhere.

use std::collections::BTreeSet;

use nix::libc;

use super::Links;
use crate::kernel::netlink::{NetlinkError, attribute, attributes, ne32, text};

/// `struct tcmsg`.
const FILTER_HEADER: usize = 20;
/// Of `linux/pkt_cls.h` and `linux/tc_act/tc_mirred.h`, which libc lacks.
const TCA_ACT_KIND: u16 = 1;
const TCA_ACT_OPTIONS: u16 = 2;
const TCA_MIRRED_PARMS: u16 = 2;

/// Something that takes packets past the netfilter hooks of an interface.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Jump {
    /// A tc filter or tcx program that is BPF.
    Bpf,
    /// A tc filter that redirects or mirrors to the interface of that index.
    Redirect(u32),
}

impl Links {
    /// The tc filters on an interface that take packets elsewhere. Its XDP program is said by [`super::Link::has_xdp`].
    pub fn jumps(&mut self, index: u32) -> Result<BTreeSet<Jump>, NetlinkError> {
        /// `TC_H_MAKE(TC_H_CLSACT, …)`: ingress (also that of the older ingress qdisc), egress.
        const PARENTS: [u32; 3] = [0xffff_fff2, 0xffff_fff3, 0xffff_0000];
        let mut jumps = BTreeSet::new();
        for parent in PARENTS {
            let mut body = vec![0; 4];
            for word in [index, 0, parent, 0] {
                body.extend_from_slice(&word.to_ne_bytes());
            }
            let filters = self.socket.dump_all_seen("list the tc filters", libc::RTM_GETTFILTER, &body, |payload| {
                let filter = payload.get(FILTER_HEADER..)?;
                let mut found = BTreeSet::new();
                if attribute(filter, libc::TCA_KIND).map(text) == Some(b"bpf") {
                    found.insert(Jump::Bpf);
                }
                find_actions(filter, 0, &mut found);
                Some(found)
            });
            match filters {
                Ok(found) => jumps.extend(found.into_iter().flatten()),
                // No qdisc that could hold one, or no support for any.
                Err(NetlinkError::Refused { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(jumps)
    }

    /// The interfaces that have a qdisc which can hold filters on the way in or out.
    pub fn with_filters(&mut self) -> Result<BTreeSet<u32>, NetlinkError> {
        let found = self.socket.dump_all_seen("list the qdiscs", libc::RTM_GETQDISC, &[0; FILTER_HEADER], |payload| {
            let kind = text(attribute(payload.get(FILTER_HEADER..)?, libc::TCA_KIND)?);
            (kind == b"clsact" || kind == b"ingress").then(|| payload.get(4..8).and_then(ne32)).flatten()
        });
        match found {
            Err(NetlinkError::Refused { .. }) => Ok(BTreeSet::new()),
            found => Ok(found?.into_iter().collect()),
        }
    }
}

/// Finds the actions of a filter that take packets elsewhere. Each kind of filter keeps its actions under another
/// attribute, so all of them are looked through.
pub(super) fn find_actions(bytes: &[u8], depth: usize, found: &mut BTreeSet<Jump>) {
    const DEPTH_MAX: usize = 5;
    for (_, value) in attributes(bytes) {
        match attribute(value, TCA_ACT_KIND).map(text) {
            Some(b"bpf") => drop(found.insert(Jump::Bpf)),
            Some(b"mirred") => {
                // struct tc_mirred: five words of tc_gen, what to do, the interface.
                let target = attribute(value, TCA_ACT_OPTIONS)
                    .and_then(|options| attribute(options, TCA_MIRRED_PARMS))
                    .and_then(|parameters| ne32(parameters.get(24..28)?));
                found.insert(Jump::Redirect(target.unwrap_or(0)));
            }
            _ if depth < DEPTH_MAX => find_actions(value, depth + 1, found),
            _ => {}
        }
    }
}
