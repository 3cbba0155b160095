//! The source's end of a stream: frames in, requests out.
//!
//! A frame's guest pages are written to where they belong in the other end's RAM, by keys of its pieces, which are asked
//! for. Where one cannot be had, at either end, the frame goes through the ring as a whole: slower, and always possible.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use dwcp_rdma::{
    Access, Buffer, LocalSpan, MemoryRegion, Payload, ProtectionDomain, RemoteAddress, SendRequest,
};
use dwcp_simd::PAGE_BYTES;
use dwcp_wire::limits::{FRAME_BYTES_MAX, FRAME_DATA_PAGES_MAX};
use dwcp_wire::rdma::{PieceId, QueueMessage, QueueReply, RING_BYTES, RecordMark};
use dwcp_wire::{HEADER_BYTES, PageRange};

use super::grants::{Grants, Have};
use super::memory::{RdmaMemory, invalid, read_message, words};
use super::queue::{INLINE_BYTES, Queue, SENDS_MAX, registered};
use super::ring::SendRoom;
use crate::ram::RamLayout;
use crate::transport::{BufferId, Buffers, SendFrame};

/// A frame that waits.
#[derive(Debug)]
struct Frame {
    buffer: BufferId,
    head: Range<usize>,
    runs: Vec<PageRange>,
    /// Its pages go through the ring.
    by_ring: bool,
}

/// The sending end.
#[derive(Debug)]
pub(super) struct Sender {
    memory: Arc<RdmaMemory>,
    ram: Arc<RamLayout>,
    /// Heads, each where it will be in the other end's ring.
    staging: Arc<Buffer>,
    staging_region: Arc<MemoryRegion>,
    /// What the other end said of its ring.
    reply: Option<QueueReply>,
    room: SendRoom,
    grants: Grants,
    /// Those that they are of, as the memory counts.
    grants_from: u64,
    frames: VecDeque<Frame>,
    messages: VecDeque<QueueMessage>,
    /// Acknowledgements that nobody has read yet.
    replies: VecDeque<u8>,
}

/// Acknowledgements that may wait: the worker always asks for one.
const REPLIES_BYTES_MAX: usize = 64 * HEADER_BYTES;

impl Sender {
    pub(super) fn new(
        memory: &Arc<RdmaMemory>,
        ram: &Arc<RamLayout>,
        domain: &Arc<ProtectionDomain>,
    ) -> io::Result<Self> {
        let staging = registered(domain, RING_BYTES as usize, Access::SOURCE);
        let (staging, staging_region) = staging.map_err(|error| words(&error))?;
        Ok(Self {
            memory: Arc::clone(memory),
            ram: Arc::clone(ram),
            staging,
            staging_region,
            reply: None,
            room: SendRoom::default(),
            grants: Grants::default(),
            grants_from: memory.grants_from(),
            frames: VecDeque::new(),
            messages: VecDeque::new(),
            replies: VecDeque::new(),
        })
    }

    /// The other end has accepted.
    pub(super) fn connected(&mut self, reply: QueueReply) -> io::Result<()> {
        let agreed = self.memory.agree_on_pieces(reply.piece_bytes)?;
        if agreed != reply.piece_bytes {
            return Err(invalid(format!(
                "pieces of {} bytes, agreed were {agreed}",
                reply.piece_bytes
            )));
        }
        self.reply = Some(reply);
        Ok(())
    }

    pub(super) fn push(&mut self, frame: &SendFrame<'_>) {
        self.frames.push_back(Frame {
            buffer: frame.buffer,
            head: frame.head.clone(),
            runs: frame.pages.to_vec(),
            by_ring: false,
        });
    }

    /// A message of the other end.
    pub(super) fn message(&mut self, bytes: &[u8]) -> io::Result<()> {
        if bytes.len() == HEADER_BYTES && self.replies.len() < REPLIES_BYTES_MAX {
            self.replies.extend(bytes);
            return Ok(());
        }
        let message = read_message(bytes)?;
        let fits = match message {
            QueueMessage::Credit {
                ring_bytes,
                records,
            } => self.room.credit(ring_bytes, records),
            QueueMessage::PieceGranted {
                piece,
                address,
                key,
            } => {
                let at = RemoteAddress { address, rkey: key };
                self.grants.granted(piece, at)
            }
            QueueMessage::PieceRefused(piece) => self.refused(piece),
            QueueMessage::PieceWanted(_)
            | QueueMessage::PieceReturned(_)
            | QueueMessage::PieceFingerprints { .. } => false,
        };
        if fits {
            return Ok(());
        }
        Err(invalid(format!("{message:?} does not fit what was sent")))
    }

    /// The other end has no room for a piece: one that this stream needs least goes back, and it is asked for again.
    fn refused(&mut self, piece: PieceId) -> bool {
        if !self.grants.refused(piece) {
            return false;
        }
        let needed = self.frames.front().map(|frame| self.pieces(frame));
        let needed = needed.unwrap_or_default();
        if let Some(oldest) = self.grants.let_one_go(&needed) {
            self.messages.push_back(QueueMessage::PieceReturned(oldest));
            self.grants.ask(piece);
            self.messages.push_back(QueueMessage::PieceWanted(piece));
        }
        true
    }

    fn pieces(&self, frame: &Frame) -> Vec<PieceId> {
        let piece_bytes = self.reply.map_or(RING_BYTES, |reply| reply.piece_bytes);
        let runs = frame.runs.iter();
        let mut pieces: Vec<_> = runs
            .flat_map(|run| RdmaMemory::pieces_of(run, piece_bytes).map(|(piece, _)| piece))
            .collect();
        pieces.dedup();
        pieces
    }

    /// Posts what can be posted; tells the buffers of frames that are out.
    pub(super) fn progress(
        &mut self,
        queue: &mut Queue,
        buffers: &mut Buffers,
        sent: &mut dyn FnMut(BufferId),
    ) -> io::Result<()> {
        let Some(reply) = self.reply.filter(|_| queue.is_ready()) else {
            return Ok(());
        };
        queue.look_for_peer(RemoteAddress {
            address: reply.ring_address,
            rkey: reply.ring_key,
        })?;
        let from = self.memory.grants_from();
        if std::mem::replace(&mut self.grants_from, from) != from {
            self.grants.forget();
        }
        loop {
            self.send_messages(queue)?;
            let Some(mut frame) = self.frames.pop_front() else {
                return Ok(());
            };
            let posted = self.try_post(&mut frame, queue, buffers)?;
            if posted {
                sent(frame.buffer);
                continue;
            }
            self.frames.push_front(frame);
            return self.send_messages(queue);
        }
    }

    fn send_messages(&mut self, queue: &mut Queue) -> io::Result<()> {
        while self.room.takes_message() && queue.room() > 0 {
            let Some(message) = self.messages.pop_front() else {
                break;
            };
            self.room.message_sent();
            queue.send(&message.to_bytes())?;
        }
        Ok(())
    }

    /// Posts a frame, unless something is missing that will come.
    fn try_post(
        &mut self,
        frame: &mut Frame,
        queue: &mut Queue,
        buffers: &mut Buffers,
    ) -> io::Result<bool> {
        let writes = match self.writes(frame)? {
            Some(writes) => writes,
            None if frame.by_ring => vec![],
            None => return Ok(false),
        };
        let pages: usize = frame.runs.iter().map(|run| run.count as usize).sum();
        let head_bytes = frame.head.len();
        if pages > FRAME_DATA_PAGES_MAX || head_bytes + pages * PAGE_BYTES > FRAME_BYTES_MAX {
            return Err(invalid("a frame that is too large"));
        }
        let mark = RecordMark {
            ring_bytes: (head_bytes + if frame.by_ring { pages * PAGE_BYTES } else { 0 }) as u32,
            pages: if frame.by_ring { 0 } else { pages as u32 },
        };
        let (Some(at), Some(reply)) = (self.room.record(mark.ring_bytes), self.reply) else {
            return Ok(false);
        };
        if queue.room() <= writes.len() {
            return Ok(false);
        }
        let head = &buffers.bytes_mut(frame.buffer)[frame.head.clone()];
        let staged = self.stage(at, head, frame)?;
        let mut requests: Vec<_> = writes
            .iter()
            .map(|(from, to)| SendRequest::write(from, *to))
            .collect();
        let payload = match staged.length() as usize {
            ..=INLINE_BYTES => Payload::Inline(head),
            _ => Payload::from(&staged),
        };
        let ring = RemoteAddress {
            address: reply.ring_address,
            rkey: reply.ring_key,
        };
        let head = SendRequest::write(payload, ring.plus(at as u64));
        requests.push(head.immediate(mark.to_immediate()));
        queue.post(&requests, self.frames.is_empty())?;
        self.room.record_sent(mark.ring_bytes);
        let written = mark.pages as usize * PAGE_BYTES;
        self.memory.count(written, mark.ring_bytes as usize);
        Ok(true)
    }

    /// Copies what goes through the ring to where the adapter reads it. That place is free: what lay there was consumed.
    fn stage(&self, at: usize, head: &[u8], frame: &Frame) -> io::Result<LocalSpan> {
        let failed = |error| words(&error);
        self.staging.write(at, head).map_err(failed)?;
        let mut end = at + head.len();
        if frame.by_ring {
            let mut copy = [0; PAGE_BYTES];
            for run in &frame.runs {
                let block = &self.ram.blocks()[run.ram_block as usize];
                for page in run.page..run.page + run.count {
                    block.read_page(page, &mut copy);
                    self.staging.write(end, &copy).map_err(failed)?;
                    end += PAGE_BYTES;
                }
            }
        }
        self.staging_region.span(at..end).map_err(failed)
    }

    /// The WRITEs of a frame's pages. `None` while a key has yet to come, or, and the frame knows it then, when one cannot
    /// be had.
    fn writes(&mut self, frame: &mut Frame) -> io::Result<Option<Vec<(LocalSpan, RemoteAddress)>>> {
        let Some(reply) = self.reply.filter(|_| !frame.by_ring) else {
            return Ok(None);
        };
        let mut writes = Vec::with_capacity(frame.runs.len() + 1);
        let mut waits = false;
        for run in &frame.runs {
            for (piece, range) in RdmaMemory::pieces_of(run, reply.piece_bytes) {
                if self.memory.is_sparse(piece) {
                    frame.by_ring = true;
                    continue;
                }
                match self.grants.look(piece) {
                    Have::Key(to) => {
                        let Ok(region) = self.memory.local(piece) else {
                            frame.by_ring = true;
                            continue;
                        };
                        let from = region.span(range.clone()).map_err(|error| words(&error))?;
                        writes.push((from, to.plus(range.start as u64)));
                    }
                    Have::Nothing => {
                        self.grants.ask(piece);
                        self.messages.push_back(QueueMessage::PieceWanted(piece));
                        waits = true;
                    }
                    Have::Asked => waits = true,
                    Have::Refused => frame.by_ring = true,
                }
            }
        }
        if waits {
            // An answer is on its way, to each question: only then it is clear how the frame goes.
            frame.by_ring = false;
            return Ok(None);
        }
        frame.by_ring |= writes.len() >= SENDS_MAX;
        if frame.by_ring {
            let pieces = self.pieces(frame);
            self.grants.forget_refusals(&pieces);
            return Ok(None);
        }
        Ok(Some(writes))
    }

    /// Takes bytes of acknowledgements.
    pub(super) fn read(&mut self, into: &mut [u8]) -> usize {
        let count = into.len().min(self.replies.len());
        for (byte, reply) in into.iter_mut().zip(self.replies.drain(..count)) {
            *byte = reply;
        }
        count
    }
}
