//! Numbers in arguments: what would measure nothing, or could never be reached, is refused before anything starts.

use std::str::FromStr;

/// 16 TiB: more than any machine has, and far from where bytes overflow.
const MIB_MAX: u64 = 16 << 20;

/// How often, or how many: one at least.
pub(super) fn some<T: FromStr + PartialOrd + From<u8>>(text: &str) -> Result<T, String> {
    text.parse()
        .ok()
        .filter(|value: &T| *value >= T::from(1))
        .ok_or_else(|| "a whole number is needed, 1 or more".to_owned())
}

/// A size in MiB: one at least.
pub(super) fn size_mib(text: &str) -> Result<u64, String> {
    some(text)
        .ok()
        .filter(|mib| *mib <= MIB_MAX)
        .ok_or_else(|| format!("a size in MiB is needed, a whole number from 1 to {MIB_MAX}"))
}

/// A part of a whole.
pub(super) fn part(text: &str) -> Result<f64, String> {
    text.parse()
        .ok()
        .filter(|part| (0.0..=1.0).contains(part))
        .ok_or_else(|| "a part is needed, from 0 to 1, as 0.9".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_too_much_and_no_number_are_refused() {
        assert_eq!(some::<u32>("3"), Ok(3));
        for bad in ["0", "-1", "", "x", "4294967296"] {
            assert!(some::<u32>(bad).unwrap_err().contains("1 or more"), "{bad}");
        }
        assert_eq!(size_mib("512"), Ok(512));
        for bad in ["0", "16777217", "18446744073709551615", "1.5"] {
            assert!(
                size_mib(bad).unwrap_err().contains("1 to 16777216"),
                "{bad}"
            );
        }
        for good in ["0", "0.9", "1"] {
            part(good).unwrap();
        }
        for bad in ["2", "-0.1", "nan", "inf", "", "90%"] {
            assert!(part(bad).unwrap_err().contains("from 0 to 1"), "{bad}");
        }
    }
}
