//! What the benches have in common: a record of runs, and one guest moved once.

use std::fmt::Write;

use dwcp_api::TransferSettings;
use dwcp_tools::lab::{Ends, GuestSpec, Lab, MovedGuest, RunSpec};
use serde::Serialize;

use super::machine::Machine;
use crate::failure::Failure;

/// Runs of one bench, with the machine that they were measured on.
#[derive(Debug, Serialize)]
pub(crate) struct Record<R> {
    /// `dwcp.bench.NAME/1`.
    pub(crate) schema: &'static str,
    /// The machine.
    pub(crate) machine: Machine,
    /// The runs, in order.
    pub(crate) runs: Vec<R>,
}

impl<R> Record<R> {
    /// A record of runs that were made here.
    pub(crate) fn here(schema: &'static str, runs: Vec<R>) -> Self {
        Self {
            schema,
            machine: Machine::here(),
            runs,
        }
    }
}

/// The cases of some runs, in the order in which they came.
pub(crate) fn cases<R>(runs: &[R], case_of: impl Fn(&R) -> &str) -> Vec<&str> {
    let mut cases: Vec<&str> = vec![];
    for case in runs.iter().map(case_of) {
        if !cases.contains(&case) {
            cases.push(case);
        }
    }
    cases
}

/// The machine, and `table` of the runs of each case, in the order in which they came.
pub(crate) fn by_case<R>(
    record: &Record<R>,
    case_of: impl Fn(&R) -> &str,
    table: impl Fn(&[&R]) -> String,
) -> String {
    let mut out = format!("{}\n", record.machine.line());
    for case in cases(&record.runs, &case_of) {
        let runs = record.runs.iter().filter(|run| case_of(run) == case);
        let runs: Vec<_> = runs.collect();
        let _ = write!(out, "\n{case}\n{}", table(&runs));
    }
    out
}

/// Guest RAM moved per second: what a person waits for.
pub(crate) fn rate(ram_bytes: u64, total_ms: f64) -> f64 {
    ram_bytes as f64 / (total_ms / 1000.0).max(1e-9)
}

/// Moves a new guest between two new nodes. How it ended is for the caller to judge.
pub(crate) fn move_once(
    guest: GuestSpec,
    settings: &TransferSettings,
    link: Option<Ends<'_>>,
) -> Result<MovedGuest, Failure> {
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let spec = RunSpec {
        guest,
        settings: settings.clone(),
    };
    let lab = Lab::start_over(&spec, folder.path(), link, &mut |_| {});
    lab.and_then(|mut lab| lab.run(settings, &mut |_| {}, &mut |_| {}))
        .map_err(Failure::other)
}
