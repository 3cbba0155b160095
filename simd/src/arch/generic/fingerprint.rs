//! XXH3-128 of a page over stripes of one line each.

use super::{Isa, LINES_PER_PAGE, LineBytes};
use crate::fingerprint::{
    ACCUMULATORS, LAST_STRIPE_OFFSET, SCRAMBLE_OFFSET, STRIPE_BYTES, STRIPES_PER_BLOCK, merge,
};
use crate::{Fingerprint, FingerprintKey, LivePage};

const _: () = assert!(STRIPE_BYTES == super::LINE_BYTES);
const _: () = assert!(LINES_PER_PAGE.is_multiple_of(STRIPES_PER_BLOCK));

/// Returns the fingerprint of `page`.
///
/// Three full blocks of 16 stripes, each followed by a scramble; then 15 stripes; then the last
/// stripe with its own piece of secret.
#[inline(always)]
pub(crate) fn fingerprint<I: Isa>(isa: I, key: &FingerprintKey, page: LivePage<'_>) -> Fingerprint {
    let mut acc = isa.load(&start());
    for block in 0..LINES_PER_PAGE / STRIPES_PER_BLOCK - 1 {
        for stripe in 0..STRIPES_PER_BLOCK {
            let data = isa.load_live(page, block * STRIPES_PER_BLOCK + stripe);
            acc = isa.accumulate(acc, data, isa.load(key.stripe(8 * stripe)));
        }
        acc = isa.scramble(acc, isa.load(key.stripe(SCRAMBLE_OFFSET)));
    }
    for stripe in 0..STRIPES_PER_BLOCK - 1 {
        let data = isa.load_live(page, LINES_PER_PAGE - STRIPES_PER_BLOCK + stripe);
        acc = isa.accumulate(acc, data, isa.load(key.stripe(8 * stripe)));
    }
    let data = isa.load_live(page, LINES_PER_PAGE - 1);
    acc = isa.accumulate(acc, data, isa.load(key.stripe(LAST_STRIPE_OFFSET)));
    merge(&words(isa, acc), key)
}

/// Returns the start value of the accumulators as the bytes of a line.
#[inline(always)]
fn start() -> LineBytes {
    let mut bytes = [0; STRIPE_BYTES];
    let (words, _) = bytes.as_chunks_mut::<8>();
    for (word, value) in words.iter_mut().zip(ACCUMULATORS) {
        *word = value.to_le_bytes();
    }
    bytes
}

/// Returns the eight 64-bit words of a line.
#[inline(always)]
fn words<I: Isa>(isa: I, line: I::Line) -> [u64; 8] {
    let mut bytes = [0; STRIPE_BYTES];
    isa.store(&mut bytes, line);
    let (words, _) = bytes.as_chunks::<8>();
    std::array::from_fn(|position| u64::from_le_bytes(words[position]))
}
