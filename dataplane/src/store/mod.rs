//! Pages that this node has on disk, for VMs that come: the RAM of VMs that left it (baselines), and disk
//! images, whose blocks are what a guest has in its page cache.
//!
//! ```text
//! seed                   seed of the hashes: 16 hex digits, chosen when the store was made
//! NUMBER.baseline        header, 64 KiB: JSON, then zeros     block 0     block 1 …
//! NUMBER.image           JSON: where the disk image is
//! NUMBER.index           its pages by their hashes
//! NUMBER.arrival         header as above, then 4 bytes for each page: what RAM was when a VM came here
//! ```
//! The blocks of a baseline lie at their sizes' sums, page-aligned; zero pages are holes. A file is written
//! as `NUMBER.part`, and renamed once it is on the disk, after its index. The newest has the highest number.
//!
//! Nothing is trusted for being in the store: a page is found by its hash and hashed when it is read, so
//! bit rot, a torn write or an image that was changed only make pages that are not found.

mod arrival;
mod baseline;
mod disk_image;
mod header;
mod index;
mod indexing;
mod library;
mod seed;
mod sparse;

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use dwcp_api::StoreKind;
use dwcp_simd::FingerprintKey;

use crate::ram::{RamError, RamLayout};

pub use arrival::Arrival;
use baseline::Baseline;
use disk_image::DiskImage;
use header::{HEADER_BYTES, Header};
use index::Index;
pub use indexing::{Indexing, Reading};
pub use library::Library;
use library::Shelf;

/// Part of the file system that is left to others.
const FREE_SHARE_MIN: u64 = 10;

/// Why the store cannot do what it was asked for.
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
    #[error(
        "{wanted_bytes} bytes are needed, and there is room for {most_bytes}: the store has its limit \
         (dwcp-dataplane --store-mib), and leaves a tenth of its disk free"
    )]
    TooLarge {
        /// What would be written, at most.
        wanted_bytes: u64,
        /// What the store may have, or the disk has to give.
        most_bytes: u64,
    },
    /// It is not there.
    #[error("the store has no {0}")]
    Unknown(String),
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

/// The store of a node.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    bytes_max: u64,
    seed: u64,
    /// One at a time: the disk is no faster with more.
    turn: Mutex<()>,
}

/// One entry of the store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// The newest has the highest.
    pub number: u64,
    /// What it is.
    pub kind: StoreKind,
    /// Different pages that it has; 0 without an index.
    pub pages: u64,
    /// Its index cannot be read: none of them is found.
    pub is_damaged: bool,
    /// What it takes in the store.
    pub disk_bytes: u64,
}

impl Entry {
    /// What it was opened for, unless it cannot be.
    fn of_use<T>(&self, opened: io::Result<T>) -> Option<T> {
        let why =
            |error: &io::Error| tracing::warn!(%error, entry = ?self, "of no use in the store");
        opened.inspect_err(why).ok()
    }
}

impl Store {
    /// The store of a node, in `folder`, which may take `bytes_max` of disk. What was not finished is
    /// removed.
    ///
    /// # Errors
    /// [`StoreError::Disk`].
    pub fn open(folder: PathBuf, bytes_max: u64) -> Result<Self, StoreError> {
        let shown = folder.display().to_string();
        let cannot = |what: &str| StoreError::disk(format!("cannot {what} {shown}"));
        // What a guest holds is nobody else's to read.
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(cannot("make"))?;
        let seed = seed::read(&folder).map_err(cannot("read the seed of"))?;
        let store = Self {
            folder,
            bytes_max,
            seed,
            turn: Mutex::default(),
        };
        let whole: Vec<u64> = store.entries().iter().map(|entry| entry.number).collect();
        for entry in fs::read_dir(&store.folder).map_err(cannot("read"))? {
            let path = entry.map_err(cannot("read"))?.path();
            let number = path
                .file_stem()
                .and_then(|stem| stem.to_str()?.parse().ok());
            let is_lone = has_end(&path, "index") && !number.is_some_and(|n| whole.contains(&n));
            if has_end(&path, "part") || is_lone {
                fs::remove_file(&path).map_err(cannot("clear"))?;
            }
        }
        Ok(store)
    }

    /// Keeps the RAM of a VM that left by `migration`; returns the bytes written. What was kept of it before goes, and
    /// baselines of other VMs as far as there must be room, the oldest first.
    ///
    /// # Errors
    /// [`StoreError`]: nothing is kept of it.
    pub fn keep(
        &self,
        (vm, migration): (&str, u128),
        layout: &RamLayout,
        stop: &AtomicBool,
    ) -> Result<u64, StoreError> {
        let _turn = self.lock();
        let mut wanted_bytes = HEADER_BYTES;
        for block in layout.blocks() {
            wanted_bytes += block.room()?.held_bytes.min(block.bytes());
        }
        self.make_room(with_index(wanted_bytes), |kind| {
            matches!(kind, StoreKind::Baseline { vm: of } | StoreKind::Arrival { vm: of } if of == vm)
        })?;
        self.add("baseline", |part| {
            let header = Header::of("dwcp.baseline/1", (vm, migration), layout);
            let written = baseline::write(part, &header, layout, &self.key(), stop)?;
            Ok((written.bytes, Some(written.index)))
        })
        .map(|(bytes, _)| bytes)
    }

    /// Indexes a disk image of this node, or indexes it anew; returns the different pages that it has.
    ///
    /// # Errors
    /// [`StoreError`]: nothing is kept of it.
    pub fn add_image(
        &self,
        path: &Path,
        reading: &Reading,
        stop: &AtomicBool,
    ) -> Result<u64, StoreError> {
        let cannot = || StoreError::disk(format!("the data plane cannot read {}", path.display()));
        let path = path.canonicalize().map_err(cannot())?;
        let about = fs::metadata(&path).map_err(cannot())?;
        // To open anything else may take for ever.
        if !about.is_file() {
            let error = io::Error::new(io::ErrorKind::InvalidInput, "not a file");
            return Err(cannot()(error));
        }
        reading.total_bytes.store(about.len(), Ordering::Relaxed);
        let most_bytes = with_index(about.blocks() * 512) - about.blocks() * 512;
        let index = disk_image::index(&path, &self.key(), &reading.done_bytes, stop)?;
        let _turn = self.lock();
        self.make_room(
            most_bytes,
            |kind| matches!(kind, StoreKind::Image { path: of } if *of == path),
        )?;
        self.add("image", |part| {
            let failed = StoreError::disk(format!("cannot write {}", part.display()));
            DiskImage::of(path).write(part).map_err(failed)?;
            Ok(((), Some(index)))
        })
        .map(|((), pages)| pages)
    }

    /// Writes a file with its index, if it has one; returns what `write` says and the pages in the index. It is there
    /// once both are on the disk.
    fn add<T>(
        &self,
        end: &str,
        write: impl FnOnce(&Path) -> Result<(T, Option<index::IndexBuilder>), StoreError>,
    ) -> Result<(T, u64), StoreError> {
        let number = self.entries().last().map_or(1, |last| last.number + 1);
        let part = self.folder.join(format!("{number:06}.part"));
        let index_path = part.with_extension("index");
        let finished = write(&part).and_then(|(result, index)| {
            let cannot = || StoreError::disk(format!("cannot finish {}", part.display()));
            let pages = index.map_or(Ok(0), |index| index.write(&index_path));
            let pages = pages.map_err(cannot())?;
            fs::rename(&part, part.with_extension(end))
                .and_then(|()| File::open(&self.folder)?.sync_all())
                .map_err(cannot())?;
            Ok((result, pages))
        });
        if finished.is_err() {
            let _ = (fs::remove_file(&part), fs::remove_file(&index_path));
        }
        finished
    }

    fn newest(&self, kind: &StoreKind) -> Option<Entry> {
        let mut entries = self.entries().into_iter().rev();
        entries.find(|entry| entry.kind == *kind)
    }

    /// The same for a VM that comes: with its RAM as it left, if that is here.
    #[must_use]
    pub fn library_for(&self, vm: &str, layout: &RamLayout) -> Library {
        let own = self.newest(&StoreKind::Baseline { vm: vm.to_owned() });
        let baseline = own.and_then(|entry| {
            let opened = Baseline::open(&self.path(entry.number, "baseline"), layout);
            Some((entry.number, entry.of_use(opened)??))
        });
        self.library().with_baseline(baseline)
    }

    /// All that it has now, to look for pages. Files that are removed meanwhile stay readable.
    #[must_use]
    pub fn library(&self) -> Library {
        let mut entries = self.entries();
        entries.reverse();
        let shelves = entries.iter().filter_map(|entry| self.shelf(entry));
        Library::new(self.seed, shelves.collect())
    }

    /// `None` for what has no pages, or is of no use.
    fn shelf(&self, entry: &Entry) -> Option<Shelf> {
        let (path, name) = match &entry.kind {
            StoreKind::Baseline { vm } => (
                self.path(entry.number, "baseline"),
                format!("the baseline of {vm}"),
            ),
            StoreKind::Image { path } => (path.clone(), path.display().to_string()),
            StoreKind::Arrival { .. } => return None,
        };
        let open = || {
            Ok(Shelf {
                index: Index::open(&self.path(entry.number, "index"))?,
                pages: File::open(path)?,
                number: entry.number,
                name,
                stale: AtomicU64::new(0),
            })
        };
        entry.of_use(open())
    }

    /// All entries, the oldest first. What cannot be read is not there.
    #[must_use]
    pub fn entries(&self) -> Vec<Entry> {
        let files = fs::read_dir(&self.folder).into_iter().flatten().flatten();
        let mut found: Vec<_> = files.filter_map(|file| self.entry(&file.path())).collect();
        found.sort_by_key(|entry| entry.number);
        found
    }

    fn entry(&self, path: &Path) -> Option<Entry> {
        let number = path.file_stem()?.to_str()?.parse().ok()?;
        let kind = match path.extension()?.to_str()? {
            end @ ("baseline" | "arrival") => {
                let header = File::open(path).and_then(|file| Header::read(&file));
                let vm = header.ok()?.vm;
                match end {
                    "baseline" => StoreKind::Baseline { vm },
                    _ => StoreKind::Arrival { vm },
                }
            }
            "image" => {
                let path = DiskImage::read(path).ok()?.path;
                StoreKind::Image { path }
            }
            _ => return None,
        };
        let index_path = self.path(number, "index");
        let pages = match kind {
            StoreKind::Arrival { .. } => Ok(0),
            _ => index::pages(&index_path),
        };
        // Pieces of 512 bytes, see stat(2).
        let bytes = |path: &Path| fs::metadata(path).map_or(0, |about| about.blocks() * 512);
        Some(Entry {
            number,
            kind,
            is_damaged: pages.is_err(),
            pages: pages.unwrap_or(0),
            disk_bytes: bytes(path) + bytes(&index_path),
        })
    }

    /// Removes what is of a disk image; the image itself stays where it is. Returns whether there was anything.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove_image(&self, path: &Path) -> Result<bool, StoreError> {
        let _turn = self.lock();
        let is_it = |kind: &StoreKind| matches!(kind, StoreKind::Image { path: of } if of == path);
        let is_there = self.entries().iter().any(|entry| is_it(&entry.kind));
        self.remove_all(is_it)?;
        Ok(is_there)
    }

    /// Removes an entry by its number. A disk image itself stays where it is.
    ///
    /// # Errors
    /// [`StoreError`].
    pub fn remove(&self, number: u64) -> Result<(), StoreError> {
        let _turn = self.lock();
        let entries = self.entries();
        let entry = entries.iter().find(|entry| entry.number == number);
        let unknown = || StoreError::Unknown(format!("entry {number}"));
        self.remove_files(entry.ok_or_else(unknown)?)
    }

    fn remove_all(&self, is_meant: impl Fn(&StoreKind) -> bool) -> Result<(), StoreError> {
        let entries = self.entries();
        let mut meant = entries.iter().filter(|entry| is_meant(&entry.kind));
        meant.try_for_each(|entry| self.remove_files(entry))
    }

    fn remove_files(&self, entry: &Entry) -> Result<(), StoreError> {
        let end = match entry.kind {
            StoreKind::Baseline { .. } => "baseline",
            StoreKind::Image { .. } => "image",
            StoreKind::Arrival { .. } => "arrival",
        };
        // The index last: it is nothing without the other.
        let cannot = StoreError::disk(format!("cannot remove entry {}", entry.number));
        fs::remove_file(self.path(entry.number, end)).map_err(cannot)?;
        if end != "arrival" {
            let _ = fs::remove_file(self.path(entry.number, "index"));
        }
        Ok(())
    }

    /// Removes what is replaced, and what is of RAM, the oldest first, until so much may be written. Nothing, when all of
    /// that would not be enough.
    fn make_room(
        &self,
        wanted_bytes: u64,
        is_replaced: impl Fn(&StoreKind) -> bool,
    ) -> Result<(), StoreError> {
        let (replaced, others): (Vec<_>, Vec<_>) = self
            .entries()
            .into_iter()
            .partition(|entry| is_replaced(&entry.kind));
        let (images, of_ram): (Vec<_>, Vec<_>) = others
            .into_iter()
            .partition(|entry| matches!(entry.kind, StoreKind::Image { .. }));
        let may_go = used(&replaced) + used(&of_ram);
        self.check_room(wanted_bytes, used(&images), may_go)?;
        replaced
            .iter()
            .try_for_each(|entry| self.remove_files(entry))?;
        let mut left = &of_ram[..];
        while let Some((oldest, newer)) = left.split_first() {
            if self
                .check_room(wanted_bytes, used(&images) + used(left), 0)
                .is_ok()
            {
                break;
            }
            self.remove_files(oldest)?;
            tracing::info!(?oldest, "removed to make room");
            left = newer;
        }
        Ok(())
    }

    /// Whether so much may be written beside what stays, when so much more is free.
    fn check_room(
        &self,
        wanted_bytes: u64,
        staying_bytes: u64,
        freed_bytes: u64,
    ) -> Result<(), StoreError> {
        let allowed = self.bytes_max.saturating_sub(staying_bytes);
        let most_bytes = allowed.min(self.free_bytes()? + freed_bytes);
        if wanted_bytes <= most_bytes {
            return Ok(());
        }
        Err(StoreError::TooLarge {
            wanted_bytes,
            most_bytes,
        })
    }

    /// What the file system has, but for the share that is left to others.
    fn free_bytes(&self) -> Result<u64, StoreError> {
        let system = nix::sys::statvfs::statvfs(&self.folder)
            .map_err(|errno| StoreError::disk("cannot ask the disk")(errno.into()))?;
        let spared = system.blocks() / FREE_SHARE_MIN;
        let blocks = system.blocks_available().saturating_sub(spared);
        Ok(blocks * system.fragment_size())
    }

    fn key(&self) -> FingerprintKey {
        FingerprintKey::new(self.seed)
    }

    fn path(&self, number: u64, end: &str) -> PathBuf {
        self.folder.join(format!("{number:06}.{end}"))
    }

    fn lock(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What entries take.
fn used(entries: &[Entry]) -> u64 {
    entries.iter().map(|entry| entry.disk_bytes).sum()
}

fn has_end(path: &Path, end: &str) -> bool {
    path.extension().is_some_and(|of| of == end)
}

/// Bytes of pages, and of an index of them.
const fn with_index(page_bytes: u64) -> u64 {
    page_bytes + page_bytes / 256 + 4096
}

#[cfg(test)]
mod tests;
