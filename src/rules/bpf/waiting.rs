//! The program that waits on an end of a released sandbox's: attaching takes the kernel milliseconds, changing an element of a map one
//! microsecond. And the one that stands where one is about to come off, which takes the kernel as long.

use super::assembler::{Assembler, Operation, Register, Size, When};
use super::{Compiler, Map, Program, Sender, Stand, helper, sk_buff, stack};
use Register::{R0, R1, R6, R9, R10};

/// A program that lets everything pass.
#[must_use]
pub fn passing(stand: Stand) -> Program {
    let mut compiler = bare(stand, Vec::new());
    compiler.pass_packet();
    let Compiler { assembler, maps, .. } = compiler;
    // It has no jump.
    Program { stand, code: assembler.finish().unwrap_or_default(), maps }
}

fn bare(stand: Stand, maps: Vec<Map>) -> Compiler<'static> {
    Compiler {
        assembler: Assembler::default(),
        stand,
        // No rule of it asks.
        node: Sender::InNetns(0),
        longer: 0,
        sets: &[],
        maps,
    }
}

/// A program for either direction that lets everything pass until its element is set, and then nothing at all.
#[must_use]
pub fn waiting() -> Program {
    let mut compiler = bare(Stand::Tcx, vec![Map::Armed, Map::Drops]);
    let (drops, passes) = (compiler.assembler.label(), compiler.assembler.label());
    compiler.assembler.with_register(Operation::Move, R6, R1);
    compiler.assembler.store_word(R10, stack::KEY, 0);
    compiler.map(Map::Armed);
    compiler.assembler.call(helper::MAP_LOOKUP);
    // An array has its element; the verifier wants it said.
    compiler.assembler.jump_if(R0, When::Equal, 0, drops);
    compiler.assembler.load(R1, Size::Double, R0, 0);
    compiler.assembler.jump_if(R1, When::Equal, 0, passes);
    compiler.assembler.place(drops);
    compiler.assembler.load(R9, Size::Word, R6, sk_buff::LENGTH);
    compiler.count();
    compiler.drop_packet();
    compiler.assembler.place(passes);
    compiler.pass_packet();
    let Compiler { assembler, maps, .. } = compiler;
    // Its jumps are of a few instructions, and all of their labels are placed.
    Program { stand: Stand::Tcx, code: assembler.finish().unwrap_or_default(), maps }
}
