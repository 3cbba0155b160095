//! What came of the runs, as a table.

use std::collections::BTreeMap;
use std::fmt::Write;

use clap::ValueEnum;

use super::plan::{Fault, Mode, Phase, columns};
use super::{Outcome, Run};
use crate::bench::run::Record;
use crate::bench::whereabouts::Where;

/// Rows are faults, columns phases; a cell is how many of its runs were good, of those that it struck.
pub(super) fn table(record: &Record<Run>) -> String {
    let mut out = format!("{}\n\n", record.machine.line());
    let _ = write!(out, "{:<32}", "");
    for (mode, phase) in columns() {
        let _ = write!(out, "{:>12}", heading(mode, phase));
    }
    out.push('\n');
    let mut cells: BTreeMap<(Fault, Mode, Phase), (u32, u32)> = BTreeMap::new();
    for run in record.runs.iter().filter(|run| run.outcome.is_count()) {
        let cell = &run.cell;
        let (good, all) = cells
            .entry((cell.fault, cell.mode, cell.phase))
            .or_default();
        *good += u32::from(run.outcome == Outcome::Good);
        *all += 1;
    }
    let has_runs = |fault: &&Fault| record.runs.iter().any(|run| run.cell.fault == **fault);
    for fault in Fault::value_variants().iter().filter(has_runs) {
        let _ = write!(out, "{:<32}", name(fault));
        for (mode, phase) in columns() {
            let cell = cells.get(&(*fault, mode, phase));
            let text = cell.map_or_else(|| "-".to_owned(), |(good, all)| format!("{good}/{all}"));
            let _ = write!(out, "{text:>12}");
        }
        out.push('\n');
    }
    out.push_str(&end(record));
    out
}

fn heading(mode: Mode, phase: Phase) -> String {
    let mark = match mode {
        Mode::PreCopy => "",
        Mode::PostCopy => "*",
    };
    format!("{}{mark}", name(&phase))
}

fn name(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

fn end(record: &Record<Run>) -> String {
    let of = |wanted: fn(&Run) -> bool| record.runs.iter().filter(|run| wanted(run)).count();
    let struck = of(|run| run.outcome.is_count());
    let lost = of(|run| run.outcome == Outcome::Lost);
    let doubled = of(|run| run.outcome == Outcome::Doubled);
    let damaged = of(|run| run.outcome == Outcome::Damaged);
    let mut out =
        format!("* post-copy\n\n{lost} lost, {doubled} doubled, {damaged} damaged of {struck}\n");
    let found = |at: Where| {
        let at = |run: &&Run| run.outcome.is_count() && run.found == Some(at);
        record.runs.iter().filter(at).count()
    };
    let _ = writeln!(
        out,
        "the guest: {} at the destination, {} at the source, {} ended with its killed VMM after the commit",
        found(Where::Destination),
        found(Where::Source),
        found(Where::DiedAtDestination)
    );
    for (outcome, words) in [
        (Outcome::NotStruck, "whose moment did not come"),
        (Outcome::Skipped, "skipped"),
        (Outcome::Broken, "that could not be set up"),
    ] {
        let runs = record.runs.iter().filter(|run| run.outcome == outcome);
        let mut why: BTreeMap<&str, u32> = BTreeMap::new();
        for run in runs {
            let text = if outcome == Outcome::NotStruck {
                ""
            } else {
                &run.note
            };
            *why.entry(text).or_default() += 1;
        }
        for (text, count) in why {
            let _ = writeln!(
                out,
                "{count} {words}{}{text}",
                if text.is_empty() { "" } else { ": " }
            );
        }
    }
    out
}
