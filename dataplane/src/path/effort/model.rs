//! What efforts cost and save, measured for the one in use and foretold for the others.

use super::{EFFORTS, Effort};

/// What one effort does to pages.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Prospect {
    /// Seconds of encoding for a byte of pages.
    cost_s: f64,
    /// Logarithm of how many times smaller they get: in these terms efforts keep their proportions from
    /// pages that shrink well to those that do not shrink at all.
    shrinks: f64,
}

const fn prospect(cost_s: f64, shrinks: f64) -> Prospect {
    Prospect { cost_s, shrinks }
}

/// Of one core over servers' RAM, by `dwcp bench codec`. Only the proportions matter once something is
/// measured.
const FIRST: [Prospect; EFFORTS.len()] = [
    prospect(0.0, 0.0),
    prospect(2.2e-9, 1.25),
    prospect(3.2e-9, 1.55),
    prospect(3.7e-9, 1.58),
    prospect(4.4e-9, 1.605),
    prospect(5.4e-9, 1.645),
];

/// How much of a surprise in the cost is believed to be the effort's own, where it may be the data's. What
/// becomes of the bytes is the data's alone: from one interval to the next that changes tenfold, and efforts
/// differ by a tenth.
const OWN: f64 = 0.5;

/// Pages get no smaller than this, for what is foretold.
const SHRINKS_MAX: f64 = 7.0;

/// Proportions of all efforts, and what this data on this machine makes of them.
#[derive(Clone, Debug)]
pub(super) struct Model {
    prospects: [Prospect; EFFORTS.len()],
    /// Times the costs, and times what they shrink.
    costs: f64,
    shrinks: f64,
}

impl Model {
    pub(super) const fn new() -> Self {
        Self {
            prospects: FIRST,
            costs: 1.0,
            shrinks: 1.0,
        }
    }

    /// Notes that the effort at `at` took so long for a byte of pages and made so much of a byte of it.
    /// `is_first` after a change: what it costs more than was foretold is then partly the effort's own.
    pub(super) fn measured(&mut self, at: usize, cost_s: f64, sent: f64, is_first: bool) {
        if EFFORTS[at] == Effort::Raw {
            return;
        }
        let cost_s = cost_s.max(1e-12);
        let shrinks = -sent.max(1e-6).ln().clamp(-SHRINKS_MAX, -1e-3);
        let prospect = &mut self.prospects[at];
        if is_first {
            prospect.cost_s = own(prospect.cost_s, cost_s / self.costs);
        }
        self.costs = cost_s / prospect.cost_s;
        self.shrinks = shrinks / prospect.shrinks;
    }

    /// What encoding takes over what was foretold, and how much pages shrink over it.
    pub(super) const fn surprises(&self) -> (f64, f64) {
        (self.costs, self.shrinks)
    }

    /// A worker's time for a byte of pages, where everything else takes `other_s`.
    pub(super) fn busy_s(&self, at: usize, other_s: f64) -> f64 {
        other_s + self.prospects[at].cost_s * self.costs
    }

    /// What becomes of a byte of pages.
    pub(super) fn sent(&self, at: usize) -> f64 {
        (-self.prospects[at].shrinks * self.shrinks).exp()
    }

    /// Seconds for a byte of pages, where everything else takes `other_s` and the link `link_s`.
    pub(super) fn seconds(&self, at: usize, other_s: f64, link_s: f64) -> f64 {
        self.busy_s(at, other_s).max(self.sent(at) * link_s)
    }
}

/// Between what was foretold and what came, in proportion.
fn own(foretold: f64, came: f64) -> f64 {
    foretold * (came / foretold).clamp(0.1, 10.0).powf(OWN)
}
