//! The straight line of a page: eight stages, a file each.
//!
//! ```text
//! source                                        destination
//! 1 source    dirty bitmap -> page batches      6 receive  bytes -> frame with a trusted header
//! 2 classify  fingerprint -> zero, unchanged,   7 decode   frame -> pages, bounds checked
//!             data                              8 apply    pages -> RAM, digests, root
//! 3 encode    run of pages -> zstd, window, delta, raw
//! 4 frame     runs -> header, table, data or references to it
//! 5 stream    frame -> one of N streams, credit
//! ```
//! Stages call forward only and know neither ring nor socket. A worker owns one [`Outgoing`] or
//! [`Incoming`] line and drives it from end to end without handing a page to anyone.
//!
//! Rules: the dirty bit is cleared before the page is read; the page is read once, and everything is
//! decided on that one read; what leaves by reference may be newer, and the destination compares;
//! bytes from the peer are hostile.

// In the order of the line, not of the alphabet.
mod source;

mod lanes;

mod places;

mod classify;

mod encode;

mod window;

mod shuffle;

mod delta;

mod remembered;

mod effort;

mod frame;

mod outgoing;

mod asked;

mod stream;

mod in_flight;

mod again;

mod receive;

mod decode;

mod apply;

#[cfg(test)]
mod testing;

pub use apply::{Applied, Incoming};
pub use asked::Asked;
pub use classify::{PageKind, classify};
pub use decode::{DecodeError, Decoder, PageSink, PageTable};
pub use effort::{
    BuiltFrame, Effort, EffortChooser, FEATURES, Features, Interval, LONG_PATH_BYTES_PER_S,
    NODES_MAX, Node, Seen, Tree, TreeError,
};
pub use encode::Encoder;
pub use frame::{DATA_OFFSET, FRAME_BUFFER_BYTES, FrameBuilder, ReadyFrame};
pub use in_flight::{InFlight, Lost, LostEarlier};
pub use lanes::Lanes;
pub use outgoing::{Outgoing, OutgoingCounts};
pub use receive::{RECEIVE_BUFFER_BYTES, ReceiveError, Received, Receiver, Wanted};
pub use remembered::RememberedPages;
pub use source::{PageBatch, RoundCursor, RoundWork};
pub use stream::{CreditError, StreamCredit};
