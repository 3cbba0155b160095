//! Intervals between decisions as they are recorded, one a line: what was seen, what was decided, and what every
//! effort takes for the pages that follow, so that the best of them for any link is known afterwards.

use std::io::{BufRead, Write};
use std::path::Path;

use anyhow::{Context as _, anyhow, bail};
use dwcp_dataplane::path::{Effort, FEATURES, Features, Interval};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use time::OffsetDateTime;

use super::emulated::Recorded;
use crate::bench::machine::Machine;

pub(super) const SCHEMA: &str = "dwcp.bench.codec.intervals/1";

pub(super) const EFFORTS: usize = Effort::ALL.len();

/// Pages that are looked at ahead: as many as the interval had, and at least so many bytes.
const AHEAD_BYTES_MIN: f64 = (16 << 20) as f64;

/// Digits that count.
const DIGITS: i32 = 5;

/// What every effort takes for some pages, by index in [`Effort::ALL`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Ahead {
    /// The pages, bytes.
    pub(super) page_bytes: f64,
    /// Time of the worker.
    pub(super) busy_s: [f64; EFFORTS],
    /// What becomes of them.
    pub(super) wire_bytes: [f64; EFFORTS],
}

/// One interval.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Row {
    pub(super) ram: String,
    pub(super) link: String,
    pub(super) bytes_per_s: f64,
    /// Over a path within a site.
    pub(super) is_short: bool,
    /// `rule`, `learned`, or `drawn` where some decisions were drawn.
    pub(super) by: String,
    /// Seconds, of them waiting and encoding, bytes of pages, bytes sent.
    pub(super) seen: [f64; 5],
    pub(super) features: Features,
    /// In use, by the rule, and taken: indices in [`Effort::ALL`].
    pub(super) effort: usize,
    pub(super) rule: usize,
    pub(super) next: usize,
    pub(super) ahead: Ahead,
}

impl Row {
    /// Seconds that each effort takes for the pages that follow, once the sockets are full.
    pub(super) fn seconds(&self) -> [f64; EFFORTS] {
        self.ahead.seconds(self.bytes_per_s)
    }

    fn is_sound(&self) -> bool {
        let numbers = [self.bytes_per_s, self.ahead.page_bytes];
        let known = [self.effort, self.rule, self.next];
        let is_measured = |seconds: &f64| seconds.is_finite() && *seconds > 0.0;
        numbers.iter().all(is_measured)
            && self.seconds().iter().all(is_measured)
            && self.features.iter().all(|value| value.is_finite())
            && known.iter().all(|&at| at < EFFORTS)
    }
}

impl Ahead {
    pub(super) fn seconds(&self, bytes_per_s: f64) -> [f64; EFFORTS] {
        std::array::from_fn(|at| self.busy_s[at].max(self.wire_bytes[at] / bytes_per_s))
    }
}

/// The interval as it is written.
pub(super) fn seen(interval: &Interval) -> [f64; 5] {
    [
        interval.seconds,
        interval.waited_s,
        interval.encoded_s,
        interval.page_bytes,
        interval.wire_bytes,
    ]
    .map(rounded)
}

/// All of some RAM by every effort: where in its pages what time and what bytes had been spent.
pub(super) struct Courses([Vec<[f64; 3]>; EFFORTS]);

impl Courses {
    /// Of the frames of every effort, in the order of [`Effort::ALL`].
    pub(super) fn of<'a>(frames: impl Iterator<Item = &'a [Recorded]>) -> Self {
        let mut courses: [Vec<[f64; 3]>; EFFORTS] = std::array::from_fn(|_| vec![[0.0; 3]]);
        for (course, frames) in courses.iter_mut().zip(frames) {
            let mut at = [0.0; 3];
            for frame in frames {
                let [pages, busy, wire] = frame.spent();
                at = [at[0] + pages, at[1] + busy, at[2] + wire];
                course.push(at);
            }
        }
        Self(courses)
    }

    /// Of the pages behind the first `at` bytes of them, after an interval that had so many. `None` at the end.
    pub(super) fn ahead(&self, at: f64, interval_bytes: f64) -> Option<Ahead> {
        let last = |course: &Vec<[f64; 3]>| course.last().map_or(0.0, |point| point[0]);
        let end = self.0.iter().map(last).fold(f64::INFINITY, f64::min);
        let to = (at + interval_bytes.max(AHEAD_BYTES_MIN)).min(end);
        if to - at < AHEAD_BYTES_MIN / 4.0 {
            return None;
        }
        let spent = self.0.each_ref().map(|course| {
            let (from, to) = (point(course, at), point(course, to));
            [rounded(to[0] - from[0]), rounded(to[1] - from[1])]
        });
        Some(Ahead {
            page_bytes: rounded(to - at),
            busy_s: spent.map(|[busy, _]| busy.max(1e-9)),
            wire_bytes: spent.map(|[_, wire]| wire),
        })
    }
}

/// Time and bytes spent for the first `at` bytes of pages.
fn point(course: &[[f64; 3]], at: f64) -> [f64; 2] {
    let next = course.partition_point(|point| point[0] < at);
    let after = course[next.min(course.len() - 1)];
    let before = course[next.saturating_sub(1).min(course.len() - 1)];
    let part = match after[0] - before[0] {
        pages if pages > 0.0 => ((at - before[0]) / pages).clamp(0.0, 1.0),
        _ => 1.0,
    };
    [1, 2].map(|what| before[what] + part * (after[what] - before[what]))
}

fn rounded(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return value;
    }
    let unit = 10_f64.powi(DIGITS - 1 - value.abs().log10().floor() as i32);
    (value * unit).round() / unit
}

/// First line of a file.
#[derive(Debug, Serialize, Deserialize)]
struct Head {
    schema: String,
    date: String,
    machine: Value,
    efforts: Vec<String>,
    features: Vec<String>,
}

impl Head {
    fn here() -> anyhow::Result<Self> {
        Ok(Self {
            schema: SCHEMA.into(),
            // UTC, as YYYY-MM-DD.
            date: OffsetDateTime::now_utc().date().to_string(),
            machine: serde_json::to_value(Machine::here())?,
            efforts: Effort::ALL.iter().map(ToString::to_string).collect(),
            features: FEATURES.map(str::to_owned).into(),
        })
    }

    /// Its rows mean here what they meant there.
    fn check(&self) -> anyhow::Result<()> {
        let efforts: Vec<_> = Effort::ALL.iter().map(ToString::to_string).collect();
        if self.schema != SCHEMA {
            bail!("schema {} where {SCHEMA} is read", self.schema);
        }
        if self.efforts != efforts {
            bail!(
                "it has the efforts {:?}, this release {efforts:?}",
                self.efforts
            );
        }
        if self.features != FEATURES {
            bail!(
                "it has the features {:?}, this release {FEATURES:?}",
                self.features
            );
        }
        Ok(())
    }
}

/// Rows of a file, and when they were recorded.
#[derive(Debug)]
pub(super) struct Recording {
    pub(super) date: String,
    pub(super) rows: Vec<Row>,
}

/// Writes a file.
pub(super) fn write(path: &Path, rows: &[Row]) -> anyhow::Result<()> {
    let words = || path.display().to_string();
    let mut text = serde_json::to_string(&Head::here()?)?;
    for row in rows {
        text.push('\n');
        text.push_str(&serde_json::to_string(row)?);
    }
    let mut file = std::fs::File::create(path).with_context(words)?;
    writeln!(file, "{text}").with_context(words)
}

/// Reads a file.
pub(super) fn read(path: &Path) -> anyhow::Result<Recording> {
    let words = || path.display().to_string();
    let file = std::fs::File::open(path).with_context(words)?;
    parse(std::io::BufReader::new(file)).with_context(words)
}

pub(super) fn parse(text: impl BufRead) -> anyhow::Result<Recording> {
    let mut lines = text.lines().enumerate();
    let (_, first) = lines.next().ok_or_else(|| anyhow!("it is empty"))?;
    let no_head = "line 1: not the head of what `dwcp bench codec --intervals` writes";
    let head: Head = serde_json::from_str(&first?).context(no_head)?;
    head.check().context("line 1")?;
    let mut rows = vec![];
    for (index, line) in lines {
        let words = || format!("line {}", index + 1);
        let row: Row = serde_json::from_str(&line?).with_context(words)?;
        if !row.is_sound() {
            return Err(anyhow!("a number in it is out of range")).with_context(words);
        }
        rows.push(row);
    }
    if rows.is_empty() {
        bail!("no intervals in it");
    }
    Ok(Recording {
        date: head.date,
        rows,
    })
}

#[cfg(test)]
pub(super) mod tests;
