//! What is told of a migration: rounds, the parts of the pause, the report.

use std::sync::Arc;
use std::time::Instant;

use dwcp_api::{
    Codec, Forecast, MigrationId, MigrationReport, PageCounts, PostcopyReport, Prospect, Role,
    RoundReport, RunResult, TlsReport,
};
use dwcp_proto::{Ending, Outcome};

use dwcp_simd::RamRoot;
use dwcp_wire::{FetchSummary, PagesRead};

use super::eta::Rate;
use super::meter::Meter;
use super::pause::{PauseMoments, ms};
use crate::engine::Session;
use crate::tls::Connection;

mod progress;

/// Of fewer pages nobody asks why they did not shrink: 16 MiB.
const EXPLAINED_PAGES_MIN: u64 = 4096;

/// The transport that is told wherever it carried anything.
pub(super) const RDMA: &str = "rdma";

/// What is noted where a queue pair for missing pages breaks, or cannot be made.
pub(super) const NOT_READ: &str = "missing pages that are waited for go by TCP";

/// Collects the numbers of one end of a migration.
#[derive(Debug)]
pub(super) struct Recorder {
    id: MigrationId,
    vm: String,
    role: Role,
    peer: String,
    pub(super) mode: String,
    started: Instant,
    /// When its turn came; a destination's comes when it hears of it.
    begun: Instant,
    pub(super) rounds: Vec<RoundReport>,
    pub(super) pages: PageCounts,
    /// Pages that workers looked at, and those of them on another NUMA node.
    pub(super) pages_visited: u64,
    pub(super) pages_away: u64,
    pub(super) pause: PauseMoments,
    forecasts: Option<Forecasts>,
    /// What post-copy took, and when it was over.
    pub(super) postcopy: Option<(PostcopyReport, Instant)>,
    /// Pages that the destination's adapter has read meanwhile, once that is known.
    read_pages: Option<u64>,
    pub(super) transport: String,
    pub(super) tls: Option<TlsReport>,
    /// How guest pages left; empty when copies did.
    pub(super) send_method: &'static str,
    pub(super) tracker: String,
    pub(super) streams: u16,
    /// Streams that broke and were replaced.
    pub(super) streams_replaced: u32,
    /// Source: streams that carry pages.
    pub(super) streams_in_use: u16,
    breaks_told: u32,
    /// The most that was taken of the guest's CPU time.
    pub(super) throttle_percent: u8,
    pub(super) ram_bytes: u64,
    pub(super) verified: bool,
    /// Nothing is to be moved.
    pub(super) dry_run: bool,
    /// What a dry run foretells.
    pub(super) prospect: Option<Prospect>,
    /// The destination accepted the offer.
    pub(super) accepted: bool,
    /// Source: this node ended it, by a fault of its own or because it was asked to.
    pub(super) ended_here: bool,
    /// The other node, or the way to it, was lost.
    pub(super) peer_lost: bool,
    /// There is nobody to lose: the destination cannot be reached, or is somebody else.
    pub(super) no_peer: bool,
    pub(super) ram_root: Option<u128>,
    pub(super) notes: Vec<String>,
    pub(super) dirty_pages_per_s: f64,
    pub(super) pages_in_round: u64,
    /// Destination, in post-copy.
    pub(super) fetching: Option<Fetching>,
    pub(super) round: u32,
    /// Counts of the helpers.
    pub(super) meter: Arc<Meter>,
    rate: Rate,
}

/// How far fetching is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Fetching {
    /// Pages that are missing.
    pub(super) left: u64,
    /// Pages that were.
    pub(super) named: u64,
    /// Pages that the adapter has read.
    pub(super) read: u64,
}

/// What was foretold after the first round, and after the last one.
#[derive(Clone, Copy, Debug)]
struct Forecasts {
    first: Forecast,
    newest: Forecast,
    at: Instant,
}

/// What a recorder is about.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    pub(super) id: MigrationId,
    pub(super) vm: String,
    pub(super) role: Role,
    pub(super) peer: String,
    pub(super) mode: String,
    pub(super) meter: Arc<Meter>,
}

/// Streams that broke, and are told of one by one in a report.
const BREAKS_TOLD_MAX: u32 = 8;

/// What was recorded when a round began.
#[derive(Clone, Copy, Debug)]
pub(super) struct BeforeRound {
    rounds: usize,
    pages: PageCounts,
    pages_visited: u64,
    pages_away: u64,
    ram_root: Option<u128>,
}

impl Recorder {
    pub(super) const fn before_round(&self) -> BeforeRound {
        BeforeRound {
            rounds: self.rounds.len(),
            pages: self.pages,
            pages_visited: self.pages_visited,
            pages_away: self.pages_away,
            ram_root: self.ram_root,
        }
    }

    /// Forgets what was recorded of a round since it began.
    pub(super) fn back_to(&mut self, before: &BeforeRound) {
        self.rounds.truncate(before.rounds);
        self.pages = before.pages;
        self.pages_visited = before.pages_visited;
        self.pages_away = before.pages_away;
        self.ram_root = before.ram_root;
    }

    /// What lies ahead, told anew after each round.
    pub(super) fn foresee(&mut self, ahead: Forecast) {
        self.forecasts = Some(Forecasts {
            first: self.forecasts.map_or(ahead, |told| told.first),
            newest: ahead,
            at: Instant::now(),
        });
    }

    /// Post-copy is over.
    pub(super) fn fetched(&mut self, summary: &FetchSummary, verified: Option<bool>) {
        self.verified = verified != Some(false);
        let report = PostcopyReport {
            pages: summary.pages,
            faults: summary.faults,
            fault_p50_us: summary.fault_p50_us,
            fault_p99_us: summary.fault_p99_us,
            fault_max_us: summary.fault_max_us,
            fetch_ms: summary.fetch_ms,
            breaks: summary.breaks,
            read_pages: self.read_pages.unwrap_or(0),
        };
        self.postcopy = Some((report, Instant::now()));
    }

    /// The destination's adapter has read pages for those who waited. What it broke for is the destination's to note.
    pub(super) fn pages_were_read(&mut self, read: &PagesRead) {
        if self.read_pages.replace(read.pages).is_some() {
            // Another node might say so for ever.
            return;
        }
        self.remark(format!(
            "RDMA: {} missing pages READ by the adapter, by {} reads of {} µs (half), {} µs (99 of 100)",
            read.pages, read.reads, read.p50_us, read.p99_us
        ));
        if let Some(reason) = &read.broke {
            self.note(format!("{NOT_READ}: {reason}"));
        }
    }

    /// A part of RAM came to be as its digests say; returns the whole root.
    pub(super) fn add_to_root(&mut self, part: RamRoot) -> u128 {
        let mut root = RamRoot(self.ram_root.unwrap_or(0));
        root.merge(part);
        *self.ram_root.insert(root.0)
    }

    pub(super) fn new(subject: Subject) -> Self {
        let now = Instant::now();
        Self {
            id: subject.id,
            vm: subject.vm,
            role: subject.role,
            peer: subject.peer,
            mode: subject.mode,
            started: now,
            begun: now,
            rounds: vec![],
            pages: PageCounts::default(),
            pages_visited: 0,
            pages_away: 0,
            pause: PauseMoments::default(),
            forecasts: None,
            postcopy: None,
            read_pages: None,
            transport: String::new(),
            tls: None,
            send_method: "",
            tracker: String::new(),
            streams: 0,
            streams_replaced: 0,
            streams_in_use: 0,
            throttle_percent: 0,
            breaks_told: 0,
            ram_bytes: 0,
            verified: false,
            dry_run: false,
            prospect: None,
            accepted: false,
            ended_here: false,
            peer_lost: false,
            no_peer: false,
            ram_root: None,
            notes: vec![],
            dirty_pages_per_s: 0.0,
            pages_in_round: 0,
            fetching: None,
            round: 0,
            meter: subject.meter,
            rate: Rate::since(now),
        }
    }

    pub(super) const fn started(&self) -> Instant {
        self.started
    }

    /// Pages of a round came by this transport. An adapter that has placed some of them is worth telling, whatever carried the
    /// others.
    pub(super) fn carried_by(&mut self, transport: &str) {
        if self.transport != RDMA {
            transport.clone_into(&mut self.transport);
        }
    }

    /// Its turn has come.
    pub(super) fn begin(&mut self) {
        self.begun = Instant::now();
    }

    /// Notes something a person should know, once.
    pub(super) fn note(&mut self, note: String) {
        if !self.notes.contains(&note) {
            tracing::warn!(vm = self.vm, "{note}");
            self.notes.push(note);
        }
    }

    /// Notes a data stream that broke, or was replaced: the first few in the report, all in the log.
    pub(super) fn stream_broke(&mut self, text: String) {
        if self.breaks_told < BREAKS_TOLD_MAX {
            self.breaks_told += 1;
            return self.remark(text);
        }
        tracing::info!(vm = self.vm, "{text}");
    }

    /// Notes something that is as it should be, and good to know.
    pub(super) fn remark(&mut self, remark: String) {
        tracing::info!(vm = self.vm, "{remark}");
        self.notes.push(remark);
    }

    /// Says why nothing shrank, where a codec had more than a few pages that it might have made smaller.
    pub(super) fn explain_size(&mut self, codec: Codec) {
        let PageCounts {
            delta,
            compressed,
            raw,
            ..
        } = self.pages;
        let all = delta + compressed + raw;
        let why = match codec {
            Codec::Raw => return,
            Codec::Zstd { .. } | Codec::Window { .. } => {
                "they look encrypted or compressed, and no codec makes such pages smaller"
            }
            Codec::Auto { .. } => {
                "they look encrypted or compressed, or the link was faster than any codec"
            }
        };
        if all >= EXPLAINED_PAGES_MIN && raw * 10 >= all * 9 {
            let percent = raw * 100 / all;
            self.remark(format!(
                "{percent}% of the pages with data were sent as they are: {why}"
            ));
        }
    }

    pub(super) fn round_sent(&mut self, report: RoundReport) {
        self.pages += report.classes;
        self.rounds.push(report);
    }

    /// Bytes of all frames of this migration that this end has sent or received.
    pub(super) fn wire_bytes(&self, session: Option<&Session>) -> u64 {
        self.meter.wire_bytes() + session.map_or(0, Session::wire_bytes)
    }

    /// Counts a data stream whose records the kernel seals.
    pub(super) fn count_kernel_stream(&mut self) {
        if let Some(tls) = &mut self.tls {
            tls.kernel_streams += 1;
        }
    }

    /// A further connection is there, whose handshake was a short one or not.
    pub(super) fn count_resumed(&mut self, resumed: bool) {
        if let Some(tls) = &mut self.tls {
            tls.resumed += u16::from(resumed);
        }
    }

    /// The end.
    pub(super) fn report(&self, end: &End<'_>) -> MigrationReport {
        let result = match end.outcome.result {
            Ending::Completed => RunResult::Completed,
            Ending::Aborted if self.is_agreed_dry_run() => RunResult::DryRun,
            Ending::Aborted => RunResult::Aborted,
            Ending::Failed => RunResult::Failed,
        };
        let reason = match result {
            RunResult::DryRun => "both nodes agree, nothing was moved".to_owned(),
            _ => end.outcome.reason.clone(),
        };
        let (downtime_ms, downtime_parts_ms) = self.pause.downtime();
        let over = self.postcopy.map(|(_, over)| over).or(self.pause.resumed);
        MigrationReport {
            schema: "dwcp.migration/1".into(),
            id: self.id,
            vm: self.vm.clone(),
            role: self.role,
            peer: self.peer.clone(),
            dry_run: self.dry_run,
            result,
            mode: self.mode.clone(),
            verified: self.verified,
            guest_verified: None,
            rounds: self.rounds.len() as u32,
            queued_ms: ms(self.started, self.begun),
            total_ms: ms(self.begun, over.unwrap_or_else(Instant::now)),
            downtime_ms,
            downtime_parts_ms,
            ram_bytes: self.ram_bytes,
            wire_bytes: end.wire_bytes,
            pages: self.pages,
            streams: self.streams,
            streams_replaced: self.streams_replaced,
            streams_in_use: self.streams_in_use,
            throttle_percent: self.throttle_percent,
            forecast: self.forecasts.map(|told| told.first),
            prospect: self.prospect.clone(),
            postcopy: self.postcopy.map(|(report, _)| report),
            transport: self.transport.clone(),
            tls: self.tls.clone(),
            send_method: self.send_method.to_owned(),
            tracker: self.tracker.clone(),
            reason,
            refused: self.role == Role::Source
                && result == RunResult::Aborted
                && !self.accepted
                && !self.ended_here
                && (self.no_peer || !self.peer_lost),
            connection_lost: self.role == Role::Source
                && result == RunResult::Aborted
                && self.peer_lost,
            ram_root: self.ram_root.map(|root| format!("{root:032x}")),
            owner: end.owner.to_owned(),
            epoch: end.epoch,
            round_reports: self.rounds.clone(),
            cpu_s: (end.cpu_ns + self.meter.cpu_ns()) as f64 / 1e9,
            notes: self.notes.clone(),
        }
    }
}

/// How a migration's connections are protected, by its control connection.
pub(super) fn tls_report(control: &Connection) -> Option<TlsReport> {
    Some(TlsReport {
        version: "TLS1.3".into(),
        cipher_suite: control.cipher_suite()?.into(),
        resumed: 0,
        kernel_streams: 0,
        peer_names: control.peer_names().to_vec(),
    })
}

/// What the end of a migration adds to what was recorded.
#[derive(Debug)]
pub(super) struct End<'a> {
    pub(super) outcome: &'a Outcome,
    pub(super) owner: &'a str,
    pub(super) epoch: u64,
    pub(super) wire_bytes: u64,
    /// Of the driver and the workers.
    pub(super) cpu_ns: u64,
}

/// A driver that ended without saying how: a bug, and nothing is certain.
pub(super) fn no_outcome() -> Outcome {
    Outcome {
        result: Ending::Failed,
        reason: "driver ended without an outcome".into(),
    }
}
