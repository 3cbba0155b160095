//! `dwcp bench strategy`: a guest that outruns its link, moved by each strategy that there is for it, and whether
//! that keeps what it promises.

use std::fmt::Write;

use clap::ValueEnum as _;
use dwcp_api::{MigrationReport, NotConverged, RunResult, TransferSettings};
use dwcp_controlplane::profile;
use dwcp_simd::PAGE_BYTES;
use dwcp_tools::lab::GuestSpec;
use serde::Serialize;

use super::run::{Guest, Record, leaving_bytes_per_s, move_once};
use super::wan::Road;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "A guest rewrites its hot memory three times as fast as pages leave, and the hot memory takes \
longer than the pause may. What is to become of it is an operator's choice; each is tried, and what came is held \
against what it promises.

Examples:
  dwcp bench strategy
  dwcp bench strategy --guest qemu --times 5
  dwcp bench strategy --strategy throttle,post-copy --link 400mbit,2ms --json";

/// Hot memory takes so many times the limit of the pause.
const HOT_PAUSES: f64 = 3.0;

/// Pages rewritten, as a multiple of those that leave.
const REWRITTEN: f64 = 3.0;

/// Where a deadline is what counts.
const DEADLINE_MS: u32 = 6000;

/// What ends a migration at its deadline takes no longer, the guest's resume included.
const AFTER_DEADLINE_MS: f64 = 1000.0;

/// `dwcp bench strategy`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Strategies; all of them if none is given.
    #[arg(long, value_enum, value_delimiter = ',')]
    strategy: Vec<Strategy>,
    /// The guest.
    #[arg(long, value_enum, default_value_t = Guest::Synthetic)]
    guest: Guest,
    /// Migrations for each strategy.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    times: u32,
    /// Rate, round-trip time, loss each way, instead of a limit; needs root.
    #[arg(long, value_name = "RATE,RTT[,LOSS]", value_parser = Road::parse)]
    link: Option<Road>,
    /// Limit at which pages leave over loopback, Mbit/s. It does not hold in the pause.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(50..=10_000))]
    rate_mbit: u32,
    /// RAM of the guest, MiB, three quarters of it data.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u64).range(64..=4096))]
    size_mib: u64,
}

/// What an operator may choose for a guest that does not converge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Strategy {
    /// Some rounds, then it is given back.
    Patience,
    /// It is given back at a point in time.
    Deadline,
    /// It is paused for as long as it takes.
    SwitchOver,
    /// It is paused for longer than wanted, up to a limit.
    LastLimit,
    /// Its CPU time is taken until the pause fits.
    Throttle,
    /// It runs at the destination before its pages are there.
    PostCopy,
}

impl Strategy {
    const fn promise(self) -> &'static str {
        match self {
            Self::Patience => "runs at the source after its rounds",
            Self::Deadline => "runs at the source by the deadline",
            Self::SwitchOver => "runs at the destination",
            Self::LastLimit => "runs at the destination, paused within the last limit",
            Self::Throttle => "runs at the destination, paused within the limit",
            Self::PostCopy => {
                "runs at the destination, paused within the limit, and every page followed"
            }
        }
    }

    fn settings(self, base: &TransferSettings) -> TransferSettings {
        let base = TransferSettings {
            if_not_converged: NotConverged::Abort,
            rounds_max: 6,
            ..base.clone()
        };
        match self {
            Self::Patience => base,
            Self::Deadline => TransferSettings {
                deadline_ms: DEADLINE_MS,
                rounds_max: 1000,
                ..base
            },
            Self::SwitchOver => TransferSettings {
                if_not_converged: NotConverged::SwitchOver,
                ..base
            },
            Self::LastLimit => TransferSettings {
                downtime_limit_at_last_ms: base.downtime_limit_ms * 5,
                rounds_max: 10,
                ..base
            },
            Self::Throttle => TransferSettings {
                throttle_percent_max: 95,
                rounds_max: 30,
                ..base
            },
            Self::PostCopy => TransferSettings {
                if_not_converged: NotConverged::PostCopy,
                ..base
            },
        }
    }

    /// What the machine lacks for it, as the report says.
    fn cannot_be_here(self, report: &MigrationReport) -> Option<String> {
        let note = |about: &str| report.notes.iter().find(|note| note.contains(about));
        match self {
            Self::Throttle => note("CPU time cannot be limited").cloned(),
            Self::PostCopy if report.tracker != "userfaultfd" => {
                Some("post-copy needs a userfaultfd".to_owned())
            }
            _ => None,
        }
    }

    fn is_kept(self, report: &MigrationReport, settings: &TransferSettings) -> bool {
        let moved = report.result == RunResult::Completed && report.verified;
        let given_back = report.result == RunResult::Aborted;
        let within = |limit_ms: u32| report.downtime_ms <= f64::from(limit_ms);
        let whole = report.guest_verified == Some(true);
        whole
            && match self {
                Self::Patience => given_back && report.rounds == settings.rounds_max + 1,
                Self::Deadline => {
                    given_back && report.total_ms <= f64::from(DEADLINE_MS) + AFTER_DEADLINE_MS
                }
                Self::SwitchOver => moved,
                Self::LastLimit => moved && within(settings.downtime_limit_at_last_ms),
                Self::Throttle => moved && within(settings.downtime_limit_ms),
                Self::PostCopy => {
                    moved && within(settings.downtime_limit_ms) && report.postcopy.is_some()
                }
            }
    }
}

/// One migration.
#[derive(Clone, Debug, Serialize)]
struct Run {
    system: &'static str,
    case: &'static str,
    strategy: Strategy,
    promise: &'static str,
    kept: bool,
    /// Why this machine cannot do it.
    skipped: Option<String>,
    result: String,
    reason: String,
    total_ms: f64,
    downtime_ms: f64,
    rounds: u32,
    throttle_percent: u8,
    guest_verified: bool,
    notes: Vec<String>,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let base = TransferSettings {
        bandwidth_limit_mbit: match args.link {
            Some(_) => 0,
            None => args.rate_mbit,
        },
        ..profile::load("datacenter")?
    };
    let chosen = match args.strategy.as_slice() {
        [] => Strategy::value_variants(),
        some => some,
    };
    let mut runs = vec![];
    for &strategy in chosen {
        for turn in 0..args.times {
            let run = one(args, &base, strategy, turn)?;
            eprintln!("{}", line(&run));
            runs.push(run);
        }
    }
    let record = Record::here("dwcp.bench.strategy/1", runs);
    context.print(&record, || table(&record))?;
    let is_broken = |run: &&Run| !run.kept && run.skipped.is_none();
    match record.runs.iter().filter(is_broken).count() {
        0 => Ok(()),
        broken => Err(Failure::other(anyhow::anyhow!(
            "{broken} of {} promises were not kept",
            record.runs.len()
        ))),
    }
}

fn one(
    args: &Args,
    base: &TransferSettings,
    strategy: Strategy,
    turn: u32,
) -> Result<Run, Failure> {
    let settings = strategy.settings(base);
    let up = args.link.as_ref().map(|road| road.up(turn.into(), "bbr"));
    let link = up.transpose()?;
    let ends = link.as_ref().map(|link| (&**link).into());
    let moved = move_once(guest(args, &settings), &settings, ends)?;
    let report = moved.report;
    Ok(Run {
        system: "dwcp",
        case: strategy.promise(),
        strategy,
        promise: strategy.promise(),
        kept: strategy.is_kept(&report, &settings),
        skipped: strategy.cannot_be_here(&report),
        result: format!("{:?}", report.result).to_lowercase(),
        reason: report.reason,
        total_ms: report.total_ms,
        downtime_ms: report.downtime_ms,
        rounds: report.rounds,
        throttle_percent: report.throttle_percent,
        guest_verified: report.guest_verified == Some(true),
        notes: report.notes,
    })
}

fn guest(args: &Args, settings: &TransferSettings) -> GuestSpec {
    let bytes_per_s = leaving_bytes_per_s(args.link.as_ref(), args.rate_mbit);
    let in_pause = bytes_per_s * f64::from(settings.downtime_limit_ms) / 1e3;
    let hot_mib = (in_pause * HOT_PAUSES / f64::from(1 << 20)).ceil() as u64;
    GuestSpec {
        choice: args.guest.choice(),
        hot_mib: hot_mib.clamp(1, args.size_mib / 2),
        dirty_pages_per_s: (bytes_per_s * REWRITTEN / PAGE_BYTES as f64) as u64,
        ..GuestSpec::incompressible(args.size_mib, args.size_mib * 3 / 4)
    }
}

fn line(run: &Run) -> String {
    let strategy = strategy_name(run.strategy);
    if let Some(why) = &run.skipped {
        return format!("skipped: {strategy}: {why}");
    }
    format!(
        "{}: {} ({}), {:.0} ms, pause {:.0} ms, {} rounds, {}% throttled: {}",
        strategy,
        run.result,
        run.reason,
        run.total_ms,
        run.downtime_ms,
        run.rounds,
        run.throttle_percent,
        if run.kept { "kept" } else { "NOT KEPT" }
    )
}

fn strategy_name(strategy: Strategy) -> String {
    let value = strategy.to_possible_value();
    value.map_or_else(String::new, |value| value.get_name().to_owned())
}

fn table(record: &Record<Run>) -> String {
    let mut out = format!("{}\n\n", record.machine.line());
    for &strategy in Strategy::value_variants() {
        let runs = record.runs.iter().filter(|run| run.strategy == strategy);
        let runs: Vec<_> = runs.collect();
        if runs.is_empty() {
            continue;
        }
        let kept = runs.iter().filter(|run| run.kept).count();
        let skipped = runs.iter().filter(|run| run.skipped.is_some()).count();
        let longest = |of: fn(&Run) -> f64| runs.iter().map(|run| of(run)).fold(0.0, f64::max);
        let _ = writeln!(
            out,
            "{:<12} {kept} of {} kept, {skipped} skipped; longest pause {:.0} ms, longest in all {:.1} s; promise: {}",
            strategy_name(strategy),
            runs.len(),
            longest(|run| run.downtime_ms),
            longest(|run| run.total_ms) / 1e3,
            strategy.promise()
        );
    }
    out
}
