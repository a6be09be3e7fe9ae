//! The chain on the node's output that tells a prober's packets: one for all sandboxes whose policies name the same prober.
//!
//! It is loaded before the guard that asks for it, and goes with the last guard of the node. Where the kernel does not take it, or the
//! cgroup is not there, probes pass as if no prober were named, and that is said: a kubelet whose probes are cut off kills the pod.

use nix::errno::Errno;

use crate::kernel::cgroup::see_whole_tree;
use crate::kernel::netlink::NetlinkError;
use crate::kernel::nft::{Batch, Nft};
use crate::model::audit::{Line, chain};
use crate::model::cgroup::Cgroup;
use crate::model::policy::Policy;
use crate::model::probes::Prober;
use crate::model::verdict::Note;
use crate::rules::containment::EgressHook;
use crate::rules::ruleset::{Chain, Family, Table};
use crate::rules::senders::{SENDERS, label, sender_table};

use super::guards::standing_guards;
use super::kubelet::{Untold, cgroup_of};
use super::{ProberSeen, Side};

/// How the prober that a policy names is told.
#[derive(Debug)]
pub(super) struct Senders {
    prober: Prober,
    pub(super) cgroup: Result<Cgroup, Untold>,
    /// What tells it.
    pub(super) table: Table,
    in_place: InPlace,
}

/// Whether the chain is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum InPlace {
    /// As it should be.
    Yes,
    /// It is there, and is another.
    Altered,
    /// It is not there, or nothing would ask for what it tells.
    No,
}

impl Senders {
    /// Those of a policy that names a prober, as the rules for it are to be; nothing is asked of nf_tables.
    pub(super) fn wanted(policy: &Policy) -> Option<Self> {
        let prober = policy.probes.prober()?.clone();
        let cgroup = cgroup_of(&prober);
        let table = sender_table(&prober, cgroup.as_ref().ok());
        Some(Self { prober, cgroup, table, in_place: InPlace::Yes })
    }

    /// The same as they are found.
    pub(super) fn find(nft: &mut Nft, policy: &Policy, egress: EgressHook) -> Result<Option<Self>, NetlinkError> {
        let Some(mut senders) = Self::wanted(policy) else { return Ok(None) };
        let (differences, loaded) = nft.compare(&senders.table)?;
        senders.in_place = match (differences.is_empty(), loaded) {
            _ if egress == EgressHook::Missing => InPlace::No,
            (true, _) => InPlace::Yes,
            (false, Some(_)) => InPlace::Altered,
            (false, None) => InPlace::No,
        };
        Ok(Some(senders))
    }

    /// What these rules were computed from.
    pub(super) fn seen(&self) -> ProberSeen {
        ProberSeen { prober: self.prober.clone(), cgroup: self.cgroup.clone().ok() }
    }

    /// The bit that the guard is to ask for.
    pub(super) fn label(&self) -> Option<u32> {
        (self.in_place != InPlace::No).then(|| label(&self.prober))
    }

    /// What is to be said where the prober is not told from root's other processes.
    pub(super) fn note(&self, has_guard: bool) -> Option<Note> {
        let why = match (&self.cgroup, self.in_place) {
            _ if !has_guard => &Untold::NoGuard,
            (_, InPlace::Altered | InPlace::No) => &Untold::NotInPlace,
            (Err(untold), InPlace::Yes) => untold,
            (Ok(_), InPlace::Yes) => return None,
        };
        Some(Note::ProberUntold { prober: self.prober.text().unwrap_or_default(), why: why.to_string() })
    }
}

/// Has the node's output tell the prober that a policy names. What cannot be is said by [`Senders::note`].
pub(super) fn load(host: &mut Side, policy: &Policy) {
    let Some(Senders { prober, cgroup, table, .. }) = Senders::wanted(policy) else { return };
    let line = |event| Line::new(event).with("prober", prober.text().unwrap_or_default());
    match (load_table(&mut host.nft, &table), cgroup) {
        (Ok(false), _) => {}
        (Ok(true), Ok(Cgroup { path, id })) => {
            log::info!("{}", line("prober-told").with("cgroup", path).with("id", id))
        }
        (Ok(true), Err(untold)) => log::warn!("{}", line("prober-untold").with("because", untold)),
        (Err(error), _) => log::warn!("{}", line("prober-untold").with("error", chain(&error))),
    }
}

/// Says whether anything was changed.
fn load_table(nft: &mut Nft, table: &Table) -> Result<bool, NetlinkError> {
    if nft.compare(table)?.0.is_empty() {
        return Ok(false);
    }
    // A failure is one of the rule that is counted from here.
    let _ = see_whole_tree();
    // In one batch that comes out the same whoever else loads it now; no packet is dropped meanwhile, and none told wrong.
    let mut batch = Batch::default();
    let empty = |chain: &Chain| Chain { rules: Vec::new(), ..chain.clone() };
    batch.add_table(&Table { chains: table.chains.iter().map(empty).collect(), ..table.clone() });
    for chain in table.all_chains() {
        batch.flush_chain(table.family, &table.name, chain.name.as_bytes());
        batch.add_rules(table, chain);
    }
    nft.apply(&batch)?;
    if nft.compare(table)?.0.is_empty() {
        return Ok(true);
    }
    // Something of another shape was in its place.
    let mut batch = Batch::default();
    batch.delete_table(table.family, &table.name);
    batch.add_table(table);
    nft.apply(&batch)?;
    Ok(true)
}

/// Takes the chains off the node's output where no guard is left that could ask for what they tell.
pub(super) fn remove_unused(host: &mut Side) -> Result<(), NetlinkError> {
    let mut tables = host.nft.tables(Family::Inet)?;
    tables.retain(|table| table.starts_with(SENDERS));
    if tables.is_empty() || !standing_guards(host)?.is_empty() {
        return Ok(());
    }
    for table in tables {
        match host.nft.delete(&table, &[Family::Inet]) {
            // Somebody was faster.
            Err(error) if error.errno() == Some(Errno::ENOENT) => {}
            result => drop(result?),
        }
    }
    Ok(())
}
