//! How a program tells who sent a packet.

use super::assembler::{Label, Operation, Register, Size, When};
use super::{Compiler, Inexpressible, Sender, Stand, helper, stack, stack_address};
use crate::rules::ruleset::Field;
use Register::{R0, R1, R2, R3, R4, R5, R6, R7, R8, R10};

/// `struct bpf_sock`.
const SOCKET_STATE: i16 = 72;
const SYN_SENT: i32 = 2;
/// `BPF_F_CURRENT_NETNS`: that of the packet.
const SAME_NETNS: i32 = -1;

impl Compiler<'_> {
    /// That a socket of this user sent it, and one of the node's. Whoever has no socket is of no user.
    pub(super) fn sent_from(&mut self, user: u32, next: Label) {
        let assembler = &mut self.assembler;
        assembler.with_register(Operation::Move, R1, R6);
        assembler.call(helper::SOCKET_UID);
        assembler.jump_if_word(R0, When::NotEqual, user, next);
        assembler.with_register(Operation::Move, R1, R6);
        let number = match self.node {
            Sender::InNetns(cookie) => {
                assembler.call(helper::NETNS_COOKIE);
                cookie
            }
            Sender::InCgroup { level, id } => {
                assembler.with(Operation::Move, R2, level.cast_signed());
                assembler.call(helper::ANCESTOR_CGROUP);
                id
            }
        };
        assembler.wide(R1, number);
        assembler.jump_if_register(R0, When::NotEqual, R1, next);
    }

    /// Where the node's own sockets are told by their cgroup, that none of another's sent it. What has no socket any more is in none.
    pub(super) fn sent_by_no_other(&mut self, next: Label) {
        let (Stand::Tcx, Sender::InCgroup { level, id }) = (self.stand, self.node) else { return };
        let assembler = &mut self.assembler;
        let so = assembler.label();
        assembler.with_register(Operation::Move, R1, R6);
        assembler.with(Operation::Move, R2, level.cast_signed());
        assembler.call(helper::ANCESTOR_CGROUP);
        assembler.jump_if(R0, When::Equal, 0, so);
        assembler.wide(R1, id);
        assembler.jump_if_register(R0, When::NotEqual, R1, next);
        assembler.place(so);
    }

    /// That a packet which opens a TCP connection is from a socket of the node's cgroup. On its way to the receiver it has lost its
    /// sender: the socket is looked for by its addresses and ports, and is it where it waits for the answer to just that.
    /// What nobody on the node has sent is from none.
    pub(super) fn opened_from(&mut self, key: &[Field], next: Label) -> Result<(), Inexpressible> {
        let Sender::InCgroup { level, id } = self.node else { return Err(Inexpressible::Statement) };
        let (source, destination) = match key.contains(&Field::Ip6Source) {
            false => (Field::IpSource, Field::IpDestination),
            true => (Field::Ip6Source, Field::Ip6Destination),
        };
        // As the answer would have them.
        let mut to = stack::TUPLE;
        for field in [destination, source, Field::DestinationPort, Field::SourcePort] {
            let (at, length) = self.field(field, next);
            let size = if length == 2 { Size::Half } else { Size::Word };
            for offset in (0..length as i16).step_by(size.bytes()) {
                self.assembler.load(R1, size, R10, at + offset);
                self.assembler.store(R10, to + offset, size, R1);
            }
            to += length as i16;
        }
        let assembler = &mut self.assembler;
        assembler.with_register(Operation::Move, R1, R6);
        stack_address(assembler, R2, stack::TUPLE);
        assembler.with(Operation::Move, R3, (to - stack::TUPLE).into());
        assembler.with(Operation::Move, R4, SAME_NETNS);
        assembler.with(Operation::Move, R5, 0);
        assembler.call(helper::LOOK_UP_TCP);
        assembler.jump_if(R0, When::Equal, 0, next);
        assembler.with_register(Operation::Move, R7, R0);
        assembler.load(R8, Size::Word, R7, SOCKET_STATE);
        assembler.with_register(Operation::Move, R1, R7);
        assembler.with(Operation::Move, R2, level.cast_signed());
        assembler.call(helper::SOCKET_ANCESTOR_CGROUP);
        assembler.store(R10, stack::VALUE, Size::Double, R0);
        assembler.with_register(Operation::Move, R1, R7);
        assembler.call(helper::RELEASE_SOCKET);
        assembler.jump_if(R8, When::NotEqual, SYN_SENT, next);
        assembler.load(R0, Size::Double, R10, stack::VALUE);
        assembler.wide(R1, id);
        assembler.jump_if_register(R0, When::NotEqual, R1, next);
        Ok(())
    }
}
