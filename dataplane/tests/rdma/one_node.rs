//! Two nodes in one process, on one device.

use std::time::Duration;

use dwcp_api::{MigrationId, MigrationReport, RdmaChoice, RunResult, TransferSettings};
use dwcp_testbed::synthetic::SyntheticOptions;

use crate::common::{TwoNodes, busy, settings, wait};

/// The address of this node's device.
fn own() -> String {
    let address = std::env::var("DWCP_RXE_OWN").expect("DWCP_RXE_OWN is the device's address");
    format!("{address}:0")
}

fn start(settings: &TransferSettings, guest: fn(bool) -> SyntheticOptions) -> TwoNodes {
    TwoNodes::start_with(settings, guest, |_, mut options| {
        options.listen = own();
        options
    })
}

fn required() -> TransferSettings {
    TransferSettings {
        rdma: RdmaChoice::Required,
        ..settings()
    }
}

/// Moves a guest, while it writes, and lets it check all of its memory at the destination.
fn moves(
    settings: &TransferSettings,
    guest: fn(bool) -> SyntheticOptions,
    meanwhile: impl FnOnce(&TwoNodes),
) -> [MigrationReport; 2] {
    let nodes = start(settings, guest);
    std::thread::sleep(Duration::from_millis(100));
    let id = MigrationId(7);
    let destination = &nodes.b.address;
    nodes
        .a
        .node
        .start_migration(id, "vm", destination, settings.clone(), false)
        .unwrap();
    meanwhile(&nodes);
    let reports = [wait(&nodes.a.node, id), wait(&nodes.b.node, id)];
    for report in &reports {
        println!("{}", serde_json::to_string_pretty(report).unwrap());
        assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
        assert!(report.verified);
    }
    assert_eq!(reports[0].ram_root, reports[1].ram_root);
    assert!(!nodes.old.is_running(), "the source runs on");
    assert!(nodes.new.is_running(), "the destination does not run");
    assert_eq!(nodes.new.bad_pages(), 0);
    reports
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_busy_guest_is_moved_by_the_adapter() {
    let reports = moves(&required(), busy, |_| ());
    for report in &reports {
        assert_eq!(report.transport, "rdma");
    }
    assert!(reports[0].rounds > 1, "pages were written meanwhile");
}
