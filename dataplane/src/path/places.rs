//! Part of stage 1: where each stream of a worker is in the round.
//!
//! A long window finds again what its own stream has carried, and guest RAM is most like what lies beside it: of
//! frames that take turns on four streams each finds 2% to 6% less than of stretches that each stream has to itself.
//! Where that matters a stream keeps a place of its own; elsewhere a worker has one, for all of its streams.

use super::source::{PageBatch, RoundCursor, RoundWork};

/// A place in the round: what is left of a batch, and of the stretch behind it.
#[derive(Clone, Copy, Debug, Default)]
struct Place {
    stream: u16,
    batch: PageBatch,
    cursor: RoundCursor,
}

/// The places of one worker's streams. No page is at two of them.
#[derive(Debug, Default)]
pub(super) struct Places {
    /// Of the stream that builds a frame.
    now: Place,
    others: Vec<Place>,
    node: Option<usize>,
}

impl Places {
    /// Takes pages on this NUMA node first.
    pub(super) const fn near(&mut self, node: Option<usize>) {
        self.node = node;
    }

    /// A round begins.
    pub(super) fn begin(&mut self, work: &RoundWork) {
        self.others.clear();
        self.now = Place {
            cursor: work.cursor(self.node),
            ..Place::default()
        };
    }

    /// Goes to where `stream` was.
    pub(super) fn go_to(&mut self, stream: u16, work: &RoundWork) {
        if !work.is_by_stream() || self.now.stream == stream {
            return;
        }
        let known = self.others.iter().position(|place| place.stream == stream);
        let place = match known {
            Some(known) => self.others.swap_remove(known),
            None => Place {
                stream,
                cursor: work.cursor(self.node),
                ..Place::default()
            },
        };
        self.others.push(std::mem::replace(&mut self.now, place));
    }

    /// What is left of the batch that the stream is at.
    pub(super) const fn batch(&self) -> &PageBatch {
        &self.now.batch
    }

    /// The next page of the batch, within its block.
    pub(super) const fn take_page(&mut self) -> u32 {
        self.now.batch.take_page()
    }

    /// Whether the batch lies on another node than the worker.
    pub(super) fn is_away(&self, work: &RoundWork) -> bool {
        self.now.cursor.is_away(work)
    }

    /// Goes on with a batch from elsewhere.
    pub(super) const fn put(&mut self, batch: PageBatch) {
        self.now.batch = batch;
    }

    /// Goes on to the next batch with a page; `false` when no place has one.
    pub(super) fn next_batch(&mut self, work: &RoundWork) -> bool {
        let next = self.now.cursor.next_batch(work);
        let Some(batch) = next.or_else(|| self.help(work)) else {
            return false;
        };
        self.now.batch = batch;
        true
    }

    /// A batch of another place of this worker, whose stream may be slow, or gone: half of what lies before it, or the last.
    fn help(&mut self, work: &RoundWork) -> Option<PageBatch> {
        loop {
            let most = self.others.iter_mut().max_by_key(|at| at.cursor.left())?;
            if most.cursor.left() == 0 {
                break;
            }
            self.now.cursor = most.cursor.take_half();
            if let Some(batch) = self.now.cursor.next_of_stretch(work) {
                return Some(batch);
            }
        }
        let place = self.others.iter_mut().find(|at| at.batch.dirty != 0)?;
        Some(std::mem::take(&mut place.batch))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ram::{DirtyBitmap, RamBitmap};

    fn ram(pages: u32) -> RamBitmap {
        RamBitmap {
            blocks: vec![DirtyBitmap::new(pages)],
        }
    }

    fn work(dirty: RamBitmap, streams: usize) -> RoundWork {
        let none = ram(dirty.blocks[0].pages());
        RoundWork::new(0, dirty, none).by_stream(streams)
    }

    /// The next page for `stream`.
    fn page(places: &mut Places, stream: u16, work: &RoundWork) -> Option<u32> {
        places.go_to(stream, work);
        if places.batch().dirty == 0 && !places.next_batch(work) {
            return None;
        }
        Some(places.batch().first_page + places.take_page())
    }

    fn all_of(pages: u32) -> RamBitmap {
        let mut dirty = ram(pages);
        dirty.blocks[0].set_range(0, pages);
        dirty
    }

    #[test]
    fn streams_that_take_turns_have_stretches_of_their_own() {
        let work = work(all_of(1 << 17), 4);
        let mut places = Places::default();
        places.begin(&work);
        let mut last: [Option<u32>; 4] = [None; 4];
        let mut jumps = 0;
        for turn in 0..1 << 17 {
            let stream = turn % 4;
            let page = page(&mut places, stream as u16, &work).unwrap();
            jumps += u32::from(last[stream].is_some_and(|last| last + 1 != page));
            last[stream] = Some(page);
        }
        // 512 MiB in stretches of 64 MiB at most, the last of 4.
        assert!((4..60).contains(&jumps), "{jumps}");
    }

    #[test]
    fn a_round_without_stretches_is_one_place() {
        let dirty = all_of(300);
        let work = RoundWork::new(1, dirty, ram(300));
        let mut places = Places::default();
        places.begin(&work);
        let pages: Vec<_> = (0..300)
            .map(|turn| page(&mut places, turn % 3, &work).unwrap())
            .collect();
        assert!(pages.iter().copied().eq(0..300));
    }

    proptest! {
        /// Two workers of three streams each, which come and stay away as they like.
        #[test]
        fn every_page_is_taken_once(
            ranges in prop::collection::vec((0u32..40_000, 1u32..3000), 0..20),
            turns in prop::collection::vec((0usize..2, 0u16..3, 1usize..700), 0..60),
        ) {
            let mut dirty = ram(40_000 + 17);
            for (first, count) in ranges {
                dirty.blocks[0].set_range(first, count.min(40_017 - first));
            }
            let expected = dirty.clone();
            let work = work(dirty, 6);
            let mut workers = [Places::default(), Places::default()];
            workers.iter_mut().for_each(|places| places.begin(&work));
            let mut seen = ram(40_017);
            let mut count = 0;
            let mut take = |worker: usize, stream, most: usize| {
                for _ in 0..most {
                    let Some(page) = page(&mut workers[worker], stream, &work) else { return };
                    seen.blocks[0].set_range(page, 1);
                    count += 1;
                }
            };
            for (worker, stream, most) in turns {
                take(worker, stream, most);
            }
            // One stream of each worker is left.
            take(0, 1, usize::MAX);
            take(1, 2, usize::MAX);
            prop_assert_eq!(count, expected.count());
            prop_assert_eq!(seen, expected);
        }
    }
}
