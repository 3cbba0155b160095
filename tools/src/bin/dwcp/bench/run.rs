//! What the benches have in common: a record of runs, and one guest moved once.

use std::fmt::Write;
use std::net::IpAddr;

use dwcp_api::{RunResult, TransferSettings};
use dwcp_tools::lab::{Ends, GuestChoice, GuestSpec, Lab, MovedGuest, RunSpec};
use serde::Serialize;

use super::machine::Machine;
use super::wan::Road;
use crate::failure::Failure;

/// Whom a bench moves, where it is not a bench of one kind.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Guest {
    /// A process that shares its memory.
    Synthetic,
    /// QEMU with the project's own kernel.
    Qemu,
}

impl Guest {
    pub(crate) const fn choice(self) -> GuestChoice {
        match self {
            Self::Synthetic => GuestChoice::Synthetic,
            Self::Qemu => GuestChoice::Qemu,
        }
    }
}

/// Bytes that leave in a second: the link's, or the limit's where there is none.
pub(crate) fn leaving_bytes_per_s(link: Option<&Road>, limit_mbit: u32) -> f64 {
    let limit = f64::from(limit_mbit) * 1e6 / 8.0;
    let of_link = link.and_then(Road::bytes_per_s);
    of_link.map_or(limit, |rate| rate as f64)
}

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

/// Moves a synthetic guest whose pages do not compress over so many equal links at once. As [`move_whole`].
pub(crate) fn move_incompressible(
    ram: (u64, u64),
    settings: &TransferSettings,
    (link, count): (&Road, u8),
    turn: u32,
) -> Result<(MovedGuest, f64), Failure> {
    let congestion_control = settings.congestion_control.as_deref().unwrap_or("cubic");
    let links = link.up_times(count, u64::from(turn), congestion_control)?;
    let further = links.iter().skip(1).map(|link| {
        let [a, b] = link.addresses.each_ref().map(|address| address.parse());
        Ok([a.map_err(Failure::other)?, b.map_err(Failure::other)?])
    });
    let further = further.collect::<Result<Vec<[IpAddr; 2]>, Failure>>()?;
    let ends = Ends::from(&*links[0]).with_further(&further);
    move_whole(ram, settings, ends, &link.name)
}

/// Moves a synthetic guest whose pages do not compress; it is to arrive whole. Returns the move, and the bytes of its
/// pages that were sent.
pub(crate) fn move_whole(
    (ram_mib, fill_mib): (u64, u64),
    settings: &TransferSettings,
    ends: Ends<'_>,
    name: &str,
) -> Result<(MovedGuest, f64), Failure> {
    let guest = GuestSpec::incompressible(ram_mib, fill_mib);
    let moved = move_once(guest, settings, Some(ends))?;
    let report = &moved.report;
    if report.result != RunResult::Completed || report.guest_verified != Some(true) {
        let why = anyhow::anyhow!("{name}: {} ({:?})", report.reason, moved.guest_says);
        return Err(Failure::other(why));
    }
    let pages = report.pages.raw + report.pages.compressed;
    let page_bytes = (pages * dwcp_simd::PAGE_BYTES as u64) as f64;
    Ok((moved, page_bytes))
}
