//! The table of kernels, and the choice of one for this processor.

use std::sync::OnceLock;

use crate::arch;
use crate::checksum::Crc32c;
use crate::compare::{DifferingBytes, Equal};
use crate::delta::Xor;
use crate::fingerprint::FingerprintPage;
use crate::shuffle::{Shuffle, ShuffleGain, Unshuffle};
use crate::zero::IsZero;

/// Environment variable that forces a table: `scalar`, `avx2` or `avx512`. Read once.
pub const KERNELS_ENV: &str = "DWCP_SIMD";

/// One implementation of every kernel.
///
/// Calling a function is sound only on a processor where `is_available` returns true: `Kernels`,
/// which calls them, is built for no other.
#[derive(Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) is_available: fn() -> bool,
    pub(crate) is_zero: IsZero,
    pub(crate) fingerprint: FingerprintPage,
    pub(crate) crc32c: Crc32c,
    pub(crate) xor: Xor,
    pub(crate) differing_bytes: DifferingBytes,
    pub(crate) equal: Equal,
    pub(crate) shuffle: Shuffle,
    pub(crate) unshuffle: Unshuffle,
    pub(crate) shuffle_gain: ShuffleGain,
}

/// The page kernels of one instruction set that this processor has.
///
/// Get one from [`kernels`]. A copy of the reference is all a worker needs to keep.
#[derive(Debug)]
pub struct Kernels {
    pub(crate) table: &'static Table,
    note: Option<String>,
}

impl Kernels {
    /// Returns the name of the instruction set, as [`KERNELS_ENV`] spells it.
    pub fn name(&self) -> &'static str {
        self.table.name
    }

    /// Returns what the operator should know about the choice: set when [`KERNELS_ENV`] asked for
    /// something that is unknown or that this processor lacks.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Returns the kernels of every instruction set this processor has, portable first, best last.
    /// For tests and benches; everything else calls [`kernels`].
    pub fn all_available() -> Vec<&'static Self> {
        static ALL: OnceLock<Vec<Kernels>> = OnceLock::new();
        ALL.get_or_init(|| {
            let available = arch::TABLES.iter().filter(|table| (table.is_available)());
            available.map(|table| Self { table, note: None }).collect()
        })
        .iter()
        .collect()
    }

    /// Chooses by the value of [`KERNELS_ENV`], or the best when it is not set.
    fn choose(wanted: Option<&str>) -> Self {
        let available = Self::all_available();
        let best = available
            .last()
            .expect("the scalar table is always available");
        let best = |note| Self {
            table: best.table,
            note,
        };
        let Some(wanted) = wanted else {
            return best(None);
        };
        if let Some(found) = available.iter().find(|kernels| kernels.name() == wanted) {
            return Self {
                table: found.table,
                note: None,
            };
        }
        let known = arch::TABLES.iter().any(|table| table.name == wanted);
        let fault = if known {
            "not available on this processor"
        } else {
            "not a known value"
        };
        let used = best(None).name();
        best(Some(format!(
            "{KERNELS_ENV}={wanted} is {fault}; using {used}"
        )))
    }
}

/// Returns the kernels to use on this processor: the best available, or what [`KERNELS_ENV`] says.
/// Detection happens at the first call and never again.
pub fn kernels() -> &'static Kernels {
    static CHOSEN: OnceLock<Kernels> = OnceLock::new();
    CHOSEN.get_or_init(|| {
        let wanted =
            std::env::var_os(KERNELS_ENV).map(|value| value.to_string_lossy().into_owned());
        Kernels::choose(wanted.as_deref().filter(|value| !value.is_empty()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unset_variable_takes_the_best_table_without_a_note() {
        let chosen = Kernels::choose(None);
        assert_eq!(
            chosen.name(),
            Kernels::all_available().last().unwrap().name()
        );
        assert_eq!(chosen.note(), None);
    }

    #[test]
    fn every_available_table_can_be_forced() {
        for kernels in Kernels::all_available() {
            let chosen = Kernels::choose(Some(kernels.name()));
            assert_eq!((chosen.name(), chosen.note()), (kernels.name(), None));
        }
    }

    #[test]
    fn unknown_value_falls_back_and_says_so() {
        let chosen = Kernels::choose(Some("mmx"));
        assert_eq!(chosen.name(), Kernels::choose(None).name());
        assert!(
            chosen
                .note()
                .unwrap()
                .starts_with("DWCP_SIMD=mmx is not a known value")
        );
    }

    #[test]
    fn unavailable_value_falls_back_and_says_so() {
        for table in arch::TABLES.iter().filter(|table| !(table.is_available)()) {
            let note = Kernels::choose(Some(table.name)).note.unwrap();
            assert!(note.contains("not available on this processor"), "{note}");
        }
    }

    #[test]
    fn the_process_wide_choice_is_stable() {
        assert!(std::ptr::eq(kernels(), kernels()));
    }
}
