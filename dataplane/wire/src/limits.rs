//! Every upper bound of the protocol, and the relations between them.

/// Bytes of a page. Larger host pages are moved as runs of these.
pub const PAGE_BYTES: usize = dwcp_simd::PAGE_BYTES;

/// Pages with data in one frame: 512 KiB, which stays in a core's caches between the stages. On loopback
/// that takes 5% less CPU time than 256 KiB; 1 MiB another 2%, for twice the buffers.
pub const FRAME_DATA_PAGES_MAX: usize = 128;

/// Runs named in one frame.
pub const FRAME_ENTRIES_MAX: usize = 256;

/// Pages in one run. Zero runs may be longer than a frame's data.
pub const RUN_PAGES_MAX: usize = u16::MAX as usize;

/// Largest table: all entries, and a fingerprint for each page with data.
pub const TABLE_BYTES_MAX: usize =
    FRAME_ENTRIES_MAX * crate::ENTRY_BYTES + FRAME_DATA_PAGES_MAX * crate::FINGERPRINT_BYTES;

/// What the data of a window may be larger than its pages: zstd's headers, where nothing gets smaller.
pub const WINDOW_OVERHEAD_BYTES_MAX: usize = 512;

/// Pages of a delta that are one zstd frame: their old pages, and as many new ones, are within the window of
/// every level of zstd.
pub const DELTA_GROUP_PAGES: usize = 64;

/// The same as [`WINDOW_OVERHEAD_BYTES_MAX`] of a delta.
pub const DELTA_OVERHEAD_BYTES_MAX: usize = 128;

/// Largest payload of a page frame.
pub const PAYLOAD_BYTES_MAX: usize = TABLE_BYTES_MAX
    + FRAME_DATA_PAGES_MAX * PAGE_BYTES
    + WINDOW_OVERHEAD_BYTES_MAX
    + DELTA_OVERHEAD_BYTES_MAX;

/// Bytes of all windows of one migration, which its streams share: each has the largest power of two
/// that is no more than its share.
pub const WINDOW_BYTES_MAX: u64 = 128 << 20;

/// Largest frame, header included; the size of a worker's buffers.
pub const FRAME_BYTES_MAX: usize = crate::HEADER_BYTES + PAYLOAD_BYTES_MAX;

/// Largest control message.
pub const CONTROL_BYTES_MAX: usize = 192 * 1024;

/// Largest piece of device state in one frame.
pub const DEVICE_BYTES_MAX: usize = 64 * 1024;

/// RAM blocks of one VM.
pub const RAM_BLOCKS_MAX: usize = 64;

/// Bytes of one RAM block: page indexes are 32 bits wide.
pub const RAM_BLOCK_BYTES_MAX: u64 = (u32::MAX as u64) * PAGE_BYTES as u64;

/// Data streams of one migration.
pub const STREAMS_MAX: usize = 32;

/// Bytes of a name (VM, node, RAM block).
pub const NAME_BYTES_MAX: usize = 255;

/// Bytes of a reason given in words.
pub const REASON_BYTES_MAX: usize = 1024;

/// Silence after which a peer may count as lost, in milliseconds: an hour. A peer that asks for more
/// would hold a VM for ever.
pub const PEER_SILENCE_MS_MAX: u32 = 3_600_000;

/// Page ranges in one suspect report; a peer with more suspects reports ranges that cover them.
pub const SUSPECT_RANGES_MAX: usize = 8192;

/// Pages that one message asks for.
pub const WANTED_PAGES_MAX: usize = 4096;

/// Questions that a source may have under way: 2 MiB of hashes, which fill a link of 100 Mbit/s and 150 ms.
pub const WANTED_UNANSWERED_MAX: usize = 64;

/// Pages that one message says are missing or not: 1 GiB.
pub const MISSING_PAGES_MAX: usize = 1 << 18;

/// Bytes of such a message's bitmap, compressed: what zstd makes of one that does not compress at most.
pub const MISSING_BYTES_MAX: usize = MISSING_PAGES_MAX / 8 + MISSING_PAGES_MAX / 2048 + 64;

/// Pages that one request asks for.
pub const REQUEST_PAGES_MAX: u32 = FRAME_DATA_PAGES_MAX as u32;

/// Runs that one request asks for.
pub const REQUEST_RANGES_MAX: usize = 64;

const _: () = {
    assert!(MISSING_BYTES_MAX + 1024 <= CONTROL_BYTES_MAX);
    assert!(CONTROL_BYTES_MAX <= PAYLOAD_BYTES_MAX);
    // One range for each block always fits.
    assert!(RAM_BLOCKS_MAX <= SUSPECT_RANGES_MAX);
    assert!(DEVICE_BYTES_MAX <= PAYLOAD_BYTES_MAX);
    // A range is at most three varints of 5 bytes.
    assert!(SUSPECT_RANGES_MAX * 15 + 1024 <= CONTROL_BYTES_MAX);
    assert!(WANTED_PAGES_MAX * crate::wanted::HASH_BYTES + 1024 <= CONTROL_BYTES_MAX);
    assert!(FRAME_BYTES_MAX <= 1024 * 1024);
};
