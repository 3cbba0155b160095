//! The source: Idle → Negotiate → Setup → Precopy → Switchover → Handover → an end.
//!
//! Here: the states, and what holds in all of them. What is particular to a phase is in its file.

mod events;
mod handover;
mod postcopy;
mod precopy;
mod switchover;

pub(crate) use postcopy::outcome as postcopy_outcome;

pub use events::{RoundMeasure, SourceAction, SourceConfig, SourceEvent};

use dwcp_wire::{AbortCode, Control, PageRange};

use crate::phase::{Phase, is_transition_valid};
use crate::{Ending, IfNotConverged, Instant, JournalEntry, Outcome, Outlook};

/// Rounds while the guest is paused: what was suspect, or what a tracker missed, is sent again so
/// often before the guest is given back.
pub const TRIES_WHILE_PAUSED_MAX: u32 = 4;

/// So often a VMM is asked to run the guest again, once per tick, before it is said to stand.
pub const RESUME_TRIES_MAX: u32 = 5;

/// A guest that stands waits no longer than this for a destination or a stream that says nothing, or twice its
/// `switchover.downtime_limit`.
const PAUSE_PATIENCE_NS: u64 = 2_000_000_000;

/// How long somebody may say nothing for whom the guest stands, where anybody may for `silence_ns`.
#[must_use]
pub fn patience_in_pause_ns(silence_ns: u64, downtime_ns_max: u64) -> u64 {
    silence_ns.min(PAUSE_PATIENCE_NS.max(downtime_ns_max.saturating_mul(2)))
}

/// Time between questions to a destination that does not answer.
const QUERY_INTERVAL_NS: u64 = 1_000_000_000;

/// The source's machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    config: SourceConfig,
    /// The operator wants post-copy as soon as a round has ended.
    go_postcopy: bool,
    /// See [`SourceEvent::SpeaksInPause`].
    speaks_in_pause: bool,
    /// When the destination took it.
    accepted: Instant,
    state: State,
    heard: Option<Instant>,
    spoke: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Idle,
    Negotiate,
    Setup(Setup),
    Precopy(Precopy),
    Switchover(Switchover),
    Handover(Handover),
    Postcopy(Postcopy),
    Resuming(Resuming),
    Ended(Phase),
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Setup {
    armed: bool,
    streams: bool,
    ready: bool,
    /// The destination is asked for pages.
    asks: bool,
    /// It is known what round 0 can leave out.
    asked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Precopy {
    round: u32,
    began: Instant,
    measure: Option<RoundMeasure>,
    pages_before: u64,
    outlook: Option<Outlook>,
    /// CPU time that the guest is without, in percent.
    throttle_percent: u8,
    /// The destination has all streams. Pages need not wait for that, the end of a round does.
    ready: bool,
    /// The destination was asked for pages, and may still answer while round 0 is under way.
    asks: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Switchover {
    /// Pages that are dirty are named as missing, and not sent.
    postcopy: bool,
    /// In post-copy: the destination can serve faults, and has taken out what was dirty before the pause.
    peer_ready: bool,
    round: u32,
    tries: u32,
    again: Vec<PageRange>,
    prepared: bool,
    /// Since when the guest stands.
    paused: Option<Instant>,
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

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Resuming {
    outcome: Outcome,
    failures: u32,
    /// The VMM failed a command; whether it was the resume or an older one is not known.
    again: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Handover {
    postcopy: bool,
    epoch: u64,
    asked: Option<Instant>,
    committed: bool,
}

/// The guest runs there.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Postcopy {
    epoch: u64,
    /// The connection, until there is another.
    lost: bool,
}

type Actions = Vec<SourceAction>;

impl Source {
    /// A source that has not begun.
    #[must_use]
    pub const fn new(config: SourceConfig) -> Self {
        Self {
            config,
            go_postcopy: false,
            speaks_in_pause: false,
            accepted: Instant(0),
            state: State::Idle,
            heard: None,
            spoke: Instant(0),
        }
    }

    /// One whose data plane was started anew in post-copy: it has to find the destination first.
    #[must_use]
    pub fn serving_again(config: SourceConfig, epoch: u64) -> Self {
        Self {
            state: State::Postcopy(Postcopy { epoch, lost: true }),
            ..Self::new(config)
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
            State::Postcopy(_) => Phase::Postcopy,
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

    /// Whether the guest runs there, and the way to it is lost.
    #[must_use]
    pub const fn is_cut_off(&self) -> bool {
        matches!(&self.state, State::Postcopy(Postcopy { lost: true, .. }))
    }

    /// Takes an event and says what to do.
    #[must_use]
    pub fn on_event(&mut self, now: Instant, event: SourceEvent) -> Actions {
        let before = self.phase();
        if matches!(event, SourceEvent::Peer(_) | SourceEvent::Connected) {
            self.heard = Some(now);
        }
        if matches!(event, SourceEvent::GoPostcopy) {
            self.go_postcopy = true;
            return vec![];
        }
        if matches!(event, SourceEvent::SpeaksInPause) {
            self.speaks_in_pause = true;
            return vec![];
        }
        if matches!(event, SourceEvent::Peer(Control::Accept { .. })) {
            self.accepted = now;
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

    /// Forgets reasons, and when something was: as if all of it were now. For those who count states: no
    /// words decide anything, and a moment does only by how long ago it is.
    pub fn forget_details(&mut self) {
        let now = Instant::default();
        self.heard = self.heard.map(|_| now);
        self.spoke = now;
        match &mut self.state {
            State::Precopy(at) => at.began = now,
            State::Switchover(at) => at.paused = at.paused.map(|_| now),
            State::Handover(at) => at.asked = at.asked.map(|_| now),
            State::Resuming(at) => at.outcome.reason.clear(),
            _ => {}
        }
    }

    fn step(&self, now: Instant, state: State, event: SourceEvent) -> (State, Actions) {
        match (state, event) {
            (State::Ended(phase), _) => (State::Ended(phase), vec![]),
            (State::Resuming(resuming), event) => resuming.on_event(&event),
            (State::Handover(handover), event) => self.handover(now, handover, event),
            (State::Postcopy(postcopy), event) => self.postcopy(now, postcopy, &event),
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
            (State::Switchover(switchover), event) => self.switchover(now, switchover, event),
            (state @ State::Idle, event) => self.unexpected(&state, &event),
        }
    }

    fn tick(&self, now: Instant, state: State) -> (State, Actions) {
        if matches!(state, State::Idle) {
            return (state, vec![]);
        }
        let silent = self.silent_ns(now);
        if silent > self.config.silence_ns {
            let reason = format!("destination silent for {} ms", silent / 1_000_000);
            return self.give_up(&state, AbortCode::Connection, reason);
        }
        if let Some(silent) = self.silent_too_long_in_pause(now, &state) {
            let reason = format!(
                "destination silent for {} ms while the guest stood",
                silent / 1_000_000
            );
            return self.give_up(&state, AbortCode::Connection, reason);
        }
        let precedes_pause = matches!(state, State::Setup(_) | State::Precopy(_));
        let gives_back = self.config.limits.if_not_converged == IfNotConverged::Abort;
        if precedes_pause && gives_back && self.is_late(now) {
            let reason = format!(
                "not converged within the deadline of {} s",
                self.config.deadline_ns / 1_000_000_000
            );
            return self.give_up(&state, AbortCode::NotConverging, reason);
        }
        (state, self.say_alive(now))
    }

    fn is_late(&self, now: Instant) -> bool {
        let deadline = self.config.deadline_ns;
        deadline > 0 && now.since(self.accepted) > deadline
    }

    fn say_alive(&self, now: Instant) -> Actions {
        let due = self.heard.is_some() && now.since(self.spoke) > self.config.silence_ns / 4;
        Vec::from_iter(due.then_some(SourceAction::Send(Control::Alive)))
    }

    /// Time since the destination was heard, 0 before it ever was.
    fn silent_ns(&self, now: Instant) -> u64 {
        self.heard.map_or(0, |heard| now.since(heard))
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
        Control::Wanted(_) => "Wanted",
        Control::Found(_) => "Found",
        Control::PostcopyStart => "PostcopyStart",
        Control::PostcopyReady => "PostcopyReady",
        Control::PostcopyRefused { .. } => "PostcopyRefused",
        Control::Missing(_) => "Missing",
        Control::Fetched => "Fetched",
        Control::RamRoot { .. } => "RamRoot",
        Control::Whole { .. } => "Whole",
        Control::PostcopyResume { .. } => "PostcopyResume",
        Control::PostcopyGoOn { .. } => "PostcopyGoOn",
        Control::MissingAhead => "MissingAhead",
        Control::MissingAheadTaken => "MissingAheadTaken",
        Control::RdmaListens { .. } => "RdmaListens",
        Control::RdmaKeysGone => "RdmaKeysGone",
        Control::SourceListens { .. } => "SourceListens",
        Control::TakenBack { .. } => "TakenBack",
        Control::RecallQuery { .. } => "RecallQuery",
        Control::RecallAnswer { .. } => "RecallAnswer",
        Control::HoldsBaseline { .. } => "HoldsBaseline",
        Control::Unchanged(_) => "Unchanged",
        Control::PagesRead(_) => "PagesRead",
    }
}

/// Where a text may be cut so that at most so many bytes of it are left: before a whole character.
#[must_use]
pub fn floor_char(text: &str, most: usize) -> usize {
    (0..=most.min(text.len()))
        .rev()
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(0)
}
