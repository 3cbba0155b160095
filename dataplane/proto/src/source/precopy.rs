//! Negotiate, Setup, Precopy: the guest runs, rounds follow each other.

use dwcp_wire::limits::PAGE_BYTES;
use dwcp_wire::{AbortCode, Control, PageRange, RoundSummary};

use super::{
    Actions, Precopy, RoundMeasure, Setup, Source, SourceAction, SourceEvent, State, Switchover,
    start_round,
};
use crate::{
    Instant, JournalEntry, RoundDecision, RoundInput, RoundLimits, decide_round,
    expected_downtime_ns, throttle,
};

impl Source {
    pub(super) fn negotiate(&self, event: SourceEvent) -> (State, Actions) {
        match event {
            SourceEvent::Connected => {
                let offer = Control::Offer(self.config.offer.clone());
                (State::Negotiate, vec![SourceAction::Send(offer)])
            }
            SourceEvent::Peer(Control::Accept { .. }) if self.config.offer.dry_run => {
                let reason = "dry run: both nodes agree, nothing was moved".to_owned();
                self.give_up(&State::Negotiate, AbortCode::DryRun, reason)
            }
            SourceEvent::Peer(Control::Accept {
                token,
                streams,
                content_seed,
            }) => self.accepted(token, streams, content_seed),
            SourceEvent::Peer(Control::Refuse { reason, .. }) => {
                let reason = format!("destination refused: {reason}");
                self.give_back(&State::Negotiate, reason, vec![])
            }
            event => self.unexpected(&State::Negotiate, &event),
        }
    }

    fn accepted(&self, token: u128, streams: u16, content_seed: Option<u64>) -> (State, Actions) {
        let offer = &self.config.offer;
        if streams > offer.streams || (content_seed.is_some() && !offer.reuse) {
            let reason = format!("destination grants what was not asked for: {streams} streams");
            return self.give_up(&State::Negotiate, AbortCode::Protocol, reason);
        }
        let mut actions = vec![
            SourceAction::ArmTracker,
            SourceAction::OpenStreams { token, streams },
        ];
        actions.extend(content_seed.map(|seed| SourceAction::AskForPages { seed }));
        let setup = Setup {
            asks: content_seed.is_some(),
            ..Setup::default()
        };
        (State::Setup(setup), actions)
    }

    pub(super) fn setup(
        &self,
        now: Instant,
        mut setup: Setup,
        event: SourceEvent,
    ) -> (State, Actions) {
        match event {
            SourceEvent::TrackerArmed => setup.armed = true,
            SourceEvent::StreamsOpen => setup.streams = true,
            SourceEvent::Peer(Control::Ready) => setup.ready = true,
            SourceEvent::MayBegin => setup.asked = true,
            SourceEvent::Peer(Control::Found(found)) if setup.asks => {
                return (State::Setup(setup), vec![SourceAction::TakeFound(found)]);
            }
            event => return self.unexpected(&State::Setup(setup), &event),
        }
        if !(setup.armed && setup.streams && (setup.asked || !setup.asks)) {
            return (State::Setup(setup), vec![]);
        }
        let precopy = Precopy {
            round: 0,
            began: now,
            measure: None,
            pages_before: 0,
            outlook: None,
            throttle_percent: 0,
            ready: setup.ready,
            asks: setup.asks,
        };
        (State::Precopy(precopy), vec![start_round(0, vec![], false)])
    }

    pub(super) fn precopy(
        &self,
        now: Instant,
        mut precopy: Precopy,
        event: SourceEvent,
    ) -> (State, Actions) {
        match event {
            SourceEvent::RoundSent(measure) => {
                precopy.measure = Some(measure);
                let end = precopy.ready.then(|| round_end(&precopy, &measure));
                (State::Precopy(precopy), Vec::from_iter(end))
            }
            // About pages that are left out of the round, which does not end before.
            SourceEvent::Peer(Control::Found(found))
                if precopy.asks && precopy.measure.is_none() =>
            {
                let taken = vec![SourceAction::TakeFound(found)];
                (State::Precopy(precopy), taken)
            }
            SourceEvent::Outlook(outlook) => {
                precopy.outlook = Some(outlook);
                (State::Precopy(precopy), vec![])
            }
            SourceEvent::Peer(Control::Ready) if !precopy.ready => {
                precopy.ready = true;
                let end = precopy.measure.map(|measure| round_end(&precopy, &measure));
                (State::Precopy(precopy), Vec::from_iter(end))
            }
            SourceEvent::Peer(Control::RoundReport {
                round,
                applied,
                suspects,
                root,
                ..
            }) if round == precopy.round && precopy.ready && precopy.measure.is_some() => {
                let measure = precopy.measure.unwrap_or_default();
                match self.check_report(&measure, applied, &suspects, root) {
                    Ok(()) => self.round_reported(now, precopy, suspects),
                    Err(reason) => {
                        self.give_up(&State::Precopy(precopy), AbortCode::Protocol, reason)
                    }
                }
            }
            event => self.unexpected(&State::Precopy(precopy), &event),
        }
    }

    pub(super) fn round_reported(
        &self,
        now: Instant,
        precopy: Precopy,
        suspects: Vec<PageRange>,
    ) -> (State, Actions) {
        let measure = precopy.measure.unwrap_or_default();
        let input = RoundInput {
            round: precopy.round,
            pages: measure.pages,
            pages_before: precopy.pages_before,
            round_ns: now.since(precopy.began),
            dirty_ns: measure.dirty_ns,
            suspects: suspects.iter().map(|range| u64::from(range.count)).sum(),
            is_late: self.is_late(now),
            outlook: precopy.outlook,
        };
        let (round, limits) = (precopy.round + 1, &self.config.limits);
        let decision = match decide_round(&input, limits) {
            RoundDecision::Continue | RoundDecision::Abort if self.go_postcopy => {
                RoundDecision::PostCopy
            }
            decision => decision,
        };
        match decision {
            RoundDecision::Continue => {
                let percent = throttle(&input, limits, precopy.throttle_percent);
                let is_more = percent != precopy.throttle_percent;
                let mut actions =
                    Vec::from_iter(is_more.then_some(SourceAction::Throttle { percent }));
                actions.push(start_round(round, suspects, false));
                let next = Precopy {
                    round,
                    began: now,
                    measure: None,
                    pages_before: measure.pages,
                    outlook: None,
                    throttle_percent: percent,
                    ready: true,
                    asks: false,
                };
                (State::Precopy(next), actions)
            }
            RoundDecision::Switchover => begin_switchover(round, suspects, false),
            RoundDecision::PostCopy => begin_switchover(round, suspects, true),
            RoundDecision::Abort => {
                let reason = not_converging(&input, limits);
                self.give_up(&State::Precopy(precopy), AbortCode::NotConverging, reason)
            }
        }
    }

    /// What the destination asserts, asserted here too: it may be given a guest for it.
    pub(super) fn check_report(
        &self,
        measure: &RoundMeasure,
        applied: RoundSummary,
        suspects: &[PageRange],
        root: u128,
    ) -> Result<(), String> {
        if applied != measure.sent {
            return Err(format!(
                "destination applied {applied:?}, sent were {:?}",
                measure.sent
            ));
        }
        if suspects.is_empty() && root != measure.root {
            return Err(format!(
                "destination reports root {root:032x}, sent was {:032x}",
                measure.root
            ));
        }
        let ram = &self.config.offer.ram;
        let is_inside = |range: &&PageRange| {
            let end = u64::from(range.page) + u64::from(range.count);
            let block = ram.get(range.ram_block as usize);
            block.is_some_and(|block| end <= block.bytes / PAGE_BYTES as u64)
        };
        match suspects.iter().find(|range| !is_inside(range)) {
            None => Ok(()),
            Some(range) => Err(format!("destination reports {range:?}, outside of RAM")),
        }
    }
}

fn not_converging(input: &RoundInput, limits: &RoundLimits) -> String {
    let pause_ms = expected_downtime_ns(input).unwrap_or(0) / 1_000_000;
    let limit_ms = limits.downtime_ns_after(limits.rounds_max) / 1_000_000;
    format!(
        "not converging: after round {} of {} the pause would be {pause_ms} ms, at most {limit_ms} ms are wanted",
        input.round, limits.rounds_max
    )
}

fn begin_switchover(round: u32, suspects: Vec<PageRange>, postcopy: bool) -> (State, Actions) {
    let next = Switchover {
        postcopy,
        peer_ready: false,
        round,
        tries: 0,
        again: suspects,
        prepared: false,
        paused: None,
        measure: None,
        ended: false,
        missed: false,
        device_asked: false,
        device_sent: false,
        device_loaded: false,
        proven: false,
    };
    // Durable while the guest still runs, so that the pause does not pay for it.
    let actions = if postcopy {
        vec![
            SourceAction::Send(Control::PostcopyStart),
            SourceAction::OpenMissing,
            SourceAction::Journal(JournalEntry::PreparedPostcopy),
        ]
    } else {
        vec![SourceAction::Journal(JournalEntry::Prepared)]
    };
    (State::Switchover(next), actions)
}

fn round_end(precopy: &Precopy, measure: &RoundMeasure) -> SourceAction {
    SourceAction::Send(Control::RoundEnd {
        round: precopy.round,
        sent: measure.sent,
        paused: false,
        root: measure.root,
    })
}
