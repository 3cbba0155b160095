//! Stage 7 of 8: frames become pages.
//!
//! In: a page frame with a trusted header. Out: pages and zero runs, every index inside its block,
//! every length checked before it is used. The table is read whole before the first page goes on:
//! a frame that contradicts itself changes nothing.

use dwcp_simd::{PAGE_BYTES, Page};
use dwcp_wire::limits::{FRAME_DATA_PAGES_MAX, PAYLOAD_BYTES_MAX};
use dwcp_wire::{
    ENTRY_BYTES, FINGERPRINT_BYTES, FrameHeader, PageClass, PageEntry, TableError, table_bytes,
};
use zstd_safe::DCtx;

/// Takes what was decoded.
pub trait PageSink {
    /// Zero pages.
    fn zero(&mut self, block: u32, page: u32, count: u32);
    /// A page, and the low half of the fingerprint that it was sent with.
    fn page(&mut self, block: u32, page: u32, data: &Page, fingerprint_low: u64);
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

/// A worker's decoder.
pub struct Decoder {
    context: DCtx<'static>,
    scratch: Vec<u8>,
    entries: Vec<PageEntry>,
}

impl std::fmt::Debug for Decoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Decoder").finish_non_exhaustive()
    }
}

impl Decoder {
    /// A decoder.
    #[must_use]
    pub fn new() -> Self {
        Self {
            context: DCtx::create(),
            scratch: vec![0; FRAME_DATA_PAGES_MAX * PAGE_BYTES],
            entries: Vec::with_capacity(dwcp_wire::limits::FRAME_ENTRIES_MAX),
        }
    }

    /// Decodes a frame's payload into `sink`. `block_pages` are the sizes of the agreed blocks.
    /// Returns the number of pages named.
    ///
    /// # Errors
    /// [`DecodeError`]; nothing has reached the sink then.
    pub fn decode(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        block_pages: &[u32],
        sink: &mut impl PageSink,
    ) -> Result<u64, DecodeError> {
        let pages = *block_pages
            .get(header.ram_block as usize)
            .ok_or(DecodeError::Block {
                found: header.ram_block,
                blocks: block_pages.len(),
            })?;
        let fingerprints = self.read_table(header, payload, pages)?;
        let mut fingerprints = payload[fingerprints..header.table_bytes as usize]
            .chunks_exact(FINGERPRINT_BYTES)
            .map(|bytes| u64::from_le_bytes(bytes.try_into().unwrap_or_default()));
        let mut data = &payload[header.table_bytes as usize..];
        let mut named = 0;
        for entry in &self.entries {
            let (run, rest) = data.split_at(entry.data_bytes as usize);
            data = rest;
            named += u64::from(entry.count);
            let raw = match entry.class {
                PageClass::Zero => {
                    sink.zero(header.ram_block, entry.page, u32::from(entry.count));
                    continue;
                }
                PageClass::Zstd => inflate(&mut self.context, &mut self.scratch, run, *entry),
                _ => Some(run),
            };
            let Some(raw) = raw else {
                sink.damaged(header.ram_block, entry.page, u32::from(entry.count));
                fingerprints
                    .by_ref()
                    .take(entry.pages_with_data())
                    .for_each(drop);
                continue;
            };
            let (pages, _) = raw.as_chunks::<PAGE_BYTES>();
            for (page, data) in (entry.page..).zip(pages) {
                let fingerprint = fingerprints.next().unwrap_or_default();
                sink.page(header.ram_block, page, data, fingerprint);
            }
        }
        Ok(named)
    }

    /// Reads and checks the whole table. Returns where the fingerprints start.
    fn read_table(
        &mut self,
        header: &FrameHeader,
        payload: &[u8],
        block_pages: u32,
    ) -> Result<usize, TableError> {
        if !header.covers(payload) {
            return Err(TableError::Checksum);
        }
        self.entries.clear();
        let entries = header.entries as usize;
        let size = |described| TableError::Size {
            payload: payload.len(),
            described,
        };
        if entries * ENTRY_BYTES > header.table_bytes as usize || payload.len() > PAYLOAD_BYTES_MAX
        {
            return Err(size(entries * ENTRY_BYTES));
        }
        let (mut next_page, mut with_data, mut data_bytes) = (0, 0, 0);
        for (index, bytes) in payload[..entries * ENTRY_BYTES]
            .as_chunks()
            .0
            .iter()
            .enumerate()
        {
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
            with_data += entry.pages_with_data();
            data_bytes += entry.data_bytes as usize;
            self.entries.push(entry);
        }
        let table = table_bytes(entries, with_data);
        if with_data > FRAME_DATA_PAGES_MAX
            || table != header.table_bytes as usize
            || table + data_bytes != payload.len()
        {
            return Err(size(table + data_bytes));
        }
        Ok(entries * ENTRY_BYTES)
    }
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
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
