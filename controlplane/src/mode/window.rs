//! The last moments of a path.

use std::collections::VecDeque;
use std::time::Duration;

use dwcp_api::PathSample;

/// What the round trip is judged by.
const SHORT: Duration = Duration::from_millis(1400);

/// What loss is judged by: few bytes are lost at a time. A rate that was seen holds as long.
const LONG: Duration = Duration::from_secs(10);

/// Samples before anything is said.
const SAMPLES_MIN: usize = 3;

/// Samples with more to send that the rate is judged by.
const BUSY_MAX: usize = 5;

/// Less than so many bytes say nothing of loss: at a part in a thousand, about ten segments.
const SENT_MIN: u64 = 14 << 20;

/// Unless so many of them were lost.
const LOST_MIN: u64 = 10 * 1448;

/// What a window shows.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Facts {
    /// Middle one of the last moments.
    pub(super) rtt: Duration,
    /// Its deviation, as a part of it.
    pub(super) jitter: f64,
    /// Part of the bytes that were sent again; unknown where too few were sent.
    pub(super) loss: Option<f64>,
    /// What the path carried when there was more to send, bytes per second.
    pub(super) rate: Option<f64>,
}

impl Facts {
    /// Of one look: only the length of the path.
    pub(super) fn of(sample: &PathSample) -> Self {
        Self {
            rtt: Duration::from_micros(sample.rtt_us),
            jitter: 0.0,
            loss: None,
            rate: None,
        }
    }
}

/// Samples with their times, oldest first.
#[derive(Clone, Debug, Default)]
pub(super) struct Window {
    samples: VecDeque<(Duration, PathSample)>,
}

impl Window {
    /// Adds a sample; says what the window shows, once there is enough in it.
    pub(super) fn add(&mut self, now: Duration, sample: &PathSample) -> Option<Facts> {
        // Connections that were opened anew count from zero again.
        if self
            .samples
            .back()
            .is_some_and(|(_, last)| sample.sent_bytes < last.sent_bytes)
        {
            self.samples.clear();
        }
        self.samples.push_back((now, *sample));
        while self
            .samples
            .front()
            .is_some_and(|(at, _)| now.saturating_sub(*at) > LONG)
        {
            self.samples.pop_front();
        }
        let is_late = |(at, _): &&(Duration, PathSample)| now.saturating_sub(*at) <= SHORT;
        let late: Vec<_> = self
            .samples
            .iter()
            .filter(is_late)
            .map(|(_, sample)| sample)
            .collect();
        if late.len() < SAMPLES_MIN {
            return None;
        }
        let rtt_us = middle(late.iter().map(|sample| sample.rtt_us));
        let var_us = middle(late.iter().map(|sample| sample.rtt_var_us));
        Some(Facts {
            rtt: Duration::from_micros(rtt_us),
            jitter: var_us as f64 / rtt_us.max(1) as f64,
            loss: self.loss(),
            rate: self.rate(),
        })
    }

    /// Of the last moments in which there was more to send.
    fn rate(&self) -> Option<f64> {
        let all = self.samples.iter().rev().map(|(_, sample)| sample);
        let busy = all.filter(|sample| !sample.is_app_limited);
        let rates: Vec<_> = busy
            .take(BUSY_MAX)
            .map(|sample| sample.delivery_bytes_per_s)
            .collect();
        (rates.len() >= SAMPLES_MIN).then(|| middle(rates.into_iter()) as f64)
    }

    /// But for the worst moment: a burst, as at the end of slow start, is none that a path makes all the time.
    fn loss(&self) -> Option<f64> {
        let ((_, first), (_, last)) = (self.samples.front()?, self.samples.back()?);
        let sent = last.sent_bytes.saturating_sub(first.sent_bytes);
        let counts = || {
            self.samples
                .iter()
                .map(|(_, sample)| sample.retransmitted_bytes)
        };
        let steps = counts().skip(1).zip(counts());
        let worst = steps
            .map(|(now, before)| now.saturating_sub(before))
            .max()?;
        let lost = last
            .retransmitted_bytes
            .saturating_sub(first.retransmitted_bytes);
        let lost = lost.saturating_sub(worst);
        let is_enough = sent >= SENT_MIN || lost >= LOST_MIN;
        (is_enough && sent > 0).then(|| lost as f64 / sent as f64)
    }
}

fn middle(values: impl Iterator<Item = u64>) -> u64 {
    let mut values: Vec<_> = values.collect();
    values.sort_unstable();
    values.get(values.len() / 2).copied().unwrap_or(0)
}
