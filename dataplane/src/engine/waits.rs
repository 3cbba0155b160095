//! What keeps workers that have pages to send from sending them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How long workers worked and waited while they had pages to send, over all of them.
#[derive(Debug, Default)]
pub struct Waits {
    busy_ns: AtomicU64,
    for_room_ns: AtomicU64,
    for_limit_ns: AtomicU64,
}

/// The same at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waited {
    /// At work.
    pub busy: Duration,
    /// For room in the sockets, or for the destination's word that what it has is applied.
    pub for_room: Duration,
    /// For the limit on bandwidth.
    pub for_limit: Duration,
}

impl Waits {
    /// Until now.
    #[must_use]
    pub fn now(&self) -> Waited {
        let of = |ns: &AtomicU64| Duration::from_nanos(ns.load(Ordering::Relaxed));
        Waited {
            busy: of(&self.busy_ns),
            for_room: of(&self.for_room_ns),
            for_limit: of(&self.for_limit_ns),
        }
    }
}

/// One worker's clock.
#[derive(Debug)]
pub(super) struct Turns<'a> {
    waits: &'a Waits,
    /// The end of the last wait.
    since: Instant,
}

impl<'a> Turns<'a> {
    pub(super) fn new(waits: &'a Waits) -> Self {
        Self {
            waits,
            since: Instant::now(),
        }
    }

    /// It has worked until now.
    pub(super) fn worked(&mut self) {
        let worked = self.lap();
        count(&self.waits.busy_ns, worked);
    }

    /// It has ended. Without `for_limit` it was for room.
    pub(super) fn waited(&mut self, for_limit: bool) -> Duration {
        let waited = self.lap();
        match for_limit {
            true => count(&self.waits.for_limit_ns, waited),
            false => count(&self.waits.for_room_ns, waited),
        }
        waited
    }

    /// What was since then does not count.
    pub(super) fn rested(&mut self) -> Duration {
        self.lap()
    }

    fn lap(&mut self) -> Duration {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.since, now))
    }
}

fn count(ns: &AtomicU64, time: Duration) {
    ns.fetch_add(time.as_nanos() as u64, Ordering::Relaxed);
}
