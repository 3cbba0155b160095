//! `dwcp bench postcopy`: a guest that runs at the destination before its pages are there: how long it stood, how
//! long it waited for pages, and what becomes of it when the link, or a data plane, is lost meanwhile.

use std::fmt::Write;
use std::time::{Duration, Instant};

use clap::ValueEnum as _;
use dwcp_api::node::Request as NodeRequest;
use dwcp_api::{MigrationId, MigrationReport, PhaseName, RunResult};
use dwcp_controlplane::profile;
use dwcp_tools::lab::{GuestChoice, GuestSpec, Lab, Plane, RunSpec};
use dwcp_wan::control::Request as LinkRequest;
use dwcp_wan::link::{self, Link};
use dwcp_wan::params::Direction;
use serde::Serialize;

use super::numbers::{size_mib, some};
use super::run::{Record, by_case};
use super::wan::Road;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "Every guest is post-copied after its first round, also one that would converge. The pause is \
from the guest's stop to its run at the destination. A fault is a page that the guest, or its VMM, waited \
for. One seed decides what happens, and when.

With --link it needs root: the link is two network namespaces and dwcp-wan between them.

Examples:
  dwcp bench postcopy --size-mib 1024,4096,8192
  dwcp bench postcopy --guest linux --size-mib 512
  dwcp bench postcopy --link 500mbit,20ms --size-mib 256
  dwcp bench postcopy --link 200mbit,10ms --size-mib 256 --harm by-seed --points 100 --json > cuts.json";

/// `dwcp bench postcopy`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// The guest.
    #[arg(long, value_enum, default_value_t = Guest::Synthetic)]
    guest: Guest,
    /// RAM of the guest, MiB; several make a table.
    #[arg(long, default_value = "1024", value_delimiter = ',', value_parser = size_mib)]
    size_mib: Vec<u64>,
    /// RAM filled with data, percent.
    #[arg(long, default_value_t = 80, value_parser = clap::value_parser!(u64).range(1..=90))]
    fill_percent: u64,
    /// Pages rewritten per second.
    #[arg(long, default_value_t = 20_000, value_name = "PAGES/S")]
    dirty_rate: u64,
    /// Rate, round-trip time, loss each way; loopback without one.
    #[arg(long, value_name = "RATE,RTT[,LOSS]", value_parser = Road::parse)]
    link: Option<Road>,
    /// What happens while pages are missing.
    #[arg(long, value_enum, default_value_t = Harm::None)]
    harm: Harm,
    /// Migrations of each guest.
    #[arg(long, default_value_t = 1, value_parser = some::<u64>)]
    points: u64,
    /// First seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Change a key of the datacenter profile; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Guest {
    /// A process that writes memory.
    Synthetic,
    /// Linux in QEMU.
    Linux,
}

impl Guest {
    const fn name(self) -> &'static str {
        match self {
            Self::Synthetic => "process",
            Self::Linux => "Linux",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
enum Harm {
    /// Nothing.
    None,
    /// One of those below.
    BySeed,
    /// Nothing passes for a second. Needs --link.
    Cut1S,
    /// Nothing passes for five seconds. Needs --link.
    Cut5S,
    /// The source's data plane is killed and started anew.
    SourceRestart,
    /// The destination's data plane is killed and started anew.
    DestinationRestart,
    /// Both are.
    BothRestart,
}

/// One migration.
#[derive(Clone, Debug, Serialize)]
struct Run {
    system: &'static str,
    case: String,
    seed: u64,
    harm: Harm,
    /// After the guest ran at the destination.
    harm_after_ms: f64,
    downtime_ms: f64,
    total_ms: f64,
    missing_pages: u64,
    ram_pages: u64,
    fetch_ms: u64,
    faults: u64,
    fault_p50_us: u64,
    fault_p99_us: u64,
    fault_max_us: u64,
    /// Of the link; 0 over loopback.
    rtt_us: u64,
    verified: bool,
    /// It runs at the destination alone, and its memory is what it wrote.
    good: bool,
    note: String,
}

/// A migration that has not ended then hangs.
const TIME_MAX: Duration = Duration::from_secs(120);

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let needs_link = matches!(args.harm, Harm::Cut1S | Harm::Cut5S | Harm::BySeed);
    if needs_link && args.link.is_none() {
        return Err(Failure::Usage(
            "there is no link to cut: give one by --link".to_owned(),
        ));
    }
    let base = profile::load("datacenter")?;
    let changes = args.changes.iter().map(String::as_str);
    let settings = profile::with_changes(&base, changes)?;
    let mut runs = vec![];
    for &size_mib in &args.size_mib {
        for seed in args.seed..args.seed + args.points {
            let spec = RunSpec {
                settings: settings.clone(),
                guest: guest(args, size_mib),
            };
            let run = one(args, &spec, seed)?;
            eprintln!("{}", line(&run));
            runs.push(run);
        }
    }
    let record = Record::here("dwcp.bench.postcopy/1", runs);
    context.print(&record, || by_case(&record, |run| &run.case, table))?;
    match record.runs.iter().filter(|run| !run.good).count() {
        0 => Ok(()),
        bad => Err(Failure::other(anyhow::anyhow!("{bad} runs ended badly"))),
    }
}

fn guest(args: &Args, size_mib: u64) -> GuestSpec {
    GuestSpec {
        choice: match args.guest {
            Guest::Synthetic => GuestChoice::Synthetic,
            Guest::Linux => GuestChoice::Linux,
        },
        hot_mib: (size_mib / 4).max(1),
        dirty_pages_per_s: args.dirty_rate,
        ..GuestSpec::incompressible(size_mib, size_mib * args.fill_percent / 100)
    }
}

/// What happens, and how far into the fetching.
fn harm_of(args: &Args, seed: u64) -> (Harm, f64) {
    let all = &Harm::value_variants()[2..];
    let harm = match args.harm {
        Harm::BySeed => all[(seed % all.len() as u64) as usize],
        harm => harm,
    };
    (harm, (seed as f64 * 0.618).fract())
}

fn one(args: &Args, spec: &RunSpec, seed: u64) -> Result<Run, Failure> {
    let (harm, share) = harm_of(args, seed);
    let up = args.link.as_ref().map(|road| road.up(seed, "bbr"));
    let link = up.transpose()?;
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let ends = link.as_ref().map(|link| (&**link).into());
    let lab = Lab::start_over(spec, folder.path(), ends, &mut |_| {});
    let mut lab = lab.map_err(Failure::other)?;
    let id = lab.migrate(&spec.settings).map_err(Failure::other)?;
    let asked = lab.a.ask(&NodeRequest::Tune {
        which: id.to_string(),
        bandwidth_limit_mbit: None,
        post_copy: true,
    });
    asked.map_err(Failure::other)?;
    let mut harm_after_ms = 0.0;
    if harm != Harm::None && runs_there(&mut lab, id)? {
        // By the share of the pages that the link could have brought.
        let since = Instant::now();
        let bytes = (spec.guest.hot_mib << 20) as f64;
        let rate = args.link.as_ref().and_then(Road::bytes_per_s);
        let rate = rate.map_or(1e9, |rate| rate as f64);
        std::thread::sleep(Duration::from_secs_f64(share * bytes / rate));
        disturb(harm, &mut lab, link.as_deref())?;
        harm_after_ms = since.elapsed().as_secs_f64() * 1000.0;
    }
    let report = report(&mut lab, id)?;
    let (good, note) = judge(&mut lab, &report);
    Ok(run_of(
        args,
        spec,
        (seed, harm, harm_after_ms),
        &report,
        (good, note),
    ))
}

/// Waits until the guest runs at the destination, or the migration is over.
fn runs_there(lab: &mut Lab, id: MigrationId) -> Result<bool, Failure> {
    loop {
        let status = lab.status(id).map_err(Failure::other)?;
        match status.phase {
            PhaseName::Postcopy | PhaseName::PostcopyPaused => return Ok(true),
            _ if status.report.is_some() => return Ok(false),
            _ => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}

fn disturb(harm: Harm, lab: &mut Lab, link: Option<&Link>) -> Result<(), Failure> {
    let cut = |seconds: u64| {
        let request = LinkRequest::Cut {
            ways: vec![Direction::AToB, Direction::BToA],
            for_ns: Some(seconds * 1_000_000_000),
        };
        let Some(link) = link else { return Ok(()) };
        let asked = link::ask(&link.name, &request);
        asked.map(drop).map_err(Failure::other)
    };
    match harm {
        Harm::Cut1S => return cut(1),
        Harm::Cut5S => return cut(5),
        _ => {}
    }
    let source = matches!(harm, Harm::SourceRestart | Harm::BothRestart);
    let destination = matches!(harm, Harm::DestinationRestart | Harm::BothRestart);
    let nodes = [(source, &mut lab.a), (destination, &mut lab.b)];
    let mut hit: Vec<_> = nodes.into_iter().filter(|(is_hit, _)| *is_hit).collect();
    hit.iter_mut().for_each(|(_, node)| node.kill(Plane::Data));
    hit.into_iter()
        .try_for_each(|(_, node)| node.revive().map_err(Failure::other))
}

/// The end of it; a node that is being started again is waited for.
fn report(lab: &mut Lab, id: MigrationId) -> Result<MigrationReport, Failure> {
    let deadline = Instant::now() + TIME_MAX;
    loop {
        let status = lab.status(id);
        if let Ok(status) = &status
            && let Some(report) = &status.report
        {
            return Ok(report.clone());
        }
        if Instant::now() > deadline {
            let text = status.map_or_else(|error| error.to_string(), |s| format!("{:?}", s.phase));
            return Err(Failure::other(anyhow::anyhow!("it hangs: {text}")));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn judge(lab: &mut Lab, report: &MigrationReport) -> (bool, String) {
    if report.result != RunResult::Completed {
        return (false, report.reason.clone());
    }
    match (lab.guest.verify_at_destination(), lab.guest.running()) {
        (Ok(Ok(())), (false, true)) => (true, String::new()),
        (Ok(Err(why)), _) => (false, why),
        (Err(error), _) => (false, error.to_string()),
        (_, running) => (false, format!("runs at source, destination: {running:?}")),
    }
}

fn run_of(
    args: &Args,
    spec: &RunSpec,
    (seed, harm, harm_after_ms): (u64, Harm, f64),
    report: &MigrationReport,
    (good, note): (bool, String),
) -> Run {
    let link = args.link.as_ref().map_or("loopback", |road| &road.name);
    let postcopy = report.postcopy.unwrap_or_default();
    Run {
        system: "dwcp",
        case: format!(
            "{} of {} MiB, {link}",
            args.guest.name(),
            spec.guest.ram_mib
        ),
        seed,
        harm,
        harm_after_ms,
        downtime_ms: report.downtime_ms,
        total_ms: report.total_ms,
        missing_pages: postcopy.pages,
        ram_pages: report.ram_bytes / dwcp_simd::PAGE_BYTES as u64,
        fetch_ms: postcopy.fetch_ms,
        faults: postcopy.faults,
        fault_p50_us: postcopy.fault_p50_us,
        fault_p99_us: postcopy.fault_p99_us,
        fault_max_us: postcopy.fault_max_us,
        rtt_us: args.link.as_ref().map_or(0, Road::rtt_us),
        verified: report.verified,
        good: good && report.postcopy.is_some(),
        note,
    }
}

fn line(run: &Run) -> String {
    format!(
        "{}, seed {}, {:?}: {} pages follow, stood {:.1} ms, {} faults, p50 {} us, fetched in {} ms {} {}",
        run.case,
        run.seed,
        run.harm,
        run.missing_pages,
        run.downtime_ms,
        run.faults,
        run.fault_p50_us,
        run.fetch_ms,
        if run.good { "good" } else { "BAD" },
        run.note
    )
}

fn table(runs: &[&Run]) -> String {
    let mut out = String::from(
        "  harm                 stood ms  pages that follow  fetch ms   faults   p50 us    p99 us    max us  of RTT + 100 us  good\n",
    );
    for run in runs {
        let ratio = run.fault_p50_us as f64 / (run.rtt_us as f64 + 100.0);
        let _ = writeln!(
            out,
            "  {:<20} {:>8.1} {:>18} {:>9} {:>8} {:>8} {:>9} {:>9} {:>16.2}  {}",
            format!("{:?}", run.harm),
            run.downtime_ms,
            run.missing_pages,
            run.fetch_ms,
            run.faults,
            run.fault_p50_us,
            run.fault_p99_us,
            run.fault_max_us,
            ratio,
            if run.good { "yes" } else { "NO" }
        );
    }
    out
}
