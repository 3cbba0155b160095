//! What is told of a migration while it runs, and at its end.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use dwcp_api::counters::Counters;
use dwcp_api::{MigrationStatus, PhaseName};
use dwcp_proto::{Ending, Phase};

use super::SourceDriver;
use crate::engine::WorkerHandle;
use crate::migration::baseline;
use crate::migration::recorder::{End, no_outcome};
use crate::migration::source_streams::Streams;
use crate::migration::stream_count::StreamCount;

impl SourceDriver {
    pub(super) fn publish(&mut self) {
        self.note_queue_pairs();
        let (phase, in_doubt) = (self.machine.phase(), self.machine.is_in_doubt());
        let mut status = self.recorder.status(phase, in_doubt, Some(&self.session));
        if self.machine.is_cut_off() {
            status.phase = PhaseName::PostcopyPaused;
        }
        self.handle.publish(MigrationStatus {
            path: self.path.sample,
            ..status
        });
        let counters = Counters {
            round: u64::from(self.recorder.round),
            pages_in_round: self.recorder.pages_in_round,
            pages_done: self.session.pages_done(),
            wire_bytes: self.recorder.wire_bytes(Some(&self.session)),
            in_flight_bytes: self.session.in_flight_bytes(),
            elapsed_ns: self.recorder.started().elapsed().as_nanos() as u64,
        };
        self.node.publish_counters(&self.handle, counters);
    }

    pub(super) fn finish(mut self) {
        self.vm_stop.store(true, Ordering::Release);
        let outcome = self.outcome.take().unwrap_or_else(no_outcome);
        if outcome.result != Ending::Completed {
            // Workers first: what they still send would reach a peer that has given up.
            self.recorder.verified = false;
        }
        let workers = self.workers.iter_mut().map(WorkerHandle::stop).sum::<u64>();
        self.explain_rdma();
        self.streams = Streams::default();
        if let Some(control) = &self.control {
            control.shut();
        }
        self.relay = None;
        self.serving.end();
        self.explain_grants();
        self.tracker.disarm();
        self.remember_page_time();
        (self.turn, self.share) = (None, None);
        self.stop_asking();
        if let Some(thread) = self.device_thread.take() {
            let _ = thread.join();
        }
        let (owner, epoch) = self.journal.owner_after(&self.node, outcome.result);
        if self.lanes.is_some() {
            let (away, all) = (self.recorder.pages_away, self.recorder.pages_visited);
            self.recorder.remark(format!(
                "NUMA: {away} of {all} pages read from another node"
            ));
        }
        if let Some(text) = self.path.count.as_ref().and_then(StreamCount::explain) {
            self.recorder.remark(text);
        }
        self.recorder.explain_size(self.request.settings.codec);
        let report = self.recorder.report(&End {
            outcome: &outcome,
            owner,
            epoch,
            wire_bytes: self.recorder.wire_bytes(Some(&self.session)),
            cpu_ns: workers + crate::cpu_time::thread_cpu_ns(),
        });
        tracing::info!(migration = %self.request.id, result = ?report.result, reason = report.reason, "ended");
        let phase = match (self.machine.phase(), outcome.result) {
            // An operator has decided, and not the machine.
            (Phase::Handover | Phase::Postcopy, Ending::Aborted) => Phase::Aborted,
            (Phase::Handover | Phase::Postcopy, Ending::Failed) => Phase::Failed,
            (phase, _) => phase,
        };
        let status = self.recorder.status(phase, false, Some(&self.session));
        if outcome.result == Ending::Completed && self.request.settings.reuse {
            let session = Arc::clone(&self.session);
            let (vm, id) = (&self.request.vm, self.request.id.0);
            baseline::keep(&self.node, vm, id, session);
        }
        self.node.give_vm(&self.request.vm);
        self.handle.finish(status, report);
    }
}
