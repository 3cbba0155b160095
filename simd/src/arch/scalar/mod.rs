//! Portable kernels: eight 64-bit words per line, slicing-by-eight tables for the checksum.

mod checksum;
mod lines;

use super::generic;
use crate::kernels::Table;
use crate::{Fingerprint, FingerprintKey, LivePage, Page};
use lines::Scalar;

/// The table that is always available.
pub(super) static TABLE: Table = Table {
    name: "scalar",
    is_available: || true,
    is_zero,
    fingerprint,
    crc32c: checksum::crc32c,
    xor,
    differing_bytes,
    equal,
    shuffle,
    unshuffle,
    shuffle_gain,
};

fn is_zero(page: &Page) -> bool {
    generic::is_zero(Scalar, page)
}

fn fingerprint(key: &FingerprintKey, page: LivePage<'_>) -> Fingerprint {
    generic::fingerprint(Scalar, key, page)
}

fn xor(a: &Page, b: &Page, out: &mut Page) -> u32 {
    generic::xor(Scalar, a, b, out)
}

fn differing_bytes(a: &Page, b: &Page) -> u32 {
    generic::differing_bytes(Scalar, a, b)
}

fn equal(a: &Page, b: &Page) -> bool {
    generic::equal(Scalar, a, b)
}

fn shuffle(page: &Page, out: &mut Page) {
    generic::shuffle(Scalar, page, out);
}

fn unshuffle(shuffled: &Page, out: &mut Page) {
    generic::unshuffle(Scalar, shuffled, out);
}

fn shuffle_gain(page: &Page) -> i32 {
    generic::shuffle_gain(Scalar, page)
}
