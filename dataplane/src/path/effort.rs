//! Part of stage 3: how hard an encoder tries, by what comes of it.
//!
//! A worker that tries harder sends fewer bytes and takes longer for them. For each byte of pages it is
//! busy for a time, and the link for another; the longer of both counts. A worker that waits for room
//! shows how fast the link is, and takes the effort that moves most over it. One that never waits is
//! itself what limits: it tries less hard, step by step, and sends pages as they are where even that
//! is no longer enough. What an effort costs and saves is measured while it is used and foretold for the
//! others; one that does not bring what it promised is left, for longer each time.
//!
//! The kernel must not take more than the link does (`TCP_NOTSENT_LOWAT`): otherwise everything seems
//! fast at first.

mod interval;
mod learned;
mod model;

use std::fmt;
use std::time::{Duration, Instant};

use dwcp_api::Prefer;
pub use interval::{BuiltFrame, Interval, Seen};
pub use learned::{FEATURES, Features, NODES_MAX, Node, Tree, TreeError};
use model::Model;

/// What an encoder is to do with pages that are worth it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Send them as they are.
    Raw,
    /// Compress them.
    Zstd {
        /// zstd level.
        level: i32,
        /// Look for what stands far behind, too (long-distance matching).
        far: bool,
    },
}

impl Effort {
    /// All of them, from the least to the most.
    pub const ALL: &'static [Self] = &EFFORTS;
}

impl fmt::Display for Effort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Raw => f.write_str("raw"),
            Self::Zstd { level, far } => {
                write!(f, "zstd {level}{}", if *far { " far" } else { "" })
            }
        }
    }
}

/// From the least to the most.
const EFFORTS: [Effort; 6] = [Effort::Raw, near(-3), near(1), near(2), far(2), far(3)];

const fn near(level: i32) -> Effort {
    Effort::Zstd { level, far: false }
}

const fn far(level: i32) -> Effort {
    Effort::Zstd { level, far: true }
}

/// Where it begins on a long link, and what an encoder is made for.
const FIRST: usize = 2;

/// What is judged at once, at least.
const INTERVAL: Duration = Duration::from_millis(50);
const INTERVAL_FRAMES: u32 = 8;

/// A shorter wait says nothing of the link.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// The link is still getting faster if more than this times the bytes of the interval before have left.
const GROWS: f64 = 1.25;

/// Part of what the link takes that a worker sends when it is slower.
const RUNS_DRY: f64 = 0.9;

/// Another effort must promise this much more.
const GAIN_MIN: f64 = 0.04;

/// One that waits so much of its time tries harder for less.
const HAS_TIME: f64 = 0.5;
const GAIN_MIN_WITH_TIME: f64 = 0.01;

/// And bring this part of it, or it is left for so many intervals, and twice as many the next time.
const KEPT_MIN: f64 = 0.3;
const REST_FIRST: u32 = 8;
const REST_MAX: u32 = 512;

/// What a path between sites is taken to carry.
pub const LONG_PATH_BYTES_PER_S: f64 = 125e6;

/// How long ago the link must have been seen for a guess that it is twice as fast now.
const LINK_DOUBLES: Duration = Duration::from_secs(5);

/// A harder effort that has yet to show what it brings.
#[derive(Clone, Copy, Debug)]
struct Trial {
    from: usize,
    /// What the one before reached, bytes of pages per second.
    before: f64,
    /// What was promised.
    promised: f64,
}

/// Chooses for one worker.
#[derive(Debug)]
pub struct EffortChooser {
    at: usize,
    /// It never tries less hard.
    least: usize,
    model: Model,
    /// What the sockets take without a link that carries it away.
    room_bytes: u64,
    /// The link for this worker, bytes per second, and when it was seen.
    link: Option<(f64, Instant)>,
    /// What it is taken for before.
    guess: f64,
    began: Option<Instant>,
    now: Interval,
    frames: u32,
    /// Wire bytes per second of the interval before, if it waited then, too.
    rate_before: Option<f64>,
    /// Since when it has not had to wait, and the wire bytes since then.
    unhindered: Option<(Instant, u64)>,
    /// The interval after a change is not judged: the window is new, and what is queued is of before.
    is_fresh: bool,
    is_first: bool,
    /// What was judged last.
    seen: Option<Seen>,
    /// Decides in the rule's place.
    learned: Option<Tree>,
    /// Somebody else's decision, for the next time.
    told: Option<usize>,
    trial: Option<Trial>,
    /// Whether it tries less hard than before, and has not had to wait since.
    is_eased: bool,
    harder: Rest,
    easier: Rest,
}

/// Intervals in which something is not tried again.
#[derive(Clone, Copy, Debug)]
struct Rest {
    left: u32,
    next: u32,
}

impl Rest {
    const NONE: Self = Self {
        left: 0,
        next: REST_FIRST,
    };

    /// It was no good: for longer each time.
    fn begin(&mut self) {
        self.left = self.next;
        self.next = (self.next * 2).min(REST_MAX);
    }

    const fn has_failed(&self) -> bool {
        self.next > REST_FIRST
    }

    const fn is_over(&self) -> bool {
        self.left == 0
    }

    const fn pass(&mut self) {
        self.left = self.left.saturating_sub(1);
    }
}

impl EffortChooser {
    /// One that has seen nothing, for `share` of a path, whose sockets take `room_bytes` in all. Over a
    /// short path pages leave as they are until it is seen to be slow; a long one is taken to carry
    /// [`LONG_PATH_BYTES_PER_S`] until it is seen to carry more. Where bytes
    /// count, every path is a long one, and nothing less hard than what a long one begins with is tried.
    #[must_use]
    pub fn new(room_bytes: u64, is_short_path: bool, share: f64, prefer: Prefer) -> Self {
        let least = match prefer {
            Prefer::Time => 0,
            Prefer::Bytes => FIRST,
        };
        let (at, guess) = match is_short_path && prefer == Prefer::Time {
            true => (0, f64::INFINITY),
            false => (FIRST, LONG_PATH_BYTES_PER_S * share),
        };
        Self {
            at,
            least,
            model: Model::new(),
            room_bytes,
            link: None,
            guess,
            began: None,
            now: Interval::default(),
            frames: 0,
            rate_before: None,
            unhindered: None,
            is_fresh: false,
            is_first: true,
            seen: None,
            learned: None,
            told: None,
            trial: None,
            is_eased: false,
            harder: Rest::NONE,
            easier: Rest::NONE,
        }
    }

    /// Lets a learned chooser decide in the rule's place.
    #[must_use]
    pub fn led_by(mut self, tree: Option<Tree>) -> Self {
        self.learned = tree;
        self
    }

    /// The next decision is this, whatever the rule makes of what is seen until then: so that recordings hold more
    /// than what the rule would do.
    pub fn tell(&mut self, effort: Effort) {
        self.told = EFFORTS.iter().position(|one| *one == effort);
    }

    /// What to begin with.
    #[must_use]
    pub const fn effort(&self) -> Effort {
        EFFORTS[self.at]
    }

    /// What the last decision was made by, once: for those who record it.
    pub const fn take_seen(&mut self) -> Option<Seen> {
        self.seen.take()
    }

    /// Nothing was sent for a while, for another reason.
    pub const fn paused(&mut self) {
        self.began = None;
    }

    /// The sockets take so many bytes from now on.
    pub const fn set_room(&mut self, bytes: u64) {
        self.room_bytes = bytes;
    }

    /// There was no room for a frame for so long.
    pub fn waited(&mut self, time: Duration) {
        if time >= WAIT_MIN {
            self.unhindered = None;
        }
        self.now.waited_s += time.as_secs_f64();
    }

    /// Notes a frame. Returns what to do from now on, if that changes.
    pub fn built(&mut self, now: Instant, frame: &BuiltFrame) -> Option<Effort> {
        let Some(began) = self.began else {
            self.restart(now);
            return None;
        };
        self.now.page_bytes += frame.page_bytes as f64;
        self.now.wire_bytes += frame.wire_bytes as f64;
        self.now.encoded_s += frame.encoding.as_secs_f64();
        self.unhindered.get_or_insert((now, 0)).1 += frame.wire_bytes;
        self.frames += 1;
        let time = now.duration_since(began);
        if time < INTERVAL || self.frames < INTERVAL_FRAMES || self.now.page_bytes == 0.0 {
            return None;
        }
        self.now.seconds = time.as_secs_f64();
        let interval = self.now;
        self.restart(now);
        let (before, is_fresh) = (self.at, std::mem::take(&mut self.is_fresh));
        if !is_fresh {
            let is_limited = self.measure(now, &interval);
            let mut features = self.features(now, &interval, is_limited);
            self.judge(now, &interval, is_limited);
            learned::set_rule(&mut features, self.at);
            let seen = Seen {
                interval,
                features,
                effort: EFFORTS[before],
                rule: self.effort(),
                least: self.least,
            };
            self.overrule(&seen);
            self.seen = Some(seen);
            self.is_fresh = self.at != before;
            self.is_first = self.is_fresh;
        }
        self.rate_before = interval.waits().then(|| interval.rate());
        self.is_fresh.then(|| self.effort())
    }

    fn restart(&mut self, now: Instant) {
        (self.began, self.now, self.frames) = (Some(now), Interval::default(), 0);
    }

    /// Notes what came of the effort. Returns whether the link was the limit, at a steady rate.
    fn measure(&mut self, now: Instant, interval: &Interval) -> bool {
        let sent = interval.wire_bytes / interval.page_bytes;
        let cost_s = interval.encoded_s / interval.page_bytes;
        self.model.measured(self.at, cost_s, sent, self.is_first);
        let rate = interval.rate();
        // At first the sockets and the queues of the path fill, at whatever rate.
        let is_steady = self.rate_before.is_some_and(|before| rate < before * GROWS);
        let is_limited = interval.waits() && is_steady;
        if is_limited {
            self.link = Some((rate, now));
        }
        is_limited
    }

    /// What a learned chooser is to see, but the rule's choice.
    fn features(&self, now: Instant, interval: &Interval, is_limited: bool) -> Features {
        let (costs, data) = self.model.surprises();
        let left = self.unhindered.map_or(0.0, |(since, bytes)| {
            let beyond_room = bytes.saturating_sub(self.room_bytes) as f64;
            beyond_room / now.duration_since(since).as_secs_f64().max(1e-6)
        });
        let known = learned::Known {
            at: self.at,
            costs,
            data,
            busy_s: self.model.busy_s(FIRST, interval.other_s()),
            sent: self.model.sent(FIRST),
            is_short_path: self.guess.is_infinite(),
            is_link_seen: self.link.is_some(),
            link: self.link_rate(now),
            left,
            is_limited,
        };
        learned::features(interval, &known)
    }

    /// What somebody else decides is done; the rule goes on from there.
    fn overrule(&mut self, seen: &Seen) {
        let learned = self.learned.as_ref().map(|tree| seen.at_by(tree));
        let Some(at) = self.told.take().or(learned).filter(|at| *at != self.at) else {
            return;
        };
        self.at = at;
        (self.trial, self.is_eased) = (None, false);
    }

    /// The rule.
    fn judge(&mut self, now: Instant, interval: &Interval, is_limited: bool) {
        let rate = interval.rate();
        if is_limited && std::mem::take(&mut self.is_eased) {
            self.easier.begin();
        }
        // One that still waits lost no time by it: that less was sent is the pages' doing.
        if let Some(trial) = self.trial.take()
            && !interval.waits()
            && interval.speed() < trial.before + KEPT_MIN * (trial.promised - trial.before)
        {
            self.at = trial.from;
            self.harder.begin();
            return;
        }
        self.harder.pass();
        self.easier.pass();
        if is_limited {
            self.follow_link(interval, 1.0 / rate);
        } else if !interval.waits() && self.never_waits(now, rate) && self.easier.is_over() {
            self.ease(now, interval);
        }
    }

    /// The sockets would be full by now if the link were slower, or run dry as it is faster.
    fn never_waits(&mut self, now: Instant, rate: f64) -> bool {
        let Some((since, bytes)) = self.unhindered else {
            return false;
        };
        let beyond_room = bytes.saturating_sub(self.room_bytes) as f64;
        let seconds = now.duration_since(since).as_secs_f64();
        let Some((link, _)) = self.link else {
            // The sockets fill first, whatever the link is.
            if beyond_room > 0.0 && self.guess.is_finite() {
                self.link = Some((self.guess.max(beyond_room / seconds), now));
            }
            return beyond_room > 0.0;
        };
        if beyond_room > link * seconds * GROWS {
            // It takes more than it took: how much more is seen step by step.
            let rate = self.link_rate(now).max(beyond_room / seconds);
            self.link = Some((rate, now));
            return true;
        }
        rate < self.link_rate(now) * RUNS_DRY
    }

    /// What the link may take by now.
    fn link_rate(&self, now: Instant) -> f64 {
        self.link.map_or(self.guess, |(rate, seen)| {
            let doubled = now.duration_since(seen).as_secs_f64() / LINK_DOUBLES.as_secs_f64();
            rate * doubled.exp2()
        })
    }

    /// The link is the limit: takes what moves most over it.
    fn follow_link(&mut self, interval: &Interval, link_s: f64) {
        let other_s = interval.other_s();
        let seconds = |at: usize| self.model.seconds(at, other_s, link_s);
        let mut best = self.at;
        for at in self.least..EFFORTS.len() {
            if seconds(at) < seconds(best) {
                best = at;
            }
        }
        // What was foretold was wrong before: two steps at a time, since one may gain too little to count.
        if self.harder.has_failed() {
            best = best.min(self.at + 2);
        }
        let has_time = best > self.at && interval.waited_s > interval.seconds * HAS_TIME;
        let gain_min = if has_time {
            GAIN_MIN_WITH_TIME
        } else {
            GAIN_MIN
        };
        let is_worth_it = seconds(best) * (1.0 + gain_min) < seconds(self.at);
        if !is_worth_it || (best > self.at && !self.harder.is_over()) {
            return;
        }
        if best > self.at {
            self.trial = Some(Trial {
                from: self.at,
                before: interval.speed(),
                promised: interval.speed() * seconds(self.at) / seconds(best),
            });
        }
        self.at = best;
    }

    /// The worker is the limit: it tries a step less, unless the link is known to be too slow for that.
    fn ease(&mut self, now: Instant, interval: &Interval) {
        let Some(less) = self.at.checked_sub(1).filter(|less| *less >= self.least) else {
            return;
        };
        let link_s = 1.0 / self.link_rate(now);
        let other_s = (interval.seconds - interval.encoded_s).max(0.0) / interval.page_bytes;
        let seconds = |at: usize| self.model.seconds(at, other_s, link_s);
        if seconds(less) * (1.0 + GAIN_MIN) < seconds(self.at) {
            self.at = less;
            self.is_eased = true;
        }
    }
}

#[cfg(test)]
mod tests;
