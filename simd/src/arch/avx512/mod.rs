//! AVX-512 kernels: a line is one 512-bit register.

mod checksum;
mod lines;

use super::generic;
use crate::kernels::Table;
use crate::{Fingerprint, FingerprintKey, LivePage, Page};
use lines::Avx512;

/// For processors with AVX-512 F, BW and DQ and the 512-bit carry-less multiplication: Ice Lake and
/// later, Zen 4 and later.
pub(super) static TABLE: Table = Table {
    name: "avx512",
    is_available,
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

fn is_available() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("sse4.2")
        && is_x86_feature_detected!("pclmulqdq")
        && is_x86_feature_detected!("vpclmulqdq")
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn is_zero(page: &Page) -> bool {
    generic::is_zero(Avx512::here(), page)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn fingerprint(key: &FingerprintKey, page: LivePage<'_>) -> Fingerprint {
    generic::fingerprint(Avx512::here(), key, page)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn xor(a: &Page, b: &Page, out: &mut Page) -> u32 {
    generic::xor(Avx512::here(), a, b, out)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn differing_bytes(a: &Page, b: &Page) -> u32 {
    generic::differing_bytes(Avx512::here(), a, b)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn equal(a: &Page, b: &Page) -> bool {
    generic::equal(Avx512::here(), a, b)
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn shuffle(page: &Page, out: &mut Page) {
    generic::shuffle(Avx512::here(), page, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn unshuffle(shuffled: &Page, out: &mut Page) {
    generic::unshuffle(Avx512::here(), shuffled, out);
}

#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn shuffle_gain(page: &Page) -> i32 {
    generic::shuffle_gain(Avx512::here(), page)
}
