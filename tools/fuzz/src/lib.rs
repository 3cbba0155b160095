//! What the fuzz targets have in common: guest RAM to apply frames to, and frames made of input.
//!
//! Checksums would stop a fuzzer at the door, so most targets put the right ones over what the
//! fuzzer invents; the header target also tries its input as it comes.

use dwcp_dataplane::path::{Encoder, FRAME_BUFFER_BYTES, Outgoing, RoundWork};
use dwcp_dataplane::ram::{Digests, RamBlock, RamLayout};
use dwcp_simd::{FingerprintKey, PAGE_BYTES, Page, kernels};
use dwcp_wire::limits::FRAME_ENTRIES_MAX;
use dwcp_wire::{
    ENTRY_BYTES, FINGERPRINT_BYTES, FrameHeader, FrameKind, HEADER_BYTES, MAGIC, PageClass,
    PageEntry, table_bytes,
};
use nix::sys::memfd::{MFdFlags, memfd_create};

/// Pages of the RAM blocks that frames are aimed at: the smallest, a word of the bitmap, more.
pub const BLOCK_PAGES: [u32; 3] = [1, 64, 200];

/// Seed of the page fingerprints.
pub const SEED: u64 = 0x5EED_0042;

/// Empty RAM of blocks of so many pages.
#[must_use]
pub fn ram(block_pages: &[u32]) -> RamLayout {
    let blocks = block_pages.iter().enumerate().map(|(index, &pages)| {
        let bytes = u64::from(pages) * PAGE_BYTES as u64;
        let file = memfd_create("dwcp-fuzz-ram", MFdFlags::MFD_CLOEXEC).expect("memfd");
        nix::unistd::ftruncate(&file, bytes as i64).expect("memory");
        RamBlock::map(format!("block{index}"), file, bytes, 0).expect("a block")
    });
    RamLayout::new(blocks.collect()).expect("a layout")
}

/// In the first byte of [`page_frame`]'s input.
const STARTS_WINDOW: u8 = 1 << 4;

/// The same: a bit for each page of its window, whether it is shuffled, is in front of the window's data.
const SHUFFLES_WINDOW: u8 = 1 << 6;

/// The same: its data ends with a delta.
const DELTA: u8 = 1 << 5;

/// Puts the magic and the right checksum on a header.
pub fn seal(header: &mut [u8; HEADER_BYTES]) {
    header[..4].copy_from_slice(&MAGIC);
    let checksum = kernels().crc32c(0, &header[..HEADER_BYTES - 4]);
    header[HEADER_BYTES - 4..].copy_from_slice(&checksum.to_le_bytes());
}

/// A page frame made of input: header and payload. The header's sizes follow the payload's entries
/// where they make sense, so that the fuzzer gets past the first comparison.
///
/// | byte | means |
/// |--:|---|
/// | 0 | bits 0..2 the RAM block; bit 2: `table_bytes` is taken from bytes 2..4; bit 3: fingerprints of raw pages are put right; bit 4: a window begins; bit 5: byte 2 says how long the delta is; bit 6: the window's data says which pages are shuffled |
/// | 1 | entries, less one |
/// | 4.. | payload |
#[must_use]
pub fn page_frame(input: &[u8], stream: u16, sequence: u64) -> Option<(FrameHeader, Vec<u8>)> {
    let (&[flags, entries, low, high], payload) = input.split_first_chunk()?;
    let mut payload = payload.to_vec();
    let entries = (usize::from(entries) + 1).min(FRAME_ENTRIES_MAX);
    let table = if flags & 4 == 0 {
        described_table(&payload, entries)
    } else {
        usize::from(u16::from_le_bytes([low, high]))
    };
    if flags & 8 != 0 {
        mend_fingerprints(&mut payload, entries);
    }
    let covered = payload.get(..table).unwrap_or_default();
    let header = FrameHeader {
        ram_block: u32::from(flags & 3),
        entries: entries as u32,
        payload_bytes: payload.len() as u32,
        table_bytes: table as u32,
        table_crc32c: kernels().crc32c(0, covered),
        starts_window: flags & STARTS_WINDOW != 0,
        shuffles_window: flags & SHUFFLES_WINDOW != 0,
        delta_bytes: if flags & DELTA == 0 { 0 } else { low.into() },
        ..FrameHeader::empty(FrameKind::Pages, stream, sequence)
    };
    Some((header, payload))
}

fn entries_of(payload: &[u8], entries: usize) -> Vec<PageEntry> {
    let (chunks, _) = payload.as_chunks::<ENTRY_BYTES>();
    let read = |(index, bytes)| PageEntry::from_bytes(index, bytes).ok();
    chunks
        .iter()
        .take(entries)
        .enumerate()
        .map_while(read)
        .collect()
}

fn described_table(payload: &[u8], entries: usize) -> usize {
    let with_data = entries_of(payload, entries)
        .into_iter()
        .map(PageEntry::pages_with_data)
        .sum();
    table_bytes(entries, with_data)
}

/// Right fingerprints for the pages that are carried raw.
fn mend_fingerprints(payload: &mut [u8], entries: usize) {
    let runs = entries_of(payload, entries);
    let key = FingerprintKey::new(SEED);
    let mut at = entries * ENTRY_BYTES;
    let mut data = described_table(payload, entries);
    for run in runs {
        let mut page_data = data;
        data += run.data_bytes as usize;
        for _ in 0..run.pages_with_data() {
            let page = payload.get(page_data..).and_then(<[u8]>::first_chunk);
            if run.class == PageClass::Raw
                && let Some(page) = page
            {
                let fingerprint = kernels().fingerprint(&key, page).lo;
                if let Some(place) = payload.get_mut(at..at + FINGERPRINT_BYTES) {
                    place.copy_from_slice(&fingerprint.to_le_bytes());
                }
            }
            at += FINGERPRINT_BYTES;
            page_data += PAGE_BYTES;
        }
    }
}

/// Kind of [`sample_page`] whose bytes are words that count.
pub const WORDS: u8 = 255;

/// A page of one of a few simple kinds.
#[must_use]
pub fn sample_page(kind: u8) -> Page {
    let mut page = [0; PAGE_BYTES];
    if kind == WORDS {
        for (index, word) in (0u32..).zip(page.as_chunks_mut().0) {
            *word = (0x1234_0000 + (index.wrapping_mul(2_654_435_761) >> 20)).to_le_bytes();
        }
        return page;
    }
    for (index, byte) in page.iter_mut().enumerate() {
        *byte = match kind % 3 {
            0 => 0,
            1 => b"all the pages of a guest "[index % 25].wrapping_add(kind),
            _ => (index as u32).wrapping_mul(2_654_435_761).to_le_bytes()[3] ^ kind,
        };
    }
    page
}

/// Real frames of one block, as the source makes them: headers included, one after the other.
#[must_use]
pub fn real_frames(pages: &[u8], block: usize, mut encoder: Encoder) -> Vec<u8> {
    let layout = ram(&BLOCK_PAGES);
    let digests = Digests::new(&layout);
    let key = FingerprintKey::new(SEED);
    let mut forced = layout.empty_bitmap();
    for (page, &kind) in (0..).zip(pages) {
        layout.blocks()[block].write_page(page, &sample_page(kind));
        forced.blocks[block].set_range(page, 1);
    }
    let work = RoundWork::new(0, layout.empty_bitmap(), forced);
    let mut line = Outgoing::new(&layout, &digests, &key, false);
    line.begin(&work);
    let mut buffer = vec![0; FRAME_BUFFER_BYTES];
    let (mut frames, mut sequence) = (vec![], 1);
    while let Some(frame) = line.next_frame(&work, &mut buffer, &mut encoder, 0, sequence) {
        frames.extend_from_slice(&buffer[frame.head]);
        sequence += 1;
    }
    frames
}
