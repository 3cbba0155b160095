//! The durable handover journal of a node: which VM is whose, also after a crash.
//!
//! One append-only file, `handover.journal`, in the node's state folder. The data plane writes it,
//! the control plane reads it.
//!
//! ```text
//! source        Begin -> Prepared -> Committed | Aborted
//!                           |            ^ learned from the destination
//!                           '- durable before the handover message leaves: from here on, after
//!                              a crash, the guest may run here again only when the destination
//!                              says that it did not commit
//!
//!                           '- TakenBack -> Told: an operator's decision; the destination is gone
//!
//! destination   Begin -> Committed -> Resumed
//!                   |        |- THE commit: owner = destination, epoch + 1
//!                   |        '- Yielded: the source's operator took the guest back, epoch + 2
//!                   '--> Refused: promised never to commit that migration
//!                   '--> Aborted: the same, and no copy of the guest is loaded here
//! ```
//!
//! [`Journal::append`] keeps these orders: a record that would break a promise is refused, so no
//! bug above can run a VM twice without first going round this file. [`State::from_records`] folds
//! records into answers.
#![forbid(unsafe_code)]

mod compact;
mod error;
mod follow;
mod half_done;
mod journal;
mod line;
mod order;
mod ownership;
mod record;
mod state;

pub use error::JournalError;
pub use follow::Follower;
pub use half_done::Live;
pub use journal::{COMPACT_ABOVE_BYTES, Contents, FILE_NAME, Journal, LOCK_NAME};
pub use line::{LINE_BYTES_MAX, TornTail};
pub use record::{GuestMemory, MemoryBlock, Record, RecordKind, wall_ms};
pub use state::{Stage, State, Unfinished};
