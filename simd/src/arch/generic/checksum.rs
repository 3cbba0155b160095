//! CRC-32C over two units of the processor at once: the checksum instruction on three independent
//! streams, and carry-less multiplication on 64-byte lines.
//!
//! A block is cut into four consecutive pieces, worked on in step, each from a zero state:
//!
//! ```text
//! | lines: STEPS * LINES * 64 bytes | stream 0 | stream 1 | stream 2, then the rest of the block |
//!         fold                          crc        crc        crc      STEPS * WORDS * 8 bytes each
//! ```
//!
//! The checksum is linear: the value of the block is the sum of the pieces' values, each multiplied
//! by `x^(8 * bytes that follow it)`. Those powers are compile-time constants because the block size
//! is. The state before the block is moved over the block the same way, so consecutive blocks do not
//! wait for each other: this hides the tail of one block behind the start of the next.
//!
//! Polynomials are bit-reflected: bit 31 of a `u32` is `x^0`.

use super::{LINE_BYTES, LineBytes};
use crate::checksum::POLYNOMIAL_REFLECTED;

/// Number of streams that the checksum instruction interleaves: its latency in cycles.
const STREAMS: usize = 3;

/// What an instruction set can do for the checksum. A value is the proof that it is there.
pub(in crate::arch) trait Fold: Copy {
    /// 64 bytes in registers.
    type Line: Copy;

    /// Loads a line.
    fn load(self, from: &LineBytes) -> Self::Line;
    /// Returns `line` moved ahead by the distance of `key`, plus `next`.
    fn fold(self, line: Self::Line, key: FoldKey, next: Self::Line) -> Self::Line;
    /// Returns the state after the 64 bytes of `line`, from state zero.
    fn reduce(self, line: Self::Line) -> u32;
    /// Returns the state after eight more bytes.
    fn crc_word(self, crc: u32, word: u64) -> u32;
    /// Returns the state after one more byte.
    fn crc_byte(self, crc: u32, byte: u8) -> u32;
    /// Returns the carry-less product.
    fn multiply(self, a: u32, b: u32) -> u64;
}

/// Multipliers that move 16 bytes ahead by a distance: one for each half.
#[derive(Clone, Copy)]
pub(in crate::arch) struct FoldKey {
    pub(in crate::arch) low: u64,
    pub(in crate::arch) high: u64,
}

impl FoldKey {
    /// The low half holds the earlier bytes, 64 powers above the high half. The product of a
    /// reflected 64-bit and a reflected 32-bit value carries `x^33` too much.
    pub(in crate::arch) const fn of_bytes(distance: usize) -> Self {
        let bits = 8 * distance as u64;
        Self {
            low: power_of_x(bits + 64 - 33) as u64,
            high: power_of_x(bits - 33) as u64,
        }
    }
}

/// Returns `x^exponent` modulo the polynomial.
const fn power_of_x(exponent: u64) -> u32 {
    let mut result = 1 << 31;
    let mut square = 1 << 30;
    let mut left = exponent;
    while left > 0 {
        if left & 1 == 1 {
            result = product(result, square);
        }
        square = product(square, square);
        left >>= 1;
    }
    result
}

/// Returns `a * b` modulo the polynomial.
const fn product(a: u32, b: u32) -> u32 {
    let mut sum = 0;
    let mut shifted = b;
    let mut power = 0;
    while power < 32 {
        if a & (1 << (31 - power)) != 0 {
            sum ^= shifted;
        }
        shifted = shifted >> 1 ^ (POLYNOMIAL_REFLECTED & (shifted & 1).wrapping_neg());
        power += 1;
    }
    sum
}

/// Returns the multiplier that moves a state over `bytes` bytes, for [`Fold::multiply`] followed by
/// [`Fold::crc_word`] (which carry `x^33` between them).
const fn shift_over(bytes: usize) -> u32 {
    power_of_x(8 * bytes as u64 - 33)
}

/// A way to cut blocks of `BLOCK` bytes: `LINES` lines and `STREAMS * WORDS` words per step.
struct Cut<const LINES: usize, const WORDS: usize, const BLOCK: usize>;

impl<const LINES: usize, const WORDS: usize, const BLOCK: usize> Cut<LINES, WORDS, BLOCK> {
    const STEPS: usize = BLOCK / (LINES * LINE_BYTES + STREAMS * WORDS * 8);
    const LINES_BYTES: usize = Self::STEPS * LINES * LINE_BYTES;
    const STREAM_BYTES: usize = Self::STEPS * WORDS * 8;
    const FOLD_STEP: FoldKey = FoldKey::of_bytes(LINES * LINE_BYTES);
    const FOLD_LINE: FoldKey = FoldKey::of_bytes(LINE_BYTES);
    const SHIFT_STATE: u32 = shift_over(BLOCK);
    const SHIFT_LINES: u32 = shift_over(BLOCK - Self::LINES_BYTES);
    const SHIFT_STREAM_0: u32 = shift_over(BLOCK - Self::LINES_BYTES - Self::STREAM_BYTES);
    const SHIFT_STREAM_1: u32 = shift_over(BLOCK - Self::LINES_BYTES - 2 * Self::STREAM_BYTES);

    /// Returns the state after `block`.
    #[inline(always)]
    fn run<F: Fold>(isa: F, state: u32, block: &[u8; BLOCK]) -> u32 {
        let (line_bytes, rest) = block.split_at(Self::LINES_BYTES);
        let (stream_0, rest) = rest.split_at(Self::STREAM_BYTES);
        let (stream_1, rest) = rest.split_at(Self::STREAM_BYTES);
        let (stream_2, rest) = rest.split_at(Self::STREAM_BYTES);

        let mut lines = None;
        let mut crc = [0; STREAMS];
        let steps = line_steps::<LINES>(line_bytes)
            .iter()
            .zip(word_steps::<WORDS>(stream_0));
        let steps = steps
            .zip(word_steps::<WORDS>(stream_1))
            .zip(word_steps::<WORDS>(stream_2));
        for (((next, words_0), words_1), words_2) in steps {
            let next = load_lines(isa, next);
            lines = Some(match lines {
                None => next,
                Some(lines) => fold_lines(isa, lines, Self::FOLD_STEP, next),
            });
            for position in 0..WORDS {
                crc[0] = isa.crc_word(crc[0], u64::from_le_bytes(words_0[position]));
                crc[1] = isa.crc_word(crc[1], u64::from_le_bytes(words_1[position]));
                crc[2] = isa.crc_word(crc[2], u64::from_le_bytes(words_2[position]));
            }
        }
        for word in rest.as_chunks::<8>().0 {
            crc[2] = isa.crc_word(crc[2], u64::from_le_bytes(*word));
        }

        let lines = lines.expect("a block is at least one step");
        let mut line = lines[0];
        for next in &lines[1..] {
            line = isa.fold(line, Self::FOLD_LINE, *next);
        }
        let folded = isa.multiply(isa.reduce(line), Self::SHIFT_LINES)
            ^ isa.multiply(crc[0], Self::SHIFT_STREAM_0)
            ^ isa.multiply(crc[1], Self::SHIFT_STREAM_1);
        isa.crc_word(0, folded ^ isa.multiply(state, Self::SHIFT_STATE)) ^ crc[2]
    }
}

/// Returns the bytes as steps of whole lines.
#[inline(always)]
fn line_steps<const LINES: usize>(bytes: &[u8]) -> &[[LineBytes; LINES]] {
    bytes.as_chunks().0.as_chunks().0
}

/// Returns the bytes as steps of whole words.
#[inline(always)]
fn word_steps<const WORDS: usize>(bytes: &[u8]) -> &[[[u8; 8]; WORDS]] {
    bytes.as_chunks().0.as_chunks().0
}

/// Loads the lines of a step.
#[inline(always)]
fn load_lines<F: Fold, const LINES: usize>(isa: F, from: &[LineBytes; LINES]) -> [F::Line; LINES] {
    let mut lines = [isa.load(&from[0]); LINES];
    for position in 1..LINES {
        lines[position] = isa.load(&from[position]);
    }
    lines
}

/// Folds each line of a step onto the same line of the next step.
#[inline(always)]
fn fold_lines<F: Fold, const LINES: usize>(
    isa: F,
    mut lines: [F::Line; LINES],
    key: FoldKey,
    next: [F::Line; LINES],
) -> [F::Line; LINES] {
    for position in 0..LINES {
        lines[position] = isa.fold(lines[position], key, next[position]);
    }
    lines
}

/// Continues a CRC-32C over `bytes`: blocks of 16 KiB, of 4 KiB, of 1 KiB, of 256 bytes, then words,
/// then bytes.
#[inline(always)]
pub(in crate::arch) fn crc32c<F: Fold, const LINES: usize, const WORDS: usize>(
    isa: F,
    crc: u32,
    bytes: &[u8],
) -> u32 {
    let mut state = !crc;
    let (blocks, rest) = bytes.as_chunks();
    for block in blocks {
        state = Cut::<LINES, WORDS, 0x4000>::run(isa, state, block);
    }
    let (blocks, rest) = rest.as_chunks();
    for block in blocks {
        state = Cut::<LINES, WORDS, 0x1000>::run(isa, state, block);
    }
    let (blocks, rest) = rest.as_chunks();
    for block in blocks {
        state = Cut::<LINES, WORDS, 0x400>::run(isa, state, block);
    }
    let (blocks, rest) = rest.as_chunks();
    for block in blocks {
        state = Cut::<1, 2, 0x100>::run(isa, state, block);
    }
    let (words, rest) = rest.as_chunks();
    for word in words {
        state = isa.crc_word(state, u64::from_le_bytes(*word));
    }
    for byte in rest {
        state = isa.crc_byte(state, *byte);
    }
    !state
}
