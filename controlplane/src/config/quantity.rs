//! Numbers with units, as people write them: `64MiB`, `300ms`.

use std::ops::Range;

/// What a quantity measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dimension {
    /// Bytes.
    Bytes,
    /// Time, in whole milliseconds.
    Milliseconds,
}

/// Units of bytes, largest first.
const BYTES: &[(&str, u64)] = &[
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("B", 1),
];

/// Units of time, largest first.
const MILLISECONDS: &[(&str, u64)] = &[("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)];

impl Dimension {
    const fn units(self) -> &'static [(&'static str, u64)] {
        match self {
            Self::Bytes => BYTES,
            Self::Milliseconds => MILLISECONDS,
        }
    }

    /// What is measured, in words.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "a size",
            Self::Milliseconds => "a time",
        }
    }

    /// The units, smallest first: `B, KiB, MiB, GiB, TiB`.
    #[must_use]
    pub fn unit_list(self) -> String {
        let names: Vec<_> = self.units().iter().rev().map(|(name, _)| *name).collect();
        names.join(", ")
    }

    /// Shows a value in the largest unit that divides it.
    #[must_use]
    pub fn show(self, value: u64) -> String {
        let smallest = self.units()[self.units().len() - 1];
        let (unit, factor) = self
            .units()
            .iter()
            .find(|(_, factor)| value != 0 && value.is_multiple_of(*factor))
            .unwrap_or(&smallest);
        format!("{}{unit}", value / factor)
    }

    /// The value of `text`: a whole number and a unit, with or without a space between.
    ///
    /// # Errors
    /// [`QuantityError`], with the part of `text` that is wrong.
    pub fn parse(self, text: &str) -> Result<u64, QuantityError> {
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let number_at = 0..digits;
        if digits == 0 {
            return Err(QuantityError::new(QuantityFault::NoNumber, 0..text.len()));
        }
        let gap = text[digits..]
            .bytes()
            .take_while(|byte| *byte == b' ')
            .count();
        let unit_at = digits + gap..text.len();
        let unit = &text[unit_at.clone()];
        if unit.starts_with('.') {
            return Err(QuantityError::new(QuantityFault::Fraction, 0..text.len()));
        }
        if unit.is_empty() {
            return Err(QuantityError::new(QuantityFault::NoUnit, 0..text.len()));
        }
        let Some((_, factor)) = self.units().iter().find(|(name, _)| *name == unit) else {
            return Err(QuantityError::new(
                QuantityFault::Unit(unit.to_owned()),
                unit_at,
            ));
        };
        text[number_at.clone()]
            .parse::<u64>()
            .ok()
            .and_then(|number| number.checked_mul(*factor))
            .ok_or_else(|| QuantityError::new(QuantityFault::TooLarge, number_at))
    }

    /// The unit that was probably meant by another spelling: `MB`, `mb`, `M` for `MiB`.
    #[must_use]
    pub fn unit_meant(self, unit: &str) -> Option<&'static str> {
        let lower = unit.to_ascii_lowercase();
        let same = |name: &str| {
            let name = name.to_ascii_lowercase();
            let decimal = name.replace('i', "");
            lower == name || lower == decimal || (self == Self::Bytes && lower == name[..1])
        };
        let words: &[(&[&str], &str)] = match self {
            Self::Bytes => &[],
            Self::Milliseconds => &[
                (&["sec", "secs", "second", "seconds"], "s"),
                (&["msec", "millis", "milliseconds"], "ms"),
                (&["m", "mins", "minute", "minutes"], "min"),
                (&["hr", "hour", "hours"], "h"),
            ],
        };
        let by_word = words
            .iter()
            .find(|(words, _)| words.contains(&lower.as_str()))
            .map(|(_, name)| *name);
        let by_name = || {
            self.units()
                .iter()
                .map(|(name, _)| *name)
                .find(|name| same(name))
        };
        by_word.or_else(by_name)
    }
}

/// What is wrong with a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityFault {
    /// It does not begin with a number.
    #[error("no number")]
    NoNumber,
    /// A number alone.
    #[error("no unit")]
    NoUnit,
    /// Not a unit of this dimension.
    #[error("unknown unit `{0}`")]
    Unit(String),
    /// A decimal point.
    #[error("not a whole number")]
    Fraction,
    /// Does not fit 64 bits.
    #[error("too large")]
    TooLarge,
}

/// What is wrong with a quantity, and where in its text.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{fault}")]
pub struct QuantityError {
    /// What.
    pub fault: QuantityFault,
    /// Byte range in the text.
    pub at: Range<usize>,
}

impl QuantityError {
    const fn new(fault: QuantityFault, at: Range<usize>) -> Self {
        Self { fault, at }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quantities_are_exact_about_units() {
        let bytes = |text| Dimension::Bytes.parse(text);
        let time = |text| Dimension::Milliseconds.parse(text);
        assert_eq!(bytes("64MiB"), Ok(64 << 20));
        assert_eq!(bytes("64 MiB"), Ok(64 << 20));
        assert_eq!(time("2s"), Ok(2000));
        assert_eq!(time("2min"), Ok(120_000));
        let wrong = bytes("64ms").unwrap_err();
        assert_eq!(
            (wrong.fault, wrong.at),
            (QuantityFault::Unit("ms".into()), 2..4)
        );
        assert_eq!(bytes("64").unwrap_err().fault, QuantityFault::NoUnit);
        assert_eq!(bytes("MiB").unwrap_err().fault, QuantityFault::NoNumber);
        assert_eq!(time("0.5s").unwrap_err().fault, QuantityFault::Fraction);
        assert_eq!(
            bytes("99999999TiB").unwrap_err().fault,
            QuantityFault::TooLarge
        );
        assert_eq!(Dimension::Bytes.unit_meant("mb"), Some("MiB"));
        assert_eq!(Dimension::Bytes.unit_meant("G"), Some("GiB"));
        assert_eq!(Dimension::Milliseconds.unit_meant("seconds"), Some("s"));
        assert_eq!(Dimension::Bytes.unit_meant("ms"), None);
    }

    proptest! {
        #[test]
        fn what_is_shown_parses_back(value in any::<u64>(), bytes in any::<bool>()) {
            let dimension = if bytes { Dimension::Bytes } else { Dimension::Milliseconds };
            prop_assert_eq!(dimension.parse(&dimension.show(value)), Ok(value));
        }

        #[test]
        fn any_text_parses_or_is_refused(text in ".{0,40}") {
            for dimension in [Dimension::Bytes, Dimension::Milliseconds] {
                if let Err(error) = dimension.parse(&text) {
                    prop_assert!(text.get(error.at).is_some());
                }
                let _ = dimension.unit_meant(&text);
            }
        }
    }
}
