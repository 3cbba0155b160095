//! What a link is asked to be.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::units::{QueueLimit, show_rate, show_share, show_time};

/// A direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the first namespace to the second.
    AToB,
    /// The way back.
    BToA,
}

impl Direction {
    /// Both, in the order of every array of two.
    pub const BOTH: [Self; 2] = [Self::AToB, Self::BToA];

    /// As text, and as the command line takes it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::AToB => "a-to-b",
            Self::BToA => "b-to-a",
        }
    }
}

/// A rate trace: a file, and which of its traces.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceSource {
    /// The CSV file.
    pub path: PathBuf,
    /// Value of its `trace` column; without one, the first trace.
    pub name: Option<String>,
}

/// One way of a link.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WayParams {
    /// Bits of IP packets per second; without one, not limited.
    pub rate_bit_per_s: Option<u64>,
    /// A rate that changes over time, instead.
    pub trace: Option<TraceSource>,
    /// One-way delay.
    pub delay_ns: u64,
    /// The delay wanders between `delay_ns` and this much more.
    pub jitter_ns: u64,
    /// Share of packets that are lost, each by itself.
    pub loss: f64,
    /// Share of packets that are held back, so that others overtake them.
    pub reorder: f64,
    /// What waits for the rate at most; what comes then is dropped.
    pub queue: QueueLimit,
}

impl Default for WayParams {
    fn default() -> Self {
        Self {
            rate_bit_per_s: None,
            trace: None,
            delay_ns: 0,
            jitter_ns: 0,
            loss: 0.0,
            reorder: 0.0,
            queue: QueueLimit::Auto,
        }
    }
}

impl WayParams {
    /// In a line, as the command line takes them.
    #[must_use]
    pub fn in_words(&self) -> String {
        let rate = match &self.trace {
            Some(trace) => format!("trace {}", trace.path.display()),
            None => format!("rate {}", show_rate(self.rate_bit_per_s)),
        };
        let mut words = vec![rate, format!("delay {}", show_time(self.delay_ns))];
        if self.jitter_ns > 0 {
            words.push(format!("jitter {}", show_time(self.jitter_ns)));
        }
        for (name, share) in [("loss", self.loss), ("reorder", self.reorder)] {
            if share > 0.0 {
                words.push(format!("{name} {}", show_share(share)));
            }
        }
        words.push(format!("queue {}", self.queue));
        words.join(", ")
    }
}

/// Both ways, and the seed of their decisions.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct LinkParams {
    /// The same seed and the same packets at the same times give the same decisions.
    pub seed: u64,
    /// A to B, B to A.
    pub ways: [WayParams; 2],
}
