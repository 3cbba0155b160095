//! Negotiate to Switchover: rounds come in, RAM is proven, device state is loaded.

use dwcp_wire::{AbortCode, Control, Offer};

use super::{
    Actions, Applied, Commit, DestinationAction, DestinationEvent, Postcopy, Receiving, RoundEnd,
    State, give_up, unexpected,
};
use crate::source::floor_char;
use crate::{Ending, JournalEntry, Outcome};

pub(super) fn negotiate(offer: Offer, event: DestinationEvent) -> (State, Actions) {
    match event {
        DestinationEvent::VmReady {
            token,
            streams,
            content_seed,
        } => {
            let actions = vec![
                DestinationAction::ExpectStreams { token, streams },
                DestinationAction::Send(Control::Accept {
                    token,
                    streams,
                    content_seed,
                }),
            ];
            (State::Setup(offer), actions)
        }
        DestinationEvent::VmRefused(code, reason) => {
            let mut told = reason.clone();
            told.truncate(floor_char(&told, dwcp_wire::limits::REASON_BYTES_MAX));
            let tell = DestinationAction::Send(Control::Refuse { code, reason: told });
            let done = Outcome::new(Ending::Aborted, format!("refused: {reason}"));
            (
                State::aborted(false),
                vec![tell, DestinationAction::Finish(done)],
            )
        }
        event => unexpected(&State::Negotiate(offer), &event),
    }
}

/// Rounds while the guest runs at the source; and, between two of them, how it is to go on.
pub(super) fn precopy(mut at: Receiving, event: DestinationEvent) -> (State, Actions) {
    let between = at.ended.is_none() && at.applied.is_none();
    let actions = match (event, at.postcopy) {
        (DestinationEvent::Peer(Control::PostcopyStart), Postcopy::No) if between => {
            at.postcopy = Postcopy::Asked;
            vec![DestinationAction::PreparePostcopy]
        }
        (DestinationEvent::PostcopyPrepared, Postcopy::Asked) => {
            vec![DestinationAction::Journal(JournalEntry::Fetching)]
        }
        (DestinationEvent::Journaled(JournalEntry::Fetching), Postcopy::Asked) => {
            at.postcopy = Postcopy::Ready;
            vec![DestinationAction::Send(Control::PostcopyReady)]
        }
        (DestinationEvent::Peer(Control::Missing(missing)), Postcopy::Ready) if between => {
            vec![DestinationAction::NoteMissing(missing)]
        }
        (DestinationEvent::Peer(Control::MissingAhead), Postcopy::Ready) if between => {
            vec![DestinationAction::TakeMissingAhead]
        }
        (DestinationEvent::MissingTakenAhead, Postcopy::Ready) => {
            vec![DestinationAction::Send(Control::MissingAheadTaken)]
        }
        (DestinationEvent::PostcopyImpossible(mut reason), Postcopy::Asked) => {
            at.postcopy = Postcopy::No;
            reason.truncate(floor_char(&reason, dwcp_wire::limits::REASON_BYTES_MAX));
            vec![DestinationAction::Send(Control::PostcopyRefused { reason })]
        }
        (event, _) => return receiving(at, event, State::Precopy),
    };
    (State::Precopy(at), actions)
}

fn receiving(
    mut at: Receiving,
    event: DestinationEvent,
    phase: fn(Receiving) -> State,
) -> (State, Actions) {
    match event {
        DestinationEvent::Peer(Control::RoundEnd {
            round,
            sent,
            paused,
            root,
        }) if at.ended.is_none_or(|old| old.is_outdated_by(round, sent)) => {
            at.ended = Some(RoundEnd {
                round,
                sent,
                paused,
                root,
            });
        }
        DestinationEvent::RoundApplied {
            round,
            applied,
            suspects,
            root,
        } if at.applied.is_none() => {
            at.applied = Some(Applied {
                round,
                applied,
                suspects,
                root,
            });
        }
        event => return unexpected(&phase(at), &event),
    }
    let (Some(ended), Some(applied)) = (at.ended, at.applied.as_ref()) else {
        return (phase(at), vec![]);
    };
    if ended.round != at.round {
        let reason = format!("round {} where {} was expected", ended.round, at.round);
        return give_up(&phase(at), AbortCode::Protocol, reason);
    }
    if ended.sent.marks_again < applied.applied.marks_again {
        // It was sent before a stream broke: what was lost came again since, and another end comes.
        at.ended = None;
        return (phase(at), vec![]);
    }
    if ended.round != applied.round || ended.sent != applied.applied {
        let reason = format!(
            "round {}: source sent {:?}, applied were {:?} of round {}",
            ended.round, ended.sent, applied.applied, applied.round
        );
        return give_up(&phase(at), AbortCode::Protocol, reason);
    }
    if at.postcopy == Postcopy::Ready {
        if !ended.paused || !applied.suspects.is_empty() {
            let reason = "a round of pages after they were to be missing".to_owned();
            return give_up(&phase(at), AbortCode::Protocol, reason);
        }
        // The roots are compared when what is missing is no part of them.
        return (phase(at), vec![DestinationAction::TakeMissing]);
    }
    if applied.suspects.is_empty() && applied.root != ended.root {
        let root = applied.root;
        return proof_failed(&phase(at), &ended, root);
    }
    if ended.paused && applied.suspects.is_empty() {
        return (phase(at), vec![DestinationAction::Prove]);
    }
    let report = report(&mut at, None);
    (phase(at), report)
}

fn proof_failed(state: &State, ended: &RoundEnd, root: u128) -> (State, Actions) {
    let reason = format!(
        "whole-RAM proof failed after round {}: source {:032x}, destination {:032x}",
        ended.round, ended.root, root
    );
    give_up(state, AbortCode::ProofFailed, reason)
}

/// Closes the round: what was applied is reported, and the next may begin.
pub(super) fn report(at: &mut Receiving, pages_proven: Option<u64>) -> Actions {
    at.ended = None;
    at.round = at.round.saturating_add(1);
    at.applied.take().map_or_else(Vec::new, |applied| {
        let most = dwcp_wire::limits::SUSPECT_RANGES_MAX;
        let suspects = dwcp_wire::cover(applied.suspects, most);
        vec![DestinationAction::Send(Control::RoundReport {
            round: applied.round,
            applied: applied.applied,
            suspects,
            root: applied.root,
            pages_proven,
        })]
    })
}

pub(super) fn switchover(mut at: Receiving, event: DestinationEvent) -> (State, Actions) {
    match event {
        DestinationEvent::Peer(Control::Missing(missing))
            if at.postcopy == Postcopy::Ready && at.ended.is_none() =>
        {
            (
                State::Switchover(at),
                vec![DestinationAction::NoteMissing(missing)],
            )
        }
        DestinationEvent::MissingTaken { root } if at.postcopy == Postcopy::Ready => {
            let Some(ended) = at.ended else {
                return unexpected(&State::Switchover(at), &event);
            };
            if ended.root != root {
                return proof_failed(&State::Switchover(at), &ended, root);
            }
            at.postcopy = Postcopy::Begun;
            if let Some(applied) = &mut at.applied {
                applied.root = root;
            }
            (State::Switchover(at), vec![DestinationAction::Prove])
        }
        DestinationEvent::Proven { pages } if at.ended.is_some_and(|end| end.paused) => {
            at.proven = true;
            let mut actions = report(&mut at, Some(pages));
            actions.push(DestinationAction::LoadDeviceState);
            (State::Switchover(at), actions)
        }
        DestinationEvent::DeviceLoaded if at.proven && !at.loaded => {
            at.loaded = true;
            (
                State::Switchover(at),
                vec![DestinationAction::Send(Control::DeviceLoaded)],
            )
        }
        DestinationEvent::Peer(Control::Handover { epoch })
            if at.loaded && at.offer.epoch.checked_add(1) == Some(epoch) =>
        {
            let entry = JournalEntry::Committed { epoch };
            let commit = Commit {
                epoch,
                asked: false,
                postcopy: at.postcopy == Postcopy::Begun,
            };
            (
                State::Committing(commit),
                vec![DestinationAction::Journal(entry)],
            )
        }
        // What was proven is what runs: no page comes between the proof and the handover.
        event if at.proven => unexpected(&State::Switchover(at), &event),
        event => receiving(at, event, State::Switchover),
    }
}
