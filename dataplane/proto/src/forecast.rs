//! Whether pre-copy will converge, when, and with what pause: asked before the guest has been sent twice.
//!
//! A guest does not write at a constant rate: it writes the same pages again. How many are dirty after a
//! time T is a curve that bends, and the rounds follow from it:
//!
//! ```text
//! pages(n + 1) = dirty(time(n))        time(n) = pages(n) × time of a page
//! ```
//! Of the dirty pages some cost nothing: they were written before they were sent, and not since. How many is as in the
//! round before. The curve is sampled while a round is under way, without a model of how it bends.

use crate::{RoundLimits, convergence::is_worth_pausing};

/// Samples kept: beyond that every other one goes.
const POINTS_MAX: usize = 64;

/// How far a curve is drawn out behind its samples.
const FAR_NS: u64 = 600 * 1_000_000_000;

/// How many pages are dirty so long after none was.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DirtyCurve {
    /// Time in nanoseconds, and pages; both ascending.
    points: Vec<(u64, u64)>,
}

impl DirtyCurve {
    /// Adds a sample. A page that is dirty stays so: fewer than before is a sample of something else.
    pub fn add(&mut self, ns: u64, pages: u64) {
        if let Some(&(last_ns, last_pages)) = self.points.last()
            && (ns <= last_ns || pages < last_pages)
        {
            return;
        }
        if self.points.len() == POINTS_MAX {
            let mut at = 0;
            self.points.retain(|_| {
                at += 1;
                at % 2 == 0
            });
        }
        self.points.push((ns, pages));
    }

    /// The same with what is to be expected long after the last sample: a guest that rewrites a set of pages at random
    /// comes to new ones less and less. Of its two last doublings of time the second brought so much less than the
    /// first, and so will the next ones.
    #[must_use]
    pub fn looking_far(&self) -> Self {
        let mut far = self.clone();
        let Some(&(ns, pages)) = self.points.last() else {
            return far;
        };
        let half = self.pages_after(ns / 2);
        let rise = pages.saturating_sub(half);
        // Pages in the second half of the time, as a part of those in the first.
        let part = (rise as f64 / half.max(1) as f64).min(1.0);
        let (mut at, mut now, mut step) = (ns, pages as f64, rise as f64 * part);
        while far.points.len() < POINTS_MAX && at < FAR_NS {
            at += ns / 2;
            now += step;
            step *= part;
            far.points.push((at, now as u64));
        }
        // What comes behind that is of the last step.
        far
    }

    /// Whether nothing is known.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.points.is_empty()
    }

    /// Pages that are dirty after `ns`: between samples in proportion, behind the last as from the one before.
    #[must_use]
    pub fn pages_after(&self, ns: u64) -> u64 {
        let behind = self.points.partition_point(|&(at, _)| at < ns);
        let (from, to) = match (behind.checked_sub(1), self.points.get(behind)) {
            (None, Some(first)) => ((0, 0), *first),
            (Some(before), Some(next)) => (self.points[before], *next),
            (Some(last), None) => {
                let before = last.checked_sub(1).map_or((0, 0), |at| self.points[at]);
                (before, self.points[last])
            }
            (None, None) => return 0,
        };
        let rise = u128::from(to.1 - from.1) * u128::from(ns - from.0);
        let rise = rise / u128::from((to.0 - from.0).max(1));
        from.1
            .saturating_add(u64::try_from(rise).unwrap_or(u64::MAX))
    }
}

/// What a forecast rests on.
#[derive(Clone, Copy, Debug)]
pub struct ForecastInput<'a> {
    /// The round that has just been sent.
    pub round: u32,
    /// Its pages.
    pub pages: u64,
    /// All of the guest's: no more are ever dirty, whatever a curve says behind its last sample.
    pub ram_pages: u64,
    /// What the guest dirties.
    pub curve: &'a DirtyCurve,
    /// Time since the last look at what is dirty: what it dirtied since is the next round.
    pub interval_ns: u64,
    /// Time that a page with data takes.
    pub page_ns: u64,
    /// Of a thousand dirty pages so many are what the destination has: written before they were sent, and not since.
    pub unchanged_permille: u32,
    /// Where the operator draws the lines.
    pub limits: &'a RoundLimits,
}

/// Looks ahead from before the beginning: `input.pages` are all that the first round will send, and the curve begins
/// with it. `None` while nothing is known of what the guest writes.
#[must_use]
pub fn forecast_from_start(input: &ForecastInput<'_>) -> Option<Forecast> {
    let first_ns = input.pages.saturating_mul(input.page_ns);
    let ahead = forecast(&ForecastInput {
        interval_ns: first_ns,
        ..*input
    })?;
    Some(Forecast {
        rounds: ahead.rounds + 1,
        ns: ahead.ns.saturating_add(first_ns),
        ..ahead
    })
}

/// What lies ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Forecast {
    /// The pause will fit its limit.
    pub converges: bool,
    /// Rounds to come while the guest runs.
    pub rounds: u32,
    /// Time from now until the pause.
    pub ns: u64,
    /// The pause without device state: that at the end, or the shortest that can be had.
    pub downtime_ns: u64,
}

/// Looks ahead, round by round, as [`crate::decide_round`] will decide. `None` while nothing is known of what
/// the guest writes.
#[must_use]
pub fn forecast(input: &ForecastInput<'_>) -> Option<Forecast> {
    if input.curve.is_empty() {
        return None;
    }
    let time = |pages: u64| pages.saturating_mul(input.page_ns);
    let changed = u128::from(1000_u32.saturating_sub(input.unchanged_permille));
    let round_time = |pages: u64| (u128::from(time(pages)) * changed / 1000) as u64;
    let dirty_after = |ns: u64| input.curve.pages_after(ns).min(input.ram_pages);
    let (pages_before, mut pages) = (input.pages, dirty_after(input.interval_ns));
    let mut ahead = Forecast {
        converges: false,
        rounds: 0,
        ns: 0,
        downtime_ns: time(pages),
    };
    let fits = |pages: u64, round: u32| input.limits.fits(time(pages), round);
    // The guest may be paused as it is.
    if is_worth_pausing(pages, fits(pages, input.round), (pages_before, pages)) {
        ahead.converges = true;
        return Some(ahead);
    }
    for round in input.round + 1..=input.limits.rounds_max.max(input.round + 1) {
        let round_ns = round_time(pages);
        let dirty = dirty_after(round_ns);
        ahead.rounds += 1;
        ahead.ns = ahead.ns.saturating_add(round_ns);
        ahead.downtime_ns = ahead.downtime_ns.min(time(dirty));
        if is_worth_pausing(dirty, fits(dirty, round), (pages, dirty)) {
            ahead.converges = true;
            ahead.downtime_ns = time(dirty);
            return Some(ahead);
        }
        // Rounds that get no shorter lead nowhere, but to the longest pause that is accepted.
        let stands = dirty.saturating_mul(20) >= pages.saturating_mul(19);
        if stands && !fits(dirty, input.limits.rounds_max) {
            return Some(ahead);
        }
        pages = dirty;
    }
    ahead.converges = fits(pages, input.limits.rounds_max);
    Some(ahead)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::IfNotConverged;

    const MS: u64 = 1_000_000;

    const LIMITS: RoundLimits = RoundLimits {
        downtime_ns_max: 300 * MS,
        downtime_ns_at_last: 300 * MS,
        rounds_max: 30,
        throttle_percent_max: 0,
        if_not_converged: IfNotConverged::Abort,
    };

    /// A guest that rewrites `set` pages at random, `rate` of them a second, looked at now and then.
    fn guest(set: f64, rate: f64, until_ms: u64) -> DirtyCurve {
        let mut curve = DirtyCurve::default();
        let mut ms = 100;
        while ms <= until_ms {
            let seconds = ms as f64 / 1000.0;
            let pages = set * (1.0 - (-rate * seconds / set).exp());
            curve.add(ms * MS, pages as u64);
            ms += ms / 2;
        }
        curve
    }

    fn ahead(curve: &DirtyCurve, page_ns: u64) -> Forecast {
        forecast(&ForecastInput {
            round: 0,
            pages: 60_000,
            ram_pages: 65_536,
            curve,
            interval_ns: 4000 * MS,
            page_ns,
            unchanged_permille: 0,
            limits: &LIMITS,
        })
        .unwrap()
    }

    #[test]
    fn a_curve_is_followed_between_its_samples_and_behind_them() {
        let mut curve = DirtyCurve::default();
        assert_eq!((curve.is_empty(), curve.pages_after(5)), (true, 0));
        curve.add(100, 1000);
        assert_eq!(
            [50, 100, 200].map(|at| curve.pages_after(at)),
            [500, 1000, 2000]
        );
        curve.add(200, 1200);
        assert_eq!(
            [150, 200, 300].map(|at| curve.pages_after(at)),
            [1100, 1200, 1400]
        );
        // Of another interval.
        curve.add(300, 3);
        assert_eq!(curve.pages_after(300), 1400);
    }

    #[test]
    fn a_curve_has_a_bound_and_keeps_its_shape() {
        let mut curve = DirtyCurve::default();
        for at in 1..10_000 {
            curve.add(at, at * 3);
        }
        assert!(curve.points.len() <= POINTS_MAX);
        assert_eq!(curve.pages_after(5000), 15_000);
    }

    /// 25,000 pages a second leave.
    #[test]
    fn what_the_guest_writes_against_what_leaves() {
        let page_ns = 40_000;
        for (rate, converges) in [
            (0.0, true),
            (12_500.0, true),
            (50_000.0, false),
            (125_000.0, false),
        ] {
            let found = ahead(&guest(60_000.0, rate, 4000), page_ns);
            assert_eq!(found.converges, converges, "{rate}: {found:?}");
        }
    }

    /// A few pages, rewritten as fast as can be, are sent in the pause.
    #[test]
    fn a_small_set_that_is_always_dirty_fits_the_pause() {
        let found = ahead(&guest(4000.0, 1e6, 4000), 40_000);
        assert!(found.converges, "{found:?}");
        // The first of them is much shorter than the one before, and the next would not be.
        assert_eq!(found.rounds, 1, "{found:?}");
        assert!(
            (150 * MS..=165 * MS).contains(&found.downtime_ns),
            "{found:?}"
        );
        let found = ahead(&guest(20_000.0, 1e6, 4000), 40_000);
        assert!(!found.converges, "{found:?}");
        assert!(
            (780 * MS..=800 * MS).contains(&found.downtime_ns),
            "{found:?}"
        );
    }

    #[test]
    fn a_set_that_is_rewritten_is_seen_to_be_all() {
        for (set, rate) in [
            (11_000.0, 12_500.0),
            (30_000.0, 8_000.0),
            (2_000.0, 9_000.0),
        ] {
            let far = guest(set, rate, 2000).looking_far();
            for seconds in [3.0_f64, 5.0, 10.0, 30.0] {
                let right = set * (1.0 - (-rate * seconds / set).exp());
                let found = far.pages_after((seconds * 1e9) as u64) as f64;
                assert!(
                    (found / right - 1.0).abs() < 0.25,
                    "{set} {rate} {seconds}: {found} for {right}"
                );
            }
        }
        // One that never comes back to a page goes on.
        let mut curve = DirtyCurve::default();
        (1..=10).for_each(|at| curve.add(at * 200 * MS, at * 1000));
        let far = curve.looking_far().pages_after(10_000 * MS);
        assert!((45_000..=55_000).contains(&far), "{far}");
        assert!(DirtyCurve::default().looking_far().is_empty());
    }

    #[test]
    fn from_the_start_the_first_round_is_ahead() {
        let curve = guest(2_000.0, 9_000.0, 2000).looking_far();
        let input = ForecastInput {
            round: 0,
            pages: 60_000,
            ram_pages: 65_536,
            curve: &curve,
            interval_ns: 0,
            page_ns: 40_000,
            unchanged_permille: 250,
            limits: &LIMITS,
        };
        let found = forecast_from_start(&input).unwrap();
        assert!(found.converges && found.rounds >= 1, "{found:?}");
        assert!(found.ns >= 60_000 * 40_000, "{found:?}");
        let slow = ForecastInput {
            page_ns: 400_000,
            ..input
        };
        assert!(!forecast_from_start(&slow).unwrap().converges);
    }

    /// Two samples close together say little of what is far behind them.
    #[test]
    fn no_more_is_dirty_than_there_is() {
        let mut curve = DirtyCurve::default();
        curve.add(100 * MS, 10);
        curve.add(101 * MS, 9000);
        let found = ahead(&curve, 40_000);
        assert!(!found.converges);
        assert!(found.downtime_ns <= 65_536 * 40_000, "{found:?}");
        assert!(found.ns <= 30 * 65_536 * 40_000, "{found:?}");
    }

    #[test]
    fn without_a_sample_there_is_no_forecast() {
        let input = ForecastInput {
            round: 0,
            pages: 60_000,
            ram_pages: 65_536,
            curve: &DirtyCurve::default(),
            interval_ns: MS,
            page_ns: 1,
            unchanged_permille: 0,
            limits: &LIMITS,
        };
        assert_eq!(forecast(&input), None);
    }

    /// Written as fast as pages leave, it converges since some of the dirty ones need not be sent.
    #[test]
    fn pages_that_did_not_change_shorten_the_rounds_and_not_the_pause() {
        let curve = guest(11_000.0, 12_500.0, 4000);
        let found = |unchanged_permille| {
            forecast(&ForecastInput {
                round: 0,
                pages: 24_000,
                ram_pages: 65_536,
                curve: &curve,
                interval_ns: 2000 * MS,
                page_ns: 80_000,
                unchanged_permille,
                limits: &RoundLimits {
                    rounds_max: 3,
                    ..LIMITS
                },
            })
            .unwrap()
        };
        let (all, fewer) = (found(0), found(250));
        assert!(!all.converges && fewer.converges, "{all:?} {fewer:?}");
        assert!(
            fewer.ns < all.ns && fewer.downtime_ns > 200 * MS,
            "{fewer:?}"
        );
    }
}
