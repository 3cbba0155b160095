//! Rounds at the source: what the destination holds already, what is dirty, what was sent.

use std::sync::Arc;
use std::time::Instant;

use dwcp_api::{PageCounts, RoundReport};
use dwcp_proto::{RoundMeasure, SourceEvent};
use dwcp_simd::RamRoot;
use dwcp_wire::{AbortCode, PageRange, RoundSummary};

use super::source::{RoundUnderWay, SourceDriver};
use super::source_actions::ms_since;
use crate::engine::{SourceCommand, WorkerRound};
use crate::path::RoundWork;
use crate::ram::RamBitmap;
use crate::vmm::tracker::Collected;

impl SourceDriver {
    /// Clears the dirty bits before any of the pages is read.
    pub(super) fn start_round(&mut self, round: u32, again: &[PageRange], everything: bool) {
        let began = Instant::now();
        let paused = self.recorder.pause.paused.is_some();
        let all = round == 0 || everything || (paused && !self.tracker.is_exact());
        let mut dirty = match self.dirty_pages(round, all) {
            Ok(dirty) => dirty,
            Err(error) => return self.fail(AbortCode::Vmm, error.to_string()),
        };
        if let Some(memory) = self.streams.rdma.memory() {
            memory.renew(again);
        }
        let mut forced = self.session.layout.empty_bitmap();
        let doubtful = if round == 0 {
            self.leave_known_out(&mut dirty);
            self.take_doubtful()
        } else {
            vec![]
        };
        for range in again.iter().chain(&doubtful) {
            if let Some(block) = forced.blocks.get_mut(range.ram_block as usize) {
                block.set_range(range.page, range.count);
            }
        }
        self.begin_round(round, (dirty, forced), began);
    }

    /// Has the workers send these pages, collected since `began`, and a mark behind them on each stream.
    pub(super) fn begin_round(
        &mut self,
        round: u32,
        (dirty, forced): (RamBitmap, RamBitmap),
        began: Instant,
    ) {
        let now = Instant::now();
        let paused = self.recorder.pause.paused.is_some();
        let dirty_ns = if round == 0 {
            0
        } else {
            self.collected_at
                .map_or(0, |at| began.duration_since(at).as_nanos() as u64)
        };
        // The first round takes all of RAM, and collects nothing: what is dirty then is so since the tracker was armed.
        if round > 0 || self.collected_at.is_none() {
            self.collected_at = Some(began);
        }
        self.writing.begin();
        if let Some(throttle) = &mut self.throttle {
            throttle.mark();
        }
        let work = match &self.lanes {
            Some(lanes) => RoundWork::by_lanes(round, dirty, forced, Arc::clone(lanes)),
            None => RoundWork::new(round, dirty, forced),
        };
        let mut work = work.paused(paused);
        // Later rounds have what was written, not neighbours, and the guest may wait for them. Of several paths one may
        // be slow, and would sit on its stretches.
        let is_one_path = self.request.settings.paths.len() <= 1;
        if round == 0 && is_one_path && self.session.codec.looks_back() {
            // Also those that carry nothing yet: they may before the round ends.
            work = work.by_stream(self.recorder.streams.into());
        }
        let work = Arc::new(work);
        self.recorder.round = round;
        self.recorder.pages_in_round = work.pages();
        self.session.begin_round();
        for worker in &self.workers {
            worker.command(SourceCommand::Round(Arc::clone(&work)));
        }
        self.round = Some(RoundUnderWay {
            work,
            began,
            scan_ms: now.duration_since(began).as_secs_f64() * 1000.0,
            dirty_ns,
            parts: vec![],
            waits_since: None,
            waited_ms: 0.0,
            before: self.recorder.before_round(),
        });
    }

    pub(super) fn dirty_pages(
        &mut self,
        round: u32,
        all: bool,
    ) -> Result<RamBitmap, crate::vmm::VmmError> {
        let mut dirty = self.session.layout.empty_bitmap();
        let collected = if round == 0 {
            Collected::Everything
        } else {
            self.tracker.collect(&mut dirty)?
        };
        if all || collected == Collected::Everything {
            self.session.layout.mark_data(&mut dirty)?;
            // In the first round that is what was asked for, and is left out.
            if round > 0 {
                self.mark_held(&mut dirty);
            }
        }
        Ok(dirty)
    }

    /// Pages that the destination holds: one of them may have become a hole since.
    fn mark_held(&self, dirty: &mut RamBitmap) {
        for (index, bitmap) in dirty.blocks.iter_mut().enumerate() {
            for page in 0..bitmap.pages() {
                let global = self.session.layout.global_page(index, page);
                if self.session.digests.get(global).is_some() {
                    bitmap.set_range(page, 1);
                }
            }
        }
    }

    /// A worker has sent its part of the round.
    pub(super) fn round_part(&mut self, part: WorkerRound) {
        let Some(round) = &mut self.round else { return };
        if part.round != round.work.round {
            return;
        }
        self.recorder.carried_by(part.transport);
        if let Some(method) = part.send_method {
            self.recorder.send_method = method;
        }
        // Said again after a stream broke: the round was sent anew, in part.
        match round.parts.iter_mut().find(|old| old.worker == part.worker) {
            Some(old) => *old = part,
            None => round.parts.push(part),
        }
        self.round_is_sent();
    }

    /// The round is sent when all workers have sent their parts, and, of the first, when nothing is left to answer.
    pub(super) fn round_is_sent(&mut self) {
        let (has_unanswered, known) = (self.has_unanswered(), self.known());
        let Some(round) = &mut self.round else { return };
        if round.parts.len() < self.workers.len() {
            return;
        }
        if has_unanswered {
            round.waits_since.get_or_insert_with(Instant::now);
            return;
        }
        round.waited_ms += round.waits_since.take().map_or(0.0, ms_since);
        let (mut sent, mut classes, mut delta) = (
            RoundSummary::default(),
            PageCounts::default(),
            RamRoot::default(),
        );
        self.recorder.back_to(&round.before);
        for part in &round.parts {
            sent.marks_again += part.marks_again;
            sent.frames += part.counts.frames;
            sent.wire_bytes += part.counts.wire_bytes;
            sent.pages += part.counts.named;
            self.recorder.pages_visited += part.counts.visited;
            self.recorder.pages_away += part.counts.away;
            classes.zero += part.counts.zero;
            classes.unchanged += part.counts.unchanged;
            classes.delta += part.counts.delta;
            classes.compressed += part.counts.compressed;
            classes.raw += part.counts.raw;
            delta.merge(part.root);
        }
        if round.work.round == 0 {
            classes.known = known.0;
            delta.merge(known.1);
        }
        let root = self.recorder.add_to_root(delta);
        let report = RoundReport {
            round: round.work.round,
            pages: round.work.pages(),
            classes,
            wire_bytes: sent.wire_bytes,
            ms: ms_since(round.began),
            scan_ms: round.scan_ms,
            suspect_pages: 0,
        };
        let dirty_ns = round.dirty_ns;
        if dirty_ns > 0 {
            self.recorder.dirty_pages_per_s = sent.pages as f64 / (dirty_ns as f64 / 1e9);
        }
        self.recorder.round_sent(report);
        let measure = RoundMeasure {
            sent,
            pages: sent.pages,
            dirty_ns,
            root,
        };
        self.pending.push_back(SourceEvent::RoundSent(measure));
    }
}
