//! Negotiate to Switchover: rounds come in, RAM is proven, device state is loaded.

use dwcp_wire::{AbortCode, Control, Offer};

use super::{
    Actions, Applied, Commit, DestinationAction, DestinationEvent, Receiving, RoundEnd, State,
    give_up, unexpected,
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

pub(super) fn receiving(
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
    if applied.suspects.is_empty() && applied.root != ended.root {
        let reason = format!(
            "whole-RAM proof failed after round {}: source {:032x}, destination {:032x}",
            ended.round, ended.root, applied.root
        );
        return give_up(&phase(at), AbortCode::ProofFailed, reason);
    }
    if ended.paused && applied.suspects.is_empty() {
        return (phase(at), vec![DestinationAction::Prove]);
    }
    let report = report(&mut at, None);
    (phase(at), report)
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
