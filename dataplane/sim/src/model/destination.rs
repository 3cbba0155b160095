//! The destination node: its data plane's engine around the real machine, and its VMM.

use std::collections::VecDeque;

use dwcp_proto::{
    Destination, DestinationAction, DestinationConfig, DestinationEvent, Ending, Instant,
    JournalEntry, Outcome, Phase,
};
use dwcp_wire::{AbortCode, Control, FetchSummary};

use super::begin::GUEST;
use super::step::DestinationDone;
use super::world::{ATTEMPT, NOW, Question, SILENCE_MS, World, plain_entry, plain_message};
use crate::faults::{JournalFault, Side};
use crate::invariants::no_lost_write;
use crate::journal::Journal;
use crate::mutation::Mutation;
use crate::vmm::{DestinationVm, DestinationVmm};

/// The node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct DestinationNode {
    /// Its RAM is one page.
    pub(super) vmm: DestinationVmm,
    /// Orders to run the guest that its VMM has not carried out; whether to the VMM that is there now.
    pub(super) orders: VecDeque<bool>,
    pub(super) journal: Journal,
    pub(super) process: DestinationProcess,
    pub(super) ended: Option<Ending>,
    /// A fault took the VMM.
    pub(super) killed: bool,
}

/// What its data plane does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum DestinationProcess {
    Dead,
    Takes(Box<DestinationRun>),
    /// Restarted: has the VMM run the guest, which has failed so often.
    Resumes {
        failures: u32,
    },
    /// Restarted, or asked: writes how it ended.
    Writes(JournalEntry),
    Idle,
}

/// The migration in this process's memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct DestinationRun {
    pub(super) machine: Destination,
    /// Actions that wait for the record in front of them.
    pub(super) todo: VecDeque<DestinationAction>,
    /// Sorted: completions come in any order.
    pub(super) done: Vec<DestinationDone>,
    /// The VMM is the one that this process prepared.
    pub(super) holds: bool,
    /// Device state may go to the VMM.
    pub(super) loads: bool,
    /// In post-copy: what came before is in no root.
    pub(super) was_restarted: bool,
    /// The machine knows that no page is missing.
    pub(super) is_told: bool,
    /// A planted bug: the record that was said to be durable, and is not yet.
    early: Option<JournalEntry>,
}

impl DestinationRun {
    pub(super) fn new(machine: Destination) -> Self {
        Self {
            machine,
            todo: VecDeque::new(),
            done: vec![],
            holds: true,
            loads: false,
            was_restarted: false,
            is_told: false,
            early: None,
        }
    }
}

impl DestinationProcess {
    pub(super) fn under_way(&self) -> Option<&JournalEntry> {
        match self {
            Self::Writes(entry) => Some(entry),
            Self::Takes(run) => match run.todo.front() {
                _ if run.early.is_some() => run.early.as_ref(),
                Some(DestinationAction::Journal(entry)) => Some(entry),
                _ => None,
            },
            Self::Dead | Self::Resumes { .. } | Self::Idle => None,
        }
    }
}

pub(super) fn destination_config() -> DestinationConfig {
    DestinationConfig {
        silence_ns: u64::from(SILENCE_MS) * 1_000_000,
    }
}

impl World {
    pub(super) fn destination_run(&mut self) -> Option<&mut DestinationRun> {
        match &mut self.destination.process {
            DestinationProcess::Takes(run) => Some(run),
            _ => None,
        }
    }

    pub(super) fn destination_done(&mut self, done: DestinationDone) {
        if let Some(run) = self.destination_run() {
            let at = run.done.partition_point(|other| *other < done);
            run.done.insert(at, done);
        }
    }

    pub(super) fn feed_destination(&mut self, now: Instant, event: DestinationEvent) {
        let lost = matches!(event, DestinationEvent::PeerLost(_));
        let Some(run) = self.destination_run() else {
            return;
        };
        let actions = run.machine.on_event(now, event);
        run.machine.forget_details();
        // A sign of life changes nothing.
        let actions = actions.into_iter();
        let actions = actions.filter(|action| *action != DestinationAction::Send(Control::Alive));
        run.todo.extend(actions.map(plain));
        if lost {
            self.close(Side::Destination);
        }
        self.destination_acts();
    }

    /// Carries out what can be at once, see the source's.
    fn destination_acts(&mut self) {
        loop {
            let mutation = self.mutation;
            let Some(run) = self.destination_run() else {
                return;
            };
            let in_handover = run.machine.phase() == Phase::Handover;
            if let Some(DestinationAction::Journal(entry)) = run.todo.front() {
                let entry = entry.clone();
                if mutation == Mutation::RefuseWithoutJournal
                    && entry == JournalEntry::Refused
                    && in_handover
                {
                    run.todo.pop_front();
                    return self.feed_destination(NOW, DestinationEvent::Journaled(entry));
                }
                let commits = matches!(entry, JournalEntry::Committed { .. });
                if mutation == Mutation::CommitBeforeJournal && commits {
                    run.todo.pop_front();
                    run.early = Some(entry.clone());
                    self.feed_destination(NOW, DestinationEvent::Journaled(entry));
                }
                return;
            }
            match run.todo.pop_front() {
                Some(DestinationAction::Finish(outcome)) => self.destination_finishes(&outcome),
                Some(action) => self.carry_out_destination(action),
                None => return,
            }
        }
    }

    fn carry_out_destination(&mut self, action: DestinationAction) {
        match action {
            DestinationAction::Send(message) => {
                self.denied |= matches!(message, Control::Abort { .. });
                self.wire.to_mut(Side::Source).push(message);
            }
            DestinationAction::PreparePostcopy => {
                self.destination_done(DestinationDone::PostcopyPrepared);
            }
            DestinationAction::TakeMissingAhead => {
                self.destination_done(DestinationDone::MissingTakenAhead);
            }
            DestinationAction::TakeMissing => self.take_missing(),
            DestinationAction::Prove => self.prove(),
            DestinationAction::LoadDeviceState => self.load_device(),
            DestinationAction::ResumeVm => {
                let holds = self.destination_run().is_some_and(|run| run.holds);
                self.destination.orders.push_back(holds);
            }
            DestinationAction::DiscardVm => self.discard(),
            DestinationAction::AnswerOwner { committed } => {
                let committed = committed != (self.mutation == Mutation::AnswerOwnerWrongly);
                while self.take_question(Question::Waits) {
                    self.answer(committed);
                }
            }
            // Of before the switchover, or of pages.
            _ => {}
        }
    }

    pub(super) fn answer(&mut self, committed: bool) {
        self.denied |= !committed;
        self.ask(Question::Answered(committed));
    }

    fn destination_finishes(&mut self, outcome: &Outcome) {
        let vmm = &self.destination.vmm;
        let there = vmm.vm == DestinationVm::Running;
        let whole = vmm.missing.is_empty() && vmm.ram[0] == GUEST;
        if outcome.result == Ending::Completed && there && !whole {
            self.break_invariant(no_lost_write::NAME, "whole, but a page is missing or wrong");
        }
        self.destination.ended = Some(outcome.result);
        self.destination.process = DestinationProcess::Idle;
        // A driver that ends leaves questions unread: the journal answers.
        while self.take_question(Question::Waits) {
            self.ask(Question::Asked);
        }
        self.close(Side::Destination);
    }

    pub(super) fn destination_told(&mut self, done: DestinationDone) {
        let Some(run) = self.destination_run() else {
            return;
        };
        if let Some(at) = run.done.iter().position(|&other| other == done) {
            run.done.remove(at);
        }
        let failed = |code| DestinationEvent::Failed(code, String::new());
        let event = match done {
            DestinationDone::PostcopyPrepared => DestinationEvent::PostcopyPrepared,
            DestinationDone::MissingTakenAhead => DestinationEvent::MissingTakenAhead,
            DestinationDone::MissingTaken => DestinationEvent::MissingTaken { root: 0 },
            DestinationDone::Proven => DestinationEvent::Proven { pages: 1 },
            DestinationDone::ProofFailed => failed(AbortCode::ProofFailed),
            DestinationDone::DeviceLoaded => DestinationEvent::DeviceLoaded,
            DestinationDone::Resumed => DestinationEvent::Resumed,
            DestinationDone::VmmFailed => failed(AbortCode::Vmm),
        };
        self.feed_destination(NOW, event);
    }

    pub(super) fn no_postcopy(&mut self) {
        if let Some(run) = self.destination_run() {
            run.done
                .retain(|&done| done != DestinationDone::PostcopyPrepared);
        }
        let event = DestinationEvent::PostcopyImpossible(String::new());
        self.feed_destination(NOW, event);
    }

    pub(super) fn destination_writes(&mut self, fault: Option<JournalFault>) {
        let Some(entry) = self.under_way(Side::Destination).cloned() else {
            return;
        };
        let durable = self.append(Side::Destination, &entry, fault);
        let fetches = self.destination.journal.is_fetching(ATTEMPT);
        if matches!(self.destination.process, DestinationProcess::Writes(_)) {
            // That a guest's pages will never come is said until it is durable: the source asks until then.
            let failed = matches!(entry, JournalEntry::Failed { .. });
            if failed {
                self.destination.ended = Some(Ending::Failed);
            }
            if !(failed && fetches) {
                self.destination.process = DestinationProcess::Idle;
            }
            return;
        }
        let Some(run) = self.destination_run() else {
            return;
        };
        if run.early.take().is_some() {
            return self.destination_acts();
        }
        run.todo.pop_front();
        let event = if durable {
            DestinationEvent::Journaled(entry)
        } else {
            DestinationEvent::Failed(AbortCode::Journal, String::new())
        };
        self.feed_destination(NOW, event);
    }

    /// In post-copy: a page comes from a source that serves; when none is missing, the machine is told.
    pub(super) fn fetch(&mut self) {
        if self.destination.vmm.missing.pop_first().is_some() {
            self.destination.vmm.ram[0] = GUEST;
            return;
        }
        let Some(run) = self.destination_run() else {
            return;
        };
        run.is_told = true;
        let root = (!run.was_restarted).then_some(0);
        let summary = FetchSummary::default();
        self.feed_destination(NOW, DestinationEvent::AllFetched { root, summary });
    }
}

fn plain(action: DestinationAction) -> DestinationAction {
    match action {
        DestinationAction::Send(message) => DestinationAction::Send(plain_message(message)),
        DestinationAction::Journal(entry) => DestinationAction::Journal(plain_entry(entry)),
        DestinationAction::Finish(outcome) => DestinationAction::Finish(Outcome {
            reason: String::new(),
            ..outcome
        }),
        action => action,
    }
}
