//! Counters that change with every frame, in one page of shared memory.
//!
//! The data plane writes, others read; no request is made. A slot holds one migration's numbers
//! behind a seqlock: the sequence is odd while they change, and a reader that saw it odd, or saw it
//! change, reads again.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use memmap2::{MmapOptions, MmapRaw};
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::MigrationId;

/// Migrations that can be shown at once. More run as well; they are asked for by request.
pub const SLOTS: usize = 31;

const WORDS_PER_SLOT: usize = 16;
const PAGE_BYTES: usize = 4096;
const MAGIC: u64 = u64::from_le_bytes(*b"DWCPcnt1");
const _: () = assert!((SLOTS + 1) * WORDS_PER_SLOT * 8 <= PAGE_BYTES);

/// What one slot holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Round under way.
    pub round: u64,
    /// Pages of this round.
    pub pages_in_round: u64,
    /// Pages of this round that are done.
    pub pages_done: u64,
    /// Wire bytes so far.
    pub wire_bytes: u64,
    /// Bytes sent and not acknowledged.
    pub in_flight_bytes: u64,
    /// Nanoseconds since the migration began.
    pub elapsed_ns: u64,
}

const FIELDS: usize = 6;

impl Counters {
    const fn to_words(self) -> [u64; FIELDS] {
        [
            self.round,
            self.pages_in_round,
            self.pages_done,
            self.wire_bytes,
            self.in_flight_bytes,
            self.elapsed_ns,
        ]
    }

    const fn from_words(words: [u64; FIELDS]) -> Self {
        let [
            round,
            pages_in_round,
            pages_done,
            wire_bytes,
            in_flight_bytes,
            elapsed_ns,
        ] = words;
        Self {
            round,
            pages_in_round,
            pages_done,
            wire_bytes,
            in_flight_bytes,
            elapsed_ns,
        }
    }
}

/// Why a counters page cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CountersError {
    /// Making or mapping it failed.
    #[error("counters page: {0}")]
    Io(#[from] std::io::Error),
    /// The descriptor is something else.
    #[error("the descriptor is not a counters page")]
    NotCounters,
}

/// The page, mapped.
#[derive(Debug)]
pub struct CountersPage {
    map: MmapRaw,
    file: OwnedFd,
}

impl CountersPage {
    /// A new page; [`Self::file`] is what others map.
    ///
    /// # Errors
    /// [`CountersError::Io`].
    pub fn create() -> Result<Self, CountersError> {
        let file =
            memfd_create(c"dwcp-counters", MFdFlags::MFD_CLOEXEC).map_err(std::io::Error::from)?;
        nix::unistd::ftruncate(&file, PAGE_BYTES as i64).map_err(std::io::Error::from)?;
        let page = Self::map(file)?;
        page.word(0).store(MAGIC, Ordering::Release);
        Ok(page)
    }

    /// Maps a page that the data plane made.
    ///
    /// # Errors
    /// [`CountersError::NotCounters`] when the size or the mark is not right.
    pub fn open(file: OwnedFd) -> Result<Self, CountersError> {
        let stat = nix::sys::stat::fstat(&file).map_err(std::io::Error::from)?;
        if stat.st_size != PAGE_BYTES as i64 {
            return Err(CountersError::NotCounters);
        }
        let page = Self::map(file)?;
        if page.word(0).load(Ordering::Acquire) != MAGIC {
            return Err(CountersError::NotCounters);
        }
        Ok(page)
    }

    fn map(file: OwnedFd) -> Result<Self, CountersError> {
        let map = MmapOptions::new().len(PAGE_BYTES).map_raw(&file)?;
        Ok(Self { map, file })
    }

    /// The descriptor to pass on.
    #[must_use]
    pub fn file(&self) -> impl AsFd + '_ {
        self.file.as_fd()
    }

    fn word(&self, index: usize) -> &AtomicU64 {
        assert!(index < PAGE_BYTES / 8);
        // SAFETY: the mapping is PAGE_BYTES long and page-aligned, `index` was checked, and it
        // lives as long as `self`.
        let word = unsafe { self.map.as_mut_ptr().cast::<u64>().add(index) };
        // SAFETY: aligned, valid for as long as `self`, and every process that shares the page
        // touches it through atomics only.
        unsafe { AtomicU64::from_ptr(word) }
    }

    /// Publishes a slot's numbers. One writer per slot.
    pub fn publish(&self, slot: usize, id: MigrationId, counters: Counters) {
        let base = (slot % SLOTS + 1) * WORDS_PER_SLOT;
        let sequence = self.word(base).load(Ordering::Relaxed);
        self.word(base).store(sequence | 1, Ordering::Relaxed);
        fence(Ordering::Release);
        self.word(base + 1).store(id.0 as u64, Ordering::Relaxed);
        self.word(base + 2)
            .store((id.0 >> 64) as u64, Ordering::Relaxed);
        for (offset, value) in counters.to_words().into_iter().enumerate() {
            self.word(base + 3 + offset).store(value, Ordering::Relaxed);
        }
        self.word(base).store((sequence | 1) + 1, Ordering::Release);
    }

    /// The newest numbers of a migration, or `None` when it has no slot.
    #[must_use]
    pub fn read(&self, id: MigrationId) -> Option<Counters> {
        (0..SLOTS).find_map(|slot| match self.read_slot(slot) {
            Some((found, counters)) if found == id => Some(counters),
            _ => None,
        })
    }

    fn read_slot(&self, slot: usize) -> Option<(MigrationId, Counters)> {
        let base = (slot + 1) * WORDS_PER_SLOT;
        for _ in 0..1000 {
            let before = self.word(base).load(Ordering::Acquire);
            if before == 0 {
                return None;
            }
            let low = self.word(base + 1).load(Ordering::Relaxed);
            let high = self.word(base + 2).load(Ordering::Relaxed);
            let words =
                std::array::from_fn(|offset| self.word(base + 3 + offset).load(Ordering::Relaxed));
            fence(Ordering::Acquire);
            if before.is_multiple_of(2) && self.word(base).load(Ordering::Relaxed) == before {
                let id = MigrationId(u128::from(high) << 64 | u128::from(low));
                return Some((id, Counters::from_words(words)));
            }
            std::hint::spin_loop();
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_never_sees_half_an_update() {
        let page = CountersPage::create().unwrap();
        let id = MigrationId(7);
        page.publish(0, id, Counters::default());
        std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                for n in 0..200_000 {
                    let counters = Counters {
                        round: n,
                        wire_bytes: n,
                        elapsed_ns: n,
                        ..Default::default()
                    };
                    page.publish(0, id, counters);
                }
            });
            while !writer.is_finished() {
                if let Some(seen) = page.read(id) {
                    assert_eq!(
                        (seen.round, seen.wire_bytes),
                        (seen.elapsed_ns, seen.elapsed_ns)
                    );
                }
            }
        });
        assert_eq!(page.read(id).unwrap().round, 199_999);
        assert_eq!(page.read(MigrationId(8)), None);
    }

    #[test]
    fn a_descriptor_of_something_else_is_refused() {
        let file = memfd_create(c"other", MFdFlags::MFD_CLOEXEC).unwrap();
        assert!(matches!(
            CountersPage::open(file),
            Err(CountersError::NotCounters)
        ));
    }
}
