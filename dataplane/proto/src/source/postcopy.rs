//! Post-copy: the guest runs at the destination, and the pages that are missing there are here.

use dwcp_wire::Control;

use super::{Actions, Postcopy, Source, SourceAction, SourceEvent, State};
use crate::{Ending, Instant, JournalEntry, Outcome, Phase};

impl Source {
    /// Nothing but the destination's word ends this phase: without these pages its guest is lost.
    pub(super) fn postcopy(
        &self,
        now: Instant,
        mut at: Postcopy,
        event: &SourceEvent,
    ) -> (State, Actions) {
        let actions = match *event {
            SourceEvent::Peer(Control::Fetched) => vec![SourceAction::ReadRoot],
            SourceEvent::RootRead { root } => vec![SourceAction::Send(Control::RamRoot { root })],
            SourceEvent::Peer(Control::Whole { verified, .. }) => {
                return (State::Ended(end_of(verified)), finish(&at, verified));
            }
            SourceEvent::PeerLost(_) => lost(&mut at),
            SourceEvent::Connected => {
                at.lost = false;
                vec![]
            }
            SourceEvent::Tick if !at.lost => {
                if self.silent_ns(now) > self.config.silence_ns {
                    lost(&mut at)
                } else {
                    self.say_alive(now)
                }
            }
            _ => vec![],
        };
        (State::Postcopy(at), actions)
    }
}

fn lost(at: &mut Postcopy) -> Actions {
    if std::mem::replace(&mut at.lost, true) {
        return vec![];
    }
    vec![SourceAction::ServeAgain]
}

/// A guest that runs on memory that is not proven is a person's concern.
const fn end_of(verified: Option<bool>) -> Phase {
    match verified {
        Some(false) => Phase::Failed,
        _ => Phase::Complete,
    }
}

fn finish(at: &Postcopy, verified: Option<bool>) -> Actions {
    let outcome = outcome(verified);
    let entry = match verified {
        Some(false) => JournalEntry::Failed {
            reason: outcome.reason.clone(),
        },
        _ => JournalEntry::Committed { epoch: at.epoch },
    };
    vec![SourceAction::Journal(entry), SourceAction::Finish(outcome)]
}

/// How post-copy ended, in the same words at both ends.
pub(crate) fn outcome(verified: Option<bool>) -> Outcome {
    let (result, reason) = match verified {
        Some(true) => (
            Ending::Completed,
            "handed over, and all pages have followed",
        ),
        None => (
            Ending::Completed,
            "handed over, and all pages have followed; each was proven by itself: no root of the whole \
             is known, since the destination's data plane was started anew, or the source was lost",
        ),
        Some(false) => (
            Ending::Failed,
            "the guest is the destination's, and its RAM as a whole is not proven there to be what it was \
             at the source, or its VMM is gone: keep the source's copy, and look",
        ),
    };
    Outcome::new(result, reason)
}
