//! Post-copy: the guest runs here, and pages of it are at the source.

use dwcp_wire::{AbortCode, Control, FetchSummary};

use super::{Actions, Destination, DestinationAction, DestinationEvent, Owner, State};
use crate::source::postcopy_outcome;
use crate::{Ending, Instant, JournalEntry, Outcome, Phase};

/// All pages are here, and the source has been silent for so many times the limit of silence: its host is lost, or
/// will be for long. What it would have said is no reason to hold the guest for ever.
const SILENCES_MAX: u64 = 20;

/// Pages come.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Fetching {
    /// They have: their root, as far as it is known, and what it took.
    fetched: Option<(Option<u128>, FetchSummary)>,
    /// The roots were compared: it is being made durable that nothing is missing.
    ending: Option<Option<bool>>,
    /// The VMM is gone with the guest, or does not run it: why. It is being made durable.
    lost: Option<String>,
    /// What was to be made durable could not be, and is tried again.
    again: bool,
    /// When the source was heard last, or its last page had come.
    heard: Instant,
}

impl Fetching {
    pub(super) fn forget_details(&mut self) {
        self.heard = Instant::default();
        if let Some(reason) = &mut self.lost {
            reason.clear();
        }
    }
}

/// Nothing more can be fetched. Told only when it is durable: the source keeps the guest's pages, and asks, until the
/// journal here says what became of it.
pub(super) fn lose(reason: String) -> (State, Actions) {
    let entry = JournalEntry::Failed {
        reason: reason.clone(),
    };
    let at = Fetching {
        lost: Some(reason),
        ..Fetching::default()
    };
    (State::Fetching(at), vec![DestinationAction::Journal(entry)])
}

impl Destination {
    /// A source that is lost comes again: there is nothing to be done but to wait, and the guest waits for what
    /// it needs.
    pub(super) fn fetching(
        &self,
        now: Instant,
        mut at: Fetching,
        event: DestinationEvent,
    ) -> (State, Actions) {
        if let Some(reason) = at.lost.take() {
            return self.lost(now, at, reason, &event);
        }
        if matches!(
            event,
            DestinationEvent::Peer(_) | DestinationEvent::AllFetched { .. }
        ) {
            at.heard = now;
        }
        let actions = match event {
            DestinationEvent::AllFetched { root, summary } => {
                at.fetched = Some((root, summary));
                vec![DestinationAction::Send(Control::Fetched)]
            }
            DestinationEvent::SourceIsBack if at.fetched.is_some() => {
                vec![DestinationAction::Send(Control::Fetched)]
            }
            DestinationEvent::Peer(Control::RamRoot { root }) => {
                let compared = at.fetched.map(|(held, _)| held.map(|held| held == root));
                if compared.is_none() || at.ending.is_some() {
                    vec![]
                } else {
                    at.ending = compared;
                    vec![DestinationAction::Journal(JournalEntry::Whole)]
                }
            }
            // Told only when it is durable: a source that ends its copy cannot be asked again.
            DestinationEvent::Journaled(JournalEntry::Whole) => {
                if let (Some(verified), Some((_, summary))) = (at.ending, at.fetched) {
                    return whole(verified, summary);
                }
                vec![]
            }
            DestinationEvent::Failed(AbortCode::Journal, _) => {
                at.again = at.ending.is_some();
                vec![]
            }
            DestinationEvent::Tick if at.again => {
                at.again = false;
                vec![DestinationAction::Journal(JournalEntry::Whole)]
            }
            DestinationEvent::Failed(AbortCode::Vmm, reason) => {
                let reason =
                    format!("the guest runs here, and its pages cannot be placed: {reason}");
                return lose(reason);
            }
            DestinationEvent::OwnerQuery => {
                vec![DestinationAction::AnswerOwner { committed: true }]
            }
            DestinationEvent::Tick
                if at.fetched.is_some()
                    && at.ending.is_none()
                    && now.since(at.heard) > SILENCES_MAX * self.silence_ns =>
            {
                at.ending = Some(None);
                vec![DestinationAction::Journal(JournalEntry::Whole)]
            }
            DestinationEvent::Tick => self.say_alive(now),
            _ => vec![],
        };
        (State::Fetching(at), actions)
    }

    /// Nothing ends this but a durable record, as with a commit that is refused.
    fn lost(
        &self,
        now: Instant,
        mut at: Fetching,
        reason: String,
        event: &DestinationEvent,
    ) -> (State, Actions) {
        let actions = match event {
            DestinationEvent::Journaled(JournalEntry::Failed { .. }) => {
                let done = DestinationAction::Finish(Outcome::new(Ending::Failed, reason));
                return (State::Ended(Phase::Failed, Owner::Here), vec![done]);
            }
            DestinationEvent::Failed(AbortCode::Journal, _) => {
                at.again = true;
                vec![]
            }
            DestinationEvent::Tick if at.again => {
                at.again = false;
                let reason = reason.clone();
                vec![DestinationAction::Journal(JournalEntry::Failed { reason })]
            }
            DestinationEvent::OwnerQuery => {
                vec![DestinationAction::AnswerOwner { committed: true }]
            }
            DestinationEvent::Tick => self.say_alive(now),
            _ => vec![],
        };
        at.lost = Some(reason);
        (State::Fetching(at), actions)
    }
}

fn whole(verified: Option<bool>, summary: FetchSummary) -> (State, Actions) {
    let outcome = postcopy_outcome(verified);
    let phase = match outcome.result {
        Ending::Completed => Phase::Complete,
        _ => Phase::Failed,
    };
    let mut actions = vec![DestinationAction::Send(Control::Whole {
        verified,
        summary,
    })];
    if phase == Phase::Failed {
        actions.push(DestinationAction::Journal(JournalEntry::Failed {
            reason: outcome.reason.clone(),
        }));
    }
    actions.push(DestinationAction::Finish(outcome));
    (State::Ended(phase, Owner::Here), actions)
}
