//! Quantities as people write them. Each parser names what is wrong and shows an example.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Text that is no such quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is no {what}: {why}, as in {examples}")]
pub struct UnitError {
    text: String,
    what: &'static str,
    why: String,
    examples: &'static str,
}

/// A bottleneck's buffer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QueueLimit {
    /// What the link holds in a round trip, and no less than 256 KiB.
    #[default]
    Auto,
    /// So many bytes wait at most.
    Bytes(u64),
    /// No packet waits longer (nanoseconds).
    Nanoseconds(u64),
}

/// A kind of quantity: its name, its units with their factors, examples.
struct Quantity {
    what: &'static str,
    units: &'static [(&'static str, f64)],
    examples: &'static str,
}

const RATE: Quantity = Quantity {
    what: "rate",
    units: &[("gbit", 1e9), ("mbit", 1e6), ("kbit", 1e3), ("bit", 1.0)],
    examples: "100mbit, 2.5gbit or unlimited",
};

const TIME: Quantity = Quantity {
    what: "time",
    units: &[("ms", 1e6), ("us", 1e3), ("ns", 1.0), ("s", 1e9)],
    examples: "50ms, 250us or 1.5s",
};

const SIZE: Quantity = Quantity {
    what: "size",
    units: &[
        ("GiB", 1_073_741_824.0),
        ("MiB", 1_048_576.0),
        ("KiB", 1024.0),
        ("GB", 1e9),
        ("MB", 1e6),
        ("kB", 1e3),
        ("B", 1.0),
    ],
    examples: "256KiB or 4MiB",
};

const SHARE: Quantity = Quantity {
    what: "share of packets",
    units: &[("%", 0.01)],
    examples: "0.1% or 2%",
};

/// The longest time and the highest rate that are meant: anything above is a slip of the pen.
const TIME_MAX_NS: u64 = 3_600_000_000_000;
const RATE_MAX_BIT_PER_S: u64 = 1_000_000_000_000;

impl Quantity {
    fn error(&self, text: &str, why: impl Into<String>) -> UnitError {
        UnitError {
            text: text.to_owned(),
            what: self.what,
            why: why.into(),
            examples: self.examples,
        }
    }

    fn parse(&self, text: &str) -> Result<f64, UnitError> {
        let split = text
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        if number.is_empty() {
            return Err(self.error(text, "it starts with a number"));
        }
        let number: f64 = number
            .parse()
            .map_err(|_| self.error(text, format!("`{number}` is no number")))?;
        let unit = unit.trim();
        let found = self
            .units
            .iter()
            .find(|(name, _)| name.eq_ignore_ascii_case(unit));
        match found {
            Some((_, factor)) => Ok(number * factor),
            // Nothing is nothing in any unit.
            None if unit.is_empty() && number == 0.0 => Ok(0.0),
            None => {
                let names: Vec<_> = self.units.iter().map(|(name, _)| *name).collect();
                let names = names.join(", ");
                let why = match unit {
                    "" => format!("it ends with a unit ({names})"),
                    _ => format!("`{unit}` is none of its units ({names})"),
                };
                Err(self.error(text, why))
            }
        }
    }
}

/// A rate in bit/s; none where it is not limited.
///
/// # Errors
/// What is wrong with the text.
pub fn rate(text: &str) -> Result<Option<u64>, UnitError> {
    if text == "unlimited" {
        return Ok(None);
    }
    let bit_per_s = whole(RATE.parse(text)?);
    match bit_per_s {
        1..=RATE_MAX_BIT_PER_S => Ok(Some(bit_per_s)),
        0 => Err(RATE.error(text, "at least 1bit (`dwcp-wan cut` stops a link)")),
        _ => Err(RATE.error(text, "at most 1000gbit")),
    }
}

/// A time in nanoseconds.
///
/// # Errors
/// What is wrong with the text.
pub fn time(text: &str) -> Result<u64, UnitError> {
    match whole(TIME.parse(text)?) {
        ns @ 0..=TIME_MAX_NS => Ok(ns),
        _ => Err(TIME.error(text, "at most 3600s")),
    }
}

/// A share of packets, 0 to 1.
///
/// # Errors
/// What is wrong with the text.
pub fn share(text: &str) -> Result<f64, UnitError> {
    match SHARE.parse(text)? {
        share if share <= 1.0 => Ok(share),
        _ => Err(SHARE.error(text, "at most 100%")),
    }
}

/// A queue's bound: a size, a time, or `auto`.
///
/// # Errors
/// What is wrong with the text.
pub fn queue(text: &str) -> Result<QueueLimit, UnitError> {
    if text == "auto" {
        return Ok(QueueLimit::Auto);
    }
    if let Ok(ns) = time(text) {
        return Ok(QueueLimit::Nanoseconds(ns));
    }
    let error = |why: &str| UnitError {
        text: text.to_owned(),
        what: "bound of a queue",
        why: why.to_owned(),
        examples: "256KiB, 50ms or auto",
    };
    match SIZE.parse(text).map(whole) {
        Ok(bytes @ 1..) => Ok(QueueLimit::Bytes(bytes)),
        Ok(0) => Err(error("at least 1B")),
        Err(_) => Err(error("it is a size or a time")),
    }
}

/// Rounded; values too large for `u64` become its largest.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "the parsers give no negative number, and the largest is refused by the callers"
)]
fn whole(value: f64) -> u64 {
    value.round() as u64
}

/// Shows bit/s as `100mbit`.
#[must_use]
pub fn show_rate(bit_per_s: Option<u64>) -> String {
    let Some(rate) = bit_per_s else {
        return "unlimited".to_owned();
    };
    let exact = |factor: u64| rate >= factor && rate.is_multiple_of(factor / 1000);
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    let scaled = |factor: u64| rate as f64 / factor as f64;
    match rate {
        _ if exact(1_000_000_000) => format!("{}gbit", scaled(1_000_000_000)),
        _ if exact(1_000_000) => format!("{}mbit", scaled(1_000_000)),
        _ if exact(1000) => format!("{}kbit", scaled(1000)),
        _ => format!("{rate}bit"),
    }
}

/// Shows nanoseconds as `50ms`.
#[must_use]
pub fn show_time(ns: u64) -> String {
    #[expect(clippy::cast_precision_loss, reason = "shown with few digits")]
    let value = ns as f64;
    match ns {
        0 => "0ms".to_owned(),
        1_000_000_000.. => format!("{}s", rounded(value / 1e9)),
        1_000_000.. => format!("{}ms", rounded(value / 1e6)),
        _ => format!("{}us", rounded(value / 1e3)),
    }
}

fn rounded(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

/// Shows a share as `0.1%`.
#[must_use]
pub fn show_share(share: f64) -> String {
    format!("{}%", (share * 1e8).round() / 1e6)
}

impl fmt::Display for QueueLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Bytes(bytes) if bytes.is_multiple_of(1024) => write!(f, "{}KiB", bytes / 1024),
            Self::Bytes(bytes) => write!(f, "{bytes}B"),
            Self::Nanoseconds(ns) => f.write_str(&show_time(*ns)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read() {
        assert_eq!(rate("100mbit").unwrap(), Some(100_000_000));
        assert_eq!(rate("2.5Gbit").unwrap(), Some(2_500_000_000));
        assert_eq!(rate("unlimited").unwrap(), None);
        assert_eq!(time("50ms").unwrap(), 50_000_000);
        assert_eq!(time("1.5s").unwrap(), 1_500_000_000);
        assert_eq!(time("250us").unwrap(), 250_000);
        assert_eq!(time("0").unwrap(), 0);
        assert!((share("0.1%").unwrap() - 0.001).abs() < 1e-12);
        assert_eq!(queue("256KiB").unwrap(), QueueLimit::Bytes(262_144));
        assert_eq!(queue("50ms").unwrap(), QueueLimit::Nanoseconds(50_000_000));
        assert_eq!(queue("auto").unwrap(), QueueLimit::Auto);
    }

    #[test]
    fn what_is_wrong_is_named_with_an_example() {
        for (error, words) in [
            (rate("100").unwrap_err(), ["`100`", "unit", "100mbit"]),
            (rate("fast").unwrap_err(), ["`fast`", "number", "100mbit"]),
            (rate("0mbit").unwrap_err(), ["`0mbit`", "cut", "100mbit"]),
            (rate("9mbyte").unwrap_err(), ["`mbyte`", "none", "100mbit"]),
            (time("50").unwrap_err(), ["`50`", "unit", "50ms"]),
            (time("1.2.3s").unwrap_err(), ["`1.2.3`", "number", "50ms"]),
            (time("-1ms").unwrap_err(), ["`-1ms`", "number", "50ms"]),
            (time("9999s").unwrap_err(), ["`9999s`", "3600s", "50ms"]),
            (share("0.5").unwrap_err(), ["`0.5`", "(%)", "0.1%"]),
            (share("101%").unwrap_err(), ["`101%`", "100%", "0.1%"]),
            (queue("lots").unwrap_err(), ["`lots`", "size", "256KiB"]),
            (queue("0B").unwrap_err(), ["`0B`", "1B", "256KiB"]),
        ] {
            let text = error.to_string();
            for word in words {
                assert!(text.contains(word), "{text}: {word}");
            }
        }
    }

    #[test]
    fn what_is_shown_is_read_as_the_same() {
        for text in ["100mbit", "2.5gbit", "64kbit", "7bit", "unlimited"] {
            assert_eq!(show_rate(rate(text).unwrap()), text);
        }
        for text in ["50ms", "1.5s", "250us"] {
            assert_eq!(show_time(time(text).unwrap()), text);
        }
        for text in ["256KiB", "50ms", "auto", "1500B"] {
            assert_eq!(queue(text).unwrap().to_string(), text);
        }
        assert_eq!(show_share(share("0.1%").unwrap()), "0.1%");
    }
}
