//! Lines as two 256-bit registers.

use std::arch::x86_64::{
    __m256i, _mm_setr_epi8, _mm256_add_epi8, _mm256_add_epi64, _mm256_andnot_si256,
    _mm256_broadcastsi128_si256, _mm256_cmpeq_epi32, _mm256_extract_epi64, _mm256_loadu_si256,
    _mm256_min_epu8, _mm256_min_epu32, _mm256_mul_epu32, _mm256_or_si256,
    _mm256_permutevar8x32_epi32, _mm256_sad_epu8, _mm256_set1_epi8, _mm256_set1_epi64x,
    _mm256_setr_epi32, _mm256_setzero_si256, _mm256_shuffle_epi8, _mm256_shuffle_epi32,
    _mm256_slli_epi64, _mm256_srli_epi64, _mm256_storeu_si256, _mm256_testz_si256,
    _mm256_unpackhi_epi8, _mm256_unpackhi_epi16, _mm256_unpackhi_epi32, _mm256_unpackhi_epi64,
    _mm256_unpacklo_epi8, _mm256_unpacklo_epi16, _mm256_unpacklo_epi32, _mm256_unpacklo_epi64,
    _mm256_xor_si256,
};

use crate::LivePage;
use crate::arch::generic::{COLUMNS, Isa, LineBytes};
use crate::arch::x86::forward;
use crate::fingerprint::PRIME32_1;

/// Proof that the processor has AVX2.
#[derive(Clone, Copy)]
pub(super) struct Avx2(());

impl Avx2 {
    /// The caller runs with AVX2, which is the proof.
    #[inline]
    #[target_feature(enable = "avx2")]
    pub(super) fn here() -> Self {
        Self(())
    }
}

type Line = [__m256i; 2];

impl Isa for Avx2 {
    type Line = Line;
    /// Per byte lane: at most 128 in 64 lines of two registers, so it cannot overflow.
    type Tally = __m256i;

    forward! {
        fn load(from: &LineBytes) -> Line;
        fn load_live(page: LivePage<'_>, line: usize) -> Line;
        fn store(to: &mut LineBytes, line: Line);
        fn or(a: Line, b: Line) -> Line;
        fn xor(a: Line, b: Line) -> Line;
        fn is_zero(line: Line) -> bool;
        fn tally_start() -> __m256i;
        fn tally(sum: __m256i, line: Line) -> __m256i;
        fn tally_total(sum: __m256i) -> u32;
        fn split(words: [Line; COLUMNS]) -> [Line; COLUMNS];
        fn join(columns: [Line; COLUMNS]) -> [Line; COLUMNS];
        fn and_words(a: Line, b: Line) -> Line;
        fn keep_words(line: Line, keep: Line) -> Line;
        fn accumulate(acc: Line, data: Line, secret: Line) -> Line;
        fn scramble(acc: Line, secret: Line) -> Line;
    }
}

#[inline]
#[target_feature(enable = "avx2")]
pub(super) fn load(from: &LineBytes) -> Line {
    let low = from.as_ptr().cast::<__m256i>();
    // SAFETY: `low` points to 64 readable bytes, 32 bytes ahead stays inside them.
    let high = unsafe { low.add(1) };
    // SAFETY: 32 readable bytes follow `low`; the load needs no alignment.
    let low = unsafe { _mm256_loadu_si256(low) };
    // SAFETY: 32 readable bytes follow `high`; the load needs no alignment.
    let high = unsafe { _mm256_loadu_si256(high) };
    [low, high]
}

/// Plain loads, each done once: what another process writes meanwhile is seen or not.
#[inline]
#[target_feature(enable = "avx2")]
fn load_live(page: LivePage<'_>, line: usize) -> Line {
    let low = page.line(line).cast::<__m256i>();
    // SAFETY: `low` is the start of a line of a mapped page, 32 bytes ahead stays inside it.
    let high = unsafe { low.add(1) };
    // SAFETY: 32 mapped bytes follow `low`; the load needs no alignment, and its value is only data.
    let low = unsafe { _mm256_loadu_si256(low) };
    // SAFETY: 32 mapped bytes follow `high`; the load needs no alignment, and its value is only data.
    let high = unsafe { _mm256_loadu_si256(high) };
    [low, high]
}

#[inline]
#[target_feature(enable = "avx2")]
fn store(to: &mut LineBytes, line: Line) {
    let low = to.as_mut_ptr().cast::<__m256i>();
    // SAFETY: `low` points to 64 writable bytes, 32 bytes ahead stays inside them.
    let high = unsafe { low.add(1) };
    // SAFETY: 32 writable bytes follow `low`, borrowed exclusively; the store needs no alignment.
    unsafe { _mm256_storeu_si256(low, line[0]) };
    // SAFETY: 32 writable bytes follow `high`, borrowed exclusively; the store needs no alignment.
    unsafe { _mm256_storeu_si256(high, line[1]) };
}

#[inline]
#[target_feature(enable = "avx2")]
fn or(a: Line, b: Line) -> Line {
    [_mm256_or_si256(a[0], b[0]), _mm256_or_si256(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn xor(a: Line, b: Line) -> Line {
    [_mm256_xor_si256(a[0], b[0]), _mm256_xor_si256(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn is_zero(line: Line) -> bool {
    let both = _mm256_or_si256(line[0], line[1]);
    _mm256_testz_si256(both, both) == 1
}

#[inline]
#[target_feature(enable = "avx2")]
fn tally_start() -> __m256i {
    _mm256_setzero_si256()
}

/// A byte contributes `min(byte, 1)`.
#[inline]
#[target_feature(enable = "avx2")]
fn tally(sum: __m256i, line: Line) -> __m256i {
    let one = _mm256_set1_epi8(1);
    let low = _mm256_add_epi8(sum, _mm256_min_epu8(line[0], one));
    _mm256_add_epi8(low, _mm256_min_epu8(line[1], one))
}

#[inline]
#[target_feature(enable = "avx2")]
fn tally_total(sum: __m256i) -> u32 {
    let sums = _mm256_sad_epu8(sum, _mm256_setzero_si256());
    let front = _mm256_extract_epi64::<0>(sums) + _mm256_extract_epi64::<1>(sums);
    let back = _mm256_extract_epi64::<2>(sums) + _mm256_extract_epi64::<3>(sums);
    (front + back) as u32
}

/// Each half of the words makes one half of every column.
#[inline]
#[target_feature(enable = "avx2")]
fn split(words: [Line; COLUMNS]) -> [Line; COLUMNS] {
    let [a, b, c, d] = words;
    let low = split_half([a[0], a[1], b[0], b[1]]);
    let high = split_half([c[0], c[1], d[0], d[1]]);
    [
        [low[0], high[0]],
        [low[1], high[1]],
        [low[2], high[2]],
        [low[3], high[3]],
    ]
}

/// In every 128-bit lane, sorts four words into four bytes of each column; brings those of one
/// column together from four registers; then puts them in order across the lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn split_half(words: [__m256i; 4]) -> [__m256i; 4] {
    let sort = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let sort = _mm256_broadcastsi128_si256(sort);
    let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    let a = _mm256_shuffle_epi8(words[0], sort);
    let b = _mm256_shuffle_epi8(words[1], sort);
    let c = _mm256_shuffle_epi8(words[2], sort);
    let d = _mm256_shuffle_epi8(words[3], sort);
    let front_01 = _mm256_unpacklo_epi32(a, b);
    let front_23 = _mm256_unpackhi_epi32(a, b);
    let back_01 = _mm256_unpacklo_epi32(c, d);
    let back_23 = _mm256_unpackhi_epi32(c, d);
    [
        _mm256_permutevar8x32_epi32(_mm256_unpacklo_epi64(front_01, back_01), order),
        _mm256_permutevar8x32_epi32(_mm256_unpackhi_epi64(front_01, back_01), order),
        _mm256_permutevar8x32_epi32(_mm256_unpacklo_epi64(front_23, back_23), order),
        _mm256_permutevar8x32_epi32(_mm256_unpackhi_epi64(front_23, back_23), order),
    ]
}

/// Each half of the columns makes one half of the words.
#[inline]
#[target_feature(enable = "avx2")]
fn join(columns: [Line; COLUMNS]) -> [Line; COLUMNS] {
    let [a, b, c, d] = columns;
    let low = join_half([a[0], b[0], c[0], d[0]]);
    let high = join_half([a[1], b[1], c[1], d[1]]);
    [
        [low[0], low[1]],
        [low[2], low[3]],
        [high[0], high[1]],
        [high[2], high[3]],
    ]
}

/// Spreads every column over the lanes, so that the words come out in order when the bytes are
/// interleaved lane by lane.
#[inline]
#[target_feature(enable = "avx2")]
fn join_half(columns: [__m256i; 4]) -> [__m256i; 4] {
    let order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    let a = _mm256_permutevar8x32_epi32(columns[0], order);
    let b = _mm256_permutevar8x32_epi32(columns[1], order);
    let c = _mm256_permutevar8x32_epi32(columns[2], order);
    let d = _mm256_permutevar8x32_epi32(columns[3], order);
    let front_01 = _mm256_unpacklo_epi8(a, b);
    let back_01 = _mm256_unpackhi_epi8(a, b);
    let front_23 = _mm256_unpacklo_epi8(c, d);
    let back_23 = _mm256_unpackhi_epi8(c, d);
    [
        _mm256_unpacklo_epi16(front_01, front_23),
        _mm256_unpackhi_epi16(front_01, front_23),
        _mm256_unpacklo_epi16(back_01, back_23),
        _mm256_unpackhi_epi16(back_01, back_23),
    ]
}

/// The smaller of two words is zero exactly when one of them is.
#[inline]
#[target_feature(enable = "avx2")]
fn and_words(a: Line, b: Line) -> Line {
    [_mm256_min_epu32(a[0], b[0]), _mm256_min_epu32(a[1], b[1])]
}

#[inline]
#[target_feature(enable = "avx2")]
fn keep_words(line: Line, keep: Line) -> Line {
    let zero = _mm256_setzero_si256();
    [
        _mm256_andnot_si256(_mm256_cmpeq_epi32(keep[0], zero), line[0]),
        _mm256_andnot_si256(_mm256_cmpeq_epi32(keep[1], zero), line[1]),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn accumulate(acc: Line, data: Line, secret: Line) -> Line {
    [
        accumulate_half(acc[0], data[0], secret[0]),
        accumulate_half(acc[1], data[1], secret[1]),
    ]
}

#[inline]
#[target_feature(enable = "avx2")]
fn accumulate_half(acc: __m256i, data: __m256i, secret: __m256i) -> __m256i {
    let keyed = _mm256_xor_si256(data, secret);
    let product = _mm256_mul_epu32(keyed, _mm256_srli_epi64::<32>(keyed));
    let neighbour = _mm256_shuffle_epi32::<0b01_00_11_10>(data);
    _mm256_add_epi64(_mm256_add_epi64(acc, neighbour), product)
}

#[inline]
#[target_feature(enable = "avx2")]
fn scramble(acc: Line, secret: Line) -> Line {
    [
        scramble_half(acc[0], secret[0]),
        scramble_half(acc[1], secret[1]),
    ]
}

/// The 64-bit product by a 32-bit prime, from two 32-bit products.
#[inline]
#[target_feature(enable = "avx2")]
fn scramble_half(acc: __m256i, secret: __m256i) -> __m256i {
    let folded = _mm256_xor_si256(acc, _mm256_srli_epi64::<47>(acc));
    let keyed = _mm256_xor_si256(folded, secret);
    let prime = _mm256_set1_epi64x(PRIME32_1 as i64);
    let low = _mm256_mul_epu32(keyed, prime);
    let high = _mm256_mul_epu32(_mm256_srli_epi64::<32>(keyed), prime);
    _mm256_add_epi64(low, _mm256_slli_epi64::<32>(high))
}
