//! `dwcp bench codec`: what each effort costs and saves on a guest's RAM, and what the chooser makes of it.

mod emulated;
mod ram;

use std::fmt::Write;

use dwcp_dataplane::path::{Effort, LONG_PATH_BYTES_PER_S};
use dwcp_dataplane::ram::RamLayout;
use dwcp_testbed::guests::workload_disk;
use dwcp_wan::units;
use serde::Serialize;

use self::emulated::{Decision, Recorded, Sent};
use self::ram::Source;
use super::run::{Record as RecordOf, by_case};
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "All of the RAM goes once through the real line and codec of one worker, for each effort. \
The links are computed: a frame takes the CPU time that it takes here, and the time that its bytes need on \
the link. `auto` is `pages.codec = \"auto\"`, over a long path; `auto-short` over a path within a site, \
where pages leave as they are until the link is seen to be slow. *Of best* is the best single effort's time \
over this one's. A long path is taken to carry 1 Gbit/s until it is seen to carry more, so `auto` is judged up to \
that rate, `auto-short` at all. Exit code 1 when one of them reaches less than --least of the best, or takes 1% \
longer than raw.

Examples:
  dwcp bench codec
  dwcp bench codec --ram database,random --link 100mbit --link 10gbit
  dwcp bench codec --ram guest.ram --json > codec.json";

/// `dwcp bench codec`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// RAM: random (encrypted memory shrinks as little), database, store, idle, or a file with pages.
    /// Random, and the others where `tools/setup --workloads` has made their disk, when not given.
    #[arg(long, value_name = "RAM", value_delimiter = ',', value_parser = Source::parse)]
    ram: Vec<Source>,
    /// Rate of a link; may be given again.
    #[arg(long = "link", value_name = "RATE", value_delimiter = ',',
          default_values = ["100mbit", "1gbit", "10gbit", "25gbit"], value_parser = rate)]
    links: Vec<Link>,
    /// How far back a window looks, MiB.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u64).range(1..=128))]
    window_mib: u64,
    /// Part of the best single effort's speed that is demanded.
    #[arg(long, default_value_t = 0.95)]
    least: f64,
}

const AUTO: &str = "auto";
const AUTO_SHORT: &str = "auto-short";

/// The chooser's speed over raw's that is demanded.
const RAW_LEAST: f64 = 0.99;

#[derive(Clone, Debug)]
struct Link {
    name: String,
    bytes_per_s: f64,
}

fn rate(text: &str) -> Result<Link, String> {
    let bit_per_s = units::rate(text).map_err(|error| error.to_string())?;
    Ok(Link {
        name: text.to_owned(),
        bytes_per_s: bit_per_s.map_or(f64::INFINITY, |rate| rate as f64 / 8.0),
    })
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    /// An effort, `auto` or `auto-short`.
    system: String,
    case: String,
    total_ms: f64,
    /// The best single effort's time over this one's.
    of_best: f64,
    /// Raw's time over this one's.
    of_raw: f64,
    page_bytes: u64,
    wire_bytes: u64,
    cpu_s: f64,
    #[serde(skip)]
    is_judged: bool,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    decisions: Vec<Decision>,
}

type Record = RecordOf<Run>;

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let mut runs = vec![];
    for source in args.sources() {
        eprintln!("{}: reading RAM", source.name());
        let ram = source.read().map_err(Failure::other)?;
        runs.extend(args.measure(&source.name(), &ram));
    }
    let record = Record::here("dwcp.bench.codec/1", runs);
    context.print(&record, || table(&record))?;
    args.judge(&record)
}

impl Args {
    fn sources(&self) -> Vec<Source> {
        if !self.ram.is_empty() {
            return self.ram.clone();
        }
        match workload_disk() {
            Ok(_) => Source::all(),
            Err(error) => {
                eprintln!("only random pages: {error}");
                vec![Source::Random]
            }
        }
    }

    fn measure(&self, name: &str, ram: &RamLayout) -> Vec<Run> {
        let window_bytes = self.window_mib << 20;
        let record = |effort: &Effort| {
            eprintln!("{name}: {effort}");
            (
                effort.to_string(),
                emulated::record(ram, *effort, window_bytes),
            )
        };
        // Pages of the guest are mapped by the first pass, at a cost that is no codec's.
        emulated::record(ram, Effort::Raw, window_bytes);
        let recorded: Vec<_> = Effort::ALL.iter().map(record).collect();
        let runs = self.links.iter().map(|link| {
            eprintln!("{name}: over {}", link.name);
            let adapted = [(AUTO, false), (AUTO_SHORT, true)].map(|(system, is_short)| {
                let sent = emulated::adapt(ram, is_short, link.bytes_per_s, window_bytes);
                (system.to_owned(), sent)
            });
            over(name, link, &recorded, adapted)
        });
        runs.flatten().collect()
    }

    fn judge(&self, record: &Record) -> Result<(), Failure> {
        let is_short_of =
            |run: &&Run| run.is_judged && (run.of_best < self.least || run.of_raw < RAW_LEAST);
        let Some(run) = record.runs.iter().find(is_short_of) else {
            return Ok(());
        };
        Err(Failure::other(anyhow::anyhow!(
            "{}: {} reaches {:.3} of the best effort ({} is demanded) and {:.3} of raw ({RAW_LEAST})",
            run.case,
            run.system,
            run.of_best,
            self.least,
            run.of_raw
        )))
    }
}

/// All rows of one link.
fn over(
    name: &str,
    link: &Link,
    recorded: &[(String, Vec<Recorded>)],
    adapted: [(String, Sent); 2],
) -> Vec<Run> {
    let fixed = recorded.iter().map(|(effort, frames)| {
        let sent = emulated::replay(frames, link.bytes_per_s);
        (effort.clone(), sent)
    });
    let fixed: Vec<_> = fixed.collect();
    let best_s = fixed
        .iter()
        .map(|(_, sent)| sent.seconds)
        .fold(f64::INFINITY, f64::min);
    // The first effort is raw.
    let raw_s = fixed
        .first()
        .map_or(f64::INFINITY, |(_, sent)| sent.seconds);
    let is_long = link.bytes_per_s <= LONG_PATH_BYTES_PER_S;
    let row = |(system, sent): (String, Sent)| Run {
        is_judged: system == AUTO_SHORT || system == AUTO && is_long,
        system,
        case: format!("{name} over {}", link.name),
        total_ms: sent.seconds * 1000.0,
        of_best: best_s / sent.seconds,
        of_raw: raw_s / sent.seconds,
        page_bytes: sent.page_bytes,
        wire_bytes: sent.wire_bytes,
        cpu_s: sent.busy_s,
        decisions: sent.decisions,
    };
    fixed.into_iter().chain(adapted).map(row).collect()
}

fn table(record: &Record) -> String {
    by_case(
        record,
        |run| &run.case,
        |runs| {
            let mut out = "effort          total ms  of best  of raw  MiB sent   of it  CPU s   MB/s of a core\n".to_owned();
            for run in runs {
                let _ = writeln!(
                    out,
                    "{:<14} {:>9.0} {:>8.3} {:>7.3} {:>9.1} {:>7.3} {:>6.2} {:>8.0}",
                    run.system,
                    run.total_ms,
                    run.of_best,
                    run.of_raw,
                    run.wire_bytes as f64 / f64::from(1 << 20),
                    run.wire_bytes as f64 / run.page_bytes.max(1) as f64,
                    run.cpu_s,
                    run.page_bytes as f64 / 1e6 / run.cpu_s.max(1e-9),
                );
            }
            out
        },
    )
}
