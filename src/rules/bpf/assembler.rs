//! Instructions of eBPF, and an assembler for programs that only jump forward.

/// One instruction, as the kernel takes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    code: u8,
    /// The destination in the lower half, the source in the upper.
    registers: u8,
    offset: i16,
    immediate: i32,
}

/// `BPF_PSEUDO_MAP_FD`, as the source register of a wide load: the immediate names a map.
const MAP: u8 = 1;
const WIDE_LOAD: u8 = 0x18;

impl Instruction {
    /// The number of the map that this loads, as the program numbers its maps.
    #[must_use]
    pub fn map(self) -> Option<usize> {
        (self.code == WIDE_LOAD && self.registers >> 4 == MAP).then(|| usize::try_from(self.immediate).ok()).flatten()
    }

    /// The same with the descriptor of that map in its place.
    #[must_use]
    pub fn with_descriptor(self, descriptor: i32) -> Self {
        Self { immediate: descriptor, ..self }
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(self) -> [u8; 8] {
        let [a, b] = self.offset.to_ne_bytes();
        let [c, d, e, f] = self.immediate.to_ne_bytes();
        [self.code, self.registers, a, b, c, d, e, f]
    }
}

/// A register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "they have no other names")]
pub(super) enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    /// The end of the stack.
    R10,
}

/// How much is loaded or stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Size {
    Word = 0x00,
    Half = 0x08,
    Byte = 0x10,
    Double = 0x18,
}

impl Size {
    pub(super) fn bytes(self) -> usize {
        match self {
            Self::Byte => 1,
            Self::Half => 2,
            Self::Word => 4,
            Self::Double => 8,
        }
    }
}

/// When a jump is taken; the comparisons are unsigned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Equal = 0x10,
    Greater = 0x20,
    NotEqual = 0x50,
    /// The one comparison of signed numbers.
    NotPositive = 0xd0,
    Less = 0xa0,
}

/// What is computed, in 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    Add = 0x00,
    Subtract = 0x10,
    And = 0x50,
    ShiftLeft = 0x60,
    ShiftRight = 0x70,
    Move = 0xb0,
}

/// Where jumps go that is not known yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// The longest jump.
const FARTHEST: usize = i16::MAX as usize;

/// A program in the making.
#[derive(Debug, Default)]
pub(super) struct Assembler {
    code: Vec<Instruction>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    /// Jumps and the labels that they are to.
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    /// The program; `None` where a jump would be too long.
    pub(super) fn finish(mut self) -> Option<Vec<Instruction>> {
        for (from, Label(label)) in self.jumps {
            let distance = self.labels.get(label).copied().flatten()?.checked_sub(from + 1)?;
            self.code.get_mut(from)?.offset = i16::try_from(distance.min(FARTHEST + 1)).ok()?;
        }
        Some(self.code)
    }

    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// Puts a label here.
    pub(super) fn place(&mut self, Label(label): Label) {
        self.labels[label] = Some(self.code.len());
    }

    fn push(&mut self, code: u8, to: Register, from: u8, offset: i16, immediate: i32) {
        self.code.push(Instruction { code, registers: to as u8 | from << 4, offset, immediate });
    }

    pub(super) fn with(&mut self, operation: Operation, to: Register, number: i32) {
        self.push(0x07 | operation as u8, to, 0, 0, number);
    }

    pub(super) fn with_register(&mut self, operation: Operation, to: Register, from: Register) {
        self.push(0x0f | operation as u8, to, from as u8, 0, 0);
    }

    /// Keeps the bits of the lower half that are in `mask`.
    pub(super) fn mask(&mut self, to: Register, mask: u32) {
        self.push(0x54, to, 0, 0, mask.cast_signed());
    }

    /// Puts the number into the order of the network, or back.
    pub(super) fn swap_to_network(&mut self, to: Register, size: Size) {
        if size != Size::Byte {
            self.push(0xdc, to, 0, 0, size.bytes() as i32 * 8);
        }
    }

    pub(super) fn load(&mut self, to: Register, size: Size, from: Register, offset: i16) {
        self.push(0x61 | size as u8, to, from as u8, offset, 0);
    }

    pub(super) fn store(&mut self, to: Register, offset: i16, size: Size, from: Register) {
        self.push(0x63 | size as u8, to, from as u8, offset, 0);
    }

    pub(super) fn store_zero(&mut self, to: Register, offset: i16, size: Size) {
        self.push(0x62 | size as u8, to, 0, offset, 0);
    }

    pub(super) fn store_word(&mut self, to: Register, offset: i16, number: i32) {
        self.push(0x62, to, 0, offset, number);
    }

    /// Adds to 64 bits of memory what nobody else may be in the middle of.
    pub(super) fn add_atomically(&mut self, to: Register, offset: i16, from: Register) {
        self.push(0xdb, to, from as u8, offset, 0);
    }

    pub(super) fn wide(&mut self, to: Register, number: u64) {
        self.push(WIDE_LOAD, to, 0, 0, (number as u32).cast_signed());
        self.push(0, Register::R0, 0, 0, ((number >> 32) as u32).cast_signed());
    }

    pub(super) fn map(&mut self, to: Register, map: usize) {
        self.push(WIDE_LOAD, to, MAP, 0, map as i32);
        self.push(0, Register::R0, 0, 0, 0);
    }

    pub(super) fn jump(&mut self, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.push(0x05, Register::R0, 0, 0, 0);
    }

    /// Compares 64 bits with a number.
    pub(super) fn jump_if(&mut self, register: Register, when: When, number: i32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.push(0x05 | when as u8, register, 0, 0, number);
    }

    /// Compares the lower 32 bits with a number.
    pub(super) fn jump_if_word(&mut self, register: Register, when: When, number: u32, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.push(0x06 | when as u8, register, 0, 0, number.cast_signed());
    }

    /// Compares 64 bits with another register's.
    pub(super) fn jump_if_register(&mut self, register: Register, when: When, other: Register, label: Label) {
        self.jumps.push((self.code.len(), label));
        self.push(0x0d | when as u8, register, other as u8, 0, 0);
    }

    pub(super) fn call(&mut self, helper: i32) {
        self.push(0x85, Register::R0, 0, 0, helper);
    }

    pub(super) fn exit(&mut self, result: i32) {
        self.with(Operation::Move, Register::R0, result);
        self.push(0x95, Register::R0, 0, 0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_are_counted_from_the_next_instruction() {
        let mut assembler = Assembler::default();
        let end = assembler.label();
        assembler.jump_if(Register::R1, When::Equal, 7, end);
        assembler.wide(Register::R2, 0x1122_3344_5566_7788);
        assembler.place(end);
        assembler.exit(2);
        let code = assembler.finish().unwrap();
        assert_eq!(code.len(), 5);
        assert_eq!(code[0], Instruction { code: 0x15, registers: 1, offset: 2, immediate: 7 });
        assert_eq!((code[1].immediate, code[2].immediate), (0x5566_7788, 0x1122_3344));
        assert_eq!(code[1].map(), None);
    }

    #[test]
    fn a_jump_that_is_too_long_or_leads_nowhere_makes_no_program() {
        let mut assembler = Assembler::default();
        let end = assembler.label();
        assembler.jump(end);
        for _ in 0..=FARTHEST {
            assembler.call(5);
        }
        assembler.place(end);
        assembler.exit(0);
        assert_eq!(assembler.finish(), None);
        let mut assembler = Assembler::default();
        let nowhere = assembler.label();
        assembler.jump(nowhere);
        assert_eq!(assembler.finish(), None);
    }
}
