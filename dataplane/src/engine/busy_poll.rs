//! Looking for completions for a while before sleeping for them.
//!
//! To be woken costs a core's switch and tens of microseconds; to look costs the core. So a worker
//! looks only for as long as looking has paid, as KVM's halt polling does
//! (Documentation/virt/kvm/halt-polling.rst): a wait that ended within the limit lets it look longer
//! next time, one that took longer, less. A worker with nothing to do soon does not look at all: what
//! it wastes between two long waits is bounded by twice the limit.

use std::io;
use std::time::{Duration, Instant};

use crate::transport::{Completion, Transport, Wait};

/// What it looks for at least, once it looks.
const LEAST: Duration = Duration::from_micros(4);

/// How a worker waits.
#[derive(Debug)]
pub(super) struct BusyPoll {
    /// The longest look; zero never looks.
    limit: Duration,
    /// The next look.
    look: Duration,
}

impl BusyPoll {
    pub(super) const fn new(limit: Duration) -> Self {
        Self {
            limit,
            look: Duration::ZERO,
        }
    }

    /// Waits for completions, `most` at most.
    pub(super) fn wait(
        &mut self,
        transport: &mut dyn Transport,
        most: Duration,
        completions: &mut Vec<Completion>,
    ) -> io::Result<()> {
        if self.limit.is_zero() {
            return transport.wait(Wait::Upto(most), completions);
        }
        let began = Instant::now();
        loop {
            transport.wait(Wait::No, completions)?;
            if !completions.is_empty() || began.elapsed() >= self.look {
                break;
            }
            std::hint::spin_loop();
        }
        if completions.is_empty() {
            transport.wait(Wait::Upto(most), completions)?;
        }
        self.waited(began.elapsed());
        Ok(())
    }

    /// Learns from a wait.
    fn waited(&mut self, time: Duration) {
        self.look = if time <= self.limit {
            (self.look * 2).clamp(LEAST.min(self.limit), self.limit)
        } else if self.look <= LEAST {
            Duration::ZERO
        } else {
            self.look / 2
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LIMIT: Duration = Duration::from_micros(50);

    #[test]
    fn short_waits_are_looked_through_and_long_ones_slept_through() {
        let mut poll = BusyPoll::new(LIMIT);
        assert_eq!(poll.look, Duration::ZERO);
        (0..10).for_each(|_| poll.waited(Duration::from_micros(20)));
        assert_eq!(poll.look, LIMIT);
        (0..10).for_each(|_| poll.waited(Duration::from_millis(1)));
        assert_eq!(poll.look, Duration::ZERO);
    }

    proptest! {
        /// What an idle worker costs.
        #[test]
        fn long_waits_waste_twice_the_limit_at_most(
            before in prop::collection::vec(0_u64..200, 0..50),
            limit_us in 1_u64..1000,
        ) {
            let limit = Duration::from_micros(limit_us);
            let mut poll = BusyPoll::new(limit);
            before.into_iter().for_each(|us| poll.waited(Duration::from_micros(us)));
            let mut wasted = Duration::ZERO;
            for _ in 0..100 {
                wasted += poll.look;
                poll.waited(limit + Duration::from_secs(1));
            }
            prop_assert!(wasted <= 2 * limit, "{wasted:?}");
            prop_assert_eq!(poll.look, Duration::ZERO);
        }
    }
}
