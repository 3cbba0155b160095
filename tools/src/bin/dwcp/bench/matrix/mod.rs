//! `dwcp bench matrix`: every guest with every RAM over every link. What fits this machine is run for
//! real; the rest is refused with the reason, or runs in the simulation and is labelled so.
//!
//! | file | what |
//! |---|---|
//! | `tools/scenarios/matrix.toml` | the scenarios, and the rules for what becomes of them |
//! | `definition.rs` | what such a file says |
//! | `parse.rs`, `entry.rs` | from its text, faults with line and column |
//! | `here.rs` | what this machine can do, and so what becomes of a scenario |
//! | `select.rs` | filters and samples |
//! | `run.rs` | one scenario, real or simulated |
//! | `show.rs` | the record, and its table |

mod definition;
mod entry;
mod here;
mod parse;
mod run;
mod select;
mod show;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use dwcp_controlplane::config::{self, Dimension};

use super::numbers::some;
use super::run::Record;
use crate::context::Context;
use crate::failure::Failure;
use definition::{Matrix, Scenario};
use here::{Class, Here};
use run::Links;
use show::Row;

const HELP: &str = "The matrix is a TOML file: guests, RAM sizes, links, and rules for what a \
scenario needs. Each scenario ends up in exactly one class, with the reason:
  run        moved between two real nodes on this machine; the guest checked all of its memory
  simulated  both machines of the protocol in the deterministic simulation, under faults, over the
             link's delay and with the guest's share of rewritten pages: where the guest is in the
             end, never a speed
  refused    the machine, or this version, lacks something
  not run    the time limit, or --limit, came first; cheap scenarios are run first
The exit code is 1 when a scenario that was run, or simulated, went wrong; a refusal is no failure.

Examples:
  dwcp bench matrix --list
  dwcp bench matrix
  dwcp bench matrix --filter guest=rewrite-1,linux --filter ram=1GiB --time-limit 2min
  dwcp bench matrix --filter 17,incompressible/1GiB/veth
  dwcp bench matrix --sample 20 --seed 7 --json > matrix.json
  dwcp bench report matrix.json --html matrix.html
  dwcp bench matrix --print > my.toml; dwcp bench matrix --file my.toml --list";

/// `dwcp bench matrix`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Say what would become of each scenario here; run none.
    #[arg(long)]
    list: bool,
    /// Print the matrix that comes with the program.
    #[arg(long, conflicts_with_all = ["list", "file"])]
    print: bool,
    /// Take the matrix of this file.
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    /// Only scenarios that fit: AXIS=NAME,… (guest, ram, link), or numbers or names of scenarios; given
    /// again, all have to fit.
    #[arg(long = "filter", value_name = "FILTER")]
    filters: Vec<String>,
    /// Draw so many of them by --seed.
    #[arg(long, value_name = "N")]
    sample: Option<usize>,
    /// Seed of --sample.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Run or simulate at most so many.
    #[arg(long, value_name = "N")]
    limit: Option<usize>,
    /// Begin no scenario after this time.
    #[arg(long, value_name = "TIME", default_value = "10min")]
    time_limit: String,
    /// Seeds of a simulated scenario.
    #[arg(long, value_name = "N", default_value_t = 2000, value_parser = some::<u64>)]
    seeds: u64,
    /// Change a key of every link's profile; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

const SCHEMA: &str = "dwcp.bench.matrix/1";

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    if args.print {
        return crate::context::print_text(parse::BUILT_IN);
    }
    let time_limit = time_limit(&args.time_limit)?;
    let matrix = load(args)?;
    for link in &matrix.links {
        run::settings(link, &args.changes)?;
    }
    let here = Here::default();
    let chosen = select::select(&matrix, &args.filters, args.sample, args.seed)?;
    let mut classed: Vec<_> = chosen
        .into_iter()
        .map(|scenario| (scenario, here.class(&matrix, &scenario)))
        .collect();
    let mut rows = if args.list {
        let listed = |(scenario, class): &(Scenario<'_>, Class)| Row::listed(scenario, class);
        classed.iter().map(listed).collect()
    } else {
        // The simulation first, then what moves the fewest bytes.
        classed.sort_by_key(|(scenario, class)| (*class == Class::Run, scenario.cost()));
        run_all(args, &matrix, &classed, time_limit)
    };
    rows.sort_by_key(|row| row.number);
    let record = Record::here(SCHEMA, rows);
    context.print(&record, || show::text(&record))?;
    let bad = record.runs.iter().filter(|row| row.good == Some(false));
    match bad.count() {
        0 => Ok(()),
        count => Err(Failure::other(anyhow::anyhow!(
            "scenarios that went wrong: {count}; see their outcome"
        ))),
    }
}

fn load(args: &Args) -> Result<Matrix, Failure> {
    let Some(path) = &args.file else {
        return Ok(parse::built_in()?);
    };
    let text = config::read(path).map_err(|error| {
        let hint = "`dwcp bench matrix --print` prints one to begin with";
        Failure::Usage(format!("{error} ({hint})"))
    })?;
    Ok(parse::parse(&path.display().to_string(), &text)?)
}

fn time_limit(text: &str) -> Result<Duration, Failure> {
    let parsed = Dimension::Milliseconds.parse(text);
    parsed.map(Duration::from_millis).map_err(|error| {
        let units = Dimension::Milliseconds.unit_list();
        Failure::Usage(format!("--time-limit {text}: {error}; units: {units}"))
    })
}

/// Runs them in the order given, until a limit is reached.
fn run_all(
    args: &Args,
    matrix: &Matrix,
    classed: &[(Scenario<'_>, Class)],
    time_limit: Duration,
) -> Vec<Row> {
    let began = Instant::now();
    let is_refused = |class: &Class| matches!(class, Class::Refused(_));
    let to_do = classed.iter().filter(|(_, class)| !is_refused(class));
    let to_do = to_do.count();
    let mut links = Links::default();
    let mut done = 0;
    let mut rows = vec![];
    for (scenario, class) in classed {
        let stop = if args.limit.is_some_and(|limit| done >= limit) {
            Some("--limit")
        } else {
            (began.elapsed() >= time_limit).then_some("time limit")
        };
        let row = match class {
            Class::Refused(_) => Row::listed(scenario, class),
            _ if stop.is_some() => Row::not_run(scenario, stop.unwrap_or_default()),
            Class::Simulated(why) => {
                done += 1;
                Row::simulated(scenario, why, run::simulated(scenario, args.seeds))
            }
            Class::Run => {
                done += 1;
                eprintln!("{done} of {to_do}: {}", scenario.name());
                match run::for_real(scenario, &mut links, &args.changes) {
                    Ok(measured) => {
                        let judged = measured.judge(matrix, scenario);
                        Row::measured(scenario, measured, judged)
                    }
                    Err(failure) => Row::broken(scenario, &failure),
                }
            }
        };
        if row.good.is_some() {
            eprintln!("{done} of {to_do}: {}: {}", row.name, row.outcome);
        }
        rows.push(row);
    }
    rows
}
