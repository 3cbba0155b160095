//! Two nodes that have no RDMA, or may not use it: as most machines are.

use dwcp_api::{ErrorCode, MigrationId, RunResult, TransferSettings};

use crate::common::{TwoNodes, busy, settings, wait};
use crate::one_node::required;

#[test]
fn a_node_without_rdma_says_so_where_it_is_required_and_uses_tcp_where_it_is_not() {
    if dwcp_rdma::devices().is_ok_and(|devices| !devices.is_empty()) {
        return println!("this machine has a device");
    }
    let nodes = TwoNodes::start(&settings(), busy);
    let move_it = |id, settings: TransferSettings| {
        let (node, destination) = (&nodes.a.node, &nodes.b.address);
        node.start_migration(id, "vm", destination, settings, false)
            .unwrap();
        wait(node, id)
    };
    let refused = move_it(MigrationId(7), required());
    assert_eq!(refused.result, RunResult::Aborted);
    assert_eq!(
        refused.reason,
        "transfer.rdma = \"required\", and the destination has no RDMA"
    );
    assert!(nodes.old.is_running());
    crate::common::until("the destination has cleared it", || {
        nodes
            .b
            .node
            .migration(MigrationId(7))
            .is_none_or(|migration| migration.status().report.is_some())
    });
    let moved = move_it(MigrationId(8), settings());
    assert_eq!(moved.result, RunResult::Completed, "{}", moved.reason);
    assert!(moved.transport.starts_with("tcp"), "{}", moved.transport);
    assert!(nodes.new.is_running());
}

#[test]
fn rdma_cannot_be_required_in_mode_internet_nor_under_tls() {
    let nodes = TwoNodes::start(&settings(), busy);
    let internet = TransferSettings {
        mode: "internet".into(),
        ..required()
    };
    let start =
        nodes
            .a
            .node
            .start_migration(MigrationId(7), "vm", &nodes.b.address, internet, false);
    let error = start.unwrap_err();
    assert_eq!(error.code, ErrorCode::BadRequest);
}
