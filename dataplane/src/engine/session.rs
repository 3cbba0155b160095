//! What the workers of one migration share.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use dwcp_api::Codec;
use dwcp_simd::{FingerprintKey, RamRoot};

use super::{Pace, Waits};
use crate::path::RememberedPages;
use crate::ram::{Digests, RamBitmap, RamLayout};

/// RAM, digests, key and live counters of one end of a migration.
#[derive(Debug)]
pub struct Session {
    /// Guest RAM.
    pub layout: Arc<RamLayout>,
    /// What was last sent, or applied.
    pub digests: Digests,
    /// Key of the page fingerprints.
    pub key: FingerprintKey,
    /// Codec of the source.
    pub codec: Codec,
    /// Source: what the destination holds, as far as there is memory for it.
    pub remembered: Option<RememberedPages>,
    /// Source: how fast it may send.
    pub pace: Pace,
    /// Source: what its workers wait for.
    pub waits: Waits,
    /// [`SEALED`], and the frames that are being placed in RAM.
    placing: AtomicU32,
    /// Of pages whose digests say zero nobody knows whether they are, or missing at the destination.
    has_forgotten: AtomicBool,
    /// Destination: a queue pair broke, which may have written pages of frames that never came.
    has_unseen_writes: AtomicBool,
    wire_bytes: AtomicU64,
    pages_done: AtomicU64,
    in_flight_bytes: AtomicU64,
}

/// Set in [`Session::placing`] when RAM is to stay as it is.
const SEALED: u32 = 1 << 31;

/// A frame came where none may come: after the end of a round, before it is reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("page frame after the end of a round that is not reported yet")]
pub struct Sealed;

impl Session {
    /// A session over `layout`; the destination's RAM is empty.
    #[must_use]
    pub fn new(layout: RamLayout, fingerprint_seed: u64, codec: Codec) -> Self {
        let digests = Digests::new(&layout);
        Self {
            layout: Arc::new(layout),
            digests,
            key: FingerprintKey::new(fingerprint_seed),
            codec,
            remembered: None,
            pace: Pace::new(0),
            waits: Waits::default(),
            placing: AtomicU32::new(0),
            has_forgotten: AtomicBool::new(false),
            has_unseen_writes: AtomicBool::new(false),
            wire_bytes: AtomicU64::new(0),
            pages_done: AtomicU64::new(0),
            in_flight_bytes: AtomicU64::new(0),
        }
    }

    /// The same at a source that remembers pages it has sent, in `bytes` of memory, to send those that
    /// change again as what changed.
    #[must_use]
    pub fn remembering(mut self, bytes: u64) -> Self {
        self.remembered = RememberedPages::new(bytes);
        self
    }

    /// The same at a source that sends so many bytes a second at most; 0 is no limit.
    #[must_use]
    pub fn paced(mut self, bytes_per_s: u64) -> Self {
        self.pace = Pace::new(bytes_per_s);
        self
    }

    /// Destination: nothing may change RAM any more: it is looked at, and perhaps proven.
    ///
    /// # Errors
    /// [`Sealed`] when a frame is on its way into RAM, though all streams had said that none is.
    pub fn seal(&self) -> Result<(), Sealed> {
        match self.placing.fetch_or(SEALED, Ordering::AcqRel) & !SEALED {
            0 => Ok(()),
            _ => Err(Sealed),
        }
    }

    /// Destination: the next round may come.
    pub fn unseal(&self) {
        self.placing.fetch_and(!SEALED, Ordering::AcqRel);
    }

    /// Destination: a frame's data is about to be placed in RAM. Once it is applied:
    /// [`Self::placed`].
    ///
    /// # Errors
    /// [`Sealed`].
    pub fn place(&self) -> Result<(), Sealed> {
        match self.placing.fetch_add(1, Ordering::AcqRel) & SEALED {
            0 => Ok(()),
            _ => Err(Sealed),
        }
    }

    /// Destination: a frame is applied.
    pub fn placed(&self) {
        self.placing.fetch_sub(1, Ordering::AcqRel);
    }

    /// Forgets what the destination held of these pages: they count as zero. Returns the change of the root.
    pub fn forget(&self, pages: &RamBitmap) -> RamRoot {
        self.has_forgotten.store(true, Ordering::Release);
        let mut root = RamRoot::default();
        for (index, block) in pages.blocks.iter().enumerate() {
            for (first, count) in block.runs() {
                for page in first..first + count {
                    let global = self.layout.global_page(index, page);
                    self.digests.set(global, None, &mut root);
                }
            }
        }
        root
    }

    /// Whether pages whose digests say zero may be something else.
    #[must_use]
    pub fn has_forgotten(&self) -> bool {
        self.has_forgotten.load(Ordering::Acquire)
    }

    /// Destination: pages may hold something else than their digests say. The source names all of them again before the
    /// round ends.
    pub fn note_unseen_writes(&self) {
        self.has_unseen_writes.store(true, Ordering::Release);
    }

    /// Whether there may be such pages.
    #[must_use]
    pub fn has_unseen_writes(&self) -> bool {
        self.has_unseen_writes.load(Ordering::Acquire)
    }

    /// Notes progress: once a frame.
    pub fn count(&self, wire_bytes: u64, pages: u64) {
        self.wire_bytes.fetch_add(wire_bytes, Ordering::Relaxed);
        self.pages_done.fetch_add(pages, Ordering::Relaxed);
    }

    /// Notes what is under way on a worker's streams now, as a change.
    pub fn count_in_flight(&self, before: u64, now: u64) {
        self.in_flight_bytes
            .fetch_add(now.wrapping_sub(before), Ordering::Relaxed);
    }

    /// Bytes on the wire so far.
    #[must_use]
    pub fn wire_bytes(&self) -> u64 {
        self.wire_bytes.load(Ordering::Relaxed)
    }

    /// Pages done in the round.
    #[must_use]
    pub fn pages_done(&self) -> u64 {
        self.pages_done.load(Ordering::Relaxed)
    }

    /// Bytes sent and not acknowledged.
    #[must_use]
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes.load(Ordering::Relaxed)
    }

    /// A new round begins.
    pub fn begin_round(&self) {
        self.pages_done.store(0, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn session() -> Session {
        Session::new(crate::ram::testing::ram(&[1]), 1, Codec::Raw)
    }

    #[test]
    fn nothing_is_placed_after_the_seal() {
        let session = session();
        session.place().unwrap();
        session.placed();
        session.seal().unwrap();
        assert_eq!(session.place(), Err(Sealed));
    }

    #[test]
    fn the_next_round_is_placed_once_the_seal_is_off() {
        let session = session();
        session.seal().unwrap();
        session.seal().unwrap();
        session.unseal();
        session.place().unwrap();
        session.placed();
    }

    #[test]
    fn ram_is_not_sealed_while_a_frame_is_on_its_way_into_it() {
        let session = session();
        session.place().unwrap();
        assert_eq!(session.seal(), Err(Sealed));
    }
}
