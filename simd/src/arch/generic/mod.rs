//! The page algorithms, written once over the line operations of an instruction set.
//!
//! A line is 64 bytes: a cache line, an XXH3 stripe, one AVX-512 register, two AVX2 registers,
//! eight 64-bit words. Every function here is `#[inline(always)]`: it becomes part of the
//! `#[target_feature]` function that calls it, and is compiled for that instruction set.

#[cfg(target_arch = "x86_64")]
mod checksum;
mod compare;
mod delta;
mod fingerprint;
mod shuffle;
mod zero;

#[cfg(target_arch = "x86_64")]
pub(super) use checksum::{Fold, FoldKey, crc32c};
pub(super) use compare::{differing_bytes, equal};
pub(super) use delta::xor;
pub(super) use fingerprint::fingerprint;
pub(super) use shuffle::{COLUMNS, shuffle, shuffle_gain, unshuffle};
pub(super) use zero::is_zero;

use crate::{LivePage, PAGE_BYTES, Page};

/// Bytes of a line.
pub(super) const LINE_BYTES: usize = 64;
/// Lines of a page.
pub(super) const LINES_PER_PAGE: usize = PAGE_BYTES / LINE_BYTES;

/// The memory of a line.
pub(super) type LineBytes = [u8; LINE_BYTES];

/// What an instruction set can do with a line of 64 bytes.
///
/// A value of the implementing type is the proof that the processor has the instruction set; it
/// takes `unsafe` to make one, and nothing more to use it.
pub(super) trait Isa: Copy {
    /// 64 bytes in registers.
    type Line: Copy;
    /// Counts of differing bytes, in whatever shape is cheap; good for one page.
    type Tally: Copy;

    /// Loads a line.
    fn load(self, from: &LineBytes) -> Self::Line;
    /// Loads line `line` of a page that others may be writing.
    ///
    /// # Panics
    /// When `line` is not below [`LINES_PER_PAGE`].
    fn load_live(self, page: LivePage<'_>, line: usize) -> Self::Line;
    /// Stores a line.
    fn store(self, to: &mut LineBytes, line: Self::Line);
    /// Returns `a | b`.
    fn or(self, a: Self::Line, b: Self::Line) -> Self::Line;
    /// Returns `a ^ b`.
    fn xor(self, a: Self::Line, b: Self::Line) -> Self::Line;
    /// Returns whether all 64 bytes are zero.
    fn is_zero(self, line: Self::Line) -> bool;

    /// Returns a tally of nothing.
    fn tally_start(self) -> Self::Tally;
    /// Adds the number of bytes of `line` that are not zero. At most [`LINES_PER_PAGE`] times.
    fn tally(self, tally: Self::Tally, line: Self::Line) -> Self::Tally;
    /// Returns the number of bytes tallied.
    fn tally_total(self, tally: Self::Tally) -> u32;

    /// Returns the byte columns of 64 words: byte `i` of line `k` is byte `k` of word `i`.
    fn split(self, words: [Self::Line; COLUMNS]) -> [Self::Line; COLUMNS];
    /// Returns the 64 words whose byte columns these are.
    fn join(self, columns: [Self::Line; COLUMNS]) -> [Self::Line; COLUMNS];
    /// Returns a line whose 32-bit words are zero exactly where that of `a` or that of `b` is.
    fn and_words(self, a: Self::Line, b: Self::Line) -> Self::Line;
    /// Returns `line` with a zero for each 32-bit word where that of `keep` is zero.
    fn keep_words(self, line: Self::Line, keep: Self::Line) -> Self::Line;

    /// XXH3 accumulation of one stripe, per 64-bit lane `i`, with `k = data ^ secret`:
    /// `acc[i] + low32(k[i]) * high32(k[i]) + data[i ^ 1]`.
    fn accumulate(self, acc: Self::Line, data: Self::Line, secret: Self::Line) -> Self::Line;
    /// XXH3 scramble, per 64-bit lane: `(acc ^ acc >> 47 ^ secret) * PRIME32_1`.
    fn scramble(self, acc: Self::Line, secret: Self::Line) -> Self::Line;
}

/// Returns the page as its lines.
#[inline(always)]
fn lines(page: &Page) -> &[LineBytes; LINES_PER_PAGE] {
    let (lines, _) = page.as_chunks();
    lines.try_into().expect("a page is a whole number of lines")
}

/// Returns the page as its lines, to write.
#[inline(always)]
fn lines_mut(page: &mut Page) -> &mut [LineBytes; LINES_PER_PAGE] {
    let (lines, _) = page.as_chunks_mut();
    lines.try_into().expect("a page is a whole number of lines")
}
