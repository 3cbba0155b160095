//! One scenario: moved for real between two nodes, or by the simulation.

use std::collections::BTreeMap;

use dwcp_api::{RunResult, TransferSettings};
use dwcp_controlplane::profile;
use dwcp_sim::{Shape, run_shaped};
use dwcp_testbed::link::VethLink;
use serde::Serialize;

use super::super::run::move_once;
use super::definition::{Link, Matrix, Medium, Scenario};
use crate::failure::Failure;

/// What a real move took.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measured {
    pub(super) total_ms: f64,
    pub(super) downtime_ms: f64,
    pub(super) wire_bytes: u64,
    /// Of both data planes.
    pub(super) cpu_s: f64,
    pub(super) rounds: u32,
    pub(super) result: RunResult,
    /// The whole-RAM proof held, and the guest found its memory whole where it is now.
    pub(super) verified: bool,
}

/// Where the guests of simulated runs were in the end. No times: the simulation has no speed.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Outcomes {
    pub(super) seeds: u64,
    pub(super) guests: BTreeMap<String, u64>,
    /// Broken invariants: seed, which, what was found.
    pub(super) broken: Vec<(u64, String, String)>,
}

/// Links that stand, by name.
#[derive(Debug, Default)]
pub(super) struct Links {
    up: BTreeMap<String, VethLink>,
}

impl Links {
    fn get(&mut self, link: &Link) -> Result<Option<&VethLink>, Failure> {
        if link.medium == Medium::Loopback {
            return Ok(None);
        }
        if !self.up.contains_key(&link.name) {
            let made = VethLink::up().map_err(Failure::other)?;
            if link.rate_mbit_per_s > 0 {
                made.shape(link.rate_mbit_per_s, link.one_way_delay_ms)
                    .map_err(Failure::other)?;
            }
            self.up.insert(link.name.clone(), made);
        }
        Ok(self.up.get(&link.name))
    }
}

/// The settings for a link.
///
/// # Errors
/// Of the profile, or of a change.
pub(super) fn settings(link: &Link, changes: &[String]) -> Result<TransferSettings, Failure> {
    let base = profile::load(&link.profile)?;
    let changes = link.set.iter().chain(changes).map(String::as_str);
    Ok(profile::with_changes(&base, changes)?)
}

/// Moves the guest. How it ended is for the caller to judge.
pub(super) fn for_real(
    scenario: &Scenario<'_>,
    links: &mut Links,
    changes: &[String],
) -> Result<Measured, Failure> {
    let settings = settings(scenario.link, changes)?;
    let link = links.get(scenario.link)?;
    let moved = move_once(scenario.guest_spec(), &settings, link.map(Into::into))?;
    let report = moved.report;
    // A guest that stayed has nothing to prove but its memory.
    let proven = report.verified || report.result == RunResult::Aborted;
    Ok(Measured {
        total_ms: report.total_ms,
        downtime_ms: report.downtime_ms,
        wire_bytes: report.wire_bytes,
        cpu_s: moved.dataplane_cpu_s,
        rounds: report.rounds,
        result: report.result,
        verified: proven && report.guest_verified == Some(true),
    })
}

impl Measured {
    /// Whether the scenario may end so, and the words for it.
    pub(super) fn judge(&self, matrix: &Matrix, scenario: &Scenario<'_>) -> (bool, String) {
        let result = crate::show::result(self.result);
        let verified = match self.verified {
            true => "verified",
            false => "NOT VERIFIED",
        };
        let words = format!("{result}, {verified}");
        match matrix.may_end(scenario, self.result) {
            Some("") if self.verified => (true, words),
            Some(why) if self.verified => (true, format!("{words}: {why}")),
            _ => (false, format!("WRONG: {words}")),
        }
    }
}

/// Runs the scenario's protocol over `seeds` seeds, other ones for each scenario.
pub(super) fn simulated(scenario: &Scenario<'_>, seeds: u64) -> Outcomes {
    let shape = Shape {
        one_way_delay_ms: scenario.link.one_way_delay_ms,
        rewritten_per_mille_per_s: scenario.guest.rewritten_per_mille_per_s,
    };
    let first = scenario.number as u64 * seeds;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    let summary = run_shaped(first, seeds, jobs as u64, shape);
    Outcomes {
        seeds: summary.seeds,
        guests: summary.stats.guests,
        broken: summary.failures,
    }
}

impl Outcomes {
    pub(super) fn words(&self) -> String {
        let guests: Vec<_> = self
            .guests
            .iter()
            .map(|(place, count)| format!("{place} {count}"))
            .collect();
        let broken = match self.broken.first() {
            None => "all invariants hold".to_owned(),
            Some((seed, invariant, what)) => format!("BROKEN {invariant}, seed {seed}: {what}"),
        };
        let guests = guests.join("; ");
        format!("{broken} in {} runs under faults: {guests}", self.seeds)
    }
}
