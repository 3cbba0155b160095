//! One baseline file: guest RAM, written down.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use dwcp_simd::{FingerprintKey, PAGE_BYTES, Page, kernels};
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::index::IndexBuilder;
use super::sparse::read_whole;
use crate::ram::{RamBlock, RamLayout};

pub(super) const HEADER_BYTES: u64 = 64 * 1024;

/// Read or written at once.
const PIECE_PAGES: u32 = 128;

/// Whose RAM it is, and of which shape.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Header {
    schema: String,
    pub(super) vm: String,
    /// Name and bytes of each block.
    blocks: Vec<(String, u64)>,
}

impl Header {
    pub(super) fn of(vm: &str, layout: &RamLayout) -> Self {
        let block = |block: &RamBlock| (block.name().to_owned(), block.bytes());
        Self {
            schema: "dwcp.baseline/1".into(),
            vm: vm.to_owned(),
            blocks: layout.blocks().iter().map(block).collect(),
        }
    }

    pub(super) fn read(file: &File) -> io::Result<Self> {
        let mut bytes = vec![0; HEADER_BYTES as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default();
        Ok(serde_json::from_slice(text)?)
    }

    fn write(&self, file: &File) -> io::Result<()> {
        let text = serde_json::to_vec(self)?;
        if text.len() as u64 >= HEADER_BYTES {
            return Err(io::Error::other("the names of the RAM blocks are too long"));
        }
        file.write_all_at(&text, 0)
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
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
        .map_err(failed())?;
    header.write(&file).map_err(failed())?;
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
