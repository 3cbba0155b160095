//! A record, whichever bench wrote it: a machine, and runs of systems in cases.

use std::path::Path;

use serde::Serialize;
use serde_json::{Map, Value};

use super::super::stat::median;
use crate::failure::Failure;

/// A figure that runs may have.
#[derive(Clone, Copy, Debug)]
pub(super) struct Metric {
    /// Its field.
    pub(super) key: &'static str,
    /// Its name, with the unit it is shown in.
    pub(super) head: &'static str,
    /// What the field is divided by to be shown.
    pub(super) per: f64,
    /// Digits behind the point.
    pub(super) digits: usize,
    /// Whether less is better.
    pub(super) less_is_better: bool,
}

const fn metric(key: &'static str, head: &'static str, per: f64, digits: usize) -> Metric {
    Metric {
        key,
        head,
        per,
        digits,
        less_is_better: true,
    }
}

/// What is shown of a run, if it has it.
pub(super) const METRICS: [Metric; 7] = [
    metric("total_ms", "total ms", 1.0, 0),
    metric("downtime_ms", "pause ms", 1.0, 1),
    metric("wire_bytes", "wire MiB", 1_048_576.0, 1),
    Metric {
        less_is_better: false,
        ..metric("bytes_per_s", "GB/s", 1e9, 2)
    },
    metric("cpu_s", "CPU s", 1.0, 2),
    metric("core_percent", "% of a core", 1.0, 4),
    metric("value", "value", 1.0, 3),
];

/// A record that was read.
#[derive(Clone, Debug)]
pub(super) struct Record {
    /// Where it came from.
    pub(super) name: String,
    /// `dwcp.bench.NAME/1`.
    pub(super) schema: String,
    machine: Map<String, Value>,
    runs: Vec<Map<String, Value>>,
}

/// All runs of one system in one case.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Group {
    /// System.
    pub(super) system: String,
    /// Case.
    pub(super) case: String,
    /// How many runs.
    pub(super) runs: usize,
    /// Values by field, in the order of the runs.
    pub(super) values: std::collections::BTreeMap<&'static str, Vec<f64>>,
    /// How its runs ended, each way once; empty where a bench does not say.
    pub(super) outcomes: Vec<String>,
}

impl Record {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self, Failure> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|error| Failure::Usage(format!("{name}: {error}")))?;
        Self::parse(&name, &text)
    }

    /// Reads the text of a file.
    pub(super) fn parse(name: &str, text: &str) -> Result<Self, Failure> {
        let refuse = |why: &str| Failure::Usage(format!("{name}: {why}"));
        let value: Value =
            serde_json::from_str(text).map_err(|error| refuse(&format!("not JSON: {error}")))?;
        let schema = value["schema"]
            .as_str()
            .ok_or_else(|| refuse("no field `schema`: not a record of `dwcp bench … --json`"))?;
        if !schema.starts_with("dwcp.bench.") {
            let why = format!("schema {schema} is not one of dwcp.bench.*");
            return Err(refuse(&why));
        }
        let runs: Vec<_> = value["runs"]
            .as_array()
            .ok_or_else(|| refuse("no list `runs`"))?
            .iter()
            .filter_map(|run| run.as_object().cloned())
            .collect();
        if runs.is_empty() {
            return Err(refuse("no runs in it"));
        }
        Ok(Self {
            name: name.to_owned(),
            schema: schema.to_owned(),
            machine: value["machine"].as_object().cloned().unwrap_or_default(),
            runs,
        })
    }

    /// The machine in one line.
    pub(super) fn machine_line(&self) -> String {
        let text = |key: &str| self.machine.get(key).and_then(Value::as_str).unwrap_or("?");
        let number = |key: &str| self.machine.get(key).and_then(Value::as_u64).unwrap_or(0);
        format!(
            "{}, {} cores, {} MiB, Linux {}, {}, dwcp {}",
            text("cpu"),
            number("cores"),
            number("ram_mib"),
            text("kernel"),
            text("qemu"),
            text("dwcp")
        )
    }

    /// Runs by case and system, in the order of their first run.
    pub(super) fn groups(&self) -> Vec<Group> {
        let mut groups: Vec<Group> = vec![];
        let mut cases: Vec<String> = vec![];
        for run in &self.runs {
            let text = |key: &str| {
                run.get(key)
                    .and_then(Value::as_str)
                    .unwrap_or("")
                    .to_owned()
            };
            // What the destination had before makes it another measurement.
            let system = match text("held").as_str() {
                "" => text("system"),
                held => format!("{}, {held} held", text("system")),
            };
            let case = text("case");
            if !cases.contains(&case) {
                cases.push(case.clone());
            }
            let at = groups
                .iter()
                .position(|group| group.system == system && group.case == case)
                .unwrap_or_else(|| {
                    groups.push(Group {
                        system,
                        case,
                        runs: 0,
                        values: Default::default(),
                        outcomes: vec![],
                    });
                    groups.len() - 1
                });
            groups[at].runs += 1;
            let outcome = text("outcome");
            if !outcome.is_empty() && !groups[at].outcomes.contains(&outcome) {
                groups[at].outcomes.push(outcome);
            }
            for metric in METRICS {
                if let Some(value) = run.get(metric.key).and_then(Value::as_f64) {
                    let values = groups[at].values.entry(metric.key).or_default();
                    values.push(value);
                }
            }
        }
        groups.sort_by_key(|group| cases.iter().position(|case| *case == group.case));
        groups
    }
}

impl Group {
    /// Whether its runs have this figure, and not 0 in all of them.
    pub(super) fn has(&self, key: &str) -> bool {
        self.of(key).iter().any(|value| *value != 0.0)
    }

    /// The values of a figure.
    pub(super) fn of(&self, key: &str) -> &[f64] {
        self.values.get(key).map_or(&[], Vec::as_slice)
    }

    /// How its runs ended, in one cell.
    pub(super) fn outcome(&self) -> String {
        self.outcomes.join("; ")
    }

    /// Median, and the span where there is one.
    pub(super) fn cell(&self, metric: &Metric) -> String {
        let values = self.of(metric.key);
        if values.is_empty() {
            return String::new();
        }
        let show = |value: f64| format!("{:.*}", metric.digits, value / metric.per);
        let middle = show(median(values.iter().copied()));
        let least = show(values.iter().copied().fold(f64::INFINITY, f64::min));
        let most = show(values.iter().copied().fold(f64::NEG_INFINITY, f64::max));
        if least == most {
            return middle;
        }
        format!("{middle} ({least}-{most})")
    }
}
