//! `dwcp bench peers`: the same guest moved by DWCP and by QEMU itself, interleaved, in one run.

use std::fmt::Write;

use dwcp_api::{RunResult, TransferSettings};
use dwcp_controlplane::profile;
use dwcp_testbed::Kind;
use dwcp_testbed::guests::{GuestKind, GuestOptions};
use dwcp_testbed::peers::{PeerOptions, PeerSystem, run_peer};
use dwcp_testbed::wire::Backing;
use dwcp_tools::lab::{GuestChoice, GuestSpec};
use serde::Serialize;

use super::numbers::{size_mib, some};
use super::run::{by_case, move_once, rate};
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "The pause is measured from STOP at the source to RESUME at the destination, for \
all alike. CPU seconds are those of both QEMUs during the migration, the guest's own work included, \
and of both data planes. QEMU's bandwidth limit is lifted.

Examples:
  dwcp bench peers
  dwcp bench peers --rounds 5 --json > peers.json
  dwcp bench peers --guest bare --dirty-rate 0
  dwcp bench peers --size-mib 512,1024,2048,4096 --dirty-rate 0,1000,5000 --rounds 1";

/// `dwcp bench peers`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// The guest: Debian's kernel, or the project's.
    #[arg(long, value_enum, default_value_t = Guest::Linux)]
    guest: Guest,
    /// RAM of the guest, MiB; several make a table.
    #[arg(long, default_value = "1024", value_delimiter = ',', value_parser = size_mib)]
    size_mib: Vec<u64>,
    /// RAM filled with data, percent.
    #[arg(long, default_value_t = 55, value_parser = clap::value_parser!(u64).range(1..=90))]
    fill_percent: u64,
    /// Pages rewritten per second; several make a table.
    #[arg(
        long,
        default_value = "300",
        value_delimiter = ',',
        value_name = "PAGES/S"
    )]
    dirty_rate: Vec<u64>,
    /// How often each system moves it.
    #[arg(long, default_value_t = 3, value_parser = some::<u32>)]
    rounds: u32,
    /// Change a key of the datacenter profile; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Guest {
    Linux,
    Bare,
}

/// What the guest is like.
#[derive(Clone, Copy, Debug)]
struct Case {
    size_mib: u64,
    fill_mib: u64,
    pages_per_s: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    system: String,
    case: String,
    total_ms: f64,
    downtime_ms: f64,
    wire_bytes: u64,
    bytes_per_s: f64,
    cpu_s: f64,
    guest_verified: bool,
}

type Record = super::run::Record<Run>;

const SYSTEMS: [PeerSystem; 3] = [
    PeerSystem::Plain,
    PeerSystem::Multifd4,
    PeerSystem::Multifd4Zstd,
];

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let base = profile::load("datacenter")?;
    let settings = profile::with_changes(&base, args.changes.iter().map(String::as_str))?;
    let mut runs = vec![];
    for turn in 1..=args.rounds {
        for case in args.cases() {
            let say = |system: &str| eprintln!("round {turn} of {}: {case}: {system}", args.rounds);
            say("dwcp");
            runs.push(by_dwcp(args.guest, &settings, case)?);
            for system in SYSTEMS {
                say(system.name());
                runs.push(by_qemu(args.guest, system, case)?);
            }
        }
    }
    let record = Record::here("dwcp.bench.peers/1", runs);
    context.print(&record, || table(&record))?;
    if record.runs.iter().all(|run| run.guest_verified) {
        return Ok(());
    }
    Err(Failure::other(anyhow::anyhow!(
        "a moved guest does not confirm its memory"
    )))
}

impl Args {
    fn cases(&self) -> impl Iterator<Item = Case> {
        self.size_mib.iter().flat_map(move |&size_mib| {
            self.dirty_rate.iter().map(move |&pages_per_s| Case {
                size_mib,
                fill_mib: size_mib * self.fill_percent / 100,
                pages_per_s,
            })
        })
    }
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            size_mib,
            fill_mib,
            pages_per_s,
        } = self;
        write!(
            f,
            "{size_mib} MiB, {fill_mib} MiB filled, {pages_per_s} pages/s"
        )
    }
}

fn guest_spec(guest: Guest, case: Case) -> GuestSpec {
    let choice = match guest {
        Guest::Linux => GuestChoice::Linux,
        Guest::Bare => GuestChoice::Qemu,
    };
    GuestSpec {
        choice,
        ram_mib: case.size_mib,
        fill_mib: case.fill_mib,
        hot_mib: 50.min(case.fill_mib),
        dirty_pages_per_s: case.pages_per_s,
        checked_pages_per_s: GuestOptions::default().verify_rate,
        kind: Kind::Text,
        backing: Backing::Fresh,
    }
}

fn by_dwcp(guest: Guest, settings: &TransferSettings, case: Case) -> Result<Run, Failure> {
    let moved = move_once(guest_spec(guest, case), settings, None)?;
    let report = moved.report;
    if report.result != RunResult::Completed {
        return Err(Failure::other(anyhow::anyhow!("dwcp: {}", report.reason)));
    }
    Ok(Run {
        system: "dwcp".into(),
        case: case.to_string(),
        total_ms: report.total_ms,
        downtime_ms: report.downtime_ms,
        wire_bytes: report.wire_bytes,
        bytes_per_s: rate(report.ram_bytes, report.total_ms),
        cpu_s: moved.cpu_s,
        guest_verified: report.guest_verified == Some(true),
    })
}

fn by_qemu(guest: Guest, system: PeerSystem, case: Case) -> Result<Run, Failure> {
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let options = PeerOptions {
        guest: match guest {
            Guest::Linux => GuestKind::Linux,
            Guest::Bare => GuestKind::Bare,
        },
        memory_mib: case.size_mib,
        load: guest_spec(guest, case).options(),
        ..PeerOptions::new(folder.path())
    };
    let run = run_peer(system, &options).map_err(Failure::other)?;
    Ok(Run {
        system: run.system.to_owned(),
        case: case.to_string(),
        total_ms: run.total_ms,
        downtime_ms: run.downtime_ms,
        wire_bytes: run.wire_bytes,
        bytes_per_s: rate(run.ram_bytes, run.total_ms),
        cpu_s: run.cpu_s,
        guest_verified: run.guest_verified,
    })
}

fn table(record: &Record) -> String {
    by_case(record, |run| &run.case, case_table)
}

fn case_table(runs: &[&Run]) -> String {
    let mut out =
        "median of each        total ms  x dwcp   pause ms  wire MiB   CPU s  guest\n".to_owned();
    let names = std::iter::once("dwcp").chain(SYSTEMS.iter().map(|system| system.name()));
    let own = median(runs, "dwcp", |run| run.total_ms);
    for name in names {
        let mut of_it = runs.iter().filter(|run| run.system == name);
        let verified = of_it.all(|run| run.guest_verified);
        let total = median(runs, name, |run| run.total_ms);
        let _ = writeln!(
            out,
            "{name:<20} {total:>9.0} {:>7.2} {:>10.1} {:>9.1} {:>7.2}  {}",
            total / own,
            median(runs, name, |run| run.downtime_ms),
            median(runs, name, |run| run.wire_bytes as f64) / f64::from(1 << 20),
            median(runs, name, |run| run.cpu_s),
            if verified { "verified" } else { "BAD" }
        );
    }
    out
}

fn median(runs: &[&Run], system: &str, of: impl Fn(&Run) -> f64) -> f64 {
    let runs = runs.iter().filter(|run| run.system == system);
    super::stat::median(runs.map(|run| of(run)))
}
