//! Stage 4 of 8: put runs into frames.
//!
//! In: classified pages of one RAM block, ascending. Out: a frame.
//!
//! ```text
//! buffer  |      free      | header 64 B | table | data, page-aligned …            |
//!         0                ^ frame starts        ^ DATA_OFFSET
//! ```
//! Pages that are sent by reference stay where they are: the frame is a head in the buffer and a list
//! of runs. Pages that are encoded are copied from guest RAM straight to where they will be sent
//! from, and decided on by that copy. Header and table, whose size is known last, are written in
//! front. Nothing is moved.

use std::ops::Range;

use dwcp_simd::{Fingerprint, FingerprintKey, Kernels, PAGE_BYTES, Page, RamRoot, kernels};
use dwcp_wire::limits::{FRAME_DATA_PAGES_MAX, FRAME_ENTRIES_MAX, RUN_PAGES_MAX, TABLE_BYTES_MAX};
use dwcp_wire::{
    FrameHeader, FrameKind, HEADER_BYTES, PageClass, PageEntry, PageRange, table_bytes,
};

use super::classify::{PageKind, classify};
use super::encode::{EncodedRun, Encoder};
use super::source::{PageBatch, RoundCursor, RoundWork};
use crate::ram::{Digests, RamLayout};

/// Where a frame's data starts in its buffer.
pub const DATA_OFFSET: usize = 8192;

/// Bytes of a worker's frame buffer.
pub const FRAME_BUFFER_BYTES: usize = DATA_OFFSET + FRAME_DATA_PAGES_MAX * PAGE_BYTES;

const _: () = assert!(HEADER_BYTES + TABLE_BYTES_MAX <= DATA_OFFSET);

/// A run that still grows, at the end of the frame's data.
#[derive(Clone, Copy, Debug)]
struct OpenRun {
    page: u32,
    pages: usize,
    offset: usize,
}

/// A frame that is ready to leave: `head` lies in the buffer it was built in, the pages behind it in
/// guest RAM ([`Outgoing::pages`]) or in the buffer too, and then in `head`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadyFrame {
    /// Where it lies in the buffer.
    pub head: Range<usize>,
    /// Bytes of the pages that are referred to.
    pub referred_bytes: usize,
}

impl ReadyFrame {
    /// Bytes on the wire.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        (self.head.len() + self.referred_bytes) as u64
    }
}

/// Collects runs of one block until the frame is full.
#[derive(Debug)]
pub struct FrameBuilder {
    block: u32,
    entries: Vec<PageEntry>,
    fingerprints: Vec<u64>,
    /// Pages sent by reference, in order.
    referred: Vec<PageRange>,
    end: usize,
    open: Option<OpenRun>,
}

impl FrameBuilder {
    /// A builder for frames of a block.
    #[must_use]
    pub fn new() -> Self {
        Self {
            block: 0,
            entries: Vec::with_capacity(FRAME_ENTRIES_MAX),
            fingerprints: Vec::with_capacity(FRAME_DATA_PAGES_MAX),
            referred: Vec::with_capacity(FRAME_DATA_PAGES_MAX),
            end: DATA_OFFSET,
            open: None,
        }
    }

    /// Starts an empty frame.
    pub fn start(&mut self, block: u32) {
        self.block = block;
        self.entries.clear();
        self.fingerprints.clear();
        self.referred.clear();
        self.end = DATA_OFFSET;
        self.open = None;
    }

    /// RAM block of the frame.
    #[must_use]
    pub const fn block(&self) -> u32 {
        self.block
    }

    /// Whether the frame names no page.
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.entries.is_empty() && self.open.is_none()
    }

    /// Whether another page may not fit.
    #[must_use]
    pub const fn is_full(&self) -> bool {
        // One entry for the open run, one for the page to come.
        self.fingerprints.len() >= FRAME_DATA_PAGES_MAX
            || self.entries.len() + 2 > FRAME_ENTRIES_MAX
    }

    /// Whether pages of `batch` may follow: a frame names pages of one block, in order, and a worker
    /// that helps on another lane may go back.
    fn may_go_on(&self, batch: &PageBatch) -> bool {
        let end = match (&self.open, self.entries.last()) {
            (Some(run), _) => run.page + run.pages as u32,
            (None, Some(last)) => last.page + u32::from(last.count),
            (None, None) => 0,
        };
        batch.block == self.block && batch.first_page >= end
    }

    /// Where the next page is to be copied to.
    fn slot<'b>(&self, buffer: &'b mut [u8]) -> &'b mut Page {
        let end = self.end;
        let slot = &mut buffer[end..end + PAGE_BYTES];
        slot.try_into().expect("the slice has PAGE_BYTES bytes")
    }

    /// Keeps the page that was copied to the slot.
    fn push_data(
        &mut self,
        page: u32,
        fingerprint: Fingerprint,
        encoder: &mut Encoder,
        buffer: &mut [u8],
    ) {
        let continues = self.open.is_some_and(|run| {
            run.page + run.pages as u32 == page && run.pages < encoder.run_pages_max()
        });
        if !continues && self.open.is_some() {
            let from = self.end;
            self.close_run(encoder, buffer);
            // The page lies behind the run's raw bytes: move it up if they became fewer.
            if from != self.end {
                buffer.copy_within(from..from + PAGE_BYTES, self.end);
            }
        }
        let run = self.open.get_or_insert(OpenRun {
            page,
            pages: 0,
            offset: self.end,
        });
        run.pages += 1;
        self.end += PAGE_BYTES;
        self.fingerprints.push(fingerprint.lo);
    }

    /// Refers to a page of RAM.
    fn push_reference(&mut self, page: u32, fingerprint: Fingerprint) {
        self.fingerprints.push(fingerprint.lo);
        let follows = |entry: &&mut PageEntry| {
            entry.class == PageClass::Raw && entry.page + u32::from(entry.count) == page
        };
        if let (Some(entry), Some(run)) = (
            self.entries.last_mut().filter(follows),
            self.referred.last_mut(),
        ) {
            entry.count += 1;
            entry.data_bytes += PAGE_BYTES as u32;
            run.count += 1;
            return;
        }
        self.entries.push(PageEntry {
            page,
            count: 1,
            class: PageClass::Raw,
            data_bytes: PAGE_BYTES as u32,
        });
        self.referred.push(PageRange {
            ram_block: self.block,
            page,
            count: 1,
        });
    }

    fn push_zero(&mut self, page: u32, encoder: &mut Encoder, buffer: &mut [u8]) {
        self.close_run(encoder, buffer);
        if let Some(last) = self.entries.last_mut() {
            let follows = last.page + u32::from(last.count) == page;
            if last.class == PageClass::Zero && follows && (last.count as usize) < RUN_PAGES_MAX {
                last.count += 1;
                return;
            }
        }
        self.entries.push(PageEntry {
            page,
            count: 1,
            class: PageClass::Zero,
            data_bytes: 0,
        });
    }

    fn close_run(&mut self, encoder: &mut Encoder, buffer: &mut [u8]) {
        let Some(run) = self.open.take() else { return };
        let (class, bytes) = match encoder.encode(&mut buffer[run.offset..self.end]) {
            EncodedRun::Raw => (PageClass::Raw, run.pages * PAGE_BYTES),
            EncodedRun::Zstd(bytes) => (PageClass::Zstd, bytes),
        };
        self.end = run.offset + bytes;
        self.entries.push(PageEntry {
            page: run.page,
            count: run.pages as u16,
            class,
            data_bytes: bytes as u32,
        });
    }

    /// Writes table and header in front of the data.
    pub fn finish(
        &mut self,
        encoder: &mut Encoder,
        buffer: &mut [u8],
        stream: u16,
        sequence: u64,
        round: u32,
    ) -> ReadyFrame {
        self.close_run(encoder, buffer);
        let referred_bytes: usize = self.referred.iter().map(PageRange::bytes).sum();
        let table = table_bytes(self.entries.len(), self.fingerprints.len());
        let table_start = DATA_OFFSET - table;
        let mut at = table_start;
        for entry in &self.entries {
            buffer[at..at + dwcp_wire::ENTRY_BYTES].copy_from_slice(&entry.to_bytes());
            at += dwcp_wire::ENTRY_BYTES;
        }
        for fingerprint in &self.fingerprints {
            buffer[at..at + dwcp_wire::FINGERPRINT_BYTES]
                .copy_from_slice(&fingerprint.to_le_bytes());
            at += dwcp_wire::FINGERPRINT_BYTES;
        }
        let header = FrameHeader {
            round,
            ram_block: self.block,
            entries: self.entries.len() as u32,
            payload_bytes: (self.end - table_start + referred_bytes) as u32,
            table_bytes: table as u32,
            table_crc32c: kernels().crc32c(0, &buffer[table_start..DATA_OFFSET]),
            ..FrameHeader::empty(FrameKind::Pages, stream, sequence)
        };
        let start = table_start - HEADER_BYTES;
        buffer[start..table_start].copy_from_slice(&header.to_bytes());
        ReadyFrame {
            head: start..self.end,
            referred_bytes,
        }
    }

    /// Pages named in the frame, by how they are carried.
    fn count(&self, counts: &mut OutgoingCounts) {
        for entry in &self.entries {
            let pages = u64::from(entry.count);
            counts.named += pages;
            match entry.class {
                PageClass::Zero => counts.zero += pages,
                PageClass::Raw => counts.raw += pages,
                PageClass::Zstd => counts.compressed += pages,
                _ => {}
            }
        }
    }
}

impl Default for FrameBuilder {
    fn default() -> Self {
        Self::new()
    }
}

/// What a worker has done in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutgoingCounts {
    /// Pages looked at.
    pub visited: u64,
    /// Those of them that lie on another NUMA node than the worker.
    pub away: u64,
    /// Pages named in frames.
    pub named: u64,
    /// Zero pages, marks and those the destination holds anyway.
    pub zero: u64,
    /// Pages that had not changed.
    pub unchanged: u64,
    /// Pages sent compressed.
    pub compressed: u64,
    /// Pages sent raw.
    pub raw: u64,
    /// Frames.
    pub frames: u64,
    /// Bytes of frames.
    pub wire_bytes: u64,
}

/// Stages 1 to 4 of one worker.
#[derive(Debug)]
pub struct Outgoing<'a> {
    layout: &'a RamLayout,
    digests: &'a Digests,
    key: &'a FingerprintKey,
    kernels: &'static Kernels,
    encoder: Encoder,
    by_reference: bool,
    node: Option<usize>,
    builder: FrameBuilder,
    cursor: RoundCursor,
    batch: PageBatch,
    /// Counts of the round so far.
    pub counts: OutgoingCounts,
    /// Change of the root by what this worker has sent in the round.
    pub root: RamRoot,
}

impl<'a> Outgoing<'a> {
    /// A line over `layout`; `digests` is what the destination holds. With `by_reference`, pages
    /// that are not encoded are not copied either.
    #[must_use]
    pub fn new(
        layout: &'a RamLayout,
        digests: &'a Digests,
        key: &'a FingerprintKey,
        encoder: Encoder,
        by_reference: bool,
    ) -> Self {
        Self {
            layout,
            digests,
            key,
            kernels: kernels(),
            by_reference: by_reference && encoder.is_raw(),
            encoder,
            node: None,
            builder: FrameBuilder::new(),
            cursor: RoundCursor::default(),
            batch: PageBatch::default(),
            counts: OutgoingCounts::default(),
            root: RamRoot::default(),
        }
    }

    /// Takes pages on this NUMA node first.
    #[must_use]
    pub const fn near(mut self, node: Option<usize>) -> Self {
        self.node = node;
        self
    }

    /// Begins a round.
    pub fn begin(&mut self, work: &RoundWork) {
        self.cursor = work.cursor(self.node);
        self.batch = PageBatch::default();
        self.counts = OutgoingCounts::default();
        self.root = RamRoot::default();
    }

    /// Whether pages leave without a copy.
    #[must_use]
    pub const fn is_by_reference(&self) -> bool {
        self.by_reference
    }

    /// Pages that the frame built last refers to.
    #[must_use]
    pub fn pages(&self) -> &[PageRange] {
        &self.builder.referred
    }

    /// Builds the next frame of the round in `buffer`, or says `None` when the round has no more
    /// pages that must be sent.
    pub fn next_frame(
        &mut self,
        work: &RoundWork,
        buffer: &mut [u8],
        stream: u16,
        sequence: u64,
    ) -> Option<ReadyFrame> {
        self.builder.start(self.batch.block);
        while !self.builder.is_full() {
            if self.batch.dirty == 0 {
                match self.cursor.next_batch(work) {
                    Some(batch) => {
                        if work.round == 0 {
                            let block = &self.layout.blocks()[batch.block as usize];
                            block.map_ahead(batch.first_page, batch.dirty);
                        }
                        self.batch = batch;
                    }
                    None => break,
                }
                if self.cursor.is_away(work) {
                    self.counts.away += u64::from(self.batch.dirty.count_ones());
                }
                if self.builder.is_empty() {
                    self.builder.start(self.batch.block);
                } else if !self.builder.may_go_on(&self.batch) {
                    break;
                }
            }
            self.take_page(buffer);
        }
        if self.builder.is_empty() {
            return None;
        }
        let frame = self
            .builder
            .finish(&mut self.encoder, buffer, stream, sequence, work.round);
        self.builder.count(&mut self.counts);
        self.counts.frames += 1;
        self.counts.wire_bytes += frame.bytes();
        Some(frame)
    }

    /// Reads the batch's next page, once, and decides on what was read.
    fn take_page(&mut self, buffer: &mut [u8]) {
        let bit = self.batch.dirty.trailing_zeros();
        self.batch.dirty &= self.batch.dirty - 1;
        let page = self.batch.first_page + bit;
        let forced = self.batch.forced >> bit & 1 == 1;
        let block = self.batch.block as usize;
        let global = self.layout.global_page(block, page);
        let fingerprint = self.read_page(block, page, buffer);
        self.counts.visited += 1;
        match classify(self.key, fingerprint, self.digests.get(global), forced) {
            PageKind::ZeroHeld => self.counts.zero += 1,
            PageKind::Unchanged => self.counts.unchanged += 1,
            PageKind::Zero => {
                self.builder.push_zero(page, &mut self.encoder, buffer);
                self.digests.set(global, None, &mut self.root);
            }
            PageKind::Data(fingerprint) => {
                if self.by_reference {
                    self.builder.push_reference(page, fingerprint);
                } else {
                    self.builder
                        .push_data(page, fingerprint, &mut self.encoder, buffer);
                }
                self.digests.set(global, Some(fingerprint), &mut self.root);
            }
        }
    }

    /// One read of the page: where it is, or of a copy that will be encoded.
    fn read_page(&self, block: usize, page: u32, buffer: &mut [u8]) -> Fingerprint {
        let ram = &self.layout.blocks()[block];
        if !self.by_reference {
            let copy = self.builder.slot(buffer);
            ram.read_page(page, copy);
            return self.kernels.fingerprint(self.key, copy);
        }
        if self.batch.dirty != 0 {
            let next = self.batch.first_page + self.batch.dirty.trailing_zeros();
            ram.live_page(next).prefetch();
        }
        self.kernels.fingerprint_live(self.key, ram.live_page(page))
    }
}
