//! What a destination is told, and what it wants done.

use dwcp_wire::{
    AbortCode, Control, FetchSummary, MissingPages, Offer, PageQuestion, PageRange, RefuseCode,
    RoundSummary,
};

use crate::{JournalEntry, Outcome};

/// What a destination is told at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DestinationConfig {
    /// Silence after which the peer is lost, until its offer says another.
    pub silence_ns: u64,
}

/// What happens to a destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
        /// Seed of the hashes by which the source may ask for pages.
        content_seed: Option<u64>,
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
        /// set when it arrives as it was sent. Of very many the report names ranges that cover them.
        suspects: Vec<PageRange>,
        /// Root of what is held.
        root: u128,
    },
    /// The guest's faults could be served; all connections for missing pages are there.
    PostcopyPrepared,
    /// They could not.
    PostcopyImpossible(String),
    /// What was named as missing so far is out of RAM.
    MissingTakenAhead,
    /// What was named as missing is missing, and faults are served.
    MissingTaken {
        /// Root of what is held.
        root: u128,
    },
    /// In post-copy: no page is missing any more.
    AllFetched {
        /// Root of the pages as they came; `None` when it was forgotten.
        root: Option<u128>,
        /// What it took.
        summary: FetchSummary,
    },
    /// In post-copy: the source has connected again.
    SourceIsBack,
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
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
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
    /// Find these pages in RAM, or elsewhere on this node, and answer.
    FindPages(PageQuestion),
    /// Make ready to serve the guest's faults.
    PreparePostcopy,
    /// These pages are missing.
    NoteMissing(MissingPages),
    /// Take those that are known out of RAM; more may follow.
    TakeMissingAhead,
    /// No more are: take them out of RAM and fetch them; serve faults from now on.
    TakeMissing,
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
