//! Who waits for a page, and since when.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use dwcp_wire::FetchSummary;
use hdrhistogram::Histogram;

use crate::migration::node::lock;

/// Longest wait that is told apart from longer ones, in microseconds: an hour.
const WAIT_US_MAX: u64 = 3_600_000_000;

/// Of waits.
pub(super) fn new_histogram() -> Histogram<u64> {
    let histogram = Histogram::new_with_max(WAIT_US_MAX, 2);
    histogram.expect("the bounds are constants, and valid")
}

/// Pages that somebody waits for.
#[derive(Debug)]
pub(super) struct Waiting {
    pages: Mutex<HashMap<(u32, u32), Instant>>,
    count: AtomicUsize,
    waits_us: Mutex<Histogram<u64>>,
    nobody: Condvar,
    quiet: Mutex<()>,
}

impl Waiting {
    pub(super) fn new() -> Self {
        Self {
            pages: Mutex::default(),
            count: AtomicUsize::new(0),
            waits_us: Mutex::new(new_histogram()),
            nobody: Condvar::new(),
            quiet: Mutex::default(),
        }
    }

    /// Somebody waits for a page. Whether nobody did before.
    pub(super) fn begin(&self, page: (u32, u32)) -> bool {
        let mut pages = lock(&self.pages);
        let is_new = pages.insert(page, Instant::now()).is_none();
        self.count.store(pages.len(), Ordering::Release);
        is_new
    }

    /// The page is there.
    pub(super) fn end(&self, page: (u32, u32)) {
        if !self.any() {
            return;
        }
        let mut pages = lock(&self.pages);
        let since = pages.remove(&page);
        self.count.store(pages.len(), Ordering::Release);
        let is_last = pages.is_empty();
        drop(pages);
        if let Some(since) = since {
            let us = u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX);
            lock(&self.waits_us).saturating_record(us);
        }
        if is_last {
            self.nobody.notify_all();
        }
    }

    /// Whether anybody waits.
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::Acquire) > 0
    }

    /// Returns when nobody waits any more, or after `most`.
    pub(super) fn until_nobody(&self, most: Duration) {
        let quiet = lock(&self.quiet);
        // A wake-up that is missed costs `most`.
        drop(self.nobody.wait_timeout_while(quiet, most, |()| self.any()));
    }

    pub(super) fn pages(&self) -> Vec<(u32, u32)> {
        lock(&self.pages).keys().copied().collect()
    }

    /// What was waited for so far. The rest of the summary is for others to say.
    pub(super) fn summary(&self) -> FetchSummary {
        let waits_us = lock(&self.waits_us);
        FetchSummary {
            faults: waits_us.len(),
            fault_p50_us: waits_us.value_at_quantile(0.5),
            fault_p99_us: waits_us.value_at_quantile(0.99),
            fault_max_us: waits_us.max(),
            ..FetchSummary::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_waited_for_until_it_is_there() {
        let waiting = Waiting::new();
        assert!(waiting.begin((0, 7)) && !waiting.begin((0, 7)) && waiting.any());
        waiting.end((1, 7));
        assert_eq!(waiting.pages(), [(0, 7)]);
        waiting.end((0, 7));
        assert!(!waiting.any());
        waiting.until_nobody(Duration::from_secs(3600));
        assert_eq!(waiting.summary().faults, 1);
    }
}
