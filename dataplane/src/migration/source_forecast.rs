//! What the guest writes, looked at while a round is under way and when it has arrived, and what follows from it for the rounds to come.

use std::time::{Duration, Instant};

use dwcp_api::Forecast;
use dwcp_proto::{DirtyCurve, ForecastInput, Outlook, Phase, SourceEvent, forecast};
use dwcp_wire::Control;

use super::control_writer::ControlWriter;
use super::source::SourceDriver;
use super::source_actions::ms_since;

/// The first look at what the guest has written comes so long after the last of it was taken, each later one
/// after half as long again.
const FIRST_LOOK: Duration = Duration::from_millis(100);

/// A look takes no more than this part of the time between two.
const LOOK_SHARE: u32 = 20;

/// What is told as p90: every page takes so much longer, in tenths.
const P90_TENTHS: u64 = 13;

/// Of a thousand pages that are dirty after all of RAM was sent so many were sent as they are: the better part of those that
/// were written once.
pub(super) const UNCHANGED_PERMILLE: u32 = 250;

/// Round trips of a pause: the last round and its report, the handover and its answer.
const PAUSE_TRIPS: u32 = 2;

/// As many say by themselves how long one takes: 16 MiB.
const PAGES_ENOUGH: u64 = 4096;

/// Fewer pages with data than this say nothing of the time that one takes.
const PAGES_MIN: u64 = 256;

/// What the guest has written since the last look that took it.
#[derive(Debug, Default)]
pub(super) struct Writing {
    pub(super) curve: DirtyCurve,
    /// When the next look is due.
    due: Duration,
    /// Time that a page with data takes.
    page_ns: Option<u64>,
}

impl Writing {
    /// All that was written is taken: it begins anew.
    pub(super) fn begin(&mut self) {
        self.curve = DirtyCurve::default();
        self.due = FIRST_LOOK;
    }
}

impl Writing {
    /// Time that a page with data took.
    pub(super) const fn page_ns(&self) -> Option<u64> {
        self.page_ns
    }

    /// A round of so many pages with data took so long. Of few pages the round trip and whatever held it up are the
    /// greater part: they change what many have said by as much as they are.
    fn note_round(&mut self, data: u64, ms: f64) {
        if data < PAGES_MIN {
            return;
        }
        let measured = ms * 1e6 / data as f64;
        let weight = (data as f64 / PAGES_ENOUGH as f64).min(1.0);
        let known = self.page_ns.map_or(measured, |known| known as f64);
        self.page_ns = Some((known + (measured - known) * weight) as u64);
    }
}

impl SourceDriver {
    /// Looks at what the guest has written, now and then. It costs a pass over its page tables, and the guest
    /// nothing.
    pub(super) fn watch_writing(&mut self) {
        let Some(since) = self.collected_at.map(|at| at.elapsed()) else {
            return;
        };
        let is_looked_at = self.machine.phase() == Phase::Precopy || self.agreed.is_some();
        if !is_looked_at || since < self.writing.due {
            return;
        }
        let began = Instant::now();
        let Some(pages) = self.tracker.written() else {
            self.writing.due = Duration::MAX;
            return;
        };
        self.writing.curve.add(since.as_nanos() as u64, pages);
        let pause = (since / 2).max(began.elapsed() * LOOK_SHARE);
        self.writing.due = since + pause;
    }

    /// A round has arrived: looks ahead before it is decided what follows.
    pub(super) fn report_came(&mut self, mut event: SourceEvent) {
        // What the destination was asked for and does not have after all is to be sent again, too.
        if let SourceEvent::Peer(Control::RoundReport { suspects, .. }) = &mut event {
            suspects.extend(self.take_doubtful());
        }
        if self.machine.phase() == Phase::Precopy
            && let Some(outlook) = self.look_ahead()
        {
            self.feed(SourceEvent::Outlook(outlook));
        }
        self.feed(event);
    }

    /// To the destination: the shortest, and as it is now.
    pub(super) fn round_trip(&self) -> (Duration, Duration) {
        let control = self.control.as_ref();
        control.map(ControlWriter::round_trip).unwrap_or_default()
    }

    /// No limit makes a pause shorter than its round trips: that is said once, before anything is sent.
    pub(super) fn remark_on_the_way(&mut self) {
        let least = self.round_trip().0 * PAUSE_TRIPS;
        let limit = Duration::from_millis(self.request.settings.downtime_limit_ms.into());
        if least > limit {
            let text = format!(
                "the pause will be longer than switchover.downtime_limit, {} ms: {PAUSE_TRIPS} round trips to {} take \
                 {} ms, and the limit is for what comes beside them",
                limit.as_millis(),
                self.request.destination.name(),
                least.as_millis(),
            );
            self.recorder.remark(text);
        }
    }

    fn look_ahead(&mut self) -> Option<Outlook> {
        let round = *self.recorder.rounds.last()?;
        let under_way = self.round.as_ref()?;
        let round_ms = ms_since(under_way.began) - under_way.waited_ms;
        let data = round.classes.raw + round.classes.compressed + round.classes.delta;
        self.writing.note_round(data, round_ms);
        let since = self.collected_at?.elapsed();
        let dirty_pages = self.tracker.written()?;
        let Some(page_ns) = self.writing.page_ns else {
            return Some(Outlook {
                dirty_pages,
                page_ns: page_ns_at_most(round_ms, data),
                outruns: false,
            });
        };
        let interval_ns = since.as_nanos() as u64;
        self.writing.curve.add(interval_ns, dirty_pages);
        let unchanged_permille = match round.round {
            0 => UNCHANGED_PERMILLE,
            _ => (round.classes.unchanged * 1000 / round.pages.max(1)) as u32,
        };
        let limits = self.limits();
        let ahead = |page_ns| {
            forecast(&ForecastInput {
                round: round.round,
                pages: round.pages,
                ram_pages: self.session.layout.pages(),
                curve: &self.writing.curve,
                interval_ns,
                page_ns,
                unchanged_permille,
                limits: &limits,
            })
        };
        let told = told(round.round, page_ns, self.round_trip(), ahead)?;
        tracing::info!(vm = self.request.vm, ?told, "forecast");
        self.recorder.foresee(told);
        Some(Outlook {
            dirty_pages,
            page_ns,
            outruns: !told.converges,
        })
    }
}

/// Time that a page takes at most, where rounds of too few to say it were sent: a round of [`PAGES_MIN`] would hardly have taken
/// longer.
fn page_ns_at_most(round_ms: f64, data: u64) -> u64 {
    (round_ms * 1e6) as u64 / data.max(PAGES_MIN)
}

/// What is told of what lies ahead when a page takes so long, and when each takes longer. Each round waits for one round
/// trip, the pause for [`PAUSE_TRIPS`].
pub(super) fn told(
    after_round: u32,
    page_ns: u64,
    (trip, trip_p90): (Duration, Duration),
    ahead: impl Fn(u64) -> Option<dwcp_proto::Forecast>,
) -> Option<Forecast> {
    let (p50, p90) = (ahead(page_ns)?, ahead(page_ns * P90_TENTHS / 10)?);
    let ms =
        |ns: u64, trips: u32, trip: Duration| (ns as f64 + (trip * trips).as_nanos() as f64) / 1e6;
    Some(Forecast {
        after_round,
        converges: p50.converges,
        rounds: p50.rounds,
        ms: ms(p50.ns, p50.rounds, trip),
        ms_p90: ms(p90.ns.max(p50.ns), p90.rounds.max(p50.rounds), trip_p90),
        downtime_ms: ms(p50.downtime_ns, PAUSE_TRIPS, trip),
        downtime_ms_p90: ms(p90.downtime_ns.max(p50.downtime_ns), PAUSE_TRIPS, trip_p90),
    })
}

#[cfg(test)]
mod tests {
    use dwcp_proto::{IfNotConverged, RoundDecision, RoundInput, RoundLimits, decide_round};

    use super::*;

    /// A guest that came back and writes again what its pages hold already: next to nothing is sent.
    #[test]
    fn rounds_of_next_to_nothing_end_in_a_pause() {
        let limits = RoundLimits {
            downtime_ns_max: 300_000_000,
            downtime_ns_at_last: 300_000_000,
            rounds_max: 30,
            throttle_percent_max: 0,
            if_not_converged: IfNotConverged::PostCopy,
        };
        for (round, data) in [(0, 0), (1, 0), (1, 10), (2, 10), (5, 250)] {
            let outlook = Outlook {
                dirty_pages: 300,
                page_ns: page_ns_at_most(60.0, data),
                outruns: false,
            };
            let input = RoundInput {
                round,
                pages: data,
                pages_before: data,
                round_ns: 60_000_000,
                dirty_ns: 60_000_000,
                outlook: Some(outlook),
                ..RoundInput::default()
            };
            let decision = decide_round(&input, &limits);
            assert_eq!(decision, RoundDecision::Switchover, "{round} {data}");
        }
    }

    #[test]
    fn round_trips_are_part_of_rounds_and_of_the_pause() {
        let ahead = |page_ns: u64| {
            Some(dwcp_proto::Forecast {
                converges: true,
                rounds: 3,
                ns: page_ns * 1000,
                downtime_ns: page_ns * 10,
            })
        };
        let trips = (Duration::from_millis(200), Duration::from_millis(250));
        let told = told(0, 1_000_000, trips, ahead).unwrap();
        assert_eq!((told.ms, told.downtime_ms), (1600.0, 410.0));
        assert_eq!((told.ms_p90, told.downtime_ms_p90), (2050.0, 513.0));
    }

    #[test]
    fn a_small_round_that_was_held_up_changes_little() {
        let mut writing = Writing::default();
        writing.note_round(100, 50.0);
        assert_eq!(writing.page_ns, None);
        writing.note_round(200_000, 1000.0);
        assert_eq!(writing.page_ns, Some(5000));
        // 385 pages in 277 ms: 720 us each.
        writing.note_round(385, 277.0);
        assert!(writing.page_ns.is_some_and(|ns| ns < 80_000), "{writing:?}");
        // A link that is slow now is believed at once when it has carried enough.
        writing.note_round(5000, 500.0);
        assert_eq!(writing.page_ns, Some(100_000));
    }
}
