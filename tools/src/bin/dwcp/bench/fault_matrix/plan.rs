//! What a seed decides: which fault, in which phase of which kind of migration, at which moment.

use clap::ValueEnum;
use dwcp_tools::lab::{Moment, Way};
use dwcp_wire::Control;
use serde::Serialize;

use crate::bench::draws::Draws;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Fault {
    /// The source's data plane is killed and started anew.
    KillSourceDataPlane,
    /// The source's control plane is killed and started anew.
    KillSourceControlPlane,
    /// The destination's data plane is killed and started anew.
    KillDestinationDataPlane,
    /// The destination's control plane is killed and started anew.
    KillDestinationControlPlane,
    /// The destination's VMM is killed.
    KillDestinationVmm,
    /// The source's data plane is stopped for a while.
    StopSourceDataPlane,
    /// The source's control plane is stopped for a while.
    StopSourceControlPlane,
    /// The destination's data plane is stopped for a while.
    StopDestinationDataPlane,
    /// The destination's control plane is stopped for a while.
    StopDestinationControlPlane,
    /// The link is cut both ways.
    CutLink,
    /// Nothing goes to the destination, and nobody says so.
    HoldToDestination,
    /// Nothing goes to the source, and nobody says so.
    HoldToSource,
    /// A bit is changed on the link.
    Corrupt,
    /// The source's state folder is on a disk that is full.
    FullDiskSource,
    /// The destination's state folder is.
    FullDiskDestination,
    /// The destination's data plane gets no more memory.
    OutOfMemoryDestination,
    /// The wall clock of both daemons of a node jumps.
    ClockJump,
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Phase {
    Setup,
    Precopy,
    Switchover,
    Handover,
    Postcopy,
}

/// Which kind of migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Mode {
    PreCopy,
    PostCopy,
}

/// A cell of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(super) struct Cell {
    pub(super) fault: Fault,
    pub(super) mode: Mode,
    pub(super) phase: Phase,
}

/// Every cell that is asked for; none is named, all are.
pub(super) fn cells(faults: &[Fault], phases: &[Phase], modes: &[Mode]) -> Vec<Cell> {
    fn wanted<T: ValueEnum + PartialEq>(asked: &[T], one: &T) -> bool {
        asked.is_empty() || asked.contains(one)
    }
    let mut cells = vec![];
    for &fault in Fault::value_variants() {
        for (mode, phase) in columns() {
            let is_wanted =
                wanted(faults, &fault) && wanted(phases, &phase) && wanted(modes, &mode);
            cells.extend(is_wanted.then_some(Cell { fault, mode, phase }));
        }
    }
    cells
}

/// Kinds of migrations and their phases, in order.
pub(super) fn columns() -> impl Iterator<Item = (Mode, Phase)> {
    let phases = |mode: Mode| {
        let all = Phase::value_variants().iter();
        all.filter(move |phase| mode == Mode::PostCopy || **phase != Phase::Postcopy)
            .map(move |phase| (mode, *phase))
    };
    [Mode::PreCopy, Mode::PostCopy].into_iter().flat_map(phases)
}

/// A message, its way, and how it is told apart.
type Message = (&'static str, Way, fn(&Control) -> bool);

const SETUP: &[Message] = &[
    ("Offer", Way::ToDestination, |said| {
        matches!(said, Control::Offer(_))
    }),
    ("Accept", Way::ToSource, |said| {
        matches!(said, Control::Accept { .. })
    }),
    ("Ready", Way::ToSource, |said| {
        matches!(said, Control::Ready)
    }),
];

const PRECOPY: &[Message] = &[
    ("RoundEnd", Way::ToDestination, |said| {
        matches!(said, Control::RoundEnd { paused: false, .. })
    }),
    ("RoundReport", Way::ToSource, |said| {
        matches!(
            said,
            Control::RoundReport {
                pages_proven: None,
                ..
            }
        )
    }),
];

/// The guest still runs at the source.
const TO_POSTCOPY: &[Message] = &[
    ("PostcopyStart", Way::ToDestination, |said| {
        matches!(said, Control::PostcopyStart)
    }),
    ("PostcopyReady", Way::ToSource, |said| {
        matches!(said, Control::PostcopyReady)
    }),
    ("MissingAhead", Way::ToDestination, |said| {
        matches!(said, Control::MissingAhead)
    }),
];

const SWITCHOVER: &[Message] = &[
    ("SwitchoverStart", Way::ToDestination, |said| {
        matches!(said, Control::SwitchoverStart)
    }),
    ("RoundEnd of the pause", Way::ToDestination, |said| {
        matches!(said, Control::RoundEnd { paused: true, .. })
    }),
    ("RoundReport of the pause", Way::ToSource, |said| {
        matches!(
            said,
            Control::RoundReport {
                pages_proven: Some(_),
                ..
            }
        )
    }),
    ("DeviceLoaded", Way::ToSource, |said| {
        matches!(said, Control::DeviceLoaded)
    }),
];

const HANDOVER: &[Message] = &[
    ("Handover", Way::ToDestination, |said| {
        matches!(said, Control::Handover { .. })
    }),
    ("Committed", Way::ToSource, |said| {
        matches!(said, Control::Committed { .. })
    }),
    ("Resumed", Way::ToSource, |said| {
        matches!(said, Control::Resumed)
    }),
];

const POSTCOPY: &[Message] = &[
    ("Fetched", Way::ToSource, |said| {
        matches!(said, Control::Fetched)
    }),
    ("RamRoot", Way::ToDestination, |said| {
        matches!(said, Control::RamRoot { .. })
    }),
    ("Whole", Way::ToSource, |said| {
        matches!(said, Control::Whole { .. })
    }),
];

/// Bytes that are sent in round 0, and missing pages' at least, of the guest that is moved.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sizes {
    pub(super) pages_bytes: u64,
    pub(super) missing_bytes: u64,
    /// Where pages go by queue pairs: those that the destination's adapter reads for the guest, about.
    pub(super) read_pages: Option<u64>,
}

/// When a run strikes.
#[derive(Clone, Copy, Debug)]
pub(super) enum When {
    /// The link stops there.
    Link(Moment),
    /// The source has sent so many bytes.
    Sent(u64),
    /// The destination's adapter has read so many pages.
    Read(u64),
}

/// The moment of a run, and its name. Half of those in which pages flow are counted in their bytes.
pub(super) fn moment(cell: Cell, sizes: Sizes, draws: &mut Draws) -> (When, String) {
    let some = |most: u64, draws: &mut Draws| 1 + (most as f64 * draws.share()) as u64;
    let by_bytes = draws.below(2) == 0;
    match (cell.phase, by_bytes, sizes.read_pages) {
        (Phase::Precopy, true, by_queue_pairs) => {
            let bytes = some(sizes.pages_bytes, draws);
            let name = format!("after {bytes} bytes of pages");
            let when = match by_queue_pairs {
                None => When::Link(Moment::Pages(bytes)),
                Some(_) => When::Sent(bytes),
            };
            return (when, name);
        }
        (Phase::Postcopy, true, None) => {
            let bytes = some(sizes.missing_bytes, draws);
            let name = format!("after {bytes} bytes of missing pages");
            return (When::Link(Moment::Missing(bytes)), name);
        }
        (Phase::Postcopy, true, Some(usual)) => {
            // Another guest of this kind may wait for fewer.
            let pages = some(usual / 2, draws);
            return (When::Read(pages), format!("after {pages} pages were READ"));
        }
        _ => {}
    }
    let messages = match (cell.phase, cell.mode) {
        (Phase::Setup, _) => SETUP,
        (Phase::Precopy, Mode::PostCopy) if draws.below(2) == 0 => TO_POSTCOPY,
        (Phase::Precopy, _) => PRECOPY,
        (Phase::Switchover, _) => SWITCHOVER,
        (Phase::Handover, _) => HANDOVER,
        (Phase::Postcopy, _) => POSTCOPY,
    };
    let (name, way, is_it) = messages[draws.below(messages.len() as u64) as usize];
    let after = draws.below(2) == 0;
    let when = if after { "after" } else { "before" };
    let stop = Moment::Message { way, is_it, after };
    (When::Link(stop), format!("{when} {name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_meets_every_phase_of_both_kinds() {
        let all = cells(&[], &[], &[]);
        assert_eq!(all.len(), Fault::value_variants().len() * 9);
        let some = cells(&[Fault::CutLink], &[Phase::Postcopy], &[]);
        assert_eq!(some.len(), 1, "{some:?}");
    }

    #[test]
    fn a_seed_repeats_its_moment() {
        let sizes = Sizes {
            pages_bytes: 1000,
            missing_bytes: 100,
            read_pages: Some(100),
        };
        for cell in cells(&[], &[], &[]) {
            let name = |seed| moment(cell, sizes, &mut Draws::of(seed)).1;
            assert_eq!(name(7), name(7));
            assert!((0..100).any(|seed| name(seed) != name(7)), "{cell:?}");
        }
    }
}
