//! The source node: its data plane's engine around the real machine, and its VMM.

use std::collections::VecDeque;

use dwcp_proto::{
    Ending, Outcome, Outlook, Phase, Source, SourceAction, SourceConfig, SourceEvent,
};
use dwcp_wire::{Control, Offer, RamBlockInfo};

use crate::faults::Side;
use crate::invariants;
use crate::journal::{Journal, Stage, Written};
use crate::link::Link;
use crate::mutation::Mutation;
use crate::pages::Content;
use crate::plan::MS;
use crate::sender::Sender;
use crate::vmm::{SourceCommand, SourceVm, SourceVmm};
use crate::world::{Happening, World};

/// The node.
#[derive(Debug)]
pub(crate) struct SourceNode {
    pub(crate) boot: u32,
    pub(crate) up: bool,
    pub(crate) clock_ahead: u64,
    pub(crate) vmm: SourceVmm,
    pub(crate) journal: Journal,
    pub(crate) run: Option<SourceRun>,
    /// A restarted data plane asks who owns the VM.
    pub(crate) asking: Option<usize>,
    /// A restarted data plane has the VMM run the guest.
    pub(crate) resuming: Option<usize>,
    /// It has failed to so often.
    pub(crate) resume_failures: u32,
    /// How each attempt ended, as far as this node told somebody.
    pub(crate) outcomes: Vec<Option<Outcome>>,
    pub(crate) attempts: usize,
    pub(crate) start_pending: bool,
    /// A fault took the VMM.
    pub(crate) killed: bool,
}

/// One attempt in this process's memory.
#[derive(Debug)]
pub(crate) struct SourceRun {
    pub(crate) attempt: usize,
    pub(crate) machine: Source,
    pub(crate) actions: VecDeque<SourceAction>,
    pub(crate) acting: bool,
    pub(crate) sender: Option<Sender>,
    /// The round that was said to be sent.
    pub(crate) told: Option<Sender>,
    /// What the destination should hold, page by page.
    pub(crate) sent: Vec<Content>,
    pub(crate) scanned_at: Option<u64>,
    /// VMM commands that have not reported.
    pub(crate) commands: u32,
    /// What was named as missing is in `sent` as zero.
    pub(crate) has_forgotten: bool,
}

impl SourceRun {
    pub(crate) fn new(attempt: usize, machine: Source, pages: usize) -> Self {
        Self {
            attempt,
            machine,
            actions: VecDeque::new(),
            acting: false,
            sender: None,
            told: None,
            sent: vec![0; pages],
            scanned_at: None,
            commands: 0,
            has_forgotten: false,
        }
    }
}

impl SourceNode {
    pub(crate) const fn new() -> Self {
        Self {
            boot: 0,
            up: true,
            clock_ahead: 0,
            vmm: SourceVmm::new(),
            journal: Journal::new(Side::Source),
            run: None,
            asking: None,
            resuming: None,
            resume_failures: 0,
            outcomes: vec![],
            attempts: 0,
            start_pending: true,
            killed: false,
        }
    }

    pub(crate) fn is_settled(&self, world: &World) -> bool {
        self.up
            && self.run.is_none()
            && self.asking.is_none()
            && self.resuming.is_none()
            && !self.start_pending
            && self.vmm.busy_until < world.now
            && self.vmm.vm != SourceVm::Giving
    }

    pub(crate) fn phase(&self) -> Option<Phase> {
        self.run.as_ref().map(|run| run.machine.phase())
    }
}

impl World {
    /// The operator asks for the migration, for the first time or again.
    pub(crate) fn attempt_starts(&mut self) {
        self.source.start_pending = false;
        let attempt = self.source.attempts;
        let free = self.source.up && self.source.run.is_none() && self.source.asking.is_none();
        if !free || attempt as u32 >= self.plan.attempts_max || self.source.resuming.is_some() {
            return;
        }
        let in_doubt =
            (0..attempt).any(|earlier| self.source.journal.stage(earlier) == Some(Stage::Prepared));
        let runs = self.source.vmm.vm == SourceVm::Running;
        if in_doubt || !runs || self.source.journal.begin(attempt) != Written::Durable {
            return;
        }
        self.source.attempts += 1;
        self.source.outcomes.push(None);
        self.links.push(Link::new(self.plan.streams));
        self.destination.runs.push(None);
        let config = SourceConfig {
            offer: self.offer(attempt),
            limits: self.plan.limits,
            deadline_ns: self.plan.deadline_ns,
            silence_ns: self.plan.silence_ns,
        };
        let machine = Source::new(config);
        self.source.run = Some(SourceRun::new(attempt, machine, self.plan.pages));
        self.feed_source(attempt, SourceEvent::Start);
    }

    pub(crate) fn offer(&self, attempt: usize) -> Offer {
        let block = |name: &str, pages: usize| RamBlockInfo {
            name: name.to_owned(),
            bytes: (pages * dwcp_wire::limits::PAGE_BYTES) as u64,
        };
        Offer {
            migration: attempt as u128 + 1,
            vm: "guest".to_owned(),
            source_node: "source".to_owned(),
            epoch: self.plan.epoch,
            vmm: "qemu".to_owned(),
            ram: vec![
                block("low", self.plan.first_block),
                block("high", self.plan.pages - self.plan.first_block),
            ],
            streams: self.plan.streams,
            fingerprint_seed: 1,
            verify_full: self.plan.verify_full,
            sample_pages: self.plan.sample_pages,
            ack_bytes: 64 * 1024,
            peer_silence_ms: (self.plan.silence_ns / MS) as u32,
            dry_run: false,
            reuse: false,
        }
    }

    /// What a look at the guest's pages might have said.
    fn look_ahead(&mut self) -> Outlook {
        Outlook {
            dirty_pages: self.rng.skewed(0, 100_000),
            page_ns: self.rng.skewed(1, MS),
            outruns: self.rng.chance(60),
        }
    }

    /// Hands an event to the machine, if its attempt is still in memory.
    pub(crate) fn feed_source(&mut self, attempt: usize, event: SourceEvent) {
        let now = self.clock(Side::Source);
        let Some(run) = self
            .source
            .run
            .as_mut()
            .filter(|run| run.attempt == attempt)
        else {
            return;
        };
        let looks = run.machine.phase() == Phase::Precopy
            && matches!(event, SourceEvent::Peer(Control::RoundReport { .. }));
        if looks && self.rng.chance(70) {
            let outlook = self.look_ahead();
            self.feed_source(attempt, SourceEvent::Outlook(outlook));
        }
        let Some(run) = self.source.run.as_mut() else {
            return;
        };
        let lost = matches!(event, SourceEvent::PeerLost(_));
        let counts = !matches!(event, SourceEvent::Tick);
        let told = self.trace.keeps_lines().then(|| format!("{event:?}"));
        let before = run.machine.phase();
        let actions = run.machine.on_event(now, event);
        let after = run.machine.phase();
        invariants::bounded::check_step(self, actions.len());
        let Some(run) = self.source.run.as_mut() else {
            return;
        };
        run.actions.extend(actions);
        if let Some(told) = told {
            let actions = format!("{:?}", run.actions);
            self.note("source", [attempt as u64, after as u64], |_| {
                format!(
                    "{told}\n{:>37} {before:?} -> {after:?}, to do {actions}",
                    ""
                )
            });
        } else {
            self.note("source", [attempt as u64, after as u64], |_| String::new());
        }
        if lost {
            self.close(attempt, Side::Source, true);
        }
        self.mutate_source(attempt);
        self.count_event(counts);
        self.source_wakes();
    }

    fn mutate_source(&mut self, attempt: usize) {
        let Some(run) = self.source.run.as_ref() else {
            return;
        };
        let hands_over = run
            .actions
            .iter()
            .any(|action| matches!(action, SourceAction::Send(Control::Handover { .. })));
        if self.mutation == Mutation::ResumeAfterHandover && hands_over {
            self.source_command(attempt, SourceCommand::Resume);
        }
    }

    /// Later, so that a crash can come between any two actions.
    pub(crate) fn source_to(&mut self, attempt: usize, delay_ns: u64, event: SourceEvent) {
        let boot = self.source.boot;
        let event = Box::new(event);
        self.after(
            delay_ns,
            Happening::ToSource {
                boot,
                attempt,
                event,
            },
        );
    }

    fn source_wakes(&mut self) {
        let Some(run) = self.source.run.as_mut() else {
            return;
        };
        if run.acting || run.actions.is_empty() {
            return;
        }
        run.acting = true;
        let boot = self.source.boot;
        let wait = self.rng.skewed(1_000, 50_000);
        self.after(wait, Happening::SourceActs { boot });
    }

    /// Carries out the next action; a journal write holds back those behind it.
    pub(crate) fn source_acts(&mut self) {
        let Some(run) = self.source.run.as_mut() else {
            return;
        };
        let attempt = run.attempt;
        run.acting = false;
        let Some(action) = run.actions.pop_front() else {
            return;
        };
        self.note("source acts", [attempt as u64, 0], |_| {
            format!("{action:?}")
        });
        if let SourceAction::Journal(entry) = action {
            self.write_journal(Side::Source, attempt, entry);
            return;
        }
        if let SourceAction::Finish(outcome) = action {
            self.source_finishes(attempt, outcome);
            return;
        }
        self.carry_out_source(attempt, action);
        self.source_wakes();
    }

    fn carry_out_source(&mut self, attempt: usize, action: SourceAction) {
        match action {
            SourceAction::Connect => self.connect(attempt),
            SourceAction::Send(message) => self.send(attempt, Side::Destination, &message),
            SourceAction::ArmTracker => {
                self.guest.arm();
                let wait = self.action_time();
                self.source_to(attempt, wait, SourceEvent::TrackerArmed);
            }
            SourceAction::OpenStreams { .. } => self.open_streams(attempt),
            SourceAction::StartRound {
                round,
                again,
                everything,
            } => self.start_round(attempt, round, &again, everything),
            SourceAction::PauseVm => self.source_command(attempt, SourceCommand::Pause),
            SourceAction::ReadSample => self.read_sample(attempt),
            SourceAction::SendDeviceState => {
                self.source_command(attempt, SourceCommand::GiveDeviceState);
            }
            SourceAction::QueryOwner { .. } => {
                self.send_alone(Side::Destination, Happening::QueryArrives { attempt });
            }
            SourceAction::ResumeVm => {
                self.guest.disarm();
                if self.mutation == Mutation::ForgetResume {
                    self.source_to(attempt, 1_000, SourceEvent::Resumed);
                } else {
                    self.source_command(attempt, SourceCommand::Resume);
                }
            }
            SourceAction::NameMissingAhead { again } => self.name_missing(attempt, &again),
            SourceAction::NameMissing { round } => {
                self.name_missing(attempt, &[]);
                self.start_round(attempt, round, &[], false);
            }
            SourceAction::ServeAgain => {
                self.close(attempt, Side::Source, true);
                self.serve_again(attempt);
            }
            SourceAction::ReadRoot => self.read_root(attempt),
            // The simulated destination begins with empty RAM; its connections for missing pages are always
            // there.
            SourceAction::OpenMissing
            | SourceAction::Throttle { .. }
            | SourceAction::AskForPages { .. }
            | SourceAction::TakeFound(_)
            | SourceAction::Journal(_)
            | SourceAction::Finish(_) => {}
        }
    }

    fn connect(&mut self, attempt: usize) {
        let wait = self.network_time() + self.network_time();
        let reachable = self.destination.up
            && !self.destination.gone
            && self.network_down_until <= self.now + wait;
        if reachable {
            self.source_to(attempt, wait, SourceEvent::Connected);
            if self.plan.speaks_in_pause() {
                self.source_to(attempt, wait, SourceEvent::SpeaksInPause);
            }
            self.destination_accepts(attempt);
        } else {
            let reason = "connection refused".to_owned();
            self.source_to(attempt, wait, SourceEvent::PeerLost(reason));
        }
    }

    fn open_streams(&mut self, attempt: usize) {
        let (there, back) = (self.network_time(), self.network_time());
        if self.links[attempt]
            .streams
            .iter()
            .any(|stream| stream.is_broken())
        {
            return;
        }
        self.source_to(attempt, there + back, SourceEvent::StreamsOpen);
        self.destination_joined(attempt, there + self.plan.delay_ns.0);
    }

    /// The last action: when everything asked for before is done, the attempt leaves memory.
    fn source_finishes(&mut self, attempt: usize, outcome: Outcome) {
        let commands = self.source.run.as_ref().map_or(0, |run| run.commands);
        if commands > 0 {
            if let Some(run) = self.source.run.as_mut() {
                run.actions.push_front(SourceAction::Finish(outcome));
            }
            let boot = self.source.boot;
            self.after(MS, Happening::SourceActs { boot });
            return;
        }
        self.note(
            "source ends",
            [attempt as u64, outcome.result as u64],
            |_| format!("{outcome:?}"),
        );
        self.close(attempt, Side::Source, true);
        self.source.run = None;
        self.guest.disarm();
        invariants::abort_restores::check_outcome(self, &outcome);
        self.stats.ended(Side::Source, outcome.result);
        let again = outcome.result == Ending::Aborted;
        self.source.outcomes[attempt] = Some(outcome);
        if again {
            self.try_again();
        }
    }

    /// The operator tries again, if he has patience.
    pub(crate) fn try_again(&mut self) {
        if (self.source.attempts as u32) < self.plan.attempts_max {
            self.source.start_pending = true;
            let wait = self.rng.skewed(MS, self.plan.silence_ns * 2);
            self.after(wait, Happening::AttemptStarts);
        }
    }

    pub(crate) fn source_tick(&mut self) {
        if let Some(attempt) = self.source.run.as_ref().map(|run| run.attempt) {
            self.feed_source(attempt, SourceEvent::Tick);
        }
        if let Some(attempt) = self.source.asking {
            self.send_alone(Side::Destination, Happening::QueryArrives { attempt });
        }
    }

    /// A write has its answer: the actions behind it go on.
    pub(crate) fn source_journaled(&mut self, attempt: usize, event: SourceEvent) {
        if let Some(run) = self.source.run.as_mut() {
            run.acting = false;
        }
        self.feed_source(attempt, event);
        self.source_wakes();
    }
}
