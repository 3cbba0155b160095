//! The state of everything, and what all steps have in common.

use dwcp_proto::{Instant, JournalEntry, Phase};
use dwcp_wire::Control;

use super::destination::{DestinationNode, DestinationProcess};
use super::source::{SourceNode, SourceProcess};
use super::step::Death;
use super::wire::Wire;
use crate::faults::{JournalFault, Side};
use crate::invariants::{Violation, owner_agrees, single_runner};
use crate::journal::{Journal, Written};
use crate::link::DeviceStream;
use crate::mutation::Mutation;
use crate::vmm::SourceVm;

/// The migration's number in both journals.
pub(super) const ATTEMPT: usize = 0;

/// The epoch that is handed over.
pub(super) const EPOCH: u64 = 1;

/// A peer that is silent for longer is lost.
pub(super) const SILENCE_MS: u32 = 8_000;

/// Machines forget when something was, see `forget_details`: each event comes at the time that says how long ago.
pub(super) const NOW: Instant = Instant(0);
/// What is tried each second is due; nobody is silent, and no sign of life is due.
pub(super) const SOON: Instant = Instant(1_000_000_000);
/// The peer has been silent for too long.
pub(super) const SILENT: Instant = Instant(9_000_000_000);
/// For longer than a guest whose pages are all there is held.
pub(super) const SILENT_FOR_LONG: Instant = Instant(161_000_000_000);

/// A question who owns the VM, on a connection of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Question {
    /// On its way.
    Asked,
    /// The destination's machine has it.
    Waits,
    /// The answer is on its way.
    Answered(bool),
}

/// Everything that what comes next depends on.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct World {
    pub(super) mutation: Mutation,
    pub(super) faults_left: u32,
    pub(super) source: SourceNode,
    pub(super) destination: DestinationNode,
    pub(super) wire: Wire,
    /// Sorted.
    pub(super) questions: Vec<Question>,
    /// The destination has said that it will never commit.
    pub(super) denied: bool,
    pub(super) broken: Option<Violation>,
}

impl World {
    pub(super) fn break_invariant(&mut self, invariant: &'static str, what: impl Into<String>) {
        let what = what.into();
        self.broken.get_or_insert(Violation { invariant, what });
    }

    /// What holds in every state.
    pub(super) fn check(&mut self) {
        let (here, there) = (self.source.vmm.vm, self.destination.vmm.vm);
        if let Some(what) = single_runner::find(here, there, &self.destination.journal) {
            self.break_invariant(single_runner::NAME, what);
        }
        if let Some(what) = owner_agrees::find(&self.source.journal, &self.destination.journal) {
            self.break_invariant(owner_agrees::NAME, what);
        }
    }

    const fn journal(&mut self, side: Side) -> &mut Journal {
        match side {
            Side::Source => &mut self.source.journal,
            Side::Destination => &mut self.destination.journal,
        }
    }

    /// Makes an entry durable, or not. Whether it is, as far as the process knows.
    pub(super) fn append(
        &mut self,
        side: Side,
        entry: &JournalEntry,
        fault: Option<JournalFault>,
    ) -> bool {
        let journal = self.journal(side);
        if let Some(fault) = fault {
            journal.fail_next(fault);
        }
        let owned = journal.is_committed(ATTEMPT);
        let written = journal.append(ATTEMPT, entry) == Written::Durable;
        journal.calm();
        let commits = side == Side::Destination && journal.is_committed(ATTEMPT) && !owned;
        if commits && self.denied {
            self.break_invariant(
                "commit_after_refusal",
                "committed after the source was told no",
            );
        }
        written
    }

    pub(super) fn ask(&mut self, question: Question) {
        self.questions.push(question);
        self.questions.sort_unstable();
    }

    /// Takes a question out; false when there is none like it.
    pub(super) fn take_question(&mut self, question: Question) -> bool {
        let Some(at) = self.questions.iter().position(|&other| other == question) else {
            return false;
        };
        self.questions.remove(at);
        true
    }

    /// One side closes its connections; what it has sent still arrives.
    pub(super) fn close(&mut self, side: Side) {
        if self.wire.to(side).is_over() {
            return;
        }
        let other = self.wire.to_mut(side.other());
        let kept = other.len();
        other.cut(kept);
        self.is_deaf(side);
    }

    fn is_deaf(&mut self, side: Side) {
        self.wire.to_mut(side).end();
        if side == Side::Destination {
            self.wire.round = None;
        }
        self.break_device();
    }

    /// The device state's connection breaks. A source VMM that still gives state resumes by itself.
    pub(super) fn break_device(&mut self) {
        let device = self.wire.device;
        if device == DeviceStream::Broken {
            return;
        }
        if device != DeviceStream::Arrived {
            self.wire.device = DeviceStream::Broken;
            self.device_ends_early();
        }
        if device != DeviceStream::Idle && self.source.vmm.vm == SourceVm::Giving {
            self.source.stream_lost = true;
        }
    }

    /// A data plane dies: its memory is lost, its sockets close, its VMM goes on.
    pub(super) fn die(&mut self, death: Death) {
        let side = death.side;
        if death.durable
            && let Some(entry) = self.under_way(side).cloned()
        {
            self.append(side, &entry, None);
        }
        self.wire.to_mut(side.other()).cut(death.sent);
        match side {
            Side::Source => {
                self.source.process = SourceProcess::Dead;
                self.source.commands.truncate(death.commands);
                self.is_deaf(side);
            }
            Side::Destination => {
                // The rest of its device state never comes: the VMM exits.
                self.device_ends_early();
                self.destination.process = DestinationProcess::Dead;
                self.destination.orders.truncate(death.commands);
                self.questions
                    .retain(|&question| question != Question::Waits);
                self.is_deaf(side);
            }
        }
    }

    /// The record that a process is writing.
    pub(super) fn under_way(&self, side: Side) -> Option<&JournalEntry> {
        match side {
            Side::Source => self.source.process.under_way(),
            Side::Destination => self.destination.process.under_way(),
        }
    }

    pub(super) const fn is_dead(&self, side: Side) -> bool {
        match side {
            Side::Source => matches!(self.source.process, SourceProcess::Dead),
            Side::Destination => matches!(self.destination.process, DestinationProcess::Dead),
        }
    }

    pub(super) const fn is_poisoned(&self, side: Side) -> bool {
        match side {
            Side::Source => self.source.journal.is_poisoned(),
            Side::Destination => self.destination.journal.is_poisoned(),
        }
    }

    /// Whether a source that could give pages is there.
    pub(super) fn serves(&self) -> bool {
        let SourceProcess::Moves(run) = &self.source.process else {
            return false;
        };
        run.machine.phase() >= Phase::Handover
    }
}

/// Without words: they decide nothing, and would make two states of one.
pub(super) fn plain_entry(entry: JournalEntry) -> JournalEntry {
    let reason = String::new();
    match entry {
        JournalEntry::Aborted { .. } => JournalEntry::Aborted { reason },
        JournalEntry::Failed { .. } => JournalEntry::Failed { reason },
        entry => entry,
    }
}

pub(super) fn plain_message(message: Control) -> Control {
    let reason = String::new();
    match message {
        Control::Abort { .. } => Control::Abort {
            code: dwcp_wire::AbortCode::Other,
            reason,
        },
        Control::PostcopyRefused { .. } => Control::PostcopyRefused { reason },
        message => message,
    }
}
