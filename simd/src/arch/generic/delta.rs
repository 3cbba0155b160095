//! Delta over lines.

use super::{Isa, lines, lines_mut};
use crate::Page;

/// Writes `a ^ b` to `out` and returns how many of its bytes are not zero.
#[inline(always)]
pub(crate) fn xor<I: Isa>(isa: I, a: &Page, b: &Page, out: &mut Page) -> u32 {
    let mut tally = isa.tally_start();
    for ((a, b), out) in lines(a).iter().zip(lines(b)).zip(lines_mut(out)) {
        let difference = isa.xor(isa.load(a), isa.load(b));
        isa.store(out, difference);
        tally = isa.tally(tally, difference);
    }
    isa.tally_total(tally)
}
