//! XXH3-128 of a page over stripes of one line each.

use super::{Isa, LINES_PER_PAGE, LineBytes, lines};
use crate::fingerprint::{
    ACCUMULATORS, LAST_STRIPE_OFFSET, SCRAMBLE_OFFSET, STRIPE_BYTES, STRIPES_PER_BLOCK, merge,
};
use crate::{Fingerprint, FingerprintKey, Page};

const _: () = assert!(STRIPE_BYTES == super::LINE_BYTES);
const _: () = assert!(LINES_PER_PAGE.is_multiple_of(STRIPES_PER_BLOCK));

/// Returns the fingerprint of `page`.
///
/// Three full blocks of 16 stripes, each followed by a scramble; then 15 stripes; then the last
/// stripe with its own piece of secret.
#[inline(always)]
pub(crate) fn fingerprint<I: Isa>(isa: I, key: &FingerprintKey, page: &Page) -> Fingerprint {
    let (blocks, _) = lines(page).as_chunks::<STRIPES_PER_BLOCK>();
    let (last_block, full_blocks) = blocks.split_last().expect("a page has four blocks");
    let mut acc = isa.load(&start());
    for block in full_blocks {
        for (position, stripe) in block.iter().enumerate() {
            acc = isa.accumulate(acc, isa.load(stripe), isa.load(key.stripe(8 * position)));
        }
        acc = isa.scramble(acc, isa.load(key.stripe(SCRAMBLE_OFFSET)));
    }
    let (last_stripe, stripes) = last_block
        .split_last()
        .expect("a block has sixteen stripes");
    for (position, stripe) in stripes.iter().enumerate() {
        acc = isa.accumulate(acc, isa.load(stripe), isa.load(key.stripe(8 * position)));
    }
    acc = isa.accumulate(
        acc,
        isa.load(last_stripe),
        isa.load(key.stripe(LAST_STRIPE_OFFSET)),
    );
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
