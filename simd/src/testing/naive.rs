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
