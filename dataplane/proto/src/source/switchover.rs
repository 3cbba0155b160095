//! Switchover: the guest stands. Last pages, the proof, device state.

use dwcp_wire::{AbortCode, Control, PageRange};

use super::{
    Actions, Handover, Source, SourceAction, SourceEvent, State, Switchover,
    TRIES_WHILE_PAUSED_MAX, patience_in_pause_ns, start_round,
};
use crate::{Instant, JournalEntry};

impl Source {
    pub(super) fn switchover(
        &self,
        now: Instant,
        mut at: Switchover,
        event: SourceEvent,
    ) -> (State, Actions) {
        let mut actions = vec![];
        match event {
            SourceEvent::Journaled(JournalEntry::Prepared | JournalEntry::PreparedPostcopy)
                if !at.prepared =>
            {
                at.prepared = true;
                actions = pause_when_ready(&at);
            }
            SourceEvent::Peer(
                answer @ (Control::PostcopyReady
                | Control::MissingAheadTaken
                | Control::PostcopyRefused { .. }),
            ) if at.postcopy && !at.peer_ready => return self.postcopy_prepared(at, answer),
            SourceEvent::Paused if at.prepared && at.paused.is_none() => {
                at.paused = Some(now);
                let (round, again) = (at.round, std::mem::take(&mut at.again));
                actions.push(if at.postcopy {
                    SourceAction::NameMissing { round }
                } else {
                    start_round(round, again, false)
                });
            }
            SourceEvent::RoundSent(measure) if at.paused.is_some() && at.measure.is_none() => {
                at.measure = Some(measure);
                actions.push(SourceAction::ReadSample);
            }
            // A stream broke with pages of the round, which were sent again.
            SourceEvent::RoundSent(measure) if at.paused.is_some() && !at.proven => {
                at.measure = Some(measure);
                if at.ended {
                    actions.push(round_end(&at));
                }
            }
            SourceEvent::SampleRead { missed } if at.measure.is_some() && !at.ended => {
                return self.sample_read(at, missed);
            }
            SourceEvent::Peer(report @ Control::RoundReport { round, .. })
                if at.ended && !at.proven && round == at.round =>
            {
                match self.paused_report(&at, report) {
                    Ok(None) => at.proven = true,
                    Ok(Some(again)) => return self.paused_round_again(at, again),
                    Err(reason) => {
                        return self.give_up(&State::Switchover(at), AbortCode::Protocol, reason);
                    }
                }
            }
            SourceEvent::DeviceSent if at.device_asked => at.device_sent = true,
            SourceEvent::Peer(Control::DeviceLoaded) if at.device_asked && at.proven => {
                at.device_loaded = true;
            }
            event => return self.unexpected(&State::Switchover(at), &event),
        }
        if at.proven && at.device_sent && at.device_loaded {
            let epoch = self.config.offer.epoch + 1;
            let handover = Handover {
                postcopy: at.postcopy,
                epoch,
                asked: None,
                committed: false,
            };
            let send = SourceAction::Send(Control::Handover { epoch });
            return (State::Handover(handover), vec![send]);
        }
        (State::Switchover(at), actions)
    }

    /// For how long a destination that speaks in the pause has said nothing in it, where that is too long.
    pub(super) fn silent_too_long_in_pause(&self, now: Instant, state: &State) -> Option<u64> {
        let State::Switchover(Switchover {
            paused: Some(paused),
            postcopy,
            proven,
            ..
        }) = state
        else {
            return None;
        };
        let limits = &self.config.limits;
        let patience = patience_in_pause_ns(self.config.silence_ns, limits.downtime_ns_max);
        let silent = self.silent_ns(now).min(now.since(*paused));
        // Taking pages out of RAM that were named as missing is one step there.
        let speaks = self.speaks_in_pause && (*proven || !postcopy);
        (speaks && silent > patience).then_some(silent)
    }

    /// The destination can do without pages, or cannot; and what is dirty is out of its RAM.
    fn postcopy_prepared(&self, mut at: Switchover, answer: Control) -> (State, Actions) {
        let actions = match answer {
            Control::PostcopyReady => {
                let again = std::mem::take(&mut at.again);
                vec![
                    SourceAction::NameMissingAhead { again },
                    SourceAction::Send(Control::MissingAhead),
                ]
            }
            Control::PostcopyRefused { reason } => {
                let reason = format!("not converging, and no post-copy there: {reason}");
                return self.give_up(&State::Switchover(at), AbortCode::NotConverging, reason);
            }
            _ => {
                at.peer_ready = true;
                pause_when_ready(&at)
            }
        };
        (State::Switchover(at), actions)
    }

    /// What is left to send after a paused round, `None` when RAM is proven.
    pub(super) fn paused_report(
        &self,
        at: &Switchover,
        report: Control,
    ) -> Result<Option<Vec<PageRange>>, String> {
        let Control::RoundReport {
            applied,
            suspects,
            root,
            pages_proven,
            ..
        } = report
        else {
            return Err("not a report".to_owned());
        };
        let measure = at.measure.unwrap_or_default();
        self.check_report(&measure, applied, &suspects, root)?;
        let proven = suspects.is_empty() && pages_proven.is_some() && !at.missed;
        Ok((!proven).then_some(suspects))
    }

    /// Ends the paused round. A round that missed writes proves nothing, but must be closed all the
    /// same: its report brings the pages that are suspect, and the destination opens the next. Post-copy has
    /// no next.
    fn sample_read(&self, at: Switchover, missed: u64) -> (State, Actions) {
        if at.postcopy && missed > 0 {
            let reason = format!("the tracker missed writes to {missed} pages");
            return self.give_up(&State::Switchover(at), AbortCode::ProofFailed, reason);
        }
        end_paused_round(at, missed)
    }

    pub(super) fn paused_round_again(
        &self,
        mut at: Switchover,
        again: Vec<PageRange>,
    ) -> (State, Actions) {
        at.tries += 1;
        if at.postcopy || at.tries >= TRIES_WHILE_PAUSED_MAX {
            let reason = format!("RAM could not be proven in {} tries", at.tries);
            return self.give_up(&State::Switchover(at), AbortCode::ProofFailed, reason);
        }
        at.round += 1;
        at.measure = None;
        at.ended = false;
        let everything = std::mem::take(&mut at.missed);
        let round = at.round;
        (
            State::Switchover(at),
            vec![start_round(round, again, everything)],
        )
    }
}

/// The guest is paused once it is durable that it may be handed over, and, in post-copy, once the destination
/// can do without its pages.
fn pause_when_ready(at: &Switchover) -> Actions {
    if !at.prepared || (at.postcopy && !at.peer_ready) {
        return vec![];
    }
    vec![
        SourceAction::Send(Control::SwitchoverStart),
        SourceAction::PauseVm,
    ]
}

fn end_paused_round(mut at: Switchover, missed: u64) -> (State, Actions) {
    at.ended = true;
    at.missed = missed > 0;
    let mut actions = vec![round_end(&at)];
    if !at.missed && !at.device_asked {
        // The destination holds it back until RAM is proven: no round trip is lost.
        at.device_asked = true;
        actions.push(SourceAction::SendDeviceState);
    }
    (State::Switchover(at), actions)
}

fn round_end(at: &Switchover) -> SourceAction {
    let measure = at.measure.unwrap_or_default();
    SourceAction::Send(Control::RoundEnd {
        round: at.round,
        sent: measure.sent,
        paused: !at.missed,
        root: measure.root,
    })
}
