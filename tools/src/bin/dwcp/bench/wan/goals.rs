//! What DWCP's bytes are to be, and what they are. To be read, not passed: one link says little about
//! another, and one workload less.

use super::table::{Row, YARDSTICK};

/// A share of something else's bytes that is not to be exceeded.
struct Goal {
    /// The system's row.
    of: &'static str,
    /// The row that it is compared with; the guest's RAM when there is none.
    against: Option<&'static str>,
    most: f64,
}

const GOALS: [Goal; 5] = [
    Goal {
        of: "dwcp",
        against: None,
        most: 0.30,
    },
    Goal {
        of: "dwcp",
        against: Some(YARDSTICK),
        most: 0.85,
    },
    Goal {
        of: "dwcp, sibling held",
        against: Some(YARDSTICK),
        most: 0.70,
    },
    Goal {
        of: "dwcp, sibling and disk held",
        against: Some(YARDSTICK),
        most: 0.35,
    },
    Goal {
        of: "dwcp-back",
        against: Some("dwcp"),
        most: 0.12,
    },
];

/// A goal beside what was measured.
#[derive(Debug, PartialEq)]
pub(super) struct Reached {
    /// The row, and what its bytes are compared with.
    pub(super) what: [&'static str; 2],
    /// Its bytes as a share of the other's.
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
}

/// The goals that the rows of one case say something about: both sides were measured, and ended.
pub(super) fn reached(rows: &[Row<'_>]) -> Vec<Reached> {
    let completed = |name: &str| {
        let row = rows.iter().find(|row| row.name == name)?;
        row.is_completed().then_some(row)
    };
    let judge = |goal: &Goal| {
        let row = completed(goal.of)?;
        let other = match goal.against {
            Some(name) => completed(name)?.middle(|run| run.wire_bytes as f64),
            None => row.middle(|run| run.ram_bytes as f64),
        };
        Some(Reached {
            what: [goal.of, goal.against.unwrap_or("RAM")],
            ratio: row.middle(|run| run.wire_bytes as f64) / other,
            most: goal.most,
        })
    };
    GOALS.iter().filter_map(judge).collect()
}
