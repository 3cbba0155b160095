//! A learned chooser beside the rule, on the same intervals: how often both take the same, and what each loses against
//! the best effort for the pages that follow.

use dwcp_dataplane::path::Tree;
use serde::Serialize;

use super::intervals::Row;
use super::train::least;

/// One RAM over one link.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Case {
    pub(super) ram: String,
    pub(super) link: String,
    pub(super) is_short: bool,
    pub(super) intervals: usize,
    /// Part of the intervals where both take the same.
    pub(super) agree: f64,
    /// Time over that of the best effort of each interval, less 1.
    pub(super) rule_lost: f64,
    pub(super) learned_lost: f64,
}

/// Rows of the same case, in the order in which they came.
pub(super) fn groups(rows: &[Row]) -> Vec<Vec<&Row>> {
    let mut groups: Vec<Vec<&Row>> = vec![];
    let key = |row: &Row| (row.ram.clone(), row.link.clone(), row.is_short);
    for row in rows {
        match groups.iter_mut().find(|group| key(group[0]) == key(row)) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// Both, case by case.
pub(super) fn cases(rows: &[Row], tree: &Tree) -> Vec<Case> {
    let case = |group: &Vec<&Row>| {
        let (mut agreed, mut best, mut rule, mut learned) = (0, 0.0, 0.0, 0.0);
        for row in group {
            let (seconds, choice) = (row.seconds(), tree.choose(&row.features));
            agreed += usize::from(choice == row.rule);
            best += least(&seconds);
            rule += seconds[row.rule];
            learned += seconds[choice];
        }
        Case {
            ram: group[0].ram.clone(),
            link: group[0].link.clone(),
            is_short: group[0].is_short,
            intervals: group.len(),
            agree: agreed as f64 / group.len() as f64,
            rule_lost: rule / best - 1.0,
            learned_lost: learned / best - 1.0,
        }
    };
    groups(rows).iter().map(case).collect()
}

/// Mean of the cases.
pub(super) fn mean(cases: &[Case], of: impl Fn(&Case) -> f64) -> f64 {
    cases.iter().map(of).sum::<f64>() / cases.len().max(1) as f64
}

pub(super) fn table(cases: &[Case]) -> String {
    let mut out =
        "RAM over link                    intervals  agree  rule lost  learned lost\n".to_owned();
    for case in cases {
        let path = if case.is_short { ", short" } else { "" };
        let name = format!("{} over {}{path}", case.ram, case.link);
        let parts = [case.agree, case.rule_lost, case.learned_lost];
        out.push_str(&line(&format!("{name:<32}"), case.intervals, parts));
    }
    let intervals = cases.iter().map(|case| case.intervals).sum();
    let parts = [
        mean(cases, |case| case.agree),
        mean(cases, |case| case.rule_lost),
        mean(cases, |case| case.learned_lost),
    ];
    out + &line(&format!("{:<32}", "mean of them"), intervals, parts)
}

/// How often both take the same, and what each loses, behind a name.
pub(super) fn line(name: &str, intervals: usize, [agree, rule, learned]: [f64; 3]) -> String {
    format!("{name} {intervals:>9} {agree:>6.3} {rule:>10.3} {learned:>13.3}\n")
}
