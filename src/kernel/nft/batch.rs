//! A batch: changes in order, encoded as they are added.

use nix::errno::Errno;

use crate::kernel::netlink::{NetlinkError, append_message, nest, put, put_text, put_written};
use crate::rules::ruleset::{AnyChain, Content, Family, Field, Hook, KeyType, Ranges, Rule, Set, Statement, Table};

use super::compile::compile;
use super::expression::{ACCEPT, DROP, Expression, encode, encode_lookup};
use super::set::{Which, key_length, key_type, milliseconds, own_set_flags, put_key_bytes, set_flags, types};
use super::{header, kernel, listing};
use SetName::{Named, Numbered};

const REQUEST: u16 = 1;
const ACKNOWLEDGE: u16 = 4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;

/// An attribute is no longer than 64 KiB.
const ELEMENTS_AT_ONCE: usize = 256;

/// Changes that the kernel takes whole or not at all.
///
/// Two rules of the kernel that the caller has to keep: never a change of a table's flags and a new base chain in one
/// batch (EINVAL), and waking happens while a batch is prepared, so it is a batch of its own, after everything stands.
#[derive(Debug, Default)]
pub struct Batch {
    changes: Vec<Change>,
    /// What all of them say, in order.
    bodies: Vec<u8>,
}

#[derive(Debug)]
struct Change {
    kind: u16,
    flags: u16,
    /// Where its own end.
    end: usize,
    what: &'static str,
}

impl Batch {
    /// Whether there is nothing to change.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    /// How many changes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.changes.len()
    }

    /// Adds a table with all that is in it; it must not be there.
    pub fn add_table(&mut self, table: &Table) {
        let flags = if table.dormant { kernel::TABLE_F_DORMANT } else { 0 };
        self.push(kernel::MSG_NEWTABLE, CREATE, "add a table", table.family, |body| {
            put_text(body, kernel::TABLE_NAME, table.name.as_bytes());
            put(body, kernel::TABLE_FLAGS, &flags.to_be_bytes());
        });
        for set in &table.sets {
            self.add_set(table, set);
        }
        for chain in table.all_chains() {
            self.add_chain(table, chain);
            self.add_rules(table, chain);
        }
    }

    /// Deletes a table that is there.
    pub fn delete_table(&mut self, family: Family, name: &str) {
        self.push(kernel::MSG_DELTABLE, 0, "delete a table", family, |body| {
            put_text(body, kernel::TABLE_NAME, name.as_bytes());
        });
    }

    /// Unhooks all chains of a table that is there, or hooks them.
    pub fn set_dormant(&mut self, family: Family, name: &str, dormant: bool) {
        let flags = if dormant { kernel::TABLE_F_DORMANT } else { 0 };
        self.push(kernel::MSG_NEWTABLE, 0, "wake a table or put it to sleep", family, |body| {
            put_text(body, kernel::TABLE_NAME, name.as_bytes());
            // Sent also when it is 0: without the attribute nothing changes.
            put(body, kernel::TABLE_FLAGS, &flags.to_be_bytes());
        });
    }

    /// Adds a set to a table.
    pub fn add_set(&mut self, table: &Table, set: &Set) {
        let id = u32::try_from(self.changes.len()).unwrap_or_default();
        self.push(kernel::MSG_NEWSET, CREATE, "add a set", table.family, |body| {
            put_text(body, kernel::SET_TABLE, table.name.as_bytes());
            put_text(body, kernel::SET_NAME, set.name.as_bytes());
            put(body, kernel::SET_FLAGS, &set_flags(set).to_be_bytes());
            put(body, kernel::SET_KEY_TYPE, &key_type(&set.key).to_be_bytes());
            put(body, kernel::SET_KEY_LEN, &key_length(&set.key).to_be_bytes());
            put(body, kernel::SET_ID, &id.to_be_bytes());
            match &set.content {
                Content::Dynamic { size, .. } => {
                    nest(body, kernel::SET_DESC, |body| put(body, kernel::SET_DESC_SIZE, &size.to_be_bytes()));
                    put(body, kernel::SET_TIMEOUT, &milliseconds(set).to_be_bytes());
                }
                Content::Fixed { .. } if set.has_ranges() => {
                    nest(body, kernel::SET_DESC, |body| put_fields(body, &set.key));
                }
                Content::Fixed { size: Some(size), .. } => {
                    nest(body, kernel::SET_DESC, |body| put(body, kernel::SET_DESC_SIZE, &size.to_be_bytes()));
                }
                Content::Fixed { size: None, .. } => {}
            }
        });
        self.add_elements(table, set);
    }

    /// Adds the elements of a set, where they are fixed.
    pub fn add_elements(&mut self, table: &Table, set: &Set) {
        let put = if set.has_ranges() { put_range } else { put_key };
        self.push_elements(table.family, &table.name, Named(&set.name), set.elements(), put);
    }

    /// Adds a set that the next rule has for itself, and says its number in this batch: its name is the kernel's to give.
    fn add_own_set(&mut self, table: &Table, key: &[Field], elements: &[Ranges]) -> u32 {
        let id = u32::try_from(self.changes.len()).unwrap_or_default();
        let key_types = types(key);
        let size = u32::try_from(elements.len()).unwrap_or(u32::MAX);
        let flags = own_set_flags(elements);
        let is_of_ranges = flags != kernel::SET_OF_A_RULE;
        self.push(kernel::MSG_NEWSET, CREATE, "add the set of a rule", table.family, |body| {
            put_text(body, kernel::SET_TABLE, table.name.as_bytes());
            put_text(body, kernel::SET_NAME, OWN_SET);
            put(body, kernel::SET_FLAGS, &flags.to_be_bytes());
            put(body, kernel::SET_KEY_TYPE, &key_type(&key_types).to_be_bytes());
            put(body, kernel::SET_KEY_LEN, &key_length(&key_types).to_be_bytes());
            put(body, kernel::SET_ID, &id.to_be_bytes());
            nest(body, kernel::SET_DESC, |body| {
                put(body, kernel::SET_DESC_SIZE, &size.to_be_bytes());
                if is_of_ranges {
                    put_fields(body, &key_types);
                }
            });
            if let Some(userdata) = listing::key_for_nft(key) {
                put(body, kernel::SET_USERDATA, &userdata);
            }
        });
        self.push_elements(
            table.family,
            &table.name,
            Numbered(id),
            elements,
            if is_of_ranges { put_range } else { put_key },
        );
        id
    }

    /// Puts elements into a set that is there, by their keys; one that is in it already stays.
    pub fn put_into_set(&mut self, family: Family, table: &str, set: &str, keys: &[Vec<u8>]) {
        self.push_elements(family, table, Named(set), keys, |body, key| {
            nest(body, kernel::SET_ELEM_KEY, |body| put(body, kernel::DATA_VALUE, key));
        });
    }

    fn push_elements<T>(
        &mut self,
        family: Family,
        table: &str,
        set: SetName<'_>,
        elements: &[T],
        write: impl Fn(&mut Vec<u8>, &T),
    ) {
        for some in elements.chunks(ELEMENTS_AT_ONCE) {
            self.push(kernel::MSG_NEWSETELEM, CREATE, "add elements to a set", family, |body| {
                put_text(body, kernel::SET_ELEM_LIST_TABLE, table.as_bytes());
                match set {
                    Named(name) => put_text(body, kernel::SET_ELEM_LIST_SET, name.as_bytes()),
                    Numbered(id) => {
                        put_text(body, kernel::SET_ELEM_LIST_SET, OWN_SET);
                        put(body, kernel::SET_ELEM_LIST_SET_ID, &id.to_be_bytes());
                    }
                }
                nest(body, kernel::SET_ELEM_LIST_ELEMENTS, |body| {
                    for element in some {
                        nest(body, kernel::LIST_ELEM, |body| write(body, element));
                    }
                });
            });
        }
    }

    /// Takes all elements out of a set.
    pub fn flush_set(&mut self, family: Family, table: &str, set: &str) {
        self.push(kernel::MSG_DELSETELEM, 0, "flush a set", family, |body| {
            put_text(body, kernel::SET_ELEM_LIST_TABLE, table.as_bytes());
            put_text(body, kernel::SET_ELEM_LIST_SET, set.as_bytes());
        });
    }

    /// Deletes a set.
    pub fn delete_set(&mut self, family: Family, table: &str, set: &[u8]) {
        self.push(kernel::MSG_DELSET, 0, "delete a set", family, |body| {
            put_text(body, kernel::SET_TABLE, table.as_bytes());
            put_text(body, kernel::SET_NAME, set);
        });
    }

    /// Adds a chain, without its rules.
    pub fn add_chain(&mut self, table: &Table, chain: AnyChain<'_>) {
        self.push(kernel::MSG_NEWCHAIN, CREATE, "add a chain", table.family, |body| {
            put_text(body, kernel::CHAIN_TABLE, table.name.as_bytes());
            put_text(body, kernel::CHAIN_NAME, chain.name.as_bytes());
            let Some(hook) = chain.hook else { return };
            nest(body, kernel::CHAIN_HOOK, |body| {
                put(body, kernel::HOOK_HOOKNUM, &hook_number(hook).to_be_bytes());
                put(body, kernel::HOOK_PRIORITY, &hook.priority().to_be_bytes());
                if let Some(device) = hook.device() {
                    put_text(body, kernel::HOOK_DEV, device.as_bytes());
                }
            });
            let policy = if hook.drops() { DROP } else { ACCEPT };
            put(body, kernel::CHAIN_POLICY, &policy.to_be_bytes());
            put_text(body, kernel::CHAIN_TYPE, b"filter");
        });
    }

    /// Deletes a chain.
    pub fn delete_chain(&mut self, family: Family, table: &str, chain: &[u8]) {
        self.push(kernel::MSG_DELCHAIN, 0, "delete a chain", family, |body| {
            put_text(body, kernel::CHAIN_TABLE, table.as_bytes());
            put_text(body, kernel::CHAIN_NAME, chain);
        });
    }

    /// Takes all rules out of a chain.
    pub fn flush_chain(&mut self, family: Family, table: &str, chain: &[u8]) {
        self.push(kernel::MSG_DELRULE, 0, "flush a chain", family, |body| {
            put_text(body, kernel::RULE_TABLE, table.as_bytes());
            put_text(body, kernel::RULE_CHAIN, chain);
        });
    }

    /// Appends the rules of `chain` to it.
    pub fn add_rules(&mut self, table: &Table, chain: AnyChain<'_>) {
        for rule in chain.rules {
            self.push_rule(APPEND, table, chain, rule);
        }
    }

    /// Puts rules, in this order, in front of all that a chain has.
    pub fn insert_rules(&mut self, table: &Table, chain: AnyChain<'_>, rules: &[Rule]) {
        for rule in rules.iter().rev() {
            self.push_rule(0, table, chain, rule);
        }
    }

    fn push_rule(&mut self, place: u16, table: &Table, chain: AnyChain<'_>, rule: &Rule) {
        let mut own_sets = Vec::new();
        for statement in &rule.statements {
            if let Statement::OneOf { key, elements } = statement {
                own_sets.push(self.add_own_set(table, key, elements));
            }
        }
        let mut own_sets = own_sets.into_iter();
        self.push(kernel::MSG_NEWRULE, CREATE | place, "add a rule", table.family, |body| {
            put_text(body, kernel::RULE_TABLE, table.name.as_bytes());
            put_text(body, kernel::RULE_CHAIN, chain.name.as_bytes());
            nest(body, kernel::RULE_EXPRESSIONS, |body| {
                for expression in compile(rule) {
                    match expression {
                        // In the order of the statements, of which each compiles to one.
                        Expression::LookupOwn { register, .. } => {
                            encode_lookup(body, OWN_SET, register, own_sets.next());
                        }
                        expression => encode(body, &expression),
                    }
                }
            });
            if let Some(comment) = rule.comment {
                // nft's own form: type 0, length, text with its NUL.
                let length = u8::try_from(comment.len() + 1).unwrap_or_default();
                put(body, kernel::RULE_USERDATA, &[&[0, length][..], comment.as_bytes(), &[0]].concat());
            }
        });
    }

    fn push(&mut self, kind: u16, flags: u16, what: &'static str, family: Family, write: impl FnOnce(&mut Vec<u8>)) {
        self.bodies.extend(header(family));
        write(&mut self.bodies);
        self.changes.push(Change { kind: kernel::SUBSYSTEM | kind, flags, end: self.bodies.len(), what });
    }

    pub(super) fn messages(&self) -> u32 {
        u32::try_from(self.changes.len()).unwrap_or(u32::MAX)
    }

    /// The batch on the wire, with sequence numbers from `first` on.
    pub(super) fn bytes(&self, first: u32) -> Vec<u8> {
        // Family unspecified, and the subsystem as the resource.
        let frame = |body: &mut Vec<u8>| body.extend_from_slice(&[0, 0, 0, 10]);
        let mut bytes = Vec::with_capacity(64 + self.bodies.len() + 20 * self.changes.len());
        append_message(&mut bytes, kernel::BATCH_BEGIN, REQUEST, first, frame);
        let mut number = first;
        let mut start = 0;
        for (index, change) in self.changes.iter().enumerate() {
            number += 1;
            // Only the last change is acknowledged: before 6.10 the end of the batch would not be.
            let acknowledge = if index + 1 == self.changes.len() { ACKNOWLEDGE } else { 0 };
            append_message(&mut bytes, change.kind, REQUEST | change.flags | acknowledge, number, |body| {
                body.extend_from_slice(&self.bodies[start..change.end]);
            });
            start = change.end;
        }
        append_message(&mut bytes, kernel::BATCH_END, REQUEST, number + 1, frame);
        bytes
    }

    /// The error for the change with this number in the batch; 0 is the batch itself.
    pub(super) fn refused(&self, number: u32, errno: Errno) -> NetlinkError {
        let change = usize::try_from(number).ok().and_then(|number| self.changes.get(number.checked_sub(1)?));
        NetlinkError::Refused { what: change.map_or("change nf_tables", |change| change.what).to_owned(), errno }
    }
}

pub(super) fn hook_number(hook: &Hook) -> u32 {
    match hook {
        Hook::Ingress(_) => 0,
        Hook::Egress(_) | Hook::Input => 1,
        Hook::Forward => 2,
        Hook::Output | Hook::NodeOutput => 3,
    }
}

/// How a set is named in a batch.
#[derive(Clone, Copy)]
enum SetName<'a> {
    Named(&'a str),
    /// One of this batch, by its number there.
    Numbered(u32),
}

/// What is asked for where the kernel gives the name.
const OWN_SET: &[u8] = b"__set%d";

/// The lengths of the fields of a key, which only ranges need.
fn put_fields(body: &mut Vec<u8>, key: &[KeyType]) {
    nest(body, kernel::SET_DESC_CONCAT, |body| {
        for field in key {
            let length = u32::try_from(field.length()).unwrap_or_default();
            nest(body, kernel::LIST_ELEM, |body| put(body, kernel::SET_FIELD_LEN, &length.to_be_bytes()));
        }
    });
}

/// An element that is one key.
fn put_key(body: &mut Vec<u8>, element: &Ranges) {
    put_element_key(body, kernel::SET_ELEM_KEY, element, Which::First);
}

/// An element of a set of ranges.
fn put_range(body: &mut Vec<u8>, element: &Ranges) {
    put_element_key(body, kernel::SET_ELEM_KEY, element, Which::First);
    put_element_key(body, kernel::SET_ELEM_KEY_END, element, Which::Last);
}

fn put_element_key(body: &mut Vec<u8>, kind: u16, element: &Ranges, which: Which) {
    nest(body, kind, |body| put_written(body, kernel::DATA_VALUE, |body| put_key_bytes(body, element, which)));
}
