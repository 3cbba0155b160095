//! `dwcp bench goodput`: how much of a link's rate carries pages of a guest that no codec makes smaller.

use std::fmt::Write;

use dwcp_api::{DowntimePartsMs, TransferSettings};
use dwcp_controlplane::config::AUTO;
use dwcp_controlplane::profile;
use serde::Serialize;

use super::numbers::{part, some};
use super::run::{Record as RecordOf, by_case, cases, move_incompressible};
use super::stat::median;
use super::wan::Road;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "Needs root: the link is two network namespaces and dwcp-wan between them. The guest is \
a process whose pages do not compress, as large as the link carries in --seconds. The settings are those of \
the internet profile. Goodput is the bytes of guest pages over the whole time of the migration: handshakes, \
the first round trips and the pause included. Headers of packets take 3.5% of the rate. With --paths the rate \
is that of all links together. Exit code 1 when a \
number of streams reaches less than --least of a link's rate, or `auto` less than --least-of-best of the best.

Examples:
  dwcp bench goodput
  dwcp bench goodput --link 900mbit,20ms --rounds 3 --json > goodput.json
  dwcp bench goodput --link 100mbit,20ms --paths 2
  dwcp bench goodput --link 100mbit,100ms,0.1% --congestion-control cubic --streams 1,4,16,32,auto --least 0";

/// Where none is asked for.
const LINKS: [&str; 7] = [
    "100mbit,20ms",
    "100mbit,200ms",
    "100mbit,200ms,1%",
    "500mbit,50ms",
    "500mbit,100ms,1%",
    "900mbit,20ms,0.1%",
    "900mbit,200ms",
];

/// `dwcp bench goodput`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// A link: rate, round-trip time, loss each way; may be given again [default: seven, of 100 to
    /// 900 Mbit/s].
    #[arg(long = "link", value_name = "RATE,RTT[,LOSS]", value_parser = Road::parse)]
    links: Vec<Road>,
    /// Numbers of streams to try, and `auto`.
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "4")]
    streams: Vec<String>,
    /// Congestion control of the streams; the kernel must have it.
    #[arg(long, default_value = "bbr")]
    congestion_control: String,
    /// How long the link takes for the guest's pages.
    #[arg(long, default_value_t = 30, value_parser = some::<u64>)]
    seconds: u64,
    /// So many such links at once, as paths of the streams; at least as many --streams.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=8))]
    paths: u8,
    /// How often each is moved.
    #[arg(long, default_value_t = 1, value_parser = some::<u32>)]
    rounds: u32,
    /// Part of the link's rate that is demanded.
    #[arg(long, default_value_t = 0.9, value_parser = part)]
    least: f64,
    /// Part of the best goodput over the same link that `auto` must reach.
    #[arg(long, default_value_t = 0.85, value_parser = part)]
    least_of_best: f64,
    /// Change a key of the profile; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    /// `streams-4`, `streams-auto`.
    system: String,
    /// The link, and the congestion control.
    case: String,
    total_ms: f64,
    downtime_ms: f64,
    downtime_parts_ms: DowntimePartsMs,
    wire_bytes: u64,
    /// Bytes of guest pages per second.
    bytes_per_s: f64,
    /// Of the link's rate.
    goodput_ratio: f64,
    streams_in_use: u16,
    cpu_s: f64,
    /// What was measured of the streams, in words.
    notes: Vec<String>,
}

/// A link, as its runs were judged.
#[derive(Debug, Serialize)]
struct Judged {
    case: String,
    system: String,
    goodput_ratio: f64,
    /// Of the best system over the same link.
    of_best: f64,
    reached: bool,
}

/// The runs, and what came out of them.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    record: RecordOf<Run>,
    goals: Vec<Judged>,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let links = match args.links.is_empty() {
        true => Road::all(&LINKS)?,
        false => args.links.clone(),
    };
    if let Some(link) = links.iter().find(|link| link.bytes_per_s().is_none()) {
        return Err(Failure::Usage(format!(
            "{}: a link without a rate",
            link.name
        )));
    }
    let too_few = |streams: &&String| streams.parse().is_ok_and(|count: u8| count < args.paths);
    if let Some(streams) = args.streams.iter().find(too_few) {
        return Err(Failure::Usage(format!(
            "{streams} streams for {} paths: --streams {}",
            args.paths, args.paths
        )));
    }
    let base = profile::load("internet")?;
    let systems = args
        .streams
        .iter()
        .map(|streams| system(args, &base, streams));
    let systems = systems.collect::<Result<Vec<_>, _>>()?;
    let mut runs = vec![];
    for link in &links {
        for turn in 1..=args.rounds {
            for (streams, settings) in &systems {
                eprintln!(
                    "round {turn} of {}: {}, {streams} streams",
                    args.rounds, link.name
                );
                let run = one(args, link, streams, settings, turn)?;
                eprintln!(
                    "    {:.0} ms, {:.3} of the rate",
                    run.total_ms, run.goodput_ratio
                );
                runs.push(run);
            }
        }
    }
    let report = Report {
        goals: judge(args, &runs),
        record: RecordOf::here("dwcp.bench.goodput/1", runs),
    };
    context.print(&report, || text(&report))?;
    match report.goals.iter().filter(|goal| !goal.reached).count() {
        0 => Ok(()),
        missed => Err(Failure::other(anyhow::anyhow!(
            "{missed} of {} goals are missed",
            report.goals.len()
        ))),
    }
}

/// A number of streams, and the settings that it stands for.
fn system(
    args: &Args,
    base: &TransferSettings,
    streams: &str,
) -> Result<(String, TransferSettings), Failure> {
    let own = [
        format!("transfer.streams={streams}"),
        format!("transfer.congestion_control={}", args.congestion_control),
    ];
    let changes = args.changes.iter().chain(&own).map(String::as_str);
    Ok((streams.to_owned(), profile::with_changes(base, changes)?))
}

fn one(
    args: &Args,
    link: &Road,
    streams: &str,
    settings: &TransferSettings,
    turn: u32,
) -> Result<Run, Failure> {
    let rate = link
        .bytes_per_s()
        .ok_or_else(|| Failure::other(anyhow::anyhow!("{}: a link without a rate", link.name)))?;
    let rate = rate * u64::from(args.paths);
    // The guest's filled RAM takes the link so long.
    let fill_mib = ((rate * args.seconds) >> 20).max(16);
    let ram = ((fill_mib * 10 / 9).next_multiple_of(2), fill_mib);
    let (moved, page_bytes) = move_incompressible(ram, settings, (link, args.paths), turn)?;
    let report = &moved.report;
    let bytes_per_s = page_bytes / (report.total_ms / 1e3);
    Ok(Run {
        system: format!("streams-{streams}"),
        case: match args.paths {
            1 => format!("{} {}", link.name, args.congestion_control),
            paths => format!("{paths} x {} {}", link.name, args.congestion_control),
        },
        total_ms: report.total_ms,
        downtime_ms: report.downtime_ms,
        downtime_parts_ms: report.downtime_parts_ms,
        wire_bytes: report.wire_bytes,
        bytes_per_s,
        goodput_ratio: bytes_per_s / rate as f64,
        streams_in_use: report.streams_in_use,
        cpu_s: moved.dataplane_cpu_s,
        notes: report.notes.clone(),
    })
}

fn judge(args: &Args, runs: &[Run]) -> Vec<Judged> {
    let mut goals = vec![];
    for case in cases(runs, |run| &run.case) {
        let goodput = |system: &str| {
            let of_it = runs
                .iter()
                .filter(|run| run.case == case && run.system == system);
            median(of_it.map(|run| run.goodput_ratio))
        };
        let systems: Vec<_> = args
            .streams
            .iter()
            .map(|s| format!("streams-{s}"))
            .collect();
        let best = systems
            .iter()
            .map(|system| goodput(system))
            .fold(0.0, f64::max);
        for system in systems {
            let goodput_ratio = goodput(&system);
            let of_best = if best > 0.0 {
                goodput_ratio / best
            } else {
                0.0
            };
            let is_auto = system.ends_with(AUTO);
            goals.push(Judged {
                case: case.to_owned(),
                goodput_ratio,
                of_best,
                reached: goodput_ratio >= args.least && (!is_auto || of_best >= args.least_of_best),
                system,
            });
        }
    }
    goals
}

fn text(report: &Report) -> String {
    let mut out = by_case(&report.record, |run| &run.case, table);
    for goal in &report.goals {
        let reached = if goal.reached { "reached" } else { "MISSED" };
        let _ = writeln!(
            out,
            "{} {}: {:.3} of the rate, {:.3} of the best: {reached}",
            goal.case, goal.system, goal.goodput_ratio, goal.of_best
        );
    }
    out
}

fn table(runs: &[&Run]) -> String {
    let mut out =
        "                total ms   pause ms   Mbit/s  of rate  in use   CPU s\n".to_owned();
    for run in runs {
        let _ = writeln!(
            out,
            "{:<14} {:>9.0} {:>10.1} {:>8.1} {:>8.3} {:>7} {:>7.2}",
            run.system,
            run.total_ms,
            run.downtime_ms,
            run.bytes_per_s * 8.0 / 1e6,
            run.goodput_ratio,
            run.streams_in_use,
            run.cpu_s,
        );
    }
    out
}
