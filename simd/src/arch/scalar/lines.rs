//! Lines as eight 64-bit words, little-endian whatever the processor.

use crate::LivePage;
use crate::arch::generic::{COLUMNS, Isa, LINE_BYTES, LineBytes};
use crate::fingerprint::PRIME32_1;

/// Any processor will do.
#[derive(Clone, Copy)]
pub(super) struct Scalar;

const LOW_SEVEN: u64 = 0x7F7F_7F7F_7F7F_7F7F;

impl Isa for Scalar {
    type Line = [u64; 8];
    type Tally = u32;

    #[inline(always)]
    fn load(self, from: &LineBytes) -> Self::Line {
        let (words, _) = from.as_chunks::<8>();
        let mut line = [0; 8];
        for lane in 0..8 {
            line[lane] = u64::from_le_bytes(words[lane]);
        }
        line
    }

    #[inline(always)]
    fn load_live(self, page: LivePage<'_>, line: usize) -> Self::Line {
        let mut bytes = [0; LINE_BYTES];
        // SAFETY: a line of a mapped page, and private memory that cannot overlap it. What another
        // process writes meanwhile is seen or not.
        unsafe {
            std::ptr::copy_nonoverlapping(page.line(line), bytes.as_mut_ptr(), LINE_BYTES);
        }
        self.load(&bytes)
    }

    #[inline(always)]
    fn store(self, to: &mut LineBytes, line: Self::Line) {
        let (words, _) = to.as_chunks_mut::<8>();
        for lane in 0..8 {
            words[lane] = line[lane].to_le_bytes();
        }
    }

    #[inline(always)]
    fn or(self, mut a: Self::Line, b: Self::Line) -> Self::Line {
        for lane in 0..8 {
            a[lane] |= b[lane];
        }
        a
    }

    #[inline(always)]
    fn xor(self, mut a: Self::Line, b: Self::Line) -> Self::Line {
        for lane in 0..8 {
            a[lane] ^= b[lane];
        }
        a
    }

    #[inline(always)]
    fn is_zero(self, line: Self::Line) -> bool {
        line.iter().fold(0, |all, word| all | word) == 0
    }

    #[inline(always)]
    fn tally_start(self) -> Self::Tally {
        0
    }

    /// Per byte: adding 0x7F to the low seven bits carries into the top bit unless they are zero;
    /// or-ing the byte itself adds its own top bit. No carry leaves a byte.
    #[inline(always)]
    fn tally(self, tally: Self::Tally, line: Self::Line) -> Self::Tally {
        let mut sum = tally;
        for word in line {
            let top_bits = (((word & LOW_SEVEN) + LOW_SEVEN) | word) & !LOW_SEVEN;
            sum += top_bits.count_ones();
        }
        sum
    }

    #[inline(always)]
    fn tally_total(self, tally: Self::Tally) -> u32 {
        tally
    }

    /// A lane holds two words, and so two bytes of each column.
    #[inline(always)]
    fn split(self, words: [Self::Line; COLUMNS]) -> [Self::Line; COLUMNS] {
        let mut columns = [[0; 8]; COLUMNS];
        for (number, pair) in words.as_flattened().iter().enumerate() {
            for (column, line) in columns.iter_mut().enumerate() {
                let bytes = pair >> (8 * column);
                let bytes = (bytes & 0xFF) | (bytes >> 24 & 0xFF00);
                line[number / 4] |= bytes << (number % 4 * 16);
            }
        }
        columns
    }

    #[inline(always)]
    fn join(self, columns: [Self::Line; COLUMNS]) -> [Self::Line; COLUMNS] {
        let mut words = [[0; 8]; COLUMNS];
        for (number, pair) in words.as_flattened_mut().iter_mut().enumerate() {
            for (column, line) in columns.iter().enumerate() {
                let bytes = line[number / 4] >> (number % 4 * 16);
                let bytes = (bytes & 0xFF) | (bytes & 0xFF00) << 24;
                *pair |= bytes << (8 * column);
            }
        }
        words
    }

    /// The smaller of two words is zero exactly when one of them is.
    #[inline(always)]
    fn and_words(self, mut a: Self::Line, b: Self::Line) -> Self::Line {
        for lane in 0..8 {
            let low = (a[lane] as u32).min(b[lane] as u32);
            let high = (a[lane] >> 32).min(b[lane] >> 32);
            a[lane] = high << 32 | u64::from(low);
        }
        a
    }

    #[inline(always)]
    fn keep_words(self, mut line: Self::Line, keep: Self::Line) -> Self::Line {
        for lane in 0..8 {
            let low = u64::from(keep[lane] as u32 != 0) * 0xFFFF_FFFF;
            let high = u64::from(keep[lane] >> 32 != 0) * 0xFFFF_FFFF;
            line[lane] &= high << 32 | low;
        }
        line
    }

    #[inline(always)]
    fn accumulate(self, acc: Self::Line, data: Self::Line, secret: Self::Line) -> Self::Line {
        let mut next = acc;
        for lane in 0..8 {
            let keyed = data[lane] ^ secret[lane];
            let product = (keyed & 0xFFFF_FFFF).wrapping_mul(keyed >> 32);
            next[lane] = next[lane]
                .wrapping_add(product)
                .wrapping_add(data[lane ^ 1]);
        }
        next
    }

    #[inline(always)]
    fn scramble(self, mut acc: Self::Line, secret: Self::Line) -> Self::Line {
        for lane in 0..8 {
            let folded = acc[lane] ^ (acc[lane] >> 47) ^ secret[lane];
            acc[lane] = folded.wrapping_mul(PRIME32_1);
        }
        acc
    }
}
