//! Rounds at the destination: parts come together, RAM is cleared of what it held before, and proven.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use dwcp_api::{RoundReport, Verify};
use dwcp_proto::DestinationEvent;
use dwcp_simd::RamRoot;
use dwcp_wire::limits::SUSPECT_RANGES_MAX;
use dwcp_wire::{AbortCode, RoundSummary, cover};

use super::destination::{DestinationDriver, DestinationInput};
use super::destination_rdma::give_back_made;
use super::reread::reread;
use crate::engine::{NotWiped, Reread, StreamRound, wipe_unknown};

impl DestinationDriver {
    /// A stream's mark has come; with the last stream's the round is applied.
    pub(super) fn round_part(&mut self, part: StreamRound) {
        if self
            .round
            .first()
            .is_some_and(|first| first.round != part.round)
        {
            let reason = format!("mark of round {} within another round", part.round);
            return self.failed(AbortCode::Protocol, reason);
        }
        if self.round.iter().any(|other| other.stream == part.stream) {
            let reason = format!("stream {} marks round {} twice", part.stream, part.round);
            return self.failed(AbortCode::Protocol, reason);
        }
        self.round.push(part);
        if self.round.len() < usize::from(self.recorder.streams) {
            return;
        }
        // What is cleared, compared and reported now must not change meanwhile.
        if let Some(Err(error)) = self.session.as_ref().map(|session| session.seal()) {
            return self.failed(AbortCode::Protocol, error.to_string());
        }
        if !self.recorder.rounds.is_empty() {
            self.round_is_here();
        } else if !self.finding.is_open() {
            self.wipe();
        }
    }

    /// Memory of a guest before must not outlive the first round. On a thread of its own: gigabytes
    /// take seconds, and meanwhile the source must hear that this side lives.
    pub(super) fn wipe(&mut self) {
        let Some(session) = self.session.clone() else {
            return;
        };
        let (stop, mailbox) = (Arc::clone(&self.vm_stop), self.mailbox.clone());
        let meter = Arc::clone(&self.recorder.meter);
        let memory = self.rdma.clone();
        let wipe = move || {
            let _helper = meter.helper();
            let wiped = wipe_unknown(&session, &stop);
            if let Some(memory) = memory
                && give_back_made(&session, &memory)
            {
                let _ = mailbox.push(DestinationInput::KeysGone);
            }
            let _ = mailbox.push(DestinationInput::Wiped(wiped));
        };
        let thread = std::thread::Builder::new().name("dwcp-wipe".into());
        match thread.spawn(wipe) {
            Ok(thread) => self.ram_thread = Some(thread),
            Err(error) => self.failed(AbortCode::Other, format!("no thread: {error}")),
        }
    }

    pub(super) fn was_wiped(&mut self, wiped: Result<u64, NotWiped>) {
        if self.vm_stop.load(Ordering::Acquire) {
            return;
        }
        match wiped {
            Ok(pages) => tracing::debug!(pages, "pages that the source never named are clear"),
            Err(error) => return self.failed(AbortCode::Other, error.to_string()),
        }
        self.round_is_here();
    }

    /// All parts of the round are applied.
    fn round_is_here(&mut self) {
        let round = self.round[0].round;
        let mut root = RamRoot::default();
        let (mut applied, mut suspects) = (RoundSummary::default(), vec![]);
        for part in self.round.drain(..) {
            applied.frames += part.applied.summary.frames;
            applied.wire_bytes += part.applied.summary.wire_bytes;
            applied.pages += part.applied.summary.pages;
            let marks_again = part.applied.summary.marks_again;
            applied.marks_again = applied.marks_again.saturating_add(marks_again);
            root.merge(part.applied.root);
            suspects.extend(part.applied.suspects);
        }
        let suspects = cover(suspects, SUSPECT_RANGES_MAX);
        let root = self.recorder.add_to_root(root);
        self.recorder.round = round;
        self.recorder.round_sent(RoundReport {
            round,
            pages: applied.pages,
            wire_bytes: applied.wire_bytes,
            ms: self.round_began.elapsed().as_secs_f64() * 1000.0,
            suspect_pages: suspects.iter().map(|range| u64::from(range.count)).sum(),
            ..RoundReport::default()
        });
        self.round_began = Instant::now();
        let event = DestinationEvent::RoundApplied {
            round,
            applied,
            suspects,
            root,
        };
        self.pending.push_back(event);
    }

    /// Reads RAM again. Pages that are not what was applied end the migration: something here is
    /// broken, and sending again would not mend it.
    pub(super) fn prove(&mut self) {
        if let Err(reason) = self.revoke_keys() {
            return self.failed(AbortCode::Other, reason);
        }
        let Some(session) = &self.session else { return };
        let verify = if self.offer.verify_full {
            Verify::Full
        } else {
            Verify::Sample
        };
        let mailbox = self.mailbox.clone();
        let read = reread(
            session,
            verify,
            self.offer.sample_pages,
            self.offer.epoch,
            &self.recorder.meter,
            move |read| drop(mailbox.push(DestinationInput::Reread(read))),
        );
        if let Some(read) = read {
            self.was_reread(read);
        }
    }

    pub(super) fn was_reread(&mut self, read: Reread) {
        if read.differing > 0 {
            let reason = format!(
                "{} of {} pages read again at the destination are not what was applied",
                read.differing, read.pages
            );
            return self.failed(AbortCode::ProofFailed, reason);
        }
        self.recorder.verified = true;
        self.pending
            .push_back(DestinationEvent::Proven { pages: read.pages });
    }
}
