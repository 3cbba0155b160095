//! What the benches have in common: a record of runs, and one guest moved once.

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
