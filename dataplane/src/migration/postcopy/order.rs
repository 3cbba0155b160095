//! In which order missing pages are asked for: behind those that were just needed, and else from the first to
//! the last.

use dwcp_wire::PageRange;
use dwcp_wire::limits::REQUEST_RANGES_MAX;

use super::missing::Missing;
use crate::ram::{PAGES_PER_WORD, RamBitmap};

/// Places where pages were needed, of which the newest count.
const HOT_MAX: usize = 64;

/// Words that one look takes in: a lock is held meanwhile.
const WORDS_MAX: u32 = 1 << 16;

/// What has been asked for, and what comes next.
#[derive(Debug)]
pub(super) struct Order {
    asked: RamBitmap,
    /// Where the sweep is.
    block: u32,
    page: u32,
    hot: Vec<(u32, u32)>,
}

impl Order {
    /// Nothing is asked for yet; `empty` has the shape of RAM.
    pub(super) const fn new(empty: RamBitmap) -> Self {
        Self {
            asked: empty,
            block: 0,
            page: 0,
            hot: vec![],
        }
    }

    /// A page was needed: others behind it are likely to be.
    pub(super) fn needed(&mut self, block: u32, page: u32) {
        if self.hot.len() == HOT_MAX {
            self.hot.remove(0);
        }
        self.hot.push((block, page + 1));
    }

    /// Up to `most` pages that are missing and not asked for, as runs; none when there are none left.
    pub(super) fn next(&mut self, missing: &Missing, most: u32) -> Vec<PageRange> {
        while let Some((block, page)) = self.hot.pop() {
            let ranges = self.behind(missing, block, page, most);
            if let Some(last) = ranges.last() {
                self.hot.push((block, last.page + last.count));
                return ranges;
            }
        }
        self.sweep(missing, most)
    }

    /// The same of the pages from `page` on, and no more than `most` behind it.
    pub(super) fn behind(
        &mut self,
        missing: &Missing,
        block: u32,
        page: u32,
        most: u32,
    ) -> Vec<PageRange> {
        let mut ranges = vec![];
        for page in page..page.saturating_add(most) {
            if missing.contains(block, page) && !self.asked.blocks[block as usize].contains(page) {
                self.ask(&mut ranges, block, page);
            }
        }
        ranges
    }

    fn sweep(&mut self, missing: &Missing, most: u32) -> Vec<PageRange> {
        let mut ranges = vec![];
        let mut left = most;
        for _ in 0..WORDS_MAX {
            let Some(word) = missing.word(self.block, self.page) else {
                // A request names pages of one block.
                if !ranges.is_empty() || self.block + 1 >= missing.blocks() {
                    break;
                }
                (self.block, self.page) = (self.block + 1, 0);
                continue;
            };
            let first = self.page - self.page % PAGES_PER_WORD;
            let mut word = word & u64::MAX << (self.page - first);
            while word != 0 && left > 0 && ranges.len() < REQUEST_RANGES_MAX {
                let page = first + word.trailing_zeros();
                word &= word - 1;
                if !self.asked.blocks[self.block as usize].contains(page) {
                    self.ask(&mut ranges, self.block, page);
                    left -= 1;
                }
                self.page = page + 1;
            }
            if left == 0 || ranges.len() == REQUEST_RANGES_MAX {
                break;
            }
            self.page = first + PAGES_PER_WORD;
        }
        ranges
    }

    fn ask(&mut self, ranges: &mut Vec<PageRange>, ram_block: u32, page: u32) {
        self.asked.blocks[ram_block as usize].set_range(page, 1);
        if let Some(last) = ranges.last_mut()
            && last.page + last.count == page
        {
            last.count += 1;
            return;
        }
        ranges.push(PageRange {
            ram_block,
            page,
            count: 1,
        });
    }

    /// What was asked for and has not come will not: a connection is lost, or its answer was damaged.
    pub(super) fn begin_anew(&mut self) {
        for block in &mut self.asked.blocks {
            block.clear();
        }
        (self.block, self.page) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::DirtyBitmap;

    fn ram(ranges: &[(usize, u32, u32)]) -> RamBitmap {
        let mut bitmap = RamBitmap {
            blocks: vec![DirtyBitmap::new(100), DirtyBitmap::new(300)],
        };
        for &(block, page, count) in ranges {
            bitmap.blocks[block].set_range(page, count);
        }
        bitmap
    }

    fn all(order: &mut Order, missing: &Missing) -> Vec<(u32, u32, u32)> {
        let mut all = vec![];
        loop {
            let ranges = order.next(missing, 8);
            if ranges.is_empty() {
                return all;
            }
            assert!(ranges.iter().map(|range| range.count).sum::<u32>() <= 8);
            all.extend(ranges.iter().map(|r| (r.ram_block, r.page, r.count)));
        }
    }

    #[test]
    fn each_missing_page_is_asked_for_once_in_order() {
        let missing = Missing::new(&ram(&[(0, 62, 4), (0, 99, 1), (1, 0, 10), (1, 299, 1)]));
        let mut order = Order::new(ram(&[]));
        let expected = [(0, 62, 4), (0, 99, 1), (1, 0, 8), (1, 8, 2), (1, 299, 1)];
        assert_eq!(all(&mut order, &missing), expected);
        order.begin_anew();
        assert!(missing.take(0, 64));
        assert_eq!(all(&mut order, &missing)[..2], [(0, 62, 2), (0, 65, 1)]);
    }

    #[test]
    fn what_lies_behind_a_page_that_was_needed_comes_first() {
        let missing = Missing::new(&ram(&[(0, 0, 4), (1, 200, 20)]));
        let mut order = Order::new(ram(&[]));
        order.needed(1, 199);
        let expected = [(1, 200, 8), (1, 208, 8), (1, 216, 4), (0, 0, 4)];
        assert_eq!(all(&mut order, &missing), expected);
    }
}
