//! The destination node: its data plane's engine around the real machine, and its VMM.

use std::collections::VecDeque;

use dwcp_proto::{
    Destination, DestinationAction, DestinationConfig, DestinationEvent, JournalEntry, Outcome,
};
use dwcp_wire::{AbortCode, RefuseCode};

use crate::faults::Side;
use crate::invariants;
use crate::journal::{Journal, Written};
use crate::link::DeviceStream;
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
        self.destination.runs[attempt] = Some(DestinationRun {
            machine: Destination::new(config),
            actions: VecDeque::new(),
            acting: false,
            receiver: Receiver::new(self.plan.pages),
            instance: None,
            loads: false,
            finished: false,
        });
    }

    fn destination_run(&mut self, attempt: usize) -> Option<&mut DestinationRun> {
        self.destination.runs.get_mut(attempt)?.as_mut()
    }

    /// Hands an event to the machine, if its attempt is still in memory.
    pub(crate) fn to_destination(&mut self, attempt: usize, event: DestinationEvent) {
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
        let todo = keeps
            .then(|| format!("{:?}", run.actions))
            .unwrap_or_default();
        self.note("destination", [attempt as u64, after as u64], |_| {
            let told = told.unwrap_or_default();
            format!("{told}\n{:>37} {before:?} -> {after:?}, to do {todo}", "")
        });
        invariants::bounded::check_step(self, count);
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
            DestinationAction::ExpectStreams { .. } | DestinationAction::Journal(_) => {}
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
            DestinationEvent::VmReady { token, streams }
        };
        self.destination_to(attempt, wait, event);
    }

    /// The source's data streams reach this node.
    pub(crate) fn destination_joined(&mut self, attempt: usize, wait: u64) {
        self.destination_to(attempt, wait, DestinationEvent::StreamsJoined);
    }

    /// Whether the VMM is still the process that this attempt prepared.
    pub(crate) fn holds_vmm(&self, attempt: usize) -> bool {
        let run = self.destination.runs.get(attempt).and_then(Option::as_ref);
        run.is_some_and(|run| run.instance == Some(self.destination.vmm.instance))
    }

    fn prove(&mut self, attempt: usize) {
        let wait = self.action_time();
        let pages = self.plan.pages;
        let count = if self.plan.verify_full {
            pages
        } else {
            self.plan.sample_pages as usize
        };
        let full = self.plan.verify_full;
        let sample: Vec<usize> = (0..count)
            .map(|at| if full { at } else { self.rng.index(pages) })
            .collect();
        let holds = self.holds_vmm(attempt);
        let Some(run) = self.destination.runs[attempt].as_ref() else {
            return;
        };
        let ram = &self.destination.vmm.ram;
        let wrong = sample
            .iter()
            .any(|&page| ram[page] != run.receiver.credited[page]);
        let skips = self.mutation == Mutation::SkipProof;
        let event = if (wrong || !holds) && !skips {
            let reason = "a page is not what was applied".to_owned();
            DestinationEvent::Failed(AbortCode::ProofFailed, reason)
        } else {
            self.destination.vmm.proven = !skips;
            let pages = count as u64;
            DestinationEvent::Proven { pages }
        };
        self.destination_to(attempt, wait, event);
    }

    fn load_device(&mut self, attempt: usize) {
        if let Some(run) = self.destination_run(attempt) {
            run.loads = true;
        }
        if self.mutation == Mutation::HandoverWithoutDevice {
            self.destination_to(attempt, 1_000, DestinationEvent::DeviceLoaded);
        }
        match self.links[attempt].device {
            DeviceStream::Arrived => self.device_to_vmm(attempt),
            DeviceStream::Broken => self.device_lost_at_destination(attempt),
            DeviceStream::Idle | DeviceStream::Flowing | DeviceStream::InFlight => {}
        }
    }

    pub(crate) fn device_arrives(&mut self, attempt: usize) {
        let open = self.links[attempt].is_open(Side::Destination);
        if self.links[attempt].device != DeviceStream::InFlight || !open {
            return;
        }
        self.links[attempt].device = DeviceStream::Arrived;
        if self.destination_run(attempt).is_some_and(|run| run.loads) {
            self.device_to_vmm(attempt);
        }
    }

    fn device_to_vmm(&mut self, attempt: usize) {
        let instance = self.destination.vmm.instance;
        let wait = self.action_time();
        self.destination.vmm.busy_until = self.now + wait;
        if self.holds_vmm(attempt) {
            self.after(wait, Happening::DeviceLoads { attempt, instance });
        }
    }

    pub(crate) fn device_loads(&mut self, attempt: usize, instance: u32) {
        let vmm = &mut self.destination.vmm;
        if vmm.instance != instance || vmm.vm != DestinationVm::Incoming {
            return;
        }
        let fails = std::mem::take(&mut vmm.fail_next);
        vmm.vm = DestinationVm::Loaded;
        self.note(
            "destination VMM",
            [attempt as u64, u64::from(fails)],
            |_| format!("loads device state, fails: {fails}"),
        );
        if fails {
            self.destination_vmm_dies(true);
        } else if self.mutation != Mutation::HandoverWithoutDevice {
            let wait = self.rng.skewed(1_000, 200_000);
            self.destination_to(attempt, wait, DestinationEvent::DeviceLoaded);
        }
    }

    /// A VMM whose incoming device state ends too early exits.
    pub(crate) fn device_lost_at_destination(&mut self, attempt: usize) {
        let loads = self.destination_run(attempt).is_some_and(|run| run.loads);
        if loads && self.holds_vmm(attempt) && self.destination.vmm.vm == DestinationVm::Incoming {
            self.destination_vmm_dies(true);
        }
    }

    fn run_destination(&mut self, attempt: usize) {
        let run = self.destination.runs[attempt].as_ref();
        let instance = run.and_then(|run| run.instance).unwrap_or(u32::MAX);
        self.order_destination_run(attempt, instance);
    }

    pub(crate) fn order_destination_run(&mut self, attempt: usize, instance: u32) {
        let wait = self.action_time();
        let at = self.destination.vmm.busy_until.max(self.now) + wait;
        self.destination.vmm.busy_until = at;
        let boot = self.destination.boot;
        self.schedule.put(
            at,
            Happening::DestinationRuns {
                boot,
                attempt,
                instance,
            },
        );
    }

    pub(crate) fn destination_runs(&mut self, boot: u32, attempt: usize, instance: u32) {
        let vmm = &mut self.destination.vmm;
        let there = vmm.instance == instance && vmm.vm != DestinationVm::Gone;
        let obeys = there && !std::mem::take(&mut vmm.fail_next);
        self.note(
            "destination VMM",
            [attempt as u64, u64::from(obeys)],
            |world| format!("run: {obeys}, was {:?}", world.destination.vmm.vm),
        );
        if obeys {
            invariants::proof_before_run::check_run(self, attempt);
            invariants::no_lost_write::check_run(self);
            self.destination.vmm.vm = DestinationVm::Running;
        }
        if boot != self.destination.boot {
            return;
        }
        if self.destination.resuming == Some(attempt) {
            self.destination_recovery_resumed(attempt, obeys);
            return;
        }
        let event = if obeys {
            DestinationEvent::Resumed
        } else {
            DestinationEvent::Failed(AbortCode::Vmm, "the VMM did not run the guest".to_owned())
        };
        let wait = self.rng.skewed(1_000, 200_000);
        self.destination_to(attempt, wait, event);
    }

    /// The VMM process ends, and is started again empty, so that another attempt finds it.
    pub(crate) fn discard(&mut self, attempt: usize) {
        if !self.holds_vmm(attempt) {
            return;
        }
        if self.mutation == Mutation::DiscardRuns {
            self.run_destination(attempt);
            return;
        }
        self.destination_vmm_dies(true);
    }

    pub(crate) fn destination_vmm_dies(&mut self, replaced: bool) {
        let attempt = self.destination.held_by;
        let told = attempt.is_some_and(|attempt| self.holds_vmm(attempt));
        self.destination.vmm.die();
        let instance = self.destination.vmm.instance;
        self.note("destination VMM", [7, u64::from(replaced)], |_| {
            "is gone".to_owned()
        });
        if let (Some(attempt), true) = (attempt, told) {
            let wait = self.action_time();
            let reason = "the VMM is gone".to_owned();
            let event = DestinationEvent::Failed(AbortCode::Vmm, reason);
            self.destination_to(attempt, wait, event);
        }
        if replaced {
            let wait = self.action_time();
            self.after(wait, Happening::DestinationReplaced { instance });
        }
    }

    pub(crate) fn destination_replaced(&mut self, instance: u32) {
        let vmm = &mut self.destination.vmm;
        if vmm.instance == instance && vmm.vm == DestinationVm::Gone {
            vmm.replace();
        }
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
                self.to_destination(attempt, DestinationEvent::Tick);
            }
        }
    }

    pub(crate) fn destination_journaled(&mut self, attempt: usize, event: DestinationEvent) {
        if let Some(run) = self.destination_run(attempt) {
            run.acting = false;
        }
        self.to_destination(attempt, event);
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
            self.to_destination(attempt, DestinationEvent::OwnerQuery);
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
