//! All of nf_tables in one netns, whoever loaded it, for whoever writes it down. Expressions are not understood here, but
//! named, with the bytes that the kernel gave: whatever a later kernel can say is kept too.

use nix::errno::Errno;
use serde::Serialize;

use crate::kernel::netlink::{NetlinkError, attribute, attributes, be32, put_text, text};
use crate::model::escaped::Escaped;

use super::{Nft, kernel};

/// `NFPROTO_UNSPEC`: of all families.
const ANY_FAMILY: [u8; HEADER] = [0; HEADER];
const HEADER: usize = 4;

/// A table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TableFound {
    /// The kernel's number of its family: 1 inet, 2 ip, 3 arp, 5 netdev, 7 bridge, 10 ip6.
    pub family: u8,
    /// Its name.
    pub name: Escaped,
    /// The kernel's flags: 1 dormant, 2 owned by a process.
    pub flags: u32,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChainFound {
    /// Its family.
    pub family: u8,
    /// Its table.
    pub table: Escaped,
    /// Its name.
    pub name: Escaped,
    /// filter, nat or route; none for one that is only jumped to.
    pub kind: Option<Escaped>,
    /// The kernel's number of its hook.
    pub hook: Option<u32>,
    /// When it comes.
    pub priority: Option<i32>,
    /// What happens at its end: 0 drops.
    pub policy: Option<u32>,
    /// The interface that it is hooked at.
    pub device: Option<Escaped>,
}

/// A rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RuleFound {
    /// Its family.
    pub family: u8,
    /// Its table.
    pub table: Escaped,
    /// Its chain.
    pub chain: Escaped,
    /// Its expressions, in order: name, and attributes in hexadecimal.
    pub expressions: Vec<(Escaped, String)>,
}

/// A set or map.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SetFound {
    /// Its family.
    pub family: u8,
    /// Its table.
    pub table: Escaped,
    /// Its name.
    pub name: Escaped,
    /// The kernel's flags.
    pub flags: u32,
    /// The kernel's number of its key's type.
    pub key_type: Option<u32>,
    /// Its elements; none where they were not asked for.
    pub elements: Option<ElementsFound>,
}

/// The elements of a set, up to as many as were wanted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ElementsFound {
    /// Their attributes in hexadecimal.
    pub elements: Vec<String>,
    /// How many there are.
    pub total: usize,
}

impl Nft {
    /// All tables.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn tables_found(&mut self) -> Result<Vec<TableFound>, NetlinkError> {
        self.list_found("list the tables", kernel::MSG_GETTABLE, read_table_found)
    }

    /// All chains.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn chains_found(&mut self) -> Result<Vec<ChainFound>, NetlinkError> {
        self.list_found("list the chains", kernel::MSG_GETCHAIN, read_chain_found)
    }

    /// All rules, up to `most`, and how many there are.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn rules_found(&mut self, most: usize) -> Result<(Vec<RuleFound>, usize), NetlinkError> {
        let total = std::cell::Cell::new(0);
        let rules = self.list_found("list the rules", kernel::MSG_GETRULE, |payload| {
            total.set(total.get() + 1);
            if total.get() > most { None } else { read_rule_found(payload) }
        })?;
        Ok((rules, total.get()))
    }

    /// All sets, without their elements.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn sets_found(&mut self) -> Result<Vec<SetFound>, NetlinkError> {
        self.list_found("list the sets", kernel::MSG_GETSET, read_set_found)
    }

    /// The elements of a set, up to `most`; `None` where it is gone.
    ///
    /// # Errors
    /// See [`NetlinkError`].
    pub fn elements_found(&mut self, set: &SetFound, most: usize) -> Result<Option<ElementsFound>, NetlinkError> {
        let mut body = vec![set.family, 0, 0, 0];
        put_text(&mut body, kernel::SET_ELEM_LIST_TABLE, &set.table.0);
        put_text(&mut body, kernel::SET_ELEM_LIST_SET, &set.name.0);
        let total = std::cell::Cell::new(0);
        let kind = kernel::SUBSYSTEM | kernel::MSG_GETSETELEM;
        let lists = self.socket.dump_all_seen("read a set", kind, &body, |payload| {
            let list = attribute(payload.get(HEADER..)?, kernel::SET_ELEM_LIST_ELEMENTS)?;
            let mut found = Vec::new();
            for (_, element) in attributes(list) {
                total.set(total.get() + 1);
                if total.get() <= most {
                    found.push(hexadecimal(element));
                }
            }
            Some(found)
        });
        match lists {
            Ok(lists) => {
                Ok(Some(ElementsFound { elements: lists.into_iter().flatten().collect(), total: total.get() }))
            }
            Err(error) if error.errno() == Some(Errno::ENOENT) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn list_found<T>(
        &mut self,
        what: &str,
        message: u16,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        self.socket.dump_all_seen(what, kernel::SUBSYSTEM | message, &ANY_FAMILY, read)
    }
}

fn read_table_found(payload: &[u8]) -> Option<TableFound> {
    let table = payload.get(HEADER..)?;
    Some(TableFound {
        family: payload[0],
        name: text(attribute(table, kernel::TABLE_NAME)?).into(),
        flags: attribute(table, kernel::TABLE_FLAGS).and_then(be32).unwrap_or(0),
    })
}

fn read_chain_found(payload: &[u8]) -> Option<ChainFound> {
    let chain = payload.get(HEADER..)?;
    let hook = attribute(chain, kernel::CHAIN_HOOK);
    let of_hook = |kind| hook.and_then(|hook| attribute(hook, kind));
    Some(ChainFound {
        family: payload[0],
        table: text(attribute(chain, kernel::CHAIN_TABLE)?).into(),
        name: text(attribute(chain, kernel::CHAIN_NAME)?).into(),
        kind: attribute(chain, kernel::CHAIN_TYPE).map(|kind| text(kind).into()),
        hook: of_hook(kernel::HOOK_HOOKNUM).and_then(be32),
        priority: of_hook(kernel::HOOK_PRIORITY).and_then(be32).map(u32::cast_signed),
        policy: attribute(chain, kernel::CHAIN_POLICY).and_then(be32),
        device: of_hook(kernel::HOOK_DEV).map(|device| text(device).into()),
    })
}

fn read_rule_found(payload: &[u8]) -> Option<RuleFound> {
    let rule = payload.get(HEADER..)?;
    let expressions = attribute(rule, kernel::RULE_EXPRESSIONS).unwrap_or_default();
    let expression = |(_, bytes)| {
        let name = text(attribute(bytes, kernel::EXPR_NAME)?).into();
        Some((name, hexadecimal(attribute(bytes, kernel::EXPR_DATA).unwrap_or_default())))
    };
    Some(RuleFound {
        family: payload[0],
        table: text(attribute(rule, kernel::RULE_TABLE)?).into(),
        chain: text(attribute(rule, kernel::RULE_CHAIN)?).into(),
        expressions: attributes(expressions).filter_map(expression).collect(),
    })
}

fn read_set_found(payload: &[u8]) -> Option<SetFound> {
    let set = payload.get(HEADER..)?;
    Some(SetFound {
        family: payload[0],
        table: text(attribute(set, kernel::SET_TABLE)?).into(),
        name: text(attribute(set, kernel::SET_NAME)?).into(),
        flags: attribute(set, kernel::SET_FLAGS).and_then(be32).unwrap_or(0),
        key_type: attribute(set, kernel::SET_KEY_TYPE).and_then(be32),
        elements: None,
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// What holds of any bytes (`fuzzing`).
#[cfg(any(test, fuzzing))]
pub(super) fn try_any(bytes: &[u8]) {
    let _ = (read_table_found(bytes), read_chain_found(bytes), read_rule_found(bytes), read_set_found(bytes));
}

#[cfg(test)]
mod tests {
    use super::*;

    proptest::proptest! {
        #[test]
        fn no_answer_makes_it_panic(bytes: Vec<u8>) {
            try_any(&bytes);
        }
    }
}
