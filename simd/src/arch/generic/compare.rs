//! Comparison over lines.

use super::{Isa, lines};
use crate::Page;

/// Lines looked at between two branches.
const LINES_PER_STEP: usize = 2;

/// Returns whether the pages hold the same bytes.
#[inline(always)]
pub(crate) fn equal<I: Isa>(isa: I, a: &Page, b: &Page) -> bool {
    let (a_steps, _) = lines(a).as_chunks::<LINES_PER_STEP>();
    let (b_steps, _) = lines(b).as_chunks::<LINES_PER_STEP>();
    for (a, b) in a_steps.iter().zip(b_steps) {
        let front = isa.xor(isa.load(&a[0]), isa.load(&b[0]));
        let back = isa.xor(isa.load(&a[1]), isa.load(&b[1]));
        if !isa.is_zero(isa.or(front, back)) {
            return false;
        }
    }
    true
}

/// Returns how many byte positions differ.
#[inline(always)]
pub(crate) fn differing_bytes<I: Isa>(isa: I, a: &Page, b: &Page) -> u32 {
    let mut tally = isa.tally_start();
    for (a, b) in lines(a).iter().zip(lines(b)) {
        tally = isa.tally(tally, isa.xor(isa.load(a), isa.load(b)));
    }
    isa.tally_total(tally)
}
