//! What is said between the ends of a queue pair: private data of its connection, the number with each record, and
//! messages of 32 bytes. Frames are as on any other stream.
//!
//! ```text
//!   source                                                destination
//!     | connection request: QueueHello ================>  |
//!     | <=================== acceptance: QueueReply       |
//!     | WRITE guest pages =============================>  |  nobody is told
//!     | WRITE head, with RecordMark ===================>  |  ring of the stream; what it names is there
//!     | <============================ SEND Ack            |  64 bytes: a frame
//!     | <==========================> SEND QueueMessage    |  32 bytes
//! ```
//!
//! The queue pair by which a destination reads pages in post-copy is another one, without ring or records. It is asked for
//! with role `Missing`, and accepted without words:
//!
//! ```text
//!     | <=============================== SEND PieceWanted |  a page of it was waited for
//!     | SEND PieceFingerprints, SEND PieceGranted ======> |  or PieceRefused
//!     | <================= READ pages, READ fingerprints  |  nobody is told
//! ```

use crate::limits::{FRAME_BYTES_MAX, FRAME_DATA_PAGES_MAX, RAM_BLOCKS_MAX};
use crate::{HelloError, StreamHello};

/// Bytes of the ring that a destination has for a stream's records.
pub const RING_BYTES: u32 = 1280 * 1024;

/// Records and messages of a source that may be under way on a stream.
pub const RECORDS_MAX: u32 = 64;

/// Bytes of a ring that are free again are told when they are so many, at the latest.
pub const CREDIT_BYTES: u32 = RING_BYTES / 8;

/// The same of records.
pub const CREDIT_RECORDS: u32 = RECORDS_MAX / 4;

/// Messages of a destination that may come unasked for: each record and message of the source is answered once at
/// most, credits are told now and then, and a stream begins with an acknowledgement.
pub const REPLIES_MAX: u32 =
    RECORDS_MAX + RECORDS_MAX / CREDIT_RECORDS + RING_BYTES / CREDIT_BYTES + 4;

/// Pieces that a destination may have asked to read and has no answer for yet. Two messages answer one.
pub const READS_WANTED_MAX: u32 = 16;

/// Bytes of a page's fingerprint in the table of a piece: the lower half, as in page frames.
pub const FINGERPRINT_BYTES: usize = 8;

/// Pieces of RAM by which keys are given: their bytes are a power of two within these.
pub const PIECE_BYTES_MIN: u32 = 128 * 1024;
/// See [`PIECE_BYTES_MIN`].
pub const PIECE_BYTES_MAX: u32 = 64 << 20;

const _: () = {
    // A record lies in one piece; what is left of the ring behind the last one is not used. What is free and not yet told
    // never keeps the largest record waiting.
    assert!(RING_BYTES - CREDIT_BYTES >= 2 * FRAME_BYTES_MAX as u32);
    assert!(FRAME_BYTES_MAX < 1 << RECORD_BYTES_BITS);
    assert!(FRAME_DATA_PAGES_MAX < 1 << (31 - RECORD_BYTES_BITS));
};

const RECORD_BYTES_BITS: u32 = 20;

/// Why bytes of the other end are refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QueueError {
    /// A field is outside its range.
    #[error("queue pair's {field} has value {value}, out of range")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
    /// Fewer bytes than it has.
    #[error("{0} bytes are too few")]
    Short(usize),
    /// Not a stream of a migration.
    #[error(transparent)]
    Hello(#[from] HelloError),
}

const fn in_range(field: &'static str, value: u64, ok: bool) -> Result<(), QueueError> {
    if ok {
        Ok(())
    } else {
        Err(QueueError::Field { field, value })
    }
}

fn check_piece_bytes(bytes: u32) -> Result<(), QueueError> {
    let ok = bytes.is_power_of_two() && (PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&bytes);
    in_range("piece_bytes", bytes.into(), ok)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    bytes[at..]
        .first_chunk()
        .map_or(0, |chunk| u64::from_le_bytes(*chunk))
}

/// Private data of a connection request; 28 bytes.
///
/// | offset | bytes | field |
/// |--:|--:|---|
/// | 0 | 24 | [`StreamHello`] |
/// | 24 | 4 | `piece_bytes_max` |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueHello {
    /// Which stream of which migration.
    pub stream: StreamHello,
    /// The largest piece of RAM that the source registers at once; with role `Missing`, the bytes of all of them.
    pub piece_bytes_max: u32,
}

impl QueueHello {
    /// Its bytes.
    pub const BYTES: usize = StreamHello::BYTES + 4;

    /// As private data.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..StreamHello::BYTES].copy_from_slice(&self.stream.to_bytes());
        bytes[StreamHello::BYTES..].copy_from_slice(&self.piece_bytes_max.to_le_bytes());
        bytes
    }

    /// Of private data, behind which the network puts zeros.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, QueueError> {
        let (stream, rest) = bytes
            .split_first_chunk()
            .filter(|(_, rest)| rest.len() >= 4)
            .ok_or(QueueError::Short(bytes.len()))?;
        let piece_bytes_max = u32_at(rest, 0);
        check_piece_bytes(piece_bytes_max)?;
        Ok(Self {
            stream: StreamHello::from_bytes(stream)?,
            piece_bytes_max,
        })
    }
}

/// Private data of an acceptance; 20 bytes.
///
/// | offset | bytes | field |
/// |--:|--:|---|
/// | 0 | 8 | `ring_address` |
/// | 8 | 4 | `ring_key` |
/// | 12 | 4 | `ring_bytes` |
/// | 16 | 4 | `piece_bytes` |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueReply {
    /// Where the ring begins, in the destination's process.
    pub ring_address: u64,
    /// Key of its memory region.
    pub ring_key: u32,
    /// [`RING_BYTES`].
    pub ring_bytes: u32,
    /// Bytes of a piece of RAM, the same on all streams.
    pub piece_bytes: u32,
}

impl QueueReply {
    /// Its bytes.
    pub const BYTES: usize = 20;

    /// As private data.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.ring_address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.ring_key.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.ring_bytes.to_le_bytes());
        bytes[16..].copy_from_slice(&self.piece_bytes.to_le_bytes());
        bytes
    }

    /// Of private data, behind which the network puts zeros.
    ///
    /// # Errors
    /// [`QueueError`].
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, QueueError> {
        if bytes.len() < Self::BYTES {
            return Err(QueueError::Short(bytes.len()));
        }
        let ring_bytes = u32_at(bytes, 12);
        in_range("ring_bytes", ring_bytes.into(), ring_bytes == RING_BYTES)?;
        let piece_bytes = u32_at(bytes, 16);
        check_piece_bytes(piece_bytes)?;
        Ok(Self {
            ring_address: u64_at(bytes, 0),
            ring_key: u32_at(bytes, 8),
            ring_bytes,
            piece_bytes,
        })
    }
}

/// The number that comes with a record: how many bytes of it are in the ring, and how many guest pages, which follow them
/// in the stream, are in RAM already.
///
/// | bits | field |
/// |--:|---|
/// | 0..20 | `ring_bytes`, 1 to the largest frame |
/// | 20..31 | `pages`, 0..=128 |
/// | 31 | 0 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordMark {
    /// Bytes in the ring.
    pub ring_bytes: u32,
    /// Guest pages in RAM.
    pub pages: u32,
}

impl RecordMark {
    /// As an immediate.
    #[must_use]
    pub const fn to_immediate(self) -> u32 {
        debug_assert!(self.ring_bytes as usize <= FRAME_BYTES_MAX);
        self.ring_bytes | self.pages << RECORD_BYTES_BITS
    }

    /// Of an immediate.
    ///
    /// # Errors
    /// [`QueueError::Field`].
    pub fn from_immediate(number: u32) -> Result<Self, QueueError> {
        let ring_bytes = number & ((1 << RECORD_BYTES_BITS) - 1);
        let pages = number >> RECORD_BYTES_BITS;
        let fits = (1..=FRAME_BYTES_MAX as u32).contains(&ring_bytes);
        in_range("record's bytes", ring_bytes.into(), fits)?;
        let fits = pages <= FRAME_DATA_PAGES_MAX as u32;
        in_range("record's pages", pages.into(), fits)?;
        Ok(Self { ring_bytes, pages })
    }
}

/// A piece of a RAM block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PieceId {
    /// RAM block index.
    pub ram_block: u32,
    /// Counted in pieces from the block's beginning.
    pub piece: u32,
}

/// A message of a queue pair's end, beside frames; 32 bytes. S: sent by the source, D: by the destination. For READ they are
/// the other way round: it is the destination that wants pieces then.
///
/// | offset | bytes | field |
/// |--:|--:|---|
/// | 0 | 4 | kind: 1 `Credit`, 2 `PieceWanted`, 3 `PieceGranted`, 4 `PieceRefused`, 5 `PieceReturned`, 6 `PieceFingerprints` |
/// | 4 | 4 | RAM block; otherwise 0 |
/// | 8 | 4 | piece; otherwise 0 |
/// | 12 | 4 | key of `PieceGranted` and `PieceFingerprints`; otherwise 0 |
/// | 16 | 8 | address of `PieceGranted` and `PieceFingerprints`, ring bytes of `Credit`; otherwise 0 |
/// | 24 | 8 | records of `Credit`; otherwise 0 |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QueueMessage {
    /// D: so much was consumed, since the connection began.
    Credit {
        /// Bytes of the ring, those included that were left out at its end.
        ring_bytes: u64,
        /// Records and messages.
        records: u64,
    },
    /// S: pages of it are to be written.
    PieceWanted(PieceId),
    /// D: they may be.
    PieceGranted {
        /// Which.
        piece: PieceId,
        /// Where it begins, in the destination's process.
        address: u64,
        /// Key of its memory region.
        key: u32,
    },
    /// D: no memory can be registered. Frames come by the ring, or pieces are given back first.
    PieceRefused(PieceId),
    /// S: nothing is written there any more, by this stream.
    PieceReturned(PieceId),
    /// S, for READ, before `PieceGranted`: where the fingerprints of its pages are, [`FINGERPRINT_BYTES`] each.
    PieceFingerprints {
        /// Which.
        piece: PieceId,
        /// Where they begin, in the source's process.
        address: u64,
        /// Key of their memory region.
        key: u32,
    },
}

impl QueueMessage {
    /// Its bytes.
    pub const BYTES: usize = 32;

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        const NONE: PieceId = PieceId {
            ram_block: 0,
            piece: 0,
        };
        let (kind, piece, key, long, records): (u32, _, u32, u64, u64) = match self {
            Self::Credit {
                ring_bytes,
                records,
            } => (1, NONE, 0, ring_bytes, records),
            Self::PieceWanted(piece) => (2, piece, 0, 0, 0),
            Self::PieceGranted {
                piece,
                address,
                key,
            } => (3, piece, key, address, 0),
            Self::PieceRefused(piece) => (4, piece, 0, 0, 0),
            Self::PieceReturned(piece) => (5, piece, 0, 0, 0),
            Self::PieceFingerprints {
                piece,
                address,
                key,
            } => (6, piece, key, address, 0),
        };
        let mut bytes = [0; Self::BYTES];
        bytes[..4].copy_from_slice(&kind.to_le_bytes());
        bytes[4..8].copy_from_slice(&piece.ram_block.to_le_bytes());
        bytes[8..12].copy_from_slice(&piece.piece.to_le_bytes());
        bytes[12..16].copy_from_slice(&key.to_le_bytes());
        bytes[16..24].copy_from_slice(&long.to_le_bytes());
        bytes[24..].copy_from_slice(&records.to_le_bytes());
        bytes
    }

    /// Reads one. Whether the piece is in the agreed RAM, and was asked for, is the reader's to check.
    ///
    /// # Errors
    /// [`QueueError::Field`].
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Result<Self, QueueError> {
        let piece = PieceId {
            ram_block: u32_at(bytes, 4),
            piece: u32_at(bytes, 8),
        };
        let (kind, key) = (u32_at(bytes, 0), u32_at(bytes, 12));
        let (long, records) = (u64_at(bytes, 16), u64_at(bytes, 24));
        let fits = (piece.ram_block as usize) < RAM_BLOCKS_MAX;
        in_range("ram_block", piece.ram_block.into(), fits)?;
        let message = match kind {
            1 => Self::Credit {
                ring_bytes: long,
                records,
            },
            2 => Self::PieceWanted(piece),
            3 => Self::PieceGranted {
                piece,
                address: long,
                key,
            },
            4 => Self::PieceRefused(piece),
            5 => Self::PieceReturned(piece),
            6 => Self::PieceFingerprints {
                piece,
                address: long,
                key,
            },
            _ => {
                return Err(QueueError::Field {
                    field: "message",
                    value: kind.into(),
                });
            }
        };
        // What it has no field for is zero.
        let is_plain = message.to_bytes() == *bytes;
        in_range("message's rest", kind.into(), is_plain)?;
        Ok(message)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_bounded_by_the_largest_frame() {
        let largest = RecordMark {
            ring_bytes: FRAME_BYTES_MAX as u32,
            pages: FRAME_DATA_PAGES_MAX as u32,
        };
        let number = largest.to_immediate();
        assert_eq!(RecordMark::from_immediate(number), Ok(largest));
        for number in [
            0,
            FRAME_BYTES_MAX as u32 + 1,
            1 << 20,
            129 << 20 | 64,
            1 << 31 | 64,
            u32::MAX,
        ] {
            assert!(RecordMark::from_immediate(number).is_err(), "{number:#x}");
        }
    }

    #[test]
    fn what_a_message_has_no_field_for_is_zero() {
        let piece = PieceId {
            ram_block: 1,
            piece: 2,
        };
        let mut bytes = QueueMessage::PieceWanted(piece).to_bytes();
        assert!(QueueMessage::from_bytes(&bytes).is_ok());
        bytes[31] = 1;
        assert!(QueueMessage::from_bytes(&bytes).is_err());
        for kind in [0, 7, u32::MAX] {
            let mut bytes = [0; 32];
            bytes[..4].copy_from_slice(&kind.to_le_bytes());
            assert!(QueueMessage::from_bytes(&bytes).is_err());
        }
        let mut bytes = QueueMessage::PieceWanted(piece).to_bytes();
        bytes[4] = RAM_BLOCKS_MAX as u8;
        assert!(QueueMessage::from_bytes(&bytes).is_err());
    }

    #[test]
    fn private_data_is_checked_and_padding_ignored() {
        let reply = QueueReply {
            ring_address: 0x7f00_0000_1000,
            ring_key: 7,
            ring_bytes: RING_BYTES,
            piece_bytes: 16 << 20,
        };
        let mut bytes = reply.to_bytes().to_vec();
        bytes.resize(196, 0);
        assert_eq!(QueueReply::from_bytes(&bytes), Ok(reply));
        assert_eq!(
            QueueReply::from_bytes(&bytes[..19]),
            Err(QueueError::Short(19))
        );
        let bad = |ring_bytes, piece_bytes| {
            let bad = QueueReply {
                ring_bytes,
                piece_bytes,
                ..reply
            };
            QueueReply::from_bytes(&bad.to_bytes()).is_err()
        };
        assert!(bad(RING_BYTES + 1, 16 << 20) && bad(RING_BYTES, 3 << 20));
        assert!(bad(RING_BYTES, PIECE_BYTES_MIN / 2) && bad(RING_BYTES, 1 << 31));
        assert!(QueueHello::from_bytes(&[0; 27]).is_err());
    }
}
