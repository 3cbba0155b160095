//! How much is asked for ahead on a connection: what the path holds, and half of it.
//!
//! More would wait in the queues of the path, and a page that somebody waits for would wait behind it.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Until the path is known.
const WINDOW_FIRST: u64 = 512 * 1024;

/// So much at least: a few requests.
const WINDOW_LEAST: u64 = 256 * 1024;

/// So much at most: more is wanted by 10 Gbit/s over 25 ms alone.
const WINDOW_MOST: u64 = 32 << 20;

/// Over so long the rate is measured.
const INTERVAL: Duration = Duration::from_millis(100);

/// A request that is not answered in full.
#[derive(Clone, Copy, Debug)]
struct Asked {
    pages_left: u64,
    bytes: u64,
    since: Instant,
}

/// What was asked for on one connection.
#[derive(Debug)]
pub(super) struct Flow {
    asked: VecDeque<Asked>,
    asked_bytes: u64,
    window: u64,
    /// The shortest time that an answer took.
    least: Option<Duration>,
    since: Instant,
    /// Answered since.
    bytes: u64,
}

impl Flow {
    pub(super) const fn new(now: Instant) -> Self {
        Self {
            asked: VecDeque::new(),
            asked_bytes: 0,
            window: WINDOW_FIRST,
            least: None,
            since: now,
            bytes: 0,
        }
    }

    /// Whether there is room for another request.
    pub(super) const fn has_room(&self) -> bool {
        self.asked_bytes < self.window
    }

    pub(super) fn is_empty(&self) -> bool {
        self.asked.is_empty()
    }

    pub(super) fn asked(&mut self, pages: u64, bytes: u64, now: Instant) {
        self.asked.push_back(Asked {
            pages_left: pages,
            bytes,
            since: now,
        });
        self.asked_bytes += bytes;
    }

    /// Pages came; false when so many were not asked for.
    pub(super) fn answered(&mut self, mut pages: u64, now: Instant) -> bool {
        while pages > 0 {
            let Some(first) = self.asked.front_mut() else {
                return false;
            };
            let taken = pages.min(first.pages_left);
            first.pages_left -= taken;
            pages -= taken;
            if first.pages_left == 0 {
                let took = now.saturating_duration_since(first.since);
                self.least = Some(self.least.map_or(took, |least| least.min(took)));
                self.asked_bytes -= first.bytes;
                self.bytes += first.bytes;
                self.asked.pop_front();
            }
        }
        self.measure(now);
        true
    }

    fn measure(&mut self, now: Instant) {
        let time = now.saturating_duration_since(self.since);
        let Some(least) = self.least.filter(|least| time >= INTERVAL.max(*least)) else {
            return;
        };
        let holds = self.bytes as f64 / time.as_secs_f64() * least.as_secs_f64();
        self.window = ((holds * 1.5) as u64).clamp(WINDOW_LEAST, WINDOW_MOST);
        (self.since, self.bytes) = (now, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A path of so many bytes per second that takes `delay` there and back.
    fn window_after(bytes_per_s: f64, delay: Duration, requests: u32) -> u64 {
        let mut now = Instant::now();
        let mut flow = Flow::new(now);
        let (mut free_at, mut arrivals) = (now, VecDeque::new());
        for _ in 0..requests {
            while flow.has_room() {
                flow.asked(32, 128 << 10, now);
                free_at = free_at.max(now) + Duration::from_secs_f64(131_072.0 / bytes_per_s);
                arrivals.push_back(free_at + delay);
            }
            now = arrivals.pop_front().unwrap();
            assert!(flow.answered(32, now));
        }
        flow.window
    }

    #[test]
    fn the_window_holds_what_the_path_does_and_half_of_it() {
        // 12.5 MB/s and 100 ms hold 1.25 MB.
        let window = window_after(12.5e6, Duration::from_millis(100), 2000);
        assert!((1_250_000..2_600_000).contains(&window), "{window}");
        let short = window_after(12.5e6, Duration::from_millis(1), 2000);
        assert!(short <= 300_000, "{short}");
    }

    #[test]
    fn what_was_not_asked_for_is_noticed() {
        let now = Instant::now();
        let mut flow = Flow::new(now);
        flow.asked(3, 3 * 4096, now);
        assert!(flow.answered(2, now) && !flow.is_empty());
        assert!(!flow.answered(2, now));
    }
}
