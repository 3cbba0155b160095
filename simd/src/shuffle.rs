//! Bytes of a page in the order of their place in a word: what lies above each other in a table of
//! words, as in pointers, counters and lengths, comes to lie side by side, where a codec sees it.
//!
//! The filter is the one that HDF5 and Blosc call "shuffle", with elements of 4 bytes.

use crate::{Kernels, Page};

/// Writes the page column by column.
pub(crate) type Shuffle = unsafe fn(&Page, &mut Page);

/// Writes the page whose columns these are.
pub(crate) type Unshuffle = unsafe fn(&Page, &mut Page);

/// Returns a guess of what shuffling brings.
pub(crate) type ShuffleGain = unsafe fn(&Page) -> i32;

impl Kernels {
    /// Writes the four byte columns of the 1024 words of `page` to `out`, one after the other.
    ///
    /// `out[k * 1024 + i] = page[4 * i + k]` for `k` in `0..4`, `i` in `0..1024`:
    ///
    /// ```text
    /// page | a0 b0 c0 d0 | a1 b1 c1 d1 | a2 b2 c2 d2 | ...
    /// out  | a0 a1 a2 ... | b0 b1 b2 ... | c0 c1 c2 ... | d0 d1 d2 ... |
    /// ```
    #[inline]
    pub fn shuffle(&self, page: &Page, out: &mut Page) {
        // SAFETY: a `Kernels` is only handed out after its processor features were detected
        // (`Table::is_available`), the sole precondition of the table's functions.
        unsafe { (self.table.shuffle)(page, out) }
    }

    /// Writes to `out` the page that [`Kernels::shuffle`] made `shuffled` of.
    ///
    /// `out[4 * i + k] = shuffled[k * 1024 + i]` for `k` in `0..4`, `i` in `0..1024`.
    #[inline]
    pub fn unshuffle(&self, shuffled: &Page, out: &mut Page) {
        // SAFETY: as in `shuffle`: the features were detected before this table was handed out.
        unsafe { (self.table.unshuffle)(shuffled, out) }
    }

    /// Returns a cheap guess of what [`Kernels::shuffle`] brings a codec that looks for repeats:
    /// the higher, the more. Between -4032 and 4032, the same number by every instruction set.
    ///
    /// A word is *new* when it equals none of those 1, 2, 3, 4, 8 and 16 words before it: the codec
    /// finds the others whatever their order. Each byte of a new word counts 1 when it equals the
    /// byte 4 before it, its neighbour once shuffled, and -1 when it equals the byte just before it,
    /// its neighbour now. The first 16 words are compared with and do not count.
    #[inline]
    pub fn shuffle_gain(&self, page: &Page) -> i32 {
        // SAFETY: as in `shuffle`: the features were detected before this table was handed out.
        unsafe { (self.table.shuffle_gain)(page) }
    }
}
