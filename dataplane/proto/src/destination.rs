//! The destination: Idle → Negotiate → Setup → Precopy → Switchover → Handover → an end.

use dwcp_wire::{AbortCode, Control, Offer, PageRange, RefuseCode, RoundSummary};

use crate::phase::{Phase, is_transition_valid};
use crate::source::{RESUME_TRIES_MAX, floor_char, message_name};
use crate::{Ending, Instant, JournalEntry, Outcome};

/// What a destination is told at its start.
#[derive(Clone, Copy, Debug)]
pub struct DestinationConfig {
    /// Silence after which the peer is lost, until its offer says another.
    pub silence_ns: u64,
}

/// What happens to a destination.
#[derive(Clone, Debug)]
pub enum DestinationEvent {
    /// A control message came.
    Peer(Control),
    /// A connection is lost.
    PeerLost(String),
    /// The VM waits, its RAM is empty: the migration can be taken.
    VmReady {
        /// Secret for further connections.
        token: u128,
        /// Streams granted.
        streams: u16,
    },
    /// It cannot be taken.
    VmRefused(RefuseCode, String),
    /// All data streams have joined.
    StreamsJoined,
    /// Every mark of the round has come and every frame before it is applied.
    RoundApplied {
        /// Round.
        round: u32,
        /// What was applied.
        applied: RoundSummary,
        /// Every page that is suspect now, from this round or an earlier one. A page leaves the
        /// set when it arrives as it was sent; the report may carry only the first of many.
        suspects: Vec<PageRange>,
        /// Root of what is held.
        root: u128,
    },
    /// RAM was read again and is right.
    Proven {
        /// Pages read.
        pages: u64,
    },
    /// The VMM has loaded the device state and stands.
    DeviceLoaded,
    /// The entry is durable.
    Journaled(JournalEntry),
    /// The guest runs.
    Resumed,
    /// An action failed on this node.
    Failed(AbortCode, String),
    /// The operator wants the migration stopped.
    Cancel,
    /// The source asks on a new connection whether this migration was committed.
    OwnerQuery,
    /// Time passes.
    Tick,
}

/// What a destination wants done, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DestinationAction {
    /// Find the VM, check that it fits the offer, empty its RAM.
    PrepareVm(Offer),
    /// Send a control message.
    Send(Control),
    /// Let data streams join that know the token.
    ExpectStreams {
        /// Secret.
        token: u128,
        /// How many.
        streams: u16,
    },
    /// Read RAM again, as the offer asks, and compare with what was applied.
    Prove,
    /// Let the device state through to the VMM.
    LoadDeviceState,
    /// Make an entry durable.
    Journal(JournalEntry),
    /// Run the guest.
    ResumeVm,
    /// Make sure that the guest never runs here; empty the VM for another try if possible.
    DiscardVm,
    /// Answer the questions about ownership that wait, each on the connection it came from. A `false`
    /// holds although its record may have failed: nothing in memory commits any more, and a restart
    /// that finds no commit refuses as well.
    AnswerOwner {
        /// Whether this node owns the VM.
        committed: bool,
    },
    /// Nothing more will be asked for.
    Finish(Outcome),
}

/// The destination's machine.
#[derive(Debug)]
pub struct Destination {
    state: State,
    silence_ns: u64,
    heard: Option<Instant>,
    spoke: Instant,
}

#[derive(Debug)]
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
    Ended(Phase, Owner),
}

impl State {
    const fn aborted(refused: bool) -> Self {
        Self::Ended(Phase::Aborted, Owner::Source { refused })
    }
}

/// What an end answers when the source asks who owns the VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Owner {
    /// This node does.
    Here,
    /// The source does, and this node never will by this migration.
    Source {
        /// The refusal was given to the journal; once is enough, however often somebody asks.
        refused: bool,
    },
    /// Neither the commit nor its refusal is known to be durable. Nobody is answered and the guest
    /// stays paused until the refusal is written, or a restart reads what the journal holds.
    Unknown,
}

/// Both halves of a round: what the source says it sent, and what was applied here.
#[derive(Debug)]
struct Receiving {
    offer: Offer,
    ended: Option<RoundEnd>,
    applied: Option<Applied>,
    proven: bool,
    loaded: bool,
}

#[derive(Clone, Copy, Debug)]
struct RoundEnd {
    round: u32,
    sent: RoundSummary,
    paused: bool,
    root: u128,
}

#[derive(Debug)]
struct Applied {
    round: u32,
    applied: RoundSummary,
    suspects: Vec<PageRange>,
    root: u128,
}

#[derive(Clone, Copy, Debug)]
struct Commit {
    epoch: u64,
    asked: bool,
}

/// The guest is being run.
#[derive(Clone, Copy, Debug)]
struct Running {
    epoch: u64,
    failures: u32,
    again: bool,
}

#[derive(Debug)]
struct Refusing {
    asked: bool,
    reason: String,
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
        let state = std::mem::replace(&mut self.state, State::Ended(before, Owner::Unknown));
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

    fn step(&self, now: Instant, state: State, event: DestinationEvent) -> (State, Actions) {
        match (state, event) {
            (State::Ended(phase, owner), event) => ended(phase, owner, &event),
            (State::Committing(commit), event) => committing(commit, event),
            (State::Refusing(refusing), event) => refusing.on_event(event),
            (State::Committed(commit), event) => committed(commit, event),
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
            (State::Precopy(at), DestinationEvent::Peer(Control::SwitchoverStart)) => {
                (State::Switchover(at), vec![])
            }
            (State::Precopy(at), event) => receiving(at, event, State::Precopy),
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
        let due = now.since(self.spoke) > self.silence_ns / 4;
        (
            state,
            if due {
                vec![DestinationAction::Send(Control::Alive)]
            } else {
                vec![]
            },
        )
    }
}

impl Receiving {
    const fn new(offer: Offer) -> Self {
        Self {
            offer,
            ended: None,
            applied: None,
            proven: false,
            loaded: false,
        }
    }
}

fn negotiate(offer: Offer, event: DestinationEvent) -> (State, Actions) {
    match event {
        DestinationEvent::VmReady { token, streams } => {
            let actions = vec![
                DestinationAction::ExpectStreams { token, streams },
                DestinationAction::Send(Control::Accept { token, streams }),
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
        }) if at.ended.is_none() => {
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
fn report(at: &mut Receiving, pages_proven: Option<u64>) -> Actions {
    at.ended = None;
    at.applied.take().map_or_else(Vec::new, |applied| {
        let mut suspects = applied.suspects;
        suspects.truncate(dwcp_wire::limits::SUSPECT_RANGES_MAX);
        vec![DestinationAction::Send(Control::RoundReport {
            round: applied.round,
            applied: applied.applied,
            suspects,
            root: applied.root,
            pages_proven,
        })]
    })
}

fn switchover(mut at: Receiving, event: DestinationEvent) -> (State, Actions) {
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

/// Between asking for the commit and knowing that it is durable. Nothing else counts here.
fn committing(mut at: Commit, event: DestinationEvent) -> (State, Actions) {
    match event {
        DestinationEvent::Journaled(JournalEntry::Committed { .. }) => {
            let mut actions = vec![DestinationAction::Send(Control::Committed {
                epoch: at.epoch,
            })];
            if at.asked {
                actions.push(DestinationAction::AnswerOwner { committed: true });
            }
            actions.push(DestinationAction::ResumeVm);
            let running = Running {
                epoch: at.epoch,
                failures: 0,
                again: false,
            };
            (State::Committed(running), actions)
        }
        // An error does not say that nothing was written. Only a durable refusal makes it certain
        // that no restart finds a commit here; before that nobody may be told.
        DestinationEvent::Failed(AbortCode::Journal, reason) => {
            let reason = format!("commit could not be made durable: {reason}");
            let asked = at.asked;
            (
                State::Refusing(Refusing { asked, reason }),
                vec![DestinationAction::Journal(JournalEntry::Refused)],
            )
        }
        DestinationEvent::OwnerQuery => {
            at.asked = true;
            (State::Committing(at), vec![])
        }
        _ => (State::Committing(at), vec![]),
    }
}

impl Refusing {
    fn on_event(mut self, event: DestinationEvent) -> (State, Actions) {
        match event {
            DestinationEvent::Journaled(JournalEntry::Refused) => {
                let mut actions = vec![DestinationAction::DiscardVm];
                actions.push(tell_abort(AbortCode::Journal, &self.reason));
                if self.asked {
                    actions.push(DestinationAction::AnswerOwner { committed: false });
                }
                let done = Outcome::new(Ending::Aborted, self.reason);
                actions.push(DestinationAction::Finish(done));
                (State::aborted(true), actions)
            }
            DestinationEvent::Failed(AbortCode::Journal, reason) => {
                let reason = format!(
                    "{}; nor could its refusal: {reason}. The guest stays paused at both ends \
                     until this data plane is started again and reads its journal",
                    self.reason
                );
                let done = Outcome::new(Ending::Failed, reason);
                (
                    State::Ended(Phase::Failed, Owner::Unknown),
                    vec![DestinationAction::Finish(done)],
                )
            }
            DestinationEvent::OwnerQuery => {
                self.asked = true;
                (State::Refusing(self), vec![])
            }
            _ => (State::Refusing(self), vec![]),
        }
    }
}

/// The VM is owned here: it runs, whatever happens to the source.
fn committed(mut at: Running, event: DestinationEvent) -> (State, Actions) {
    match event {
        DestinationEvent::Resumed => {
            let actions = vec![
                DestinationAction::Send(Control::Resumed),
                DestinationAction::Journal(JournalEntry::Resumed),
                DestinationAction::Finish(Outcome::new(Ending::Completed, "taken over")),
            ];
            (State::Ended(Phase::Complete, Owner::Here), actions)
        }
        // There is no way back: ask again, a few times, before it is left to a person.
        DestinationEvent::Failed(AbortCode::Vmm, _) if at.failures + 1 < RESUME_TRIES_MAX => {
            at.failures += 1;
            at.again = true;
            (State::Committed(at), vec![])
        }
        DestinationEvent::Tick if at.again => {
            at.again = false;
            (State::Committed(at), vec![DestinationAction::ResumeVm])
        }
        DestinationEvent::Failed(AbortCode::Vmm, reason) => {
            let reason = format!(
                "owned by this node since epoch {}, but its VMM did not run it: {reason}",
                at.epoch
            );
            let entry = JournalEntry::Failed {
                reason: reason.clone(),
            };
            let done = Outcome::new(Ending::Failed, reason);
            let actions = vec![
                DestinationAction::Journal(entry),
                DestinationAction::Finish(done),
            ];
            (State::Ended(Phase::Failed, Owner::Here), actions)
        }
        DestinationEvent::OwnerQuery => (
            State::Committed(at),
            vec![DestinationAction::AnswerOwner { committed: true }],
        ),
        _ => (State::Committed(at), vec![]),
    }
}

fn ended(phase: Phase, owner: Owner, event: &DestinationEvent) -> (State, Actions) {
    let (owner, actions) = match (owner, event) {
        (Owner::Here, DestinationEvent::OwnerQuery) => {
            let committed = true;
            (owner, vec![DestinationAction::AnswerOwner { committed }])
        }
        (Owner::Source { refused }, DestinationEvent::OwnerQuery) => {
            let mut actions = vec![];
            if !refused {
                actions.push(DestinationAction::Journal(JournalEntry::Refused));
            }
            actions.push(DestinationAction::AnswerOwner { committed: false });
            (Owner::Source { refused: true }, actions)
        }
        (Owner::Unknown, DestinationEvent::OwnerQuery) => {
            let refused = DestinationAction::Journal(JournalEntry::Refused);
            (owner, vec![refused])
        }
        (Owner::Unknown, DestinationEvent::Journaled(JournalEntry::Refused)) => {
            let answer = DestinationAction::AnswerOwner { committed: false };
            let owner = Owner::Source { refused: true };
            (owner, vec![DestinationAction::DiscardVm, answer])
        }
        _ => (owner, vec![]),
    };
    (State::Ended(phase, owner), actions)
}

/// The source lost its connection and wants the guest back before any commit: promise it.
fn refuse_for_good(state: &State) -> (State, Actions) {
    let (_, mut actions) = abandon(state, "source asked for the guest back".into(), vec![]);
    let discards = matches!(actions.first(), Some(DestinationAction::DiscardVm));
    actions.insert(0, DestinationAction::Journal(JournalEntry::Refused));
    let answer = DestinationAction::AnswerOwner { committed: false };
    actions.insert(1 + usize::from(discards), answer);
    (State::aborted(true), actions)
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
