//! A small eBPF assembler: instructions with named jump targets (Documentation/bpf/standardization/instruction-set.rst).

/// A register; r0 result, r1–r5 arguments, r6–r9 kept across calls, r10 frame pointer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct R(pub(super) u8);

/// Frame pointer.
pub(super) const FP: R = R(10);

/// Width of a memory access.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Width {
    /// 4 octets.
    Word,
    /// 8 octets.
    Double,
}

impl Width {
    fn bits(self) -> u8 {
        match self {
            Self::Word => 0x00,
            Self::Double => 0x18,
        }
    }
}

const LDX_MEM: u8 = 0x61;
const ST_MEM: u8 = 0x62;
const STX_MEM: u8 = 0x63;
const MOV64_IMM: u8 = 0xb7;
const MOV64_REG: u8 = 0xbf;
const ADD64_IMM: u8 = 0x07;
const ADD64_REG: u8 = 0x0f;
const AND64_IMM: u8 = 0x57;
const MUL64_IMM: u8 = 0x27;
const JEQ_IMM: u8 = 0x15;
const JNE_IMM: u8 = 0x55;
const JNE_REG: u8 = 0x5d;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
const LDDW: u8 = 0x18;
/// `src_reg` of a `lddw` whose immediate is the descriptor of a map.
const PSEUDO_MAP_FD: u8 = 1;

/// Where a jump goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Label(usize);

/// Collects instructions; jumps are resolved by [`Assembler::finish`].
#[derive(Debug, Default)]
pub(super) struct Assembler {
    code: Vec<[u8; 8]>,
    labels: Vec<Option<usize>>,
    jumps: Vec<(usize, Label)>,
}

impl Assembler {
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label stands for the next instruction.
    pub(super) fn here(&mut self, label: Label) {
        self.labels[label.0] = Some(self.code.len());
    }

    /// `to = *(width *)(from + offset)`
    pub(super) fn load(&mut self, width: Width, to: R, from: R, offset: i16) {
        self.push(LDX_MEM | width.bits(), to, from, offset, 0);
    }

    /// `*(width *)(to + offset) = from`
    pub(super) fn store(&mut self, width: Width, to: R, offset: i16, from: R) {
        self.push(STX_MEM | width.bits(), to, from, offset, 0);
    }

    /// `*(width *)(to + offset) = value`
    pub(super) fn store_value(&mut self, width: Width, to: R, offset: i16, value: i32) {
        self.push(ST_MEM | width.bits(), to, R(0), offset, value);
    }

    pub(super) fn set(&mut self, to: R, value: i32) {
        self.push(MOV64_IMM, to, R(0), 0, value);
    }

    pub(super) fn copy(&mut self, to: R, from: R) {
        self.push(MOV64_REG, to, from, 0, 0);
    }

    pub(super) fn add(&mut self, to: R, value: i32) {
        self.push(ADD64_IMM, to, R(0), 0, value);
    }

    pub(super) fn add_register(&mut self, to: R, from: R) {
        self.push(ADD64_REG, to, from, 0, 0);
    }

    pub(super) fn and(&mut self, to: R, value: i32) {
        self.push(AND64_IMM, to, R(0), 0, value);
    }

    pub(super) fn multiply(&mut self, to: R, value: i32) {
        self.push(MUL64_IMM, to, R(0), 0, value);
    }

    pub(super) fn jump_if_equal(&mut self, what: R, value: i32, target: Label) {
        self.push_jump(JEQ_IMM, what, R(0), value, target);
    }

    pub(super) fn jump_if_not(&mut self, what: R, value: i32, target: Label) {
        self.push_jump(JNE_IMM, what, R(0), value, target);
    }

    pub(super) fn jump_if_different(&mut self, one: R, other: R, target: Label) {
        self.push_jump(JNE_REG, one, other, 0, target);
    }

    pub(super) fn call(&mut self, helper: i32) {
        self.push(CALL, R(0), R(0), 0, helper);
    }

    /// `to = map`, by its descriptor.
    pub(super) fn load_map(&mut self, to: R, descriptor: i32) {
        self.push(LDDW, to, R(PSEUDO_MAP_FD), 0, descriptor);
        self.push(0, R(0), R(0), 0, 0);
    }

    /// `return value`
    pub(super) fn exit_with(&mut self, value: i32) {
        self.set(R(0), value);
        self.push(EXIT, R(0), R(0), 0, 0);
    }

    /// The program's bytes. `None` if a label was never placed or is too far away.
    pub(super) fn finish(mut self) -> Option<Vec<u8>> {
        for (at, label) in &self.jumps {
            let target = self.labels[label.0]? as i64;
            let offset = i16::try_from(target - *at as i64 - 1).ok()?;
            self.code[*at][2..4].copy_from_slice(&offset.to_ne_bytes());
        }
        Some(self.code.concat())
    }

    fn push_jump(&mut self, operation: u8, to: R, from: R, value: i32, target: Label) {
        self.jumps.push((self.code.len(), target));
        self.push(operation, to, from, 0, value);
    }

    fn push(&mut self, operation: u8, to: R, from: R, offset: i16, value: i32) {
        let mut bytes = [operation, from.0 << 4 | to.0, 0, 0, 0, 0, 0, 0];
        bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
        bytes[4..8].copy_from_slice(&value.to_ne_bytes());
        self.code.push(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn encoding_is_the_kernels() {
        let mut asm = Assembler::default();
        let end = asm.label();
        asm.load(Width::Word, R(1), R(6), 36);
        asm.jump_if_not(R(1), 6, end);
        asm.load_map(R(1), 7);
        asm.store(Width::Double, FP, -24, R(2));
        asm.here(end);
        asm.exit_with(1);
        let expected: Vec<u8> = [
            [0x61, 0x61, 36, 0, 0, 0, 0, 0],
            [0x55, 0x01, 3, 0, 6, 0, 0, 0],
            [0x18, 0x11, 0, 0, 7, 0, 0, 0],
            [0; 8],
            [0x7b, 0x2a, 0xe8, 0xff, 0, 0, 0, 0],
            [0xb7, 0x00, 0, 0, 1, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ]
        .concat();
        assert_eq!(asm.finish(), Some(expected));
    }

    #[test]
    fn a_label_that_is_nowhere_is_refused() {
        let mut asm = Assembler::default();
        let nowhere = asm.label();
        asm.jump_if_equal(R(0), 0, nowhere);
        assert_eq!(asm.finish(), None);
    }
}
