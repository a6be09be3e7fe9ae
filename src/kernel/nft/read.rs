//! What is loaded, read back and compared with what is wanted. Nothing is assumed of what was sent before: whoever has
//! CAP_NET_ADMIN in the netns can change any of it.

use std::collections::{BTreeMap, BTreeSet};

use nix::errno::Errno;

use crate::kernel::netlink::{NetlinkError, attribute, attributes, be32, put_text, text};
use crate::model::difference::Difference;
use crate::model::names::IfName;
use crate::rules::ruleset::{Chain, Content, Family, Hook, KeyType, NETDEV_PRIORITY, Rule, Set, Table};

use super::batch::{hook_number, key_bytes, key_length, key_type, milliseconds, set_flags};
use super::expression::{Count, Expression, compile, count, decode};
use super::reported::without_reports;
use super::{Nft, header, kernel};

/// No rule of ours has many more.
const EXPRESSIONS_EXPECTED: usize = 24;

/// A table as it is loaded.
#[derive(Debug)]
pub struct LoadedTable {
    /// Whether its chains are unhooked.
    pub dormant: bool,
    foreign_flags: bool,
    objects: u32,
    sets: Vec<LoadedSet>,
    /// Of the chains that are wanted, those that are there.
    chains: BTreeMap<String, LoadedChain>,
    /// The names of the others that have rules.
    others: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct LoadedSet {
    name: Vec<u8>,
    flags: u32,
    key_type: u32,
    key_length: u32,
    timeout: u64,
    size: u32,
    /// First and last key of each, sorted; of a set that packets fill, none.
    elements: Vec<[Vec<u8>; 2]>,
}

#[derive(Debug)]
struct LoadedChain {
    base: BaseChain,
    rules: Vec<Vec<Expression>>,
    /// What the counter of its last rule, the drop, has seen.
    dropped: Count,
}

#[derive(Debug, PartialEq, Eq)]
struct BaseChain {
    hook: u32,
    priority: i32,
    devices: Vec<Vec<u8>>,
    is_filter: bool,
    drops: bool,
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
                loaded.elements = self.fixed_elements(wanted, set)?;
            }
        }
        let mut chains = BTreeMap::new();
        // Chain by chain: the kernel's dump is of all chains of the netns, and on a node that is every guard's.
        for chain in &wanted.chains {
            let body = named(family, &[(kernel::CHAIN_TABLE, name), (kernel::CHAIN_NAME, chain.name.as_bytes())]);
            let answer = self.socket.ask("read a chain", kernel::SUBSYSTEM | kernel::MSG_GETCHAIN, &body);
            if let Some(payload) = absent_as_none(answer)?.flatten() {
                let base = read_chain(behind_header(&payload));
                let rules = Vec::with_capacity(chain.rules.len());
                chains.insert(chain.name.clone(), LoadedChain { base, rules, dropped: Count::default() });
            }
        }
        let body = named(family, &[(kernel::RULE_TABLE, name)]);
        let rules = self.socket.dump("read rules", kernel::SUBSYSTEM | kernel::MSG_GETRULE, &body, |payload| {
            read_rule(behind_header(payload), wanted)
        });
        let mut others = BTreeSet::new();
        for rule in absent_as_none(rules)?.unwrap_or_default() {
            match rule {
                // One that came only now is missing, as it was when it was asked for.
                LoadedRule::Wanted(chain, expressions, counted) => {
                    if let Some(chain) = chains.get_mut(&chain.name) {
                        chain.rules.push(expressions);
                        chain.dropped = counted;
                    }
                }
                LoadedRule::OfAnother(chain) => drop(others.insert(chain)),
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

    /// The interfaces that a netdev chain is hooked at; none where it is not there.
    pub fn devices_of(&mut self, table: &str, chain: &str) -> Result<Vec<Vec<u8>>, NetlinkError> {
        let names = [(kernel::CHAIN_TABLE, table.as_bytes()), (kernel::CHAIN_NAME, chain.as_bytes())];
        let body = named(Family::Netdev, &names);
        let answer = self.socket.ask("read a chain", kernel::SUBSYSTEM | kernel::MSG_GETCHAIN, &body);
        let chain = absent_as_none(answer)?.flatten();
        Ok(chain.map(|payload| read_chain(behind_header(&payload)).devices).unwrap_or_default())
    }

    /// In what the table differs from `wanted`, read back; with what was read, where it could be.
    pub fn compare(&mut self, wanted: &Table) -> Result<(Vec<Difference>, Option<LoadedTable>), NetlinkError> {
        match self.read_table(wanted) {
            Ok(None) => Ok((vec![Difference::NoTable], None)),
            Ok(Some(loaded)) => Ok((loaded.differences(wanted), Some(loaded))),
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
            attribute(chain, kernel::CHAIN_HOOK)?;
            let base = read_chain(chain);
            (base.priority <= NETDEV_PRIORITY).then_some(ChainInFront { table, devices: base.devices })
        })
    }

    /// The elements of a set that whoever made it put into it, sorted.
    fn fixed_elements(&mut self, table: &Table, set: &Set) -> Result<Vec<[Vec<u8>; 2]>, NetlinkError> {
        let names = [(kernel::SET_ELEM_LIST_TABLE, &table.name), (kernel::SET_ELEM_LIST_SET, &set.name)];
        let body = named(table.family, &names.map(|(kind, name)| (kind, name.as_bytes())));
        let lists = self.socket.dump("read a set", kernel::SUBSYSTEM | kernel::MSG_GETSETELEM, &body, |payload| {
            let list = attribute(behind_header(payload), kernel::SET_ELEM_LIST_ELEMENTS)?;
            Some(attributes(list).filter_map(|(_, element)| read_range(element)).collect::<Vec<_>>())
        });
        let mut elements = absent_as_none(lists)?.unwrap_or_default().concat();
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
        for chain in &wanted.chains {
            match self.chains.get(&chain.name) {
                Some(loaded) if loaded.base == BaseChain::wanted(chain) => {
                    differences.extend(loaded.difference(chain));
                }
                _ => differences.push(Difference::Chain(chain.name.clone())),
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
        self.sets.contains(&LoadedSet::wanted(set))
    }

    /// Whether this set is in it, whatever its elements are.
    #[must_use]
    pub fn has_set_like(&self, set: &Set) -> bool {
        let wanted = LoadedSet::wanted(set);
        self.sets.iter().any(|loaded| loaded.is_like(&wanted))
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

    /// How many more sets and chains are in it than `wanted` has, less those that are missing.
    #[must_use]
    pub fn surplus(&self, wanted: &Table) -> usize {
        let present = wanted.sets.iter().filter(|set| self.has_set_named(&set.name)).count()
            + wanted.chains.iter().filter(|chain| self.has_chain_named(&chain.name)).count();
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
    fn difference(&self, chain: &Chain) -> Option<Difference> {
        let wanted: Vec<_> = chain.rules.iter().map(compile).collect();
        if self.rules == wanted {
            return None;
        }
        let decides_the_same = without_reports(&self.rules).eq(without_reports(&wanted));
        Some(match decides_the_same {
            true => Difference::Reports(chain.name.clone()),
            false => Difference::Rules(chain.name.clone()),
        })
    }
}

impl BaseChain {
    fn wanted(chain: &Chain) -> Self {
        Self {
            hook: hook_number(&chain.hook),
            priority: chain.hook.priority(),
            devices: match &chain.hook {
                Hook::Ingress(device) | Hook::Egress(device) => vec![device.as_bytes().to_vec()],
                Hook::Input | Hook::Output | Hook::Forward => Vec::new(),
            },
            is_filter: true,
            drops: true,
        }
    }
}

impl LoadedSet {
    fn wanted(set: &Set) -> Self {
        Self {
            name: set.name.clone().into_bytes(),
            flags: set_flags(set),
            key_type: key_type(set),
            key_length: key_length(set),
            timeout: milliseconds(set),
            size: match set.content {
                Content::Dynamic { size, .. } => size,
                Content::Fixed(_) => 0,
            },
            elements: {
                let mut elements: Vec<_> = set.elements().iter().map(key_bytes).collect();
                elements.sort_unstable();
                elements
            },
        }
    }

    fn is_like(&self, other: &Self) -> bool {
        let all = |set: &Self| (set.flags, set.key_type, set.key_length, set.timeout, set.size);
        self.name == other.name && all(self) == all(other)
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

fn read_chain(chain: &[u8]) -> BaseChain {
    let hook = attribute(chain, kernel::CHAIN_HOOK).unwrap_or_default();
    let number = |kind| attribute(hook, kind).and_then(be32).unwrap_or(u32::MAX);
    let mut devices: Vec<_> = attribute(hook, kernel::HOOK_DEVS)
        .map(|list| attributes(list).map(|(_, name)| text(name).to_vec()).collect())
        .unwrap_or_default();
    if devices.is_empty() {
        devices.extend(attribute(hook, kernel::HOOK_DEV).map(|name| text(name).to_vec()));
    }
    BaseChain {
        hook: number(kernel::HOOK_HOOKNUM),
        priority: number(kernel::HOOK_PRIORITY).cast_signed(),
        devices,
        is_filter: attribute(chain, kernel::CHAIN_TYPE).map(text) == Some(b"filter"),
        drops: attribute(chain, kernel::CHAIN_POLICY).and_then(be32) == Some(0),
    }
}

/// A rule of a table.
enum LoadedRule<'a> {
    /// In a chain that is wanted: its expressions, and what its last counter has seen.
    Wanted(&'a Chain, Vec<Expression>, Count),
    /// In another one, of this name.
    OfAnother(String),
}

fn read_rule<'a>(rule: &[u8], table: &'a Table) -> Option<LoadedRule<'a>> {
    if attribute(rule, kernel::RULE_TABLE).map(text) != Some(table.name.as_bytes()) {
        return None;
    }
    let name = text(attribute(rule, kernel::RULE_CHAIN)?);
    let Some(chain) = table.chains.iter().find(|chain| chain.name.as_bytes() == name) else {
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
    Some(LoadedRule::Wanted(chain, expressions, counted))
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
    let own = Chain { name: "ingress-eth0".to_owned(), hook: Hook::Input, rules: Vec::new() };
    let chains = vec![own];
    let table =
        Table { family: Family::Netdev, name: "quarantine".to_owned(), dormant: false, sets: Vec::new(), chains };
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
