//! The destination after a restart, questions who owns the VM, and how two nodes find each other in post-copy.

use dwcp_proto::{
    Destination, DestinationEvent, DestinationRecovery, JournalEntry, LastRecord, SourceEvent,
    VmState, recover_destination,
};
use dwcp_wire::{Control, FetchSummary};

use super::destination::{DestinationProcess, DestinationRun, destination_config};
use super::source::{SourceProcess, last_entry};
use super::wire::Wire;
use super::world::{ATTEMPT, EPOCH, NOW, Question, World};
use crate::journal::Stage;
use crate::mutation::Mutation;

impl World {
    pub(super) fn restart_destination(&mut self) {
        self.destination.journal.reopen();
        let Some(last) = self.destination.journal.unfinished(ATTEMPT) else {
            self.destination.process = DestinationProcess::Idle;
            return;
        };
        let vm = self.destination.vmm.seen();
        let mut choice = recover_destination(last, vm);
        let empty = last == LastRecord::Committed && vm == VmState::Incoming;
        if self.mutation == Mutation::RecoverEmptyVmm && empty {
            choice = DestinationRecovery::Resume;
        }
        let there = matches!(vm, VmState::Running | VmState::Paused);
        match choice {
            DestinationRecovery::Resume => {
                self.destination.orders.push_back(true);
                self.destination.process = DestinationProcess::Resumes { failures: 0 };
            }
            DestinationRecovery::Fetch if there => self.fetch_again(),
            DestinationRecovery::Refuse => self.refuse(),
            DestinationRecovery::RunsHere => {
                self.destination.process = DestinationProcess::Writes(JournalEntry::Resumed);
            }
            DestinationRecovery::Fetch | DestinationRecovery::Lost => {
                self.destination.process = DestinationProcess::Writes(last_entry(false));
            }
        }
    }

    fn fetch_again(&mut self) {
        let runs = self.destination.journal.stage(ATTEMPT) == Some(Stage::Resumed);
        let machine = Destination::fetching_again(destination_config(), EPOCH, runs);
        let mut run = DestinationRun::new(machine);
        run.was_restarted = true;
        self.destination.process = DestinationProcess::Takes(Box::new(run));
        if self.mutation == Mutation::ForgetWhatIsMissing {
            self.destination.vmm.missing.clear();
        }
        if !runs {
            self.destination.orders.push_back(true);
        }
    }

    /// The copy goes first, so that none stands behind a promise.
    fn refuse(&mut self) {
        self.discard_copy();
        self.destination.process = DestinationProcess::Writes(last_entry(true));
    }

    /// Somebody asks on a new connection who owns the VM: the machine answers, or the journal.
    pub(super) fn question_arrives(&mut self) {
        self.take_question(Question::Asked);
        let journal = &self.destination.journal;
        let committed = journal.is_committed(ATTEMPT);
        let unfinished = journal.unfinished(ATTEMPT).is_some();
        if self.mutation == Mutation::QueryPastMachine && !self.is_dead_destination() {
            return self.ask(Question::Answered(committed));
        }
        match self.destination.process {
            // Nobody listens.
            DestinationProcess::Dead => {}
            DestinationProcess::Takes(_) => {
                self.ask(Question::Waits);
                self.feed_destination(NOW, DestinationEvent::OwnerQuery);
            }
            _ if committed => self.answer(true),
            DestinationProcess::Idle if unfinished => {
                self.ask(Question::Asked);
                self.refuse();
            }
            DestinationProcess::Idle => self.answer(false),
            DestinationProcess::Resumes { .. } | DestinationProcess::Writes(_) => {
                self.ask(Question::Asked);
            }
        }
    }

    const fn is_dead_destination(&self) -> bool {
        matches!(self.destination.process, DestinationProcess::Dead)
    }

    /// Whether a source that looks for the destination finds somebody who knows.
    pub(super) fn can_return(&self) -> bool {
        let SourceProcess::Moves(run) = &self.source.process else {
            return false;
        };
        let known = match self.destination.process {
            DestinationProcess::Dead => false,
            DestinationProcess::Takes(_) => true,
            _ => !self.destination.journal.is_fetching(ATTEMPT),
        };
        run.returns && known
    }

    pub(super) fn return_source(&mut self) {
        if let SourceProcess::Moves(run) = &mut self.source.process {
            run.returns = false;
        }
        if matches!(self.destination.process, DestinationProcess::Takes(_)) {
            self.wire = Wire::new(self.wire.device);
            self.feed_source(NOW, SourceEvent::Connected);
            self.feed_destination(NOW, DestinationEvent::SourceIsBack);
            return;
        }
        let failed = self.destination.journal.has_failed();
        let whole = Control::Whole {
            verified: failed.then_some(false),
            summary: FetchSummary::default(),
        };
        self.feed_source(NOW, SourceEvent::Peer(whole));
    }
}
