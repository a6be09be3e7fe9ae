//! Host guards as the node has them, whether a record speaks of them or not.
//!
//! A guard whose record was lost goes on guarding: it is shown, and stays until its interfaces are gone or somebody
//! releases it by its container ID.

use std::collections::BTreeSet;

use crate::kernel::netlink::NetlinkError;
use crate::model::names::ContainerId;
use crate::rules::containment::{TABLE, guard_table};
use crate::rules::ruleset::Family;

use super::{Side, remove_guard};

/// The sandboxes for which a guard stands, by the names of the tables.
///
/// # Errors
/// See [`NetlinkError`].
pub fn standing_guards(host: &mut Side) -> Result<Vec<ContainerId>, NetlinkError> {
    let prefix = format!("{TABLE}-");
    let tables = host.nft.tables(Family::Netdev)?;
    Ok(tables.iter().filter_map(|name| ContainerId::new(name.strip_prefix(&prefix)?).ok()).collect())
}

/// Removes the guards that no record speaks of and that have no interface left to guard: a pod that ended without a DEL
/// that found its record. Says whose they were.
///
/// # Errors
/// See [`NetlinkError`].
pub fn remove_guards_of_nothing(
    host: &mut Side,
    has_record: impl Fn(&ContainerId) -> bool,
) -> Result<Vec<ContainerId>, NetlinkError> {
    let mut orphans = standing_guards(host)?;
    orphans.retain(|container_id| !has_record(container_id));
    if orphans.is_empty() {
        return Ok(orphans);
    }
    let chains = host.nft.chains_in_front()?;
    let devices: BTreeSet<_> = host.links.all()?.into_iter().map(|link| link.name).collect();
    orphans.retain(|container_id| {
        let table = guard_table(container_id);
        !chains.iter().filter(|chain| chain.table == table).any(|chain| devices.iter().any(|name| chain.is_on(name)))
    });
    for container_id in &orphans {
        remove_guard(host, container_id)?;
    }
    Ok(orphans)
}
