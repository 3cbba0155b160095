//! One stream of a source worker.

use std::collections::VecDeque;

use dwcp_wire::{FrameHeader, HEADER_BYTES};

use crate::path::{Encoder, InFlight, Lost, StreamCredit};
use crate::transport::BufferId;

/// Frames of one stream that wait for the kernel. More would grow cold in the cache.
const QUEUED_FRAMES_MAX: usize = 2;

/// Whether a stream can be sent on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Open,
    /// Its connection is over.
    Broken,
    /// It has another connection, on which the destination is about to say what it has applied.
    Resuming,
}

/// A stream, over all connections that it has had.
pub(super) struct SendStream {
    pub(super) index: u16,
    pub(super) state: State,
    /// Of one that carries pages, or has.
    pub(super) encoder: Option<Encoder>,
    pub(super) credit: StreamCredit,
    pub(super) in_flight: InFlight,
    pub(super) queued: VecDeque<BufferId>,
    pub(super) ack_buffer: BufferId,
    pub(super) ack_filled: usize,
    /// The round's mark is sent: no page of the round may follow on this stream.
    pub(super) is_marked: bool,
    /// How often the round's mark was lost after the round had been said to be sent.
    pub(super) marks_again: u32,
}

impl SendStream {
    pub(super) fn new(index: u16, credit: StreamCredit, ack_buffer: BufferId) -> Self {
        Self {
            index,
            state: State::Open,
            encoder: None,
            credit,
            in_flight: InFlight::default(),
            queued: VecDeque::new(),
            ack_buffer,
            ack_filled: 0,
            is_marked: false,
            marks_again: 0,
        }
    }

    /// A round begins; `resends` as [`crate::path::RoundWork::resends`].
    pub(super) fn begin(&mut self, resends: bool) {
        self.is_marked = false;
        self.marks_again = 0;
        if resends {
            self.restart_encoder();
        }
    }

    fn restart_encoder(&mut self) {
        if let Some(encoder) = &mut self.encoder {
            encoder.restart();
        }
    }

    /// Whether it takes a frame of pages now.
    pub(super) fn takes_pages(&self) -> bool {
        self.takes_mark() && self.credit.has_credit() && self.queued.len() < QUEUED_FRAMES_MAX
    }

    /// Whether the round's mark can be sent.
    pub(super) fn takes_mark(&self) -> bool {
        self.state == State::Open && !self.is_marked
    }

    /// Whether the kernel has all of the round that goes on this stream.
    pub(super) fn has_sent(&self) -> bool {
        self.state == State::Open && self.is_marked && self.queued.is_empty()
    }

    /// Takes an acknowledgement.
    pub(super) fn acknowledged(&mut self, bytes: &[u8]) -> Result<(), String> {
        let bytes = bytes.first_chunk::<HEADER_BYTES>();
        let bytes = bytes.ok_or("short acknowledgement")?;
        let header = FrameHeader::from_bytes(bytes).map_err(|error| error.to_string())?;
        let before = self.credit.acked_bytes();
        let acknowledged = self.credit.acknowledge(&header);
        let frames = acknowledged.map_err(|error| error.to_string())?;
        // Frames and bytes are of the same: otherwise one of them would never end.
        let (named, acked) = (
            self.in_flight.acknowledged(frames),
            self.credit.acked_bytes() - before,
        );
        if named != acked {
            return Err(format!(
                "acknowledges {frames} frames of {named} bytes as {acked} bytes"
            ));
        }
        Ok(())
    }

    /// The destination has said what it applied of the connections before: this one goes on behind that,
    /// in `round`. `was_told` says that the round was said to be sent.
    pub(super) fn resume(&mut self, round: u32, was_told: bool) -> Result<Lost, String> {
        let lost = self.in_flight.take_lost(round);
        let lost = lost.map_err(|error| error.to_string())?;
        self.credit.rewind();
        self.state = State::Open;
        // The destination's window ends where the connection broke.
        self.restart_encoder();
        if lost.mark {
            self.is_marked = false;
            self.marks_again += u32::from(was_told);
        }
        Ok(lost)
    }
}

#[cfg(test)]
mod tests {
    use dwcp_wire::FrameKind;

    use super::*;
    use crate::transport::{BufferStock, Buffers};

    fn ack(sequence: u64, position: u64) -> [u8; HEADER_BYTES] {
        let header = FrameHeader {
            position,
            ..FrameHeader::empty(FrameKind::Ack, 0, sequence)
        };
        header.to_bytes()
    }

    #[test]
    fn bytes_are_acknowledged_with_their_frames() {
        let mut buffers = Buffers::new(1, None, BufferStock::default()).unwrap();
        let credit = StreamCredit::new(1 << 20);
        let mut stream = SendStream::new(0, credit, buffers.take().unwrap());
        for bytes in [1000, 500] {
            assert!(stream.credit.next_sequence() > 0);
            stream.credit.sent(bytes);
            stream.in_flight.sent(0, 0, bytes, &[]);
        }
        assert!(stream.acknowledged(&ack(0, 0)).is_ok());
        assert!(stream.acknowledged(&ack(1, 1000)).is_ok());
        // Whoever takes bytes back without their frames has this end remember them for ever.
        let refused = stream.acknowledged(&ack(1, 1500)).unwrap_err();
        assert_eq!(refused, "acknowledges 0 frames of 0 bytes as 500 bytes");
    }
}
