//! Part of stage 3: how hard an encoder tries, by what comes of it.
//!
//! A worker that tries harder sends fewer bytes and takes longer for them. Which of both counts depends
//! on the link, on the guest's data and on who else wants the CPU, so it is tried: now and then the
//! next level up or down has its turn, and stays if more pages leave per second. Where the link is the
//! limit the smaller encoding wins, where the CPU is the faster one, and raw pages where the link is
//! faster than any codec. The kernel must not take more than the link does (`TCP_NOTSENT_LOWAT`):
//! otherwise everything seems fast at first.

use std::time::{Duration, Instant};

/// What an encoder is to do with pages that are worth it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// Send them as they are.
    Raw,
    /// Compress them at a zstd level.
    Level(i32),
}

const EFFORTS: [Effort; 6] = [
    Effort::Raw,
    Effort::Level(-3),
    Effort::Level(1),
    Effort::Level(3),
    Effort::Level(6),
    Effort::Level(9),
];

/// Where it begins: right for many links.
const FIRST: usize = 2;

/// The level of that.
pub(super) const FIRST_LEVEL: i32 = match EFFORTS[FIRST] {
    Effort::Level(level) => level,
    Effort::Raw => 0,
};

/// What is judged at once, at least.
const INTERVAL: Duration = Duration::from_millis(250);
const INTERVAL_FRAMES: u32 = 8;

/// A neighbour must be better by this much to stay.
const GAIN_MIN: f64 = 0.03;

/// Intervals without a trial, after the first that failed and at most.
const REST_FIRST: u32 = 4;
const REST_MAX: u32 = 64;

/// Chooses for one worker.
#[derive(Debug)]
pub struct EffortChooser {
    at: usize,
    /// What the settled effort reaches, bytes of pages per second.
    speed: f64,
    /// Where a trial came from.
    from: Option<usize>,
    goes_up: bool,
    rest: u32,
    next_rest: u32,
    /// The interval after a change is not judged: the window is new, and what is queued is of before.
    is_fresh: bool,
    began: Option<Instant>,
    bytes: u64,
    frames: u32,
}

impl EffortChooser {
    /// One that has seen nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            at: FIRST,
            speed: 0.0,
            from: None,
            goes_up: true,
            rest: 1,
            next_rest: REST_FIRST,
            is_fresh: true,
            began: None,
            bytes: 0,
            frames: 0,
        }
    }

    /// What to begin with.
    #[must_use]
    pub const fn effort(&self) -> Effort {
        EFFORTS[self.at]
    }

    /// Nothing was sent for a while, for another reason.
    pub const fn paused(&mut self) {
        self.began = None;
    }

    /// Notes a frame with so many bytes of pages. Returns what to do from now on, if that changes.
    pub fn built(&mut self, now: Instant, page_bytes: u64) -> Option<Effort> {
        let Some(began) = self.began else {
            (self.began, self.bytes, self.frames) = (Some(now), 0, 0);
            return None;
        };
        self.bytes += page_bytes;
        self.frames += 1;
        let time = now.duration_since(began);
        if time < INTERVAL || self.frames < INTERVAL_FRAMES {
            return None;
        }
        let speed = self.bytes as f64 / time.as_secs_f64();
        (self.began, self.bytes, self.frames) = (Some(now), 0, 0);
        if std::mem::take(&mut self.is_fresh) {
            return None;
        }
        let before = self.at;
        match self.from.take() {
            Some(from) => self.judge(from, speed),
            None => self.settled(speed),
        }
        self.is_fresh = self.at != before;
        self.is_fresh.then(|| self.effort())
    }

    fn judge(&mut self, from: usize, speed: f64) {
        if speed > self.speed * (1.0 + GAIN_MIN) {
            // On in this direction.
            (self.speed, self.rest, self.next_rest) = (speed, 0, REST_FIRST);
            return;
        }
        self.at = from;
        self.goes_up = !self.goes_up;
        self.rest = self.next_rest;
        self.next_rest = (self.next_rest * 2).min(REST_MAX);
    }

    fn settled(&mut self, speed: f64) {
        self.speed = match self.speed > 0.0 {
            true => 0.5 * (self.speed + speed),
            false => speed,
        };
        if self.rest > 0 {
            self.rest -= 1;
            return;
        }
        let is_last = if self.goes_up { EFFORTS.len() - 1 } else { 0 };
        if self.at == is_last {
            self.goes_up = !self.goes_up;
        }
        self.from = Some(self.at);
        self.at = if self.goes_up {
            self.at + 1
        } else {
            self.at - 1
        };
    }
}

impl Default for EffortChooser {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FRAME_BYTES: u64 = 512 << 10;

    /// Codec speed in MB/s, and how many times smaller pages get.
    type Codec = [(f64, f64); EFFORTS.len()];

    const TYPICAL: Codec = [
        (4000.0, 1.0),
        (700.0, 2.2),
        (450.0, 2.9),
        (260.0, 3.1),
        (120.0, 3.25),
        (60.0, 3.35),
    ];

    /// Sends for a minute; returns the share of the best effort's speed that was reached in the second
    /// half, and the effort at the end.
    fn run(codec: &Codec, link_mb_per_s: f64) -> (f64, Effort) {
        let speed = |at: usize| codec[at].0.min(link_mb_per_s * codec[at].1);
        let best = (0..EFFORTS.len()).map(speed).fold(0.0, f64::max);
        let mut chooser = EffortChooser::new();
        let start = Instant::now();
        let (mut now, mut frames) = (Duration::ZERO, 0);
        while now < Duration::from_secs(60) {
            now += Duration::from_secs_f64(FRAME_BYTES as f64 / 1e6 / speed(chooser.at));
            frames += u64::from(now > Duration::from_secs(30));
            chooser.built(start + now, FRAME_BYTES);
        }
        let reached = (frames * FRAME_BYTES) as f64 / 1e6 / 30.0;
        (reached / best, chooser.effort())
    }

    #[test]
    fn it_comes_near_the_best_on_every_link() {
        for link_mb_per_s in [1.25, 12.5, 62.5, 125.0, 500.0, 1250.0, 3000.0] {
            let (share, effort) = run(&TYPICAL, link_mb_per_s);
            assert!(
                share > 0.9,
                "{link_mb_per_s} MB/s: {share:.3} at {effort:?}"
            );
        }
    }

    #[test]
    fn what_does_not_shrink_is_sent_raw_where_a_codec_is_slower_than_the_link() {
        let codec = TYPICAL.map(|(speed, _)| (speed, 1.0));
        let (share, effort) = run(&codec, 1250.0);
        assert!(
            share > 0.9 && effort == Effort::Raw,
            "{share:.3} {effort:?}"
        );
        let (share, _) = run(&codec, 12.5);
        assert!(share > 0.99);
    }

    #[test]
    fn a_pause_is_nobodys_fault() {
        let mut chooser = EffortChooser::new();
        let mut now = Instant::now();
        for frame in 0..2000 {
            now += Duration::from_millis(10);
            if frame % 20 == 19 {
                chooser.paused();
                now += Duration::from_secs(60);
            }
            chooser.built(now, FRAME_BYTES);
        }
        // No interval was ever long enough to be judged.
        assert_eq!(chooser.effort(), EFFORTS[FIRST]);
    }
}
