//! Stage 6 of 8: bytes become frames.
//!
//! In: whatever the socket gives. Out: frames whose header is trusted, in two steps: the table, which
//! says what the data is, then the data.
//!
//! ```text
//! buffer  | header 64 B | table | data, unless it goes straight to RAM | next header |
//! ```
//! The table is asked for alone, since it decides where the data goes. The rest of the payload and the
//! next header are asked for together: two reads a frame when the bytes are there, and never a byte
//! of the payload that follows, so at most 64 bytes are ever moved.

use std::ops::Range;

use dwcp_wire::limits::FRAME_BYTES_MAX;
use dwcp_wire::{FrameHeader, FrameKind, HEADER_BYTES, HeaderError, PageRange};

/// Bytes of a stream's receive buffer.
pub const RECEIVE_BUFFER_BYTES: usize = FRAME_BYTES_MAX + HEADER_BYTES;

/// Why a stream cannot go on. Its position is lost: it must be closed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// Not a header.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// A frame on another stream, or out of order: frames were lost, or repeated.
    #[error("frame {found} of stream {found_stream} on stream {stream}, expected frame {expected}")]
    Sequence {
        /// This stream.
        stream: u16,
        /// Stream in the header.
        found_stream: u16,
        /// Number expected.
        expected: u64,
        /// Number in the header.
        found: u64,
    },
    /// A frame that has no place on a stream of this kind.
    #[error("{0:?} frame on a data stream")]
    Kind(FrameKind),
}

/// What has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// More bytes are needed.
    Nothing,
    /// The table of a page frame, in the buffer at the range. Say where the data goes:
    /// [`Receiver::place`].
    Table(FrameHeader, Range<usize>),
    /// A whole frame. The range is that of the data behind the table, empty if it went to RAM.
    Frame(FrameHeader, Range<usize>),
}

/// How far the frame has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Header,
    Table(FrameHeader),
    /// `placed_bytes` of it belong to RAM, `placed` of these are there.
    Data {
        header: FrameHeader,
        placed_bytes: usize,
        placed: usize,
    },
}

/// The receiving half of one stream.
#[derive(Debug)]
pub struct Receiver {
    stream: u16,
    sequence: u64,
    filled: usize,
    stage: Stage,
}

/// Where the next read belongs: first in guest pages, behind those bytes of them that are there,
/// then in the buffer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted {
    /// Bytes that go to guest pages.
    pub placed_bytes: usize,
    /// Bytes of the guest pages that are there.
    pub placed: usize,
    /// Range of the buffer.
    pub range: Range<usize>,
}

impl Receiver {
    /// A stream from which nothing has come.
    #[must_use]
    pub const fn new(stream: u16) -> Self {
        Self::behind(stream, 0)
    }

    /// A stream from which `sequence` frames have come, on connections that are over.
    #[must_use]
    pub const fn behind(stream: u16, sequence: u64) -> Self {
        Self {
            stream,
            sequence,
            filled: 0,
            stage: Stage::Header,
        }
    }

    /// Where the next read belongs.
    #[must_use]
    pub const fn wanted(&self) -> Wanted {
        let (placed_bytes, placed, end) = match &self.stage {
            Stage::Header => (0, 0, HEADER_BYTES),
            Stage::Table(header) => (0, 0, HEADER_BYTES + header.table_bytes as usize),
            Stage::Data {
                header,
                placed_bytes,
                placed,
            } => {
                let end = HEADER_BYTES + header.payload_len() + HEADER_BYTES - *placed_bytes;
                (*placed_bytes, *placed, end)
            }
        };
        Wanted {
            placed_bytes,
            placed,
            range: self.filled..end,
        }
    }

    /// Notes that a read has put `bytes` bytes where [`Self::wanted`] said.
    pub fn received(&mut self, mut bytes: usize) {
        if let Stage::Data {
            placed_bytes,
            placed,
            ..
        } = &mut self.stage
        {
            let in_place = bytes.min(*placed_bytes - *placed);
            *placed += in_place;
            bytes -= in_place;
        }
        self.filled += bytes;
        debug_assert!(self.filled <= RECEIVE_BUFFER_BYTES);
    }

    /// Whether the frame that is coming has a table that was seen: its data may be in RAM, in part.
    #[must_use]
    pub const fn is_placing(&self) -> bool {
        matches!(&self.stage, Stage::Data { header, .. } if matches!(header.kind, FrameKind::Pages))
    }

    /// Looks at what has come.
    ///
    /// # Errors
    /// [`ReceiveError`]: the stream must be closed.
    pub fn next(&mut self, buffer: &[u8]) -> Result<Received, ReceiveError> {
        if self.stage == Stage::Header {
            let Some(bytes) = buffer[..self.filled].first_chunk::<HEADER_BYTES>() else {
                return Ok(Received::Nothing);
            };
            let header = FrameHeader::from_bytes(bytes)?;
            self.check(&header)?;
            self.stage = match header.kind {
                FrameKind::Pages => Stage::Table(header),
                _ => data_of(header, 0),
            };
        }
        Ok(match self.stage {
            Stage::Header => Received::Nothing,
            Stage::Table(header) => {
                let end = HEADER_BYTES + header.table_bytes as usize;
                if self.filled < end {
                    return Ok(Received::Nothing);
                }
                Received::Table(header, HEADER_BYTES..end)
            }
            Stage::Data {
                header,
                placed_bytes,
                placed,
            } => {
                let end = HEADER_BYTES + header.payload_len() - placed_bytes;
                if placed < placed_bytes || self.filled < end {
                    return Ok(Received::Nothing);
                }
                let start = HEADER_BYTES + header.table_bytes as usize;
                Received::Frame(header, start..end)
            }
        })
    }

    /// Says where the data of the frame goes whose table was seen: to `pages`, or, if there are
    /// none, into the buffer.
    pub fn place(&mut self, pages: &[PageRange]) {
        if let Stage::Table(header) = self.stage {
            let placed_bytes: usize = pages.iter().map(PageRange::bytes).sum();
            debug_assert!(placed_bytes == 0 || placed_bytes == data_bytes(&header));
            self.stage = data_of(header, placed_bytes);
        }
    }

    /// Forgets the frame and keeps what came behind it.
    pub fn consume(&mut self, buffer: &mut [u8]) {
        if let Stage::Data {
            header,
            placed_bytes,
            ..
        } = self.stage
        {
            let end = HEADER_BYTES + header.payload_len() - placed_bytes;
            buffer.copy_within(end..self.filled, 0);
            self.filled -= end;
            self.sequence = header.sequence;
            self.stage = Stage::Header;
        }
    }

    fn check(&self, header: &FrameHeader) -> Result<(), ReceiveError> {
        if header.stream != self.stream || header.sequence != self.sequence + 1 {
            return Err(ReceiveError::Sequence {
                stream: self.stream,
                found_stream: header.stream,
                expected: self.sequence + 1,
                found: header.sequence,
            });
        }
        match header.kind {
            FrameKind::Pages | FrameKind::RoundMark => Ok(()),
            kind => Err(ReceiveError::Kind(kind)),
        }
    }
}

const fn data_of(header: FrameHeader, placed_bytes: usize) -> Stage {
    Stage::Data {
        header,
        placed_bytes,
        placed: 0,
    }
}

const fn data_bytes(header: &FrameHeader) -> usize {
    header.payload_len() - header.table_bytes as usize
}
