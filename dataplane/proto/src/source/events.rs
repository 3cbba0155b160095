//! What a source is told, and what it wants done.

use dwcp_wire::{AbortCode, Control, KnownPages, Offer, PageRange, RoundSummary};

use crate::{JournalEntry, Outcome, Outlook, RoundLimits};

/// What a source is told at its start.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SourceConfig {
    /// What is offered to the destination.
    pub offer: Offer,
    /// When to stop pre-copying.
    pub limits: RoundLimits,
    /// So long after the destination took it the guest is not sent any further while it runs; 0: as long as it takes.
    pub deadline_ns: u64,
    /// A peer that is silent for so long is lost.
    pub silence_ns: u64,
}

/// What the engine measured in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SourceEvent {
    /// Begin.
    Start,
    /// The control connection stands and the hellos agree. In post-copy: it stands again.
    Connected,
    /// The destination says that it lives several times a second while the guest stands: its silence means more then.
    SpeaksInPause,
    /// A control message came.
    Peer(Control),
    /// A connection is lost or was never made.
    PeerLost(String),
    /// The tracker records writes from now on.
    TrackerArmed,
    /// All data streams are open.
    StreamsOpen,
    /// Round 0 may begin: what the destination has not answered yet is about pages that it leaves out.
    MayBegin,
    /// Every page of the round is sent, with marks behind. Said again when a stream broke since, and what was
    /// lost with it is sent again.
    RoundSent(RoundMeasure),
    /// What the guest has written since the round began: the report of the round follows.
    Outlook(Outlook),
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
    /// The operator wants the guest to run at the destination as soon as the round has ended, before its pages
    /// are there.
    GoPostcopy,
    /// All of RAM was read again.
    RootRead {
        /// Its root.
        root: u128,
    },
    /// The destination's durable answer on a new connection.
    OwnerAnswer {
        /// Whether it committed.
        committed: bool,
    },
    /// Time passes; at least four times per `silence_ns`.
    Tick,
}

/// What a source wants done, in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// Ask the destination which pages it has, by their hashes.
    AskForPages {
        /// Seed of the hashes.
        seed: u64,
    },
    /// The destination's next answer.
    TakeFound(KnownPages),
    /// Collect dirty pages and send them, with a mark behind them on each stream.
    StartRound {
        /// Its number.
        round: u32,
        /// Pages that must go in any case.
        again: Vec<PageRange>,
        /// Trust no tracker: compare all of RAM with what was sent.
        everything: bool,
    },
    /// Take so much of the guest's CPU time from now on, in percent.
    Throttle {
        /// Of what it used before any was taken.
        percent: u8,
    },
    /// Open connections on which the destination asks for pages.
    OpenMissing,
    /// Collect dirty pages and name them to the destination as missing, while the guest runs.
    NameMissingAhead {
        /// Pages that are missing in any case.
        again: Vec<PageRange>,
    },
    /// Collect dirty pages and name them to the destination as missing, with a mark on each stream.
    NameMissing {
        /// Of the round.
        round: u32,
    },
    /// Connect to the destination once more and go on serving it pages, until that succeeds.
    ServeAgain,
    /// Read all of RAM.
    ReadRoot,
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
