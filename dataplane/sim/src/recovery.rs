//! Journals under way, processes that die, and what their successors do.

use dwcp_proto::{
    DestinationEvent, DestinationRecovery, Ending, JournalEntry, LastRecord, RESUME_TRIES_MAX,
    SourceEvent, SourceRecovery, VmState, recover_destination, recover_source,
};
use dwcp_wire::AbortCode;

use crate::faults::Side;
use crate::journal::{Journal, Stage, Written};
use crate::mutation::Mutation;
use crate::vmm::{DestinationVm, SourceCommand};
use crate::world::{Happening, World};

impl World {
    const fn journal(&mut self, side: Side) -> &mut Journal {
        match side {
            Side::Source => &mut self.source.journal,
            Side::Destination => &mut self.destination.journal,
        }
    }

    /// Begins a write. The process can die before the record is there, and before it knows.
    pub(crate) fn write_journal(&mut self, side: Side, attempt: usize, entry: JournalEntry) {
        let boot = self.boot(side);
        match side {
            Side::Source => {
                if let Some(run) = self.source.run.as_mut() {
                    run.acting = true;
                }
            }
            Side::Destination => {
                if let Some(run) = self.destination.runs[attempt].as_mut() {
                    run.acting = true;
                }
            }
        }
        let wait = self.action_time();
        self.after(
            wait,
            Happening::JournalReaches {
                side,
                boot,
                attempt,
                entry,
            },
        );
    }

    pub(crate) fn journal_reaches(&mut self, side: Side, attempt: usize, entry: JournalEntry) {
        let written = self.journal(side).append(attempt, &entry);
        let durable = u64::from(written == Written::Durable);
        self.note("journal", [attempt as u64, durable], |_| {
            format!("{side:?} attempt {attempt}: {entry:?} {written:?}")
        });
        let boot = self.boot(side);
        let wait = self.action_time();
        self.after(
            wait,
            Happening::JournalAnswers {
                side,
                boot,
                attempt,
                entry,
                written,
            },
        );
    }

    pub(crate) fn journal_answers(
        &mut self,
        side: Side,
        attempt: usize,
        entry: JournalEntry,
        written: Written,
    ) {
        match (side, written) {
            (Side::Source, Written::Durable) => {
                self.source_journaled(attempt, SourceEvent::Journaled(entry));
            }
            (Side::Source, Written::Failed(why)) => {
                let event = SourceEvent::Failed(AbortCode::Journal, why.to_owned());
                self.source_journaled(attempt, event);
            }
            (Side::Destination, Written::Durable) => {
                self.destination_journaled(attempt, DestinationEvent::Journaled(entry));
            }
            (Side::Destination, Written::Failed(why)) => {
                let event = DestinationEvent::Failed(AbortCode::Journal, why.to_owned());
                self.destination_journaled(attempt, event);
            }
        }
    }

    /// A data plane dies: its memory is lost, its sockets close, its VMM goes on.
    pub(crate) fn crash(&mut self, side: Side, for_ns: u64, flushed: bool) {
        let busy_until = match side {
            Side::Source => {
                if !self.source.up {
                    return;
                }
                self.source.up = false;
                self.source.boot += 1;
                self.source.asking = None;
                self.source.resuming = None;
                self.source.run = None;
                self.guest.disarm();
                self.source.vmm.busy_until
            }
            Side::Destination => {
                if !self.destination.up {
                    return;
                }
                self.destination.up = false;
                self.destination.boot += 1;
                self.destination.resuming = None;
                self.destination.held_by = None;
                let loads = self.destination.runs.iter().flatten().any(|run| run.loads);
                for run in &mut self.destination.runs {
                    *run = None;
                }
                if loads && self.destination.vmm.vm == DestinationVm::Incoming {
                    // The rest of its device state never comes: the VMM exits.
                    self.destination_vmm_dies(true);
                }
                self.destination.vmm.busy_until
            }
        };
        for attempt in 0..self.links.len() {
            self.close(attempt, side, flushed);
        }
        // A successor first waits until its VMM has nothing of the predecessor's to do.
        let at = (self.now + for_ns).max(busy_until) + 1;
        self.schedule.put(at, Happening::Restarts(side));
    }

    pub(crate) fn restart(&mut self, side: Side) {
        self.note("restarts", [side as u64, 0], |_| format!("{side:?}"));
        match side {
            Side::Source => self.restart_source(),
            Side::Destination => self.restart_destination(),
        }
    }

    fn restart_source(&mut self) {
        if self.source.up {
            return;
        }
        self.source.up = true;
        self.source.journal.reopen();
        let oldest = self.mutation == Mutation::RecoverSuperseded;
        let unfinished = (0..self.source.journal.attempts())
            .filter(|&attempt| oldest || self.source.journal.newest() == Some(attempt))
            .find_map(|attempt| Some((attempt, self.source.journal.unfinished(attempt)?)));
        if let Some((attempt, last)) = unfinished {
            self.recover_source_attempt(attempt, last);
        } else {
            self.try_again();
        }
    }

    fn recover_source_attempt(&mut self, attempt: usize, last: LastRecord) {
        let vm = self.source.vmm.vm.seen();
        let mut choice = recover_source(last, vm);
        let stands = vm == VmState::Paused;
        if self.mutation == Mutation::RecoveryResumesPrepared && stands {
            choice = SourceRecovery::Resume;
        }
        self.note("source recovers", [attempt as u64, choice as u64], |_| {
            format!("attempt {attempt}: {last:?}, guest {vm:?}: {choice:?}")
        });
        match choice {
            SourceRecovery::Resume => self.source_recovery_resumes(attempt),
            SourceRecovery::RunsHere => self.source_recovery_ends(attempt, true, "it runs here"),
            SourceRecovery::AskDestination => self.source.asking = Some(attempt),
            SourceRecovery::GivenAway => {}
            SourceRecovery::Serve => self.recover_serving(attempt),
            SourceRecovery::Lost => self.source_recovery_ends(attempt, false, "the VMM is gone"),
        }
    }

    fn source_recovery_resumes(&mut self, attempt: usize) {
        self.source.resuming = Some(attempt);
        self.source.resume_failures = 0;
        self.source_command(attempt, SourceCommand::Resume);
    }

    pub(crate) fn source_recovery_resumed(&mut self, attempt: usize, obeyed: bool) {
        let there = self.source.vmm.vm.seen() == VmState::Paused;
        if !obeyed && there && self.source.resume_failures + 1 < RESUME_TRIES_MAX {
            self.source.resume_failures += 1;
            return self.source_command(attempt, SourceCommand::Resume);
        }
        self.source.resuming = None;
        let why = if obeyed {
            "given back after a restart"
        } else {
            "the guest could not be resumed after a restart"
        };
        self.source_recovery_ends(attempt, obeyed, why);
    }

    fn source_recovery_ends(&mut self, attempt: usize, runs: bool, why: &str) {
        let reason = why.to_owned();
        let (entry, result) = if runs {
            (JournalEntry::Aborted { reason }, Ending::Aborted)
        } else {
            (JournalEntry::Failed { reason }, Ending::Failed)
        };
        let _ = self.source.journal.append(attempt, &entry);
        self.stats.recovered(Side::Source, result);
        if runs {
            self.try_again();
        }
    }

    /// The destination's answer, for the machine or for a restarted data plane.
    pub(crate) fn answer_arrives(&mut self, attempt: usize, committed: bool) {
        if !self.source.up {
            return;
        }
        self.note(
            "owner answer",
            [attempt as u64, u64::from(committed)],
            |_| format!("attempt {attempt} committed: {committed}"),
        );
        if self.source.asking != Some(attempt) {
            self.feed_source(attempt, SourceEvent::OwnerAnswer { committed });
            return;
        }
        self.source.asking = None;
        if committed {
            let epoch = self.plan.epoch + 1;
            let serves = self.source.journal.is_postcopy(attempt);
            let entry = if serves {
                JournalEntry::Serving { epoch }
            } else {
                JournalEntry::Committed { epoch }
            };
            let _ = self.source.journal.append(attempt, &entry);
            self.stats.recovered(Side::Source, Ending::Completed);
            if serves {
                self.recover_serving(attempt);
            }
        } else {
            self.source_recovery_resumes(attempt);
        }
    }

    fn restart_destination(&mut self) {
        if self.destination.up || self.destination.gone {
            return;
        }
        self.destination.up = true;
        self.destination.journal.reopen();
        for attempt in 0..self.destination.journal.attempts() {
            if let Some(last) = self.destination.journal.unfinished(attempt) {
                self.recover_destination_attempt(attempt, last);
            }
        }
    }

    fn recover_destination_attempt(&mut self, attempt: usize, last: LastRecord) {
        let vm = self.destination.vmm.seen();
        let mut choice = recover_destination(last, vm);
        let empty = last == LastRecord::Committed && vm == VmState::Incoming;
        if self.mutation == Mutation::RecoverEmptyVmm && empty {
            choice = DestinationRecovery::Resume;
        }
        self.note(
            "destination recovers",
            [attempt as u64, choice as u64],
            |_| format!("attempt {attempt}: {last:?}, guest {vm:?}: {choice:?}"),
        );
        match choice {
            DestinationRecovery::Resume => {
                self.destination.resuming = Some(attempt);
                self.destination.resume_failures = 0;
                let instance = self.destination.vmm.instance;
                self.order_destination_run(attempt, instance);
            }
            DestinationRecovery::RunsHere => self.destination_recovery_resumed(attempt, true),
            DestinationRecovery::Fetch if matches!(vm, VmState::Running | VmState::Paused) => {
                let runs = self.destination.journal.stage(attempt) == Some(Stage::Resumed);
                self.recover_fetching(attempt, runs);
            }
            DestinationRecovery::Fetch => {
                // Tried until it is durable: the source asks until it is told.
                while !self.destination.journal.is_poisoned()
                    && self.destination.journal.is_fetching(attempt)
                {
                    self.destination_recovery_resumed(attempt, false);
                }
            }
            DestinationRecovery::Refuse => {
                if self.destination.journal.newest() == Some(attempt) {
                    self.discard_refused();
                }
                let reason = "refused after a restart".to_owned();
                let entry = JournalEntry::Aborted { reason };
                let _ = self.destination.journal.append(attempt, &entry);
                self.stats.recovered(Side::Destination, Ending::Aborted);
            }
            DestinationRecovery::Lost => self.destination_recovery_resumed(attempt, false),
        }
    }

    fn discard_refused(&mut self) {
        if self.destination.vmm.vm == DestinationVm::Running {
            self.break_invariant("never_neither", "a running guest is discarded");
        }
        self.destination_vmm_dies(true);
    }

    pub(crate) fn destination_recovery_resumed(&mut self, attempt: usize, runs: bool) {
        self.destination.resuming = None;
        let (entry, result) = if runs {
            (JournalEntry::Resumed, Ending::Completed)
        } else {
            let reason = "owned here, but its VMM does not run it".to_owned();
            (JournalEntry::Failed { reason }, Ending::Failed)
        };
        let _ = self.destination.journal.append(attempt, &entry);
        self.stats.recovered(Side::Destination, result);
    }
}
