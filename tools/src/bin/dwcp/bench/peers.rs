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

use super::run::move_once;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "The pause is measured from STOP at the source to RESUME at the destination, for \
all alike. CPU seconds are those of both QEMUs during the migration, the guest's own work included, \
and of both data planes. QEMU's bandwidth limit is lifted.

Examples:
  dwcp bench peers
  dwcp bench peers --rounds 5 --json > peers.json
  dwcp bench peers --guest bare --dirty-rate 0";

/// `dwcp bench peers`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// The guest: Debian's kernel, or the project's.
    #[arg(long, value_enum, default_value_t = Guest::Linux)]
    guest: Guest,
    /// RAM of the guest, MiB.
    #[arg(long, default_value_t = 1024)]
    size_mib: u64,
    /// RAM filled with data, MiB.
    #[arg(long, default_value_t = 563)]
    fill_mib: u64,
    /// Pages rewritten per second.
    #[arg(long, default_value_t = 300, value_name = "PAGES/S")]
    dirty_rate: u64,
    /// How often each system moves it.
    #[arg(long, default_value_t = 3)]
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
    let case = format!(
        "{} MiB, {} MiB filled, {} pages/s",
        args.size_mib, args.fill_mib, args.dirty_rate
    );
    let mut runs = vec![];
    for turn in 1..=args.rounds {
        eprintln!("round {turn} of {}: dwcp", args.rounds);
        runs.push(by_dwcp(args, &settings, &case)?);
        for system in SYSTEMS {
            eprintln!("round {turn} of {}: {}", args.rounds, system.name());
            runs.push(by_qemu(args, system, &case)?);
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

fn by_dwcp(args: &Args, settings: &TransferSettings, case: &str) -> Result<Run, Failure> {
    let choice = match args.guest {
        Guest::Linux => GuestChoice::Linux,
        Guest::Bare => GuestChoice::Qemu,
    };
    let guest = GuestSpec {
        choice,
        ram_mib: args.size_mib,
        fill_mib: args.fill_mib,
        hot_mib: 50.min(args.fill_mib),
        dirty_pages_per_s: args.dirty_rate,
        checked_pages_per_s: 20_000,
        kind: Kind::Text,
        backing: Backing::Fresh,
    };
    let moved = move_once(guest, settings, None)?;
    let report = moved.report;
    if report.result != RunResult::Completed {
        return Err(Failure::other(anyhow::anyhow!("dwcp: {}", report.reason)));
    }
    Ok(Run {
        system: "dwcp".into(),
        case: case.to_owned(),
        total_ms: report.total_ms,
        downtime_ms: report.downtime_ms,
        wire_bytes: report.wire_bytes,
        bytes_per_s: rate(report.ram_bytes, report.total_ms),
        cpu_s: moved.cpu_s,
        guest_verified: report.guest_verified == Some(true),
    })
}

fn by_qemu(args: &Args, system: PeerSystem, case: &str) -> Result<Run, Failure> {
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let guest = match args.guest {
        Guest::Linux => GuestKind::Linux,
        Guest::Bare => GuestKind::Bare,
    };
    let options = PeerOptions {
        guest,
        memory_mib: args.size_mib,
        load: GuestOptions {
            fill_mib: args.fill_mib,
            hot_mib: 50.min(args.fill_mib),
            rate: args.dirty_rate,
            kind: Kind::Text,
            ..GuestOptions::default()
        },
        ..PeerOptions::new(folder.path())
    };
    let run = run_peer(system, &options).map_err(Failure::other)?;
    Ok(Run {
        system: run.system.to_owned(),
        case: case.to_owned(),
        total_ms: run.total_ms,
        downtime_ms: run.downtime_ms,
        wire_bytes: run.wire_bytes,
        bytes_per_s: rate(run.ram_bytes, run.total_ms),
        cpu_s: run.cpu_s,
        guest_verified: run.guest_verified,
    })
}

/// Guest RAM moved per second: what a person waits for.
fn rate(ram_bytes: u64, total_ms: f64) -> f64 {
    ram_bytes as f64 / (total_ms / 1000.0).max(1e-9)
}

fn table(record: &Record) -> String {
    let mut out = format!("{}\n{}\n\n", record.machine.line(), record.runs[0].case);
    out.push_str("median of each        total ms  x dwcp   pause ms  wire MiB   CPU s  guest\n");
    let names = std::iter::once("dwcp").chain(SYSTEMS.iter().map(|system| system.name()));
    let own = median(record, "dwcp", |run| run.total_ms);
    for name in names {
        let verified = record
            .runs
            .iter()
            .filter(|run| run.system == name)
            .all(|r| r.guest_verified);
        let total = median(record, name, |run| run.total_ms);
        let _ = writeln!(
            out,
            "{name:<20} {total:>9.0} {:>7.2} {:>10.1} {:>9.1} {:>7.2}  {}",
            total / own,
            median(record, name, |run| run.downtime_ms),
            median(record, name, |run| run.wire_bytes as f64) / f64::from(1 << 20),
            median(record, name, |run| run.cpu_s),
            if verified { "verified" } else { "BAD" }
        );
    }
    out
}

fn median(record: &Record, system: &str, of: impl Fn(&Run) -> f64) -> f64 {
    let runs = record.runs.iter().filter(|run| run.system == system);
    super::stat::median(runs.map(of))
}
