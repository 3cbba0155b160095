//! The destination: Idle → Negotiate → Setup → Precopy → Switchover → Handover → an end.
//!
//! Here: the states, and what holds in all of them. What is particular to a phase is in its file.

mod commit;
mod events;
mod fetch;
mod receive;

use commit::{committed, committing, ended, refuse_for_good};
use fetch::Fetching;
use receive::{negotiate, precopy, switchover};

pub use events::{DestinationAction, DestinationConfig, DestinationEvent};

use dwcp_wire::{AbortCode, Control, Offer, PageQuestion, PageRange, RoundSummary};

use crate::phase::{Phase, is_transition_valid};
use crate::source::{floor_char, message_name};
use crate::{Ending, Instant, JournalEntry, Outcome};

/// So often, at least, it says that it lives while the guest stands at the source.
const SPEAK_IN_PAUSE_NS: u64 = 250_000_000;

/// The destination's machine.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Destination {
    state: State,
    silence_ns: u64,
    heard: Option<Instant>,
    spoke: Instant,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum State {
    Idle,
    Negotiate(Offer),
    Setup(Offer),
    Precopy(Receiving),
    Switchover(Receiving),
    Committing(Commit),
    /// The commit could not be written, or nobody knows: it is being revoked.
    Refusing(Refusing),
    Committed(Running),
    /// The guest runs, and pages of it are missing.
    Fetching(Fetching),
    Ended(Phase, Owner),
}

impl State {
    const fn aborted(refused: bool) -> Self {
        Self::Ended(Phase::Aborted, Owner::Source { refused })
    }
}

/// What an end answers when the source asks who owns the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Owner {
    /// This node does.
    Here,
    /// The source does, and this node never will by this migration.
    Source {
        /// The refusal was given to the journal; once is enough, however often somebody asks.
        refused: bool,
    },
}

/// Both halves of a round: what the source says it sent, and what was applied here.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Receiving {
    offer: Offer,
    /// Round that is being received. The first is 0: what was in RAM before goes with it.
    round: u32,
    ended: Option<RoundEnd>,
    applied: Option<Applied>,
    proven: bool,
    loaded: bool,
    postcopy: Postcopy,
}

/// How far a destination is on its way to post-copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Postcopy {
    /// Nobody has spoken of it.
    No,
    /// It is being prepared.
    Asked,
    /// The source was told that it can begin.
    Ready,
    /// What is missing is known, and missing.
    Begun,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct RoundEnd {
    round: u32,
    sent: RoundSummary,
    paused: bool,
    root: u128,
}

impl RoundEnd {
    /// Whether a stream broke after it was sent, and the source says anew what it has sent.
    const fn is_outdated_by(&self, round: u32, sent: RoundSummary) -> bool {
        self.round == round && self.sent.marks_again < sent.marks_again
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Applied {
    round: u32,
    applied: RoundSummary,
    suspects: Vec<PageRange>,
    root: u128,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Commit {
    epoch: u64,
    asked: bool,
    postcopy: bool,
}

/// The guest is being run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Running {
    postcopy: bool,
    epoch: u64,
    failures: u32,
    again: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Refusing {
    asked: bool,
    reason: String,
    /// When the refusal could not be written; `None` while it is being written.
    failed: Option<Instant>,
}

type Actions = Vec<DestinationAction>;

impl Destination {
    /// A destination that waits for an offer.
    #[must_use]
    pub const fn new(config: DestinationConfig) -> Self {
        Self {
            state: State::Idle,
            silence_ns: config.silence_ns,
            heard: None,
            spoke: Instant(0),
        }
    }

    /// One whose data plane was started anew in post-copy. Where the guest has not been run yet, it is to be.
    #[must_use]
    pub fn fetching_again(config: DestinationConfig, epoch: u64, runs: bool) -> Self {
        let state = if runs {
            State::Fetching(Fetching::default())
        } else {
            State::Committed(Running {
                postcopy: true,
                epoch,
                failures: 0,
                again: false,
            })
        };
        Self {
            state,
            ..Self::new(config)
        }
    }

    /// Phase for people and for the transition table.
    #[must_use]
    pub const fn phase(&self) -> Phase {
        match &self.state {
            State::Idle => Phase::Idle,
            State::Negotiate(_) => Phase::Negotiate,
            State::Setup(_) => Phase::Setup,
            State::Precopy(_) => Phase::Precopy,
            State::Switchover(_) => Phase::Switchover,
            State::Committing(_) | State::Refusing(_) | State::Committed(_) => Phase::Handover,
            State::Fetching(_) => Phase::Postcopy,
            State::Ended(phase, _) => *phase,
        }
    }

    /// Takes an event and says what to do.
    #[must_use]
    pub fn on_event(&mut self, now: Instant, event: DestinationEvent) -> Actions {
        let before = self.phase();
        if let DestinationEvent::Peer(message) = &event {
            self.heard = Some(now);
            if let Control::Offer(offer) = message {
                self.silence_ns = u64::from(offer.peer_silence_ms) * 1_000_000;
            }
        }
        let state = std::mem::replace(&mut self.state, State::Idle);
        let (next, actions) = self.step(now, state, event);
        self.state = next;
        let after = self.phase();
        assert!(
            is_transition_valid(before, after),
            "destination {before:?} -> {after:?}"
        );
        if actions
            .iter()
            .any(|action| matches!(action, DestinationAction::Send(_)))
        {
            self.spoke = now;
        }
        actions
    }

    /// Forgets reasons, and when something was: see [`crate::Source::forget_details`].
    pub fn forget_details(&mut self) {
        let now = Instant::default();
        self.heard = self.heard.map(|_| now);
        self.spoke = now;
        match &mut self.state {
            State::Refusing(at) => {
                at.failed = at.failed.map(|_| now);
                at.reason.clear();
            }
            State::Fetching(at) => at.forget_details(),
            _ => {}
        }
    }

    fn step(&self, now: Instant, state: State, event: DestinationEvent) -> (State, Actions) {
        match (state, event) {
            (State::Ended(phase, owner), event) => ended(phase, owner, &event),
            (State::Committing(commit), event) => committing(commit, event),
            (State::Refusing(refusing), event) => refusing.on_event(now, &event),
            (State::Committed(commit), event) => committed(commit, event),
            (State::Fetching(fetching), event) => self.fetching(now, fetching, event),
            (state, DestinationEvent::OwnerQuery) => refuse_for_good(&state),
            (state, DestinationEvent::Cancel) => give_up(
                &state,
                AbortCode::Cancelled,
                "cancelled by the operator".into(),
            ),
            (state, DestinationEvent::Failed(code, reason)) => give_up(&state, code, reason),
            (state, DestinationEvent::PeerLost(reason)) => abandon(&state, reason, vec![]),
            (state, DestinationEvent::Peer(Control::Abort { reason, .. })) => {
                abandon(&state, format!("source gave up: {reason}"), vec![])
            }
            (state, DestinationEvent::Peer(Control::Alive)) => (state, vec![]),
            (state, DestinationEvent::Tick) => self.tick(now, state),
            (State::Idle, DestinationEvent::Peer(Control::Offer(offer))) => {
                let prepare = DestinationAction::PrepareVm(offer.clone());
                (State::Negotiate(offer), vec![prepare])
            }
            (State::Negotiate(offer), event) => negotiate(offer, event),
            (State::Setup(offer), DestinationEvent::StreamsJoined) => {
                let receiving = Receiving::new(offer);
                (
                    State::Precopy(receiving),
                    vec![DestinationAction::Send(Control::Ready)],
                )
            }
            (
                State::Setup(offer),
                DestinationEvent::Peer(asked @ (Control::Wanted(_) | Control::Unchanged(_))),
            ) if offer.reuse => (State::Setup(offer), find_pages(asked)),
            (
                State::Precopy(at),
                DestinationEvent::Peer(asked @ (Control::Wanted(_) | Control::Unchanged(_))),
            ) if at.takes_questions() => (State::Precopy(at), find_pages(asked)),
            (State::Precopy(at), DestinationEvent::Peer(Control::SwitchoverStart)) => {
                (State::Switchover(at), vec![])
            }
            (State::Precopy(at), event) => precopy(at, event),
            (State::Switchover(at), event) => switchover(at, event),
            (state @ (State::Idle | State::Setup(_)), event) => unexpected(&state, &event),
        }
    }

    fn tick(&self, now: Instant, state: State) -> (State, Actions) {
        let Some(heard) = self.heard else {
            return (state, vec![]);
        };
        let silent = now.since(heard);
        if silent > self.silence_ns {
            let reason = format!("source silent for {} ms", silent / 1_000_000);
            return give_up(&state, AbortCode::Connection, reason);
        }
        let actions = if matches!(state, State::Switchover(_)) {
            self.speak_after(now, SPEAK_IN_PAUSE_NS.min(self.silence_ns / 4))
        } else {
            self.say_alive(now)
        };
        (state, actions)
    }

    fn say_alive(&self, now: Instant) -> Actions {
        self.speak_after(now, self.silence_ns / 4)
    }

    /// Says that it lives, unless something was said within this time.
    fn speak_after(&self, now: Instant, quiet_ns: u64) -> Actions {
        let due = now.since(self.spoke) > quiet_ns;
        Vec::from_iter(due.then_some(DestinationAction::Send(Control::Alive)))
    }
}

impl Receiving {
    const fn new(offer: Offer) -> Self {
        Self {
            offer,
            round: 0,
            ended: None,
            applied: None,
            proven: false,
            loaded: false,
            postcopy: Postcopy::No,
        }
    }

    /// Whether the first round has not ended: until then pages of before may be in RAM.
    const fn takes_questions(&self) -> bool {
        self.offer.reuse && self.round == 0 && self.ended.is_none() && self.applied.is_none()
    }
}

fn find_pages(asked: Control) -> Actions {
    let question = PageQuestion::of(asked);
    Vec::from_iter(question.map(DestinationAction::FindPages))
}

fn unexpected(state: &State, event: &DestinationEvent) -> (State, Actions) {
    let reason = match event {
        DestinationEvent::Peer(message) => format!("unexpected message {}", message_name(message)),
        event => format!("event out of place: {event:?}"),
    };
    give_up(state, AbortCode::Protocol, reason)
}

/// Tells the source and discards what came.
fn give_up(state: &State, code: AbortCode, reason: String) -> (State, Actions) {
    let tell = tell_abort(code, &reason);
    abandon(state, reason, vec![tell])
}

/// The message that gives up, its reason cut to what may be sent.
fn tell_abort(code: AbortCode, reason: &str) -> DestinationAction {
    let most = floor_char(reason, dwcp_wire::limits::REASON_BYTES_MAX);
    let reason = reason[..most].to_owned();
    DestinationAction::Send(Control::Abort { code, reason })
}

/// Discards what came. Only ever called before the commit.
fn abandon(state: &State, reason: String, tell: Actions) -> (State, Actions) {
    let mut actions = vec![];
    if !matches!(state, State::Idle) {
        actions.push(DestinationAction::DiscardVm);
    }
    // Told only after the guest cannot run here any more: the source resumes it at once.
    actions.extend(tell);
    actions.push(DestinationAction::Journal(JournalEntry::Aborted {
        reason: reason.clone(),
    }));
    actions.push(DestinationAction::Finish(Outcome::new(
        Ending::Aborted,
        reason,
    )));
    (State::aborted(false), actions)
}
