//! What is loaded beside what is wanted. Pure: `read` has read it.

use crate::model::difference::Difference;
use crate::rules::ruleset::{AnyChain, Content, Hook, Rule, Set, Table};

use super::batch::hook_number;
use super::compile::compile;
use super::expression::Count;
use super::kernel;
use super::read::{BaseChain, LoadedChain, LoadedSet, LoadedTable};
use super::reported::without_reports;
use super::set::{OwnSet, are_keys_of, key_length, key_type, milliseconds, set_flags};

impl LoadedTable {
    /// In what it differs from `wanted`. Elements of sets are the packet path's and not compared.
    #[must_use]
    pub fn differences(&self, wanted: &Table) -> Vec<Difference> {
        let mut differences = Vec::new();
        if self.dormant != wanted.dormant {
            differences.push(Difference::Dormant { is: self.dormant });
        }
        for set in &wanted.sets {
            if !self.has_set(set) {
                differences.push(Difference::Set(set.name.clone()));
            }
        }
        for chain in wanted.all_chains() {
            match self.chains.get(chain.name) {
                Some(loaded) if loaded.base == chain.hook.map(BaseChain::wanted) => {
                    differences.extend(loaded.difference(chain));
                }
                _ => differences.push(Difference::Chain(chain.name.to_owned())),
            }
        }
        if self.surplus(wanted) > 0 || self.foreign_flags {
            differences.push(Difference::Foreign);
        }
        differences
    }

    /// Whether this very set is in it, with its elements where they are fixed.
    #[must_use]
    pub fn has_set(&self, set: &Set) -> bool {
        self.like(set).is_some_and(|loaded| are_keys_of(&loaded.elements, set.elements()))
    }

    /// Whether this set is in it, whatever its elements are.
    #[must_use]
    pub fn has_set_like(&self, set: &Set) -> bool {
        self.like(set).is_some()
    }

    fn like(&self, set: &Set) -> Option<&LoadedSet> {
        let named = self.sets.iter().find(|loaded| loaded.name == set.name.as_bytes());
        named.filter(|loaded| loaded.is_like(&LoadedSet::wanted(set)))
    }

    /// Whether a set of this name is in it.
    #[must_use]
    pub fn has_set_named(&self, name: &str) -> bool {
        self.sets.iter().any(|set| set.name == name.as_bytes())
    }

    /// Whether a chain of this name is in it, of those that were asked for.
    #[must_use]
    pub fn has_chain_named(&self, name: &str) -> bool {
        self.chains.contains_key(name)
    }

    /// The names of the chains with rules in it that were not asked for.
    pub fn other_chains(&self) -> impl Iterator<Item = &str> {
        self.others.iter().map(String::as_str)
    }

    /// How many more sets and chains are in it than `wanted` has, less those that are missing. The kernel does not count sets that
    /// rules have for themselves.
    #[must_use]
    pub fn surplus(&self, wanted: &Table) -> usize {
        let present = wanted.sets.iter().filter(|set| self.has_set_named(&set.name)).count()
            + wanted.all_chains().filter(|chain| self.has_chain_named(chain.name)).count();
        usize::try_from(self.objects).unwrap_or(usize::MAX).saturating_sub(present)
    }

    /// The sets in it of this kind, told by their names, that `wanted` does not have.
    #[must_use]
    pub fn other_sets(&self, wanted: &Table, is_of_kind: fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let names = self.sets.iter().map(|set| &set.name);
        names
            .filter(|name| is_of_kind(name) && !wanted.sets.iter().any(|set| set.name.as_bytes() == &name[..]))
            .cloned()
            .collect()
    }

    /// The names of the sets in it.
    pub fn set_names(&self) -> impl Iterator<Item = &[u8]> {
        self.sets.iter().map(|set| &set.name[..])
    }

    /// Whether this rule is all that a chain has.
    #[must_use]
    pub fn has_only(&self, chain: &str, rule: &Rule) -> bool {
        self.chains.get(chain).is_some_and(|chain| chain.rules == [compile(rule)])
    }

    /// What the last rule of a chain, the drop, has seen.
    #[must_use]
    pub fn dropped(&self, chain: &str) -> Count {
        self.chains.get(chain).map(|chain| chain.dropped).unwrap_or_default()
    }
}

impl LoadedChain {
    fn difference(&self, chain: AnyChain<'_>) -> Option<Difference> {
        let wanted: Vec<_> = chain.rules.iter().map(compile).collect();
        if self.rules == wanted {
            return None;
        }
        let decides_the_same = without_reports(&self.rules).eq(without_reports(&wanted));
        Some(match decides_the_same {
            true => Difference::Reports(chain.name.to_owned()),
            false => Difference::Rules(chain.name.to_owned()),
        })
    }
}

impl BaseChain {
    pub(super) fn wanted(hook: &Hook) -> Self {
        Self {
            hook: hook_number(hook),
            priority: hook.priority(),
            devices: match hook {
                Hook::Ingress(device) | Hook::Egress(device) => vec![device.as_bytes().to_vec()],
                Hook::Input | Hook::Output | Hook::Forward | Hook::NodeOutput => Vec::new(),
            },
            is_filter: true,
            drops: hook.drops(),
        }
    }
}

impl LoadedSet {
    /// Without its elements.
    pub(super) fn wanted(set: &Set) -> Self {
        Self {
            name: set.name.clone().into_bytes(),
            flags: set_flags(set),
            key_type: key_type(&set.key),
            key_length: key_length(&set.key),
            timeout: milliseconds(set),
            size: match set.content {
                Content::Dynamic { size, .. } => size,
                Content::Fixed { size, .. } => size.unwrap_or(0),
            },
            elements: Vec::new(),
        }
    }

    /// It without its name, where a rule has it for itself.
    pub(super) fn as_own(&self) -> Option<OwnSet> {
        let &Self { flags, key_type, key_length, .. } = self;
        self.is_of_a_rule().then_some(OwnSet { flags, key_type, key_length, elements: Vec::new() })
    }

    /// Whether a rule has it for itself.
    pub(super) fn is_of_a_rule(&self) -> bool {
        self.flags & kernel::SET_OF_A_RULE == kernel::SET_OF_A_RULE
    }

    pub(super) fn is_like(&self, other: &Self) -> bool {
        let all = |set: &Self| (set.flags, set.key_type, set.key_length, set.timeout, set.size);
        self.name == other.name && all(self) == all(other)
    }
}
