//! How a migration that the other node never accepted is told apart from one that was given up.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;

use common::proxy::{Harm, Plan, Proxy, Way};
use common::{TestGuest, TwoNodes, busy, node, settings, small, until, wait};
use dwcp_api::{ErrorCode, MigrationId, MigrationReport, PhaseName, RunResult, TransferSettings};
use dwcp_testbed::synthetic::SyntheticOptions;

fn patient_for(ms: u32) -> TransferSettings {
    TransferSettings {
        connect_timeout_ms: ms,
        ..settings()
    }
}

/// A try to move a guest to `address`, and its report.
fn try_to_move(address: &str) -> MigrationReport {
    let folder = tempfile::tempdir().unwrap();
    let settings = patient_for(1000);
    let a = node(folder.path(), "a", &settings);
    let guest = TestGuest::start(folder.path(), "source", &small(1, false));
    a.node.attach("vm", guest.attachment.clone()).unwrap();
    let (id, address) = (MigrationId(7), address.to_owned());
    a.node
        .start_migration(id, "vm", &address, settings, false)
        .unwrap();
    let report = wait(&a.node, id);
    assert_eq!(report.result, RunResult::Aborted, "{}", report.reason);
    assert!(guest.is_running());
    report
}

#[test]
fn an_unreachable_node_has_refused() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = closed.local_addr().unwrap().to_string();
    drop(closed);
    let report = try_to_move(&address);
    assert!(report.refused, "{}", report.reason);
}

#[test]
fn what_speaks_something_else_has_refused() {
    let stranger = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = stranger.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let (mut stream, _) = stranger.accept().unwrap();
        let _ = stream.read(&mut [0; 64]);
        let _ = stream.write_all(&[b'S'; 256]);
    });
    let report = try_to_move(&address);
    assert!(report.refused, "{}", report.reason);
}

/// A node that is restarted at that moment, or a link that is cut: another try may do better.
#[test]
fn a_connection_that_breaks_in_the_first_words_is_lost() {
    for is_silent in [false, true] {
        let breaking = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = breaking.local_addr().unwrap().to_string();
        std::thread::spawn(move || {
            let (mut stream, _) = breaking.accept().unwrap();
            let _ = stream.read(&mut [0; 64]);
            while is_silent && stream.read(&mut [0; 64]).is_ok_and(|bytes| bytes > 0) {}
        });
        let report = try_to_move(&address);
        assert!(!report.refused, "{}", report.reason);
        assert!(report.connection_lost, "{}", report.reason);
        let is_said = report.reason.contains("said nothing for 1000 ms");
        assert_eq!(is_said, is_silent, "{}", report.reason);
    }
}

/// It ends at once, and another try would end so, too.
#[test]
fn an_offer_that_cannot_be_said_is_no_lost_connection() {
    let settings = TransferSettings {
        // More than the hour that the protocol allows.
        peer_silence_ms: 4_000_000,
        ..settings()
    };
    let nodes = TwoNodes::start(&settings, |incoming| small(1, incoming));
    let (id, b) = (MigrationId(7), nodes.b.address.clone());
    let started = nodes.a.node.start_migration(id, "vm", &b, settings, false);
    started.unwrap();
    let report = wait(&nodes.a.node, id);
    assert_eq!(report.result, RunResult::Aborted, "{}", report.reason);
    assert!(report.reason.contains("silence"), "{}", report.reason);
    assert!(!report.connection_lost, "{}", report.reason);
    assert!(nodes.old.is_running() && !nodes.new.is_running());
}

#[test]
fn a_node_without_the_vm_has_refused() {
    let folder = tempfile::tempdir().unwrap();
    let b = node(folder.path(), "b", &settings());
    let report = try_to_move(&b.address);
    assert!(report.refused, "{}", report.reason);
}

/// A node that is both ends of a migration would look for the guest in itself.
#[test]
fn a_vm_is_not_moved_to_the_node_that_has_it() {
    let folder = tempfile::tempdir().unwrap();
    let settings = settings();
    let a = node(folder.path(), "a", &settings);
    let guest = TestGuest::start(folder.path(), "source", &small(1, false));
    a.node.attach("vm", guest.attachment.clone()).unwrap();
    let refusal = |vm| {
        let id = MigrationId(7);
        let started = a
            .node
            .start_migration(id, vm, &a.address, settings.clone(), false);
        started.unwrap_err()
    };
    assert_eq!(refusal("other").code, ErrorCode::NotFound);
    let refusal = refusal("vm");
    assert_eq!(refusal.code, ErrorCode::BadRequest);
    assert!(refusal.message.contains("this node already"), "{refusal}");
    assert!(a.node.migrations().is_empty());

    // A way that cannot be seen from here.
    let harmless = Plan {
        connections: 0..0,
        way: Way::ToDestination,
        harm: Harm::Cut { bytes: u64::MAX },
    };
    let around = Proxy::start(&a.address, harmless);
    let id = MigrationId(8);
    a.node
        .start_migration(id, "vm", &around.address, settings.clone(), false)
        .unwrap();
    let report = wait(&a.node, id);
    assert!(report.refused, "{}", report.reason);
    assert!(report.reason.contains("are one node"), "{}", report.reason);
    assert_eq!(a.node.migrations().len(), 1);
    assert!(guest.is_running());
}

/// What was only tried is not called given up: not in the report, the phase, or the journal.
#[test]
fn a_dry_run_that_both_nodes_agree_on_is_named_so_at_both() {
    let settings = settings();
    let TwoNodes { a, b, old, .. } = &TwoNodes::start(&settings, |incoming| small(1, incoming));
    let id = MigrationId(9);
    a.node
        .start_migration(id, "vm", &b.address, settings, true)
        .unwrap();
    for node in [&a.node, &b.node] {
        let report = wait(node, id);
        assert_eq!(report.result, RunResult::DryRun, "{}", report.reason);
        assert_eq!(report.reason, "both nodes agree, nothing was moved");
        assert!(report.dry_run && !report.refused);
        let status = node.status(id).unwrap();
        assert_eq!((report.role, report.peer), (status.role, status.peer));
        assert_eq!(node.status(id).unwrap().phase, PhaseName::DryRun);
    }
    let note = a.node.journal().state().ownership_of("vm").unwrap().note;
    let expected = format!(
        "dry run to {}: both nodes agree, nothing was moved",
        b.address
    );
    assert_eq!(note, expected);
    assert!(old.is_running());
}

/// Nobody refused what the operator took back.
#[test]
fn a_cancelled_migration_was_not_refused() {
    let settings = settings();
    let TwoNodes { a, b, .. } = &TwoNodes::start(&settings, |incoming| small(1, incoming));
    let id = MigrationId(8);
    a.node
        .start_migration(id, "vm", &b.address, settings, false)
        .unwrap();
    a.node.cancel(id).unwrap();
    let report = wait(&a.node, id);
    assert_eq!(report.result, RunResult::Aborted, "{}", report.reason);
    assert!(!report.refused, "{}", report.reason);
}

/// The streams of a source that gives up end at once; what it says of it must not come too late.
#[test]
fn the_destination_reports_why_the_source_gave_up() {
    let never_done = TransferSettings {
        downtime_limit_ms: 1,
        rounds_max: 100_000,
        ..settings()
    };
    let restless = |incoming| SyntheticOptions {
        rate: 200_000,
        ..busy(incoming)
    };
    let TwoNodes { a, b, .. } = &TwoNodes::start(&settings(), restless);
    for id in (1..20).map(MigrationId) {
        let start = || {
            let settings = never_done.clone();
            a.node
                .start_migration(id, "vm", &b.address, settings, false)
        };
        until("the VM is not given back", || start().is_ok());
        until("it does not begin", || {
            let status = a.node.status(id).unwrap();
            status.phase == PhaseName::Precopy || status.report.is_some()
        });
        a.node.cancel(id).unwrap();
        assert_eq!(wait(&a.node, id).reason, "cancelled by the operator");
        let there = wait(&b.node, id).reason;
        assert_eq!(there, "source gave up: cancelled by the operator");
    }
}
