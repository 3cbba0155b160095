//! The record of a matrix, a row for each scenario, and its table.

use std::fmt::Write;

use serde::Serialize;

use super::super::run::Record;
use super::definition::Scenario;
use super::here::Class;
use super::run::{Measured, Outcomes};
use crate::failure::Failure;

/// One scenario.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Row {
    pub(super) number: usize,
    /// `guest/size/link`.
    pub(super) name: String,
    /// The guest; what a report has a line for.
    system: String,
    /// Size and link; what a report has a table for.
    case: String,
    ram_bytes: u64,
    /// `run`, `simulated`, `refused` or `not run`.
    pub(super) class: &'static str,
    /// Why it is not run.
    why: Option<String>,
    /// How it ended; where it is not run, the class and why.
    pub(super) outcome: String,
    /// Whether it may end so; `None` where nothing was done.
    pub(super) good: Option<bool>,
    #[serde(flatten)]
    measured: Option<Measured>,
    simulation: Option<Outcomes>,
}

impl Row {
    fn new(scenario: &Scenario<'_>, class: &'static str, outcome: String) -> Self {
        Self {
            number: scenario.number,
            name: scenario.name(),
            system: scenario.guest.name.clone(),
            case: scenario.case(),
            ram_bytes: scenario.ram.mib << 20,
            class,
            why: None,
            outcome,
            good: None,
            measured: None,
            simulation: None,
        }
    }

    /// What would become of it.
    pub(super) fn listed(scenario: &Scenario<'_>, class: &Class) -> Self {
        let (name, why) = match class {
            Class::Run => ("run", None),
            Class::Simulated(why) => ("simulated", Some(why.clone())),
            Class::Refused(why) => ("refused", Some(why.clone())),
        };
        Self {
            why,
            ..Self::new(scenario, name, class.words())
        }
    }

    pub(super) fn not_run(scenario: &Scenario<'_>, why: &str) -> Self {
        Self {
            why: Some(why.to_owned()),
            ..Self::new(scenario, "not run", format!("not run: {why}"))
        }
    }

    pub(super) fn measured(
        scenario: &Scenario<'_>,
        measured: Measured,
        (good, words): (bool, String),
    ) -> Self {
        Self {
            good: Some(good),
            measured: Some(measured),
            ..Self::new(scenario, "run", words)
        }
    }

    pub(super) fn broken(scenario: &Scenario<'_>, failure: &Failure) -> Self {
        Self {
            good: Some(false),
            ..Self::new(scenario, "run", format!("WRONG: {}", failure.text()))
        }
    }

    pub(super) fn simulated(scenario: &Scenario<'_>, why: &str, outcomes: Outcomes) -> Self {
        let words = format!("simulated, {why}: {}", outcomes.words());
        Self {
            good: Some(outcomes.broken.is_empty()),
            why: Some(why.to_owned()),
            simulation: Some(outcomes),
            ..Self::new(scenario, "simulated", words)
        }
    }
}

/// The table, and how many of each class.
pub(super) fn text(record: &Record<Row>) -> String {
    let mut out = format!("{}\n\n", record.machine.line());
    let is_measured = record.runs.iter().any(|row| row.measured.is_some());
    let figures = |row: Option<&Measured>| match row {
        _ if !is_measured => String::new(),
        Some(measured) => measured.figures(),
        None => " ".repeat(HEADS.len()),
    };
    let heads = if is_measured { HEADS } else { "" };
    let _ = writeln!(out, "{:>3}  {:<32}{heads}  outcome", "no", "scenario");
    for row in &record.runs {
        let (number, name, outcome) = (row.number, &row.name, &row.outcome);
        let figures = figures(row.measured.as_ref());
        let _ = writeln!(out, "{number:>3}  {name:<32}{figures}  {outcome}");
    }
    let counts: Vec<_> = ["run", "simulated", "refused", "not run"]
        .into_iter()
        .map(|class| {
            let rows = record.runs.iter().filter(|row| row.class == class);
            format!("{} {class}", rows.count())
        })
        .collect();
    let total = record.runs.len();
    let _ = writeln!(out, "\n{total} scenarios: {}", counts.join(", "));
    out
}

const HEADS: &str = "  total ms  pause ms   wire MiB   CPU s";

impl Measured {
    /// Below [`HEADS`].
    fn figures(&self) -> String {
        const MIB: f64 = 1_048_576.0;
        format!(
            "{:>10.0}{:>10.1}{:>11.1}{:>8.2}",
            self.total_ms,
            self.downtime_ms,
            self.wire_bytes as f64 / MIB,
            self.cpu_s
        )
    }
}
