//! Before the beginning: a dry run looks at what the guest writes, and says what would come of a migration.

use std::time::{Duration, Instant};

use dwcp_api::{Limit, Prospect};
use dwcp_proto::{ForecastInput, SourceEvent, forecast_from_start};
use dwcp_simd::PAGE_BYTES;

use super::source::SourceDriver;
use super::source_forecast::{UNCHANGED_PERMILLE, told};

/// The guest is looked at for so long.
const LOOK_TIME: Duration = Duration::from_secs(2);

/// Rates that are tried, in Mbit/s.
const MBIT_MAX: u64 = 1_000_000;

impl SourceDriver {
    /// Both nodes agree. Before that is said the guest is looked at, where that costs it nothing.
    pub(super) fn look_first(&mut self, agreed: SourceEvent) {
        let armed = self.tracker.arm();
        let can_be_seen = armed.is_ok() && self.tracker.written().is_some();
        if !can_be_seen {
            self.recorder.remark(match armed {
                Ok(()) => format!(
                    "no forecast: tracker {} tells nothing ahead",
                    self.tracker.name()
                ),
                Err(error) => format!("no forecast: {error}"),
            });
            return self.feed(agreed);
        }
        self.collected_at = Some(Instant::now());
        self.writing.begin();
        self.agreed = Some(agreed);
    }

    /// It has been looked at for long enough.
    pub(super) fn look_on(&mut self) {
        let Some(since) = self.collected_at.map(|at| at.elapsed()) else {
            return;
        };
        if since < LOOK_TIME {
            return;
        }
        if let Some(agreed) = self.agreed.take() {
            self.recorder.prospect = self.prospect(since);
            self.tracker.disarm();
            self.feed(agreed);
        }
    }

    fn prospect(&mut self, since: Duration) -> Option<Prospect> {
        let dirty_pages = self.tracker.written()?;
        self.writing.curve.add(since.as_nanos() as u64, dirty_pages);
        let curve = self.writing.curve.looking_far();
        let (pages, limits) = (self.pages_with_memory(), self.limits());
        let ahead = |page_ns| {
            forecast_from_start(&ForecastInput {
                round: 0,
                pages,
                ram_pages: self.session.layout.pages(),
                curve: &curve,
                interval_ns: 0,
                page_ns,
                unchanged_permille: UNCHANGED_PERMILLE,
                limits: &limits,
            })
        };
        let (page_ns, basis) = self.expected_page_time();
        let forecast = page_ns.and_then(|page_ns| told(0, page_ns, self.round_trip(), ahead));
        let least_mbit = least(MBIT_MAX, |mbit| {
            ahead(page_bits() * 1000 / mbit).is_some_and(|ahead| ahead.converges)
        });
        Some(Prospect {
            looked_ms: since.as_secs_f64() * 1000.0,
            pages,
            dirty_pages,
            mbit: page_ns.map(|page_ns| page_bits() as f64 * 1000.0 / page_ns as f64),
            basis,
            limited_by: match forecast {
                None => Limit::Unknown,
                Some(ahead) if ahead.converges => Limit::Link,
                Some(_) => Limit::DirtyRate,
            },
            forecast,
            least_mbit,
        })
    }

    /// What the first round will send, but for those of them that are zero.
    fn pages_with_memory(&self) -> u64 {
        let layout = &self.session.layout;
        let mut data = layout.empty_bitmap();
        match layout.mark_data(&mut data) {
            Ok(()) => data.count(),
            Err(_) => layout.pages(),
        }
    }

    /// How long a page may take, and whence that is known.
    fn expected_page_time(&self) -> (Option<u64>, String) {
        let name = self.request.destination.name();
        let limit = self.session.pace.bytes_per_s();
        let limited = (limit > 0).then(|| PAGE_BYTES as u64 * 1_000_000_000 / limit);
        match (self.node.page_time(name), limited) {
            (Some(before), limited) if limited.is_none_or(|limited| limited < before) => {
                (Some(before), format!("as the last migration to {name} had"))
            }
            (_, Some(limited)) => (Some(limited), "by the limit that is set".to_owned()),
            _ => (
                None,
                format!(
                    "nothing has been moved to {name} since this data plane began, and there is no limit \
                     (transfer.bandwidth_limit_mbit)"
                ),
            ),
        }
    }

    /// The next dry run to the same node knows how long a page took, unless a limit was what it took.
    pub(super) fn remember_page_time(&self) {
        if let (Some(page_ns), 0) = (self.writing.page_ns(), self.limit_bytes_per_s) {
            self.node
                .note_page_time(self.request.destination.name(), page_ns);
        }
    }
}

const fn page_bits() -> u64 {
    PAGE_BYTES as u64 * 8
}

/// The least number up to `most` from which on it is so, to a hundredth.
fn least(most: u64, is_so: impl Fn(u64) -> bool) -> Option<u64> {
    if !is_so(most) {
        return None;
    }
    let (mut low, mut high) = (0, most);
    while high - low > 1 + high / 100 {
        let middle = low.midpoint(high);
        if is_so(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    Some(high)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_that_is_enough_is_found() {
        for enough in [1, 2, 7, 150, 99_999, 1_000_000] {
            let found = least(MBIT_MAX, |mbit| mbit >= enough).unwrap();
            assert!(
                found >= enough && found <= enough + 1 + enough / 50,
                "{found} for {enough}"
            );
        }
        assert_eq!(least(MBIT_MAX, |_| false), None);
    }
}
