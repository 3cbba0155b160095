//! CRC-32C with the checksum instruction beside 512-bit carry-less multiplication.

use std::arch::x86_64::{
    __m512i, _mm512_broadcast_i32x4, _mm512_clmulepi64_epi128, _mm512_extracti32x4_epi32,
    _mm512_xor_si512,
};

use super::lines::load;
use crate::arch::generic::{self, Fold, FoldKey, LineBytes};
use crate::arch::x86::{crc_byte, crc_word, forward, key_lane, multiply, reduce_lanes};

/// Lines and words per step.
const LINES: usize = 3;
const WORDS: usize = 2;

/// Continues a CRC-32C over `bytes`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,sse4.2,pclmulqdq,vpclmulqdq")]
pub(super) fn crc32c(crc: u32, bytes: &[u8]) -> u32 {
    generic::crc32c::<_, LINES, WORDS>(Vpclmulqdq::here(), crc, bytes)
}

/// Proof that the processor has AVX-512 F, BW and DQ, SSE4.2, PCLMULQDQ and VPCLMULQDQ.
#[derive(Clone, Copy)]
struct Vpclmulqdq(());

impl Vpclmulqdq {
    /// The caller runs with the features, which is the proof.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,sse4.2,pclmulqdq,vpclmulqdq")]
    fn here() -> Self {
        Self(())
    }
}

type Line = __m512i;

impl Fold for Vpclmulqdq {
    type Line = Line;

    forward! {
        fn load(from: &LineBytes) -> Line;
        fn fold(line: Line, key: FoldKey, next: Line) -> Line;
        fn reduce(line: Line) -> u32;
        fn crc_word(crc: u32, word: u64) -> u32;
        fn crc_byte(crc: u32, byte: u8) -> u32;
        fn multiply(a: u32, b: u32) -> u64;
    }
}

/// The compiler makes one three-way exclusive or of the two.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,sse4.2,pclmulqdq,vpclmulqdq")]
fn fold(line: Line, key: FoldKey, next: Line) -> Line {
    let key = _mm512_broadcast_i32x4(key_lane(key));
    let low = _mm512_clmulepi64_epi128::<0x00>(line, key);
    let high = _mm512_clmulepi64_epi128::<0x11>(line, key);
    _mm512_xor_si512(_mm512_xor_si512(low, high), next)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,sse4.2,pclmulqdq,vpclmulqdq")]
fn reduce(line: Line) -> u32 {
    reduce_lanes([
        _mm512_extracti32x4_epi32::<0>(line),
        _mm512_extracti32x4_epi32::<1>(line),
        _mm512_extracti32x4_epi32::<2>(line),
        _mm512_extracti32x4_epi32::<3>(line),
    ])
}
