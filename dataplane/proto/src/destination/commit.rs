//! The commit and what follows it; who owns the VM, for those who ask.

use dwcp_wire::{AbortCode, Control};

use super::fetch::lose;
use super::{
    Actions, Commit, DestinationAction, DestinationEvent, Fetching, Owner, Refusing, Running,
    State, abandon, tell_abort,
};
use crate::source::RESUME_TRIES_MAX;
use crate::{Ending, Instant, JournalEntry, Outcome, Phase};

/// Between tries to write a refusal.
const REFUSE_INTERVAL_NS: u64 = 1_000_000_000;

/// Between asking for the commit and knowing that it is durable. Nothing else counts here.
pub(super) fn committing(mut at: Commit, event: DestinationEvent) -> (State, Actions) {
    match event {
        DestinationEvent::Journaled(JournalEntry::Committed { .. }) => {
            let mut actions = vec![DestinationAction::Send(Control::Committed {
                epoch: at.epoch,
            })];
            if at.asked {
                actions.push(DestinationAction::AnswerOwner { committed: true });
            }
            actions.push(DestinationAction::ResumeVm);
            let running = Running {
                postcopy: at.postcopy,
                epoch: at.epoch,
                failures: 0,
                again: false,
            };
            (State::Committed(running), actions)
        }
        // An error does not say that nothing was written. Only a durable refusal makes it certain
        // that no restart finds a commit here; before that nobody may be told.
        DestinationEvent::Failed(AbortCode::Journal, reason) => {
            let reason = format!("commit could not be made durable: {reason}");
            let refusing = Refusing {
                asked: at.asked,
                reason,
                failed: None,
            };
            (
                State::Refusing(refusing),
                vec![DestinationAction::Journal(JournalEntry::Refused)],
            )
        }
        DestinationEvent::OwnerQuery => {
            at.asked = true;
            (State::Committing(at), vec![])
        }
        _ => (State::Committing(at), vec![]),
    }
}

impl Refusing {
    /// Nothing ends this but a durable refusal: until then nobody is answered and the guest stays
    /// paused at both ends. It is tried again, since a disk that is full may not stay so.
    pub(super) fn on_event(mut self, now: Instant, event: &DestinationEvent) -> (State, Actions) {
        match event {
            DestinationEvent::Journaled(JournalEntry::Refused) => {
                let mut actions = vec![DestinationAction::DiscardVm];
                actions.push(tell_abort(AbortCode::Journal, &self.reason));
                if self.asked {
                    actions.push(DestinationAction::AnswerOwner { committed: false });
                }
                // Says that the copy is gone as well: a restart that finds only the refusal looks
                // for it.
                let entry = JournalEntry::Aborted {
                    reason: self.reason.clone(),
                };
                actions.push(DestinationAction::Journal(entry));
                let done = Outcome::new(Ending::Aborted, self.reason);
                actions.push(DestinationAction::Finish(done));
                (State::aborted(true), actions)
            }
            DestinationEvent::Failed(AbortCode::Journal, _) => {
                self.failed = Some(now);
                (State::Refusing(self), vec![])
            }
            DestinationEvent::Tick
                if self
                    .failed
                    .is_some_and(|failed| now.since(failed) >= REFUSE_INTERVAL_NS) =>
            {
                self.failed = None;
                let refuse = DestinationAction::Journal(JournalEntry::Refused);
                (State::Refusing(self), vec![refuse])
            }
            DestinationEvent::OwnerQuery => {
                self.asked = true;
                (State::Refusing(self), vec![])
            }
            _ => (State::Refusing(self), vec![]),
        }
    }
}

/// The VM is owned here: it runs, whatever happens to the source.
pub(super) fn committed(mut at: Running, event: DestinationEvent) -> (State, Actions) {
    match event {
        DestinationEvent::Resumed if at.postcopy => {
            let actions = vec![
                DestinationAction::Send(Control::Resumed),
                DestinationAction::Journal(JournalEntry::Resumed),
            ];
            (State::Fetching(Fetching::default()), actions)
        }
        DestinationEvent::Resumed => {
            let actions = vec![
                DestinationAction::Send(Control::Resumed),
                DestinationAction::Journal(JournalEntry::Resumed),
                DestinationAction::Finish(Outcome::new(Ending::Completed, "taken over")),
            ];
            (State::Ended(Phase::Complete, Owner::Here), actions)
        }
        // There is no way back: ask again, a few times, before it is left to a person.
        DestinationEvent::Failed(AbortCode::Vmm, _) if at.failures + 1 < RESUME_TRIES_MAX => {
            at.failures += 1;
            at.again = true;
            (State::Committed(at), vec![])
        }
        DestinationEvent::Tick if at.again => {
            at.again = false;
            (State::Committed(at), vec![DestinationAction::ResumeVm])
        }
        DestinationEvent::Failed(AbortCode::Vmm, reason) => {
            let reason = format!(
                "owned by this node since epoch {}, but its VMM did not run it: {reason}",
                at.epoch
            );
            if at.postcopy {
                return lose(reason);
            }
            let entry = JournalEntry::Failed {
                reason: reason.clone(),
            };
            let done = Outcome::new(Ending::Failed, reason);
            let actions = vec![
                DestinationAction::Journal(entry),
                DestinationAction::Finish(done),
            ];
            (State::Ended(Phase::Failed, Owner::Here), actions)
        }
        DestinationEvent::OwnerQuery => (
            State::Committed(at),
            vec![DestinationAction::AnswerOwner { committed: true }],
        ),
        _ => (State::Committed(at), vec![]),
    }
}

pub(super) fn ended(phase: Phase, owner: Owner, event: &DestinationEvent) -> (State, Actions) {
    let (owner, actions) = match (owner, event) {
        (Owner::Here, DestinationEvent::OwnerQuery) => {
            let committed = true;
            (owner, vec![DestinationAction::AnswerOwner { committed }])
        }
        (Owner::Source { refused }, DestinationEvent::OwnerQuery) => {
            let mut actions = vec![];
            if !refused {
                actions.push(DestinationAction::Journal(JournalEntry::Refused));
            }
            actions.push(DestinationAction::AnswerOwner { committed: false });
            (Owner::Source { refused: true }, actions)
        }
        _ => (owner, vec![]),
    };
    (State::Ended(phase, owner), actions)
}

/// The source lost its connection and wants the guest back before any commit: promise it. The copy
/// goes first, so that no crash leaves a loaded one behind the promise.
pub(super) fn refuse_for_good(state: &State) -> (State, Actions) {
    let (_, mut actions) = abandon(state, "source asked for the guest back".into(), vec![]);
    let discards = matches!(actions.first(), Some(DestinationAction::DiscardVm));
    let promise = [
        DestinationAction::Journal(JournalEntry::Refused),
        DestinationAction::AnswerOwner { committed: false },
    ];
    let at = usize::from(discards);
    actions.splice(at..at, promise);
    (State::aborted(true), actions)
}
