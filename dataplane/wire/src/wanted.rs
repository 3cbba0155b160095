//! Which pages of the source the destination has already: asked by their hashes, a chunk at a time.

use serde::{Deserialize, Serialize};

/// Bytes of a page's hash.
pub(crate) const HASH_BYTES: usize = 8;

/// Hashes of pages that follow each other, under the seed of the destination's `Accept`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct WantedPages {
    /// RAM block index.
    pub ram_block: u32,
    /// First page.
    pub page: u32,
    /// 8 bytes for each page.
    bytes: Vec<u8>,
}

impl WantedPages {
    /// Pages from `page` on. The hash 0 is a page that is not asked for.
    #[must_use]
    pub fn new(ram_block: u32, page: u32, hashes: &[u64]) -> Self {
        Self {
            ram_block,
            page,
            bytes: hashes.iter().copied().flat_map(u64::to_le_bytes).collect(),
        }
    }

    /// Pages spoken of.
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.bytes.len() / HASH_BYTES
    }

    /// Their hashes, in order.
    pub fn hashes(&self) -> impl Iterator<Item = u64> {
        let (hashes, _) = self.bytes.as_chunks();
        hashes.iter().map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// Whether its bytes are whole hashes.
    pub(crate) const fn is_whole(&self) -> bool {
        self.bytes.len().is_multiple_of(HASH_BYTES)
    }
}

/// The answer: which of them are in the destination's RAM now.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FoundPages {
    /// RAM block index.
    pub ram_block: u32,
    /// First page, as it was asked.
    pub page: u32,
    /// A bit for each page asked for, the lowest first.
    bits: Vec<u8>,
    /// What they add to the root: by it the source sees that they are what it asked for.
    pub root: u128,
}

impl FoundPages {
    /// None of `pages` pages, yet.
    #[must_use]
    pub fn none(ram_block: u32, page: u32, pages: usize) -> Self {
        Self {
            ram_block,
            page,
            bits: vec![0; pages.div_ceil(8)],
            root: 0,
        }
    }

    /// Notes that the `at`th page asked for is there.
    pub fn set(&mut self, at: usize) {
        self.bits[at / 8] |= 1 << (at % 8);
    }

    /// Whether the `at`th page asked for is there.
    #[must_use]
    pub fn contains(&self, at: usize) -> bool {
        self.bits
            .get(at / 8)
            .is_some_and(|bits| bits >> (at % 8) & 1 == 1)
    }

    /// Whether this answers a question about so many pages, and about no more.
    #[must_use]
    pub fn is_about(&self, pages: usize) -> bool {
        let above = (pages..self.bits.len() * 8).any(|at| self.contains(at));
        self.bits.len() == pages.div_ceil(8) && !above
    }

    /// Bytes of its bits.
    pub(crate) const fn bit_bytes(&self) -> usize {
        self.bits.len()
    }
}
