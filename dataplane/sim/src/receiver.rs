//! The destination's worker: checks frames, applies them, keeps the set of suspect pages.

use std::collections::{BTreeMap, BTreeSet};

use dwcp_proto::DestinationEvent;
use dwcp_wire::RoundSummary;

use crate::invariants;
use crate::mutation::Mutation;
use crate::pages::{self, Content, Frame};
use crate::world::World;

/// What one attempt has received.
#[derive(Debug)]
pub(crate) struct Receiver {
    /// Pages whose right content has not come, from any round.
    pub(crate) suspects: BTreeSet<usize>,
    /// What RAM should hold: the sum over this is the root.
    pub(crate) credited: Vec<Content>,
    rounds: BTreeMap<u32, RoundSummary>,
    marks: BTreeMap<u32, u16>,
}

impl Receiver {
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            suspects: BTreeSet::new(),
            credited: vec![0; pages],
            rounds: BTreeMap::new(),
            marks: BTreeMap::new(),
        }
    }
}

impl World {
    pub(crate) fn apply_frame(&mut self, attempt: usize, frame: &Frame) {
        let holds = self.holds_vmm(attempt);
        let forgets = self.mutation == Mutation::ForgetSuspect;
        let Some(run) = self.destination.runs[attempt].as_mut() else {
            return;
        };
        let receiver = &mut run.receiver;
        pages::add(
            receiver.rounds.entry(frame.round).or_default(),
            frame.summary(),
        );
        for at in &frame.pages {
            if frame.table_damaged {
                receiver.suspects.insert(at.page);
                continue;
            }
            if holds {
                self.destination.vmm.ram[at.page] = at.carried;
                self.destination.vmm.proven = false;
            }
            if at.carried == at.announced || forgets {
                receiver.suspects.remove(&at.page);
                receiver.credited[at.page] = at.announced;
            } else {
                receiver.suspects.insert(at.page);
            }
        }
    }

    /// A mark closes its stream's part of the round; the last one closes the round.
    pub(crate) fn mark_arrives(&mut self, attempt: usize, round: u32, again: u32) {
        let streams = self.plan.streams;
        let first_block = self.plan.first_block;
        let Some(run) = self.destination.runs[attempt].as_mut() else {
            return;
        };
        let receiver = &mut run.receiver;
        receiver.rounds.entry(round).or_default().marks_again += again;
        let delivered = &mut self.links[attempt].delivered;
        delivered.entry(round).or_default().marks_again += again;
        let marks = receiver.marks.entry(round).or_default();
        *marks += 1;
        if *marks < streams {
            return;
        }
        let applied = receiver.rounds.get(&round).copied().unwrap_or_default();
        let event = DestinationEvent::RoundApplied {
            round,
            applied,
            suspects: pages::to_ranges(receiver.suspects.iter().copied(), first_block),
            root: pages::root(&receiver.credited),
        };
        invariants::conservation::check_applied(self, attempt, round, applied);
        let wait = self.rng.skewed(1_000, 300_000);
        self.destination_to(attempt, wait, event);
    }
}
