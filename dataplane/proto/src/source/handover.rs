//! Handover, and giving the guest back.

use dwcp_wire::{AbortCode, Control};

use super::{
    Actions, Handover, Postcopy, QUERY_INTERVAL_NS, RESUME_TRIES_MAX, Resuming, Source,
    SourceAction, SourceEvent, State,
};
use crate::{Ending, Instant, JournalEntry, Outcome, Phase};

impl Source {
    /// The guest may be the destination's by now: only its answer ends this phase.
    pub(super) fn handover(
        &self,
        now: Instant,
        mut at: Handover,
        event: SourceEvent,
    ) -> (State, Actions) {
        match event {
            SourceEvent::Peer(Control::Committed { epoch }) if epoch == at.epoch => {
                at.committed = true;
                let entry = if at.postcopy {
                    JournalEntry::Serving { epoch }
                } else {
                    JournalEntry::Committed { epoch }
                };
                (State::Handover(at), vec![SourceAction::Journal(entry)])
            }
            SourceEvent::OwnerAnswer { committed: true } if at.postcopy => {
                let entry = JournalEntry::Serving { epoch: at.epoch };
                let actions = vec![SourceAction::Journal(entry), SourceAction::ServeAgain];
                (State::Postcopy(at.serving(true)), actions)
            }
            SourceEvent::OwnerAnswer { committed: true } => {
                let entry = JournalEntry::Committed { epoch: at.epoch };
                let done = Outcome::new(
                    Ending::Completed,
                    "handed over; the destination confirmed it when asked again",
                );
                let actions = vec![SourceAction::Journal(entry), SourceAction::Finish(done)];
                (State::Ended(Phase::Complete), actions)
            }
            SourceEvent::Peer(Control::Resumed) if at.committed && at.postcopy => {
                (State::Postcopy(at.serving(false)), vec![])
            }
            SourceEvent::Peer(Control::Resumed) if at.committed => {
                let done = Outcome::new(Ending::Completed, "handed over");
                (
                    State::Ended(Phase::Complete),
                    vec![SourceAction::Finish(done)],
                )
            }
            SourceEvent::OwnerAnswer { committed: false } if !at.committed => self.give_back(
                &State::Handover(at),
                "destination did not commit the handover".into(),
                vec![],
            ),
            // An abort is the destination's promise that it did not and will not commit.
            SourceEvent::Peer(Control::Abort { reason, .. }) if !at.committed => self.give_back(
                &State::Handover(at),
                format!("destination gave up before the commit: {reason}"),
                vec![],
            ),
            SourceEvent::PeerLost(_) | SourceEvent::Tick => self.handover_lost(now, at, &event),
            _ => (State::Handover(at), vec![]),
        }
    }

    pub(super) fn handover_lost(
        &self,
        now: Instant,
        mut at: Handover,
        event: &SourceEvent,
    ) -> (State, Actions) {
        let lost = matches!(event, SourceEvent::PeerLost(_));
        if at.committed {
            let silent = self.silent_ns(now) > self.config.silence_ns;
            if !lost && !silent {
                return (State::Handover(at), vec![]);
            }
            if at.postcopy {
                let again = vec![SourceAction::ServeAgain];
                return (State::Postcopy(at.serving(true)), again);
            }
            let done = Outcome::new(
                Ending::Completed,
                "handed over and committed; the destination was lost before it reported RESUME",
            );
            return (
                State::Ended(Phase::Complete),
                vec![SourceAction::Finish(done)],
            );
        }
        let due = match at.asked {
            None => lost || self.silent_ns(now) > self.config.silence_ns,
            Some(asked) => now.since(asked) >= QUERY_INTERVAL_NS,
        };
        if !due {
            return (State::Handover(at), vec![]);
        }
        at.asked = Some(now);
        let epoch = at.epoch;
        (
            State::Handover(at),
            vec![SourceAction::QueryOwner { epoch }],
        )
    }
}

impl Handover {
    /// What follows it in post-copy.
    const fn serving(&self, lost: bool) -> Postcopy {
        Postcopy {
            epoch: self.epoch,
            lost,
        }
    }
}

impl Resuming {
    /// A failure of the VMM may be that of an older command (the pause, the device state), or pass:
    /// the resume is asked for again at the next tick, a few times.
    pub(super) fn on_event(mut self, event: &SourceEvent) -> (State, Actions) {
        match event {
            SourceEvent::Resumed => {
                let entry = JournalEntry::Aborted {
                    reason: self.outcome.reason.clone(),
                };
                let finish = SourceAction::Finish(self.outcome);
                let actions = vec![SourceAction::Journal(entry), finish];
                (State::Ended(Phase::Aborted), actions)
            }
            SourceEvent::Failed(AbortCode::Vmm, reason) => {
                self.failures += 1;
                self.again = true;
                if self.failures < RESUME_TRIES_MAX {
                    return (State::Resuming(self), vec![]);
                }
                self.stands(reason)
            }
            SourceEvent::Tick if self.again => {
                self.again = false;
                (State::Resuming(self), vec![SourceAction::ResumeVm])
            }
            _ => (State::Resuming(self), vec![]),
        }
    }

    /// The guest is the source's and stands: aborted in the table's sense, failed for a person.
    fn stands(self, why: &str) -> (State, Actions) {
        let reason = format!(
            "{}; and the guest could not be resumed: {why}",
            self.outcome.reason
        );
        let entry = JournalEntry::Failed {
            reason: reason.clone(),
        };
        let done = Outcome::new(Ending::Failed, reason);
        (
            State::Ended(Phase::Aborted),
            vec![SourceAction::Journal(entry), SourceAction::Finish(done)],
        )
    }
}
