//! A migration as it is now: how far it is, how fast, and for how much longer.

use std::time::Instant;

use dwcp_api::{Limit, MigrationStatus, PhaseName, Progress, Role};
use dwcp_proto::Phase;

use super::{Fetching, Recorder};
use crate::engine::Session;
use crate::migration::eta::Basis;
use crate::migration::pause::ms;

/// Fewer pages than this have no pace.
const PACE_PAGES_MIN: u64 = 1000;

impl Recorder {
    fn progress(&mut self, phase: Phase, session: Option<&Session>) -> Progress {
        let wire_bytes = self.wire_bytes(session);
        let done = session.map_or(0, Session::pages_done);
        let fetching = self.fetching.unwrap_or_default();
        let (pages_left, pages_in_round) = match self.fetching {
            Some(Fetching { left, named, .. }) => (left, named),
            None => (
                self.pages_in_round.saturating_sub(done),
                self.pages_in_round,
            ),
        };
        let fetched = fetching.named - fetching.left;
        let pages = done + fetched + self.rounds.iter().map(|round| round.pages).sum::<u64>();
        let waited = session.map(|session| session.waits.now());
        self.rate
            .note(wire_bytes, pages, waited.unwrap_or_default());
        // From the pause on, what the guest writes is in nobody's way.
        let is_live = phase <= Phase::Precopy;
        // Only the source knows what it has yet to send.
        let is_told = is_live && matches!(self.role, Role::Destination);
        let basis = match self.basis(pages_left, pages) {
            basis if is_live => basis,
            basis => basis.paused(),
        };
        Progress {
            round: self.round,
            pages_left,
            pages_in_round,
            wire_bytes,
            bytes_per_s: self.rate.bytes_per_s(),
            dirty_pages_per_s: self.dirty_pages_per_s,
            eta_ms: match phase {
                Phase::Complete => Some((0, 0)),
                Phase::Aborted | Phase::Failed => None,
                _ if is_told => None,
                _ => basis.left_ms(),
            },
            limit: self.limit(phase, &basis),
            forecast: self.forecasts.map(|told| told.newest).filter(|_| is_live),
            transport: self.transport.clone(),
            read_pages: fetching.read,
        }
    }

    /// What is known of the time left. Nobody asks a pace of the first few pages.
    fn basis(&self, pages_left: u64, pages: u64) -> Basis {
        let elapsed = self.begun.elapsed().as_secs_f64();
        // The last moments where there are any: a rate that collapses must show.
        let recent = self.rate.pages_per_s();
        let pages_per_s = match () {
            () if pages < PACE_PAGES_MIN || elapsed < 0.05 => 0.0,
            () if recent > 0.0 => recent,
            () => pages as f64 / elapsed,
        };
        let foreseen = self.forecasts.as_ref();
        Basis {
            pages_left,
            pages_per_s,
            dirty_pages_per_s: self.dirty_pages_per_s,
            foreseen: foreseen.map(|told| (told.newest, ms(told.at, Instant::now()))),
        }
    }

    fn limit(&self, phase: Phase, basis: &Basis) -> Limit {
        // The source knows.
        let is_unknown = matches!(self.role, Role::Destination) || phase >= Phase::Postcopy;
        if is_unknown || basis.pages_per_s <= 0.0 {
            Limit::Unknown
        } else if basis.outruns() {
            Limit::DirtyRate
        } else if phase >= Phase::Switchover {
            Limit::Device
        } else {
            self.rate.limit()
        }
    }

    /// The migration as it is now.
    pub(in crate::migration) fn status(
        &mut self,
        phase: Phase,
        in_doubt: bool,
        session: Option<&Session>,
    ) -> MigrationStatus {
        MigrationStatus {
            id: self.id,
            vm: self.vm.clone(),
            role: self.role,
            peer: self.peer.clone(),
            phase: match phase {
                _ if in_doubt => PhaseName::InDoubt,
                Phase::Aborted if self.is_agreed_dry_run() => PhaseName::DryRun,
                phase => phase_name(phase, self.role),
            },
            progress: self.progress(phase, session),
            path: None,
            rounds: self.rounds.clone(),
            report: None,
        }
    }

    /// A dry run is ended as soon as the destination accepts.
    pub(super) const fn is_agreed_dry_run(&self) -> bool {
        self.dry_run && self.accepted
    }
}

const fn phase_name(phase: Phase, role: Role) -> PhaseName {
    match phase {
        Phase::Idle if matches!(role, Role::Source) => PhaseName::Queued,
        Phase::Idle | Phase::Negotiate => PhaseName::Negotiate,
        Phase::Setup => PhaseName::Setup,
        Phase::Precopy => PhaseName::Precopy,
        Phase::Switchover => PhaseName::Switchover,
        Phase::Handover => PhaseName::Handover,
        Phase::Postcopy => PhaseName::Postcopy,
        Phase::Complete => PhaseName::Complete,
        Phase::Aborted => PhaseName::Aborted,
        Phase::Failed => PhaseName::Failed,
    }
}
