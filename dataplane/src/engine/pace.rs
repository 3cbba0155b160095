//! How fast a source may send: a limit over all streams of a migration, which may change at any time.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// What may be sent ahead of its time: a worker that sleeps is not woken to the millisecond.
const AHEAD: Duration = Duration::from_millis(10);

/// Longest sleep for the limit's sake: it may have changed since.
const SLEEP_MAX: Duration = Duration::from_millis(50);

/// A token bucket that all workers of a migration take from, without a lock.
#[derive(Debug)]
pub struct Pace {
    began: Instant,
    /// 0: no limit.
    bytes_per_s: AtomicU64,
    /// What was sent takes the link until then, at the limit, in nanoseconds since the beginning.
    busy_until_ns: AtomicU64,
    lifted: AtomicBool,
}

impl Pace {
    /// A pace of so many bytes a second; 0 is no limit.
    #[must_use]
    pub fn new(bytes_per_s: u64) -> Self {
        Self {
            began: Instant::now(),
            bytes_per_s: AtomicU64::new(bytes_per_s),
            busy_until_ns: AtomicU64::new(0),
            lifted: AtomicBool::new(false),
        }
    }

    /// Sets another limit, from now on. What was sent ahead under the old one is still owed, and takes no longer
    /// under a new one that is lower.
    pub fn set(&self, bytes_per_s: u64) {
        let old = self.bytes_per_s.swap(bytes_per_s, Ordering::Relaxed);
        let now = self.now_ns();
        let part = match bytes_per_s {
            0 => 0.0,
            new => (old as f64 / new as f64).min(1.0),
        };
        let sooner = |busy: u64| {
            let early = busy.checked_sub(now)? as f64 * part;
            Some(now.saturating_add(early as u64))
        };
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.busy_until_ns.fetch_update(set, get, sooner);
    }

    /// What was sent ahead of its time.
    #[must_use]
    pub fn ahead_bytes(&self) -> u64 {
        let Some(limit) = self.limit() else { return 0 };
        let busy = self.busy_until_ns.load(Ordering::Relaxed);
        let early = u128::from(busy.saturating_sub(self.now_ns()));
        let bytes = early * u128::from(limit) / 1_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// The limit, 0 for none.
    #[must_use]
    pub fn bytes_per_s(&self) -> u64 {
        self.bytes_per_s.load(Ordering::Relaxed)
    }

    /// The guest is paused: from now on every limit would make the pause longer.
    pub fn lift(&self) {
        self.lifted.store(true, Ordering::Relaxed);
    }

    /// Nothing that the pause waits for is left to send: what follows keeps the limit, and owes nothing.
    pub fn hold(&self) {
        if self.lifted.swap(false, Ordering::Relaxed) {
            let now = self.now_ns();
            self.busy_until_ns.fetch_min(now, Ordering::Relaxed);
        }
    }

    /// How long to wait before the next frame; `None` when it may leave at once.
    #[must_use]
    pub fn wait(&self) -> Option<Duration> {
        self.limit()?;
        let busy = self.busy_until_ns.load(Ordering::Relaxed);
        let early = busy.saturating_sub(self.now_ns());
        let wait = Duration::from_nanos(early).checked_sub(AHEAD)?;
        (!wait.is_zero()).then(|| wait.min(SLEEP_MAX))
    }

    /// A frame of so many bytes leaves.
    pub fn sent(&self, bytes: u64) {
        let Some(limit) = self.limit() else { return };
        let takes_ns = u128::from(bytes) * 1_000_000_000 / u128::from(limit);
        let takes_ns = u64::try_from(takes_ns).unwrap_or(u64::MAX);
        let now = self.now_ns();
        let later = |busy: u64| Some(busy.max(now).saturating_add(takes_ns));
        let (set, get) = (Ordering::Relaxed, Ordering::Relaxed);
        let _ = self.busy_until_ns.fetch_update(set, get, later);
    }

    fn limit(&self) -> Option<u64> {
        let limit = self.bytes_per_s.load(Ordering::Relaxed);
        (limit > 0 && !self.lifted.load(Ordering::Relaxed)).then_some(limit)
    }

    fn now_ns(&self) -> u64 {
        self.began.elapsed().as_nanos() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Frames of half a MiB each 100 ms or so, and a limit that changes a little as often.
    #[test]
    fn a_limit_that_changes_forgives_nothing() {
        let pace = Pace::new(1_000_000);
        pace.sent(500_000);
        let is_near = |bytes: u64| (400_000..=500_000).contains(&bytes);
        assert!(is_near(pace.ahead_bytes()), "{}", pace.ahead_bytes());
        pace.set(1_250_000);
        assert!(is_near(pace.ahead_bytes()), "{}", pace.ahead_bytes());
        assert!(pace.wait().is_some());
        pace.set(1_000);
        assert!(pace.ahead_bytes() < 500, "no longer than before");
        pace.set(0);
        assert_eq!((pace.wait(), pace.ahead_bytes()), (None, 0));
    }

    #[test]
    fn what_is_sent_takes_its_time() {
        let pace = Pace::new(1_000_000);
        assert_eq!(pace.wait(), None);
        pace.sent(5_000);
        assert_eq!(pace.wait(), None, "5 ms are ahead");
        pace.sent(1_000_000);
        assert_eq!(
            pace.wait(),
            Some(SLEEP_MAX),
            "a second, looked at again before"
        );
    }

    #[test]
    fn another_limit_owes_nothing_to_the_one_before() {
        let pace = Pace::new(1_000);
        pace.sent(1_000_000);
        assert!(pace.wait().is_some());
        pace.set(1_000_000_000);
        assert_eq!(pace.wait(), None);
        pace.sent(1_000_000);
        assert_eq!(pace.wait(), None);
    }

    #[test]
    fn without_a_limit_and_in_the_pause_nothing_waits() {
        let pace = Pace::new(0);
        pace.sent(u64::MAX);
        assert_eq!(pace.wait(), None);
        let pace = Pace::new(1);
        pace.sent(u64::MAX);
        assert!(pace.wait().is_some());
        pace.lift();
        assert_eq!(pace.wait(), None);
        pace.set(1);
        pace.sent(u64::MAX);
        assert_eq!(pace.wait(), None);
        pace.hold();
        assert_eq!(pace.wait(), None);
        pace.sent(u64::MAX);
        assert!(pace.wait().is_some());
    }
}
