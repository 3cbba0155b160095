//! The pause, part by part.

use std::time::{Duration, Instant};

use dwcp_api::DowntimePartsMs;

/// Moments of the pause, in order, each on this node's monotonic clock. What the destination does is said by it; the way of
/// those words is no part of the pause.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct PauseMoments {
    pub(super) decided: Option<Instant>,
    pub(super) paused: Option<Instant>,
    pub(super) pages_sent: Option<Instant>,
    pub(super) proven: Option<Instant>,
    pub(super) device: Option<Instant>,
    pub(super) committed: Option<Instant>,
    pub(super) resumed: Option<Instant>,
    /// How long the word of the resume was on its way at least, where there was one.
    pub(super) word_took: Duration,
}

impl PauseMoments {
    /// From the guest's stop to its resume, as this node saw them, part by part.
    pub(super) fn downtime(&self) -> (f64, DowntimePartsMs) {
        let at = self;
        let (Some(decided), Some(paused)) = (at.decided, at.paused) else {
            return (0.0, DowntimePartsMs::default());
        };
        let said = |heard: Option<Instant>| heard.and_then(|at| at.checked_sub(self.word_took));
        let mut last = paused;
        let mut part = |moment: Option<Instant>| {
            let until = moment.unwrap_or(last).max(last);
            ms(std::mem::replace(&mut last, until), until)
        };
        let parts = DowntimePartsMs {
            pause: ms(decided, paused),
            last_dirty_pages: part(at.pages_sent),
            verify: part(at.proven),
            device_state: part(at.device),
            handover: part(said(at.committed)),
            resume: part(said(at.resumed)),
        };
        let total = parts.last_dirty_pages
            + parts.verify
            + parts.device_state
            + parts.handover
            + parts.resume;
        (total, parts)
    }
}

pub(super) fn ms(from: Instant, until: Instant) -> f64 {
    until.saturating_duration_since(from).as_secs_f64() * 1000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_way_of_the_last_word_is_no_part_of_the_pause() {
        let began = Instant::now();
        let at = |ms| Some(began + Duration::from_millis(ms));
        let mut pause = PauseMoments {
            decided: at(0),
            paused: at(10),
            pages_sent: at(20),
            proven: at(210),
            device: at(30),
            committed: at(410),
            resumed: at(412),
            word_took: Duration::from_millis(100),
        };
        let (total, parts) = pause.downtime();
        assert!((total - 302.0).abs() < 0.01, "{total}");
        assert!((parts.handover - 100.0).abs() < 0.01 && (parts.resume - 2.0).abs() < 0.01);
        // Nobody has said that it runs: what is known is when that was not yet so.
        (pause.resumed, pause.word_took) = (None, Duration::ZERO);
        assert!((pause.downtime().0 - 400.0).abs() < 0.01);
    }
}
