//! The rules of a host guard's chain as an eBPF program, for where packets are taken past netfilter.
//!
//! Pure: a chain goes in, instructions come out; how they get into the kernel is the business of `kernel::bpf`. The chain is
//! the one that nftables is given, so that both layers mean the same. Where nftables looks and this would not, it is done as
//! nftables does it: a transport header is looked at in no fragment but the first, and in no packet that is shorter than its
//! header says; a frame with a VLAN tag is none of IP.
//!
//! On a cgroup there is no frame: of its header a program has the type alone, as the kernel knows it.
//!
//! Three things differ. Flows are in maps that forget what was used least recently, so that they are never full, and need no second
//! set for bursts. Who sent a packet is not told by the user of its socket alone: a redirected frame of a
//! neighbour still has the neighbour's socket, whose user may be 0 too. And on the pod's side of a veth no socket is
//! known at all: there a probe passes that was let through at the host's end before.

mod assembler;
mod headers;
mod map;
mod pieces;
mod sender;
mod stand;
#[cfg(test)]
mod tests;
mod waiting;

pub use assembler::Instruction;
pub use map::{Map, VALUE};
pub use stand::Stand;
pub use waiting::{passing, waiting};

use assembler::{Assembler, Label, Operation, Register, Size, When};
use map::padded;
use pieces::{aligned, chunks, native};
use stand::ETHERNET_HEADER;

use crate::rules::containment::is_burst_set;
use crate::rules::ruleset::{Base, Chain, Content, Field, Hook, Meta, Ranges, Rule, Set, Statement, Test, Value};
use Register::{R0, R1, R2, R3, R4, R6, R9, R10};

/// How the node's own sockets are told, besides by their user; on a cgroup by the second alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sender {
    /// By the cookie of their netns (Linux 6.15).
    InNetns(u64),
    /// By the cgroup that they are in, or below.
    InCgroup {
        /// How deep in the tree it is; the root is 0.
        level: u32,
        /// Its ID.
        id: u64,
    },
}

/// A program, and the maps that it uses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// Where it belongs.
    pub stand: Stand,
    /// Its instructions; those that load a map name it by its place in `maps`.
    pub code: Vec<Instruction>,
    /// Its maps.
    pub maps: Vec<Map>,
}

/// Why a chain has no program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Inexpressible {
    /// It has a statement that only netfilter knows.
    #[error("a rule asks for what only netfilter knows")]
    Statement,
    /// It would be too long.
    #[error("the policy makes a program that is too long")]
    TooLong,
}

/// The parts of the stack, by their first byte.
mod stack {
    pub(super) const LINK: i16 = -16;
    pub(super) const NETWORK: i16 = -64;
    pub(super) const TRANSPORT: i16 = -96;
    pub(super) const KEY: i16 = -128;
    pub(super) const VALUE: i16 = -144;
    /// How many bytes there are of the network header, and of the transport header, in 16 bits each. In a register the verifier would
    /// know their bounds after each comparison, and go through the rest of the program once for each of them: half a second.
    pub(super) const NETWORK_LENGTH: i16 = -146;
    pub(super) const TRANSPORT_LENGTH: i16 = -148;
    /// Addresses and ports, by which a socket is looked for.
    pub(super) const TUPLE: i16 = -192;
}

/// `struct __sk_buff`.
mod sk_buff {
    pub(super) const LENGTH: i16 = 0;
    pub(super) const PACKET_TYPE: i16 = 4;
    pub(super) const PROTOCOL: i16 = 16;
    pub(super) const VLAN_PRESENT: i16 = 20;
}

/// Numbers of `enum bpf_func_id`.
mod helper {
    pub(super) const MAP_LOOKUP: i32 = 1;
    pub(super) const MAP_UPDATE: i32 = 2;
    pub(super) const KTIME: i32 = 5;
    pub(super) const SKB_LOAD_BYTES: i32 = 26;
    pub(super) const SOCKET_UID: i32 = 47;
    pub(super) const ANCESTOR_CGROUP: i32 = 83;
    pub(super) const LOOK_UP_TCP: i32 = 84;
    pub(super) const RELEASE_SOCKET: i32 = 86;
    pub(super) const NETNS_COOKIE: i32 = 122;
    pub(super) const SOCKET_ANCESTOR_CGROUP: i32 = 129;
    pub(super) const XDP_LENGTH: i32 = 188;
    pub(super) const XDP_LOAD_BYTES: i32 = 189;
}

const NANOSECONDS: u64 = 1_000_000_000;

/// The program of a chain, in which its branches are inlined. `node` says how the node's own sockets are told.
///
/// # Errors
/// [`Inexpressible`].
pub fn program(chain: &Chain, sets: &[Set], stand: Stand, node: Sender) -> Result<Program, Inexpressible> {
    let mut compiler = Compiler {
        assembler: Assembler::default(),
        stand,
        node,
        // nftables has taken the Ethernet header off what comes in; a program has it in both directions.
        longer: if matches!(chain.hook, Hook::Ingress(_)) { ETHERNET_HEADER as u32 } else { 0 },
        sets,
        maps: vec![Map::Drops],
    };
    compiler.headers();
    for rule in &chain.rules {
        compiler.rule(rule)?;
    }
    compiler.count();
    compiler.drop_packet();
    let Compiler { assembler, maps, .. } = compiler;
    Ok(Program { stand, code: assembler.finish().ok_or(Inexpressible::TooLong)?, maps })
}

/// The registers: R6 has the context, R9 the length of the frame; R7 and R8, until all headers are there, how many bytes there are of
/// the network header and of the transport header.
struct Compiler<'a> {
    assembler: Assembler,
    stand: Stand,
    node: Sender,
    longer: u32,
    sets: &'a [Set],
    maps: Vec<Map>,
}

impl Compiler<'_> {
    fn rule(&mut self, rule: &Rule) -> Result<(), Inexpressible> {
        let sets = rule.statements.iter().filter_map(|statement| match statement {
            Statement::Lookup(_, set) | Statement::Update { set, .. } => Some(set),
            _ => None,
        });
        let asks_sender = rule.statements.iter().any(|statement| matches!(statement, Statement::Meta(Meta::Skuid(_))));
        let is_of_burst = sets.into_iter().any(|set| is_burst_set(set));
        let accepts = rule.statements.contains(&Statement::Accept);
        let cannot_tell = asks_sender && self.stand == Stand::Xdp && !accepts;
        let is_last = matches!(rule.statements[..], [Statement::Counter, Statement::Drop]);
        // What is kept of packets is kept by the other layers.
        let only_reports = matches!(rule.statements[..], [Statement::Report(_)]);
        if is_of_burst || is_last || only_reports || cannot_tell {
            return Ok(());
        }
        let next = self.assembler.label();
        for statement in &rule.statements {
            match statement {
                Statement::Match(field, test) => self.test(*field, *test, next),
                Statement::Meta(Meta::Skuid(user)) => match self.stand {
                    Stand::Tcx => self.sent_from(*user, next),
                    Stand::Xdp => {
                        let (key, set) = opened_by(rule)?;
                        self.lookup(key, set, next)?;
                    }
                    // No socket of another one is known there, but that it has one can be found out.
                    Stand::CgroupIngress => self.opened_from(opened_by(rule)?.0, next)?,
                    Stand::CgroupEgress => return Err(Inexpressible::Statement),
                },
                Statement::Meta(meta) => self.meta(meta, next)?,
                Statement::OneOf { key, elements } => self.is_among(key, elements, next),
                Statement::Lookup(key, set) => self.lookup(key, set, next)?,
                Statement::Update { key, set, .. } => self.update(key, set, next)?,
                Statement::Labelled(_) => self.sent_by_no_other(next),
                Statement::Report(_) | Statement::Jump(_) | Statement::Label(_) => {
                    return Err(Inexpressible::Statement);
                }
                Statement::Counter => self.count(),
                Statement::Accept => self.pass_packet(),
                Statement::Drop => self.drop_packet(),
            }
        }
        self.assembler.place(next);
        Ok(())
    }

    fn pass_packet(&mut self) {
        self.assembler.exit(self.stand.accept());
    }

    fn drop_packet(&mut self) {
        self.assembler.exit(self.stand.drop());
    }

    fn meta(&mut self, meta: &Meta, next: Label) -> Result<(), Inexpressible> {
        let assembler = &mut self.assembler;
        match meta {
            Meta::Length(length) => {
                // Read anew, for the verifier's sake too.
                match self.stand {
                    Stand::Tcx | Stand::CgroupIngress | Stand::CgroupEgress => {
                        assembler.load(R0, Size::Word, R6, sk_buff::LENGTH);
                    }
                    Stand::Xdp => {
                        assembler.with_register(Operation::Move, R1, R6);
                        assembler.call(helper::XDP_LENGTH);
                    }
                }
                assembler.jump_if_word(R0, When::NotEqual, length + self.longer, next);
            }
            Meta::ForThisHost => {
                if self.stand == Stand::Tcx {
                    assembler.load(R1, Size::Word, R6, sk_buff::PACKET_TYPE);
                    assembler.jump_if(R1, When::NotEqual, 0, next);
                }
            }
            Meta::Iifname(_)
            | Meta::Oifname(_)
            | Meta::Skuid(_)
            | Meta::HasUser
            | Meta::Cgroup(_)
            | Meta::Nfproto { .. }
            | Meta::Protocol(_) => {
                return Err(Inexpressible::Statement);
            }
        }
        Ok(())
    }

    /// Makes sure that there is as much of a header, and says where on the stack the field is.
    fn field(&mut self, field: Field, next: Label) -> (i16, usize) {
        let (base, offset, length) = field.place();
        let (start, available) = match base {
            Base::Link => (stack::LINK, None),
            Base::Network => (stack::NETWORK, Some(stack::NETWORK_LENGTH)),
            Base::Transport => (stack::TRANSPORT, Some(stack::TRANSPORT_LENGTH)),
        };
        if let Some(available) = available {
            self.assembler.load(R1, Size::Half, R10, available);
            self.assembler.jump_if(R1, When::Less, (offset + length) as i32, next);
        }
        (start + offset as i16, length as usize)
    }

    fn test(&mut self, field: Field, test: Test, next: Label) {
        let (at, length) = self.field(field, next);
        let all = all_of(length);
        match (test, all) {
            (Test::Is(value), Some(mask)) | (Test::Masked(mask, value), _) => self.compare(at, mask, value, next),
            (Test::Not(value), Some(mask)) | (Test::NotMasked(mask, value), _) => {
                let (same, differs) = (next, self.assembler.label());
                self.compare(at, mask, value, differs);
                self.assembler.jump(same);
                self.assembler.place(differs);
            }
            (Test::Range(first, last), _) => self.range(at, &first, &last, next),
            // No field is longer than a value.
            (Test::Is(_) | Test::Not(_), None) => self.assembler.jump(next),
        }
    }

    /// Goes on where the bytes on the stack are these under the mask, else to the label.
    fn compare(&mut self, at: i16, mask: Value, value: Value, otherwise: Label) {
        for (offset, size) in chunks(at, value.len()) {
            let (mask, value) = (native(&mask, offset, size), native(&value, offset, size));
            if mask == 0 {
                continue;
            }
            self.assembler.load(R1, size, R10, at + offset as i16);
            if mask != u32::MAX >> (32 - 8 * size.bytes()) {
                self.assembler.mask(R1, mask);
            }
            self.assembler.jump_if_word(R1, When::NotEqual, value, otherwise);
        }
    }

    /// Goes on where the number on the stack is between these, or one of them.
    fn range(&mut self, at: i16, first: &Value, last: &Value, otherwise: Label) {
        self.bound(at, first, [When::Greater, When::Less], otherwise);
        self.bound(at, last, [When::Less, When::Greater], otherwise);
    }

    /// Goes on where the number on the stack is beyond a bound, or is it.
    fn bound(&mut self, at: i16, bound: &Value, [beyond, short]: [When; 2], next: Label) {
        let holds = self.assembler.label();
        for (offset, size) in chunks(at, bound.len()) {
            let bytes = &bound[offset..offset + size.bytes()];
            let number = bytes.iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
            self.assembler.load(R1, size, R10, at + offset as i16);
            self.assembler.swap_to_network(R1, size);
            self.assembler.jump_if_word(R1, beyond, number, holds);
            self.assembler.jump_if_word(R1, short, number, next);
        }
        self.assembler.place(holds);
    }

    /// Puts a key on the stack, as nftables puts it into registers, and says of which set.
    fn key(&mut self, key: &[Field], set: &str, next: Label) -> Result<Set, Inexpressible> {
        let set = self.sets.iter().find(|known| known.name == set).ok_or(Inexpressible::Statement)?.clone();
        let mut to = stack::KEY;
        for &field in key {
            let (at, length) = self.field(field, next);
            if padded(length) != length {
                // What is behind the field in its last four bytes.
                self.assembler.store_zero(R10, to + padded(length) as i16 - 4, Size::Word);
            }
            for (offset, size) in chunks(at, length).into_iter().flat_map(|chunk| aligned(to, chunk)) {
                self.assembler.load(R1, size, R10, at + offset as i16);
                self.assembler.store(R10, to + offset as i16, size, R1);
            }
            to += padded(length) as i16;
        }
        Ok(set)
    }

    /// Puts a map into R1, and the address of the key into R2.
    fn map(&mut self, map: Map) {
        let number = self.maps.iter().position(|known| *known == map).unwrap_or_else(|| {
            self.maps.push(map);
            self.maps.len() - 1
        });
        self.assembler.map(R1, number);
        stack_address(&mut self.assembler, R2, stack::KEY);
    }

    fn lookup(&mut self, key: &[Field], set: &str, next: Label) -> Result<(), Inexpressible> {
        let known = self.sets.iter().find(|known| known.name == set).ok_or(Inexpressible::Statement)?;
        let timeout = match &known.content {
            Content::Dynamic { timeout, .. } => u64::from(*timeout) * NANOSECONDS,
            Content::Fixed { elements, .. } => {
                self.is_among(key, elements, next);
                return Ok(());
            }
        };
        let set = self.key(key, set, next)?;
        self.map(Map::Set(set));
        let assembler = &mut self.assembler;
        assembler.call(helper::MAP_LOOKUP);
        assembler.jump_if(R0, When::Equal, 0, next);
        assembler.load(R1, Size::Double, R0, 0);
        assembler.store(R10, stack::VALUE, Size::Double, R1);
        assembler.call(helper::KTIME);
        assembler.load(R1, Size::Double, R10, stack::VALUE);
        // Another processor may have used it since this one began.
        let fresh = assembler.label();
        assembler.jump_if_register(R1, When::Greater, R0, fresh);
        assembler.with_register(Operation::Subtract, R0, R1);
        assembler.wide(R1, timeout);
        assembler.jump_if_register(R0, When::Greater, R1, next);
        assembler.place(fresh);
        Ok(())
    }

    /// Goes on where the fields are in the ranges of one of the elements.
    fn is_among(&mut self, key: &[Field], elements: &[Ranges], next: Label) {
        let fields: Vec<_> = key.iter().map(|&field| self.field(field, next)).collect();
        let found = self.assembler.label();
        for Ranges(ranges) in elements {
            let another = self.assembler.label();
            for (&(at, length), (first, last)) in fields.iter().zip(ranges) {
                match all_of(length) {
                    Some(mask) if first == last => self.compare(at, mask, *first, another),
                    _ => self.range(at, first, last, another),
                }
            }
            self.assembler.jump(found);
            self.assembler.place(another);
        }
        self.assembler.jump(next);
        self.assembler.place(found);
    }

    fn update(&mut self, key: &[Field], set: &str, next: Label) -> Result<(), Inexpressible> {
        let set = self.key(key, set, next)?;
        let assembler = &mut self.assembler;
        let (new, done) = (assembler.label(), assembler.label());
        assembler.call(helper::KTIME);
        assembler.store(R10, stack::VALUE, Size::Double, R0);
        assembler.store_word(R10, stack::VALUE + 8, 1);
        assembler.store_word(R10, stack::VALUE + 12, 0);
        self.map(Map::Set(set.clone()));
        let assembler = &mut self.assembler;
        assembler.call(helper::MAP_LOOKUP);
        assembler.jump_if(R0, When::Equal, 0, new);
        assembler.load(R1, Size::Double, R10, stack::VALUE);
        assembler.store(R0, 0, Size::Double, R1);
        assembler.with(Operation::Move, R1, 1);
        assembler.add_atomically(R0, 8, R1);
        assembler.jump(done);
        assembler.place(new);
        self.map(Map::Set(set));
        let assembler = &mut self.assembler;
        stack_address(assembler, R3, stack::VALUE);
        assembler.with(Operation::Move, R4, 0);
        assembler.call(helper::MAP_UPDATE);
        assembler.jump_if(R0, When::NotEqual, 0, next);
        assembler.place(done);
        Ok(())
    }

    /// Counts a packet that is dropped.
    fn count(&mut self) {
        self.assembler.store_word(R10, stack::KEY, 0);
        self.map(Map::Drops);
        let assembler = &mut self.assembler;
        let done = assembler.label();
        assembler.call(helper::MAP_LOOKUP);
        assembler.jump_if(R0, When::Equal, 0, done);
        assembler.with(Operation::Move, R1, 1);
        assembler.add_atomically(R0, 0, R1);
        assembler.add_atomically(R0, 8, R9);
        assembler.place(done);
    }
}

/// A mask of all bits of so many bytes.
fn all_of(length: usize) -> Option<Value> {
    Value::new(&vec![0xff; length])
}

/// The key and the set of the flow that a rule opens.
fn opened_by(rule: &Rule) -> Result<(&'static [Field], &str), Inexpressible> {
    let opens = rule.statements.iter().find_map(|statement| match statement {
        Statement::Update { key, set, .. } => Some((*key, set.as_str())),
        _ => None,
    });
    opens.ok_or(Inexpressible::Statement)
}

fn stack_address(assembler: &mut Assembler, to: Register, at: i16) {
    assembler.with_register(Operation::Move, to, R10);
    assembler.with(Operation::Add, to, at.into());
}
