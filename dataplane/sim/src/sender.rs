//! The source's worker: collects dirty pages, makes frames, sends them within the window.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use dwcp_proto::{RoundMeasure, SourceEvent};
use dwcp_wire::{PageRange, RoundSummary};

use crate::invariants;
use crate::link::Pipe;
use crate::mutation::Mutation;
use crate::pages::{self, FRAME_PAGES_MAX, Frame, PageInFrame};
use crate::world::{Happening, World};

/// One round under way.
#[derive(Debug)]
pub(crate) struct Sender {
    pub(crate) round: u32,
    paused: bool,
    pub(crate) force: BTreeSet<usize>,
    pub(crate) todo: VecDeque<usize>,
    /// Dirty bits cleared, pages not yet read: the guest may write in between.
    cleared: Vec<usize>,
    /// Read and classified, not yet on the wire.
    ready: Option<Frame>,
    next_stream: usize,
    pub(crate) waits: bool,
    /// The round was said to be sent, and these streams have lost a part of it, so often: the others have
    /// their marks.
    pub(crate) unmarked: BTreeMap<usize, u32>,
    dirty_ns: u64,
    pub(crate) visited: u64,
    pub(crate) counts: Counts,
    pub(crate) sent: RoundSummary,
}

/// Pages by class.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    pub(crate) zero: u64,
    pub(crate) unchanged: u64,
    pub(crate) raw: u64,
}

impl World {
    pub(crate) fn start_round(
        &mut self,
        attempt: usize,
        round: u32,
        again: &[PageRange],
        everything: bool,
    ) {
        let now = self.now;
        let paused = self.source.vmm.vm != crate::vmm::SourceVm::Running;
        let force: BTreeSet<usize> = pages::from_ranges(again, self.plan.first_block).collect();
        let skip = self.mutation == Mutation::SkipLastRound && paused;
        let Some(run) = self.source.run.as_mut() else {
            return;
        };
        let dirty: BTreeSet<usize> = self.guest.dirty_pages().collect();
        let todo = (0..self.plan.pages)
            .filter(|page| {
                let differs = everything && self.guest.memory[*page] != run.sent[*page];
                round == 0 || dirty.contains(page) || force.contains(page) || differs
            })
            .filter(|_| !skip)
            .collect();
        run.sender = Some(Sender {
            round,
            paused,
            force,
            todo,
            cleared: vec![],
            ready: None,
            next_stream: 0,
            waits: false,
            unmarked: BTreeMap::new(),
            dirty_ns: run.scanned_at.map_or(0, |at| now - at),
            visited: 0,
            counts: Counts::default(),
            sent: RoundSummary::default(),
        });
        run.told = None;
        run.scanned_at = Some(now);
        self.sender_again(attempt);
    }

    pub(crate) fn sender_again(&mut self, attempt: usize) {
        let boot = self.source.boot;
        let wait = self.rng.skewed(2_000, 400_000);
        self.after(wait, Happening::SenderSteps { boot, attempt });
    }

    /// An acknowledgement came: the window may be open.
    pub(crate) fn wake_sender(&mut self, attempt: usize) {
        let run = self
            .source
            .run
            .as_mut()
            .filter(|run| run.attempt == attempt);
        let Some(sender) = run.and_then(|run| run.sender.as_mut()) else {
            return;
        };
        if sender.waits {
            sender.waits = false;
            self.sender_again(attempt);
        }
    }

    /// One small step of the round; the guest's writes fall between the steps.
    pub(crate) fn sender_steps(&mut self, attempt: usize) {
        let run = self
            .source
            .run
            .as_mut()
            .filter(|run| run.attempt == attempt);
        let Some(sender) = run.and_then(|run| run.sender.as_mut()) else {
            return;
        };
        if sender.ready.is_some() {
            self.transmit(attempt);
        } else if !sender.cleared.is_empty() {
            self.read_batch();
            self.sender_again(attempt);
        } else if sender.todo.is_empty() {
            self.round_sent(attempt);
        } else {
            let count = sender.todo.len().min(FRAME_PAGES_MAX);
            sender.cleared = sender.todo.drain(..count).collect();
            if self.mutation != Mutation::ClearAfterRead {
                for page in sender.cleared.clone() {
                    self.guest.clear_dirty(page);
                }
            }
            self.sender_again(attempt);
        }
    }

    fn read_batch(&mut self) {
        let miscount = self.mutation == Mutation::MiscountUnchanged;
        let Some(run) = self.source.run.as_mut() else {
            return;
        };
        let Some(sender) = run.sender.as_mut() else {
            return;
        };
        let mut frame = Frame {
            round: sender.round,
            pages: vec![],
            table_damaged: false,
            header_damaged: false,
        };
        for page in std::mem::take(&mut sender.cleared) {
            let content = self.guest.memory[page];
            sender.visited += 1;
            let first = sender.round == 0;
            if content == run.sent[page] && !first && !sender.force.contains(&page) {
                sender.counts.unchanged += u64::from(!miscount);
                continue;
            }
            if content == 0 {
                sender.counts.zero += 1;
            } else {
                sender.counts.raw += 1;
            }
            run.sent[page] = content;
            frame.pages.push(PageInFrame {
                page,
                announced: content,
                carried: content,
            });
        }
        if !frame.pages.is_empty() {
            sender.ready = Some(frame);
        }
    }

    fn transmit(&mut self, attempt: usize) {
        let window = self.plan.window_bytes;
        let in_flight = self.links[attempt].in_flight_bytes;
        let held = |stream: usize| self.links[attempt].streams[stream].is_held();
        let Some(sender) = self.source.run.as_mut().and_then(|run| run.sender.as_mut()) else {
            return;
        };
        let streams = usize::from(self.plan.streams);
        let mut choice = (sender.next_stream..streams).chain(0..sender.next_stream);
        let unmarked = &sender.unmarked;
        let takes = |stream: &usize| unmarked.is_empty() || unmarked.contains_key(stream);
        let Some(stream) = choice.find(|stream| takes(stream) && !held(*stream)) else {
            sender.waits = true;
            return;
        };
        let fits = |frame: &Frame| in_flight + frame.bytes() <= window;
        let ignores = self.mutation == Mutation::IgnoreWindow;
        let Some(mut frame) = sender.ready.take_if(|frame| ignores || fits(frame)) else {
            sender.waits = true;
            return;
        };
        sender.next_stream = (stream + 1) % streams;
        pages::add(&mut sender.sent, frame.summary());
        if self.mutation == Mutation::ClearAfterRead {
            for page in &frame.pages {
                self.guest.clear_dirty(page.page);
            }
        }
        if self.plan.by_reference {
            self.read_live(&mut frame);
        }
        self.send_frame(attempt, stream, frame);
        self.sender_again(attempt);
    }

    /// A reference send reads memory again: what the guest wrote meanwhile makes the page torn.
    fn read_live(&mut self, frame: &mut Frame) {
        for page in &mut frame.pages {
            let live = self.guest.memory[page.page];
            if page.announced != 0 && live != page.announced {
                page.carried = if self.rng.chance(50) {
                    live
                } else {
                    pages::torn(page.announced, live)
                };
            }
        }
    }

    fn round_sent(&mut self, attempt: usize) {
        let held = self.links[attempt].streams.iter().any(Pipe::is_held);
        let Some(run) = self.source.run.as_mut() else {
            return;
        };
        if let Some(sender) = run.sender.as_mut().filter(|_| held) {
            sender.waits = true;
            return;
        }
        let Some(mut sender) = run.sender.take() else {
            return;
        };
        let measure = RoundMeasure {
            sent: sender.sent,
            pages: sender.counts.zero + sender.counts.raw,
            dirty_ns: sender.dirty_ns,
            root: pages::root(&run.sent),
        };
        for stream in 0..usize::from(self.plan.streams) {
            let again = sender.unmarked.get(&stream).copied();
            if sender.unmarked.is_empty() || again.is_some() {
                self.send_mark(attempt, stream, sender.round, again.unwrap_or(0));
            }
        }
        self.stats.round(sender.paused, sender.visited);
        invariants::conservation::check_sent(self, attempt, &sender);
        if let Some(run) = self.source.run.as_mut() {
            sender.unmarked.clear();
            run.told = Some(sender);
        }
        let wait = self.rng.skewed(1_000, 100_000);
        self.source_to(attempt, wait, SourceEvent::RoundSent(measure));
    }
}
