//! The destination's end of a stream: records in, bytes out, as from any other stream.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use dwcp_rdma::{Access, Buffer, MemoryRegion, ProtectionDomain};
use dwcp_simd::PAGE_BYTES;
use dwcp_wire::rdma::{QueueMessage, QueueReply, RING_BYTES, RecordMark};
use dwcp_wire::{HEADER_BYTES, PageRange};

use super::memory::{RdmaMemory, invalid, read_message, words};
use super::queue::{INLINE_BYTES, Queue, registered};
use super::ring::Consumed;
use crate::ram::RamLayout;
use crate::transport::{BufferId, Buffers, ReceiveInto, SendFrame};

/// A record that has come: bytes in the ring, then guest pages that are in RAM.
#[derive(Debug)]
struct Record {
    /// What of it is not read yet.
    bytes: Range<usize>,
    /// Bytes of guest pages that were not asked for yet.
    placed_bytes: usize,
    /// All bytes up to its end.
    end: u64,
}

impl Record {
    const fn is_read(&self) -> bool {
        self.bytes.start == self.bytes.end && self.placed_bytes == 0
    }
}

/// The receiving end.
#[derive(Debug)]
pub(super) struct Receiver {
    stream: u16,
    memory: Arc<RdmaMemory>,
    ram: Arc<RamLayout>,
    ring: Arc<Buffer>,
    ring_region: Arc<MemoryRegion>,
    consumed: Consumed,
    records: VecDeque<Record>,
    messages: VecDeque<QueueMessage>,
    /// Acknowledgements.
    frames: VecDeque<(BufferId, Range<usize>)>,
}

impl Receiver {
    pub(super) fn new(
        stream: u16,
        memory: &Arc<RdmaMemory>,
        ram: &Arc<RamLayout>,
        domain: &Arc<ProtectionDomain>,
    ) -> io::Result<Self> {
        let ring = registered(domain, RING_BYTES as usize, Access::REMOTE_WRITE);
        let (ring, ring_region) = ring.map_err(|error| words(&error))?;
        Ok(Self {
            stream,
            memory: Arc::clone(memory),
            ram: Arc::clone(ram),
            ring,
            ring_region,
            consumed: Consumed::default(),
            records: VecDeque::new(),
            messages: VecDeque::new(),
            frames: VecDeque::new(),
        })
    }

    /// What the source has to know.
    pub(super) fn reply(&self, piece_bytes: u32) -> io::Result<QueueReply> {
        let ring = self.ring_region.remote_address(0);
        let ring = ring.map_err(|error| words(&error))?;
        Ok(QueueReply {
            ring_address: ring.address,
            ring_key: ring.rkey,
            ring_bytes: RING_BYTES,
            piece_bytes,
        })
    }

    pub(super) const fn stream(&self) -> u16 {
        self.stream
    }

    pub(super) fn push(&mut self, frame: &SendFrame<'_>) {
        self.frames.push_back((frame.buffer, frame.head.clone()));
    }

    /// A record's number has come: what it says is in place.
    pub(super) fn record(&mut self, number: u32) -> io::Result<()> {
        let mark = RecordMark::from_immediate(number);
        let mark = mark.map_err(|error| invalid(error.to_string()))?;
        let place = self.consumed.record_came(mark.ring_bytes);
        let (at, end) = place.ok_or_else(|| invalid("a record that the ring has no room for"))?;
        self.records.push_back(Record {
            bytes: at..at + mark.ring_bytes as usize,
            placed_bytes: mark.pages as usize * PAGE_BYTES,
            end,
        });
        Ok(())
    }

    pub(super) fn message(&mut self, bytes: &[u8]) -> io::Result<()> {
        let message = read_message(bytes)?;
        self.consumed.message_read();
        match message {
            QueueMessage::PieceWanted(piece) => {
                let granted = self.memory.grant(piece, self.stream);
                let answer = granted.map_or(QueueMessage::PieceRefused(piece), |at| {
                    QueueMessage::PieceGranted {
                        piece,
                        address: at.address,
                        key: at.rkey,
                    }
                });
                self.messages.push_back(answer);
            }
            QueueMessage::PieceReturned(piece) => self.memory.returned(piece, self.stream),
            other => return Err(invalid(format!("{other:?} from a source"))),
        }
        Ok(())
    }

    /// Sends what waits; tells the buffers of frames that are out.
    pub(super) fn progress(
        &mut self,
        queue: &mut Queue,
        buffers: &mut Buffers,
        sent: &mut dyn FnMut(BufferId),
    ) -> io::Result<()> {
        if let Some((ring_bytes, records)) = self.consumed.credit() {
            self.messages.push_back(QueueMessage::Credit {
                ring_bytes,
                records,
            });
        }
        while queue.room() > 0 {
            if let Some(message) = self.messages.pop_front() {
                queue.send(&message.to_bytes())?;
                continue;
            }
            let Some((buffer, range)) = self.frames.pop_front() else {
                break;
            };
            if range.len() != HEADER_BYTES || range.len() > INLINE_BYTES {
                return Err(invalid("only acknowledgements go to a source"));
            }
            queue.send(&buffers.bytes_mut(buffer)[range])?;
            sent(buffer);
        }
        Ok(())
    }

    /// Whether the data of the frame whose head is being read lies in RAM.
    pub(super) fn is_placed(&self) -> bool {
        let front = self.records.front();
        front.is_some_and(|record| record.placed_bytes > 0)
    }

    /// Hands out what has come, as much of `wanted` as there is.
    pub(super) fn fill(&mut self, wanted: &Wanted, buffers: &mut Buffers) -> io::Result<usize> {
        let pages_left = wanted.pages_bytes().saturating_sub(wanted.placed);
        let mut filled = 0;
        loop {
            self.drop_read();
            let Some(record) = self.records.front_mut() else {
                return Ok(filled);
            };
            filled += if filled < pages_left {
                fill_pages(
                    record,
                    wanted,
                    wanted.placed + filled,
                    &self.ring,
                    &self.ram,
                )?
            } else {
                let start = wanted.range.start + filled - pages_left;
                if start == wanted.range.end {
                    return Ok(filled);
                }
                let into = &mut buffers.bytes_mut(wanted.buffer)[start..wanted.range.end];
                read_ring(record, &self.ring, into)?
            };
        }
    }

    /// Records that were read in full are the source's to use again.
    fn drop_read(&mut self) {
        while let Some(record) = self.records.front().filter(|record| record.is_read()) {
            self.consumed.record_read(record.end);
            self.records.pop_front();
        }
    }
}

/// Copies bytes of a record.
fn read_ring(record: &mut Record, ring: &Buffer, into: &mut [u8]) -> io::Result<usize> {
    let count = into.len().min(record.bytes.len());
    if count == 0 {
        return Err(invalid("pages were placed that their frame does not name"));
    }
    let read = ring.read(record.bytes.start, &mut into[..count]);
    read.map_err(|error| words(&error))?;
    record.bytes.start += count;
    Ok(count)
}

/// Pages that are wanted in RAM from byte `at` of them on: they are there, or come out of the ring.
fn fill_pages(
    record: &mut Record,
    wanted: &Wanted,
    at: usize,
    ring: &Buffer,
    ram: &RamLayout,
) -> io::Result<usize> {
    let left = wanted.pages_bytes() - at;
    if record.bytes.is_empty() {
        let count = left.min(record.placed_bytes);
        record.placed_bytes -= count;
        return Ok(count);
    }
    let mut page = [0; PAGE_BYTES];
    if record.bytes.len() < PAGE_BYTES {
        return Err(invalid("a record ends within a page"));
    }
    let (ram_block, number) = wanted.page_at(at).ok_or_else(|| invalid("half a page"))?;
    read_ring(record, ring, &mut page)?;
    ram.blocks()[ram_block as usize].write_page(number, &page);
    Ok(PAGE_BYTES)
}

/// A request for bytes, kept until some come.
#[derive(Debug)]
pub(super) struct Wanted {
    pages: Vec<PageRange>,
    placed: usize,
    buffer: BufferId,
    range: Range<usize>,
}

impl Wanted {
    pub(super) fn new(wanted: &ReceiveInto<'_>) -> Self {
        Self {
            pages: wanted.pages.to_vec(),
            placed: wanted.placed,
            buffer: wanted.buffer,
            range: wanted.range.clone(),
        }
    }

    /// Where bytes go that are none of guest pages.
    pub(super) const fn buffer(&self) -> (BufferId, &Range<usize>) {
        (self.buffer, &self.range)
    }

    fn pages_bytes(&self) -> usize {
        self.pages.iter().map(PageRange::bytes).sum()
    }

    /// The page that begins at byte `at` of all of them.
    fn page_at(&self, at: usize) -> Option<(u32, u32)> {
        if !at.is_multiple_of(PAGE_BYTES) {
            return None;
        }
        let mut left = (at / PAGE_BYTES) as u32;
        for run in &self.pages {
            if left < run.count {
                return Some((run.ram_block, run.page + left));
            }
            left -= run.count;
        }
        None
    }
}
