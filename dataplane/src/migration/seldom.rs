//! Lines in the log that strangers can cause: some at once, then one a second, with how many were left out.

use std::sync::Mutex;
use std::time::Instant;

use super::node::lock;

/// Lines at once.
const BURST: u32 = 32;

/// Decides which lines are written.
#[derive(Debug)]
pub(super) struct Seldom(Mutex<State>);

#[derive(Debug)]
struct State {
    /// Lines that may be written now.
    may: u32,
    /// When that last grew.
    grown: Instant,
    left_out: u64,
}

impl Seldom {
    pub(super) fn new() -> Self {
        Self(Mutex::new(State {
            may: BURST,
            grown: Instant::now(),
            left_out: 0,
        }))
    }

    /// Whether a line may be written, and how many were left out before it.
    pub(super) fn line(&self, now: Instant) -> Option<u64> {
        let mut state = lock(&self.0);
        let seconds = now.saturating_duration_since(state.grown).as_secs();
        if seconds > 0 {
            let more = u32::try_from(seconds).unwrap_or(BURST);
            state.may = state.may.saturating_add(more).min(BURST);
            state.grown = now;
        }
        if state.may == 0 {
            state.left_out += 1;
            return None;
        }
        state.may -= 1;
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_flood_is_a_line_a_second_and_none_is_forgotten() {
        let (seldom, began) = (Seldom::new(), Instant::now());
        let (mut lines, mut left_out) = (0, 0);
        for ms in 0..10_000 {
            if let Some(before) = seldom.line(began + Duration::from_millis(ms)) {
                lines += 1;
                left_out += before;
            }
        }
        assert!(
            (u64::from(BURST) + 8..=u64::from(BURST) + 10).contains(&lines),
            "{lines}"
        );
        let after_an_hour = seldom.line(began + Duration::from_secs(3600)).unwrap();
        assert_eq!(lines + left_out + after_an_hour, 10_000);
        let at_once = (0..100).filter(|_| seldom.line(began + Duration::from_secs(3600)).is_some());
        assert_eq!(at_once.count() as u32, BURST - 1);
    }
}
