//! Stage 5 of 8: credit of one stream.
//!
//! In: finished frames. Out: permission to send. Frames are never acknowledged one by one: a stream
//! may have a window of bytes under way, and the destination acknowledges by the running total.

use dwcp_wire::{FrameHeader, FrameKind};

/// Counts what is under way on a stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamCredit {
    window_bytes: u64,
    sequence: u64,
    sent_bytes: u64,
    acked_bytes: u64,
    acked_sequence: u64,
}

/// An acknowledgement that cannot be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CreditError {
    /// Not an acknowledgement at all.
    #[error("{0:?} frame where an acknowledgement was expected")]
    NotAnAck(FrameKind),
    /// More than was sent, or less than before.
    #[error("acknowledged {acked} bytes; sent were {sent}, acknowledged before {before}")]
    Impossible {
        /// In the acknowledgement.
        acked: u64,
        /// Sent so far.
        sent: u64,
        /// Acknowledged before.
        before: u64,
    },
}

impl StreamCredit {
    /// A stream that may have `window_bytes` under way.
    #[must_use]
    pub const fn new(window_bytes: u64) -> Self {
        Self {
            window_bytes,
            sequence: 0,
            sent_bytes: 0,
            acked_bytes: 0,
            acked_sequence: 0,
        }
    }

    /// Bytes sent and not acknowledged.
    #[must_use]
    pub const fn in_flight_bytes(&self) -> u64 {
        self.sent_bytes - self.acked_bytes
    }

    /// Whether a frame may be sent. A frame may overshoot the window by its own length: otherwise a
    /// window smaller than a frame would stand still.
    #[must_use]
    pub const fn has_credit(&self) -> bool {
        self.in_flight_bytes() < self.window_bytes
    }

    /// Sequence number for the next frame.
    #[must_use]
    pub const fn next_sequence(&self) -> u64 {
        self.sequence + 1
    }

    /// Notes a frame of `bytes` bytes that is on its way.
    pub const fn sent(&mut self, bytes: u64) {
        self.sequence += 1;
        self.sent_bytes += bytes;
    }

    /// What is not acknowledged will never be: the stream goes on behind what is.
    pub const fn rewind(&mut self) {
        self.sequence = self.acked_sequence;
        self.sent_bytes = self.acked_bytes;
    }

    /// Bytes acknowledged.
    #[must_use]
    pub const fn acked_bytes(&self) -> u64 {
        self.acked_bytes
    }

    /// Takes an acknowledgement, and says how many frames it is about.
    ///
    /// # Errors
    /// [`CreditError`] when it cannot be true: the peer is confused or hostile.
    pub fn acknowledge(&mut self, header: &FrameHeader) -> Result<u64, CreditError> {
        if header.kind != FrameKind::Ack {
            return Err(CreditError::NotAnAck(header.kind));
        }
        let acked = header.position;
        let known = header.sequence <= self.sequence && header.sequence >= self.acked_sequence;
        if acked > self.sent_bytes || acked < self.acked_bytes || !known {
            return Err(CreditError::Impossible {
                acked,
                sent: self.sent_bytes,
                before: self.acked_bytes,
            });
        }
        let frames = header.sequence - self.acked_sequence;
        self.acked_bytes = acked;
        self.acked_sequence = header.sequence;
        Ok(frames)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ack(sequence: u64, position: u64) -> FrameHeader {
        FrameHeader {
            position,
            ..FrameHeader::empty(FrameKind::Ack, 0, sequence)
        }
    }

    #[test]
    fn a_full_window_waits_for_an_acknowledgement() {
        let mut credit = StreamCredit::new(1000);
        credit.sent(600);
        assert!(credit.has_credit());
        credit.sent(600);
        assert!(!credit.has_credit());
        credit.acknowledge(&ack(1, 600)).unwrap();
        assert!(credit.has_credit());
        assert_eq!(credit.in_flight_bytes(), 600);
    }

    #[test]
    fn a_stream_that_broke_goes_on_behind_what_was_acknowledged() {
        let mut credit = StreamCredit::new(1000);
        credit.sent(600);
        credit.sent(500);
        assert_eq!(credit.acknowledge(&ack(1, 600)), Ok(1));
        credit.rewind();
        assert_eq!(credit.in_flight_bytes(), 0);
        assert_eq!(credit.next_sequence(), 2);
        assert!(credit.acknowledge(&ack(2, 1100)).is_err());
    }

    #[test]
    fn an_acknowledgement_of_what_was_never_sent_is_refused() {
        let mut credit = StreamCredit::new(1000);
        credit.sent(600);
        assert!(credit.acknowledge(&ack(1, 601)).is_err());
        assert!(credit.acknowledge(&ack(2, 600)).is_err());
        credit.acknowledge(&ack(1, 600)).unwrap();
        assert!(credit.acknowledge(&ack(1, 599)).is_err());
    }
}
