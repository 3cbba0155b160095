//! What a migration costs beside its workers: control messages, device state, helper threads.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::cpu_time::thread_cpu_ns;

/// Counts of one end of a migration.
#[derive(Debug, Default)]
pub(super) struct Meter {
    wire_bytes: AtomicU64,
    cpu_ns: AtomicU64,
}

impl Meter {
    /// Bytes of a frame that was sent or received.
    pub(super) fn count_bytes(&self, bytes: usize) {
        self.wire_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// CPU time of a thread that has ended.
    pub(super) fn count_cpu(&self, ns: u64) {
        self.cpu_ns.fetch_add(ns, Ordering::Relaxed);
    }

    pub(super) fn wire_bytes(&self) -> u64 {
        self.wire_bytes.load(Ordering::Relaxed)
    }

    pub(super) fn cpu_ns(&self) -> u64 {
        self.cpu_ns.load(Ordering::Relaxed)
    }

    /// Counts the calling thread's CPU time from its beginning on.
    pub(super) fn helper(self: &Arc<Self>) -> Helper {
        Helper {
            meter: Arc::clone(self),
            counted_ns: 0,
        }
    }
}

/// A thread that helps a migration.
#[derive(Debug)]
pub(super) struct Helper {
    meter: Arc<Meter>,
    counted_ns: u64,
}

impl Helper {
    /// Counts what was new since the last time: nobody waits for the end of some helpers.
    pub(super) fn lap(&mut self) {
        let now = thread_cpu_ns();
        self.meter.count_cpu(now - self.counted_ns);
        self.counted_ns = now;
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        self.lap();
    }
}
