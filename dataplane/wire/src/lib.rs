//! What two data planes say to each other, byte by byte.
//!
//! Every byte between nodes belongs to a frame: a [`FrameHeader`] of 64 bytes with a checksum of
//! its own, then `payload_bytes` of payload. `docs/PROTOCOL.md` has the offset tables; the golden
//! vectors under `vectors/` freeze them.
//!
//! Bytes from the peer are hostile: a length is checked before anything is allocated, unknown bits
//! and values are errors, and nothing here panics on input.

#![forbid(unsafe_code)]

mod control;
mod header;
mod hello;
pub mod limits;
mod missing;
mod pages;
pub mod rdma;
mod suspects;
mod wanted;

pub use control::{
    AbortCode, Control, ControlError, Offer, PageRange, RamBlockInfo, RefuseCode, RoundSummary,
    SourceStands, decode_control, encode_control,
};
pub use header::{FrameHeader, FrameKind, HEADER_BYTES, HeaderError, MAGIC};
pub use hello::{
    CAPABILITIES, Capabilities, Hello, HelloError, StreamHello, StreamRole, VERSION_CURRENT,
    VERSION_OLDEST, negotiate,
};
pub use missing::{FetchSummary, MissingPages, PageRequest, PagesRead, RequestError};
pub use pages::{ENTRY_BYTES, FINGERPRINT_BYTES, PageClass, PageEntry, TableError, table_bytes};
pub use suspects::cover;
pub use wanted::{KnownPages, PageQuestion, WantedPages};
