//! Baselines: the RAM of VMs that left this node, on disk, for the day they come back.
//!
//! A baseline is put into the RAM of the waiting VM before that is read and told to the source
//! ([`crate::engine::look_at_unknown`]). Nothing is trusted for being in the store: bit rot, a torn
//! write or an old image only make pages that differ, and those are sent.
//!
//! ```text
//! NUMBER.baseline = header, 64 KiB: JSON, then zeros     block 0     block 1 …
//! ```
//! Blocks lie at their sizes' sums, page-aligned; zero pages are holes. A file is written as
//! `NUMBER.part`, and renamed once it is on the disk. The newest has the highest number.

mod image;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::ram::{RamError, RamLayout};

use image::Header;

/// Part of the file system that is left to others.
const FREE_SHARE_MIN: u64 = 10;

/// Why a baseline was not kept, or not used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// The disk.
    #[error("{what}: {source}")]
    Disk {
        /// What was done.
        what: String,
        /// The failure.
        source: io::Error,
    },
    /// Guest RAM.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// It would take more than the store may have.
    #[error("the guest's RAM has {wanted_bytes} bytes, the store may have {most_bytes}")]
    TooLarge {
        /// Of the baseline, at most.
        wanted_bytes: u64,
        /// What the store may have, or the disk has to give.
        most_bytes: u64,
    },
    /// It was ended from outside.
    #[error("stopped")]
    Stopped,
}

impl StoreError {
    fn disk(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |source| Self::Disk { what, source }
    }
}

/// The baselines of a node.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    bytes_max: u64,
    /// One at a time: the disk is no faster with more.
    turn: Mutex<()>,
}

/// One that is there.
#[derive(Debug)]
struct Baseline {
    number: u64,
    path: PathBuf,
    disk_bytes: u64,
}

impl Store {
    /// The store of a node, in `folder`, which may take `bytes_max` of disk. What was not finished is
    /// removed.
    ///
    /// # Errors
    /// [`StoreError::Disk`].
    pub fn open(folder: PathBuf, bytes_max: u64) -> Result<Self, StoreError> {
        let cannot = |what: &str| StoreError::disk(format!("cannot {what} {}", folder.display()));
        // What a guest holds is nobody else's to read.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(cannot("make"))?;
        for entry in fs::read_dir(&folder).map_err(cannot("read"))? {
            let path = entry.map_err(cannot("read"))?.path();
            if path.extension().is_some_and(|end| end == "part") {
                fs::remove_file(&path).map_err(cannot("clear"))?;
            }
        }
        Ok(Self {
            folder,
            bytes_max,
            turn: Mutex::default(),
        })
    }

    /// Keeps the RAM of a VM that is not run here any more; returns the bytes written. An older
    /// baseline of it goes, and those of other VMs as far as there must be room, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`]: nothing is kept of it.
    pub fn keep(&self, vm: &str, layout: &RamLayout, stop: &AtomicBool) -> Result<u64, StoreError> {
        let _turn = self.lock();
        let mut wanted_bytes = image::HEADER_BYTES;
        for block in layout.blocks() {
            wanted_bytes += block.room()?.held_bytes.min(block.bytes());
        }
        self.forget_one(vm);
        self.make_room(wanted_bytes)?;
        let number = self.baselines().last().map_or(1, |last| last.number + 1);
        let part = self.folder.join(format!("{number:06}.part"));
        let written = image::write(&part, &Header::of(vm, layout), layout, stop);
        let finished = written.and_then(|bytes| {
            let whole = part.with_extension("baseline");
            fs::rename(&part, whole)
                .and_then(|()| File::open(&self.folder)?.sync_all())
                .map_err(StoreError::disk("cannot finish a baseline"))?;
            Ok(bytes)
        });
        if finished.is_err() {
            let _ = fs::remove_file(&part);
        }
        finished
    }

    /// Puts the baseline of a VM into its RAM, where that holds nothing yet. Returns the pages written;
    /// 0 when there is no baseline, or of other RAM.
    ///
    /// # Errors
    /// [`StoreError`]: a part of it may have been written.
    pub fn fill(&self, vm: &str, layout: &RamLayout, stop: &AtomicBool) -> Result<u64, StoreError> {
        let _turn = self.lock();
        let header = Header::of(vm, layout);
        match self.find(|found| *found == header) {
            Some(baseline) => image::read(&baseline.path, layout, stop),
            None => Ok(0),
        }
    }

    /// Removes the baseline of a VM: it is here, and changes.
    pub fn forget(&self, vm: &str) {
        let _turn = self.lock();
        self.forget_one(vm);
    }

    fn forget_one(&self, vm: &str) {
        while let Some(old) = self.find(|header| header.vm == vm) {
            if let Err(error) = fs::remove_file(&old.path) {
                tracing::warn!(%error, path = %old.path.display(), "baseline stays");
                return;
            }
        }
    }

    fn make_room(&self, wanted_bytes: u64) -> Result<(), StoreError> {
        let free = |path: &Path| {
            let system = nix::sys::statvfs::statvfs(path)
                .map_err(|errno| StoreError::disk("cannot ask the disk")(errno.into()))?;
            let spared = system.blocks() / FREE_SHARE_MIN;
            let blocks = system.blocks_available().saturating_sub(spared);
            Ok::<_, StoreError>(blocks * system.fragment_size())
        };
        loop {
            let baselines = self.baselines();
            let used: u64 = baselines.iter().map(|old| old.disk_bytes).sum();
            let allowed = self.bytes_max.saturating_sub(used);
            let most_bytes = allowed.min(free(&self.folder)?);
            if wanted_bytes <= most_bytes {
                return Ok(());
            }
            let Some(oldest) = baselines.first().filter(|_| wanted_bytes <= self.bytes_max) else {
                return Err(StoreError::TooLarge {
                    wanted_bytes,
                    most_bytes,
                });
            };
            fs::remove_file(&oldest.path).map_err(StoreError::disk("cannot make room"))?;
            tracing::info!(path = %oldest.path.display(), "baseline removed to make room");
        }
    }

    fn find(&self, wanted: impl Fn(&Header) -> bool) -> Option<Baseline> {
        let is_wanted = |baseline: &Baseline| {
            let header = File::open(&baseline.path).and_then(|file| Header::read(&file));
            header.is_ok_and(|header| wanted(&header))
        };
        self.baselines().into_iter().rev().find(is_wanted)
    }

    /// The oldest first. What cannot be read is not there.
    fn baselines(&self) -> Vec<Baseline> {
        let entries = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut found: Vec<_> = entries
            .filter_map(|entry| {
                let path = entry.path();
                let number = path.file_stem()?.to_str()?.parse().ok()?;
                let is_one = path.extension()? == "baseline";
                // Pieces of 512 bytes, see stat(2).
                let disk_bytes = entry.metadata().ok()?.blocks() * 512;
                is_one.then_some(Baseline {
                    number,
                    path,
                    disk_bytes,
                })
            })
            .collect();
        found.sort_by_key(|baseline| baseline.number);
        found
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
