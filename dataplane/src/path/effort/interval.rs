//! What a worker did between two decisions, and what was made of it.

use std::time::Duration;

use serde::Serialize;

use super::learned::{Features, Tree};
use super::{EFFORTS, Effort};

/// Part of its time that a worker waits where the link is the limit.
const WAITS: f64 = 0.15;

/// What a worker did between two decisions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Interval {
    /// All of it, s.
    pub seconds: f64,
    /// Waiting for room in the sockets, s.
    pub waited_s: f64,
    /// Encoding, s.
    pub encoded_s: f64,
    /// Pages with data, bytes.
    pub page_bytes: f64,
    /// Frames, bytes.
    pub wire_bytes: f64,
}

impl Interval {
    pub(super) fn speed(&self) -> f64 {
        self.page_bytes / self.seconds
    }

    pub(super) fn rate(&self) -> f64 {
        self.wire_bytes / self.seconds
    }

    pub(super) fn waits(&self) -> bool {
        self.waited_s > self.seconds * WAITS
    }

    /// All that is neither waiting nor encoding, s for a byte of pages.
    pub(super) fn other_s(&self) -> f64 {
        (self.seconds - self.waited_s - self.encoded_s).max(0.0) / self.page_bytes
    }
}

/// A frame that was built.
#[derive(Clone, Copy, Debug)]
pub struct BuiltFrame {
    /// Pages with data in it, bytes.
    pub page_bytes: u64,
    /// All of it, bytes.
    pub wire_bytes: u64,
    /// Time that encoding took.
    pub encoding: Duration,
}

/// What a decision was made by, and what the rule made of it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seen {
    /// What the worker did.
    pub interval: Interval,
    /// What a learned chooser sees of it.
    pub features: Features,
    /// What was in use.
    pub effort: Effort,
    /// What the rule takes from now on.
    pub rule: Effort,
    /// Nothing less hard may be taken.
    pub(super) least: usize,
}

impl Seen {
    /// What a learned chooser takes. Nothing is changed by asking.
    #[must_use]
    pub fn by(&self, tree: &Tree) -> Effort {
        EFFORTS[self.at_by(tree)]
    }

    pub(super) fn at_by(&self, tree: &Tree) -> usize {
        tree.choose(&self.features).max(self.least)
    }
}
