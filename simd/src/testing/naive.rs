//! Oracles: the definitions, a byte or a bit at a time, or someone else's implementation.

use crate::checksum::POLYNOMIAL_REFLECTED;
use crate::{Fingerprint, Page};

pub(super) fn is_zero(page: &Page) -> bool {
    page.iter().all(|byte| *byte == 0)
}

pub(super) fn differing_bytes(a: &Page, b: &Page) -> u32 {
    a.iter().zip(b).map(|(a, b)| u32::from(a != b)).sum()
}

pub(super) fn xor(a: &Page, b: &Page) -> Page {
    std::array::from_fn(|position| a[position] ^ b[position])
}

pub(super) fn shuffle(page: &Page) -> Page {
    std::array::from_fn(|position| page[position % 1024 * 4 + position / 1024])
}

pub(super) fn unshuffle(shuffled: &Page) -> Page {
    std::array::from_fn(|position| shuffled[position % 4 * 1024 + position / 4])
}

pub(super) fn shuffle_gain(page: &Page) -> i32 {
    let word = |i: usize| &page[4 * i..][..4];
    let is_new = |i: &usize| {
        [1, 2, 3, 4, 8, 16]
            .iter()
            .all(|lag| word(*i) != word(i - lag))
    };
    let gain =
        |at: usize| i32::from(page[at] == page[at - 4]) - i32::from(page[at] == page[at - 1]);
    let new = (16..1024).filter(is_new);
    new.flat_map(|i| 4 * i..4 * i + 4).map(gain).sum()
}

/// The public XXH3 implementation.
pub(super) fn fingerprint(seed: u64, page: &Page) -> Fingerprint {
    let value = xxhash_rust::xxh3::xxh3_128_with_seed(page, seed);
    Fingerprint {
        lo: value as u64,
        hi: (value >> 64) as u64,
    }
}

/// CRC-32C one bit at a time, from its definition.
pub(super) fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    let mut state = !crc;
    for byte in bytes {
        state ^= u32::from(*byte);
        for _ in 0..8 {
            state = state >> 1 ^ (POLYNOMIAL_REFLECTED & (state & 1).wrapping_neg());
        }
    }
    !state
}
