//! A process that is not root and may lock little.

use crate::one_node::{moves, placed_mib, reads, required};
use dwcp_api::TransferSettings;

/// Both ends are in this process, and so are their buffers: pieces are given back all the time.
#[test]
#[ignore = "needs an RDMA device and a limit of locked memory"]
fn a_busy_guest_is_moved_by_the_adapter_though_little_may_be_locked() {
    let reports = moves(&TransferSettings {
        streams: 1,
        ..required()
    });
    for report in &reports {
        assert_eq!(report.transport, "rdma");
        assert_eq!(report.streams_replaced, 0, "{:?}", report.notes);
    }
    let (placed, ring) = placed_mib(&reports[0]);
    println!("{placed} MiB placed, {ring} MiB in rings");
    assert!(placed > ring, "{placed} MiB placed, {ring} in rings");
}

/// What rounds had registered is let go before anything is to be read.
#[test]
#[ignore = "needs an RDMA device and a limit of locked memory"]
fn missing_pages_are_read_though_little_may_be_locked() {
    reads(&TransferSettings {
        streams: 1,
        ..required()
    });
}
