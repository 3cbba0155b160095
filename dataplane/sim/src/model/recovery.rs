//! Both sides after a restart, questions who owns the VM, and how two nodes find each other in post-copy.

use dwcp_proto::{
    Destination, DestinationEvent, DestinationRecovery, Ending, JournalEntry, LastRecord, Source,
    SourceEvent, SourceRecovery, VmState, recover_destination, recover_source,
};
use dwcp_wire::{Control, FetchSummary};

use super::begin::config;
use super::destination::{DestinationProcess, DestinationRun, destination_config};
use super::source::{SourceProcess, SourceRun, last_entry};
use super::wire::Wire;
use super::world::{ATTEMPT, EPOCH, NOW, Question, World};
use crate::journal::Stage;
use crate::mutation::Mutation;
use crate::vmm::SourceCommand;

impl World {
    pub(super) fn restart_source(&mut self) {
        self.source.journal.reopen();
        let Some(last) = self.source.journal.unfinished(ATTEMPT) else {
            self.source.process = SourceProcess::Idle;
            return;
        };
        self.recover_source_from(last);
    }

    fn recover_source_from(&mut self, last: LastRecord) {
        let vm = self.source.vmm.vm.seen();
        let mut choice = recover_source(last, vm);
        if self.mutation == Mutation::RecoveryResumesPrepared && vm == VmState::Paused {
            choice = SourceRecovery::Resume;
        }
        match choice {
            SourceRecovery::Resume => self.source_resumes(0),
            SourceRecovery::RunsHere => {
                self.source.process = SourceProcess::Writes(last_entry(true));
            }
            SourceRecovery::AskDestination => self.source.process = SourceProcess::Asks,
            SourceRecovery::Serve => self.serve(),
            SourceRecovery::GivenAway => self.source.process = SourceProcess::Idle,
            SourceRecovery::Lost => {
                self.source.process = SourceProcess::Writes(last_entry(false));
            }
        }
    }

    pub(super) fn source_resumes(&mut self, failures: u32) {
        self.source.process = SourceProcess::Resumes { failures };
        self.source.commands.push_back(SourceCommand::Resume);
    }

    /// It has written how it ended, or could not: the next start finds the same again.
    pub(super) fn source_recovered(&mut self, entry: &JournalEntry) {
        match entry {
            JournalEntry::Serving { .. } => self.serve(),
            JournalEntry::Committed { .. } => self.source_ends(Ending::Completed),
            JournalEntry::Aborted { .. } => self.source_ends(Ending::Aborted),
            _ => self.source_ends(Ending::Failed),
        }
    }

    fn serve(&mut self) {
        if self.mutation == Mutation::ForgetServing {
            self.source.process = SourceProcess::Idle;
            return;
        }
        let mut run = SourceRun::new(Source::serving_again(config(), EPOCH));
        run.returns = true;
        self.source.process = SourceProcess::Moves(Box::new(run));
    }

    /// The destination's answer, for the machine or for a restarted data plane.
    pub(super) fn answer_arrives(&mut self, committed: bool) {
        self.take_question(Question::Answered(committed));
        if self.source.process != SourceProcess::Asks {
            self.feed_source(NOW, SourceEvent::OwnerAnswer { committed });
            return;
        }
        let epoch = EPOCH;
        if !committed {
            // Not given away, as if it had only begun.
            self.recover_source_from(LastRecord::Begin);
        } else if self.source.journal.is_postcopy(ATTEMPT) {
            self.source.process = SourceProcess::Writes(JournalEntry::Serving { epoch });
        } else {
            self.source.process = SourceProcess::Writes(JournalEntry::Committed { epoch });
        }
    }

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
