//! Which pages are dirty.

/// Pages in one word of a bitmap: as many as one frame carries.
pub const PAGES_PER_WORD: u32 = u64::BITS;

/// Dirty pages of one RAM block, a bit each.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyBitmap {
    words: Vec<u64>,
    pages: u32,
}

impl DirtyBitmap {
    /// No page of `pages` is dirty.
    #[must_use]
    pub fn new(pages: u32) -> Self {
        Self {
            words: vec![0; pages.div_ceil(PAGES_PER_WORD) as usize],
            pages,
        }
    }

    /// Pages that the bitmap speaks of.
    #[must_use]
    pub const fn pages(&self) -> u32 {
        self.pages
    }

    /// Marks `count` pages from `first`; what lies outside the block is ignored.
    pub fn set_range(&mut self, first: u32, count: u32) {
        let end = first.saturating_add(count).min(self.pages);
        let mut page = first;
        while page < end {
            let word = page / PAGES_PER_WORD;
            let upto = ((word + 1) * PAGES_PER_WORD).min(end);
            let bits = u64::MAX >> (PAGES_PER_WORD - (upto - page)) << (page % PAGES_PER_WORD);
            self.words[word as usize] |= bits;
            page = upto;
        }
    }

    /// Whether `page` is marked.
    #[must_use]
    pub fn contains(&self, page: u32) -> bool {
        page < self.pages
            && self.words[(page / PAGES_PER_WORD) as usize] >> (page % PAGES_PER_WORD) & 1 == 1
    }

    /// Marks everything that `other` marks.
    pub fn union(&mut self, other: &Self) {
        for (word, more) in self.words.iter_mut().zip(&other.words) {
            *word |= more;
        }
    }

    /// Marked pages.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.words
            .iter()
            .map(|word| u64::from(word.count_ones()))
            .sum()
    }

    /// Its words; bit `b` of word `w` is page `64 w + b`.
    #[must_use]
    pub fn words(&self) -> &[u64] {
        &self.words
    }

    /// Unmarks everything.
    pub fn clear(&mut self) {
        self.words.fill(0);
    }
}

/// Dirty pages of all RAM blocks, in the order of the layout.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RamBitmap {
    /// One bitmap per block.
    pub blocks: Vec<DirtyBitmap>,
}

impl RamBitmap {
    /// Marked pages.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.blocks.iter().map(DirtyBitmap::count).sum()
    }

    /// Marks everything that `other` marks.
    pub fn union(&mut self, other: &Self) {
        for (block, more) in self.blocks.iter_mut().zip(&other.blocks) {
            block.union(more);
        }
    }

    /// Words of all blocks.
    #[must_use]
    pub fn word_count(&self) -> usize {
        self.blocks.iter().map(|block| block.words.len()).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_range_marks_its_pages_and_no_other(
            pages in 1u32..500, first in 0u32..600, count in 0u32..600
        ) {
            let mut bitmap = DirtyBitmap::new(pages);
            bitmap.set_range(first, count);
            for page in 0..pages + 64 {
                let expected = page < pages && page >= first && page < first + count;
                prop_assert_eq!(bitmap.contains(page), expected, "page {}", page);
            }
            let marked = (first..first + count).filter(|page| *page < pages).count();
            prop_assert_eq!(bitmap.count(), marked as u64);
        }
    }
}
