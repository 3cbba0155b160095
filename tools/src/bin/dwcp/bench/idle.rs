//! `dwcp bench idle`: what the two daemons of a node cost while nothing is moved.

use std::fmt::Write;
use std::time::{Duration, Instant};

use dwcp_controlplane::profile;
use dwcp_testbed::Kind;
use dwcp_testbed::wire::Backing;
use dwcp_tools::lab::{Fleet, GuestChoice, GuestSpec};
use serde::Serialize;

use crate::context::Context;
use crate::failure::Failure;

const HELP: &str =
    "A node without VMs, then one with several attached, are left alone; the CPU time of \
its daemons is read before and after.

Examples:
  dwcp bench idle
  dwcp bench idle --seconds 60 --vms 20 --json";

/// `dwcp bench idle`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// How long a node is left alone.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u64).range(1..=3600))]
    seconds: u64,
    /// Synthetic VMs that are attached in the second case.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..=100))]
    vms: u64,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    system: &'static str,
    case: String,
    seconds: f64,
    cpu_s: f64,
    /// CPU time for time, percent of one core.
    core_percent: f64,
}

type Record = super::run::Record<Run>;

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let mut runs = vec![];
    for vms in [0, args.vms as usize] {
        eprintln!("{vms} VMs, {} s", args.seconds);
        runs.extend(left_alone(vms, Duration::from_secs(args.seconds))?);
    }
    let record = Record::here("dwcp.bench.idle/1", runs);
    context.print(&record, || table(&record))
}

fn left_alone(vms: usize, time: Duration) -> Result<[Run; 2], Failure> {
    let guest = GuestSpec {
        choice: GuestChoice::Synthetic,
        ram_mib: 4,
        fill_mib: 4,
        hot_mib: 4,
        dirty_pages_per_s: 0,
        checked_pages_per_s: 0,
        kind: Kind::Random,
        backing: Backing::Fresh,
    };
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let settings = profile::load("datacenter")?;
    let fleet = Fleet::start(&guest, vms, &settings, folder.path()).map_err(Failure::other)?;
    let (before, began) = (fleet.cpu_s(), Instant::now());
    // What is measured is that nothing happens.
    std::thread::sleep(time);
    let (after, seconds) = (fleet.cpu_s(), began.elapsed().as_secs_f64());
    let of = |index: usize, system| {
        let cpu_s = after[index] - before[index];
        Run {
            system,
            case: format!("{vms} VMs attached"),
            seconds,
            cpu_s,
            core_percent: cpu_s / seconds * 100.0,
        }
    };
    Ok([of(0, "data plane"), of(1, "control plane")])
}

fn table(record: &Record) -> String {
    let mut out = format!("{}\n\n", record.machine.line());
    out.push_str("case                  daemon          seconds  CPU ms  % of a core\n");
    for run in &record.runs {
        let _ = writeln!(
            out,
            "{:<21} {:<14} {:>8.1} {:>7.2} {:>12.4}",
            run.case,
            run.system,
            run.seconds,
            run.cpu_s * 1000.0,
            run.core_percent
        );
    }
    out
}
