//! The source: Idle → Negotiate → Setup → Precopy → Switchover → Handover → an end.

use dwcp_wire::limits::PAGE_BYTES;
use dwcp_wire::{AbortCode, Control, Offer, PageRange, RoundSummary};

use crate::phase::{Phase, is_transition_valid};
use crate::{
    Ending, Instant, JournalEntry, Outcome, RoundDecision, RoundInput, RoundLimits, decide_round,
};

/// Rounds while the guest is paused: what was suspect, or what a tracker missed, is sent again so
/// often before the guest is given back.
pub const TRIES_WHILE_PAUSED_MAX: u32 = 4;

/// So often a VMM is asked to run the guest again, once per tick, before it is said to stand.
pub const RESUME_TRIES_MAX: u32 = 5;

/// Time between questions to a destination that does not answer.
const QUERY_INTERVAL_NS: u64 = 1_000_000_000;

/// What a source is told at its start.
#[derive(Clone, Debug)]
pub struct SourceConfig {
    /// What is offered to the destination.
    pub offer: Offer,
    /// When to stop pre-copying.
    pub limits: RoundLimits,
    /// A peer that is silent for so long is lost.
    pub silence_ns: u64,
}

/// What the engine measured in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundMeasure {
    /// What was sent.
    pub sent: RoundSummary,
    /// Pages that were dirty and not unchanged.
    pub pages: u64,
    /// Time over which they had become dirty, 0 in the first round.
    pub dirty_ns: u64,
    /// Root over what the destination should hold now.
    pub root: u128,
}

/// What happens to a source.
#[derive(Clone, Debug)]
pub enum SourceEvent {
    /// Begin.
    Start,
    /// The control connection stands and the hellos agree.
    Connected,
    /// A control message came.
    Peer(Control),
    /// A connection is lost or was never made.
    PeerLost(String),
    /// The tracker records writes from now on.
    TrackerArmed,
    /// All data streams are open.
    StreamsOpen,
    /// Every page of the round is sent, with marks behind.
    RoundSent(RoundMeasure),
    /// The guest stands.
    Paused,
    /// Pages were read again: so many differ from what was sent.
    SampleRead {
        /// Pages that the tracker missed.
        missed: u64,
    },
    /// The VMM has given all device state and stands.
    DeviceSent,
    /// The entry is durable.
    Journaled(JournalEntry),
    /// The guest runs here again.
    Resumed,
    /// An action failed on this node.
    Failed(AbortCode, String),
    /// The operator wants the guest back.
    Cancel,
    /// The destination's durable answer on a new connection.
    OwnerAnswer {
        /// Whether it committed.
        committed: bool,
    },
    /// Time passes; at least four times per `silence_ns`.
    Tick,
}

/// What a source wants done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceAction {
    /// Connect to the destination and exchange hellos.
    Connect,
    /// Send a control message.
    Send(Control),
    /// Start recording writes.
    ArmTracker,
    /// Open data streams.
    OpenStreams {
        /// Secret from the destination.
        token: u128,
        /// How many.
        streams: u16,
    },
    /// Collect dirty pages and send them, with a mark behind them on each stream.
    StartRound {
        /// Its number.
        round: u32,
        /// Pages that must go in any case.
        again: Vec<PageRange>,
        /// Trust no tracker: compare all of RAM with what was sent.
        everything: bool,
    },
    /// Pause the guest.
    PauseVm,
    /// Read a sample of pages, or all, again and compare with what was sent.
    ReadSample,
    /// Let the VMM give its device state into the relay.
    SendDeviceState,
    /// Make an entry durable.
    Journal(JournalEntry),
    /// Ask the destination on a new connection whether it committed.
    QueryOwner {
        /// The epoch handed over.
        epoch: u64,
    },
    /// Run the guest here, whatever state the VMM is in; put the tracker's bits back.
    ResumeVm,
    /// Nothing more will be asked for. Carried out when the actions before it have ended: no command
    /// to the VMM may outlive the migration.
    Finish(Outcome),
}

/// The source's machine.
#[derive(Debug)]
pub struct Source {
    config: SourceConfig,
    state: State,
    heard: Option<Instant>,
    spoke: Instant,
}

#[derive(Debug)]
enum State {
    Idle,
    Negotiate,
    Setup(Setup),
    Precopy(Precopy),
    Switchover(Switchover),
    Handover(Handover),
    Resuming(Resuming),
    Ended(Phase),
}

#[derive(Debug, Default)]
struct Setup {
    armed: bool,
    streams: bool,
    ready: bool,
}

#[derive(Debug)]
struct Precopy {
    round: u32,
    began: Instant,
    measure: Option<RoundMeasure>,
    pages_before: u64,
}

#[derive(Debug)]
struct Switchover {
    round: u32,
    tries: u32,
    again: Vec<PageRange>,
    prepared: bool,
    paused: bool,
    measure: Option<RoundMeasure>,
    /// The round's end was sent: its report may come.
    ended: bool,
    /// The tracker missed writes: the next round compares all of RAM.
    missed: bool,
    device_asked: bool,
    device_sent: bool,
    device_loaded: bool,
    proven: bool,
}

#[derive(Debug)]
struct Resuming {
    outcome: Outcome,
    failures: u32,
    /// The VMM failed a command; whether it was the resume or an older one is not known.
    again: bool,
}

#[derive(Debug)]
struct Handover {
    epoch: u64,
    asked: Option<Instant>,
    committed: bool,
}

type Actions = Vec<SourceAction>;

impl Source {
    /// A source that has not begun.
    #[must_use]
    pub const fn new(config: SourceConfig) -> Self {
        Self {
            config,
            state: State::Idle,
            heard: None,
            spoke: Instant(0),
        }
    }

    /// Phase for people and for the transition table.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        match &self.state {
            State::Idle => Phase::Idle,
            State::Negotiate => Phase::Negotiate,
            State::Setup(_) => Phase::Setup,
            State::Precopy(_) => Phase::Precopy,
            State::Switchover(_) => Phase::Switchover,
            State::Handover(_) => Phase::Handover,
            State::Resuming(_) => Phase::Aborted,
            State::Ended(phase) => *phase,
        }
    }

    /// Whether handover was sent and its answer is not known, the connection being lost.
    #[must_use]
    pub const fn is_in_doubt(&self) -> bool {
        matches!(
            &self.state,
            State::Handover(Handover {
                asked: Some(_),
                committed: false,
                ..
            })
        )
    }

    /// Takes an event and says what to do.
    #[must_use]
    pub fn on_event(&mut self, now: Instant, event: SourceEvent) -> Actions {
        let before = self.phase();
        if matches!(event, SourceEvent::Peer(_) | SourceEvent::Connected) {
            self.heard = Some(now);
        }
        let state = std::mem::replace(&mut self.state, State::Ended(before));
        let (next, actions) = self.step(now, state, event);
        self.state = next;
        let after = self.phase();
        assert!(
            is_transition_valid(before, after),
            "source {before:?} -> {after:?}"
        );
        if actions
            .iter()
            .any(|action| matches!(action, SourceAction::Send(_)))
        {
            self.spoke = now;
        }
        actions
    }

    fn step(&self, now: Instant, state: State, event: SourceEvent) -> (State, Actions) {
        match (state, event) {
            (State::Ended(phase), _) => (State::Ended(phase), vec![]),
            (State::Resuming(resuming), event) => resuming.on_event(&event),
            (State::Handover(handover), event) => self.handover(now, handover, event),
            (State::Idle, SourceEvent::Start) => (State::Negotiate, vec![SourceAction::Connect]),
            (state, SourceEvent::Cancel) => self.give_up(
                &state,
                AbortCode::Cancelled,
                "cancelled by the operator".into(),
            ),
            (state, SourceEvent::Failed(code, reason)) => self.give_up(&state, code, reason),
            (state, SourceEvent::PeerLost(reason)) => {
                self.give_up(&state, AbortCode::Connection, reason)
            }
            (state, SourceEvent::Peer(Control::Abort { reason, .. })) => {
                self.give_back(&state, format!("destination gave up: {reason}"), vec![])
            }
            (state, SourceEvent::Peer(Control::Alive)) => (state, vec![]),
            (state, SourceEvent::Tick) => self.tick(now, state),
            (State::Negotiate, event) => self.negotiate(event),
            (State::Setup(setup), event) => self.setup(now, setup, event),
            (State::Precopy(precopy), event) => self.precopy(now, precopy, event),
            (State::Switchover(switchover), event) => self.switchover(switchover, event),
            (state @ State::Idle, event) => self.unexpected(&state, &event),
        }
    }

    fn tick(&self, now: Instant, state: State) -> (State, Actions) {
        if matches!(state, State::Idle) {
            return (state, vec![]);
        }
        let silence = self.config.silence_ns;
        let silent = self.silent_ns(now);
        if silent > silence {
            let reason = format!("destination silent for {} ms", silent / 1_000_000);
            return self.give_up(&state, AbortCode::Connection, reason);
        }
        let due = self.heard.is_some() && now.since(self.spoke) > silence / 4;
        (
            state,
            if due {
                vec![SourceAction::Send(Control::Alive)]
            } else {
                vec![]
            },
        )
    }

    /// Time since the destination was heard, 0 before it ever was.
    fn silent_ns(&self, now: Instant) -> u64 {
        self.heard.map_or(0, |heard| now.since(heard))
    }

    fn negotiate(&self, event: SourceEvent) -> (State, Actions) {
        match event {
            SourceEvent::Connected => {
                let offer = Control::Offer(self.config.offer.clone());
                (State::Negotiate, vec![SourceAction::Send(offer)])
            }
            SourceEvent::Peer(Control::Accept { .. }) if self.config.offer.dry_run => {
                let reason = "dry run: both nodes agree, nothing was moved".to_owned();
                self.give_up(&State::Negotiate, AbortCode::DryRun, reason)
            }
            SourceEvent::Peer(Control::Accept { token, streams }) => {
                if streams > self.config.offer.streams {
                    let reason = format!("destination grants {streams} streams unasked");
                    return self.give_up(&State::Negotiate, AbortCode::Protocol, reason);
                }
                let actions = vec![
                    SourceAction::ArmTracker,
                    SourceAction::OpenStreams { token, streams },
                ];
                (State::Setup(Setup::default()), actions)
            }
            SourceEvent::Peer(Control::Refuse { reason, .. }) => {
                let reason = format!("destination refused: {reason}");
                self.give_back(&State::Negotiate, reason, vec![])
            }
            event => self.unexpected(&State::Negotiate, &event),
        }
    }

    fn setup(&self, now: Instant, mut setup: Setup, event: SourceEvent) -> (State, Actions) {
        match event {
            SourceEvent::TrackerArmed => setup.armed = true,
            SourceEvent::StreamsOpen => setup.streams = true,
            SourceEvent::Peer(Control::Ready) => setup.ready = true,
            event => return self.unexpected(&State::Setup(setup), &event),
        }
        if !(setup.armed && setup.streams && setup.ready) {
            return (State::Setup(setup), vec![]);
        }
        let precopy = Precopy {
            round: 0,
            began: now,
            measure: None,
            pages_before: 0,
        };
        (State::Precopy(precopy), vec![start_round(0, vec![], false)])
    }

    fn precopy(&self, now: Instant, mut precopy: Precopy, event: SourceEvent) -> (State, Actions) {
        match event {
            SourceEvent::RoundSent(measure) => {
                precopy.measure = Some(measure);
                let end = Control::RoundEnd {
                    round: precopy.round,
                    sent: measure.sent,
                    paused: false,
                    root: measure.root,
                };
                (State::Precopy(precopy), vec![SourceAction::Send(end)])
            }
            SourceEvent::Peer(Control::RoundReport {
                round,
                applied,
                suspects,
                root,
                ..
            }) if round == precopy.round && precopy.measure.is_some() => {
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

    fn round_reported(
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
            wire_bytes: measure.sent.wire_bytes,
            suspects: suspects.iter().map(|range| u64::from(range.count)).sum(),
        };
        let round = precopy.round + 1;
        match decide_round(&input, &self.config.limits) {
            RoundDecision::Continue => {
                let next = Precopy {
                    round,
                    began: now,
                    measure: None,
                    pages_before: measure.pages,
                };
                (
                    State::Precopy(next),
                    vec![start_round(round, suspects, false)],
                )
            }
            RoundDecision::Switchover => {
                let next = Switchover {
                    round,
                    tries: 0,
                    again: suspects,
                    prepared: false,
                    paused: false,
                    measure: None,
                    ended: false,
                    missed: false,
                    device_asked: false,
                    device_sent: false,
                    device_loaded: false,
                    proven: false,
                };
                // Durable while the guest still runs, so that the pause does not pay for it.
                (
                    State::Switchover(next),
                    vec![SourceAction::Journal(JournalEntry::Prepared)],
                )
            }
            RoundDecision::Abort => {
                let reason = format!(
                    "not converging: {} pages dirtied during round {}, limit {} rounds",
                    measure.pages, precopy.round, self.config.limits.rounds_max
                );
                self.give_up(&State::Precopy(precopy), AbortCode::NotConverging, reason)
            }
        }
    }

    fn switchover(&self, mut at: Switchover, event: SourceEvent) -> (State, Actions) {
        let mut actions = vec![];
        match event {
            SourceEvent::Journaled(JournalEntry::Prepared) if !at.prepared => {
                at.prepared = true;
                actions.push(SourceAction::Send(Control::SwitchoverStart));
                actions.push(SourceAction::PauseVm);
            }
            SourceEvent::Paused if at.prepared && !at.paused => {
                at.paused = true;
                actions.push(start_round(at.round, std::mem::take(&mut at.again), false));
            }
            SourceEvent::RoundSent(measure) if at.paused && at.measure.is_none() => {
                at.measure = Some(measure);
                actions.push(SourceAction::ReadSample);
            }
            SourceEvent::SampleRead { missed } if at.measure.is_some() && !at.ended => {
                return sample_read(at, missed);
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
                epoch,
                asked: None,
                committed: false,
            };
            let send = SourceAction::Send(Control::Handover { epoch });
            return (State::Handover(handover), vec![send]);
        }
        (State::Switchover(at), actions)
    }

    /// What is left to send after a paused round, `None` when RAM is proven.
    fn paused_report(
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

    /// What the destination asserts, asserted here too: it may be given a guest for it.
    fn check_report(
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

    fn paused_round_again(&self, mut at: Switchover, again: Vec<PageRange>) -> (State, Actions) {
        at.tries += 1;
        if at.tries >= TRIES_WHILE_PAUSED_MAX {
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

    /// The guest may be the destination's by now: only its answer ends this phase.
    fn handover(&self, now: Instant, mut at: Handover, event: SourceEvent) -> (State, Actions) {
        match event {
            SourceEvent::Peer(Control::Committed { epoch }) if epoch == at.epoch => {
                at.committed = true;
                let entry = JournalEntry::Committed { epoch };
                (State::Handover(at), vec![SourceAction::Journal(entry)])
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

    fn handover_lost(
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

    fn unexpected(&self, state: &State, event: &SourceEvent) -> (State, Actions) {
        let reason = match event {
            SourceEvent::Peer(message) => format!("unexpected message {}", message_name(message)),
            event => format!("event out of place: {event:?}"),
        };
        self.give_up(state, AbortCode::Protocol, reason)
    }

    /// Tells the destination and gives the guest back.
    fn give_up(&self, state: &State, code: AbortCode, reason: String) -> (State, Actions) {
        let most = floor_char(&reason, dwcp_wire::limits::REASON_BYTES_MAX);
        let told = reason[..most].to_owned();
        let tell = SourceAction::Send(Control::Abort { code, reason: told });
        let actions = if matches!(state, State::Idle) {
            vec![]
        } else {
            vec![tell]
        };
        self.give_back(state, reason, actions)
    }

    /// Gives the guest back to itself. Only ever called when the destination cannot own it.
    fn give_back(&self, state: &State, reason: String, mut actions: Actions) -> (State, Actions) {
        let outcome = Outcome::new(Ending::Aborted, reason);
        if matches!(state, State::Idle | State::Negotiate) {
            let entry = JournalEntry::Aborted {
                reason: outcome.reason.clone(),
            };
            actions.push(SourceAction::Journal(entry));
            actions.push(SourceAction::Finish(outcome));
            return (State::Ended(Phase::Aborted), actions);
        }
        actions.push(SourceAction::ResumeVm);
        let resuming = Resuming {
            outcome,
            failures: 0,
            again: false,
        };
        (State::Resuming(resuming), actions)
    }
}

impl Resuming {
    /// A failure of the VMM may be that of an older command (the pause, the device state), or pass:
    /// the resume is asked for again at the next tick, a few times.
    fn on_event(mut self, event: &SourceEvent) -> (State, Actions) {
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

/// Ends the paused round. A round that missed writes proves nothing, but must be closed all the
/// same: its report brings the pages that are suspect, and the destination opens the next.
fn sample_read(mut at: Switchover, missed: u64) -> (State, Actions) {
    let measure = at.measure.unwrap_or_default();
    at.ended = true;
    at.missed = missed > 0;
    let end = Control::RoundEnd {
        round: at.round,
        sent: measure.sent,
        paused: !at.missed,
        root: measure.root,
    };
    let mut actions = vec![SourceAction::Send(end)];
    if !at.missed && !at.device_asked {
        // The destination holds it back until RAM is proven: no round trip is lost.
        at.device_asked = true;
        actions.push(SourceAction::SendDeviceState);
    }
    (State::Switchover(at), actions)
}

const fn start_round(round: u32, again: Vec<PageRange>, everything: bool) -> SourceAction {
    SourceAction::StartRound {
        round,
        again,
        everything,
    }
}

pub(crate) const fn message_name(message: &Control) -> &'static str {
    match message {
        Control::Offer(_) => "Offer",
        Control::Accept { .. } => "Accept",
        Control::Refuse { .. } => "Refuse",
        Control::Ready => "Ready",
        Control::RoundEnd { .. } => "RoundEnd",
        Control::RoundReport { .. } => "RoundReport",
        Control::SwitchoverStart => "SwitchoverStart",
        Control::DeviceLoaded => "DeviceLoaded",
        Control::Handover { .. } => "Handover",
        Control::Committed { .. } => "Committed",
        Control::Resumed => "Resumed",
        Control::Abort { .. } => "Abort",
        Control::OwnerQuery { .. } => "OwnerQuery",
        Control::OwnerAnswer { .. } => "OwnerAnswer",
        Control::Alive => "Alive",
    }
}

pub(crate) fn floor_char(text: &str, most: usize) -> usize {
    (0..=most.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}
