//! What changed about the node: which sandboxes are to be looked at for it, those among them that are being looked at
//! just then.

use std::collections::HashMap;

use crate::kernel::rtnetlink::NodeChange;
use crate::node::sandbox::Dependence;

use super::Agent;

/// A sandbox that a worker looks at.
#[derive(Debug, Default)]
pub(super) struct AtWork {
    /// Whether it is to be looked at again afterwards.
    pub(super) again: bool,
    /// How many changes of the node had been heard before.
    pub(super) since: u64,
}

/// The changes that were heard while somebody was at work: what a sandbox depends on is known only when its worker is
/// done, and the change may have come after that worker looked.
#[derive(Debug, Default)]
pub(super) struct NodeChanges {
    /// When each was last heard, as the number of all that were heard until then.
    last: HashMap<NodeChange, u64>,
    heard: u64,
}

impl NodeChanges {
    /// How many have been heard.
    pub(super) fn heard(&self) -> u64 {
        self.heard
    }

    /// Whether one of those heard `since` concerns what depends on this.
    pub(super) fn concern(&self, depends: &Dependence, since: u64) -> bool {
        self.last.iter().any(|(&change, &heard)| heard > since && depends.is_concerned_by(change))
    }

    fn hear(&mut self, change: NodeChange) {
        self.heard += 1;
        self.last.insert(change, self.heard);
    }

    /// Nobody is at work, so nobody will ask for those so far.
    fn forget(&mut self) {
        self.last.clear();
    }
}

impl Agent {
    /// The node's links, addresses, routes or rules changed: the holes for probes may lead elsewhere by now.
    pub(super) fn node_touched(&mut self) {
        let mut changes = Vec::new();
        let lost = self.node.drain(&mut self.buffer, |change| {
            if changes.last() != Some(&change) {
                changes.push(change);
            }
        });
        if lost {
            changes = vec![NodeChange::Unknown];
        }
        if self.at_work.is_empty() {
            self.node_changes.forget();
        } else {
            changes.iter().for_each(|&change| self.node_changes.hear(change));
        }
        let is_concerned = |depends: &Dependence| changes.iter().any(|&change| depends.is_concerned_by(change));
        let concerned: Vec<_> = self
            .subscribed
            .iter()
            .filter(|(_, subscribed)| is_concerned(&subscribed.depends))
            .map(|(id, _)| id.clone())
            .collect();
        for container_id in concerned {
            self.look_soon(container_id);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn what_was_heard_since_concerns_whoever_depends_on_it() {
        let mut changes = NodeChanges::default();
        let depends = Dependence { links: BTreeSet::from([7]), ..Dependence::default() };
        changes.hear(NodeChange::Link(7));
        let since = changes.heard();
        changes.hear(NodeChange::Link(8));
        assert!(changes.concern(&depends, 0), "heard after it was given to its worker");
        assert!(!changes.concern(&depends, since), "heard before");
        changes.hear(NodeChange::Link(7));
        assert!(changes.concern(&depends, since), "heard again");
        changes.forget();
        assert!(!changes.concern(&depends, 0));
    }
}
