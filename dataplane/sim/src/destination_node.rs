//! The destination node: its data plane's engine around the real machine, and its VMM.

use std::collections::{BTreeSet, VecDeque};

use dwcp_proto::{
    Destination, DestinationAction, DestinationConfig, DestinationEvent, JournalEntry, Outcome,
    Phase,
};
use dwcp_wire::RefuseCode;

use crate::faults::Side;
use crate::invariants;
use crate::journal::{Journal, Written};
use crate::mutation::Mutation;
use crate::receiver::Receiver;
use crate::vmm::{DestinationVm, DestinationVmm};
use crate::world::{Happening, World};

/// Actions that may wait when one more question about ownership is taken; its connection is closed
/// otherwise, and the source asks again.
const QUESTIONS_MAX: usize = 8;

/// The node.
#[derive(Debug)]
pub(crate) struct DestinationNode {
    pub(crate) boot: u32,
    pub(crate) up: bool,
    /// For good.
    pub(crate) gone: bool,
    pub(crate) clock_ahead: u64,
    pub(crate) vmm: DestinationVmm,
    pub(crate) journal: Journal,
    /// Attempts in this process's memory.
    pub(crate) runs: Vec<Option<DestinationRun>>,
    /// The attempt that holds the waiting VM.
    pub(crate) held_by: Option<usize>,
    /// A restarted data plane has the VMM run the guest.
    pub(crate) resuming: Option<usize>,
    /// It has failed to so often.
    pub(crate) resume_failures: u32,
    pub(crate) outcomes: Vec<(usize, Outcome)>,
    /// A fault took the VMM.
    pub(crate) killed: bool,
}

/// One attempt in memory.
#[derive(Debug)]
pub(crate) struct DestinationRun {
    pub(crate) machine: Destination,
    pub(crate) actions: VecDeque<DestinationAction>,
    pub(crate) acting: bool,
    pub(crate) receiver: Receiver,
    /// The VMM process that this attempt talks to.
    pub(crate) instance: Option<u32>,
    /// Device state may go to the VMM.
    pub(crate) loads: bool,
    pub(crate) finished: bool,
    /// Pages that were named as missing.
    pub(crate) missing: BTreeSet<usize>,
    /// In post-copy: what came before is in no root.
    pub(crate) was_restarted: bool,
    /// The machine knows that no page is missing.
    pub(crate) is_told: bool,
}

impl DestinationNode {
    pub(crate) fn new(pages: usize) -> Self {
        Self {
            boot: 0,
            up: true,
            gone: false,
            clock_ahead: 0,
            vmm: DestinationVmm::new(pages),
            journal: Journal::new(Side::Destination),
            runs: vec![],
            held_by: None,
            resuming: None,
            resume_failures: 0,
            outcomes: vec![],
            killed: false,
        }
    }

    pub(crate) fn is_settled(&self) -> bool {
        let finished = self.runs.iter().flatten().all(|run| run.finished);
        self.gone || (self.up && finished && self.resuming.is_none())
    }
}

impl World {
    pub(crate) fn destination_accepts(&mut self, attempt: usize) {
        let config = DestinationConfig {
            silence_ns: self.plan.silence_ns,
        };
        self.destination_begins(attempt, Destination::new(config));
    }

    pub(crate) fn destination_begins(&mut self, attempt: usize, machine: Destination) {
        self.destination.runs[attempt] = Some(DestinationRun {
            machine,
            actions: VecDeque::new(),
            acting: false,
            receiver: Receiver::new(self.plan.pages),
            instance: None,
            loads: false,
            finished: false,
            missing: BTreeSet::new(),
            was_restarted: false,
            is_told: false,
        });
    }

    pub(crate) fn destination_run(&mut self, attempt: usize) -> Option<&mut DestinationRun> {
        self.destination.runs.get_mut(attempt)?.as_mut()
    }

    fn destination_phase(&mut self, attempt: usize) -> Option<Phase> {
        Some(self.destination_run(attempt)?.machine.phase())
    }

    /// Hands an event to the machine, if its attempt is still in memory.
    pub(crate) fn feed_destination(&mut self, attempt: usize, event: DestinationEvent) {
        let now = self.clock(Side::Destination);
        let keeps = self.trace.keeps_lines();
        let Some(run) = self.destination_run(attempt) else {
            return;
        };
        let told = keeps.then(|| format!("{event:?}"));
        let lost = matches!(event, DestinationEvent::PeerLost(_));
        let tick = matches!(event, DestinationEvent::Tick);
        let before = run.machine.phase();
        let actions = run.machine.on_event(now, event);
        let after = run.machine.phase();
        let count = actions.len();
        run.actions.extend(actions);
        let todo = if keeps {
            format!("{:?}", run.actions)
        } else {
            String::new()
        };
        self.note("destination", [attempt as u64, after as u64], |_| {
            let told = told.unwrap_or_default();
            format!("{told}\n{:>37} {before:?} -> {after:?}, to do {todo}", "")
        });
        invariants::bounded::check_step(self, count);
        if after == Phase::Postcopy && before != Phase::Postcopy {
            self.fetch_later(attempt);
        }
        if lost {
            self.close(attempt, Side::Destination, true);
        }
        self.count_event(!tick);
        self.destination_wakes(attempt);
    }

    pub(crate) fn destination_to(&mut self, attempt: usize, wait: u64, event: DestinationEvent) {
        let boot = self.destination.boot;
        let event = Box::new(event);
        self.after(
            wait,
            Happening::ToDestination {
                boot,
                attempt,
                event,
            },
        );
    }

    fn destination_wakes(&mut self, attempt: usize) {
        let boot = self.destination.boot;
        let wait = self.rng.skewed(1_000, 50_000);
        let Some(run) = self.destination_run(attempt) else {
            return;
        };
        if !run.acting && !run.actions.is_empty() {
            run.acting = true;
            self.after(wait, Happening::DestinationActs { boot, attempt });
        }
    }

    pub(crate) fn destination_acts(&mut self, attempt: usize) {
        let Some(run) = self.destination_run(attempt) else {
            return;
        };
        run.acting = false;
        let Some(action) = run.actions.pop_front() else {
            return;
        };
        self.note("destination acts", [attempt as u64, 0], |_| {
            format!("{action:?}")
        });
        if let DestinationAction::Journal(entry) = action {
            let in_handover = self.destination_phase(attempt) == Some(Phase::Handover);
            if self.mutation == Mutation::RefuseWithoutJournal
                && entry == JournalEntry::Refused
                && in_handover
            {
                self.destination_journaled(attempt, DestinationEvent::Journaled(entry));
                return;
            }
            let early = self.mutation == Mutation::CommitBeforeJournal
                && matches!(entry, JournalEntry::Committed { .. });
            self.write_journal(Side::Destination, attempt, entry.clone());
            if early {
                self.destination_journaled(attempt, DestinationEvent::Journaled(entry));
            }
            return;
        }
        self.carry_out_destination(attempt, action);
        self.destination_wakes(attempt);
    }

    fn carry_out_destination(&mut self, attempt: usize, action: DestinationAction) {
        match action {
            DestinationAction::PrepareVm(offer) => self.prepare(attempt, offer.streams),
            DestinationAction::Send(message) => self.send(attempt, Side::Source, &message),
            DestinationAction::PreparePostcopy => self.prepare_postcopy(attempt),
            DestinationAction::NoteMissing(missing) => self.note_missing(attempt, &missing),
            DestinationAction::TakeMissingAhead => self.take_missing(attempt, false),
            DestinationAction::TakeMissing => self.take_missing(attempt, true),
            // The simulated source asks for no pages.
            DestinationAction::ExpectStreams { .. }
            | DestinationAction::FindPages(_)
            | DestinationAction::Journal(_) => {}
            DestinationAction::Prove => self.prove(attempt),
            DestinationAction::LoadDeviceState => self.load_device(attempt),
            DestinationAction::ResumeVm => self.run_destination(attempt),
            DestinationAction::DiscardVm => self.discard(attempt),
            DestinationAction::AnswerOwner { committed } => {
                let committed = committed != (self.mutation == Mutation::AnswerOwnerWrongly);
                self.send_alone(
                    Side::Source,
                    Happening::AnswerArrives { attempt, committed },
                );
            }
            DestinationAction::Finish(outcome) => self.destination_finishes(attempt, outcome),
        }
    }

    fn prepare(&mut self, attempt: usize, streams: u16) {
        let wait = self.action_time();
        let waiting = self.destination.vmm.vm == DestinationVm::Incoming;
        let refusal = if self.destination.held_by.is_some() {
            Some((RefuseCode::Busy, "the VM is being moved already"))
        } else if !waiting {
            Some((RefuseCode::NoSuchVm, "no VM of that name waits here"))
        } else {
            match self.destination.journal.begin(attempt) {
                Written::Durable => None,
                Written::Failed(why) => Some((RefuseCode::Other, why)),
            }
        };
        let event = if let Some((code, why)) = refusal {
            DestinationEvent::VmRefused(code, why.to_owned())
        } else {
            self.destination.held_by = Some(attempt);
            self.destination.vmm.ram.fill(0);
            self.destination.vmm.proven = false;
            let instance = self.destination.vmm.instance;
            if let Some(run) = self.destination_run(attempt) {
                run.instance = Some(instance);
            }
            let token = attempt as u128 + 77;
            DestinationEvent::VmReady {
                token,
                streams,
                content_seed: None,
            }
        };
        self.destination_to(attempt, wait, event);
    }

    /// The source's data streams reach this node.
    pub(crate) fn destination_joined(&mut self, attempt: usize, wait: u64) {
        self.destination_to(attempt, wait, DestinationEvent::StreamsJoined);
    }

    fn destination_finishes(&mut self, attempt: usize, outcome: Outcome) {
        self.note(
            "destination ends",
            [attempt as u64, outcome.result as u64],
            |_| format!("{outcome:?}"),
        );
        if self.destination.held_by == Some(attempt) {
            self.destination.held_by = None;
        }
        invariants::no_lost_write::check_whole(self, &outcome);
        if let Some(run) = self.destination_run(attempt) {
            run.finished = true;
        }
        self.close(attempt, Side::Destination, true);
        self.stats.ended(Side::Destination, outcome.result);
        self.destination.outcomes.push((attempt, outcome));
    }

    pub(crate) fn destination_tick(&mut self) {
        for attempt in 0..self.destination.runs.len() {
            if self
                .destination_run(attempt)
                .is_some_and(|run| !run.finished)
            {
                self.feed_destination(attempt, DestinationEvent::Tick);
            }
        }
    }

    pub(crate) fn destination_journaled(&mut self, attempt: usize, event: DestinationEvent) {
        if let Some(run) = self.destination_run(attempt) {
            run.acting = false;
        }
        self.feed_destination(attempt, event);
        self.destination_wakes(attempt);
    }

    /// Somebody asks on a new connection who owns the VM.
    pub(crate) fn query_arrives(&mut self, attempt: usize) {
        if !self.destination.up || self.destination.gone {
            return;
        }
        let past_machine = self.mutation == Mutation::QueryPastMachine;
        if let Some(run) = self.destination_run(attempt)
            && !past_machine
        {
            if run.actions.len() >= QUESTIONS_MAX {
                return;
            }
            self.feed_destination(attempt, DestinationEvent::OwnerQuery);
            return;
        }
        // No such attempt in memory: the journal answers, and a no must be durable before it is said.
        let committed = self.destination.journal.is_committed(attempt);
        let durable = committed || past_machine || {
            let refused = self
                .destination
                .journal
                .append(attempt, &JournalEntry::Refused);
            refused == Written::Durable
        };
        self.note(
            "journal answers",
            [attempt as u64, u64::from(committed)],
            |_| format!("attempt {attempt} committed: {committed}, durable: {durable}"),
        );
        if durable {
            self.send_alone(
                Side::Source,
                Happening::AnswerArrives { attempt, committed },
            );
        }
    }
}
