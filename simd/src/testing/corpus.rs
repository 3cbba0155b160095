//! Inputs that kernels get wrong: every boundary, every kind of page.

use crate::{PAGE_BYTES, Page};

/// A small generator, so that a failure is the same on every machine.
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut x = self.0;
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^ (x >> 31)
    }

    pub(super) fn bytes(&mut self, count: usize) -> Vec<u8> {
        (0..count).map(|_| self.next() as u8).collect()
    }

    pub(super) fn page(&mut self) -> Page {
        self.bytes(PAGE_BYTES).try_into().expect("asked for a page")
    }

    /// A page of 32-bit words out of `distinct` random ones, with only the bits of `mask` set.
    pub(super) fn page_of_words(&mut self, distinct: usize, mask: u32) -> Page {
        let choice: Vec<u32> = (0..distinct).map(|_| self.next() as u32 & mask).collect();
        page_from_words(|_| choice[self.next() as usize % distinct])
    }
}

/// The page whose 32-bit word `i` is `word(i)`.
pub(super) fn page_from_words(mut word: impl FnMut(u32) -> u32) -> Page {
    let mut page = [0; PAGE_BYTES];
    for (i, bytes) in (0..).zip(page.as_chunks_mut::<4>().0) {
        *bytes = word(i).to_le_bytes();
    }
    page
}

/// Byte positions on both sides of every boundary that an implementation may have.
pub(super) fn positions() -> Vec<usize> {
    let stride = if cfg!(miri) { 1024 } else { 16 };
    let around = |at: usize| [at.wrapping_sub(1), at, at + 1];
    let mut positions: Vec<usize> = (0..=PAGE_BYTES).step_by(stride).flat_map(around).collect();
    positions.retain(|position| *position < PAGE_BYTES);
    positions.dedup();
    positions
}

/// Pages with a name: constant, random, sparse, and a single bit at every position.
pub(super) fn pages() -> Vec<(String, Page)> {
    let mut rng = Rng::new(0x5EED_0001);
    let mut pages = vec![
        ("zero".to_owned(), [0; PAGE_BYTES]),
        ("ones".to_owned(), [0xFF; PAGE_BYTES]),
        ("top bits".to_owned(), [0x80; PAGE_BYTES]),
        ("low bits".to_owned(), [0x01; PAGE_BYTES]),
        (
            "ramp".to_owned(),
            std::array::from_fn(|position| position as u8),
        ),
    ];
    for number in 0..if cfg!(miri) { 1 } else { 16 } {
        pages.push((format!("random {number}"), rng.page()));
    }
    for density in [1, 8, 64, 512] {
        let mut page = [0; PAGE_BYTES];
        for _ in 0..density {
            page[rng.next() as usize % PAGE_BYTES] = rng.next() as u8;
        }
        pages.push((format!("sparse {density}"), page));
    }
    for distinct in [2, 8, 32, 1024] {
        let page = rng.page_of_words(distinct, 0x0307_FF03);
        pages.push((format!("{distinct} words"), page));
    }
    for position in positions() {
        let mut page = [0; PAGE_BYTES];
        page[position] = 1 << (rng.next() % 8);
        pages.push((format!("bit at {position}"), page));
    }
    pages
}

/// Lengths around every block size of the checksum kernels, and some large ones.
pub(super) fn lengths() -> Vec<usize> {
    if cfg!(miri) {
        return vec![0, 1, 9, 63, 64, 257, 1023, 2048, 4096];
    }
    let mut lengths: Vec<usize> = (0..1100).collect();
    for base in [1 << 11, 1 << 12, 1 << 13, 1 << 15, 1 << 16] {
        lengths.extend(base - 33..base + 33);
    }
    lengths.extend([100_003, 262_144, 262_147]);
    lengths
}
