//! What runs came to.

use std::collections::BTreeMap;

use dwcp_proto::{Ending, Phase};
use serde::Serialize;

use crate::destination_node::DestinationNode;
use crate::faults::{Fault, Side};
use crate::source_node::SourceNode;
use crate::vmm::{DestinationVm, SourceVm};

/// Counts of one run, or of many.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Stats {
    /// Ends that machines and restarted data planes came to.
    pub endings: BTreeMap<String, u64>,
    /// Where guests were at the end.
    pub guests: BTreeMap<String, u64>,
    /// Faults by the phase of the source that they hit.
    pub faults: BTreeMap<String, u64>,
    /// Attempts begun.
    pub attempts: u64,
    /// Rounds sent while the guest ran.
    pub rounds_running: u64,
    /// Rounds sent while it stood.
    pub rounds_paused: u64,
    /// Pages visited.
    pub pages: u64,
    /// Pages that differed after a handover because a lossy tracker missed their last write.
    pub lost_by_tracker: u64,
}

impl Stats {
    pub(crate) fn ended(&mut self, side: Side, result: Ending) {
        *self
            .endings
            .entry(format!("{side:?} {result:?}").to_lowercase())
            .or_default() += 1;
    }

    pub(crate) fn has_failed(&self, side: Side) -> bool {
        let name = format!("{side:?} failed").to_lowercase();
        self.endings.keys().any(|ending| ending.starts_with(&name))
    }

    pub(crate) fn recovered(&mut self, side: Side, result: Ending) {
        let name = format!("{side:?} {result:?} after restart").to_lowercase();
        *self.endings.entry(name).or_default() += 1;
    }

    pub(crate) fn fault(&mut self, fault: Fault, phase: Option<Phase>) {
        let phase = phase.map_or_else(|| "none".to_owned(), |phase| format!("{phase:?}"));
        let name = format!("{phase}: {}", fault.name()).to_lowercase();
        *self.faults.entry(name).or_default() += 1;
    }

    pub(crate) const fn round(&mut self, paused: bool, pages: u64) {
        if paused {
            self.rounds_paused += 1;
        } else {
            self.rounds_running += 1;
        }
        self.pages += pages;
    }

    pub(crate) fn close(&mut self, source: &SourceNode, destination: &DestinationNode) {
        self.attempts += source.attempts as u64;
        let there = destination.vmm.vm == DestinationVm::Running;
        let in_doubt = source.asking.is_some()
            || source
                .run
                .as_ref()
                .is_some_and(|run| run.machine.is_in_doubt());
        let name = match (source.vmm.vm, there) {
            (SourceVm::Running, true) => "both run",
            (SourceVm::Running, false) => "runs at the source",
            (_, true) => "runs at the destination",
            _ if in_doubt => "in doubt",
            _ => "stands, failed",
        };
        *self.guests.entry(name.to_owned()).or_default() += 1;
    }

    /// Adds another run's counts.
    pub fn add(&mut self, other: &Self) {
        let maps = [
            (&mut self.endings, &other.endings),
            (&mut self.guests, &other.guests),
            (&mut self.faults, &other.faults),
        ];
        for (sum, add) in maps {
            for (name, count) in add {
                *sum.entry(name.clone()).or_default() += count;
            }
        }
        self.attempts += other.attempts;
        self.rounds_running += other.rounds_running;
        self.rounds_paused += other.rounds_paused;
        self.pages += other.pages;
        self.lost_by_tracker += other.lost_by_tracker;
    }
}
