//! Post-copy: the guest runs here, and pages of it are at the source.

use dwcp_wire::{AbortCode, Control, FetchSummary};

use super::{Actions, Destination, DestinationAction, DestinationEvent, Owner, State};
use crate::source::postcopy_outcome;
use crate::{Ending, Instant, JournalEntry, Outcome, Phase};

/// Pages come.
#[derive(Debug, Default)]
pub(super) struct Fetching {
    /// They have: their root, as far as it is known, and what it took.
    fetched: Option<(Option<u128>, FetchSummary)>,
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
        let actions = match event {
            DestinationEvent::AllFetched { root, summary } => {
                at.fetched = Some((root, summary));
                vec![DestinationAction::Send(Control::Fetched)]
            }
            DestinationEvent::SourceIsBack if at.fetched.is_some() => {
                vec![DestinationAction::Send(Control::Fetched)]
            }
            DestinationEvent::Peer(Control::RamRoot { root }) => {
                if let Some((held, summary)) = at.fetched {
                    return whole(held.map(|held| held == root), summary);
                }
                vec![]
            }
            DestinationEvent::Failed(AbortCode::Vmm, reason) => {
                let reason =
                    format!("the guest runs here, and its pages cannot be placed: {reason}");
                let failed = JournalEntry::Failed {
                    reason: reason.clone(),
                };
                let actions = vec![
                    DestinationAction::Journal(failed),
                    DestinationAction::Finish(Outcome::new(Ending::Failed, reason)),
                ];
                return (State::Ended(Phase::Failed, Owner::Here), actions);
            }
            DestinationEvent::OwnerQuery => {
                vec![DestinationAction::AnswerOwner { committed: true }]
            }
            DestinationEvent::Tick => self.say_alive(now),
            _ => vec![],
        };
        (State::Fetching(at), actions)
    }
}

fn whole(verified: Option<bool>, summary: FetchSummary) -> (State, Actions) {
    let outcome = postcopy_outcome(verified);
    let phase = match outcome.result {
        Ending::Completed => Phase::Complete,
        _ => Phase::Failed,
    };
    let mut actions = vec![
        DestinationAction::Journal(JournalEntry::Whole),
        DestinationAction::Send(Control::Whole { verified, summary }),
    ];
    if phase == Phase::Failed {
        actions.push(DestinationAction::Journal(JournalEntry::Failed {
            reason: outcome.reason.clone(),
        }));
    }
    actions.push(DestinationAction::Finish(outcome));
    (State::Ended(phase, Owner::Here), actions)
}
