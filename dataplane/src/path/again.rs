//! Part of stage 1: pages that were lost with a stream, to be sent once more in their round.

use std::collections::BTreeMap;

use dwcp_wire::PageRange;

use super::source::PageBatch;
use crate::ram::PAGES_PER_WORD;

/// Batches of pages that were sent in this round and did not arrive, in order.
#[derive(Debug, Default)]
pub(super) struct PagesAgain(BTreeMap<(u32, u32), u64>);

impl PagesAgain {
    pub(super) fn add(&mut self, pages: &[PageRange]) {
        for range in pages {
            for page in range.page..range.page + range.count {
                let word = (range.ram_block, page / PAGES_PER_WORD);
                *self.0.entry(word).or_default() |= 1 << (page % PAGES_PER_WORD);
            }
        }
    }

    pub(super) fn next_batch(&mut self) -> Option<PageBatch> {
        let ((block, word), pages) = self.0.pop_first()?;
        Some(PageBatch {
            block,
            first_page: word * PAGES_PER_WORD,
            dirty: pages,
            // The destination may hold anything.
            forced: pages,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_come_together_in_order() {
        let mut again = PagesAgain::default();
        let run = |ram_block, page, count| PageRange {
            ram_block,
            page,
            count,
        };
        again.add(&[run(1, 0, 1), run(0, 63, 2), run(0, 3, 1)]);
        let batches: Vec<_> = std::iter::from_fn(|| again.next_batch()).collect();
        let batch = |block, first_page, dirty| PageBatch {
            block,
            first_page,
            dirty,
            forced: dirty,
        };
        let first = 1 << 63 | 1 << 3;
        assert_eq!(
            batches,
            [batch(0, 0, first), batch(0, 64, 1), batch(1, 0, 1)]
        );
    }
}
