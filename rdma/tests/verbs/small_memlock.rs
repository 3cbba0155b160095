//! A process that is not root and may lock 4 MiB.

use std::sync::Arc;

use dwcp_rdma::{Access, Buffer, MemoryRegion};

use crate::common::{Node, PAGE};

#[test]
#[ignore = "needs an RDMA device and a limit of locked memory"]
fn what_does_not_fit_is_refused_and_said_and_pieces_fit_one_after_the_other() {
    let node = Node::new();
    let mib = 1 << 20;
    let buffer = Arc::new(Buffer::new(64 * mib).unwrap());
    let register =
        |range| MemoryRegion::register(&node.domain, buffer.clone(), range, Access::REMOTE_WRITE);
    let error = register(0..64 * mib).unwrap_err();
    assert!(error.is_memlock(), "{error}");
    assert!(error.to_string().contains("RLIMIT_MEMLOCK allows 4194304"));
    // Pieces, each given back before the next: the whole is registered within the limit.
    for start in (0..64 * mib).step_by(2 * mib) {
        let region = register(start..start + 2 * mib).unwrap();
        assert_eq!(region.length() / PAGE, 512);
    }
    let both = [register(0..mib).unwrap(), register(mib..2 * mib).unwrap()];
    assert!(register(2 * mib..6 * mib).unwrap_err().is_memlock());
    drop(both);
    register(2 * mib..5 * mib).unwrap();
}
