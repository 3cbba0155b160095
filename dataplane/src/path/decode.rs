//! Stage 7 of 8: frames become pages.
//!
//! In: the table of a page frame with a trusted header, then its data. Out: pages and zero runs, every
//! index inside its block, every length checked before it is used. The table is read whole before a
//! byte of data is placed anywhere: a frame that contradicts itself changes nothing.

use dwcp_simd::{PAGE_BYTES, Page};
use dwcp_wire::limits::{
    DELTA_OVERHEAD_BYTES_MAX, FRAME_DATA_PAGES_MAX, FRAME_ENTRIES_MAX, WINDOW_OVERHEAD_BYTES_MAX,
};
use dwcp_wire::{
    ENTRY_BYTES, FINGERPRINT_BYTES, FrameHeader, PageClass, PageEntry, PageRange, TableError,
    table_bytes,
};
use zstd_safe::DCtx;

use super::delta::DeltaDecoder;
use super::window::WindowDecoder;

/// Takes what was decoded.
pub trait PageSink {
    /// What RAM holds for a page now.
    fn held(&mut self, block: u32, page: u32, out: &mut Page);
    /// Zero pages.
    fn zero(&mut self, block: u32, page: u32, count: u32);
    /// Pages that follow each other, and the low half of the fingerprint that each was sent with.
    fn pages(&mut self, block: u32, first: u32, data: &[Page], fingerprints_low: &[u64]);
    /// A page whose data was placed in RAM as it came, and the low half of the fingerprint that it
    /// was sent with.
    fn placed(&mut self, block: u32, page: u32, fingerprint_low: u64);
    /// Pages whose data cannot be decoded.
    fn damaged(&mut self, block: u32, page: u32, count: u32);
}

/// Why a frame is refused as a whole.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// The table is damaged or contradicts itself.
    #[error(transparent)]
    Table(#[from] TableError),
    /// No such RAM block was agreed on.
    #[error("frame for RAM block {found}, agreed were {blocks}")]
    Block {
        /// In the header.
        found: u32,
        /// Agreed.
        blocks: usize,
    },
}

/// What a frame says it carries, checked.
#[derive(Debug)]
pub struct PageTable {
    block: u32,
    entries: Vec<PageEntry>,
    fingerprints: Vec<u64>,
    in_place: Vec<PageRange>,
    named: u64,
    /// Data of the window's pages, at the end of the frame's.
    window_bytes: usize,
    window_pages: usize,
    starts_window: bool,
    shuffles_window: bool,
    /// The delta, at the end of all.
    delta_bytes: usize,
    delta_pages: usize,
}

impl PageTable {
    /// A table of nothing, to be read into.
    #[must_use]
    pub fn new() -> Self {
        Self {
            block: 0,
            entries: Vec::with_capacity(FRAME_ENTRIES_MAX),
            fingerprints: Vec::with_capacity(FRAME_DATA_PAGES_MAX),
            in_place: Vec::with_capacity(FRAME_DATA_PAGES_MAX),
            named: 0,
            window_bytes: 0,
            window_pages: 0,
            starts_window: false,
            shuffles_window: false,
            delta_bytes: 0,
            delta_pages: 0,
        }
    }

    /// Reads and checks the table of a frame: `bytes` are the first `table_bytes` of its payload,
    /// `block_pages` the sizes of the agreed blocks.
    ///
    /// # Errors
    /// [`DecodeError`]: the frame is refused.
    pub fn read(
        &mut self,
        header: &FrameHeader,
        bytes: &[u8],
        block_pages: &[u32],
    ) -> Result<(), DecodeError> {
        self.block = header.ram_block;
        let pages = *block_pages
            .get(header.ram_block as usize)
            .ok_or(DecodeError::Block {
                found: header.ram_block,
                blocks: block_pages.len(),
            })?;
        if !header.covers(bytes) {
            return Err(TableError::Checksum.into());
        }
        let entries = header.entries as usize;
        if entries * ENTRY_BYTES > bytes.len() {
            return Err(size(header, entries * ENTRY_BYTES).into());
        }
        let (entry_bytes, fingerprints) = bytes.split_at(entries * ENTRY_BYTES);
        let data_bytes = self.read_entries(entry_bytes, pages)?;
        let with_data = self.pages_with_data();
        let delta_bytes = header.delta_bytes as usize;
        let described = table_bytes(entries, with_data) + data_bytes + delta_bytes;
        let window_bytes = header.payload_len().saturating_sub(described);
        if with_data > FRAME_DATA_PAGES_MAX
            || table_bytes(entries, with_data) != bytes.len()
            || described + window_bytes != header.payload_len()
            || (header.shuffles_window && self.window_pages == 0)
            || !is_possible(window_bytes, self.window_pages, WINDOW_OVERHEAD_BYTES_MAX)
            || !is_possible(delta_bytes, self.delta_pages, DELTA_OVERHEAD_BYTES_MAX)
        {
            return Err(size(header, described).into());
        }
        self.window_bytes = window_bytes;
        self.delta_bytes = delta_bytes;
        self.starts_window = header.starts_window;
        self.shuffles_window = header.shuffles_window;
        let (fingerprints, _) = fingerprints.as_chunks::<FINGERPRINT_BYTES>();
        self.fingerprints.clear();
        self.fingerprints
            .extend(fingerprints.iter().map(|bytes| u64::from_le_bytes(*bytes)));
        self.plan();
        Ok(())
    }

    fn read_entries(&mut self, bytes: &[u8], block_pages: u32) -> Result<usize, TableError> {
        self.entries.clear();
        (self.named, self.window_pages, self.delta_pages) = (0, 0, 0);
        let (mut next_page, mut data_bytes) = (0, 0);
        for (index, bytes) in bytes.as_chunks().0.iter().enumerate() {
            let entry = PageEntry::from_bytes(index, bytes)?;
            let (page, end) = (
                u64::from(entry.page),
                u64::from(entry.page) + u64::from(entry.count),
            );
            if page < next_page || end > u64::from(block_pages) {
                let pages = u64::from(block_pages);
                return Err(TableError::Pages {
                    entry: index,
                    page,
                    end,
                    pages,
                });
            }
            next_page = end;
            data_bytes += entry.data_bytes as usize;
            self.named += u64::from(entry.count);
            match entry.class {
                PageClass::Window => self.window_pages += usize::from(entry.count),
                PageClass::Delta => self.delta_pages += usize::from(entry.count),
                _ => {}
            }
            self.entries.push(entry);
        }
        Ok(data_bytes)
    }

    fn pages_with_data(&self) -> usize {
        self.entries
            .iter()
            .map(|entry| entry.pages_with_data())
            .sum()
    }

    /// Data that is pages as they are may go straight to RAM.
    fn plan(&mut self) {
        self.in_place.clear();
        let with_data = self.entries.iter().filter(|e| e.pages_with_data() > 0);
        if with_data.clone().any(|entry| entry.class != PageClass::Raw) {
            return;
        }
        self.in_place.extend(with_data.map(|entry| PageRange {
            ram_block: self.block,
            page: entry.page,
            count: u32::from(entry.count),
        }));
    }

    /// Has the data received into a buffer, also if it could go straight to RAM.
    pub fn receive_apart(&mut self) {
        self.in_place.clear();
    }

    /// Where the frame's data goes in RAM, byte for byte; empty when it is received into a buffer.
    #[must_use]
    pub fn in_place(&self) -> &[PageRange] {
        &self.in_place
    }

    /// Pages named.
    #[must_use]
    pub const fn named(&self) -> u64 {
        self.named
    }

    /// The window's part of a frame's data, and the delta; `None` for what the frame has none of, or when
    /// less than that came.
    fn common_data<'d>(&self, data: &'d [u8]) -> (Option<&'d [u8]>, Option<&'d [u8]>) {
        let behind = |data: &'d [u8], bytes| data.split_at_checked(data.len().checked_sub(bytes)?);
        let Some((rest, delta)) = behind(data, self.delta_bytes) else {
            return (None, None);
        };
        let window = behind(rest, self.window_bytes).map(|(_, window)| window);
        (
            window.filter(|_| self.window_pages > 0),
            (self.delta_pages > 0).then_some(delta),
        )
    }

    /// Hands the pages of a frame whose data lies in RAM already to `sink`.
    pub(super) fn placed(&self, sink: &mut impl PageSink) {
        let mut fingerprints = self.fingerprints.iter();
        for entry in &self.entries {
            if entry.class == PageClass::Zero {
                sink.zero(self.block, entry.page, u32::from(entry.count));
                continue;
            }
            for page in entry.page..entry.page + u32::from(entry.count) {
                let fingerprint = fingerprints.next().copied().unwrap_or_default();
                sink.placed(self.block, page, fingerprint);
            }
        }
    }
}

/// Whether data that `pages` pages have together may have so many bytes.
const fn is_possible(bytes: usize, pages: usize, overhead_max: usize) -> bool {
    match pages {
        0 => bytes == 0,
        _ => bytes > 0 && bytes <= pages * PAGE_BYTES + overhead_max,
    }
}

impl Default for PageTable {
    fn default() -> Self {
        Self::new()
    }
}

const fn size(header: &FrameHeader, described: usize) -> TableError {
    TableError::Size {
        payload: header.payload_len(),
        described,
    }
}

/// A stream's decoder.
pub struct Decoder {
    /// Made when the first run comes.
    runs: Option<Runs>,
    window: WindowDecoder,
    delta: DeltaDecoder,
}

struct Runs {
    context: DCtx<'static>,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder for one of `streams` streams.
    #[must_use]
    pub fn new(streams: usize) -> Self {
        Self {
            runs: None,
            window: WindowDecoder::new(streams),
            delta: DeltaDecoder::new(),
        }
    }

    /// Decodes a frame's data, as its table describes it, into `sink`. Less data than that is
    /// damage: the pages it lacks are named to the sink as such.
    pub fn decode(&mut self, table: &PageTable, mut data: &[u8], sink: &mut impl PageSink) {
        let mut fingerprints = &table.fingerprints[..];
        let (window, delta) = table.common_data(data);
        let mut window = window.and_then(|data| {
            let (starts, shuffles) = (table.starts_window, table.shuffles_window);
            self.window
                .decode(data, table.window_pages, starts, shuffles)
        });
        let mut delta = delta.and_then(|data| decode_delta(&mut self.delta, table, data, sink));
        for entry in &table.entries {
            let (own, others) = fingerprints
                .split_at_checked(entry.pages_with_data())
                .unwrap_or_default();
            fingerprints = others;
            let (run, rest) = data
                .split_at_checked(entry.data_bytes as usize)
                .unwrap_or_default();
            data = rest;
            let raw = match entry.class {
                PageClass::Zero => {
                    sink.zero(table.block, entry.page, u32::from(entry.count));
                    continue;
                }
                PageClass::Window | PageClass::Delta => {
                    let all = match entry.class {
                        PageClass::Window => &mut window,
                        _ => &mut delta,
                    };
                    let count = usize::from(entry.count);
                    let pages = all.and_then(|pages| pages.split_at_checked(count));
                    *all = pages.map(|(_, others)| others);
                    match pages {
                        Some((pages, _)) => sink.pages(table.block, entry.page, pages, own),
                        None => sink.damaged(table.block, entry.page, u32::from(entry.count)),
                    }
                    continue;
                }
                PageClass::Zstd => {
                    let runs = self.runs.get_or_insert_with(|| Runs {
                        context: DCtx::create(),
                        scratch: vec![0; FRAME_DATA_PAGES_MAX * PAGE_BYTES],
                    });
                    inflate(&mut runs.context, &mut runs.scratch, run, *entry)
                }
                _ => (run.len() == entry.data_bytes as usize).then_some(run),
            };
            let Some(raw) = raw else {
                sink.damaged(table.block, entry.page, u32::from(entry.count));
                continue;
            };
            let (pages, _) = raw.as_chunks::<PAGE_BYTES>();
            sink.pages(table.block, entry.page, pages, own);
        }
    }
}

/// The pages of a frame's delta, before any page of the frame is written.
fn decode_delta<'d>(
    delta: &'d mut DeltaDecoder,
    table: &PageTable,
    data: &[u8],
    sink: &mut impl PageSink,
) -> Option<&'d [Page]> {
    let entries = table.entries.iter().filter(|e| e.class == PageClass::Delta);
    let mut pages = entries.flat_map(|entry| entry.page..entry.page + u32::from(entry.count));
    delta.decode(data, table.delta_pages, |old| {
        if let Some(page) = pages.next() {
            sink.held(table.block, page, old);
        }
    })
}

/// A zstd run, if it yields exactly its pages. The output is bounded: no bomb goes off.
fn inflate<'s>(
    context: &mut DCtx<'static>,
    scratch: &'s mut [u8],
    run: &[u8],
    entry: PageEntry,
) -> Option<&'s [u8]> {
    let bytes = entry.pages_with_data() * PAGE_BYTES;
    let room = scratch.get_mut(..bytes)?;
    let written = context.decompress(room, run).ok()?;
    (written == bytes).then_some(&*room)
}
