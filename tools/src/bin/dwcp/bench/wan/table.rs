//! Runs as people read them.

use std::fmt::Write;
use std::path::PathBuf;

use serde::Deserialize;

use super::{Record, Run, goals};
use crate::bench::run::{by_case, cases};
use crate::bench::stat::median;
use crate::failure::Failure;

/// What others are compared with.
pub(super) const YARDSTICK: &str = "qemu-multifd4-zstd";

/// One system in one case.
pub(super) struct Row<'a> {
    pub(super) name: String,
    runs: Vec<&'a Run>,
}

impl<'a> Row<'a> {
    fn of(runs: &[&'a Run]) -> Vec<Self> {
        let mut rows: Vec<Self> = vec![];
        for &run in runs {
            let name = run.name();
            match rows.iter_mut().find(|row| row.name == name) {
                Some(row) => row.runs.push(run),
                None => rows.push(Self {
                    name,
                    runs: vec![run],
                }),
            }
        }
        rows
    }

    pub(super) fn middle(&self, of: fn(&Run) -> f64) -> f64 {
        median(self.runs.iter().map(|run| of(run)))
    }

    pub(super) fn is_completed(&self) -> bool {
        self.runs.iter().all(|run| run.is_completed())
    }

    /// All of it was given up, though it was still going.
    pub(super) fn is_out_of_time(&self) -> bool {
        self.runs.iter().all(|run| run.is_out_of_time())
    }

    /// Time, and bytes, as a share of what the yardstick takes.
    fn ratios(&self, rows: &[Self]) -> Option<[f64; 2]> {
        let other = rows.iter().find(|row| row.name == YARDSTICK)?;
        let both = self.is_completed() && other.is_completed();
        let ratio = |of: fn(&Run) -> f64| self.middle(of) / other.middle(of);
        both.then(|| {
            [
                ratio(|run| run.total_ms),
                ratio(|run| run.wire_bytes as f64),
            ]
        })
    }

    fn verdict(&self) -> &str {
        match (
            self.is_completed(),
            self.runs.iter().all(|run| run.guest_verified),
        ) {
            (false, _) => "GIVEN UP",
            (true, true) => "verified",
            (true, false) => "BAD",
        }
    }
}

fn of_ram(run: &Run) -> f64 {
    run.wire_bytes as f64 / run.ram_bytes as f64
}

fn mib(run: &Run) -> f64 {
    run.wire_bytes as f64 / f64::from(1 << 20)
}

/// One run, as soon as it is over.
pub(super) fn line(run: &Run) -> String {
    let row = Row {
        name: run.name(),
        runs: vec![run],
    };
    let why = if run.is_completed() { "" } else { &run.result };
    format!("{} {why}", text_row(&row, None))
}

pub(super) fn of(record: &Record) -> String {
    by_case(record, |run| &run.case, case_table)
}

fn case_table(runs: &[&Run]) -> String {
    let mut out = format!(
        "{:<24} {:>9} {:>10} {:>9} {:>7} {:>7} {:>7} {:>7}  guest\n",
        "median of each",
        "total ms",
        "pause ms",
        "wire MiB",
        "of RAM",
        "CPU s",
        "time/q",
        "bytes/q"
    );
    let rows = Row::of(runs);
    for row in &rows {
        let _ = writeln!(out, "{}", text_row(row, row.ratios(&rows)));
    }
    if rows.iter().any(|row| row.name == YARDSTICK) {
        let _ = writeln!(out, "q: {YARDSTICK}");
    }
    let case = runs.first().map_or("", |run| &run.case);
    for goal in goals::reached(case, &rows) {
        let _ = writeln!(out, "{goal}");
    }
    out
}

fn text_row(row: &Row<'_>, ratios: Option<[f64; 2]>) -> String {
    let [time, bytes] = in_words(ratios);
    format!(
        "{:<24} {:>9.0} {:>10.1} {:>9.1} {:>7.3} {:>7.2} {time:>7} {bytes:>7}  {}",
        row.name,
        row.middle(|run| run.total_ms),
        row.middle(|run| run.downtime_ms),
        row.middle(mib),
        row.middle(of_ram),
        row.middle(|run| run.cpu_s),
        row.verdict()
    )
}

fn in_words(ratios: Option<[f64; 2]>) -> [String; 2] {
    ratios.map_or_else(
        || ["-".into(), "-".into()],
        |ratios| ratios.map(|ratio| format!("{ratio:.2}")),
    )
}

/// What a record is read for; its machine is not.
#[derive(Deserialize)]
struct Recorded {
    runs: Vec<Run>,
}

/// The runs of records as Markdown, one table.
pub(super) fn of_records(paths: &[PathBuf]) -> Result<String, Failure> {
    let mut runs = vec![];
    for path in paths {
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::NotFound(format!("{}: {error}", path.display())))?;
        let recorded: Recorded = serde_json::from_str(&text).map_err(|error| {
            Failure::other(anyhow::anyhow!(
                "{} is no record of `dwcp bench wan`: {error}",
                path.display()
            ))
        })?;
        runs.extend(recorded.runs);
    }
    Ok(markdown(&runs))
}

fn markdown(runs: &[Run]) -> String {
    let mut out =
        "| case | system | total s | of q | pause ms | MiB | of RAM | of q | CPU s | guest |\n\
                   |---|---|--:|--:|--:|--:|--:|--:|--:|---|\n"
            .to_owned();
    let mut goals = String::new();
    for case in cases(runs, |run| &run.case) {
        let of_it: Vec<_> = runs.iter().filter(|run| run.case == case).collect();
        let rows = Row::of(&of_it);
        for row in &rows {
            let [time, bytes] = in_words(row.ratios(&rows));
            let _ = writeln!(
                out,
                "| {case} | {} | {:.1} | {time} | {:.0} | {:.1} | {:.3} | {bytes} | {:.1} | {} |",
                row.name,
                row.middle(|run| run.total_ms) / 1e3,
                row.middle(|run| run.downtime_ms),
                row.middle(mib),
                row.middle(of_ram),
                row.middle(|run| run.cpu_s),
                row.verdict()
            );
        }
        for goal in goals::reached(case, &rows) {
            let _ = writeln!(goals, "{}", goal.markdown(case));
        }
    }
    let _ = write!(out, "\nq: {YARDSTICK}.");
    if !goals.is_empty() {
        out.push_str(
            "\n\n| case | | of | over | ratio | goal | |\n|---|---|---|---|--:|--:|---|\n",
        );
        out.push_str(goals.trim_end());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(system: &str, held: &str, total_ms: f64, result: &str) -> Run {
        let text = serde_json::json!({
            "system": system, "case": "100mbit,100ms idle", "held": held, "result": result,
            "total_ms": total_ms, "downtime_ms": 1.0, "wire_bytes": 1 << 20, "bytes_per_s": 1.0,
            "cpu_s": 1.0, "ram_bytes": 4 << 20, "guest_verified": true,
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn goals_are_named_where_both_sides_ended() {
        let mut runs = vec![
            run("dwcp", "", 500.0, "completed"),
            run("dwcp-back", "", 500.0, "completed"),
            run(YARDSTICK, "", 1000.0, "completed"),
            run("qemu-plain", "", 800.0, "completed"),
        ];
        runs[0].wire_bytes = 2 << 20;
        runs[0].downtime_ms = 600.0;
        let text = markdown(&runs);
        for wanted in [
            "| 100mbit,100ms idle | bytes | dwcp | RAM | 0.50 | 0.30 | missed |",
            "| bytes | dwcp | qemu-multifd4-zstd | 2.00 | 0.85 | missed |",
            "| bytes | dwcp-back | dwcp | 0.50 | 0.12 | missed |",
            "| total | dwcp | qemu-plain | 0.62 | 0.90 | reached |",
            "| pause | dwcp | 500 ms | 1.20 | 1.00 | missed |",
            "| pause | dwcp-back | 500 ms | 0.00 | 1.00 | reached |",
        ] {
            assert!(text.contains(wanted), "{text}");
        }
        assert!(!text.contains("sibling"), "{text}");
        runs[1].wire_bytes = 2 << 10;
        runs[2].result = "given up".into();
        let text = markdown(&runs);
        assert!(
            text.contains("| 0.00 | 0.12 | reached |") && !text.contains("0.85"),
            "{text}"
        );
    }

    #[test]
    fn a_system_is_compared_with_multifd_where_both_ended() {
        let mut runs = vec![
            run("dwcp", "disk", 500.0, "completed"),
            run(YARDSTICK, "", 1000.0, "completed"),
        ];
        let text = markdown(&runs);
        let wanted =
            "| 100mbit,100ms idle | dwcp, disk held | 0.5 | 0.50 | 1 | 1.0 | 0.250 | 1.00 |";
        assert!(text.contains(wanted), "{text}");
        runs[1].result = "given up".into();
        let text = markdown(&runs);
        assert!(
            text.contains("| 0.5 | - |") && text.contains("GIVEN UP"),
            "{text}"
        );
    }
}
