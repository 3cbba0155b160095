//! What DWCP's bytes, times and pauses are to be, and what they are. To be read, not passed: one link says
//! little about another, and one workload less.

use std::fmt;

use super::Run;
use super::road::Road;
use super::table::{Row, YARDSTICK};

/// A first move, with nothing held, and the way back.
const FIRST: &str = "dwcp";
const BACK: &str = "dwcp-back";
const SIBLING: &str = "dwcp, sibling held";
const SIBLING_DISK: &str = "dwcp, sibling and disk held";

/// Sends what changed, too.
const XBZRLE: &str = "qemu-xbzrle";

/// QEMU as distributions ship it.
const YARDSTICK_CUBIC: &str = "qemu-multifd4-zstd-cubic";

/// A pause may last so long, and two round trips.
const PAUSE_MS: f64 = 300.0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Measure {
    Bytes,
    Total,
    Pause,
    /// Bytes of a page that was sent again.
    Again,
}

/// What a row is compared with.
#[derive(Clone, Copy, Debug)]
enum Against {
    /// The guest's RAM.
    Ram,
    Row(&'static str),
    /// The fastest of QEMU's own under the same congestion control.
    BestPeer,
    /// The limit that the link's round trip leaves.
    Limit,
}

struct Goal {
    of: &'static str,
    measure: Measure,
    against: Against,
    most: f64,
}

const fn goal(of: &'static str, measure: Measure, against: Against, most: f64) -> Goal {
    Goal {
        of,
        measure,
        against,
        most,
    }
}

const GOALS: [Goal; 14] = [
    goal(FIRST, Measure::Bytes, Against::Ram, 0.30),
    goal(FIRST, Measure::Bytes, Against::Row(YARDSTICK), 0.85),
    goal(SIBLING, Measure::Bytes, Against::Row(YARDSTICK), 0.70),
    goal(SIBLING_DISK, Measure::Bytes, Against::Row(YARDSTICK), 0.35),
    goal(BACK, Measure::Bytes, Against::Row(FIRST), 0.12),
    goal(FIRST, Measure::Again, Against::Row(XBZRLE), 0.60),
    goal(FIRST, Measure::Total, Against::BestPeer, 0.90),
    goal(SIBLING, Measure::Total, Against::BestPeer, 0.70),
    goal(BACK, Measure::Total, Against::BestPeer, 0.20),
    goal(FIRST, Measure::Total, Against::Row(YARDSTICK_CUBIC), 0.25),
    goal(FIRST, Measure::Pause, Against::Limit, 1.0),
    goal(BACK, Measure::Pause, Against::Limit, 1.0),
    goal(SIBLING, Measure::Pause, Against::Limit, 1.0),
    goal(SIBLING_DISK, Measure::Pause, Against::Limit, 1.0),
];

impl Measure {
    const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Total => "total",
            Self::Pause => "pause",
            Self::Again => "bytes of a page sent again",
        }
    }

    fn of(self, row: &Row<'_>) -> f64 {
        row.middle(match self {
            Self::Bytes => |run| run.wire_bytes as f64,
            Self::Total => |run| run.total_ms,
            Self::Pause => |run| run.downtime_ms,
            Self::Again => Run::again_bytes,
        })
    }
}

/// A goal beside what was measured.
#[derive(Debug, PartialEq)]
pub(super) struct Reached {
    pub(super) measure: Measure,
    /// The row, and what it is compared with.
    pub(super) of: &'static str,
    pub(super) against: String,
    /// The one as a share of the other.
    pub(super) ratio: f64,
    /// The goal.
    pub(super) most: f64,
}

impl Reached {
    pub(super) fn verdict(&self) -> &'static str {
        match self.ratio <= self.most {
            true => "reached",
            false => "missed",
        }
    }

    /// As a row of a Markdown table.
    pub(super) fn markdown(&self, case: &str) -> String {
        format!(
            "| {case} | {} | {} | {} | {:.2} | {:.2} | {} |",
            self.measure.name(),
            self.of,
            self.against,
            self.ratio,
            self.most,
            self.verdict()
        )
    }
}

impl fmt::Display for Reached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} of {} / {}: {:.2}, the goal is {:.2}: {}",
            self.measure.name(),
            self.of,
            self.against,
            self.ratio,
            self.most,
            self.verdict()
        )
    }
}

/// The goals that the rows of one case say something about: both sides were measured, and ended.
pub(super) fn reached(case: &str, rows: &[Row<'_>]) -> Vec<Reached> {
    let judge = |goal: &Goal| {
        let row = rows.iter().find(|row| row.name == goal.of)?;
        let (against, other) = goal.other(case, row, rows)?;
        let ratio = goal.measure.of(row) / other;
        // Where nothing was sent again there is no ratio.
        (row.is_completed() && ratio.is_finite()).then_some(Reached {
            measure: goal.measure,
            of: goal.of,
            against,
            ratio,
            most: goal.most,
        })
    };
    GOALS.iter().filter_map(judge).collect()
}

impl Goal {
    /// Name and measure of what a row is compared with.
    fn other(&self, case: &str, row: &Row<'_>, rows: &[Row<'_>]) -> Option<(String, f64)> {
        match self.against {
            Against::Ram => Some(("RAM".into(), row.middle(|run: &Run| run.ram_bytes as f64))),
            Against::Row(name) => {
                let other = rows.iter().find(|row| row.name == name)?;
                // One that was given up when its time was over would have taken longer still.
                let counts = other.is_completed()
                    || self.measure == Measure::Total && other.is_out_of_time();
                counts.then(|| (name.to_owned(), self.measure.of(other)))
            }
            Against::BestPeer => {
                let peers = rows.iter().filter(|row| {
                    row.is_completed()
                        && row.name.starts_with("qemu-")
                        && row.name != YARDSTICK_CUBIC
                });
                let named = peers.map(|row| (row.name.clone(), self.measure.of(row)));
                named.min_by(|one, other| one.1.total_cmp(&other.1))
            }
            Against::Limit => {
                // The link is the first word of a case.
                let road = Road::parse(case.split(' ').next()?).ok()?;
                let limit_ms = PAUSE_MS + 2.0 * road.rtt_us() as f64 / 1000.0;
                Some((format!("{limit_ms:.0} ms"), limit_ms))
            }
        }
    }
}
