//! `dwcp bench codec train`: grows the learned chooser from recordings, and judges it on what it has not seen.

mod cart;
mod file;

use std::path::PathBuf;

use dwcp_dataplane::path::{FEATURES, Tree};
use serde::Serialize;

use self::cart::{Limits, Sample};
use self::file::About;
pub(super) use self::file::read as read_tree;
use super::intervals::{self, EFFORTS, Row};
use super::shadow::{Case, cases, line, mean};
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "A record is what `dwcp bench codec --intervals FILE` writes. A tree is grown so that \
the time lost against the best effort for the pages that follow is least, every RAM, link and path counting the same. \
Before that, each RAM and each link is left out in turn, and the tree grown without it is judged on it beside the \
rule, on the intervals where the rule decided. The same records give the same tree.

Examples:
  dwcp bench codec --intervals intervals.jsonl --drawn 2
  dwcp bench codec train intervals.jsonl
  dwcp bench codec train intervals.jsonl --out dataplane/src/path/effort/learned/table.rs
  dwcp bench codec train intervals.jsonl --without-ram store --out tree.json
  dwcp bench codec --ram store --tree tree.json";

/// `dwcp bench codec train`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Records of intervals.
    #[arg(value_name = "RECORD", required = true)]
    records: Vec<PathBuf>,
    /// Where the tree goes: Rust for the data plane where the name ends with .rs, JSON for `--tree` otherwise.
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Learn nothing from this RAM; may be given again.
    #[arg(long, value_name = "RAM")]
    without_ram: Vec<String>,
    /// Learn nothing from this link; may be given again.
    #[arg(long, value_name = "RATE")]
    without_link: Vec<String>,
    /// Ask nothing of this feature; may be given again.
    #[arg(long, value_name = "NAME", value_parser = feature)]
    without_feature: Vec<usize>,
    /// Splits above a leaf, at most.
    #[arg(long, default_value_t = LIMITS.depth, value_parser = clap::value_parser!(u32).range(1..=7))]
    depth: u32,
    /// Intervals of a leaf, at least.
    #[arg(long, default_value_t = LIMITS.leaf)]
    leaf: usize,
    /// Part of the time that a split saves, at least.
    #[arg(long, default_value_t = LIMITS.gain)]
    gain: f64,
}

fn feature(name: &str) -> Result<usize, String> {
    let at = FEATURES.iter().position(|one| *one == name);
    at.ok_or_else(|| format!("the features are {}", FEATURES.join(", ")))
}

/// What the compiled tree was grown with.
const LIMITS: Limits = Limits {
    depth: 5,
    leaf: 20,
    gain: 0.0005,
    without: 0,
};

/// No interval counts for more than that against an effort.
const LOST_MAX: f64 = 3.0;

/// What a change is taken to cost: a new window, and an interval that is not judged.
const CHANGE: f64 = 0.02;

/// What came of it.
#[derive(Debug, Serialize)]
struct Report {
    records: Vec<String>,
    intervals: usize,
    nodes: usize,
    held_out: Vec<HeldOut>,
    /// Of the tree that was grown from all of it, on what it was grown from.
    learned_from: Vec<Case>,
}

/// One RAM or link that a tree was grown without.
#[derive(Debug, Serialize)]
struct HeldOut {
    what: &'static str,
    name: String,
    intervals: usize,
    /// Part of the intervals where both take the same.
    agree: f64,
    /// Time lost against the best effort, mean of its cases.
    rule_lost: f64,
    learned_lost: f64,
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let limits = args.limits();
    let learned = Learned::from(&args.records, |row| args.takes(row), &limits)?;
    let (rows, tree) = (&learned.rows, &learned.tree);
    let report = Report {
        records: learned.about.records.clone(),
        intervals: rows.len(),
        nodes: tree.nodes().len(),
        held_out: hold_out(rows, &limits)?,
        learned_from: cases(rows, tree),
    };
    if let Some(path) = &args.out {
        file::write(path, tree, &learned.about).map_err(Failure::other)?;
    }
    context.print(&report, || table(&report))
}

/// A tree, and what it was grown from.
struct Learned {
    rows: Vec<Row>,
    about: About,
    tree: Tree,
}

impl Learned {
    /// From those rows of some records that are to be learned from.
    fn from(
        records: &[PathBuf],
        takes: impl Fn(&Row) -> bool,
        limits: &Limits,
    ) -> Result<Self, Failure> {
        let (mut rows, mut about) = (vec![], About::default());
        for path in records {
            let recording =
                intervals::read(path).map_err(|error| Failure::Usage(format!("{error:#}")))?;
            rows.extend(recording.rows.into_iter().filter(&takes));
            about.date = about.date.max(recording.date);
            let name = path.file_name().unwrap_or_default();
            about.records.push(name.to_string_lossy().into_owned());
        }
        about.intervals = rows.len();
        let tree = learn(&rows, limits).map_err(Failure::other)?;
        Ok(Self { rows, about, tree })
    }
}

impl Args {
    fn takes(&self, row: &Row) -> bool {
        !self.without_ram.contains(&row.ram) && !self.without_link.contains(&row.link)
    }

    fn limits(&self) -> Limits {
        Limits {
            depth: self.depth,
            leaf: self.leaf,
            gain: self.gain,
            without: self.without_feature.iter().fold(0, |all, at| all | 1 << at),
        }
    }
}

/// The tree that loses least time on these intervals, each case counting the same.
fn learn(rows: &[Row], limits: &Limits) -> anyhow::Result<Tree> {
    let all = super::shadow::groups(rows);
    let mut samples = vec![];
    for group in &all {
        let best_s: f64 = group.iter().map(|row| least(&row.seconds())).sum();
        let share = 1.0 / best_s / all.len() as f64;
        samples.extend(group.iter().map(|row| sample(row, share)));
    }
    cart::grow(&samples, limits)
}

fn sample(row: &Row, share: f64) -> Sample {
    let seconds = row.seconds();
    let best = least(&seconds);
    let costs = std::array::from_fn(|at: usize| {
        let change = if at == row.effort { 0.0 } else { CHANGE };
        ((seconds[at] / best - 1.0).min(LOST_MAX) + change) * best * share
    });
    Sample {
        features: row.features,
        costs,
    }
}

pub(super) fn least(seconds: &[f64; EFFORTS]) -> f64 {
    seconds.iter().copied().fold(f64::INFINITY, f64::min)
}

/// Leaves each RAM out, then each link. Nothing where there is but one.
fn hold_out(rows: &[Row], limits: &Limits) -> Result<Vec<HeldOut>, Failure> {
    let mut held_out = vec![];
    for what in ["ram", "link"] {
        let names = crate::bench::run::cases(rows, |row| name_of(row, what));
        for name in names.iter().filter(|_| names.len() > 1) {
            let (test, train): (Vec<Row>, Vec<Row>) = rows
                .iter()
                .cloned()
                .partition(|row| name_of(row, what) == *name);
            let tree = learn(&train, limits).map_err(Failure::other)?;
            let test: Vec<_> = test.into_iter().filter(|row| row.by == "rule").collect();
            if test.is_empty() {
                continue;
            }
            let cases = cases(&test, &tree);
            held_out.push(HeldOut {
                what,
                name: (*name).to_owned(),
                intervals: test.len(),
                agree: mean(&cases, |case| case.agree),
                rule_lost: mean(&cases, |case| case.rule_lost),
                learned_lost: mean(&cases, |case| case.learned_lost),
            });
        }
    }
    Ok(held_out)
}

fn name_of<'a>(row: &'a Row, what: &str) -> &'a str {
    if what == "ram" { &row.ram } else { &row.link }
}

fn table(report: &Report) -> String {
    let mut out = format!(
        "{} intervals of {}: a tree of {} nodes\n\nheld out               intervals  agree  rule lost  learned lost\n",
        report.intervals,
        report.records.join(", "),
        report.nodes
    );
    for one in &report.held_out {
        let name = format!("{} {}", one.what, one.name);
        let parts = [one.agree, one.rule_lost, one.learned_lost];
        out.push_str(&line(&format!("{name:<22}"), one.intervals, parts));
    }
    out.push_str("\non what it was grown from\n");
    out + &super::shadow::table(&report.learned_from)
}

#[cfg(test)]
mod tests;
