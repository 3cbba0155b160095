//! `dwcp bench faults`: kill a process at a seeded moment of a migration, restart it as a service
//! manager would, and see where the guest is.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{Duration, Instant};

use dwcp_api::{MigrationId, PhaseName};
use dwcp_controlplane::profile;
use dwcp_testbed::Kind;
use dwcp_testbed::guests::GuestOptions;
use dwcp_testbed::wire::Backing;
use dwcp_tools::lab::{GuestChoice, GuestSpec, Lab, Plane, RunSpec};
use serde::Serialize;

use super::draws::Draws;
use super::machine::Machine;
use super::numbers::{size_mib, some};
use super::run::move_once;
use super::whereabouts::{Where, find};
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str =
    "One seed decides victim and moment; --seed N --points 1 repeats one. The moment \
is drawn over a whole migration, measured before the first point, or over its switchover.

Examples:
  dwcp bench faults --points 200
  dwcp bench faults --guest synthetic --points 500 --json
  dwcp bench faults --seed 17 --points 1";

/// `dwcp bench faults`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Points: one migration and one kill each.
    #[arg(long, default_value_t = 20, value_parser = some::<u64>)]
    points: u64,
    /// First seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The guest.
    #[arg(long, value_enum, default_value_t = Guest::Qemu)]
    guest: Guest,
    /// RAM of the guest, MiB.
    #[arg(long, default_value_t = 128, value_parser = size_mib)]
    size_mib: u64,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Guest {
    Synthetic,
    Qemu,
    Linux,
}

/// Whom a point kills.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Victim {
    SourceDataPlane,
    SourceControlPlane,
    DestinationDataPlane,
    DestinationControlPlane,
    DestinationVmm,
}

const VICTIMS: [Victim; 5] = [
    Victim::SourceDataPlane,
    Victim::SourceControlPlane,
    Victim::DestinationDataPlane,
    Victim::DestinationControlPlane,
    Victim::DestinationVmm,
];

#[derive(Clone, Debug, Serialize)]
struct Point {
    seed: u64,
    victim: Victim,
    phase: String,
    after_ms: f64,
    found: Where,
    memory: Option<String>,
    good: bool,
    note: String,
}

#[derive(Debug, Serialize)]
struct Record {
    schema: &'static str,
    machine: Machine,
    points: Vec<Point>,
}

/// After the killed daemon is back, the guest must run somewhere within this time.
const SETTLE_TIME: Duration = Duration::from_secs(45);

/// Moments of the switchover are drawn from this span after it was first seen.
const SWITCHOVER_SPAN: Duration = Duration::from_millis(40);

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let spec = spec(args)?;
    let usual_ms = usual_ms(&spec)?;
    eprintln!(
        "a migration takes {usual_ms:.0} ms here; {} points",
        args.points
    );
    let mut points = vec![];
    for seed in args.seed..args.seed + args.points {
        let point = one(&spec, seed, usual_ms)?;
        eprintln!(
            "seed {seed}: {:?} killed in {} after {:.0} ms: {:?} {}{}",
            point.victim,
            point.phase,
            point.after_ms,
            point.found,
            if point.good { "good" } else { "BAD " },
            if point.good { "" } else { &point.note }
        );
        points.push(point);
    }
    let record = Record {
        schema: "dwcp.bench.faults/1",
        machine: Machine::here(),
        points,
    };
    context.print(&record, || table(&record))?;
    let bad = record.points.iter().filter(|point| !point.good).count();
    if bad == 0 {
        return Ok(());
    }
    Err(Failure::other(anyhow::anyhow!("{bad} points ended badly")))
}

fn spec(args: &Args) -> Result<RunSpec, Failure> {
    let settings = profile::with_changes(
        &profile::load("datacenter")?,
        ["timeouts.peer_silence=3s", "timeouts.connect=2s"],
    )?;
    let choice = match args.guest {
        Guest::Synthetic => GuestChoice::Synthetic,
        Guest::Qemu => GuestChoice::Qemu,
        Guest::Linux => GuestChoice::Linux,
    };
    let fill_mib = args.size_mib * 55 / 100;
    let guest = GuestSpec {
        choice,
        ram_mib: args.size_mib,
        fill_mib,
        hot_mib: 16.min(fill_mib),
        dirty_pages_per_s: 1000,
        checked_pages_per_s: GuestOptions::default().verify_rate,
        kind: Kind::Text,
        backing: Backing::Fresh,
    };
    Ok(RunSpec { guest, settings })
}

fn usual_ms(spec: &RunSpec) -> Result<f64, Failure> {
    let moved = move_once(spec.guest, &spec.settings, None)?;
    Ok(moved.report.total_ms)
}

fn one(spec: &RunSpec, seed: u64, usual_ms: f64) -> Result<Point, Failure> {
    let mut draws = Draws::of(seed);
    let victim = VICTIMS[draws.below(VICTIMS.len() as u64) as usize];
    let share = draws.share();
    // The switchover is short and matters most: half of the moments are counted from its start.
    let in_switchover = draws.below(2) == 0;
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let mut lab = Lab::start(spec, folder.path(), &mut |_| {}).map_err(Failure::other)?;
    let began = Instant::now();
    let id = lab.migrate(&spec.settings).map_err(Failure::other)?;
    if in_switchover {
        wait_for_switchover(&mut lab, id);
        std::thread::sleep(Duration::from_secs_f64(
            share * SWITCHOVER_SPAN.as_secs_f64(),
        ));
    } else {
        let moment = Duration::from_secs_f64(usual_ms * share / 1000.0);
        std::thread::sleep(moment.saturating_sub(began.elapsed()));
    }
    let phase = lab
        .status(id)
        .map_or_else(|_| "unknown".into(), |s| phase_text(s.phase));
    kill(&mut lab, victim);
    let after_ms = began.elapsed().as_secs_f64() * 1000.0;
    lab.a.revive().map_err(Failure::other)?;
    lab.b.revive().map_err(Failure::other)?;
    let found = find(&mut lab, victim == Victim::DestinationVmm, SETTLE_TIME)?;
    Ok(Point {
        seed,
        victim,
        phase,
        after_ms,
        good: found.is_good(),
        found: found.at,
        memory: found.memory,
        note: found.journals,
    })
}

fn wait_for_switchover(lab: &mut Lab, id: MigrationId) {
    use PhaseName::{Negotiate, Precopy, Setup};
    while let Ok(status) = lab.status(id) {
        if !matches!(status.phase, Negotiate | Setup | Precopy) {
            return;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
}

fn phase_text(phase: PhaseName) -> String {
    format!("{phase:?}").to_lowercase()
}

fn kill(lab: &mut Lab, victim: Victim) {
    match victim {
        Victim::SourceDataPlane => lab.a.kill(Plane::Data),
        Victim::SourceControlPlane => lab.a.kill(Plane::Control),
        Victim::DestinationDataPlane => lab.b.kill(Plane::Data),
        Victim::DestinationControlPlane => lab.b.kill(Plane::Control),
        Victim::DestinationVmm => lab.guest.kill_destination(),
    }
}

fn table(record: &Record) -> String {
    let mut rows: BTreeMap<(Victim, &str), BTreeMap<Where, u32>> = BTreeMap::new();
    for point in &record.points {
        let row = rows.entry((point.victim, &point.phase)).or_default();
        *row.entry(point.found).or_default() += 1;
    }
    let mut out = format!("{}\n\n", record.machine.line());
    out.push_str("killed                     in phase     guest found at\n");
    for ((victim, phase), found) in rows {
        let found: Vec<_> = found.iter().map(|(at, n)| format!("{at:?} {n}")).collect();
        let _ = writeln!(
            out,
            "{:<26} {phase:<12} {}",
            format!("{victim:?}"),
            found.join(", ")
        );
    }
    let good = record.points.iter().filter(|point| point.good).count();
    let _ = writeln!(out, "\n{good} of {} points good", record.points.len());
    out
}
