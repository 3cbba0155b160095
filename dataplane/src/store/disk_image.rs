//! Disk images of this node: what a guest has in its page cache is a block of one.
//!
//! An image stays where it is; the store has an index of it. A qcow2 file has its blocks in another order,
//! which does not matter, as long as they are not compressed.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dwcp_simd::{FingerprintKey, PAGE_BYTES, kernels};
use serde::{Deserialize, Serialize};

use super::StoreError;
use super::index::IndexBuilder;
use super::sparse::{read_whole, seek_data};

/// Read at once.
const PIECE_PAGES: usize = 256;

/// Which file it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DiskImage {
    schema: String,
    pub(super) path: PathBuf,
}

impl DiskImage {
    pub(super) fn of(path: PathBuf) -> Self {
        Self {
            schema: "dwcp.image/1".into(),
            path,
        }
    }

    pub(super) fn read(path: &Path) -> io::Result<Self> {
        Ok(serde_json::from_slice(&std::fs::read(path)?)?)
    }

    pub(super) fn write(&self, path: &Path) -> io::Result<()> {
        std::fs::write(path, serde_json::to_vec(self)?)?;
        File::open(path)?.sync_all()
    }
}

/// Hashes the blocks of a file. Holes and zero blocks are left out, and a part of a block at the end.
/// `done_bytes` says how far it is.
pub(super) fn index(
    path: &Path,
    key: &FingerprintKey,
    done_bytes: &AtomicU64,
    stop: &AtomicBool,
) -> Result<IndexBuilder, StoreError> {
    let failed = || StoreError::disk(format!("cannot read {}", path.display()));
    let file = File::open(path).map_err(failed())?;
    let pages = file.metadata().map_err(failed())?.len() / PAGE_BYTES as u64;
    let pages = u32::try_from(pages).map_err(|_| StoreError::TooLarge {
        wanted_bytes: pages * PAGE_BYTES as u64,
        most_bytes: u64::from(u32::MAX) * PAGE_BYTES as u64,
    })?;
    let mut index = IndexBuilder::default();
    let mut piece = vec![[0; PAGE_BYTES]; PIECE_PAGES];
    let mut next = 0;
    while next < pages {
        if stop.load(Ordering::Relaxed) {
            return Err(StoreError::Stopped);
        }
        let from = u64::from(next) * PAGE_BYTES as u64;
        let Some(data) = seek_data(&file, from).map_err(failed())? else {
            break;
        };
        let first = (data / PAGE_BYTES as u64) as u32;
        let count = PIECE_PAGES.min(pages.saturating_sub(first) as usize);
        let read = &mut piece[..count];
        let start = u64::from(first) * PAGE_BYTES as u64;
        read_whole(file.as_fd(), start, read.as_flattened_mut()).map_err(failed())?;
        for (page, content) in (first..).zip(&*read) {
            if !kernels().is_zero(content) {
                index.push(kernels().fingerprint(key, content).lo, page);
            }
        }
        next = first + count as u32;
        done_bytes.store(u64::from(next) * PAGE_BYTES as u64, Ordering::Relaxed);
        if count == 0 {
            break;
        }
    }
    Ok(index)
}
