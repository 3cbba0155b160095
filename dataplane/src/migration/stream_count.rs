//! How many of a migration's data streams carry pages, found by climbing: twice as many are tried, and kept
//! where goodput grows by a tenth. A path that gives each connection only so much, or on which packets are
//! lost, fills with more of them; on another one more only stand in the same queue.
//!
//! Judged is what the kernels have acknowledged, while the path is the limit and nothing else: not in the
//! time in which a change takes hold, nor while a codec or a bandwidth limit holds bytes back.

use std::time::{Duration, Instant};

use super::source_path::Carried;

/// Streams at first, on a path that is not short.
const START: u16 = 4;

/// An epoch, and the time in which a change takes hold: so long at least, and so many round trips. A new
/// stream has to find its rate first.
const EPOCH_MIN: Duration = Duration::from_millis(1000);
const SETTLE_MIN: Duration = Duration::from_millis(600);
const ROUND_TRIPS: u32 = 8;

/// An epoch counts when the path was the limit for so much of it, of a hundred.
const LIMITED_PERCENT: u32 = 50;

/// Goodput by which more streams must be better, and that fewer must keep.
const GAIN: f64 = 1.10;
const KEEP: f64 = 0.97;

/// Of the bytes sent, those sent again: where it is more, streams may crowd each other.
const CROWDED: f64 = 0.03;

/// After a trial in vain the next one waits, twice as long each time.
const REST_MIN: Duration = Duration::from_secs(8);
const REST_MAX: Duration = Duration::from_secs(64);

/// The climber.
#[derive(Debug)]
pub(super) struct StreamCount {
    least: u16,
    most: u16,
    now: u16,
    epoch: Option<Epoch>,
    trial: Option<Trial>,
    rest: Duration,
    rests_until: Option<Instant>,
    /// Of crowded streams, fewer are tried next: every other time.
    is_down_next: bool,
    /// Every count that was measured, with its goodput in bytes per second, in their order.
    measured: Vec<(u16, f64)>,
}

#[derive(Clone, Copy, Debug)]
struct Epoch {
    /// Until then a change takes hold.
    from: Instant,
    until: Instant,
    /// The last reading since.
    last: Option<(Instant, Carried)>,
    /// Between readings at which the path was the limit, and only there.
    limited: Duration,
    acked_bytes: u64,
    sent_bytes: u64,
    resent_bytes: u64,
}

/// Another count is tried.
#[derive(Clone, Copy, Debug)]
struct Trial {
    before: u16,
    goodput: f64,
}

impl StreamCount {
    /// Between `least` and `most` streams, on a short path or another.
    pub(super) fn new(least: u16, most: u16, is_short: bool) -> Self {
        let start = if is_short { least } else { START.max(least) };
        Self {
            least,
            most,
            now: start.min(most),
            epoch: None,
            trial: None,
            rest: REST_MIN,
            rests_until: None,
            is_down_next: false,
            measured: vec![],
        }
    }

    /// Streams that carry pages now.
    pub(super) const fn now(&self) -> u16 {
        self.now
    }

    /// Takes a reading of the streams' connections. Returns how many streams are to carry pages from now
    /// on, when that changes.
    pub(super) fn read(&mut self, at: Instant, carried: Carried) -> Option<u16> {
        let rtt = carried.rtt;
        let epoch = self.epoch.get_or_insert_with(|| Epoch::new(at, rtt));
        if at < epoch.from {
            return None;
        }
        epoch.read(at, carried);
        if at < epoch.until {
            return None;
        }
        let epoch = *epoch;
        // The next one follows at once; a change puts it off.
        self.epoch = Some(Epoch {
            from: at,
            last: epoch.last,
            ..Epoch::new(at, rtt)
        });
        let goodput = epoch.goodput(at)?;
        self.note(goodput);
        let is_crowded = epoch.resent_bytes as f64 > epoch.sent_bytes as f64 * CROWDED;
        let count = match self.trial.take() {
            Some(trial) if !self.is_worth(trial, goodput) => Some(self.go_back(at, trial)),
            Some(trial) if self.now < trial.before => {
                // As many as before were no better: that need not be tried again soon.
                self.rests_until = Some(at + REST_MIN);
                None
            }
            Some(_) => {
                (self.rest, self.rests_until) = (REST_MIN, None);
                self.next_trial(at, goodput, is_crowded)
            }
            None => self.next_trial(at, goodput, is_crowded),
        }?;
        self.now = count;
        self.epoch = Some(Epoch::new(at, rtt));
        Some(count)
    }

    /// What was found, in words; `None` when nothing was tried.
    pub(super) fn explain(&self) -> Option<String> {
        let counts = self.measured.iter();
        let list: Vec<_> = counts
            .map(|(count, goodput)| format!("{count}: {:.0}", goodput * 8.0 / 1e6))
            .collect();
        (list.len() > 1).then(|| {
            format!(
                "streams in use at the end {} of {}; Mbit/s by streams, as they were measured: {}",
                self.now,
                self.most,
                list.join(", ")
            )
        })
    }

    /// One entry a change, with what was measured last.
    fn note(&mut self, goodput: f64) {
        match self.measured.last_mut() {
            Some((count, last)) if *count == self.now => *last = goodput,
            _ => self.measured.push((self.now, goodput)),
        }
    }

    fn next_trial(&mut self, at: Instant, goodput: f64, is_crowded: bool) -> Option<u16> {
        if self.rests_until.is_some_and(|until| at < until) {
            return None;
        }
        // Lost packets may also be why more are needed.
        let is_down = is_crowded && self.is_down_next;
        self.is_down_next = is_crowded && !is_down;
        let count = if is_down {
            (self.now / 2).max(self.least)
        } else {
            self.now.saturating_mul(2).min(self.most)
        };
        if count == self.now {
            return None;
        }
        let before = self.now;
        self.trial = Some(Trial { before, goodput });
        Some(count)
    }

    fn is_worth(&self, trial: Trial, goodput: f64) -> bool {
        let wanted = match trial.before < self.now {
            true => GAIN,
            false => KEEP,
        };
        goodput >= trial.goodput * wanted
    }

    fn go_back(&mut self, at: Instant, trial: Trial) -> u16 {
        self.rests_until = Some(at + self.rest);
        self.rest = (self.rest * 2).min(REST_MAX);
        trial.before
    }
}

impl Epoch {
    fn new(at: Instant, rtt: Duration) -> Self {
        let trips = rtt * ROUND_TRIPS;
        let from = at + SETTLE_MIN.max(trips);
        Self {
            from,
            until: from + EPOCH_MIN.max(trips),
            last: None,
            limited: Duration::ZERO,
            acked_bytes: 0,
            sent_bytes: 0,
            resent_bytes: 0,
        }
    }

    fn read(&mut self, at: Instant, carried: Carried) {
        let Some((since, last)) = self.last.replace((at, carried)) else {
            return;
        };
        // A stream was lost or replaced: its counters are gone.
        let is_same = carried.connections == last.connections;
        let acked = carried.acked_bytes.checked_sub(last.acked_bytes);
        let Some(acked) = acked.filter(|_| is_same && last.is_limited && carried.is_limited) else {
            return;
        };
        self.limited += at - since;
        self.acked_bytes += acked;
        self.sent_bytes += carried.sent_bytes.saturating_sub(last.sent_bytes);
        self.resent_bytes += carried.resent_bytes.saturating_sub(last.resent_bytes);
    }

    /// Bytes per second, when the path was the limit for long enough.
    fn goodput(&self, at: Instant) -> Option<f64> {
        let is_enough = self.limited * 100 >= (at - self.from) * LIMITED_PERCENT;
        let goodput = self.acked_bytes as f64 / self.limited.as_secs_f64();
        (is_enough && self.acked_bytes > 0).then_some(goodput)
    }
}

#[cfg(test)]
#[path = "stream_count_tests.rs"]
mod tests;
