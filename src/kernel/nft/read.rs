//! What is loaded, read back and compared with what is wanted. Nothing is assumed of what was sent before: whoever has
//! CAP_NET_ADMIN in the netns can change any of it.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use crate::kernel::netlink::{NetlinkError, attribute, attributes, be32, put_text, text};
use crate::model::difference::Difference;
use crate::model::names::IfName;
use crate::rules::ruleset::{Family, KeyType, NETDEV_PRIORITY, Set, Table};

use super::expression::{Count, Expression, count, decode};
use super::set::OwnSet;
use super::{Nft, header, kernel};

/// No rule of ours has many more.
const EXPRESSIONS_EXPECTED: usize = 24;

/// A table as it is loaded.
#[derive(Debug)]
pub struct LoadedTable {
    /// Whether its chains are unhooked.
    pub dormant: bool,
    pub(super) foreign_flags: bool,
    pub(super) objects: u32,
    pub(super) sets: Vec<LoadedSet>,
    /// Of the chains that are wanted, those that are there.
    pub(super) chains: BTreeMap<String, LoadedChain>,
    /// The names of the others that have rules.
    pub(super) others: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct LoadedSet {
    pub(super) name: Vec<u8>,
    pub(super) flags: u32,
    pub(super) key_type: u32,
    pub(super) key_length: u32,
    pub(super) timeout: u64,
    pub(super) size: u32,
    /// First and last key of each, sorted; of a set that packets fill, none.
    pub(super) elements: Vec<[Vec<u8>; 2]>,
}

#[derive(Debug)]
pub(super) struct LoadedChain {
    /// How it is hooked, where it is a base chain.
    pub(super) base: Option<BaseChain>,
    pub(super) rules: Vec<Vec<Expression>>,
    /// What the counter of its last rule, the drop, has seen.
    pub(super) dropped: Count,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) struct BaseChain {
    pub(super) hook: u32,
    pub(super) priority: i32,
    pub(super) devices: Vec<Vec<u8>>,
    pub(super) is_filter: bool,
    pub(super) drops: bool,
}

/// An element of a set: its key, one value for each field, and what its counter has seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Element {
    /// The fields of the key, without padding.
    pub key: Vec<Vec<u8>>,
    /// What was counted.
    pub count: Count,
}

/// A netdev chain that sees frames no later than ours do.
#[derive(Debug)]
pub struct ChainInFront {
    /// Its table.
    pub table: String,
    devices: Vec<Vec<u8>>,
}

impl ChainInFront {
    /// Whether it is hooked there.
    #[must_use]
    pub fn is_on(&self, device: &IfName) -> bool {
        self.devices.iter().any(|name| name == device.as_bytes())
    }
}

impl Nft {
    /// Whether the table is there.
    pub fn has_table(&mut self, family: Family, name: &str) -> Result<bool, NetlinkError> {
        Ok(self.read_flags(family, name)?.is_some())
    }

    /// Whether the table is there and its chains are hooked.
    pub fn is_awake(&mut self, family: Family, name: &str) -> Result<bool, NetlinkError> {
        Ok(self.read_flags(family, name)?.is_some_and(|(flags, _)| flags & kernel::TABLE_F_DORMANT == 0))
    }

    /// Flags and number of objects of a table, where it is there.
    fn read_flags(&mut self, family: Family, name: &str) -> Result<Option<(u32, u32)>, NetlinkError> {
        let body = named(family, &[(kernel::TABLE_NAME, name.as_bytes())]);
        let answer = absent_as_none(self.socket.ask("read a table", kernel::SUBSYSTEM | kernel::MSG_GETTABLE, &body))?;
        Ok(answer.flatten().map(|payload| {
            let number = |kind| attribute(behind_header(&payload), kind).and_then(be32).unwrap_or(0);
            (number(kernel::TABLE_FLAGS), number(kernel::TABLE_USE))
        }))
    }

    /// Reads of the table all that is to be compared with `wanted`. `None` where it is not there.
    pub fn read_table(&mut self, wanted: &Table) -> Result<Option<LoadedTable>, NetlinkError> {
        let (family, name) = (wanted.family, wanted.name.as_bytes());
        let Some((flags, objects)) = self.read_flags(family, &wanted.name)? else { return Ok(None) };
        let body = named(family, &[(kernel::SET_TABLE, name)]);
        let sets = self.socket.dump("read sets", kernel::SUBSYSTEM | kernel::MSG_GETSET, &body, read_set);
        let mut sets = absent_as_none(sets)?.unwrap_or_default();
        for set in wanted.sets.iter().filter(|set| !set.elements().is_empty()) {
            if let Some(loaded) = sets.iter_mut().find(|loaded| loaded.name == set.name.as_bytes()) {
                loaded.elements = self.fixed_elements(wanted, set.name.as_bytes())?;
            }
        }
        let body = named(family, &[(kernel::RULE_TABLE, name)]);
        let rules = self.socket.dump("read rules", kernel::SUBSYSTEM | kernel::MSG_GETRULE, &body, |payload| {
            read_rule(behind_header(payload), wanted)
        });
        let rules = absent_as_none(rules)?.unwrap_or_default();
        // The kernel does not count sets that rules have for themselves.
        let named_sets = sets.iter().filter(|set| !set.is_of_a_rule()).count();
        let count = usize::try_from(objects).unwrap_or(usize::MAX).saturating_sub(named_sets);
        let mut chains = self.read_chains(wanted, &rules, count)?;
        let mut others = BTreeSet::new();
        for rule in rules {
            match rule {
                LoadedRule::Wanted(chain, expressions, counted) => {
                    if let Some(chain) = chains.get_mut(chain) {
                        chain.rules.push(expressions);
                        chain.dropped = counted;
                    }
                }
                LoadedRule::OfAnother(chain) => drop(others.insert(chain)),
            }
        }
        // Behind the rules: the other way round a rule could have been exchanged for one with other elements under the same name.
        let own: BTreeMap<_, _> = sets.iter().filter_map(|set| Some((set.name.clone(), set.as_own()?))).collect();
        for expression in chains.values_mut().flat_map(|chain| &mut chain.rules).flatten() {
            if let Expression::Lookup { set, register } = expression
                && let Some(own) = own.get(set)
            {
                let set = OwnSet { elements: self.fixed_elements(wanted, set)?, ..own.clone() };
                *expression = Expression::LookupOwn { set, register: *register };
            }
        }
        Ok(Some(LoadedTable {
            dormant: flags & kernel::TABLE_F_DORMANT != 0,
            foreign_flags: flags & !kernel::TABLE_F_DORMANT != 0,
            objects,
            sets,
            chains,
            others,
        }))
    }

    /// The chains that are wanted and there, of a table that has `count` chains; their rules are yet to be put into them.
    ///
    /// Chain by chain, since the kernel's dump is of all chains of the netns, and on a node that is every guard's; and no more
    /// than it takes, since for each the kernel goes through all tables. What a rule jumps to is there, and is hooked nowhere:
    /// the kernel refuses to jump to a base chain, to hook a chain that is there, and to delete one that is jumped to.
    fn read_chains(
        &mut self,
        wanted: &Table,
        rules: &[LoadedRule<'_>],
        count: usize,
    ) -> Result<BTreeMap<String, LoadedChain>, NetlinkError> {
        let found = |base| LoadedChain { base, rules: Vec::new(), dropped: Count::default() };
        let is_jumped_to = |name: &str| rules.iter().any(|rule| rule.jumps_to(name));
        let (jumped_to, branches): (Vec<_>, Vec<_>) =
            wanted.branches.iter().partition(|branch| is_jumped_to(&branch.name));
        let mut chains: BTreeMap<_, _> =
            jumped_to.into_iter().map(|branch| (branch.name.clone(), found(None))).collect();
        for name in wanted.chains.iter().map(|chain| &chain.name) {
            chains.extend(self.chain(wanted.family, &wanted.name, name)?.map(|base| (name.clone(), found(base))));
        }
        // Where these are all that there are, no other need be asked for.
        for name in branches.into_iter().map(|branch| &branch.name) {
            if chains.len() >= count {
                break;
            }
            chains.extend(self.chain(wanted.family, &wanted.name, name)?.map(|base| (name.clone(), found(base))));
        }
        Ok(chains)
    }

    /// How a chain is hooked, where it is there and hooked at all.
    fn chain(&mut self, family: Family, table: &str, chain: &str) -> Result<Option<Option<BaseChain>>, NetlinkError> {
        let names = [(kernel::CHAIN_TABLE, table.as_bytes()), (kernel::CHAIN_NAME, chain.as_bytes())];
        let body = named(family, &names);
        let answer = self.socket.ask("read a chain", kernel::SUBSYSTEM | kernel::MSG_GETCHAIN, &body);
        Ok(absent_as_none(answer)?.flatten().map(|payload| read_chain(behind_header(&payload))))
    }

    /// The interfaces that a netdev chain is hooked at; none where it is not there.
    pub fn devices_of(&mut self, table: &str, chain: &str) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let base = self.chain(Family::Netdev, table, chain)?.flatten();
        Ok(base.map(|base| base.devices).unwrap_or_default())
    }

    /// In what the table differs from `wanted`, read back; with what was read, where it could be.
    pub fn compare(&mut self, wanted: &Table) -> Result<(Vec<Difference>, Option<LoadedTable>), NetlinkError> {
        match self.read_table(wanted) {
            Ok(None) => Ok((vec![Difference::NoTable], None)),
            Ok(Some(loaded)) => {
                let mut differences = loaded.differences(wanted);
                if !wanted.dormant && !loaded.dormant {
                    let unhooked =
                        self.unhooked(wanted)?.into_iter().filter(|chain| loaded.has_chain_named(&chain.name));
                    differences.extend(unhooked.map(|chain| Difference::Unhooked(chain.name.clone())));
                }
                Ok((differences, Some(loaded)))
            }
            Err(NetlinkError::Changing { .. }) => Ok((vec![Difference::Restless], None)),
            Err(error) => Err(error),
        }
    }

    /// The names of the tables of a family.
    pub fn tables(&mut self, family: Family) -> Result<Vec<String>, NetlinkError> {
        let body = header(family);
        self.socket.dump_all_seen("list the tables", kernel::SUBSYSTEM | kernel::MSG_GETTABLE, &body, |payload| {
            let name = text(attribute(behind_header(payload), kernel::TABLE_NAME)?);
            Some(String::from_utf8_lossy(name).into_owned())
        })
    }

    /// The netdev chains that see frames no later than ours do, ours among them.
    pub fn chains_in_front(&mut self) -> Result<Vec<ChainInFront>, NetlinkError> {
        let body = header(Family::Netdev);
        self.socket.dump_all_seen("list the chains", kernel::SUBSYSTEM | kernel::MSG_GETCHAIN, &body, |payload| {
            let chain = behind_header(payload);
            let table = String::from_utf8_lossy(text(attribute(chain, kernel::CHAIN_TABLE)?)).into_owned();
            let base = read_chain(chain)?;
            (base.priority <= NETDEV_PRIORITY).then_some(ChainInFront { table, devices: base.devices })
        })
    }

    /// The elements of a set that whoever made it put into it, sorted.
    fn fixed_elements(&mut self, table: &Table, set: &[u8]) -> Result<Vec<[Vec<u8>; 2]>, NetlinkError> {
        let names = [(kernel::SET_ELEM_LIST_TABLE, table.name.as_bytes()), (kernel::SET_ELEM_LIST_SET, set)];
        let body = named(table.family, &names);
        let lists = self.socket.dump("read a set", kernel::SUBSYSTEM | kernel::MSG_GETSETELEM, &body, |payload| {
            let list = attribute(behind_header(payload), kernel::SET_ELEM_LIST_ELEMENTS)?;
            Some(attributes(list).filter_map(|(_, element)| read_range(element)).collect::<Vec<_>>())
        });
        let mut elements: Vec<_> = absent_as_none(lists)?.unwrap_or_default().into_iter().flatten().collect();
        elements.sort_unstable();
        Ok(elements)
    }

    /// The elements of a set, none where the set is not there.
    pub fn elements(&mut self, table: &Table, set: &Set) -> Result<Vec<Element>, NetlinkError> {
        let body = named(
            table.family,
            &[(kernel::SET_ELEM_LIST_TABLE, table.name.as_bytes()), (kernel::SET_ELEM_LIST_SET, set.name.as_bytes())],
        );
        let lists =
            self.socket.dump_all_seen("read a set", kernel::SUBSYSTEM | kernel::MSG_GETSETELEM, &body, |payload| {
                let list = attribute(behind_header(payload), kernel::SET_ELEM_LIST_ELEMENTS)?;
                Some(attributes(list).filter_map(|(_, element)| read_element(element, &set.key)).collect::<Vec<_>>())
            });
        let mut elements: Vec<Element> = absent_as_none(lists)?.unwrap_or_default().into_iter().flatten().collect();
        // Seen more than once where the set changed meanwhile: the larger count is the later one.
        elements.sort_by(|a, b| a.key.cmp(&b.key).then(b.count.packets.cmp(&a.count.packets)));
        elements.dedup_by(|a, b| a.key == b.key);
        Ok(elements)
    }
}

pub(super) fn behind_header(payload: &[u8]) -> &[u8] {
    payload.get(4..).unwrap_or_default()
}

fn named(family: Family, names: &[(u16, &[u8])]) -> Vec<u8> {
    let mut body = header(family).to_vec();
    for &(kind, name) in names {
        put_text(&mut body, kind, name);
    }
    body
}

fn absent_as_none<T>(result: Result<T, NetlinkError>) -> Result<Option<T>, NetlinkError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_set(payload: &[u8]) -> Option<LoadedSet> {
    let set = behind_header(payload);
    let number = |kind| attribute(set, kind).and_then(be32).unwrap_or(0);
    Some(LoadedSet {
        name: text(attribute(set, kernel::SET_NAME)?).to_vec(),
        flags: number(kernel::SET_FLAGS),
        key_type: number(kernel::SET_KEY_TYPE),
        key_length: number(kernel::SET_KEY_LEN),
        timeout: attribute(set, kernel::SET_TIMEOUT)
            .and_then(|value| value.try_into().ok())
            .map_or(0, u64::from_be_bytes),
        size: attribute(set, kernel::SET_DESC)
            .and_then(|description| attribute(description, kernel::SET_DESC_SIZE))
            .and_then(be32)
            .unwrap_or(0),
        elements: Vec::new(),
    })
}

/// The first and the last key of an element of a set of ranges.
fn read_range(element: &[u8]) -> Option<[Vec<u8>; 2]> {
    let key = |kind| Some(attribute(attribute(element, kind)?, kernel::DATA_VALUE)?.to_vec());
    let first = key(kernel::SET_ELEM_KEY)?;
    let last = key(kernel::SET_ELEM_KEY_END).unwrap_or_else(|| first.clone());
    Some([first, last])
}

/// How a chain is hooked; `None` of one that is not.
fn read_chain(chain: &[u8]) -> Option<BaseChain> {
    let hook = attribute(chain, kernel::CHAIN_HOOK)?;
    let number = |kind| attribute(hook, kind).and_then(be32).unwrap_or(u32::MAX);
    let mut devices: Vec<_> = attribute(hook, kernel::HOOK_DEVS)
        .map(|list| attributes(list).map(|(_, name)| text(name).to_vec()).collect())
        .unwrap_or_default();
    if devices.is_empty() {
        devices.extend(attribute(hook, kernel::HOOK_DEV).map(|name| text(name).to_vec()));
    }
    Some(BaseChain {
        hook: number(kernel::HOOK_HOOKNUM),
        priority: number(kernel::HOOK_PRIORITY).cast_signed(),
        devices,
        is_filter: attribute(chain, kernel::CHAIN_TYPE).map(text) == Some(b"filter"),
        drops: attribute(chain, kernel::CHAIN_POLICY).and_then(be32) == Some(0),
    })
}

/// A rule of a table.
enum LoadedRule<'a> {
    /// In a chain that is wanted: its expressions, and what its last counter has seen.
    Wanted(&'a str, Vec<Expression>, Count),
    /// In another one, of this name.
    OfAnother(String),
}

impl LoadedRule<'_> {
    fn jumps_to(&self, name: &str) -> bool {
        let Self::Wanted(_, expressions, _) = self else { return false };
        matches!(expressions.last(), Some(Expression::Jump { chain }) if chain == name.as_bytes())
    }
}

fn read_rule<'a>(rule: &[u8], table: &'a Table) -> Option<LoadedRule<'a>> {
    if attribute(rule, kernel::RULE_TABLE).map(text) != Some(table.name.as_bytes()) {
        return None;
    }
    let name = text(attribute(rule, kernel::RULE_CHAIN)?);
    let Some(chain) = table.all_chains().find(|chain| chain.name.as_bytes() == name) else {
        return Some(LoadedRule::OfAnother(String::from_utf8_lossy(name).into_owned()));
    };
    let list = attribute(rule, kernel::RULE_EXPRESSIONS).unwrap_or_default();
    let mut counted = Count::default();
    let mut expressions = Vec::with_capacity(EXPRESSIONS_EXPECTED);
    for (_, element) in attributes(list) {
        let (expression, count) = decode(element);
        counted = count.unwrap_or(counted);
        expressions.push(expression);
    }
    Some(LoadedRule::Wanted(chain.name, expressions, counted))
}

fn read_element(element: &[u8], key: &[KeyType]) -> Option<Element> {
    let mut bytes = attribute(attribute(element, kernel::SET_ELEM_KEY)?, kernel::DATA_VALUE)?;
    let mut fields = Vec::with_capacity(key.len());
    for field in key {
        fields.push(bytes.get(..field.length())?.to_vec());
        bytes = bytes.get(field.length().next_multiple_of(4)..).unwrap_or_default();
    }
    let counter =
        attribute(element, kernel::SET_ELEM_EXPR).and_then(|expression| attribute(expression, kernel::EXPR_DATA));
    Some(Element { key: fields, count: counter.map(count).unwrap_or_default() })
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(bytes: &[u8]) {
    let own = crate::rules::ruleset::Chain {
        name: "ingress-eth0".to_owned(),
        hook: crate::rules::ruleset::Hook::Input,
        rules: Vec::new(),
    };
    let table = Table {
        family: Family::Netdev,
        name: "quarantine".to_owned(),
        dormant: false,
        sets: Vec::new(),
        branches: Vec::new(),
        chains: vec![own],
    };
    let body = behind_header(bytes);
    let _ = (read_set(bytes), read_chain(body));
    if let Some(LoadedRule::OfAnother(name)) = read_rule(body, &table) {
        assert_ne!(name, table.chains[0].name);
    }
    let key = [KeyType::Protocol, KeyType::Ipv6, KeyType::Port];
    for (_, element) in attribute(body, kernel::SET_ELEM_LIST_ELEMENTS).into_iter().flat_map(attributes) {
        if let Some(element) = read_element(element, &key) {
            assert!(element.key.iter().zip(key).all(|(field, key)| field.len() == key.length()));
        }
    }
    for (_, element) in attribute(body, kernel::RULE_EXPRESSIONS).into_iter().flat_map(attributes) {
        super::expression::try_any(element);
    }
}
