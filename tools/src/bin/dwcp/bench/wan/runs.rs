//! One guest moved over one link, by DWCP or by QEMU.

use std::path::Path;
use std::time::Duration;

use dwcp_api::{DowntimePartsMs, PageCounts, RoundReport, RunResult, TransferSettings};
use dwcp_qmp::MigrationStatus;
use dwcp_testbed::Kind;
use dwcp_testbed::guests::{GuestKind, GuestOptions, WorkloadGuest, workload_disk};
use dwcp_testbed::peers::{Again, PeerError, PeerOptions, PeerSystem, run_peer};
use dwcp_testbed::wire::Backing;
use dwcp_tools::lab::{GuestChoice, GuestSpec, Lab, LabError, MovedGuest, RunSpec};
use dwcp_wan::link::Link;
use serde::{Deserialize, Serialize};

use super::{Args, Case, Held};
use crate::bench::run::rate;
use crate::failure::Failure;

/// Seed of the guest that is moved, and of the one that left the destination before.
pub(super) const SEEDS: [u32; 2] = [1, 2];

const GIVEN_UP: &str = "given up";

/// One move.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Run {
    pub(super) system: String,
    /// The link, and the workload if there is one.
    pub(super) case: String,
    /// What the destination had before; nothing when it is empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(super) held: String,
    /// `completed`, or why not.
    pub(super) result: String,
    pub(super) total_ms: f64,
    pub(super) downtime_ms: f64,
    /// Of DWCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) downtime_parts_ms: Option<DowntimePartsMs>,
    /// Of DWCP.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) pages: Option<PageCounts>,
    pub(super) wire_bytes: u64,
    /// Pages of the rounds after the first, of DWCP and of QEMU with xbzrle.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) again: Option<Again>,
    pub(super) bytes_per_s: f64,
    pub(super) cpu_s: f64,
    pub(super) ram_bytes: u64,
    /// The guest found its memory whole; a workload goes on.
    pub(super) guest_verified: bool,
}

impl Run {
    /// The system, and what it found at the destination.
    pub(super) fn name(&self) -> String {
        match self.held.as_str() {
            "" => self.system.clone(),
            held => format!("{}, {held} held", self.system),
        }
    }

    /// Of a page that had been sent before.
    pub(super) fn again_bytes(&self) -> f64 {
        let again = self.again.filter(|again| again.pages > 0);
        again.map_or(f64::NAN, |again| again.bytes as f64 / again.pages as f64)
    }

    /// It was still going when it was given up.
    pub(super) fn is_out_of_time(&self) -> bool {
        self.result.starts_with(GIVEN_UP)
    }

    pub(super) fn is_completed(&self) -> bool {
        self.result == "completed"
    }
}

fn guest_spec(args: &Args, case: &Case<'_>, seed: u32) -> GuestSpec {
    if let Some(workload) = case.workload {
        return GuestSpec::of_workload(WorkloadGuest { workload, seed });
    }
    GuestSpec {
        choice: GuestChoice::Linux,
        ram_mib: args.size_mib,
        fill_mib: args.fill_mib(),
        hot_mib: args.hot_mib(),
        dirty_pages_per_s: args.dirty_rate,
        checked_pages_per_s: GuestOptions::default().verify_rate,
        kind: Kind::Text,
        backing: Backing::Fresh,
    }
}

/// There, and back where the destination had nothing.
pub(super) fn by_dwcp(
    args: &Args,
    settings: &TransferSettings,
    case: &Case<'_>,
    held: Held,
    link: &Link,
    done: &mut dyn FnMut(Run),
) -> Result<(), Failure> {
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let folder = folder.path();
    let spec = |seed| RunSpec {
        guest: guest_spec(args, case, seed),
        settings: settings.clone(),
    };
    let [own, other] = SEEDS.map(spec);
    let mut lab =
        Lab::start_over(&own, folder, Some(link.into()), &mut |_| {}).map_err(Failure::other)?;
    lab.limit = Duration::from_secs(args.timeout_s);
    hold(&mut lab, held, &other, &folder.join("sibling")).map_err(Failure::other)?;
    let mut go = |lab: &mut Lab, system: &str| -> Result<bool, Failure> {
        let moved = lab.run(settings, &mut |_| {}, &mut |_| {});
        let moved = moved.map_err(Failure::other)?;
        let run = of_dwcp(system, case, held, &moved);
        let completed = run.is_completed();
        done(run);
        Ok(completed)
    };
    if !go(&mut lab, "dwcp")? || held != Held::None {
        return Ok(());
    }
    // It works there: what it changes meanwhile is what the way back costs.
    std::thread::sleep(Duration::from_secs(args.stay_s));
    let again = folder.join("again");
    std::fs::create_dir_all(&again).map_err(Failure::other)?;
    lab.turn_round(&own, &again).map_err(Failure::other)?;
    go(&mut lab, "dwcp-back").map(drop)
}

fn hold(lab: &mut Lab, held: Held, sibling: &RunSpec, folder: &Path) -> Result<(), LabError> {
    if held.has_disk() {
        lab.hold_image(&workload_disk()?)?;
    }
    if held.has_sibling() {
        lab.hold_sibling(sibling, folder)?;
    }
    Ok(())
}

fn of_dwcp(system: &str, case: &Case<'_>, held: Held, moved: &MovedGuest) -> Run {
    let report = &moved.report;
    Run {
        system: system.to_owned(),
        case: case.name(),
        held: held.name().to_owned(),
        result: match report.result {
            RunResult::Completed => "completed".into(),
            _ => report.reason.clone(),
        },
        total_ms: report.total_ms,
        downtime_ms: report.downtime_ms,
        downtime_parts_ms: Some(report.downtime_parts_ms),
        pages: Some(report.pages),
        wire_bytes: report.wire_bytes,
        again: sent_again(&report.round_reports),
        bytes_per_s: rate(report.ram_bytes, report.total_ms),
        cpu_s: moved.cpu_s,
        ram_bytes: report.ram_bytes,
        guest_verified: report.guest_verified == Some(true),
    }
}

fn sent_again(rounds: &[RoundReport]) -> Option<Again> {
    let mut again = Again { pages: 0, bytes: 0 };
    for round in rounds.iter().filter(|round| round.round > 0) {
        let classes = &round.classes;
        again.pages += classes.delta + classes.compressed + classes.raw + classes.unchanged;
        again.bytes += round.wire_bytes;
    }
    (again.pages > 0).then_some(again)
}

/// QEMU's own migration of the same guest.
pub(super) fn by_qemu(
    args: &Args,
    system: PeerSystem,
    case: &Case<'_>,
    link: &Link,
) -> Result<Run, Failure> {
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let within = |side: usize| -> Vec<String> {
        let words = ["ip", "netns", "exec", &link.namespaces[side]];
        words.map(str::to_owned).to_vec()
    };
    let guest = guest_spec(args, case, SEEDS[0]);
    let options = PeerOptions {
        guest: GuestKind::Linux,
        memory_mib: guest.ram_mib,
        workload: match guest.choice {
            GuestChoice::Workload(guest) => Some(guest),
            _ => None,
        },
        load: guest.options(),
        timeout: Duration::from_secs(args.timeout_s),
        address: link.addresses[1].clone(),
        source_prefix: within(0),
        destination_prefix: within(1),
        ..PeerOptions::new(folder.path())
    };
    let ram_bytes = guest.ram_mib << 20;
    match run_peer(system, &options) {
        Ok(run) => Ok(Run {
            system: run.system.to_owned(),
            case: case.name(),
            held: String::new(),
            result: "completed".into(),
            total_ms: run.total_ms,
            downtime_ms: run.downtime_ms,
            downtime_parts_ms: None,
            pages: None,
            wire_bytes: run.wire_bytes,
            again: run.again,
            bytes_per_s: rate(run.ram_bytes, run.total_ms),
            cpu_s: run.cpu_s,
            ram_bytes,
            guest_verified: run.guest_verified,
        }),
        Err(PeerError::NotCompleted {
            status,
            after,
            detail,
            wire_bytes,
            cpu_s,
        }) => Ok(Run {
            system: system.name().to_owned(),
            case: case.name(),
            held: String::new(),
            result: match status {
                MigrationStatus::Active => {
                    format!("{GIVEN_UP} after {} s: {detail}", after.as_secs())
                }
                _ => format!("{status:?} after {} s: {detail}", after.as_secs()),
            },
            total_ms: after.as_secs_f64() * 1e3,
            downtime_ms: 0.0,
            downtime_parts_ms: None,
            pages: None,
            wire_bytes,
            again: None,
            bytes_per_s: 0.0,
            cpu_s,
            ram_bytes,
            guest_verified: false,
        }),
        Err(error) => Err(Failure::other(error)),
    }
}
