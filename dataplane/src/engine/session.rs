//! What the workers of one migration share.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dwcp_api::Codec;
use dwcp_simd::FingerprintKey;

use crate::ram::{Digests, RamLayout};

/// RAM, digests, key and live counters of one end of a migration.
#[derive(Debug)]
pub struct Session {
    /// Guest RAM.
    pub layout: RamLayout,
    /// What was last sent, or applied.
    pub digests: Digests,
    /// Key of the page fingerprints.
    pub key: FingerprintKey,
    /// Codec of the source.
    pub codec: Codec,
    sealed: AtomicBool,
    wire_bytes: AtomicU64,
    pages_done: AtomicU64,
    in_flight_bytes: AtomicU64,
}

impl Session {
    /// A session over `layout`; the destination's RAM is empty.
    #[must_use]
    pub fn new(layout: RamLayout, fingerprint_seed: u64, codec: Codec) -> Self {
        let digests = Digests::new(&layout);
        Self {
            layout,
            digests,
            key: FingerprintKey::new(fingerprint_seed),
            codec,
            sealed: AtomicBool::new(false),
            wire_bytes: AtomicU64::new(0),
            pages_done: AtomicU64::new(0),
            in_flight_bytes: AtomicU64::new(0),
        }
    }

    /// Destination: nothing may change RAM any more, it is being proven.
    pub fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    /// Whether that was said.
    #[must_use]
    pub fn is_sealed(&self) -> bool {
        self.sealed.load(Ordering::Acquire)
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
