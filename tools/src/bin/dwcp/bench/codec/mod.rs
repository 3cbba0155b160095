//! `dwcp bench codec`: what each effort costs and saves on a guest's RAM, and what the chooser makes of it.

mod emulated;
mod intervals;
mod ram;
mod shadow;
mod train;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use dwcp_dataplane::path::{Effort, LONG_PATH_BYTES_PER_S, Tree};
use dwcp_dataplane::ram::RamLayout;
use dwcp_testbed::guests::workload_disk;
use dwcp_wan::units;
use serde::Serialize;

use self::emulated::{By, Decision, Drive, Recorded, Sent, Window};
use self::intervals::{Courses, Row};
use self::ram::Source;
use self::shadow::Case;
use super::numbers::part;
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

Beside the rule a learned chooser runs on the same intervals and decides nothing: how often both agree, and what time each \
loses against the best effort for the pages that follow, is shown below the table. With --tree it is that of a file, and \
drives as well, as `learned` and `learned-short`. --intervals writes what it is learned from.

Examples:
  dwcp bench codec
  dwcp bench codec --ram database,random --link 100mbit --link 10gbit
  dwcp bench codec --ram database --no-shuffle
  dwcp bench codec --ram guest.ram --json > codec.json
  dwcp bench codec --intervals intervals.jsonl --drawn 2
  dwcp bench codec train intervals.jsonl --out tree.json
  dwcp bench codec --tree tree.json --turns 3";

/// `dwcp bench codec`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP, args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
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
    /// Leave pages of words as they are, as for a destination that does not know shuffled ones.
    #[arg(long)]
    no_shuffle: bool,
    /// Part of the best single effort's speed that is demanded.
    #[arg(long, default_value_t = 0.95, value_parser = part)]
    least: f64,
    /// Also write each interval between decisions, with what every effort takes for the pages that follow, to this
    /// file.
    #[arg(long, value_name = "FILE")]
    intervals: Option<PathBuf>,
    /// So many more runs over each link and path for that file, in which every other decision is drawn by their number.
    #[arg(long, default_value_t = 0, value_name = "RUNS", requires = "intervals")]
    drawn: u64,
    /// Let this learned chooser drive, too: one of `dwcp bench codec train --out FILE.json`, or `compiled`.
    #[arg(long, value_name = "TREE", value_parser = tree)]
    tree: Option<Tree>,
    /// Times that each chooser sends all of it.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    turns: u64,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Grow the learned chooser from records of intervals.
    Train(train::Args),
}

fn tree(text: &str) -> Result<Tree, String> {
    match text {
        "compiled" => Ok(Tree::compiled()),
        path => train::read_tree(Path::new(path)).map_err(|error| format!("{error:#}")),
    }
}

const AUTO: &str = "auto";
const AUTO_SHORT: &str = "auto-short";
const LEARNED: &str = "learned";
const LEARNED_SHORT: &str = "learned-short";
const DRAWN: &str = "drawn";

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
    /// An effort, `auto` or `auto-short`, `learned` or `learned-short`.
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
    /// The learned chooser beside the rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    shadow: Option<Case>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    decisions: Vec<Decision>,
}

type Record = RecordOf<Run>;

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    if let Some(What::Train(args)) = &args.what {
        return train::run(args, context);
    }
    let (mut runs, mut rows) = (vec![], vec![]);
    for source in args.sources() {
        eprintln!("{}: reading RAM", source.name());
        let ram = source.read().map_err(Failure::other)?;
        args.measure(&source.name(), &ram, &mut runs, &mut rows);
    }
    if let Some(path) = &args.intervals {
        intervals::write(path, &rows).map_err(Failure::other)?;
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

    const fn window(&self) -> Window {
        Window {
            bytes: self.window_mib << 20,
            shuffles: !self.no_shuffle,
        }
    }

    fn measure(&self, name: &str, ram: &RamLayout, runs: &mut Vec<Run>, rows: &mut Vec<Row>) {
        let window = self.window();
        // Pages of the guest are mapped by the first pass, at a cost that is no codec's.
        emulated::record(ram, Effort::Raw, window);
        let recorded: Vec<_> = Effort::ALL
            .iter()
            .map(|effort| {
                eprintln!("{name}: {effort}");
                let frames = emulated::record(ram, *effort, window);
                (effort.to_string(), frames)
            })
            .collect();
        let courses = Courses::of(recorded.iter().map(|(_, frames)| frames.as_slice()));
        for link in &self.links {
            eprintln!("{name}: over {}", link.name);
            let adapted = self.drives(link).into_iter().map(|(system, drive)| {
                let mut sent = emulated::adapt(ram, &drive);
                let of_it = rows_of(name, link, &drive, &sent, &courses);
                sent.shadow = shadow::cases(&of_it, &drive.shadow).pop();
                rows.extend(of_it);
                (system, sent)
            });
            let adapted: Vec<_> = adapted.collect();
            runs.extend(over(name, link, &recorded, adapted));
        }
    }

    /// All runs over a link in which the effort changes, by their names.
    fn drives(&self, link: &Link) -> Vec<(&'static str, Drive)> {
        let shadow = self.tree.clone().unwrap_or_else(Tree::compiled);
        let mut drives = vec![];
        let mut add = |by: By| {
            for is_short in [false, true] {
                let system = match (&by, is_short) {
                    (By::Rule, false) => AUTO,
                    (By::Rule, true) => AUTO_SHORT,
                    (By::Learned(_), false) => LEARNED,
                    (By::Learned(_), true) => LEARNED_SHORT,
                    (By::Drawn(_), _) => DRAWN,
                };
                let drive = Drive {
                    is_short,
                    link_bytes_per_s: link.bytes_per_s,
                    window: self.window(),
                    shadow: shadow.clone(),
                    by: by.clone(),
                };
                drives.push((system, drive));
            }
        };
        for _ in 0..self.turns {
            add(By::Rule);
            if let Some(tree) = &self.tree {
                add(By::Learned(tree.clone()));
            }
        }
        (0..self.drawn).map(By::Drawn).for_each(add);
        drives
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

/// The intervals of a run, as they are recorded: those with enough pages behind them to tell what was best.
fn rows_of(name: &str, link: &Link, drive: &Drive, sent: &Sent, courses: &Courses) -> Vec<Row> {
    let at = |effort: Effort| Effort::ALL.iter().position(|one| *one == effort);
    let row = |decision: &Decision| {
        let seen = &decision.seen;
        let ahead = courses.ahead(decision.page_bytes as f64, seen.interval.page_bytes)?;
        Some(Row {
            ram: name.into(),
            link: link.name.clone(),
            bytes_per_s: link.bytes_per_s,
            is_short: drive.is_short,
            by: drive.by.name().into(),
            seen: intervals::seen(&seen.interval),
            features: seen.features,
            effort: at(seen.effort)?,
            rule: at(seen.rule)?,
            next: at(decision.taken)?,
            ahead,
        })
    };
    sent.decisions.iter().filter_map(row).collect()
}

/// All rows of one link.
fn over(
    name: &str,
    link: &Link,
    recorded: &[(String, Vec<Recorded>)],
    adapted: Vec<(&str, Sent)>,
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
        shadow: sent.shadow,
        decisions: sent.decisions,
    };
    let adapted = adapted
        .into_iter()
        .filter(|(system, _)| *system != DRAWN)
        .map(|(system, sent)| (system.to_owned(), sent));
    fixed.into_iter().chain(adapted).map(row).collect()
}

fn table(record: &Record) -> String {
    let by_rule = record
        .runs
        .iter()
        .filter(|run| [AUTO, AUTO_SHORT].contains(&run.system.as_str()));
    let cases: Vec<_> = by_rule.filter_map(|run| run.shadow.clone()).collect();
    let shadow = format!(
        "\nthe learned chooser beside the rule\n{}",
        shadow::table(&cases)
    );
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
    ) + &shadow
}
