//! `dwcp bench scale`: one thing grows at a time: RAM, streams, the guest's dirty rate, migrations at
//! once.

use std::fmt::Write;

use dwcp_api::RunResult;
use dwcp_controlplane::profile;
use dwcp_testbed::Kind;
use dwcp_testbed::wire::Backing;
use dwcp_tools::lab::{Fleet, GuestChoice, GuestSpec, Usage};
use serde::Serialize;

use super::machine::{Machine, memory_available_mib};
use super::numbers::some;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "Synthetic guests, full of incompressible pages, over loopback, by the datacenter \
profile. CPU seconds are those of both data planes; `own MiB` is the most memory of its own that a \
data plane had (guest RAM that it maps is not its own). A step that the machine has no memory for is \
skipped, said and counted.

Examples:
  dwcp bench scale
  dwcp bench scale --axis ram --axis streams --json > scale.json
  dwcp bench scale --axis concurrency --rounds 3";

/// `dwcp bench scale`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// What grows; may be given again. All of them when not given.
    #[arg(long = "axis", value_enum)]
    axes: Vec<Axis>,
    /// How often each step is measured.
    #[arg(long, default_value_t = 1, value_parser = some::<u32>)]
    rounds: u32,
    /// Change a key of the datacenter profile; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Axis {
    /// RAM of an idle guest, 256 MiB to 8 GiB.
    Ram,
    /// Streams, 1 to 32, of an idle guest of 1 GiB.
    Streams,
    /// Pages rewritten per second, 0 to 10% of 1 GiB.
    DirtyRate,
    /// Idle guests of 64 MiB moved at once, 1 to 100, and one guest of as much RAM beside them.
    Concurrency,
    /// A thousand idle guests of 2 MiB moved at once.
    Thousand,
}

/// One step of an axis.
#[derive(Clone, Debug)]
struct Step {
    case: String,
    guests: usize,
    mib_each: u64,
    streams: Option<u16>,
    dirty_pages_per_s: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    system: &'static str,
    case: String,
    total_ms: f64,
    downtime_ms: f64,
    wire_bytes: u64,
    bytes_per_s: f64,
    cpu_s: f64,
    ram_bytes: u64,
    dataplane_bytes_max: u64,
    /// Of both data planes and both control planes: more than before the first migration.
    descriptors_left: i64,
    threads_left: i64,
    guest_verified: bool,
}

#[derive(Debug, Serialize)]
struct Record {
    schema: &'static str,
    machine: Machine,
    runs: Vec<Run>,
    skipped: Vec<String>,
}

const MIB: u64 = 1 << 20;

/// Left to the rest of the machine.
const SPARE_MIB: u64 = 1024;

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    use clap::ValueEnum;
    let axes = match args.axes.is_empty() {
        true => Axis::value_variants(),
        false => &args.axes,
    };
    let steps: Vec<_> = axes.iter().flat_map(|axis| axis.steps()).collect();
    let mut record = Record {
        schema: "dwcp.bench.scale/1",
        machine: Machine::here(),
        runs: vec![],
        skipped: vec![],
    };
    for turn in 1..=args.rounds {
        for step in &steps {
            if let Some(why) = step.too_large() {
                let skipped = format!("{}: {why}", step.case);
                if !record.skipped.contains(&skipped) {
                    eprintln!("skipped: {skipped}");
                    record.skipped.push(skipped);
                }
                continue;
            }
            eprintln!("round {turn} of {}: {}", args.rounds, step.case);
            record.runs.push(step.run(&args.changes)?);
        }
    }
    context.print(&record, || table(&record))?;
    if record.runs.iter().all(|run| run.guest_verified) {
        return Ok(());
    }
    Err(Failure::other(anyhow::anyhow!(
        "a guest was not moved, or does not confirm its memory"
    )))
}

impl Axis {
    fn steps(self) -> Vec<Step> {
        let step = |case: String| Step {
            case,
            guests: 1,
            mib_each: 1024,
            streams: None,
            dirty_pages_per_s: 0,
        };
        match self {
            Self::Ram => [256, 512, 1024, 2048, 4096, 8192]
                .map(|mib| Step {
                    mib_each: mib,
                    ..step(format!("RAM {mib} MiB"))
                })
                .to_vec(),
            Self::Streams => [1, 2, 4, 8, 16, 32]
                .map(|streams| Step {
                    streams: Some(streams),
                    ..step(format!("1024 MiB, {streams} streams"))
                })
                .to_vec(),
            Self::DirtyRate => [0, 262, 2_621, 26_214]
                .map(|rate| Step {
                    dirty_pages_per_s: rate,
                    ..step(format!("1024 MiB, {rate} pages/s rewritten"))
                })
                .to_vec(),
            Self::Thousand => vec![Step {
                guests: 1000,
                mib_each: 2,
                ..step("1000 x 2 MiB at once".to_owned())
            }],
            Self::Concurrency => [1, 10, 100]
                .into_iter()
                .flat_map(|guests| {
                    let many = Step {
                        guests,
                        mib_each: 64,
                        ..step(format!("{guests} x 64 MiB at once"))
                    };
                    let one = Step {
                        mib_each: 64 * guests as u64,
                        ..step(format!("1 x {} MiB", 64 * guests))
                    };
                    [many, one]
                })
                .collect(),
        }
    }
}

impl Step {
    /// Why the machine cannot do it.
    fn too_large(&self) -> Option<String> {
        let free = memory_available_mib()?;
        // Source and destination, and a process for each.
        let wanted = 2 * self.guests as u64 * (self.mib_each + 8) + SPARE_MIB;
        (wanted > free).then(|| format!("needs {wanted} MiB of memory, {free} MiB are available"))
    }

    fn run(&self, changes: &[String]) -> Result<Run, Failure> {
        let streams = self
            .streams
            .map(|streams| format!("transfer.streams={streams}"));
        let all = streams.iter().chain(changes).map(String::as_str);
        let settings = profile::with_changes(&profile::load("datacenter")?, all)?;
        let guest = GuestSpec {
            choice: GuestChoice::Synthetic,
            ram_mib: self.mib_each,
            fill_mib: self.mib_each,
            hot_mib: self.mib_each,
            dirty_pages_per_s: self.dirty_pages_per_s,
            checked_pages_per_s: 0,
            kind: Kind::Random,
            backing: Backing::Allocated,
        };
        let folder = tempfile::tempdir().map_err(Failure::other)?;
        let mut fleet =
            Fleet::start(&guest, self.guests, &settings, folder.path()).map_err(Failure::other)?;
        let moved = fleet.run(&settings).map_err(Failure::other)?;
        let completed = moved
            .reports
            .iter()
            .filter(|report| report.result == RunResult::Completed && report.verified);
        let ram_bytes = self.guests as u64 * self.mib_each * MIB;
        let left = |of: fn(&Usage) -> u64| {
            let sum = |at: usize| moved.usage[at].iter().map(of).sum::<u64>() as i64;
            sum(1) - sum(0)
        };
        Ok(Run {
            system: "dwcp",
            case: self.case.clone(),
            total_ms: moved.seconds * 1000.0,
            downtime_ms: moved
                .reports
                .iter()
                .map(|report| report.downtime_ms)
                .fold(0.0, f64::max),
            wire_bytes: moved.reports.iter().map(|report| report.wire_bytes).sum(),
            bytes_per_s: ram_bytes as f64 / moved.seconds,
            cpu_s: moved.dataplane_cpu_s,
            ram_bytes,
            dataplane_bytes_max: moved.dataplane_bytes_max,
            descriptors_left: left(|usage| usage.descriptors),
            threads_left: left(|usage| usage.threads),
            guest_verified: completed.count() == self.guests && moved.bad_guests == 0,
        })
    }
}

fn table(record: &Record) -> String {
    let mut out = format!("{}\n\n", record.machine.line());
    out.push_str(
        "case                              total ms  pause ms   GB/s  CPU s/GiB  own MiB  fds left  guests\n",
    );
    for run in &record.runs {
        let gib = run.ram_bytes as f64 / f64::from(1 << 30);
        let _ = writeln!(
            out,
            "{:<32} {:>9.0} {:>9.1} {:>6.2} {:>10.3} {:>8.1} {:>9}  {}",
            run.case,
            run.total_ms,
            run.downtime_ms,
            run.bytes_per_s / 1e9,
            run.cpu_s / gib,
            run.dataplane_bytes_max as f64 / MIB as f64,
            run.descriptors_left,
            if run.guest_verified {
                "verified"
            } else {
                "BAD"
            }
        );
    }
    let _ = writeln!(out, "\n{} steps skipped", record.skipped.len());
    out
}
