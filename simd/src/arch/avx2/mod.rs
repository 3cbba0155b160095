//! AVX2 kernels: a line is two 256-bit registers. Two tables, which differ in the checksum only:
//! Zen 3 and Alder Lake have the 256-bit carry-less multiplication without having AVX-512.

mod checksum;
mod lines;

use super::generic;
use crate::kernels::Table;
use crate::{Fingerprint, FingerprintKey, LivePage, Page};
use lines::Avx2;

/// For every processor with AVX2.
pub(super) static TABLE: Table = Table {
    name: "avx2",
    is_available,
    is_zero,
    fingerprint,
    crc32c: checksum::crc32c_pclmulqdq,
    xor,
    differing_bytes,
    equal,
    shuffle,
    unshuffle,
    shuffle_gain,
};

/// For processors that also multiply 256 bits at once.
pub(super) static TABLE_VPCLMULQDQ: Table = Table {
    name: "avx2-vpclmulqdq",
    is_available: is_available_vpclmulqdq,
    crc32c: checksum::crc32c_vpclmulqdq,
    ..TABLE
};

fn is_available() -> bool {
    is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("sse4.2")
        && is_x86_feature_detected!("pclmulqdq")
}

fn is_available_vpclmulqdq() -> bool {
    is_available() && is_x86_feature_detected!("vpclmulqdq")
}

#[target_feature(enable = "avx2")]
fn is_zero(page: &Page) -> bool {
    generic::is_zero(Avx2::here(), page)
}

#[target_feature(enable = "avx2")]
fn fingerprint(key: &FingerprintKey, page: LivePage<'_>) -> Fingerprint {
    generic::fingerprint(Avx2::here(), key, page)
}

#[target_feature(enable = "avx2")]
fn xor(a: &Page, b: &Page, out: &mut Page) -> u32 {
    generic::xor(Avx2::here(), a, b, out)
}

#[target_feature(enable = "avx2")]
fn differing_bytes(a: &Page, b: &Page) -> u32 {
    generic::differing_bytes(Avx2::here(), a, b)
}

#[target_feature(enable = "avx2")]
fn equal(a: &Page, b: &Page) -> bool {
    generic::equal(Avx2::here(), a, b)
}

#[target_feature(enable = "avx2")]
fn shuffle(page: &Page, out: &mut Page) {
    generic::shuffle(Avx2::here(), page, out);
}

#[target_feature(enable = "avx2")]
fn unshuffle(shuffled: &Page, out: &mut Page) {
    generic::unshuffle(Avx2::here(), shuffled, out);
}

#[target_feature(enable = "avx2")]
fn shuffle_gain(page: &Page) -> i32 {
    generic::shuffle_gain(Avx2::here(), page)
}
