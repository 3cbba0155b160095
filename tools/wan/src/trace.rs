//! A rate that changes over time: CSV with the columns `t_s` and `mbps`, and perhaps `trace`.

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use crate::params::TraceSource;

/// A trace that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// It cannot be read.
    #[error("{path}: {error}")]
    Read {
        /// The file.
        path: String,
        /// Why.
        error: std::io::Error,
    },
    /// A line that is none of a trace.
    #[error("{path}:{line}: {why}; a line is `t_s,mbps` or `trace,t_s,mbps`, as in `1.50,24.3`")]
    Line {
        /// The file.
        path: String,
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        why: String,
    },
    /// As a whole.
    #[error("{path}: {why}")]
    Whole {
        /// The file.
        path: String,
        /// What is wrong.
        why: String,
    },
}

/// The rate from a moment on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Step {
    starts_ns: u64,
    bit_per_s: u64,
}

/// A rate in steps, repeated for ever.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    steps: Vec<Step>,
    period_ns: u64,
}

const NS_PER_S: u64 = 1_000_000_000;

impl Trace {
    /// From a file.
    ///
    /// # Errors
    /// The file, and the number of the line.
    pub fn load(source: &TraceSource) -> Result<Self, TraceError> {
        let path = source.path.as_path();
        let bytes = read(path)?;
        if bytes.starts_with(&[0x1f, 0x8b]) {
            return Err(whole(path, "it is compressed: unpack it with gunzip first"));
        }
        let text = String::from_utf8(bytes).map_err(|_| whole(path, "it is no text"))?;
        Self::parse(path, &text, source.name.as_deref())
    }

    /// From a file's text.
    ///
    /// # Errors
    /// The file, and the number of the line.
    pub fn parse(path: &Path, text: &str, name: Option<&str>) -> Result<Self, TraceError> {
        let mut columns = None;
        let mut wanted = name.map(str::to_owned);
        let mut steps: Vec<Step> = vec![];
        let mut origin_s = None;
        for (index, line) in text.lines().enumerate() {
            let bad = |why: String| TraceError::Line {
                path: path.display().to_string(),
                line: index + 1,
                why,
            };
            let cells: Vec<_> = line.split(',').map(str::trim).collect();
            if line.trim().is_empty() {
                continue;
            }
            if columns.is_none() {
                let (found, is_header) = Columns::find(&cells).map_err(bad)?;
                if let (Some(name), None) = (name, found.trace) {
                    let why = format!("it has no column `trace`, and so no trace `{name}`");
                    return Err(whole(path, &why));
                }
                columns = Some(found);
                if is_header {
                    continue;
                }
            }
            let columns = columns.as_ref().expect("found in the first line");
            let (trace, at_s, mbps) = columns.read(&cells).map_err(bad)?;
            match (&wanted, trace) {
                (Some(wanted), Some(trace)) if wanted != trace => continue,
                (None, Some(trace)) => wanted = Some(trace.to_owned()),
                _ => {}
            }
            let origin_s = *origin_s.get_or_insert(at_s);
            let step = Step {
                starts_ns: scaled(at_s - origin_s, 1e9).map_err(bad)?,
                bit_per_s: scaled(mbps, 1e6).map_err(bad)?,
            };
            if steps
                .last()
                .is_some_and(|last| step.starts_ns <= last.starts_ns)
            {
                return Err(bad("t_s is not later than in the line before".to_owned()));
            }
            steps.push(step);
        }
        Self::from_steps(steps).map_err(|why| match name {
            Some(name) if why == NO_LINES => whole(path, &format!("it has no trace `{name}`")),
            _ => whole(path, why),
        })
    }

    fn from_steps(steps: Vec<Step>) -> Result<Self, &'static str> {
        let last = steps.last().ok_or(NO_LINES)?;
        if steps.iter().all(|step| step.bit_per_s == 0) {
            return Err("its rate is 0 throughout: nothing would ever pass");
        }
        // The last step is as long as the one before it.
        let length_ns = match steps.len() {
            1 => NS_PER_S,
            count => last.starts_ns - steps[count - 2].starts_ns,
        };
        Ok(Self {
            period_ns: last.starts_ns + length_ns,
            steps,
        })
    }

    /// When the last of `bytes` is out, if the first starts at `start_ns`. Times count from the
    /// trace's start.
    pub(crate) fn finish_ns(&self, start_ns: u64, bytes: u64) -> u64 {
        // In bits per second times nanoseconds.
        let mut left = u128::from(bytes) * 8 * u128::from(NS_PER_S);
        let mut cycle_ns = start_ns - start_ns % self.period_ns;
        let mut at_ns = start_ns - cycle_ns;
        let mut index = self.steps.partition_point(|step| step.starts_ns <= at_ns) - 1;
        loop {
            let rate = u128::from(self.steps[index].bit_per_s);
            let next = self.steps.get(index + 1);
            let ends_ns = next.map_or(self.period_ns, |step| step.starts_ns);
            let passes = rate * u128::from(ends_ns - at_ns);
            if passes >= left && rate > 0 {
                let took = u64::try_from(left.div_ceil(rate)).unwrap_or(u64::MAX);
                return cycle_ns.saturating_add(at_ns).saturating_add(took);
            }
            left -= passes;
            at_ns = ends_ns;
            index += 1;
            if index == self.steps.len() {
                (index, at_ns) = (0, 0);
                cycle_ns = cycle_ns.saturating_add(self.period_ns);
            }
        }
    }

    /// Its mean rate.
    #[must_use]
    pub fn mean_bit_per_s(&self) -> u64 {
        let ends = self.steps.iter().skip(1).map(|step| step.starts_ns);
        let ends = ends.chain([self.period_ns]);
        let sum: u128 = self
            .steps
            .iter()
            .zip(ends)
            .map(|(step, ends)| u128::from(step.bit_per_s) * u128::from(ends - step.starts_ns))
            .sum();
        u64::try_from(sum / u128::from(self.period_ns)).unwrap_or(u64::MAX)
    }

    /// How long it is before it starts again.
    #[must_use]
    pub const fn period_ns(&self) -> u64 {
        self.period_ns
    }
}

const NO_LINES: &str = "it has no line with a rate";

/// Larger than any trace, and small enough to hold.
const BYTES_MAX: u64 = 64 << 20;

/// A file that ends: the emulator reads it again, so that a pipe is none.
fn read(path: &Path) -> Result<Vec<u8>, TraceError> {
    let failed = |error| TraceError::Read {
        path: path.display().to_string(),
        error,
    };
    // Before it is opened: opening a pipe waits for who writes into it.
    if !fs::metadata(path).map_err(failed)?.is_file() {
        return Err(whole(
            path,
            "it is no regular file: write the trace into one",
        ));
    }
    let mut bytes = vec![];
    let file = File::open(path).map_err(failed)?;
    file.take(BYTES_MAX + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(whole(path, "it is larger than 64 MiB: no trace is"));
    }
    Ok(bytes)
}

/// Where a line has what.
struct Columns {
    count: usize,
    trace: Option<usize>,
    time: usize,
    rate: usize,
}

impl Columns {
    /// From the first line, which is a header or not.
    fn find(cells: &[&str]) -> Result<(Self, bool), String> {
        let position = |name: &str| cells.iter().position(|cell| *cell == name);
        if let (Some(time), Some(rate)) = (position("t_s"), position("mbps")) {
            let trace = position("trace");
            let count = cells.len();
            return Ok((
                Self {
                    count,
                    trace,
                    time,
                    rate,
                },
                true,
            ));
        }
        let plain = match cells.len() {
            2 => Self {
                count: 2,
                trace: None,
                time: 0,
                rate: 1,
            },
            3 => Self {
                count: 3,
                trace: Some(0),
                time: 1,
                rate: 2,
            },
            count => return Err(format!("{count} columns")),
        };
        Ok((plain, false))
    }

    fn read<'a>(&self, cells: &[&'a str]) -> Result<(Option<&'a str>, f64, f64), String> {
        let cell = |index: usize, name: &str| {
            let cell = cells.get(index).copied();
            cell.ok_or_else(|| format!("it has no column {name}"))
        };
        let number = |index: usize, name: &str| {
            let text = cell(index, name)?;
            let value = text.parse::<f64>().ok().filter(|value| value.is_finite());
            let value = value.filter(|value| *value >= 0.0);
            value.ok_or_else(|| format!("{name} is `{text}`, which is no number from 0 on"))
        };
        if cells.len() > self.count {
            let (count, own) = (self.count, cells.len());
            return Err(format!("{own} columns, and {count} in the first line"));
        }
        let trace = self.trace.map(|index| cell(index, "trace")).transpose()?;
        Ok((trace, number(self.time, "t_s")?, number(self.rate, "mbps")?))
    }
}

/// A whole number of smaller units, within what counts as a slip of the pen.
fn scaled(value: f64, factor: f64) -> Result<u64, String> {
    const MAX: f64 = 1e16;
    let value = (value * factor).round();
    if !(0.0..=MAX).contains(&value) {
        return Err("a number is too large, or the time goes back".to_owned());
    }
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked above"
    )]
    Ok(value as u64)
}

fn whole(path: &Path, why: &str) -> TraceError {
    TraceError::Whole {
        path: path.display().to_string(),
        why: why.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Trace, TraceError> {
        Trace::parse(Path::new("t.csv"), text, None)
    }

    #[test]
    fn a_header_and_a_trace_column_may_be_there() {
        let plain = parse("0,10\n1,20\n").unwrap();
        assert_eq!(plain, parse("t_s,mbps\n0.0,10\n1.0,20\n").unwrap());
        let named = "trace,t_s,mbps\na#0,40.0,10\na#0,41.0,20\nb,0,1\n";
        assert_eq!(plain, parse(named).unwrap());
        let second = Trace::parse(Path::new("t.csv"), named, Some("b")).unwrap();
        assert_eq!(second.mean_bit_per_s(), 1_000_000);
        assert_eq!(plain.mean_bit_per_s(), 15_000_000);
        assert_eq!(plain.period_ns(), 2 * NS_PER_S);
    }

    #[test]
    fn bad_lines_are_named() {
        for (text, words) in [
            ("t_s,mbps\n0,1\n1,fast\n", "t.csv:3: mbps is `fast`"),
            ("0,1\n1\n", "t.csv:2: it has no column mbps"),
            ("0,1\n1,2\n1,3\n", "t.csv:3: t_s is not later"),
            ("0,-1\n", "t.csv:1: mbps is `-1`"),
            ("5,1\n4,1\n", "t.csv:2: a number is too large, or"),
            (
                "t_s,mbps\n0,5\n1,5,7\n",
                "t.csv:3: 3 columns, and 2 in the first",
            ),
            (
                "t_s,mbps\n0,5,7\n",
                "t.csv:2: 3 columns, and 2 in the first",
            ),
            ("hello\n", "t.csv:1: 1 columns"),
            ("t_s,mbps\n", "t.csv: it has no line"),
            ("0,0\n1,0\n", "t.csv: its rate is 0"),
        ] {
            let error = parse(text).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
        let missing = Trace::parse(Path::new("t.csv"), "a,0,1\n", Some("z")).unwrap_err();
        assert!(missing.to_string().contains("no trace `z`"));
        for plain in ["0,1\n", "t_s,mbps\n0,1\n"] {
            let missing = Trace::parse(Path::new("t.csv"), plain, Some("z")).unwrap_err();
            assert!(
                missing.to_string().contains("no column `trace`"),
                "{missing}"
            );
        }
    }

    #[test]
    fn a_packet_takes_its_bits_from_the_steps_it_spans_and_the_trace_repeats() {
        // 8 Mbit/s, then nothing, then 16 Mbit/s: a second each.
        let trace = parse("0,8\n1,0\n2,16\n").unwrap();
        assert_eq!(trace.finish_ns(0, 500_000), NS_PER_S / 2);
        assert_eq!(
            trace.finish_ns(NS_PER_S / 2, 1_000_000),
            2 * NS_PER_S + NS_PER_S / 4
        );
        assert_eq!(trace.finish_ns(NS_PER_S * 3 / 2, 1), 2 * NS_PER_S + 500);
        assert_eq!(trace.finish_ns(2 * NS_PER_S, 3_000_000), 4 * NS_PER_S);
    }
}
