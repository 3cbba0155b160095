//! Messages on the control connection: what was agreed, rounds, the switchover.
//!
//! Encoded by postcard (`https://postcard.jamesmunns.com/wire-format`), one message per frame, the
//! whole of it under the frame's checksum. Variants are only ever added at the end.

mod check;

use std::net::SocketAddr;

use check::{check, limit, make_printable};
use serde::{Deserialize, Serialize};

use crate::limits::{CONTROL_BYTES_MAX, PAGE_BYTES};
use crate::{FetchSummary, KnownPages, MissingPages, PagesRead, WantedPages};

/// One RAM block, as both ends must have it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RamBlockInfo {
    /// The VMM's name of the block.
    pub name: String,
    /// Its size; a multiple of the page size.
    pub bytes: u64,
}

/// What the source wants to move, and how.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Offer {
    /// Names the migration on both nodes.
    pub migration: u128,
    /// VM name; the destination must have a VM of that name waiting.
    pub vm: String,
    /// The source node's name.
    pub source_node: String,
    /// Ownership epoch before the move.
    pub epoch: u64,
    /// Which VMM: `qemu` or `process`; both ends must be of one kind.
    pub vmm: String,
    /// RAM blocks in order.
    pub ram: Vec<RamBlockInfo>,
    /// Data streams wanted.
    pub streams: u16,
    /// Seed of the page fingerprints.
    pub fingerprint_seed: u64,
    /// Read every page again at the pause, at both ends.
    pub verify_full: bool,
    /// Pages read again at the pause otherwise.
    pub sample_pages: u32,
    /// Bytes between acknowledgements of a stream at most.
    pub ack_bytes: u64,
    /// Silence after which the peer is lost.
    pub peer_silence_ms: u32,
    /// Negotiate, then stop.
    pub dry_run: bool,
    /// The source asks which pages the destination has already, if that has any. What has come stays there
    /// when the connection is lost.
    pub reuse: bool,
}

/// A run of pages of one block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct PageRange {
    /// RAM block index.
    pub ram_block: u32,
    /// First page.
    pub page: u32,
    /// Pages.
    pub count: u32,
}

impl PageRange {
    /// Bytes of its pages.
    #[must_use]
    pub const fn bytes(&self) -> usize {
        self.count as usize * PAGE_BYTES
    }
}

/// What one end counted in a round. Both ends must come to the same numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct RoundSummary {
    /// Page frames.
    pub frames: u64,
    /// Bytes of those frames, headers included.
    pub wire_bytes: u64,
    /// Pages named in them.
    pub pages: u64,
    /// Marks that were lost with their stream, and sent again on the one in its place. A `RoundEnd` that
    /// knows of fewer than have come is outdated: another follows.
    pub marks_again: u32,
}

/// How a migration stands by the journal of its source.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum SourceStands {
    /// The VM is the source's: taken back by an operator, or never given away.
    Here,
    /// The source does not know: it asks the destination.
    InDoubt,
    /// The VM is the destination's, and the source has pages that it may need.
    Serving,
    /// The same, and those pages are gone.
    PagesLost,
    /// The VM is the destination's, and the source has nothing of it any more.
    Given,
}

/// Why the destination does not take a VM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum RefuseCode {
    /// No VM of that name waits here.
    NoSuchVm,
    /// The VM runs here, or is being moved.
    Busy,
    /// RAM blocks differ.
    RamDiffers,
    /// Not enough memory.
    TooSmall,
    /// Another VMM.
    VmmDiffers,
    /// The epoch is older than what this node has seen.
    StaleEpoch,
    /// Something else, in words.
    Other,
}

/// Why an end gives up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[non_exhaustive]
pub enum AbortCode {
    /// An operator cancelled.
    Cancelled,
    /// The proof of the RAM failed.
    ProofFailed,
    /// The VMM failed.
    Vmm,
    /// The peer broke the protocol.
    Protocol,
    /// It would not converge within its limits.
    NotConverging,
    /// A connection was lost.
    Connection,
    /// The journal could not be written.
    Journal,
    /// A check without a move has ended.
    DryRun,
    /// Something else, in words.
    Other,
}

/// A control message. S: sent by the source, D: by the destination.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Control {
    /// S: first after the hello.
    Offer(Offer),
    /// D: the VM waits here; `token` lets further connections join.
    Accept {
        /// Secret of this migration.
        token: u128,
        /// Data streams granted, 1..=asked.
        streams: u16,
        /// It has pages that the source may ask for, by hashes under this seed; only if the offer has
        /// `reuse`.
        content_seed: Option<u64>,
    },
    /// D: no.
    Refuse {
        /// Kind.
        code: RefuseCode,
        /// In words.
        reason: String,
    },
    /// D: every stream has joined, RAM is empty and ready.
    Ready,
    /// S: every page frame of the round has been sent, with a mark behind them on each stream.
    RoundEnd {
        /// Round.
        round: u32,
        /// What was sent.
        sent: RoundSummary,
        /// The guest is paused: if nothing is suspect and the roots agree, RAM is proven and the
        /// device state that follows may be loaded.
        paused: bool,
        /// Whole-RAM root of what was sent so far.
        root: u128,
    },
    /// D: every frame of the round was applied, and after a paused round RAM was read again.
    RoundReport {
        /// Round.
        round: u32,
        /// What was applied.
        applied: RoundSummary,
        /// Pages that did not arrive as they were sent.
        suspects: Vec<PageRange>,
        /// Whole-RAM root of what is held.
        root: u128,
        /// After a paused round: pages read again and found right.
        pages_proven: Option<u64>,
    },
    /// S: the guest is about to be paused; get ready for device state.
    SwitchoverStart,
    /// D: the VMM has loaded the device state and stands still.
    DeviceLoaded,
    /// S: take the VM. The source has made durable that it is waiting for the answer.
    Handover {
        /// Epoch of the new owner.
        epoch: u64,
    },
    /// D: it is durable that the VM is owned here.
    Committed {
        /// Epoch.
        epoch: u64,
    },
    /// D: the guest runs.
    Resumed,
    /// Either: the migration is over, the guest stays at the source.
    Abort {
        /// Kind.
        code: AbortCode,
        /// In words.
        reason: String,
    },
    /// S, on a new connection: did you commit this migration? Asked when an answer was lost.
    OwnerQuery {
        /// Which.
        migration: u128,
        /// VM name.
        vm: String,
        /// Epoch that was handed over.
        epoch: u64,
    },
    /// D: the durable answer. `false` promises never to commit it.
    OwnerAnswer {
        /// Whether this node owns the VM.
        committed: bool,
    },
    /// Either: still here.
    Alive,
    /// S, between `Accept` and the first frame of round 0: which of these pages are there?
    Wanted(WantedPages),
    /// D, an answer to each `Wanted`, in their order: those are in its RAM now.
    Found(KnownPages),
    /// S, between rounds: the guest is to run there before all of its pages are.
    PostcopyStart,
    /// D: it can, and has all connections for missing pages.
    PostcopyReady,
    /// D: it cannot.
    PostcopyRefused {
        /// In words.
        reason: String,
    },
    /// S, after `PostcopyReady` and before the end of the paused round: these pages are not there, or not as
    /// they are now. A message for each piece of RAM that has such pages.
    Missing(MissingPages),
    /// D, after `Resumed`: no page is missing any more.
    Fetched,
    /// S: root of all of RAM as it was at the pause, read again.
    RamRoot {
        /// The root.
        root: u128,
    },
    /// D: nothing of the source is needed any more.
    Whole {
        /// Whether the roots are the same; `None` when the destination has forgotten its own.
        verified: Option<bool>,
        /// What it took.
        summary: FetchSummary,
    },
    /// S, on a new connection: the one before is lost, pages may still be missing.
    PostcopyResume {
        /// Which migration.
        migration: u128,
    },
    /// D: go on.
    PostcopyGoOn {
        /// Lets connections for missing pages join.
        token: u128,
        /// Seed of the page fingerprints.
        fingerprint_seed: u64,
    },
    /// S, before the pause: take out now what was named as missing so far.
    MissingAhead,
    /// D: it is.
    MissingAheadTaken,
    /// D, right before `Accept`, to a source with [`crate::Capabilities::RDMA`], never under TLS: data streams may be
    /// queue pairs.
    RdmaListens {
        /// Where its connection manager listens.
        address: SocketAddr,
    },
    /// D, before the report of a round, or before `MissingAheadTaken`: keys to pieces of RAM that were granted are gone.
    RdmaKeysGone,
    /// S, once the hellos agree, to a destination with [`crate::Capabilities::RECALL`]: after a restart it asks there
    /// whether an operator has taken the guest back.
    SourceListens {
        /// Where the source's data plane takes connections.
        address: SocketAddr,
    },
    /// S, on a new connection: an operator has taken the guest back. Answered by `OwnerAnswer { committed: false }`
    /// once no copy of it is loaded there and none will ever run.
    TakenBack {
        /// Which migration.
        migration: u128,
        /// VM name.
        vm: String,
        /// Epoch of the source's ownership now: one more than was handed over.
        epoch: u64,
    },
    /// D, on a new connection to where its source listens: how does this migration stand there? A node that is not its
    /// source by its own journal closes the connection: what it does not know is no answer.
    RecallQuery {
        /// Which migration.
        migration: u128,
        /// VM name.
        vm: String,
        /// Epoch that was handed over.
        epoch: u64,
    },
    /// S: the durable answer.
    RecallAnswer {
        /// How it stands.
        stands: SourceStands,
    },
    /// D, right before `Accept`, to a source with [`crate::Capabilities::BASELINE`]: it has the VM's RAM as it was when it
    /// left here.
    HoldsBaseline {
        /// The migration by which it left.
        migration: u128,
        /// There is nothing else that pages could be found in.
        is_all: bool,
    },
    /// S, like `Wanted`, after `HoldsBaseline`: these pages are as they were then. Answered by a `Found`, with all of them or
    /// with none.
    Unchanged(KnownPages),
    /// D, before `Fetched`, to a source with [`crate::Capabilities::POSTCOPY_READ`] that has made a queue pair for it:
    /// what its adapter has read.
    PagesRead(PagesRead),
}

impl Control {
    /// Whether it gives up because a connection is lost: the migration can be tried again.
    #[must_use]
    pub const fn tells_lost_connection(&self) -> bool {
        matches!(
            self,
            Self::Abort {
                code: AbortCode::Connection,
                ..
            }
        )
    }
}

/// Why a control message is refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ControlError {
    /// Not a message.
    #[error("malformed control message: {0}")]
    Malformed(#[from] postcard::Error),
    /// Bytes are left after the message.
    #[error("{0} bytes after the control message")]
    Trailing(usize),
    /// A field is outside its range.
    #[error("control message field {field} is out of range ({value})")]
    Field {
        /// Which.
        field: &'static str,
        /// Value or length.
        value: u64,
    },
    /// A name would be a command to a terminal.
    #[error("control message field {field} has control characters")]
    Unprintable {
        /// Which.
        field: &'static str,
    },
}

/// A message's payload bytes.
///
/// # Errors
/// [`ControlError::Field`] when a field is outside what the peer would accept.
pub fn encode_control(message: &Control) -> Result<Vec<u8>, ControlError> {
    check(message)?;
    let bytes = postcard::to_stdvec(message)?;
    limit("message", bytes.len() as u64, CONTROL_BYTES_MAX as u64)?;
    Ok(bytes)
}

/// The message in a payload.
///
/// # Errors
/// [`ControlError`].
pub fn decode_control(payload: &[u8]) -> Result<Control, ControlError> {
    limit("message", payload.len() as u64, CONTROL_BYTES_MAX as u64)?;
    let (mut message, rest) = postcard::take_from_bytes(payload)?;
    if !rest.is_empty() {
        return Err(ControlError::Trailing(rest.len()));
    }
    check(&message)?;
    make_printable(&mut message);
    Ok(message)
}
