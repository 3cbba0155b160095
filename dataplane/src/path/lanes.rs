//! The work of a round, split by NUMA node.
//!
//! A lane is the bitmap words of the pages that lie on one node. A worker takes stretches of its own
//! node's lane, and then of the one that has most left: near pages first, nothing left over, nobody
//! idle. On a machine of one node there is one lane.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ram::{PAGES_PER_WORD, RamLayout, RamNodes};

/// Words of a chunk, the least that is taken: 1024 pages, 4 MiB.
pub(super) const CHUNK_WORDS: usize = 16;

/// The most chunks that a stream takes for itself: 64 MiB, as far as the window of one of two streams goes back.
const STRETCH_CHUNKS_MAX: usize = 16;

/// How the words of all blocks, counted through, are split. The same in every round.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lanes(Vec<Lane>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Lane {
    node: Option<usize>,
    runs: Vec<Run>,
    chunks: usize,
}

/// Neighbouring words of one lane, and the chunks of the lane before them.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Run {
    words: Range<usize>,
    first_chunk: usize,
}

impl Lanes {
    /// One lane of `words` words, near to all.
    #[must_use]
    pub fn whole(words: usize) -> Self {
        let mut lane = Lane::default();
        lane.push(0..words);
        Self(vec![lane])
    }

    /// A lane per node, and one for what lies on none that is known.
    #[must_use]
    pub fn by_node(layout: &RamLayout, nodes: &RamNodes) -> Self {
        let words = |pages: u32| pages.div_ceil(PAGES_PER_WORD) as usize;
        let first_words: Vec<usize> = layout
            .blocks()
            .iter()
            .scan(0, |next, block| {
                let first = *next;
                *next += words(block.pages());
                Some(first)
            })
            .collect();
        let mut lanes: Vec<Lane> = vec![];
        for stretch in nodes.stretches() {
            let first = first_words[stretch.block];
            let range = first + words(stretch.pages.start)..first + words(stretch.pages.end);
            let place = lanes.iter().position(|lane| lane.node == stretch.node);
            let place = place.unwrap_or_else(|| {
                lanes.push(Lane {
                    node: stretch.node,
                    ..Lane::default()
                });
                lanes.len() - 1
            });
            lanes[place].push(range);
        }
        Self(lanes)
    }

    /// What has been taken of each lane, in chunks: nothing.
    pub(super) fn untaken(&self) -> Box<[AtomicUsize]> {
        self.0.iter().map(|_| AtomicUsize::new(0)).collect()
    }

    /// The lane where a worker near `node` begins: its own, else the one near to nobody, else any.
    pub(super) fn home(&self, node: Option<usize>) -> usize {
        let of = |node| self.0.iter().position(|lane| lane.node == node);
        of(node).or_else(|| of(None)).unwrap_or(0)
    }

    /// Whether the pages of a lane lie on another node than `node`.
    pub(super) fn is_away(&self, lane: usize, node: Option<usize>) -> bool {
        let of_lane = self.0.get(lane).and_then(|lane| lane.node);
        of_lane.is_some() && of_lane != node
    }

    /// Takes the next words of `lane`, or of the lane that has most left, which is `lane` then: a chunk, or for one
    /// of so many streams half of its share of what is left. `None` when all are taken.
    pub(super) fn take(
        &self,
        taken: &[AtomicUsize],
        lane: &mut usize,
        streams: Option<usize>,
    ) -> Option<Range<usize>> {
        loop {
            let (own, done) = (&self.0[*lane], taken.get(*lane)?);
            let mut words = None;
            let next = |chunk: usize| {
                let share =
                    |streams: usize| own.chunks.saturating_sub(chunk) / (2 * streams.max(1));
                let most = streams.map_or(1, |all| share(all).clamp(1, STRETCH_CHUNKS_MAX));
                let (stretch, chunks) = own.stretch(chunk, most)?;
                words = Some(stretch);
                Some(chunk + chunks)
            };
            // No order is needed: the bitmaps were there before the round was given out.
            let order = Ordering::Relaxed;
            if done.fetch_update(order, order, next).is_ok() {
                return words;
            }
            let left = self
                .0
                .iter()
                .zip(taken)
                .map(|(lane, taken)| lane.chunks.saturating_sub(taken.load(Ordering::Relaxed)));
            let (fullest, _) = left
                .enumerate()
                .filter(|(_, left)| *left > 0)
                .max_by_key(|at| at.1)?;
            *lane = fullest;
        }
    }
}

impl Lane {
    fn push(&mut self, words: Range<usize>) {
        let first_chunk = self.chunks;
        self.chunks += words.len().div_ceil(CHUNK_WORDS);
        self.runs.push(Run { words, first_chunk });
    }

    /// The words of at most `most` chunks from `chunk` on that follow each other, and how many chunks they are.
    fn stretch(&self, chunk: usize, most: usize) -> Option<(Range<usize>, usize)> {
        if chunk >= self.chunks {
            return None;
        }
        let behind = self.runs.partition_point(|run| run.first_chunk <= chunk);
        let run = &self.runs[behind - 1];
        let first = run.words.start + (chunk - run.first_chunk) * CHUNK_WORDS;
        let end = (first + most * CHUNK_WORDS).min(run.words.end);
        Some((first..end, (end - first).div_ceil(CHUNK_WORDS)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::testing::ram;
    use proptest::prelude::*;

    /// Words that a worker of each node takes, in turns, with the lane of each.
    fn taken(lanes: &Lanes, workers: &[Option<usize>]) -> Vec<Vec<(usize, Range<usize>)>> {
        taken_by(lanes, workers, None)
    }

    fn taken_by(
        lanes: &Lanes,
        workers: &[Option<usize>],
        streams: Option<usize>,
    ) -> Vec<Vec<(usize, Range<usize>)>> {
        let counters = lanes.untaken();
        let mut at: Vec<usize> = workers.iter().map(|node| lanes.home(*node)).collect();
        let mut out = vec![vec![]; workers.len()];
        let mut idle = 0;
        for worker in (0..workers.len()).cycle() {
            match lanes.take(&counters, &mut at[worker], streams) {
                Some(words) => {
                    out[worker].push((at[worker], words));
                    idle = 0;
                }
                None => idle += 1,
            }
            if idle == workers.len() {
                return out;
            }
        }
        out
    }

    #[test]
    fn one_lane_is_taken_in_order() {
        let words = taken(&Lanes::whole(40), &[None]);
        let words: Vec<_> = words[0].iter().map(|(_, words)| words.clone()).collect();
        assert_eq!(words, [0..16, 16..32, 32..40]);
        assert_eq!(taken(&Lanes::whole(0), &[None, Some(1)]), [vec![], vec![]]);
        assert!(
            !Lanes::whole(40).is_away(0, Some(1)),
            "its pages lie nowhere that is known"
        );
    }

    #[test]
    fn streams_take_half_of_their_share_and_a_chunk_at_last() {
        let words = taken_by(&Lanes::whole(8 * 1024), &[None], Some(4));
        let chunks: Vec<usize> = words[0]
            .iter()
            .map(|(_, words)| words.len() / CHUNK_WORDS)
            .collect();
        assert_eq!(chunks[..2], [16, 16], "of 512 chunks");
        assert!(chunks.is_sorted_by(|a, b| a >= b), "{chunks:?}");
        assert_eq!(chunks[chunks.len() - 8..], [1; 8]);
    }

    /// 64 MiB on node 1, then 16 MiB on node 0, then what is unknown.
    fn two_nodes() -> Lanes {
        let layout = ram(&[16 << 10, 4 << 10, 1]);
        let nodes = RamNodes::of([
            (0, 0..16 << 10, Some(1)),
            (1, 0..4 << 10, Some(0)),
            (2, 0..1, None),
        ]);
        Lanes::by_node(&layout, &nodes)
    }

    #[test]
    fn near_pages_come_first_and_then_the_fullest_lane() {
        let lanes = two_nodes();
        let taken = taken(&lanes, &[Some(0), Some(1)]);
        let away: Vec<Vec<bool>> = [Some(0), Some(1)]
            .iter()
            .zip(&taken)
            .map(|(node, taken)| {
                taken
                    .iter()
                    .map(|(lane, _)| lanes.is_away(*lane, *node))
                    .collect()
            })
            .collect();
        // 16 chunks on node 1, 4 on node 0: the worker of node 0 helps the other from its fifth on.
        assert_eq!(away[0][..4], [false; 4]);
        assert!(away[0][4..10].iter().all(|away| *away), "{away:?}");
        assert!(away[1].iter().all(|away| !away), "{away:?}");
        assert!(
            away[0].len().abs_diff(away[1].len()) <= 1,
            "one has done more: {away:?}"
        );
    }

    #[test]
    fn a_worker_of_no_lane_begins_where_nobody_is_near() {
        let lanes = two_nodes();
        assert_eq!(taken(&lanes, &[Some(5)])[0][0].1, 320..321);
        assert_eq!(taken(&lanes, &[None])[0][0].1, 320..321);
    }

    proptest! {
        #[test]
        fn every_word_is_taken_once(
            blocks in prop::collection::vec(prop::collection::vec((1u32..3000, prop::option::of(0usize..4)), 1..6), 1..4),
            workers in prop::collection::vec(prop::option::of(0usize..5), 1..6),
            streams in prop::option::of(0usize..9),
        ) {
            let mut nodes = vec![];
            let mut sizes = vec![];
            for (block, stretches) in blocks.iter().enumerate() {
                let mut first = 0;
                for &(words, node) in stretches {
                    let end = first + words * PAGES_PER_WORD;
                    nodes.push((block, first..end, node));
                    first = end;
                }
                // The last word need not be full.
                if let Some((_, pages, _)) = nodes.last_mut() {
                    pages.end -= 63;
                }
                sizes.push(first - 63);
            }
            let lanes = Lanes::by_node(&ram(&sizes), &RamNodes::of(nodes));
            let mut all: Vec<usize> = taken_by(&lanes, &workers, streams)
                .into_iter()
                .flatten()
                .flat_map(|(_, words)| words)
                .collect();
            all.sort_unstable();
            let words: u32 = sizes.iter().map(|pages| pages.div_ceil(PAGES_PER_WORD)).sum();
            prop_assert_eq!(all, (0..words as usize).collect::<Vec<_>>());
        }
    }
}
