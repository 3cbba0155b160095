//! The source node: its data plane's engine around the real machine, and its VMM.

use std::collections::VecDeque;

use dwcp_proto::{
    Ending, Instant, JournalEntry, Outcome, RESUME_TRIES_MAX, RoundMeasure, Source, SourceAction,
    SourceEvent,
};
use dwcp_wire::{AbortCode, Control};

use super::step::SourceDone;
use super::wire::Round;
use super::world::{NOW, Question, World, plain_entry, plain_message};
use crate::faults::{JournalFault, Side};
use crate::invariants::abort_restores;
use crate::journal::Journal;
use crate::link::DeviceStream;
use crate::mutation::Mutation;
use crate::vmm::{SourceCommand, SourceVm, SourceVmm};

/// The node.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SourceNode {
    pub(super) vmm: SourceVmm,
    /// What it has been told and not done.
    pub(super) commands: VecDeque<SourceCommand>,
    /// The stream that it gives device state into is broken.
    pub(super) stream_lost: bool,
    pub(super) journal: Journal,
    pub(super) process: SourceProcess,
    pub(super) ended: Option<Ending>,
    /// A fault took the VMM.
    pub(super) killed: bool,
}

/// What its data plane does.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum SourceProcess {
    Dead,
    Moves(Box<SourceRun>),
    /// Restarted: asks who owns the VM.
    Asks,
    /// Restarted: has the VMM run the guest, which has failed so often.
    Resumes {
        failures: u32,
    },
    /// Restarted: writes how it ended.
    Writes(JournalEntry),
    Idle,
}

/// The migration in this process's memory.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct SourceRun {
    pub(super) machine: Source,
    /// Actions that wait: for the record in front of them, or for commands under way.
    todo: VecDeque<SourceAction>,
    /// Sorted: completions come in any order.
    pub(super) done: Vec<SourceDone>,
    /// It looks for the destination, to serve it pages.
    pub(super) returns: bool,
}

impl SourceRun {
    pub(super) fn new(machine: Source) -> Self {
        Self {
            machine,
            todo: VecDeque::new(),
            done: vec![],
            returns: false,
        }
    }
}

impl SourceProcess {
    pub(super) fn under_way(&self) -> Option<&JournalEntry> {
        match self {
            Self::Writes(entry) => Some(entry),
            Self::Moves(run) => match run.todo.front() {
                Some(SourceAction::Journal(entry)) => Some(entry),
                _ => None,
            },
            Self::Dead | Self::Asks | Self::Resumes { .. } | Self::Idle => None,
        }
    }
}

impl World {
    fn source_run(&mut self) -> Option<&mut SourceRun> {
        match &mut self.source.process {
            SourceProcess::Moves(run) => Some(run),
            _ => None,
        }
    }

    fn source_done(&mut self, done: SourceDone) {
        if let Some(run) = self.source_run() {
            let at = run.done.partition_point(|other| *other < done);
            run.done.insert(at, done);
        }
    }

    pub(super) fn feed_source(&mut self, now: Instant, event: SourceEvent) {
        let lost = matches!(event, SourceEvent::PeerLost(_));
        let Some(run) = self.source_run() else {
            return;
        };
        let actions = run.machine.on_event(now, event);
        run.machine.forget_details();
        // A sign of life changes nothing.
        let actions = actions.into_iter();
        let actions = actions.filter(|action| *action != SourceAction::Send(Control::Alive));
        run.todo.extend(actions.map(plain));
        if lost {
            self.close(Side::Source);
        }
        self.source_acts();
    }

    /// Carries out what can be at once. A record holds back what is behind it. That a process dies between two
    /// actions is one with its death before them, in which what they sent or told is lost.
    fn source_acts(&mut self) {
        loop {
            let idle = self.source.commands.is_empty();
            let Some(run) = self.source_run() else {
                return;
            };
            match run.todo.front() {
                None | Some(SourceAction::Journal(_)) => return,
                Some(SourceAction::Finish(_)) if !idle => return,
                Some(_) => {}
            }
            match run.todo.pop_front() {
                Some(SourceAction::Finish(outcome)) => self.source_finishes(&outcome),
                Some(action) => self.carry_out_source(action),
                None => return,
            }
        }
    }

    fn carry_out_source(&mut self, action: SourceAction) {
        match action {
            SourceAction::Send(message) => {
                let hands_over = matches!(message, Control::Handover { .. });
                if hands_over && self.mutation == Mutation::ResumeAfterHandover {
                    self.source.commands.push_back(SourceCommand::Resume);
                }
                self.wire.to_mut(Side::Destination).push(message);
            }
            SourceAction::StartRound { round, .. } => self.send_round(round, true),
            SourceAction::NameMissing { round } => self.send_round(round, false),
            SourceAction::ReadSample => self.source_done(SourceDone::SampleRead),
            SourceAction::ReadRoot => self.source_done(SourceDone::RootRead),
            SourceAction::PauseVm => self.source.commands.push_back(SourceCommand::Pause),
            SourceAction::SendDeviceState => {
                self.source
                    .commands
                    .push_back(SourceCommand::GiveDeviceState);
            }
            SourceAction::ResumeVm if self.mutation == Mutation::ForgetResume => {
                self.source_done(SourceDone::Resumed);
            }
            SourceAction::ResumeVm => self.source.commands.push_back(SourceCommand::Resume),
            // One question at a time, as in the driver.
            SourceAction::QueryOwner { .. } if self.questions.is_empty() => {
                self.ask(Question::Asked);
            }
            SourceAction::ServeAgain => {
                self.close(Side::Source);
                if let Some(run) = self.source_run() {
                    run.returns = true;
                }
            }
            // Of before the switchover, or of pages.
            _ => {}
        }
    }

    fn send_round(&mut self, number: u32, sends_pages: bool) {
        if self.wire.to(Side::Destination).is_open() {
            self.wire.round = Some(Round {
                number,
                sends_pages,
            });
        }
        self.source_done(SourceDone::RoundSent);
    }

    fn source_finishes(&mut self, outcome: &Outcome) {
        let (vm, killed) = (self.source.vmm.vm, self.source.killed);
        if let Some(what) = abort_restores::find(vm, outcome.result, killed) {
            self.break_invariant(abort_restores::NAME, what);
        }
        self.source_ends(outcome.result);
        self.close(Side::Source);
    }

    pub(super) fn source_ends(&mut self, ending: Ending) {
        self.source.process = SourceProcess::Idle;
        self.source.ended = Some(ending);
    }

    pub(super) fn source_told(&mut self, done: SourceDone, missed: u64) {
        let Some(run) = self.source_run() else {
            return;
        };
        if let Some(at) = run.done.iter().position(|&other| other == done) {
            run.done.remove(at);
        }
        let event = match done {
            SourceDone::RoundSent => SourceEvent::RoundSent(RoundMeasure::default()),
            SourceDone::SampleRead => SourceEvent::SampleRead { missed },
            SourceDone::Paused => SourceEvent::Paused,
            SourceDone::DeviceSent => SourceEvent::DeviceSent,
            SourceDone::Resumed => SourceEvent::Resumed,
            SourceDone::VmmFailed => SourceEvent::Failed(AbortCode::Vmm, String::new()),
            SourceDone::RootRead => SourceEvent::RootRead { root: 0 },
        };
        self.feed_source(NOW, event);
    }

    pub(super) fn source_obeys(&mut self, fails: bool) {
        let Some(command) = self.source.commands.pop_front() else {
            return;
        };
        self.source.vmm.fail_next = fails;
        let obeyed = self.source.vmm.obey(command);
        match command {
            SourceCommand::Resume if obeyed => {
                self.source.stream_lost = false;
                self.break_device();
            }
            SourceCommand::GiveDeviceState if obeyed => {
                if self.wire.device == DeviceStream::Idle {
                    self.wire.device = DeviceStream::Flowing;
                } else {
                    self.source.stream_lost = true;
                }
            }
            _ => {}
        }
        if let SourceProcess::Resumes { failures } = self.source.process {
            let gone = matches!(self.source.vmm.vm, SourceVm::Gone | SourceVm::Empty);
            if obeyed || gone || failures + 1 == RESUME_TRIES_MAX {
                self.source.process = SourceProcess::Writes(last_entry(obeyed));
            } else {
                self.source_resumes(failures + 1);
            }
            return;
        }
        match (command, obeyed) {
            // The machine hears of device state when all of it is given.
            (SourceCommand::GiveDeviceState, true) => {}
            (SourceCommand::Pause, true) => self.source_done(SourceDone::Paused),
            (SourceCommand::Resume, true) => self.source_done(SourceDone::Resumed),
            (_, false) => self.source_done(SourceDone::VmmFailed),
        }
        self.source_acts();
    }

    pub(super) fn device_given(&mut self) {
        self.wire.device = DeviceStream::InFlight;
        if self.mutation == Mutation::DeviceSentEarly {
            self.source_done(SourceDone::DeviceSent);
        }
    }

    pub(super) fn device_stands(&mut self) {
        self.source.vmm.vm = SourceVm::Postmigrate;
        self.source.stream_lost = false;
        if self.mutation != Mutation::DeviceSentEarly {
            self.source_done(SourceDone::DeviceSent);
        }
    }

    pub(super) fn runs_by_itself(&mut self) {
        self.source.vmm.vm = SourceVm::Running;
        self.source.stream_lost = false;
        self.source_done(SourceDone::VmmFailed);
    }

    pub(super) fn kill_source_vmm(&mut self, replaced: bool) {
        self.source.vmm.vm = if replaced {
            SourceVm::Empty
        } else {
            SourceVm::Gone
        };
        self.source.killed = true;
        self.source.stream_lost = false;
        self.source_done(SourceDone::VmmFailed);
    }

    pub(super) fn source_writes(&mut self, fault: Option<JournalFault>) {
        let Some(entry) = self.under_way(Side::Source).cloned() else {
            return;
        };
        let durable = self.append(Side::Source, &entry, fault);
        if matches!(self.source.process, SourceProcess::Writes(_)) {
            return self.source_recovered(&entry);
        }
        if let Some(run) = self.source_run() {
            run.todo.pop_front();
        }
        let event = if durable {
            SourceEvent::Journaled(entry)
        } else {
            SourceEvent::Failed(AbortCode::Journal, String::new())
        };
        self.feed_source(NOW, event);
    }
}

fn plain(action: SourceAction) -> SourceAction {
    match action {
        SourceAction::Send(message) => SourceAction::Send(plain_message(message)),
        SourceAction::Journal(entry) => SourceAction::Journal(plain_entry(entry)),
        SourceAction::Finish(outcome) => SourceAction::Finish(Outcome {
            reason: String::new(),
            ..outcome
        }),
        action => action,
    }
}

/// What a restarted data plane writes of a guest that is this node's.
pub(super) fn last_entry(runs: bool) -> JournalEntry {
    let reason = String::new();
    if runs {
        JournalEntry::Aborted { reason }
    } else {
        JournalEntry::Failed { reason }
    }
}
