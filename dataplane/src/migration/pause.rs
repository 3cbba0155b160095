//! The pause, part by part.

use std::time::Instant;

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
}

impl PauseMoments {
    /// From the guest's stop to its resume, as this node saw them, part by part.
    pub(super) fn downtime(&self) -> (f64, DowntimePartsMs) {
        let at = self;
        let (Some(decided), Some(paused)) = (at.decided, at.paused) else {
            return (0.0, DowntimePartsMs::default());
        };
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
            handover: part(at.committed),
            resume: part(at.resumed),
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
