//! An nftables ruleset as data: tables, sets, base chains and rules, and the same as nft text that a person can read.
//!
//! Pure. It knows the fields and statements that containment needs and no others; what a policy becomes is decided in
//! `containment`, how a rule reaches the kernel in `nft`.

use std::collections::BTreeSet;

use crate::model::cgroup::Cgroup;
use crate::model::names::IfName;

pub(super) use super::field::Notation;
pub use super::field::{Base, Field};
pub use super::value::{Ranges, Value};

/// The address family of a table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// Routed IPv4 and IPv6 packets.
    Inet,
    /// Frames of one device.
    Netdev,
}

/// A table and all that is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its family.
    pub family: Family,
    /// Its name.
    pub name: String,
    /// Whether its chains are unhooked.
    pub dormant: bool,
    /// Its sets.
    pub sets: Vec<Set>,
    /// The chains that its base chains jump to.
    pub branches: Vec<Branch>,
    /// Its base chains.
    pub chains: Vec<Chain>,
}

impl Table {
    /// Its chains of either sort, each before those that jump to it.
    pub fn all_chains(&self) -> impl Iterator<Item = AnyChain<'_>> {
        let branches = self.branches.iter().map(|Branch { name, rules }| AnyChain { name, hook: None, rules });
        let base = self.chains.iter().map(|Chain { name, hook, rules }| AnyChain { name, hook: Some(hook), rules });
        branches.chain(base)
    }

    /// Leaves out the sets that no rule fills or looks anything up in: those of a family that the sandbox does not have.
    pub fn keep_used_sets(&mut self) {
        let branches = self.branches.iter().flat_map(|branch| &branch.rules);
        let rules = branches.chain(self.chains.iter().flat_map(|chain| &chain.rules));
        let statements = rules.flat_map(|rule| &rule.statements);
        let used: BTreeSet<&str> = statements
            .filter_map(|statement| match statement {
                Statement::Lookup(_, set) | Statement::Update { set, .. } => Some(set.as_str()),
                _ => None,
            })
            .collect();
        self.sets.retain(|set| used.contains(set.name.as_str()));
    }
}

/// A set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: String,
    /// The fields of a key, in order.
    pub key: Vec<KeyType>,
    /// Where its elements come from.
    pub content: Content,
}

/// Where the elements of a set come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// From the packet path, with a time-out each.
    Dynamic {
        /// Seconds after which an element goes that was not refreshed.
        timeout: u32,
        /// The most elements that it holds.
        size: u32,
    },
    /// From whoever made it. No two of them overlap: the kernel refuses that. The key has two fields at least, since the
    /// kernel keeps ranges of a single one in another way.
    Fixed {
        /// They.
        elements: Vec<Ranges>,
        /// The most that there may ever be of them, where that is said: then the kernel makes room for all at once, and need not
        /// make more again and again as they come. Of ranges, which it keeps in another way, nothing is said.
        size: Option<u32>,
    },
}

impl Set {
    /// Whether an element of it is more than one key.
    #[must_use]
    pub fn has_ranges(&self) -> bool {
        !self.elements().iter().all(Ranges::is_single)
    }

    /// One that packets fill.
    #[must_use]
    pub fn dynamic(name: String, key: Vec<KeyType>, timeout: u32, size: u32) -> Self {
        Self { name, key, content: Content::Dynamic { timeout, size } }
    }

    /// Its elements, where they are fixed.
    #[must_use]
    pub fn elements(&self) -> &[Ranges] {
        match &self.content {
            Content::Fixed { elements, .. } => elements,
            Content::Dynamic { .. } => &[],
        }
    }
}

/// The type of one field of a set's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeyType {
    /// An Ethernet address.
    Ether,
    /// An IP protocol number.
    Protocol,
    /// An IPv4 address.
    Ipv4,
    /// An IPv6 address.
    Ipv6,
    /// A port.
    Port,
    /// What an ARP packet is for.
    Operation,
    /// So many bytes that nft has no name for.
    Raw(u8),
}

impl KeyType {
    /// Bytes of it in a packet.
    #[must_use]
    pub fn length(self) -> usize {
        match self {
            Self::Protocol => 1,
            Self::Port | Self::Operation => 2,
            Self::Ether => 6,
            Self::Ipv4 => 4,
            Self::Ipv6 => 16,
            Self::Raw(length) => length.into(),
        }
    }

    /// Bytes of it in registers.
    #[must_use]
    pub fn padded_length(self) -> usize {
        self.length().next_multiple_of(4)
    }

    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Ether => "ether_addr",
            Self::Protocol => "inet_proto",
            Self::Ipv4 => "ipv4_addr",
            Self::Ipv6 => "ipv6_addr",
            Self::Port => "inet_service",
            Self::Operation => "arp_op",
            Self::Raw(_) => "integer",
        }
    }

    pub(super) fn notation(self) -> Notation {
        match self {
            Self::Ether => Notation::Mac,
            Self::Protocol => Notation::Protocol,
            Self::Ipv4 => Notation::Ipv4,
            Self::Ipv6 => Notation::Ipv6,
            Self::Port => Notation::Number,
            Self::Operation => Notation::Operation,
            Self::Raw(_) => Notation::Hexadecimal,
        }
    }
}

/// A base chain. Its policy is drop, and its last rule an explicit drop: while a table is replaced, a chain that
/// relies on its policy alone lets single packets through (seen on 6.18). The node's own output is where none is dropped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: String,
    /// Where packets meet it.
    pub hook: Hook,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A chain that packets come to by a jump, and leave at its end, where nothing in it has ended them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Branch {
    /// Its name.
    pub name: String,
    /// Its rules, in order.
    pub rules: Vec<Rule>,
}

/// A chain of either sort.
#[derive(Debug, Clone, Copy)]
pub struct AnyChain<'a> {
    /// Its name.
    pub name: &'a str,
    /// Where packets meet it, if it is a base chain.
    pub hook: Option<&'a Hook>,
    /// Its rules, in order.
    pub rules: &'a [Rule],
}

/// Where a base chain sits.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Hook {
    /// Frames that come in from a device (family netdev).
    Ingress(IfName),
    /// Frames that go out to a device (family netdev, Linux 5.16).
    Egress(IfName),
    /// Packets for this netns (family inet).
    Input,
    /// Packets from this netns (family inet).
    Output,
    /// Packets through this netns (family inet).
    Forward,
    /// Packets from the node's own netns (family inet), all of which pass.
    NodeOutput,
}

/// The priority of all our netdev chains.
pub const NETDEV_PRIORITY: i32 = -500;

impl Hook {
    /// Priorities come before everything that users put there (raw is -300).
    #[must_use]
    pub fn priority(&self) -> i32 {
        match self {
            Self::Ingress(_) | Self::Egress(_) => NETDEV_PRIORITY,
            Self::Input | Self::Output | Self::Forward | Self::NodeOutput => -400,
        }
    }

    /// Whether a packet that no rule decides on is dropped.
    #[must_use]
    pub fn drops(&self) -> bool {
        *self != Self::NodeOutput
    }

    /// The device, where the hook is one of a device.
    #[must_use]
    pub fn device(&self) -> Option<&IfName> {
        match self {
            Self::Ingress(device) | Self::Egress(device) => Some(device),
            Self::Input | Self::Output | Self::Forward | Self::NodeOutput => None,
        }
    }
}

/// A rule: its statements, each of which must hold for the next to be reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// In order.
    pub statements: Vec<Statement>,
    /// Said beside the rule wherever it is listed.
    pub comment: Option<&'static str>,
}

/// One statement of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// Goes on when the field is so.
    Match(Field, Test),
    /// Goes on when this is so of the packet.
    Meta(Meta),
    /// Goes on when the key made of these fields is in one of the elements, which no set of the table has: the rule has them. No
    /// two of them overlap.
    OneOf {
        /// The fields of the key.
        key: Vec<Field>,
        /// What they may be, together.
        elements: Vec<Ranges>,
    },
    /// Goes on when the key made of these fields is in the set.
    Lookup(&'static [Field], String),
    /// Puts the key into the set, or refreshes it. Ends the rule when the set is full.
    Update {
        /// The fields of the key.
        key: &'static [Field],
        /// The set's name.
        set: String,
        /// Whether each element counts packets.
        counted: bool,
    },
    /// Puts this bit on the packet, in a field that no socket can set (`meta secmark`), for the rules that it meets behind these.
    Label(u32),
    /// Goes on when the packet has this bit.
    Labelled(u32),
    /// Hands the beginning of a packet to whoever listens in the netns of its table (NFLOG), no more of them than the
    /// limit lets. Ends the rule where the limit is reached, so nothing may stand behind it.
    Report(Report),
    /// Counts packets and bytes.
    Counter,
    /// Goes through the rules of a branch, and on behind this one where none of them ended the packet.
    Jump(String),
    /// Lets the packet pass this chain.
    Accept,
    /// Ends the packet.
    Drop,
}

/// What is handed over of packets, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// The number that listeners bind to.
    pub group: u16,
    /// Bytes of each packet.
    pub length: u32,
    /// Packets a second, in the long run.
    pub per_second: u32,
    /// Packets at once.
    pub burst: u32,
    /// What is said with each.
    pub prefix: String,
}

/// What the kernel knows about a packet, and what it must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Meta {
    /// Its length in bytes, with the Ethernet header where it has one.
    Length(u32),
    /// The name of the interface that it came in by.
    Iifname(IfName),
    /// The name of the interface that it leaves by.
    Oifname(IfName),
    /// The user of the socket that sent it; a packet without a socket has none.
    Skuid(u32),
    /// That a process's socket sent it; what the kernel itself answers with has none, nor what is left of a socket that is closed.
    HasUser,
    /// That a socket in this cgroup, or below it, sent it (Linux 5.13; not in family netdev).
    Cgroup(Cgroup),
    /// That its frame was sent to this host, and to no other and not to many.
    ForThisHost,
    /// The type of its frame, in front of fields of what that carries: what nft knows them by.
    Protocol([u8; 2]),
    /// Its family, in a table of family inet.
    Nfproto {
        /// Whether it is IPv6.
        v6: bool,
    },
}

/// What a field must be. All values are as they stand in the packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Test {
    /// This.
    Is(Value),
    /// Anything but this.
    Not(Value),
    /// From the first to the second, both included.
    Range(Value, Value),
    /// The second, where the first has a bit.
    Masked(Value, Value),
    /// Anything but the second, where the first has a bit.
    NotMasked(Value, Value),
}

impl Test {
    /// The first and the last value that it holds for, where it holds for all between them and no others.
    #[must_use]
    pub fn range(&self) -> Option<(Value, Value)> {
        match *self {
            Self::Is(value) => Some((value, value)),
            Self::Range(first, last) => Some((first, last)),
            Self::Masked(mask, value) => value.as_network(&mask),
            Self::Not(_) | Self::NotMasked(..) => None,
        }
    }
}

/// The flags of a TCP segment that tell an opening one from all others.
pub const TCP_FIN_SYN_RST_ACK: u8 = 0x17;
/// The SYN flag.
pub const TCP_SYN: u8 = 0x02;
/// The RST flag.
pub const TCP_RST: u8 = 0x04;
/// The ACK flag.
pub const TCP_ACK: u8 = 0x10;

impl Statement {
    /// Whether it does nothing but to go on or not.
    #[must_use]
    pub fn is_condition(&self) -> bool {
        matches!(self, Self::Match(..) | Self::Meta(_) | Self::OneOf { .. } | Self::Lookup(..) | Self::Labelled(_))
    }
}

impl Rule {
    /// What it asks before it does anything, and the rest.
    #[must_use]
    pub fn conditions(&self) -> (&[Statement], &[Statement]) {
        let end = self.statements.iter().position(|statement| !statement.is_condition());
        self.statements.split_at(end.unwrap_or(self.statements.len()))
    }

    /// A rule of these statements.
    #[must_use]
    pub fn new(statements: Vec<Statement>) -> Self {
        Self { statements, comment: None }
    }

    /// The same with a comment.
    #[must_use]
    pub fn comment(mut self, comment: &'static str) -> Self {
        self.comment = Some(comment);
        self
    }
}
