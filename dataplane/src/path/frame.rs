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

use dwcp_simd::{Fingerprint, PAGE_BYTES, Page, kernels};
use dwcp_wire::limits::{
    DELTA_OVERHEAD_BYTES_MAX, FRAME_DATA_PAGES_MAX, FRAME_ENTRIES_MAX, RUN_PAGES_MAX,
    TABLE_BYTES_MAX, WINDOW_OVERHEAD_BYTES_MAX,
};
use dwcp_wire::{
    FrameHeader, FrameKind, HEADER_BYTES, PageClass, PageEntry, PageRange, table_bytes,
};

use super::encode::{EncodedRun, Encoder};
use super::source::PageBatch;

/// Where a frame's data starts in its buffer.
pub const DATA_OFFSET: usize = 8192;

/// Bytes of a worker's frame buffer.
pub const FRAME_BUFFER_BYTES: usize = DATA_OFFSET
    + FRAME_DATA_PAGES_MAX * PAGE_BYTES
    + WINDOW_OVERHEAD_BYTES_MAX
    + DELTA_OVERHEAD_BYTES_MAX;

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

    /// Entries of the frame, all of them once it is finished.
    pub(super) fn entries(&self) -> &[PageEntry] {
        &self.entries
    }

    /// Pages that are not zero: each has its fingerprint.
    pub(super) const fn pages_with_data(&self) -> u64 {
        self.fingerprints.len() as u64
    }

    /// Pages sent by reference, in order.
    pub(super) fn referred(&self) -> &[PageRange] {
        &self.referred
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
    pub(super) fn may_go_on(&self, batch: &PageBatch) -> bool {
        let end = match (&self.open, self.entries.last()) {
            (Some(run), _) => run.page + run.pages as u32,
            (None, Some(last)) => last.page + u32::from(last.count),
            (None, None) => 0,
        };
        batch.block == self.block && batch.first_page >= end
    }

    /// Where the next page is to be copied to.
    pub(super) fn slot<'b>(&self, buffer: &'b mut [u8]) -> &'b mut Page {
        let end = self.end;
        let slot = &mut buffer[end..end + PAGE_BYTES];
        slot.try_into().expect("the slice has PAGE_BYTES bytes")
    }

    /// Keeps the page that was copied to the slot.
    pub(super) fn push_data(
        &mut self,
        page: u32,
        fingerprint: Fingerprint,
        encoder: &mut Encoder,
        buffer: &mut [u8],
    ) {
        if encoder.keep(self.slot(buffer)) {
            self.close_run(encoder, buffer);
            self.fingerprints.push(fingerprint.lo);
            return self.name(page, PageClass::Window);
        }
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

    /// Keeps the page that was copied to the slot, and was `old`; for an encoder that takes changes.
    pub(super) fn push_changed(
        &mut self,
        page: u32,
        fingerprint: Fingerprint,
        old: &Page,
        encoder: &mut Encoder,
        buffer: &mut [u8],
    ) {
        encoder.keep_changed(old, self.slot(buffer));
        self.close_run(encoder, buffer);
        self.fingerprints.push(fingerprint.lo);
        self.name(page, PageClass::Delta);
    }

    /// Refers to a page of RAM.
    pub(super) fn push_reference(&mut self, page: u32, fingerprint: Fingerprint) {
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

    pub(super) fn push_zero(&mut self, page: u32, encoder: &mut Encoder, buffer: &mut [u8]) {
        self.close_run(encoder, buffer);
        self.name(page, PageClass::Zero);
    }

    /// Names a page of a class whose entries have no data of their own.
    fn name(&mut self, page: u32, class: PageClass) {
        if let Some(last) = self.entries.last_mut() {
            let follows = last.page + u32::from(last.count) == page;
            if last.class == class && follows && (last.count as usize) < RUN_PAGES_MAX {
                last.count += 1;
                return;
            }
        }
        self.entries.push(PageEntry {
            page,
            count: 1,
            class,
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
        let window = encoder.finish(&mut buffer[self.end..]);
        self.end += window.map_or(0, |window| window.bytes);
        let delta_bytes = encoder.finish_delta(&mut buffer[self.end..]);
        self.end += delta_bytes;
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
            starts_window: window.is_some_and(|window| window.starts),
            shuffles_window: window.is_some_and(|window| window.shuffles),
            delta_bytes: delta_bytes as u32,
            ..FrameHeader::empty(FrameKind::Pages, stream, sequence)
        };
        let start = table_start - HEADER_BYTES;
        buffer[start..table_start].copy_from_slice(&header.to_bytes());
        ReadyFrame {
            head: start..self.end,
            referred_bytes,
        }
    }
}

impl Default for FrameBuilder {
    fn default() -> Self {
        Self::new()
    }
}
