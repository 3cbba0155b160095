//! What the x86 instruction sets share: the forwarding of line operations, and the arithmetic of the
//! checksum on one 128-bit lane.

use std::arch::x86_64::{
    __m128i, _MM_HINT_T0, _mm_clmulepi64_si128, _mm_crc32_u8, _mm_crc32_u64, _mm_cvtsi128_si64,
    _mm_extract_epi64, _mm_prefetch, _mm_set_epi64x, _mm_xor_si128,
};

use super::generic::FoldKey;
use crate::LivePage;

/// Implements methods by the `#[target_feature]` functions of the same name in the same module.
///
/// `self` must be the instruction set's token: a type whose only constructor is itself
/// `#[target_feature]` with the features that those functions enable.
macro_rules! forward {
    ($($(#[$meta:meta])* fn $name:ident($($argument:ident: $kind:ty),*) $(-> $result:ty)?;)*) => {$(
        $(#[$meta])*
        #[inline(always)]
        fn $name(self $(, $argument: $kind)*) $(-> $result)? {
            // SAFETY: the function's only precondition is its processor features. `self` is a token
            // that can be made only by code which runs with exactly those features.
            unsafe { $name($($argument),*) }
        }
    )*};
}
pub(super) use forward;

/// Lines asked for: enough to hide the wait for memory, after which the processor's own prefetcher
/// has seen where it goes.
const PREFETCH_LINES: usize = 8;

/// Asks for the start of a page to be brought into the cache.
#[inline]
pub(crate) fn prefetch(page: LivePage<'_>) {
    for line in 0..PREFETCH_LINES {
        // SAFETY: a prefetch reads nothing that the program sees, and SSE is part of x86-64.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(page.line(line).cast()) };
    }
}

/// Returns the two multipliers of a fold in a register.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq")]
pub(super) fn key_lane(key: FoldKey) -> __m128i {
    _mm_set_epi64x(key.high as i64, key.low as i64)
}

/// Returns `lane` moved ahead by the distance of `key`, plus `next`.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq")]
pub(super) fn fold_lane(lane: __m128i, key: __m128i, next: __m128i) -> __m128i {
    let low = _mm_clmulepi64_si128::<0x00>(lane, key);
    let high = _mm_clmulepi64_si128::<0x11>(lane, key);
    _mm_xor_si128(_mm_xor_si128(low, high), next)
}

/// Returns the checksum, from zero and without inversions, of the 64 bytes in four lanes.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq")]
pub(super) fn reduce_lanes(lanes: [__m128i; 4]) -> u32 {
    const ONE_LANE: FoldKey = FoldKey::of_bytes(16);
    const TWO_LANES: FoldKey = FoldKey::of_bytes(32);
    let by_one = key_lane(ONE_LANE);
    let by_two = key_lane(TWO_LANES);
    let front = fold_lane(lanes[0], by_one, lanes[1]);
    let back = fold_lane(lanes[2], by_one, lanes[3]);
    let lane = fold_lane(front, by_two, back);
    let half = crc_word(0, _mm_cvtsi128_si64(lane) as u64);
    crc_word(half, _mm_extract_epi64::<1>(lane) as u64)
}

/// Returns the checksum state after eight more bytes.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq")]
pub(super) fn crc_word(crc: u32, word: u64) -> u32 {
    _mm_crc32_u64(u64::from(crc), word) as u32
}

/// Returns the checksum state after one more byte.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq")]
pub(super) fn crc_byte(crc: u32, byte: u8) -> u32 {
    _mm_crc32_u8(crc, byte)
}

/// Returns the carry-less product of two 32-bit values.
#[inline]
#[target_feature(enable = "sse4.2,pclmulqdq")]
pub(super) fn multiply(a: u32, b: u32) -> u64 {
    let a = _mm_set_epi64x(0, i64::from(a));
    let b = _mm_set_epi64x(0, i64::from(b));
    _mm_cvtsi128_si64(_mm_clmulepi64_si128::<0x00>(a, b)) as u64
}
