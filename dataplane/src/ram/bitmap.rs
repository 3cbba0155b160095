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

    /// Unmarks everything that `other` marks.
    pub fn subtract(&mut self, other: &Self) {
        for (word, less) in self.words.iter_mut().zip(&other.words) {
            *word &= !less;
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

    /// Marks those of the 64 pages from `page` on that `word` has a bit for; what lies outside the block is
    /// ignored.
    pub fn mark_word(&mut self, page: u32, word: u64) {
        let left = self.pages.saturating_sub(page);
        if let Some(own) = self.words.get_mut((page / PAGES_PER_WORD) as usize) {
            *own |= match left {
                left if left >= PAGES_PER_WORD => word,
                left => word & ((1 << left) - 1),
            };
        }
    }

    /// Unmarks a page.
    pub fn clear_page(&mut self, page: u32) {
        if page < self.pages {
            self.words[(page / PAGES_PER_WORD) as usize] &= !(1 << (page % PAGES_PER_WORD));
        }
    }

    /// Runs of marked pages, first page and pages, in order.
    pub fn runs(&self) -> impl Iterator<Item = (u32, u32)> {
        let mut from = 0;
        std::iter::from_fn(move || {
            let first = self.next(from, true)?;
            let end = self.next(first, false).unwrap_or(self.pages);
            from = end;
            Some((first, end - first))
        })
    }

    /// The first page from `page` on that is marked, or is not.
    fn next(&self, mut page: u32, marked: bool) -> Option<u32> {
        while page < self.pages {
            let word = self.words[(page / PAGES_PER_WORD) as usize];
            let wanted = if marked { word } else { !word } >> (page % PAGES_PER_WORD);
            if wanted != 0 {
                return Some(page + wanted.trailing_zeros()).filter(|&found| found < self.pages);
            }
            page = (page / PAGES_PER_WORD + 1) * PAGES_PER_WORD;
        }
        None
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

    /// Unmarks everything that `other` marks.
    pub fn subtract(&mut self, other: &Self) {
        for (block, less) in self.blocks.iter_mut().zip(&other.blocks) {
            block.subtract(less);
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

        #[test]
        fn runs_are_what_is_marked(
            pages in 1u32..500, ranges in prop::collection::vec((0u32..600, 0u32..90), 0..9)
        ) {
            let mut bitmap = DirtyBitmap::new(pages);
            for (first, count) in ranges {
                bitmap.set_range(first, count);
            }
            let (mut again, mut end) = (DirtyBitmap::new(pages), None);
            for (first, count) in bitmap.runs() {
                prop_assert!(count > 0 && end.is_none_or(|end| first > end), "runs touch");
                again.set_range(first, count);
                end = Some(first + count);
            }
            prop_assert_eq!(&again, &bitmap);
            if let Some((first, _)) = bitmap.runs().next() {
                again.clear_page(first);
                prop_assert!(!again.contains(first));
                prop_assert_eq!(again.count() + 1, bitmap.count());
            }
        }
    }
}
