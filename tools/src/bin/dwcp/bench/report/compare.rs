//! Two records of one bench: what changed, and could it be chance?

use std::fmt::Write;

use serde::Serialize;

use super::super::stat::{chance_of_difference, median};
use super::record::{METRICS, Record};
use crate::failure::Failure;

/// Below this chance a difference is called one.
const CHANCE_MAX: f64 = 0.05;

/// One figure of one system in one case.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Change {
    system: String,
    case: String,
    metric: &'static str,
    before: f64,
    after: f64,
    ratio: f64,
    /// Of a difference as large, if the runs were shuffled.
    chance: f64,
    verdict: Verdict,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Verdict {
    Better,
    Worse,
    /// The difference may be chance.
    Open,
}

/// Sets the second record against the first.
pub(super) fn compare(before: &Record, after: &Record) -> Result<Vec<Change>, Failure> {
    if before.schema != after.schema {
        return Err(Failure::Usage(format!(
            "{} is {}, {} is {}: only records of one bench can be compared",
            before.name, before.schema, after.name, after.schema
        )));
    }
    let later = after.groups();
    let mut changes = vec![];
    for group in before.groups() {
        let same = |other: &&super::record::Group| {
            other.system == group.system && other.case == group.case
        };
        let Some(other) = later.iter().find(same) else {
            continue;
        };
        for metric in METRICS.iter().filter(|metric| group.has(metric.key)) {
            let (old, new) = (group.of(metric.key), other.of(metric.key));
            let (was, is) = (median(old.iter().copied()), median(new.iter().copied()));
            let chance = chance_of_difference(old, new);
            let verdict = match chance < CHANCE_MAX {
                false => Verdict::Open,
                true if (is < was) == metric.less_is_better => Verdict::Better,
                true => Verdict::Worse,
            };
            changes.push(Change {
                system: group.system.clone(),
                case: group.case.clone(),
                metric: metric.key,
                before: was,
                after: is,
                ratio: is / was,
                chance,
                verdict,
            });
        }
    }
    if changes.is_empty() {
        let why = "no system and case is in both records";
        return Err(Failure::Usage(format!(
            "{}, {}: {why}",
            before.name, after.name
        )));
    }
    Ok(changes)
}

pub(super) fn markdown(before: &Record, after: &Record, changes: &[Change]) -> String {
    let mut out = format!(
        "before {}: {}\nafter  {}: {}\n\n",
        before.name,
        before.machine_line(),
        after.name,
        after.machine_line()
    );
    out.push_str("| system | case | figure | before | after | ratio | chance | |\n");
    out.push_str("|---|---|---|--:|--:|--:|--:|---|\n");
    for change in changes {
        let Some(metric) = METRICS.iter().find(|metric| metric.key == change.metric) else {
            continue;
        };
        let show = |value: f64| format!("{:.*}", metric.digits, value / metric.per);
        let verdict = match change.verdict {
            Verdict::Better => "better",
            Verdict::Worse => "WORSE",
            Verdict::Open => "",
        };
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {:.2} | {:.3} | {verdict} |",
            change.system,
            change.case,
            metric.head,
            show(change.before),
            show(change.after),
            change.ratio,
            change.chance
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(times: &[f64]) -> Record {
        let runs: Vec<_> = times
            .iter()
            .map(|ms| format!(r#"{{"system":"a","case":"c","total_ms":{ms}}}"#))
            .collect();
        let text = format!(
            r#"{{"schema":"dwcp.bench.peers/1","runs":[{}]}}"#,
            runs.join(",")
        );
        Record::parse("x.json", &text).unwrap()
    }

    #[test]
    fn a_clear_change_is_named_and_noise_is_not() {
        let base = record(&[100.0, 102.0, 98.0, 101.0, 99.0]);
        let faster = record(&[80.0, 82.0, 79.0, 81.0, 80.0]);
        let noise = record(&[101.0, 97.0, 102.0, 100.0, 99.5]);
        let verdict = |a: &Record, b: &Record| compare(a, b).unwrap()[0].verdict;
        assert_eq!(verdict(&base, &faster), Verdict::Better);
        assert_eq!(verdict(&faster, &base), Verdict::Worse);
        assert_eq!(verdict(&base, &noise), Verdict::Open);
    }

    #[test]
    fn three_runs_are_never_enough() {
        let (a, b) = (record(&[1.0, 2.0, 3.0]), record(&[100.0, 200.0, 300.0]));
        assert_eq!(compare(&a, &b).unwrap()[0].verdict, Verdict::Open);
    }
}
