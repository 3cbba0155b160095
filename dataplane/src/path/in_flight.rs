//! Part of stage 5: what the frames under way on one stream name.
//!
//! A stream that breaks is taken up again by another connection, where the last frame ended that the
//! destination has applied. The pages of the frames behind it are lost, and sent again: which they are must
//! be known, and nothing is kept of a frame but that. Eight bytes a run of pages, of which a frame has 16 at
//! least, so that all of it stays within half of the stream's window.

use std::collections::VecDeque;

use dwcp_wire::{HEADER_BYTES, PageClass, PageEntry, PageRange};

use super::outgoing::OutgoingCounts;

/// The frames of one stream that are sent and not acknowledged, oldest first.
#[derive(Debug)]
pub struct InFlight {
    frames: VecDeque<Frame>,
    runs: VecDeque<Run>,
}

#[derive(Clone, Copy, Debug)]
struct Frame {
    round: u32,
    ram_block: u32,
    bytes: u32,
    /// A mark has none.
    runs: u16,
}

#[derive(Clone, Copy, Debug)]
struct Run {
    page: u32,
    pages: u16,
    class: PageClass,
}

/// What was lost with a stream.
#[derive(Clone, Debug, Default)]
pub struct Lost {
    /// Pages that were named, in the order of their frames.
    pub pages: Vec<PageRange>,
    /// What they had been counted as.
    pub counts: OutgoingCounts,
    /// The mark of the round.
    pub mark: bool,
}

/// Frames of another round than the one under way were not applied, though that round was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("frames of round {lost} are not applied, and it is round {round}")]
pub struct LostEarlier {
    /// Of the oldest frame.
    pub lost: u32,
    /// Under way.
    pub round: u32,
}

/// Room from the beginning on: what 16 MiB of raw frames name, unless their pages lie far apart. More is
/// made when it is needed, and kept.
const FRAMES_USUAL: usize = 64;
const RUNS_USUAL: usize = 4096;

impl Default for InFlight {
    fn default() -> Self {
        Self {
            frames: VecDeque::with_capacity(FRAMES_USUAL),
            runs: VecDeque::with_capacity(RUNS_USUAL),
        }
    }
}

impl InFlight {
    /// A page frame leaves.
    pub fn sent(&mut self, round: u32, ram_block: u32, bytes: u64, entries: &[PageEntry]) {
        self.frames.push_back(Frame {
            round,
            ram_block,
            bytes: bytes as u32,
            runs: entries.len() as u16,
        });
        let runs = entries.iter().map(|entry| Run {
            page: entry.page,
            pages: entry.count,
            class: entry.class,
        });
        self.runs.extend(runs);
    }

    /// The mark of a round leaves.
    pub fn marked(&mut self, round: u32) {
        self.sent(round, 0, HEADER_BYTES as u64, &[]);
    }

    /// The oldest `frames` are applied. Returns their bytes.
    pub fn acknowledged(&mut self, frames: u64) -> u64 {
        let mut bytes = 0;
        for _ in 0..frames {
            let Some(frame) = self.frames.pop_front() else {
                break;
            };
            bytes += u64::from(frame.bytes);
            self.runs.drain(..usize::from(frame.runs));
        }
        bytes
    }

    /// Gives up all that is not acknowledged, in `round`.
    ///
    /// # Errors
    /// [`LostEarlier`]: the peer contradicts itself.
    pub fn take_lost(&mut self, round: u32) -> Result<Lost, LostEarlier> {
        if let Some(frame) = self.frames.iter().find(|frame| frame.round != round) {
            let lost = frame.round;
            return Err(LostEarlier { lost, round });
        }
        let mut lost = Lost::default();
        for frame in self.frames.drain(..) {
            if frame.runs == 0 {
                lost.mark = true;
                continue;
            }
            lost.counts.frames += 1;
            lost.counts.wire_bytes += u64::from(frame.bytes);
            for run in self.runs.drain(..usize::from(frame.runs)) {
                lost.counts.add_run(run.class, u64::from(run.pages));
                lost.pages.push(PageRange {
                    ram_block: frame.ram_block,
                    page: run.page,
                    count: run.pages.into(),
                });
            }
        }
        Ok(lost)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(page: u32, count: u16, class: PageClass) -> PageEntry {
        PageEntry {
            page,
            count,
            class,
            data_bytes: 0,
        }
    }

    #[test]
    fn what_is_not_acknowledged_is_lost_with_its_counts() {
        let mut in_flight = InFlight::default();
        in_flight.sent(3, 0, 100, &[entry(1, 2, PageClass::Raw)]);
        let runs = [entry(7, 1, PageClass::Raw), entry(9, 4, PageClass::Zero)];
        in_flight.sent(3, 1, 50, &runs);
        in_flight.marked(3);
        assert_eq!(in_flight.acknowledged(1), 100);
        let lost = in_flight.take_lost(3).unwrap();
        let run = |page, count| PageRange {
            ram_block: 1,
            page,
            count,
        };
        assert_eq!(lost.pages, [run(7, 1), run(9, 4)]);
        assert!(lost.mark);
        let counts = OutgoingCounts {
            named: 5,
            zero: 4,
            raw: 1,
            frames: 1,
            wire_bytes: 50,
            ..OutgoingCounts::default()
        };
        assert_eq!(lost.counts, counts);
        let nothing = in_flight.take_lost(4).unwrap();
        assert!(nothing.pages.is_empty() && !nothing.mark);
    }

    #[test]
    fn an_earlier_round_that_was_reported_cannot_be_lost() {
        let mut in_flight = InFlight::default();
        in_flight.marked(3);
        let refused = in_flight.take_lost(4).unwrap_err();
        assert_eq!(refused, LostEarlier { lost: 3, round: 4 });
        in_flight.acknowledged(1);
        assert!(in_flight.take_lost(4).is_ok());
    }
}
