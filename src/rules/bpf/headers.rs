//! How a program gets at the headers of a packet: once, to its stack, for all rules.

use super::assembler::{Assembler, Label, Operation, Register, Size, When};
use super::{Compiler, Stand, helper, sk_buff, stack, stack_address};
use Register::{R0, R1, R2, R3, R4, R6, R7, R8, R9, R10};

/// So many bytes of a header are brought to the stack, at most: as far as fields go.
const NETWORK_BYTES: i32 = 48;
const TRANSPORT_BYTES: i32 = 32;

impl Compiler<'_> {
    /// Brings the headers to the stack. Where there is none, no rule that looks into it holds.
    pub(super) fn headers(&mut self) {
        let Self { assembler, stand, .. } = self;
        let link_header = stand.link_header();
        let hopeless = assembler.label();
        let (ready, no_network) = (assembler.label(), assembler.label());
        assembler.with_register(Operation::Move, R6, R1);
        for offset in (stack::TRANSPORT..0).step_by(8) {
            assembler.store_zero(R10, offset, Size::Double);
        }
        assembler.with(Operation::Move, R7, 0);
        assembler.with(Operation::Move, R8, 0);
        match stand {
            Stand::Tcx => {
                assembler.load(R9, Size::Word, R6, sk_buff::LENGTH);
                assembler.load(R1, Size::Word, R6, sk_buff::VLAN_PRESENT);
                assembler.jump_if(R1, When::NotEqual, 0, hopeless);
            }
            Stand::CgroupIngress | Stand::CgroupEgress => {
                assembler.load(R9, Size::Word, R6, sk_buff::LENGTH);
                assembler.load(R1, Size::Word, R6, sk_buff::PROTOCOL);
                assembler.store(R10, stack::LINK + 12, Size::Half, R1);
            }
            Stand::Xdp => {
                assembler.call(helper::XDP_LENGTH);
                assembler.with_register(Operation::Move, R9, R0);
            }
        }
        assembler.jump_if(R9, When::Less, link_header.max(1), hopeless);
        if link_header > 0 {
            assembler.with(Operation::Move, R2, 0);
            assembler.with(Operation::Move, R4, link_header);
            self.load_bytes(stack::LINK, hopeless);
        }
        let assembler = &mut self.assembler;
        assembler.with_register(Operation::Move, R7, R9);
        assembler.with(Operation::Subtract, R7, link_header);
        assembler.jump_if(R7, When::Less, 1, ready);
        at_most(assembler, R7, NETWORK_BYTES);
        assembler.with(Operation::Move, R2, link_header);
        assembler.with_register(Operation::Move, R4, R7);
        self.load_bytes(stack::NETWORK, no_network);
        self.transport_header(ready);
        let assembler = &mut self.assembler;
        assembler.jump(ready);
        assembler.place(no_network);
        assembler.with(Operation::Move, R7, 0);
        assembler.jump(ready);
        assembler.place(hopeless);
        self.count();
        self.drop_packet();
        self.assembler.place(ready);
        self.assembler.store(R10, stack::NETWORK_LENGTH, Size::Half, R7);
        self.assembler.store(R10, stack::TRANSPORT_LENGTH, Size::Half, R8);
    }

    /// Finds where the transport header is, as nftables does, and brings that to the stack.
    fn transport_header(&mut self, ready: Label) {
        const IP4_HEADER: i32 = 20;
        const IP6_HEADER: i32 = 40;
        let link_header = self.stand.link_header();
        let assembler = &mut self.assembler;
        let (v4, at) = (assembler.label(), assembler.label());
        // R3: the length of the packet, at most.
        assembler.with_register(Operation::Move, R3, R9);
        assembler.with(Operation::Subtract, R3, link_header);
        assembler.load(R1, Size::Half, R10, stack::LINK + 12);
        assembler.swap_to_network(R1, Size::Half);
        assembler.jump_if(R1, When::Equal, 0x0800, v4);
        assembler.jump_if(R1, When::NotEqual, 0x86dd, ready);
        assembler.jump_if(R7, When::Less, IP6_HEADER, ready);
        assembler.load(R1, Size::Byte, R10, stack::NETWORK);
        assembler.with(Operation::ShiftRight, R1, 4);
        assembler.jump_if(R1, When::NotEqual, 6, ready);
        assembler.load(R1, Size::Half, R10, stack::NETWORK + 4);
        assembler.swap_to_network(R1, Size::Half);
        assembler.with(Operation::Add, R1, IP6_HEADER);
        assembler.jump_if_register(R1, When::Greater, R3, ready);
        // What has an extension header first is matched by none of the rules: they ask for the protocol itself there.
        assembler.with(Operation::Move, R2, link_header + IP6_HEADER);
        assembler.jump(at);
        assembler.place(v4);
        assembler.jump_if(R7, When::Less, IP4_HEADER, ready);
        assembler.load(R2, Size::Byte, R10, stack::NETWORK);
        assembler.with_register(Operation::Move, R1, R2);
        assembler.with(Operation::ShiftRight, R1, 4);
        assembler.jump_if(R1, When::NotEqual, 4, ready);
        assembler.with(Operation::And, R2, 15);
        assembler.jump_if(R2, When::Less, 5, ready);
        assembler.with(Operation::ShiftLeft, R2, 2);
        assembler.load(R1, Size::Half, R10, stack::NETWORK + 2);
        assembler.swap_to_network(R1, Size::Half);
        assembler.jump_if_register(R1, When::Greater, R3, ready);
        assembler.jump_if_register(R1, When::Less, R2, ready);
        assembler.load(R1, Size::Half, R10, stack::NETWORK + 6);
        assembler.swap_to_network(R1, Size::Half);
        assembler.with(Operation::And, R1, 0x1fff);
        assembler.jump_if(R1, When::NotEqual, 0, ready);
        assembler.with(Operation::Add, R2, link_header);
        assembler.place(at);
        assembler.with_register(Operation::Move, R4, R9);
        assembler.with_register(Operation::Subtract, R4, R2);
        assembler.jump_if(R4, When::NotPositive, 0, ready);
        at_most(assembler, R4, TRANSPORT_BYTES);
        assembler.with_register(Operation::Move, R8, R4);
        let absent = assembler.label();
        self.load_bytes(stack::TRANSPORT, absent);
        let assembler = &mut self.assembler;
        assembler.jump(ready);
        assembler.place(absent);
        assembler.with(Operation::Move, R8, 0);
    }

    /// Brings R4 bytes of the frame from R2 on to the stack.
    fn load_bytes(&mut self, to: i16, otherwise: Label) {
        let assembler = &mut self.assembler;
        assembler.with_register(Operation::Move, R1, R6);
        stack_address(assembler, R3, to);
        assembler.call(match self.stand {
            Stand::Tcx | Stand::CgroupIngress | Stand::CgroupEgress => helper::SKB_LOAD_BYTES,
            Stand::Xdp => helper::XDP_LOAD_BYTES,
        });
        assembler.jump_if(R0, When::NotEqual, 0, otherwise);
    }
}

/// Makes a register no greater than this.
fn at_most(assembler: &mut Assembler, register: Register, most: i32) {
    let done = assembler.label();
    assembler.jump_if(register, When::Less, most, done);
    assembler.with(Operation::Move, register, most);
    assembler.place(done);
}
