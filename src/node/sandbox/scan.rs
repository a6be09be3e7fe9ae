//! What takes packets past the host guard, or past the rules in the pod: on a sandbox's own interfaces, and on all of the node's.

use std::collections::BTreeSet;
use std::sync::{Mutex, OnceLock};

use crate::kernel::bpf::{Pins, may_redirect_to_peers, none_for_interfaces_but, programs_by_tcx_on, programs_on};
use crate::kernel::netlink::NetlinkError;
use crate::kernel::netns::Netns;
use crate::kernel::nft::ChainInFront;
use crate::kernel::rtnetlink::{Jump, Link, Links};
use crate::model::names::IfName;
use crate::model::verdict::Bypass;
use crate::node::workers::hold;

use super::{SandboxError, Side};

/// How far to look for what takes packets past the host guard.
#[derive(Debug, Clone, Copy)]
pub enum Scan<'a> {
    /// On the sandbox's own interfaces and their host ends.
    Sandbox,
    /// On every interface of the node that has filters, too: one could redirect to a host end.
    Node(&'a NodeScan),
}

/// What is on all of the node's interfaces. It is looked for when it is first asked for, and then kept: once for a
/// command, however many sandboxes that is about.
#[derive(Debug, Default)]
pub struct NodeScan {
    /// Held by whoever looks.
    looking: Mutex<()>,
    found: OnceLock<OnNode>,
    may_redirect_to_peers: OnceLock<bool>,
}

#[derive(Debug)]
struct OnNode {
    /// From the interface of one index to that of another.
    redirects: Vec<(u32, u32)>,
    /// Interfaces with BPF programs of others.
    programs: Vec<(u32, IfName)>,
    /// Their IDs, where all of them are known.
    attached: Option<Vec<u32>>,
    chains_in_front: Vec<ChainInFront>,
}

impl NodeScan {
    /// Looks now, so that whoever asks later need not: for a thread beside whatever comes before that. What cannot be read is
    /// read again, and said, by who asks.
    pub fn look(&self) {
        if let Ok(mut host) = Side::own() {
            let _ = self.of(&mut host);
        }
    }

    fn of(&self, host: &mut Side) -> Result<&OnNode, NetlinkError> {
        let _one_at_a_time = hold(&self.looking);
        if let Some(found) = self.found.get() {
            return Ok(found);
        }
        let (mut redirects, mut with_bpf) = (Vec::new(), BTreeSet::new());
        for from in host.links.with_filters()? {
            let jumps = host.links.jumps(from)?;
            with_bpf.extend(jumps.contains(&Jump::Bpf).then_some(from));
            redirects.extend(jumps.into_iter().filter_map(|jump| match jump {
                Jump::Redirect(to) => Some((from, to)),
                Jump::Bpf => None,
            }));
        }
        // Before and after: others may be attaching and taking off meanwhile.
        let mut ours = Pins::programs(host.links.netns_cookie());
        let (mut programs, mut attached) = (Vec::new(), with_bpf.is_empty().then(Vec::new));
        // To ask each of a thousand interfaces takes 20 ms.
        let links = if none_for_interfaces_but(&ours) { Vec::new() } else { host.links.all()? };
        let on_links = |Link { index, name, kind, has_xdp, .. }: Link| {
            let found = if kind == b"netkit" { programs_on(index) } else { programs_by_tcx_on(index) };
            (index, name, has_xdp, found.into_iter().map(|found| found.program).collect::<Vec<_>>())
        };
        let found: Vec<_> = links.into_iter().map(on_links).collect();
        ours.append(&mut Pins::programs(host.links.netns_cookie()));
        for (index, name, has_xdp, mut others) in found {
            others.retain(|program| !ours.contains(program));
            if has_xdp || with_bpf.contains(&index) || !others.is_empty() {
                programs.push((index, name));
            }
            attached.iter_mut().for_each(|attached| attached.append(&mut others));
        }
        let found = OnNode { redirects, programs, attached, chains_in_front: host.nft.chains_in_front()? };
        Ok(self.found.get_or_init(|| found))
    }
}

impl Scan<'_> {
    /// Waits for a look that is under way: what is attached from now on it would take for somebody else's.
    pub(super) fn finish(self, host: &mut Side) -> Result<(), NetlinkError> {
        if let Self::Node(node) = self {
            node.of(host)?;
        }
        Ok(())
    }

    /// Whether any program on the node's interfaces may put frames straight into a pod.
    pub(super) fn may_redirect_to_peers(self, host: &mut Side) -> Result<bool, NetlinkError> {
        let Self::Node(node) = self else { return Ok(may_redirect_to_peers(None)) };
        let attached = node.of(host)?.attached.as_deref();
        Ok(*node.may_redirect_to_peers.get_or_init(|| may_redirect_to_peers(attached)))
    }
}

/// What takes packets past the hooks on the host's end of an interface; `ours` are the programs there that are this program's.
pub(super) fn jumps_past_guard(
    side: &mut Side,
    guard: &str,
    end: &Link,
    ours: &[u32],
    scan: Scan<'_>,
) -> Result<Vec<Bypass>, NetlinkError> {
    let mut found = Vec::new();
    let name = &end.name;
    let device = || name.to_string();
    let host = &mut side.links;
    if end.has_xdp {
        found.push(Bypass::Xdp { device: device() });
    }
    for jump in host.jumps(end.index)? {
        found.push(match jump {
            Jump::Redirect(_) => Bypass::TcRedirect { from: None, device: device() },
            Jump::Bpf => Bypass::TcBpf { device: device() },
        });
    }
    if programs_on(end.index).iter().any(|found| !ours.contains(&found.program)) {
        found.push(Bypass::BpfLink { device: device() });
    }
    if let Scan::Node(node) = scan {
        let node = node.of(side)?;
        for &(from, _) in node.redirects.iter().filter(|&&(from, to)| to == end.index && from != end.index) {
            let from = side.links.by_index(from)?.map_or_else(|| from.to_string(), |link| link.name.to_string());
            found.push(Bypass::TcRedirect { from: Some(from), device: device() });
        }
        // One is said of, however many there are: a network that works so has them everywhere.
        if let Some((_, from)) = node.programs.iter().find(|(from, _)| *from != end.index) {
            found.push(Bypass::BpfElsewhere { from: from.to_string(), device: device() });
        }
        for chain in node.chains_in_front.iter().filter(|chain| chain.is_on(name) && chain.table != guard) {
            found.push(Bypass::TableInFront { table: chain.table.clone(), device: device() });
        }
    }
    Ok(found)
}

/// Whether something in the sandbox takes packets past the pod-side hooks of this interface. An interface has no more than one
/// program at XDP; `xdp_is_ours` says that it is this program's, and `ours` are all that are.
pub(super) fn jumps_past_pod_side(
    pod: &mut Links,
    netns: &Netns,
    link: &Link,
    xdp_is_ours: bool,
    ours: &[u32],
) -> Result<bool, SandboxError> {
    let has_programs = || netns.run(|| programs_on(link.index).iter().any(|found| !ours.contains(&found.program)));
    if (link.has_xdp && !xdp_is_ours) || !pod.jumps(link.index)?.is_empty() || has_programs()? {
        return Ok(true);
    }
    for index in pod.with_filters()? {
        if index != link.index && pod.jumps(index)?.contains(&Jump::Redirect(link.index)) {
            return Ok(true);
        }
    }
    Ok(false)
}
