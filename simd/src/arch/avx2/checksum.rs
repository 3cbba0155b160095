//! CRC-32C with the checksum instruction beside 128-bit or 256-bit carry-less multiplication.

use std::arch::x86_64::{
    __m128i, __m256i, _mm_loadu_si128, _mm256_broadcastsi128_si256, _mm256_castsi256_si128,
    _mm256_clmulepi64_epi128, _mm256_extracti128_si256, _mm256_xor_si256,
};

use super::lines;
use crate::arch::generic::{self, Fold, FoldKey, LineBytes};
use crate::arch::x86::{crc_byte, crc_word, fold_lane, forward, key_lane, multiply, reduce_lanes};

/// Lines and words per step, by measurement on Zen 3.
const PCLMULQDQ_LINES: usize = 1;
const PCLMULQDQ_WORDS: usize = 3;
const VPCLMULQDQ_LINES: usize = 2;
const VPCLMULQDQ_WORDS: usize = 3;

/// Continues a CRC-32C over `bytes`.
#[target_feature(enable = "avx2,sse4.2,pclmulqdq")]
pub(super) fn crc32c_pclmulqdq(crc: u32, bytes: &[u8]) -> u32 {
    generic::crc32c::<_, PCLMULQDQ_LINES, PCLMULQDQ_WORDS>(narrow::Pclmulqdq::here(), crc, bytes)
}

/// Continues a CRC-32C over `bytes`.
#[target_feature(enable = "avx2,sse4.2,pclmulqdq,vpclmulqdq")]
pub(super) fn crc32c_vpclmulqdq(crc: u32, bytes: &[u8]) -> u32 {
    generic::crc32c::<_, VPCLMULQDQ_LINES, VPCLMULQDQ_WORDS>(wide::Vpclmulqdq::here(), crc, bytes)
}

/// A line is four lanes of 128 bits.
mod narrow {
    use super::*;

    /// Proof that the processor has SSE4.2 and PCLMULQDQ.
    #[derive(Clone, Copy)]
    pub(super) struct Pclmulqdq(());

    impl Pclmulqdq {
        /// The caller runs with the features, which is the proof.
        #[inline]
        #[target_feature(enable = "sse4.2,pclmulqdq")]
        pub(super) fn here() -> Self {
            Self(())
        }
    }

    type Line = [__m128i; 4];

    impl Fold for Pclmulqdq {
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

    #[inline]
    #[target_feature(enable = "sse4.2,pclmulqdq")]
    fn load(from: &LineBytes) -> Line {
        let (lanes, _) = from.as_chunks::<16>();
        [
            load_lane(&lanes[0]),
            load_lane(&lanes[1]),
            load_lane(&lanes[2]),
            load_lane(&lanes[3]),
        ]
    }

    #[inline]
    #[target_feature(enable = "sse4.2,pclmulqdq")]
    fn load_lane(from: &[u8; 16]) -> __m128i {
        // SAFETY: `from` is 16 readable bytes; the load needs no alignment.
        unsafe { _mm_loadu_si128(from.as_ptr().cast()) }
    }

    #[inline]
    #[target_feature(enable = "sse4.2,pclmulqdq")]
    fn fold(line: Line, key: FoldKey, next: Line) -> Line {
        let key = key_lane(key);
        [
            fold_lane(line[0], key, next[0]),
            fold_lane(line[1], key, next[1]),
            fold_lane(line[2], key, next[2]),
            fold_lane(line[3], key, next[3]),
        ]
    }

    #[inline]
    #[target_feature(enable = "sse4.2,pclmulqdq")]
    fn reduce(line: Line) -> u32 {
        reduce_lanes(line)
    }
}

/// A line is two registers of two lanes.
mod wide {
    use super::*;

    /// Proof that the processor has AVX2, SSE4.2, PCLMULQDQ and VPCLMULQDQ.
    #[derive(Clone, Copy)]
    pub(super) struct Vpclmulqdq(());

    impl Vpclmulqdq {
        /// The caller runs with the features, which is the proof.
        #[inline]
        #[target_feature(enable = "avx2,sse4.2,pclmulqdq,vpclmulqdq")]
        pub(super) fn here() -> Self {
            Self(())
        }
    }

    type Line = [__m256i; 2];

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

    use lines::load;

    #[inline]
    #[target_feature(enable = "avx2,sse4.2,pclmulqdq,vpclmulqdq")]
    fn fold(line: Line, key: FoldKey, next: Line) -> Line {
        let key = _mm256_broadcastsi128_si256(key_lane(key));
        [
            fold_pair(line[0], key, next[0]),
            fold_pair(line[1], key, next[1]),
        ]
    }

    #[inline]
    #[target_feature(enable = "avx2,sse4.2,pclmulqdq,vpclmulqdq")]
    fn fold_pair(pair: __m256i, key: __m256i, next: __m256i) -> __m256i {
        let low = _mm256_clmulepi64_epi128::<0x00>(pair, key);
        let high = _mm256_clmulepi64_epi128::<0x11>(pair, key);
        _mm256_xor_si256(_mm256_xor_si256(low, high), next)
    }

    #[inline]
    #[target_feature(enable = "avx2,sse4.2,pclmulqdq,vpclmulqdq")]
    fn reduce(line: Line) -> u32 {
        reduce_lanes([
            _mm256_castsi256_si128(line[0]),
            _mm256_extracti128_si256::<1>(line[0]),
            _mm256_castsi256_si128(line[1]),
            _mm256_extracti128_si256::<1>(line[1]),
        ])
    }
}
