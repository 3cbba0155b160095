//! Lines as one 512-bit register.

use std::arch::x86_64::{
    __m512i, _mm_setr_epi8, _mm512_add_epi8, _mm512_add_epi64, _mm512_broadcast_i32x4,
    _mm512_loadu_si512, _mm512_maskz_mov_epi32, _mm512_min_epu8, _mm512_min_epu32,
    _mm512_mul_epu32, _mm512_mullo_epi64, _mm512_or_si512, _mm512_permutexvar_epi32,
    _mm512_reduce_add_epi64, _mm512_sad_epu8, _mm512_set1_epi8, _mm512_set1_epi64,
    _mm512_setr_epi32, _mm512_setzero_si512, _mm512_shuffle_epi8, _mm512_shuffle_epi32,
    _mm512_srli_epi64, _mm512_storeu_si512, _mm512_test_epi32_mask, _mm512_test_epi64_mask,
    _mm512_unpackhi_epi8, _mm512_unpackhi_epi16, _mm512_unpackhi_epi32, _mm512_unpackhi_epi64,
    _mm512_unpacklo_epi8, _mm512_unpacklo_epi16, _mm512_unpacklo_epi32, _mm512_unpacklo_epi64,
    _mm512_xor_si512,
};

use crate::LivePage;
use crate::arch::generic::{COLUMNS, Isa, LineBytes};
use crate::arch::x86::forward;
use crate::fingerprint::PRIME32_1;

/// Proof that the processor has AVX-512 F, BW and DQ.
#[derive(Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// The caller runs with the features, which is the proof.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq")]
    pub(super) fn here() -> Self {
        Self(())
    }
}

type Line = __m512i;

impl Isa for Avx512 {
    type Line = Line;
    /// Per byte lane: at most 64 in 64 lines, so it cannot overflow.
    type Tally = __m512i;

    forward! {
        fn load(from: &LineBytes) -> Line;
        fn load_live(page: LivePage<'_>, line: usize) -> Line;
        fn store(to: &mut LineBytes, line: Line);
        fn or(a: Line, b: Line) -> Line;
        fn xor(a: Line, b: Line) -> Line;
        fn is_zero(line: Line) -> bool;
        fn tally_start() -> __m512i;
        fn tally(sum: __m512i, line: Line) -> __m512i;
        fn tally_total(sum: __m512i) -> u32;
        fn split(words: [Line; COLUMNS]) -> [Line; COLUMNS];
        fn join(columns: [Line; COLUMNS]) -> [Line; COLUMNS];
        fn and_words(a: Line, b: Line) -> Line;
        fn keep_words(line: Line, keep: Line) -> Line;
        fn accumulate(acc: Line, data: Line, secret: Line) -> Line;
        fn scramble(acc: Line, secret: Line) -> Line;
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
pub(super) fn load(from: &LineBytes) -> Line {
    // SAFETY: `from` is 64 readable bytes; the load needs no alignment.
    unsafe { _mm512_loadu_si512(from.as_ptr().cast()) }
}

/// One plain load: what another process writes meanwhile is seen or not.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn load_live(page: LivePage<'_>, line: usize) -> Line {
    // SAFETY: a line of a mapped page; the load needs no alignment, and its value is only data.
    unsafe { _mm512_loadu_si512(page.line(line).cast()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn store(to: &mut LineBytes, line: Line) {
    // SAFETY: `to` is 64 writable bytes, borrowed exclusively; the store needs no alignment.
    unsafe { _mm512_storeu_si512(to.as_mut_ptr().cast(), line) };
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn or(a: Line, b: Line) -> Line {
    _mm512_or_si512(a, b)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn xor(a: Line, b: Line) -> Line {
    _mm512_xor_si512(a, b)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn is_zero(line: Line) -> bool {
    _mm512_test_epi64_mask(line, line) == 0
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn tally_start() -> __m512i {
    _mm512_setzero_si512()
}

/// A byte contributes `min(byte, 1)`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn tally(sum: __m512i, line: Line) -> __m512i {
    _mm512_add_epi8(sum, _mm512_min_epu8(line, _mm512_set1_epi8(1)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn tally_total(sum: __m512i) -> u32 {
    _mm512_reduce_add_epi64(_mm512_sad_epu8(sum, _mm512_setzero_si512())) as u32
}

/// The 4 by 4 transposition of the 32-bit words of a register. Its own inverse.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn order() -> Line {
    _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15)
}

/// In every 128-bit lane, sorts four words into four bytes of each column; brings those of one
/// column together from four registers; then puts them in order across the lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn split(words: [Line; COLUMNS]) -> [Line; COLUMNS] {
    let sort = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let sort = _mm512_broadcast_i32x4(sort);
    let a = _mm512_shuffle_epi8(words[0], sort);
    let b = _mm512_shuffle_epi8(words[1], sort);
    let c = _mm512_shuffle_epi8(words[2], sort);
    let d = _mm512_shuffle_epi8(words[3], sort);
    let front_01 = _mm512_unpacklo_epi32(a, b);
    let front_23 = _mm512_unpackhi_epi32(a, b);
    let back_01 = _mm512_unpacklo_epi32(c, d);
    let back_23 = _mm512_unpackhi_epi32(c, d);
    [
        _mm512_permutexvar_epi32(order(), _mm512_unpacklo_epi64(front_01, back_01)),
        _mm512_permutexvar_epi32(order(), _mm512_unpackhi_epi64(front_01, back_01)),
        _mm512_permutexvar_epi32(order(), _mm512_unpacklo_epi64(front_23, back_23)),
        _mm512_permutexvar_epi32(order(), _mm512_unpackhi_epi64(front_23, back_23)),
    ]
}

/// Spreads every column over the lanes, so that the words come out in order when the bytes are
/// interleaved lane by lane.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn join(columns: [Line; COLUMNS]) -> [Line; COLUMNS] {
    let a = _mm512_permutexvar_epi32(order(), columns[0]);
    let b = _mm512_permutexvar_epi32(order(), columns[1]);
    let c = _mm512_permutexvar_epi32(order(), columns[2]);
    let d = _mm512_permutexvar_epi32(order(), columns[3]);
    let front_01 = _mm512_unpacklo_epi8(a, b);
    let back_01 = _mm512_unpackhi_epi8(a, b);
    let front_23 = _mm512_unpacklo_epi8(c, d);
    let back_23 = _mm512_unpackhi_epi8(c, d);
    [
        _mm512_unpacklo_epi16(front_01, front_23),
        _mm512_unpackhi_epi16(front_01, front_23),
        _mm512_unpacklo_epi16(back_01, back_23),
        _mm512_unpackhi_epi16(back_01, back_23),
    ]
}

/// The smaller of two words is zero exactly when one of them is.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn and_words(a: Line, b: Line) -> Line {
    _mm512_min_epu32(a, b)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn keep_words(line: Line, keep: Line) -> Line {
    _mm512_maskz_mov_epi32(_mm512_test_epi32_mask(keep, keep), line)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn accumulate(acc: Line, data: Line, secret: Line) -> Line {
    let keyed = _mm512_xor_si512(data, secret);
    let product = _mm512_mul_epu32(keyed, _mm512_srli_epi64::<32>(keyed));
    let neighbour = _mm512_shuffle_epi32::<0b01_00_11_10>(data);
    _mm512_add_epi64(_mm512_add_epi64(acc, neighbour), product)
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq")]
fn scramble(acc: Line, secret: Line) -> Line {
    let folded = _mm512_xor_si512(acc, _mm512_srli_epi64::<47>(acc));
    let keyed = _mm512_xor_si512(folded, secret);
    _mm512_mullo_epi64(keyed, _mm512_set1_epi64(PRIME32_1 as i64))
}
