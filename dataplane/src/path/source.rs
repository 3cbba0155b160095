//! Stage 1 of 8: pick dirty pages.
//!
//! In: the dirty bitmap of a round. Out: batches of up to 64 pages of one block, a bitmap word
//! each, every dirty page exactly once. Workers take stretches of words by one atomic exchange, those
//! of pages near them first: no queue, no lock.

use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use super::lanes::Lanes;
use crate::ram::{PAGES_PER_WORD, RamBitmap};

/// Up to 64 pages of one block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PageBatch {
    /// RAM block index.
    pub block: u32,
    /// Page of bit 0.
    pub first_page: u32,
    /// Pages to look at.
    pub dirty: u64,
    /// Those of them that must be sent even if they have not changed.
    pub forced: u64,
}

impl PageBatch {
    /// Its next page, counted from the first, and no longer in it.
    pub(super) const fn take_page(&mut self) -> u32 {
        let bit = self.dirty.trailing_zeros();
        self.dirty &= self.dirty - 1;
        bit
    }
}

/// The pages of one round, shared by the workers.
#[derive(Debug)]
pub struct RoundWork {
    /// Its number.
    pub round: u32,
    dirty: RamBitmap,
    forced: RamBitmap,
    resends: bool,
    is_paused: bool,
    /// Streams that each take stretches for themselves.
    by_stream: Option<usize>,
    lanes: Arc<Lanes>,
    taken: Box<[AtomicUsize]>,
}

impl RoundWork {
    /// A round over `dirty`; `forced` pages are part of it whether dirty or not. All pages are as
    /// near to every worker.
    #[must_use]
    pub fn new(round: u32, dirty: RamBitmap, forced: RamBitmap) -> Self {
        let lanes = Arc::new(Lanes::whole(dirty.word_count()));
        Self::by_lanes(round, dirty, forced, lanes)
    }

    /// The same while the guest is paused.
    #[must_use]
    pub const fn paused(mut self, is_paused: bool) -> Self {
        self.is_paused = is_paused;
        self
    }

    /// The same for so many streams that each take long stretches for themselves: not where the guest waits for
    /// the slowest.
    #[must_use]
    pub const fn by_stream(mut self, streams: usize) -> Self {
        self.by_stream = Some(streams);
        self
    }

    /// Whether each stream takes stretches for itself.
    pub(super) const fn is_by_stream(&self) -> bool {
        self.by_stream.is_some()
    }

    /// Whether the guest is paused, and waits for the end of the round.
    #[must_use]
    pub const fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Whether pages are sent again because they did not arrive as they were sent.
    #[must_use]
    pub const fn resends(&self) -> bool {
        self.resends
    }

    /// As [`Self::new`], where `lanes` says which pages are near to whom. They must be those of the
    /// bitmaps' RAM.
    #[must_use]
    pub fn by_lanes(
        round: u32,
        mut dirty: RamBitmap,
        forced: RamBitmap,
        lanes: Arc<Lanes>,
    ) -> Self {
        dirty.union(&forced);
        Self {
            round,
            resends: forced.count() > 0,
            is_paused: false,
            by_stream: None,
            dirty,
            forced,
            taken: lanes.untaken(),
            lanes,
        }
    }

    /// Pages in it.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.dirty.count()
    }

    /// The view of a worker near `node`.
    #[must_use]
    pub fn cursor(&self, node: Option<usize>) -> RoundCursor {
        RoundCursor {
            node,
            lane: self.lanes.home(node),
            next: 0,
            end: 0,
        }
    }

    /// The word `index`, counted through all blocks.
    fn batch(&self, mut index: usize) -> PageBatch {
        for (block, bitmap) in self.dirty.blocks.iter().enumerate() {
            let words = bitmap.words();
            if let Some(&dirty) = words.get(index) {
                return PageBatch {
                    block: block as u32,
                    first_page: index as u32 * PAGES_PER_WORD,
                    dirty,
                    forced: self.forced.blocks[block].words()[index],
                };
            }
            index -= words.len();
        }
        PageBatch {
            block: 0,
            first_page: 0,
            dirty: 0,
            forced: 0,
        }
    }
}

/// The stretch that a worker, or one of its streams, is at.
#[derive(Clone, Copy, Debug, Default)]
pub struct RoundCursor {
    node: Option<usize>,
    lane: usize,
    next: usize,
    end: usize,
}

impl RoundCursor {
    /// The next batch with a dirty page, or `None` when the round has no more.
    pub fn next_batch(&mut self, work: &RoundWork) -> Option<PageBatch> {
        loop {
            if let Some(batch) = self.next_of_stretch(work) {
                return Some(batch);
            }
            let words = work
                .lanes
                .take(&work.taken, &mut self.lane, work.by_stream)?;
            (self.next, self.end) = (words.start, words.end);
        }
    }

    /// The next batch with a dirty page before another stretch is taken.
    pub(super) fn next_of_stretch(&mut self, work: &RoundWork) -> Option<PageBatch> {
        while self.next < self.end {
            let batch = work.batch(self.next);
            self.next += 1;
            if batch.dirty != 0 {
                return Some(batch);
            }
        }
        None
    }

    /// Words of its stretch that it has not come to.
    pub(super) const fn left(&self) -> usize {
        self.end - self.next
    }

    /// The second half of what it has not come to, for somebody else.
    pub(super) const fn take_half(&mut self) -> Self {
        let half = Self {
            next: self.next + self.left() / 2,
            ..*self
        };
        self.end = half.next;
        half
    }

    /// Whether the batch given last lies on another node than the worker.
    #[must_use]
    pub fn is_away(&self, work: &RoundWork) -> bool {
        work.lanes.is_away(self.lane, self.node)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::DirtyBitmap;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn two_workers_see_every_dirty_page_exactly_once(
            ranges in prop::collection::vec((0u32..3000, 1u32..90), 0..40),
            forced in 0u32..2000,
        ) {
            let mut dirty = RamBitmap { blocks: vec![DirtyBitmap::new(1000), DirtyBitmap::new(2000)] };
            for (first, count) in ranges {
                dirty.blocks[0].set_range(first, count);
                dirty.blocks[1].set_range(first, count);
            }
            let mut force = RamBitmap { blocks: vec![DirtyBitmap::new(1000), DirtyBitmap::new(2000)] };
            force.blocks[1].set_range(forced, 1);
            let mut expected = dirty.clone();
            expected.union(&force);
            let work = RoundWork::new(1, dirty, force);
            let mut cursors = [work.cursor(None), work.cursor(None)];
            let mut seen = RamBitmap { blocks: vec![DirtyBitmap::new(1000), DirtyBitmap::new(2000)] };
            let mut count = 0;
            let mut turn = 0;
            let mut done = 0;
            while done < 2 {
                turn += 1;
                let Some(batch) = cursors[turn % 2].next_batch(&work) else { done += 1; continue };
                done = 0;
                count += u64::from(batch.dirty.count_ones());
                for bit in 0..64 {
                    if batch.dirty >> bit & 1 == 1 {
                        seen.blocks[batch.block as usize].set_range(batch.first_page + bit, 1);
                    }
                }
            }
            prop_assert_eq!(count, expected.count());
            prop_assert_eq!(seen, expected);
        }
    }
}
