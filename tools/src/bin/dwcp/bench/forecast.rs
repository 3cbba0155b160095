//! `dwcp bench forecast`: what is foretold when all of RAM was sent once, beside what then comes.

use std::fmt::Write;

use dwcp_api::{MigrationReport, NotConverged, RoundReport, RunResult, TransferSettings};
use dwcp_controlplane::profile;
use dwcp_simd::PAGE_BYTES;
use dwcp_tools::lab::{GuestSpec, Lab, RunSpec};
use serde::Serialize;

use super::numbers::some;
use super::run::{Guest, Record, by_case, leaving_bytes_per_s};
use super::wan::Road;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "A guest rewrites pages of its hot memory at a multiple of the rate at which pages leave. Hot \
memory grows from run to run, from what fits the pause several times over to what never does: the guest \
converges, or it does not and the migration is ended. What was foretold after round 0 is right if that is \
what came.

Examples:
  dwcp bench forecast
  dwcp bench forecast --link 400mbit,2ms --points 25
  dwcp bench forecast --multiple 0.5,5 --points 3 --json > forecast.json";

/// Hot memory is these parts of what leaves within the limit of the pause.
const HOT_PARTS: [f64; 8] = [0.25, 0.4, 0.55, 0.7, 1.5, 2.0, 3.0, 4.0];

/// Rounds until a guest is said not to converge.
const ROUNDS_MAX: u32 = 8;

/// `dwcp bench forecast`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Pages rewritten, as a multiple of those that leave.
    #[arg(long, default_value = "0.5,1,2,5", value_delimiter = ',')]
    multiple: Vec<f64>,
    /// The guest.
    #[arg(long, value_enum, default_value_t = Guest::Synthetic)]
    guest: Guest,
    /// Migrations for each of them.
    #[arg(long, default_value_t = 8, value_parser = some::<usize>)]
    points: usize,
    /// Rate, round-trip time, loss each way, instead of a limit; needs root.
    #[arg(long, value_name = "RATE,RTT[,LOSS]", value_parser = Road::parse)]
    link: Option<Road>,
    /// Limit at which pages leave over loopback, Mbit/s. It does not hold in the pause.
    #[arg(long, default_value_t = 400, value_parser = clap::value_parser!(u32).range(50..=10_000))]
    rate_mbit: u32,
    /// RAM of the guest, MiB, three quarters of it data.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(64..=4096))]
    size_mib: u64,
    /// Change a key of the datacenter profile; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

/// One migration.
#[derive(Clone, Debug, Serialize)]
struct Run {
    system: &'static str,
    case: String,
    hot_bytes: u64,
    dirty_pages_per_s: u64,
    /// After round 0.
    foretold_converges: bool,
    foretold_ms: f64,
    foretold_ms_p90: f64,
    foretold_downtime_ms: f64,
    converges: bool,
    /// From the forecast until the pause.
    ms: f64,
    downtime_ms: f64,
    downtime_limit_ms: f64,
    /// The longest time between two turns of the guest's loop, by a clock that goes on in the pause.
    guest_gap_ms: Option<u64>,
    rounds: u32,
    right: bool,
    /// How it ended.
    reason: String,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let base = profile::load("datacenter")?;
    let changes = args.changes.iter().map(String::as_str);
    let settings = TransferSettings {
        bandwidth_limit_mbit: match args.link {
            Some(_) => 0,
            None => args.rate_mbit,
        },
        if_not_converged: NotConverged::Abort,
        rounds_max: ROUNDS_MAX,
        ..profile::with_changes(&base, changes)?
    };
    let mut runs = vec![];
    for &multiple in &args.multiple {
        for point in 0..args.points {
            let part = HOT_PARTS[point % HOT_PARTS.len()];
            let run = one(args, &settings, multiple, part)?;
            eprintln!("{}", line(&run));
            runs.push(run);
        }
    }
    let record = Record::here("dwcp.bench.forecast/1", runs);
    context.print(&record, || by_case(&record, |run| &run.case, table))
}

fn one(args: &Args, settings: &TransferSettings, multiple: f64, part: f64) -> Result<Run, Failure> {
    let bytes_per_s = leaving_bytes_per_s(args.link.as_ref(), args.rate_mbit);
    let in_pause = bytes_per_s * f64::from(settings.downtime_limit_ms) / 1e3;
    let hot_mib = ((in_pause * part / f64::from(1 << 20)).round() as u64).max(1);
    let rate = (bytes_per_s * multiple / PAGE_BYTES as f64) as u64;
    let spec = RunSpec {
        settings: settings.clone(),
        guest: guest(args, hot_mib.min(args.size_mib / 2), rate),
    };
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let up = args.link.as_ref().map(|road| road.up(1, "bbr"));
    let link = up.transpose()?;
    let ends = link.as_ref().map(|link| (&**link).into());
    let lab = Lab::start_over(&spec, folder.path(), ends, &mut |_| {});
    let mut lab = lab.map_err(Failure::other)?;
    let moved = lab.run(settings, &mut |_| {}, &mut |_| {});
    let report = moved.map_err(Failure::other)?.report;
    let status = lab.status(report.id).map_err(Failure::other)?;
    let live = live_rounds(&status.rounds);
    let there = report.result == RunResult::Completed;
    let gap = lab.guest.longest_gap_ms(there).map_err(Failure::other)?;
    let run = run_of(args, &spec, multiple, &report, live).map(|run| Run {
        guest_gap_ms: gap,
        ..run
    });
    run.ok_or_else(|| Failure::other(anyhow::anyhow!("nothing was foretold: {}", report.reason)))
}

fn guest(args: &Args, hot_mib: u64, dirty_pages_per_s: u64) -> GuestSpec {
    let ram_mib = args.size_mib;
    GuestSpec {
        choice: args.guest.choice(),
        hot_mib,
        dirty_pages_per_s,
        ..GuestSpec::incompressible(ram_mib, ram_mib * 3 / 4)
    }
}

/// Rounds between the forecast, behind the first one, and the pause, in which the last one is.
fn live_rounds(rounds: &[RoundReport]) -> &[RoundReport] {
    let behind_first = rounds.get(1..).unwrap_or_default();
    behind_first.split_last().map_or(&[], |(_, live)| live)
}

fn run_of(
    args: &Args,
    spec: &RunSpec,
    multiple: f64,
    report: &MigrationReport,
    live: &[RoundReport],
) -> Option<Run> {
    let ahead = report.forecast.filter(|ahead| ahead.after_round == 0)?;
    let limit_ms = f64::from(spec.settings.downtime_limit_ms);
    let converges = report.result == RunResult::Completed;
    let link = args.link.as_ref().map_or("limited", |road| &road.name);
    Some(Run {
        system: "dwcp",
        case: format!("{multiple} times as many pages are rewritten as leave, {link}"),
        hot_bytes: spec.guest.hot_mib << 20,
        dirty_pages_per_s: spec.guest.dirty_pages_per_s,
        foretold_converges: ahead.converges,
        foretold_ms: ahead.ms,
        foretold_ms_p90: ahead.ms_p90,
        foretold_downtime_ms: ahead.downtime_ms,
        converges,
        ms: live.iter().map(|round| round.ms + round.scan_ms).sum(),
        downtime_ms: report.downtime_ms,
        downtime_limit_ms: limit_ms,
        guest_gap_ms: None,
        rounds: report.rounds,
        right: ahead.converges == converges,
        reason: report.reason.clone(),
    })
}

fn line(run: &Run) -> String {
    format!(
        "{}, {} MiB hot: foretold {}, {:.0} to {:.0} ms, pause {:.0} ms; came {}, {:.0} ms, pause {:.0} ms, by the guest {} ms, {} rounds: {} ({})",
        run.case,
        run.hot_bytes >> 20,
        end(run.foretold_converges),
        run.foretold_ms,
        run.foretold_ms_p90,
        run.foretold_downtime_ms,
        end(run.converges),
        run.ms,
        run.downtime_ms,
        run.guest_gap_ms
            .map_or_else(|| "?".to_owned(), |gap| gap.to_string()),
        run.rounds,
        if run.right { "right" } else { "WRONG" },
        run.reason
    )
}

const fn end(converges: bool) -> &'static str {
    if converges { "converges" } else { "does not" }
}

fn share(runs: &[&Run], holds: impl Fn(&Run) -> bool) -> String {
    let held = runs.iter().filter(|run| holds(run)).count();
    format!("{held} of {}", runs.len())
}

fn table(runs: &[&Run]) -> String {
    let (mut there, mut out) = (runs.to_vec(), String::new());
    there.retain(|run| run.converges);
    let rows = [
        ("converged", share(runs, |run| run.converges)),
        ("foretold rightly", share(runs, |run| run.right)),
        (
            "pause within its limit",
            share(&there, |run| run.downtime_ms <= run.downtime_limit_ms),
        ),
        (
            "the same by the guest's clock",
            share(&there, |run| {
                run.guest_gap_ms
                    .is_some_and(|gap| gap as f64 <= run.downtime_limit_ms)
            }),
        ),
        (
            "paused no later than p90 + 0.1 s",
            share(&there, |run| run.ms <= run.foretold_ms_p90 + 100.0),
        ),
    ];
    for (what, held) in rows {
        let _ = writeln!(out, "  {what:<34} {held}");
    }
    out
}
