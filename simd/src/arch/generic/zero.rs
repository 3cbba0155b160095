//! Zero test over lines.

use super::{Isa, LineBytes, lines};
use crate::Page;

/// Lines looked at between two branches: 256 bytes, enough to hide the branch, few enough that a
/// page with data is left early.
const LINES_PER_STEP: usize = 4;

/// Returns whether every byte of `page` is zero.
///
/// The first line is tested alone: most pages that hold anything hold something there.
#[inline(always)]
pub(crate) fn is_zero<I: Isa>(isa: I, page: &Page) -> bool {
    let lines = lines(page);
    if !isa.is_zero(isa.load(&lines[0])) {
        return false;
    }
    let (steps, _) = lines.as_chunks::<LINES_PER_STEP>();
    for step in steps {
        if !isa.is_zero(union(isa, step)) {
            return false;
        }
    }
    true
}

/// Returns the bits set in any line of a step.
#[inline(always)]
fn union<I: Isa>(isa: I, step: &[LineBytes; LINES_PER_STEP]) -> I::Line {
    let front = isa.or(isa.load(&step[0]), isa.load(&step[1]));
    let back = isa.or(isa.load(&step[2]), isa.load(&step[3]));
    isa.or(front, back)
}
