//! `dwcp bench wire`: raw movers of memory, and a whole migration of as much memory beside them.

use std::fmt::Write;

use dwcp_api::{RunResult, TransferSettings};
use dwcp_controlplane::profile;
use dwcp_testbed::link::VethLink;
use dwcp_testbed::wire::{Backing, Method, Receive, WireOptions, run_mover};
use dwcp_tools::lab::GuestSpec;
use serde::Serialize;

use super::numbers::{size_mib, some};
use super::run::move_once;
use super::stat::median;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "A raw mover has no frames, no checksums and no guest: it is the limit of the \
machine. A proven one also reads every page at both ends, as the proof of a migration does: the limit \
of a mover that knows what it moved. The migration is that of an idle synthetic guest whose pages are incompressible, verified, \
from `migrate` to the guest's resume. CPU seconds are those of both ends; of the migration, those of \
both data planes. Turns are interleaved, so that what else the machine does hits all alike.

Examples:
  dwcp bench wire
  dwcp bench wire --size-mib 512 --streams 1 --rounds 5
  dwcp bench wire --memory fresh --json > wire.json";

/// `dwcp bench wire`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Memory, MiB.
    #[arg(long, default_value_t = 2048, value_parser = size_mib)]
    size_mib: u64,
    /// Streams.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=32))]
    streams: u16,
    /// How often each moves it.
    #[arg(long, default_value_t = 3, value_parser = some::<u32>)]
    rounds: u32,
    /// What the memory is made of.
    #[arg(long, value_enum, default_value_t = Memory::Allocated)]
    memory: Memory,
    /// What is between the ends.
    #[arg(long, value_enum, default_value_t = Link::Loopback)]
    link: Link,
    /// Change a key of the datacenter profile for the migration; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

/// What is between the ends.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Link {
    /// The loopback interface.
    Loopback,
    /// Two network namespaces and a veth pair; needs root.
    Veth,
}

/// What the memory is made of.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Memory {
    /// 4 KiB pages; at the destination the kernel finds and clears each of them first.
    Fresh,
    /// 4 KiB pages, allocated at both ends.
    Allocated,
    /// 2 MiB pages (hugetlb), allocated at both ends; see vm.nr_hugepages.
    Huge,
}

impl Link {
    const fn name(self) -> &'static str {
        match self {
            Self::Loopback => "loopback",
            Self::Veth => "veth",
        }
    }
}

impl Memory {
    const fn backing(self) -> Backing {
        match self {
            Self::Fresh => Backing::Fresh,
            Self::Allocated => Backing::Allocated,
            Self::Huge => Backing::Huge,
        }
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Fresh => "4 KiB pages, fresh at the destination",
            Self::Allocated => "4 KiB pages, allocated",
            Self::Huge => "2 MiB pages",
        }
    }
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
    send_method: String,
    /// How long each round of a migration took.
    rounds_ms: Vec<f64>,
}

type Record = super::run::Record<Run>;

/// A raw mover, perhaps with the proof's reading of every page at both ends.
#[derive(Clone, Copy, Debug)]
struct Mover {
    method: Method,
    receive: Receive,
    proven: bool,
}

impl Mover {
    fn name(self) -> String {
        let receive = match self.receive {
            Receive::InPlace => "",
            Receive::Written => "-written",
            Receive::Spliced => "-spliced",
        };
        let proven = if self.proven { "-proven" } else { "" };
        format!("{}{receive}{proven}", self.method.name())
    }
}

/// All raw movers: the ways to send, the ways to receive, and all ways to send with the proof.
fn movers() -> impl Iterator<Item = Mover> {
    let by = |method, receive, proven| Mover {
        method,
        receive,
        proven,
    };
    let sending = Method::ALL.map(|method| by(method, Receive::InPlace, false));
    let receiving = [Receive::Written, Receive::Spliced].map(|how| by(Method::Write, how, false));
    let proven = Method::ALL.map(|method| by(method, Receive::InPlace, true));
    sending.into_iter().chain(receiving).chain(proven)
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let streams = format!("transfer.streams={}", args.streams);
    let changes = std::iter::once(streams.as_str()).chain(args.changes.iter().map(String::as_str));
    let settings = profile::with_changes(&profile::load("datacenter")?, changes)?;
    let case = format!(
        "{} MiB, {} streams, {}, {}",
        args.size_mib,
        args.streams,
        args.link.name(),
        args.memory.name()
    );
    let link = match args.link {
        Link::Loopback => None,
        Link::Veth => Some(VethLink::up().map_err(Failure::other)?),
    };
    let mut runs = vec![];
    for turn in 1..=args.rounds {
        for mover in movers() {
            let name = mover.name();
            eprintln!("round {turn} of {}: {name}", args.rounds);
            match by_mover(args, mover, link.as_ref(), &case) {
                Ok(run) => runs.push(run),
                Err(error) => eprintln!("skipped: {name}: {error}"),
            }
        }
        eprintln!("round {turn} of {}: dwcp", args.rounds);
        runs.push(by_dwcp(args, &settings, link.as_ref(), &case)?);
    }
    let record = Record::here("dwcp.bench.wire/1", runs);
    context.print(&record, || table(&record))
}

fn by_mover(
    args: &Args,
    mover: Mover,
    link: Option<&VethLink>,
    case: &str,
) -> std::io::Result<Run> {
    let options = WireOptions {
        method: mover.method,
        receive: mover.receive,
        proven: mover.proven,
        mib: args.size_mib,
        streams: args.streams.into(),
        backing: args.memory.backing(),
    };
    let run = run_mover(options, link)?;
    Ok(Run {
        system: mover.name(),
        case: case.to_owned(),
        total_ms: run.seconds * 1000.0,
        downtime_ms: 0.0,
        wire_bytes: run.bytes,
        bytes_per_s: run.bytes as f64 / run.seconds,
        cpu_s: run.cpu_s,
        send_method: String::new(),
        rounds_ms: vec![],
    })
}

fn by_dwcp(
    args: &Args,
    settings: &TransferSettings,
    link: Option<&VethLink>,
    case: &str,
) -> Result<Run, Failure> {
    let guest = GuestSpec {
        checked_pages_per_s: 0,
        backing: args.memory.backing(),
        ..GuestSpec::incompressible(args.size_mib, args.size_mib)
    };
    let moved = move_once(guest, settings, link.map(Into::into))?;
    let report = moved.report;
    if report.result != RunResult::Completed || report.guest_verified != Some(true) {
        let reason = format!("the migration: {}", report.reason);
        return Err(Failure::other(anyhow::anyhow!(reason)));
    }
    Ok(Run {
        system: "dwcp".into(),
        case: case.to_owned(),
        total_ms: report.total_ms,
        downtime_ms: report.downtime_ms,
        wire_bytes: report.wire_bytes,
        bytes_per_s: report.wire_bytes as f64 / (report.total_ms / 1000.0),
        cpu_s: moved.dataplane_cpu_s,
        send_method: report.send_method,
        rounds_ms: report.round_reports.iter().map(|round| round.ms).collect(),
    })
}

fn table(record: &Record) -> String {
    let of = |system: &str, value: fn(&Run) -> f64| {
        let runs = record.runs.iter().filter(|run| run.system == system);
        median(runs.map(value))
    };
    let rate = |system: &str| of(system, |run| run.bytes_per_s);
    let cost = |system: &str| of(system, |run| run.cpu_s / (run.wire_bytes as f64 / 1e9));
    let best = |proven: bool| {
        movers()
            .filter(|mover| mover.proven == proven)
            .map(|mover| (rate(&mover.name()), cost(&mover.name())))
            // A method that was skipped has neither.
            .filter(|(rate, _)| *rate > 0.0)
            .fold((0.0_f64, f64::INFINITY), |best, (rate, cost)| {
                (best.0.max(rate), best.1.min(cost))
            })
    };
    let (raw, proven) = (best(false), best(true));
    let mut out = format!("{}\n{}\n\n", record.machine.line(), record.runs[0].case);
    out.push_str(
        "median of each              GB/s  x best raw  x best proven   CPU s/GB  x best raw  x best proven\n",
    );
    let names = movers().map(Mover::name).chain(["dwcp".to_owned()]);
    for name in names.filter(|name| rate(name) > 0.0) {
        let (rate, cost) = (rate(&name), cost(&name));
        let _ = writeln!(
            out,
            "{name:<24} {:>7.2} {:>11.2} {:>14.2} {cost:>10.3} {:>11.2} {:>14.2}",
            rate / 1e9,
            rate / raw.0,
            rate / proven.0,
            cost / raw.1,
            cost / proven.1
        );
    }
    let methods: Vec<_> = record
        .runs
        .iter()
        .filter(|run| run.system == "dwcp")
        .map(|run| run.send_method.as_str())
        .collect();
    let _ = writeln!(out, "\nthe migration sent by {}", methods.join(", "));
    out
}
