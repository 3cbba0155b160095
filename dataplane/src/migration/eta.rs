//! The time that a migration has left, as a low and a high estimate.
//!
//! Until a round was sent there is a pace and no more: low is this round alone, high the rounds after it as well, each the
//! share of the one before that the guest dirties meanwhile. From then on the forecast counts down, and a pace that
//! collapses shows.

use std::time::{Duration, Instant};

use dwcp_api::{Forecast, Limit};

use crate::engine::Waited;

/// A rate is over so long, at the least.
const RATE_OVER: Duration = Duration::from_millis(250);

/// Part of the workers' time that they wait where something else is the limit.
const WAITS: f64 = 0.15;

/// What the pause takes beside pages.
const PAUSE_MS: f64 = 50.0;

/// A guest that dirties more than this share of what leaves does not converge, as far as a pace can tell.
const SHARE_MAX: f64 = 0.95;

/// High is so much above low, at the least.
const SPREAD: f64 = 1.3;

/// How fast it went between the last two looks.
#[derive(Debug)]
pub(super) struct Rate {
    since: Instant,
    bytes: u64,
    pages: u64,
    waited: Waited,
    bytes_per_s: f64,
    pages_per_s: f64,
    /// Parts of the workers' time: they waited for room, and for the limit on bandwidth. Once that is known.
    waits: Option<(f64, f64)>,
}

impl Rate {
    pub(super) fn since(since: Instant) -> Self {
        Self {
            since,
            bytes: 0,
            pages: 0,
            waited: Waited::default(),
            bytes_per_s: 0.0,
            pages_per_s: 0.0,
            waits: None,
        }
    }

    /// Notes what has left so far. A round that is sent again counts anew.
    pub(super) fn note(&mut self, bytes: u64, pages: u64, waited: Waited) {
        let elapsed = self.since.elapsed();
        if elapsed < RATE_OVER {
            return;
        }
        let per_s = |now: u64, before| now.saturating_sub(before) as f64 / elapsed.as_secs_f64();
        *self = Self {
            since: Instant::now(),
            bytes,
            pages,
            waited,
            waits: parts(self.waited, waited).or(self.waits),
            bytes_per_s: per_s(bytes, self.bytes),
            pages_per_s: per_s(pages, self.pages),
        };
    }

    /// What keeps pages from leaving faster.
    pub(super) fn limit(&self) -> Limit {
        match self.waits {
            None => Limit::Unknown,
            Some((room, limit)) if room + limit < WAITS => Limit::Cpu,
            Some((room, limit)) if room < limit => Limit::Bandwidth,
            Some(_) => Limit::Link,
        }
    }

    /// Bytes on the wire.
    pub(super) const fn bytes_per_s(&self) -> f64 {
        self.bytes_per_s
    }

    /// Pages, of zeros as well.
    pub(super) const fn pages_per_s(&self) -> f64 {
        self.pages_per_s
    }
}

/// The parts of the time between two moments in which workers waited for room, and for the limit; `None` when they had
/// nothing to send.
fn parts(before: Waited, now: Waited) -> Option<(f64, f64)> {
    let took = |of: fn(&Waited) -> Duration| of(&now).saturating_sub(of(&before)).as_secs_f64();
    let (room, limit) = (took(|at| at.for_room), took(|at| at.for_limit));
    let all = took(|at| at.busy) + room + limit;
    (all > 0.0).then(|| (room / all, limit / all))
}

/// What an estimate rests on.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Basis {
    /// Pages of this round not yet sent.
    pub(super) pages_left: u64,
    /// Pages that leave; 0 while not known.
    pub(super) pages_per_s: f64,
    /// Pages that the guest dirties.
    pub(super) dirty_pages_per_s: f64,
    /// The newest forecast, and how long ago it was made.
    pub(super) foreseen: Option<(Forecast, f64)>,
}

impl Basis {
    /// The same where the guest writes nothing, or elsewhere.
    pub(super) const fn paused(self) -> Self {
        Self {
            dirty_pages_per_s: 0.0,
            foreseen: None,
            ..self
        }
    }

    /// Whether the guest outruns its link.
    pub(super) fn outruns(&self) -> bool {
        match self.foreseen {
            Some((ahead, _)) => !ahead.converges,
            None => self.pages_per_s > 0.0 && self.share() >= SHARE_MAX,
        }
    }

    fn share(&self) -> f64 {
        self.dirty_pages_per_s / self.pages_per_s
    }

    /// Low and high in milliseconds; `None` while there is no basis, and when there is no end.
    pub(super) fn left_ms(&self) -> Option<(u64, u64)> {
        if self.pages_per_s <= 0.0 || self.outruns() {
            return None;
        }
        let round = self.pages_left as f64 / self.pages_per_s * 1000.0;
        let (low, high) = self.foreseen.map_or_else(
            || (round, (round + PAUSE_MS) / (1.0 - self.share()) * SPREAD),
            |(ahead, ago_ms)| {
                let low = ahead.ms + ahead.downtime_ms - ago_ms;
                let high = ahead.ms_p90 + ahead.downtime_ms_p90 - ago_ms;
                (low.max(round), high.max(round * SPREAD))
            },
        );
        Some((low as u64, (high.max(low) + PAUSE_MS) as u64))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const AHEAD: Forecast = Forecast {
        after_round: 0,
        converges: true,
        rounds: 3,
        ms: 10_000.0,
        ms_p90: 13_000.0,
        downtime_ms: 100.0,
        downtime_ms_p90: 130.0,
    };

    fn basis(ago_ms: f64) -> Basis {
        Basis {
            pages_left: 1000,
            pages_per_s: 1000.0,
            dirty_pages_per_s: 2000.0,
            foreseen: Some((AHEAD, ago_ms)),
        }
    }

    #[test]
    fn what_workers_wait_for_is_the_limit() {
        let waited = |busy, room, limit| Waited {
            busy: Duration::from_millis(busy),
            for_room: Duration::from_millis(room),
            for_limit: Duration::from_millis(limit),
        };
        for (before, now, limit) in [
            (waited(0, 0, 0), waited(100, 10, 0), Limit::Cpu),
            (waited(0, 0, 0), waited(10, 10, 0), Limit::Link),
            (waited(0, 900, 0), waited(500, 910, 0), Limit::Cpu),
            (waited(0, 0, 0), waited(10, 10, 80), Limit::Bandwidth),
        ] {
            let mut rate = Rate::since(Instant::now());
            assert_eq!(rate.limit(), Limit::Unknown);
            rate.waits = parts(before, now);
            assert_eq!(rate.limit(), limit, "{now:?}");
        }
        assert_eq!(parts(waited(9, 9, 9), waited(9, 9, 9)), None);
    }

    #[test]
    fn before_a_forecast_it_is_the_pace() {
        let first = Basis {
            dirty_pages_per_s: 500.0,
            foreseen: None,
            ..basis(0.0)
        };
        assert_eq!(first.left_ms(), Some((1000, 2780)));
        let faster = Basis {
            dirty_pages_per_s: 960.0,
            ..first
        };
        assert!(faster.outruns() && faster.left_ms().is_none());
        assert_eq!(Basis::default().left_ms(), None);
        assert!(!Basis::default().outruns());
    }

    #[test]
    fn a_forecast_counts_down_whatever_the_dirty_rate_was() {
        assert_eq!(basis(0.0).left_ms(), Some((10_100, 13_180)));
        assert_eq!(basis(4000.0).left_ms(), Some((6100, 9180)));
    }

    #[test]
    fn a_forecast_that_is_overdue_gives_way_to_the_pace() {
        assert_eq!(basis(20_000.0).left_ms(), Some((1000, 1350)));
        let collapsed = Basis {
            pages_per_s: 10.0,
            ..basis(0.0)
        };
        assert_eq!(collapsed.left_ms(), Some((100_000, 130_050)));
    }

    #[test]
    fn where_it_is_foretold_that_there_is_no_end_there_is_no_time() {
        let never = Forecast {
            converges: false,
            ..AHEAD
        };
        let basis = Basis {
            dirty_pages_per_s: 0.0,
            foreseen: Some((never, 0.0)),
            ..basis(0.0)
        };
        assert!(basis.outruns() && basis.left_ms().is_none());
    }
}
