//! Stage 6 of 8: bytes become frames.
//!
//! In: whatever the socket gives. Out: frames whose header is trusted and whose payload lies whole
//! in the stream's buffer.
//!
//! The buffer holds one frame and the header behind it. A read asks for the rest of the payload and
//! that next header: one read a frame when the bytes are there, and never a byte of the payload that
//! follows, so at most 64 bytes are ever moved.

use std::ops::Range;

use dwcp_wire::limits::FRAME_BYTES_MAX;
use dwcp_wire::{FrameHeader, FrameKind, HEADER_BYTES, HeaderError};

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

/// The receiving half of one stream.
#[derive(Debug)]
pub struct Receiver {
    stream: u16,
    sequence: u64,
    filled: usize,
    header: Option<FrameHeader>,
}

impl Receiver {
    /// A stream from which nothing has come.
    #[must_use]
    pub const fn new(stream: u16) -> Self {
        Self {
            stream,
            sequence: 0,
            filled: 0,
            header: None,
        }
    }

    /// Where in the buffer the next read belongs.
    #[must_use]
    pub const fn wanted(&self) -> Range<usize> {
        let end = match &self.header {
            None => HEADER_BYTES,
            Some(header) => HEADER_BYTES + header.payload_len() + HEADER_BYTES,
        };
        self.filled..end
    }

    /// Notes that a read has put `bytes` bytes where [`Self::wanted`] said.
    pub fn received(&mut self, bytes: usize) {
        self.filled += bytes;
        debug_assert!(self.filled <= RECEIVE_BUFFER_BYTES);
    }

    /// The frame at the start of the buffer and where its payload lies, or `None` until more bytes
    /// have come.
    ///
    /// # Errors
    /// [`ReceiveError`]: the stream must be closed.
    pub fn frame(
        &mut self,
        buffer: &[u8],
    ) -> Result<Option<(FrameHeader, Range<usize>)>, ReceiveError> {
        if self.header.is_none() {
            let Some(bytes) = buffer[..self.filled].first_chunk::<HEADER_BYTES>() else {
                return Ok(None);
            };
            let header = FrameHeader::from_bytes(bytes)?;
            self.check(&header)?;
            self.header = Some(header);
        }
        let header = self
            .header
            .unwrap_or_else(|| FrameHeader::empty(FrameKind::Ack, 0, 0));
        let end = HEADER_BYTES + header.payload_len();
        Ok((self.filled >= end).then_some((header, HEADER_BYTES..end)))
    }

    /// Forgets the frame and keeps what came behind it.
    pub fn consume(&mut self, buffer: &mut [u8]) {
        if let Some(header) = self.header.take() {
            let end = HEADER_BYTES + header.payload_len();
            buffer.copy_within(end..self.filled, 0);
            self.filled -= end;
            self.sequence = header.sequence;
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
