//! Shuffle over lines: four lines of words become one line of each byte column, and back.

use super::{Isa, LINE_BYTES, LINES_PER_PAGE, LineBytes, lines, lines_mut};
use crate::Page;

/// Bytes of a word, and so columns of a page.
pub(in crate::arch) const COLUMNS: usize = 4;
/// Lines of one column.
const COLUMN_LINES: usize = LINES_PER_PAGE / COLUMNS;

/// Words back at which a codec finds a repeat, beside the word just before. At most a line.
const LAGS: [usize; 5] = [2, 3, 4, 8, 16];

/// Writes the four byte columns of the words of `page`, one after the other.
#[inline(always)]
pub(crate) fn shuffle<I: Isa>(isa: I, page: &Page, out: &mut Page) {
    let out = lines_mut(out);
    let (steps, _) = lines(page).as_chunks::<COLUMNS>();
    for (number, step) in steps.iter().enumerate() {
        let [a, b, c, d] = step;
        let words = [isa.load(a), isa.load(b), isa.load(c), isa.load(d)];
        for (column, line) in isa.split(words).into_iter().enumerate() {
            isa.store(&mut out[column * COLUMN_LINES + number], line);
        }
    }
}

/// Writes the page of which `shuffled` holds the four byte columns.
#[inline(always)]
pub(crate) fn unshuffle<I: Isa>(isa: I, shuffled: &Page, out: &mut Page) {
    let shuffled = lines(shuffled);
    let (steps, _) = lines_mut(out).as_chunks_mut::<COLUMNS>();
    for (number, step) in steps.iter_mut().enumerate() {
        let columns = [
            isa.load(&shuffled[number]),
            isa.load(&shuffled[COLUMN_LINES + number]),
            isa.load(&shuffled[2 * COLUMN_LINES + number]),
            isa.load(&shuffled[3 * COLUMN_LINES + number]),
        ];
        for (to, line) in step.iter_mut().zip(isa.join(columns)) {
            isa.store(to, line);
        }
    }
}

/// Returns how many more bytes of new words equal the byte above them than the byte before them.
///
/// Counts the bytes that differ instead, which is one exclusive or, and subtracts the other way.
#[inline(always)]
pub(crate) fn shuffle_gain<I: Isa>(isa: I, page: &Page) -> i32 {
    let mut differ_above = isa.tally_start();
    let mut differ_before = isa.tally_start();
    for number in 1..LINES_PER_PAGE {
        let pair = &page[(number - 1) * LINE_BYTES..];
        let pair: &[u8; 2 * LINE_BYTES] = pair.first_chunk().expect("a line follows");
        let line = isa.load(back(pair, 0));
        let above = isa.xor(line, isa.load(back(pair, COLUMNS)));
        let before = isa.xor(line, isa.load(back(pair, 1)));
        let mut is_new = above;
        for lag in LAGS {
            let difference = isa.xor(line, isa.load(back(pair, lag * COLUMNS)));
            is_new = isa.and_words(is_new, difference);
        }
        differ_above = isa.tally(differ_above, isa.keep_words(above, is_new));
        differ_before = isa.tally(differ_before, isa.keep_words(before, is_new));
    }
    isa.tally_total(differ_before) as i32 - isa.tally_total(differ_above) as i32
}

/// Returns the line that starts `bytes` before the second line of a pair.
#[inline(always)]
fn back(pair: &[u8; 2 * LINE_BYTES], bytes: usize) -> &LineBytes {
    let (_, from) = pair.split_at(LINE_BYTES - bytes);
    from.first_chunk().expect("at most a line back")
}
