//! One baseline file: guest RAM, written down.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use dwcp_simd::{FingerprintKey, PAGE_BYTES, Page, kernels};

use super::StoreError;
use super::header::{HEADER_BYTES, Header};
use super::index::IndexBuilder;
use super::sparse::read_whole;
use crate::ram::{RamBlock, RamLayout};

/// Read or written at once.
const PIECE_PAGES: u32 = 128;

/// The baseline of a VM, as its RAM was when it left.
#[derive(Debug)]
pub(super) struct Baseline {
    file: File,
    /// Where each block begins, and its pages.
    blocks: Vec<(u64, u64)>,
    /// The migration by which it left.
    pub(super) migration: u128,
}

impl Baseline {
    /// Of a file, if it is of RAM of this shape and says by which migration it left.
    pub(super) fn open(path: &Path, layout: &RamLayout) -> io::Result<Option<Self>> {
        let file = File::open(path)?;
        let header = Header::read(&file)?;
        let Some(migration) = header.migration().filter(|_| header.has_shape_of(layout)) else {
            return Ok(None);
        };
        let mut start = HEADER_BYTES;
        let blocks = layout.blocks().iter().map(|block| {
            let at = start;
            start += block.bytes();
            (at, u64::from(block.pages()))
        });
        Ok(Some(Self {
            blocks: blocks.collect(),
            file,
            migration,
        }))
    }

    /// Reads pages of a block; false when they are not there.
    pub(super) fn read(&self, block: usize, page: u32, out: &mut [Page]) -> bool {
        let Some((start, pages)) = self.blocks.get(block) else {
            return false;
        };
        let is_inside = u64::from(page) + out.len() as u64 <= *pages;
        is_inside
            && self
                .file
                .read_exact_at(out.as_flattened_mut(), offset(*start, page))
                .is_ok()
    }
}

/// What was written: bytes, and where each page is.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) bytes: u64,
    pub(super) index: IndexBuilder,
}

/// Writes all of RAM to a new file. Read by calls, not through the mapping: a VMM that is gone may
/// have its file cut short.
pub(super) fn write(
    path: &Path,
    header: &Header,
    layout: &RamLayout,
    key: &FingerprintKey,
    stop: &AtomicBool,
) -> Result<Written, StoreError> {
    let failed = || StoreError::disk(format!("cannot write {}", path.display()));
    let file = header.create(path).map_err(failed())?;
    let mut start = HEADER_BYTES;
    let mut written = Written {
        bytes: 0,
        index: IndexBuilder::default(),
    };
    let mut piece = vec![[0; PAGE_BYTES]; PIECE_PAGES as usize];
    for block in layout.blocks() {
        let mut page = 0;
        while let Some(first) = next_data(block, page)? {
            if stop.load(Ordering::Relaxed) {
                return Err(StoreError::Stopped);
            }
            let count = PIECE_PAGES.min(block.pages() - first) as usize;
            let pages = &mut piece[..count];
            read_whole(block.as_fd(), offset(0, first), pages.as_flattened_mut())
                .map_err(StoreError::disk("cannot read the guest's RAM"))?;
            let kept = |at: usize| start + offset(0, first + at as u32);
            for run in runs(pages) {
                let first = kept(run.start);
                let bytes = pages[run.clone()].as_flattened();
                file.write_all_at(bytes, first).map_err(failed())?;
                written.bytes += bytes.len() as u64;
                for (page, content) in (first / PAGE_BYTES as u64..).zip(&pages[run]) {
                    let hash = kernels().fingerprint(key, content).lo;
                    // Files whose pages have no 32 bits do not exist.
                    written.index.push(hash, page as u32);
                }
            }
            page = first + count as u32;
        }
        start += block.bytes();
    }
    // Its length says that it was finished, holes and all.
    file.set_len(start).map_err(failed())?;
    file.sync_all().map_err(failed())?;
    Ok(written)
}

const fn offset(start: u64, page: u32) -> u64 {
    start + page as u64 * PAGE_BYTES as u64
}

/// The first page from `page` on that may hold something.
fn next_data(block: &RamBlock, page: u32) -> Result<Option<u32>, StoreError> {
    let data = match page < block.pages() {
        true => block.data_from(page)?.unwrap_or(page),
        false => block.pages(),
    };
    Ok((data < block.pages()).then_some(data))
}

/// Pages that follow each other and are not zero.
fn runs(pages: &[Page]) -> Vec<std::ops::Range<usize>> {
    let mut runs: Vec<std::ops::Range<usize>> = vec![];
    for (at, page) in pages.iter().enumerate() {
        if kernels().is_zero(page) {
            continue;
        }
        match runs.last_mut() {
            Some(run) if run.end == at => run.end += 1,
            _ => runs.push(at..at + 1),
        }
    }
    runs
}
