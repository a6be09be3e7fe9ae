//! From what is loaded to what is wanted, without a packet in between.
//!
//! A table that is awake is changed in place, flush and rules in one batch; only what cannot be changed in place (a set
//! or a chain of our name that is not ours) has it replaced whole, also in one batch, which is safe because each base
//! chain ends in an explicit drop. A table that sleeps is written asleep. Waking is a batch of its own: the kernel hooks the
//! chains while it prepares the batch, also when a later change of that batch then fails. It comes first where the frame
//! is whole that ADD left, so that the sandbox is cut off before its holes are loaded; else last.

use crate::kernel::netlink::NetlinkError;
use crate::kernel::nft::{Batch, LoadedTable, Nft};
use crate::model::difference::Difference;
use crate::rules::branches::is_branch;
use crate::rules::containment::is_flow_set;
use crate::rules::ruleset::{Family, Table};

/// What was found and done.
#[derive(Debug, Default)]
pub(super) struct Transition {
    /// In what the tables differed from what was wanted.
    pub(super) differences: Vec<(Family, Difference)>,
    /// Whether anything was changed.
    pub(super) changed: bool,
}

/// In what a table differs from what is wanted, and what is loaded, where it could be read.
pub(super) type Compared = (Vec<Difference>, Option<LoadedTable>);

/// Changes of the rules of one netns, of one sandbox or of many, in the order in which they are made: a transaction each.
#[derive(Debug, Default)]
pub(super) struct Changes {
    to_sleep: Batch,
    cut: Batch,
    rewrite: Batch,
    wake: Batch,
}

impl Changes {
    /// Has the kernel make them; says whether there was anything to be changed.
    pub(super) fn make(&self, nft: &mut Nft) -> Result<bool, NetlinkError> {
        for batch in self.in_order() {
            nft.apply(batch)?;
        }
        Ok(self.len() > 0)
    }

    /// Deletes a table that is there.
    pub(super) fn delete_table(&mut self, family: Family, name: &str) {
        self.rewrite.delete_table(family, name);
    }

    /// How many there are.
    fn len(&self) -> usize {
        self.in_order().into_iter().map(Batch::len).sum()
    }

    fn in_order(&self) -> [&Batch; 4] {
        [&self.to_sleep, &self.cut, &self.rewrite, &self.wake]
    }
}

/// Brings the tables of one side to what is wanted. All of `wanted` have one name, and sleep or wake together.
pub(super) fn reconcile(nft: &mut Nft, wanted: &[Table]) -> Result<Transition, NetlinkError> {
    let compared = wanted.iter().map(|table| nft.compare(table)).collect::<Result<_, _>>()?;
    let mut changes = Changes::default();
    let transition = plan(&mut changes, nft, wanted, compared)?;
    changes.make(nft)?;
    Ok(transition)
}

/// Adds what there is to be changed of tables that have been read and compared; nothing of it is done yet.
pub(super) fn plan(
    changes: &mut Changes,
    nft: &mut Nft,
    wanted: &[Table],
    compared: Vec<Compared>,
) -> Result<Transition, NetlinkError> {
    let mut transition = Transition::default();
    let before = changes.len();
    for (table, (mut differences, loaded)) in wanted.iter().zip(compared) {
        let was_dormant = match &loaded {
            Some(loaded) => Some(loaded.dormant),
            None if differences.contains(&Difference::NoTable) => None,
            // Not read is not absent.
            None if nft.has_table(table.family, &table.name)? => Some(!nft.is_awake(table.family, &table.name)?),
            None => None,
        };
        let Changes { to_sleep, cut, rewrite, wake } = &mut *changes;
        if was_dormant == Some(false) && table.dormant {
            to_sleep.set_dormant(table.family, &table.name, true);
        }
        differences.retain(|difference| !matches!(difference, Difference::Dormant { .. }));
        let is_as_wanted = differences.is_empty();
        let wakes = was_dormant != Some(false) && !table.dormant;
        // The frame that ADD left is whole: it cuts, in a batch of one message a table, before what the policy opens is
        // loaded into it.
        let cuts_first =
            wakes && !is_as_wanted && loaded.as_ref().is_some_and(|loaded| is_framed(table, loaded, &differences));
        match (&loaded, was_dormant) {
            _ if is_as_wanted => {}
            (Some(loaded), _) if cuts_first => {
                cut.set_dormant(table.family, &table.name, false);
                change_in_place(rewrite, table, loaded, &differences);
            }
            (Some(loaded), Some(false)) if !table.dormant => change_in_place(rewrite, table, loaded, &differences),
            // Awake, and nobody knows with what in it.
            (None, Some(false)) if !table.dormant => replace(rewrite, table, true),
            _ => replace(rewrite, &Table { dormant: true, ..table.clone() }, was_dormant.is_some()),
        }
        if wakes && was_dormant.is_some() {
            differences.push(Difference::Dormant { is: true });
        }
        if wakes && !cuts_first {
            // Flows of an earlier isolation are not open in this one.
            if is_as_wanted {
                for set in table.sets.iter().filter(|set| set.elements().is_empty()) {
                    wake.flush_set(table.family, &table.name, &set.name);
                }
            }
            wake.set_dormant(table.family, &table.name, false);
        }
        transition.differences.extend(differences.into_iter().map(|difference| (table.family, difference)));
    }
    transition.changed = changes.len() > before;
    Ok(transition)
}

/// Whether the base chains are there and hooked where they should be, whatever is in them.
fn is_framed(table: &Table, loaded: &LoadedTable, differences: &[Difference]) -> bool {
    let is_missing_branch =
        |name: &String| !loaded.has_chain_named(name) && table.branches.iter().any(|branch| branch.name == *name);
    differences.iter().all(|difference| match difference {
        Difference::Rules(_) | Difference::Reports(_) | Difference::Set(_) => true,
        Difference::Chain(name) => is_missing_branch(name),
        _ => false,
    })
}

fn replace(batch: &mut Batch, table: &Table, is_there: bool) {
    if is_there {
        batch.delete_table(table.family, &table.name);
    }
    batch.add_table(table);
}

fn change_in_place(batch: &mut Batch, table: &Table, loaded: &LoadedTable, differences: &[Difference]) {
    // Sets of another policy's flows, and its branches, are what is foreign after a change of policy, and can go; anything else
    // is not ours.
    let stale = loaded.other_sets(table, is_flow_set);
    let stale_branches: Vec<_> = loaded.other_chains().filter(|name| is_branch(name)).collect();
    let foreign =
        differences.contains(&Difference::Foreign) && loaded.surplus(table) != stale.len() + stale_branches.len();
    let in_the_way = table.sets.iter().any(|set| loaded.has_set_named(&set.name) && !loaded.has_set_like(set))
        || table.all_chains().any(|chain| {
            [Difference::Chain, Difference::Unhooked].iter().any(|of| differences.contains(&of(chain.name.to_owned())))
                && loaded.has_chain_named(chain.name)
        });
    if foreign || in_the_way {
        replace(batch, table, true);
        return;
    }
    for set in table.sets.iter().filter(|set| !loaded.has_set(set)) {
        if loaded.has_set_like(set) {
            batch.flush_set(table.family, &table.name, &set.name);
            batch.add_elements(table, set);
        } else {
            batch.add_set(table, set);
        }
    }
    for chain in table.all_chains() {
        if differences.contains(&Difference::Chain(chain.name.to_owned())) {
            batch.add_chain(table, chain);
            batch.add_rules(table, chain);
        } else if [Difference::Rules, Difference::Reports]
            .iter()
            .any(|of| differences.contains(&of(chain.name.to_owned())))
        {
            match chain.rules.split_last() {
                // The frame: what its drop has counted since the cut goes on to count.
                Some((last, others)) if loaded.has_only(chain.name, last) => {
                    batch.insert_rules(table, chain, others);
                }
                _ => {
                    batch.flush_chain(table.family, &table.name, chain.name.as_bytes());
                    batch.add_rules(table, chain);
                }
            }
        }
    }
    // Nothing jumps to them any more.
    for branch in stale_branches {
        batch.flush_chain(table.family, &table.name, branch.as_bytes());
        batch.delete_chain(table.family, &table.name, branch.as_bytes());
    }
    for set in stale {
        batch.delete_set(table.family, &table.name, &set);
    }
}
