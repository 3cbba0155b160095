//! Which pages of the source the destination has already: asked by their hashes, a chunk at a time.

use serde::{Deserialize, Serialize};

use crate::Control;

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

/// Pages of a chunk that both ends know: those of a question that are in the destination's RAM now, or those that the source
/// says are as they were when the VM left the destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct KnownPages {
    /// RAM block index.
    pub ram_block: u32,
    /// First page of the chunk.
    pub page: u32,
    /// A bit for each page of the chunk, the lowest first.
    bits: Vec<u8>,
    /// What they add to the root: by it each end sees that the other means the same content.
    pub root: u128,
}

impl KnownPages {
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

    /// Notes that the `at`th page is known.
    pub fn set(&mut self, at: usize) {
        self.bits[at / 8] |= 1 << (at % 8);
    }

    /// Whether the `at`th page is known.
    #[must_use]
    pub fn contains(&self, at: usize) -> bool {
        self.bits
            .get(at / 8)
            .is_some_and(|bits| bits >> (at % 8) & 1 == 1)
    }

    /// Pages spoken of; up to 7 more than the chunk has.
    #[must_use]
    pub const fn pages(&self) -> usize {
        self.bits.len() * 8
    }

    /// Pages that are known.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.bits
            .iter()
            .map(|bits| u64::from(bits.count_ones()))
            .sum()
    }

    /// Whether this is about a chunk of so many pages, and about no more.
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

/// What a source asks before round 0; each is answered by a [`Control::Found`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum PageQuestion {
    /// Which of these are there?
    Wanted(WantedPages),
    /// Are these there, as they were when the VM left?
    Unchanged(KnownPages),
}

impl PageQuestion {
    /// RAM block index, first page, and pages spoken of.
    #[must_use]
    pub const fn chunk(&self) -> (u32, u32, usize) {
        match self {
            Self::Wanted(wanted) => (wanted.ram_block, wanted.page, wanted.pages()),
            Self::Unchanged(known) => (known.ram_block, known.page, known.pages()),
        }
    }

    /// The question that a message asks, if it does.
    #[must_use]
    pub fn of(message: Control) -> Option<Self> {
        match message {
            Control::Wanted(wanted) => Some(Self::Wanted(wanted)),
            Control::Unchanged(known) => Some(Self::Unchanged(known)),
            _ => None,
        }
    }
}

impl From<PageQuestion> for Control {
    fn from(question: PageQuestion) -> Self {
        match question {
            PageQuestion::Wanted(wanted) => Self::Wanted(wanted),
            PageQuestion::Unchanged(known) => Self::Unchanged(known),
        }
    }
}
